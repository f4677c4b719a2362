//! The screen of `berth host` on a terminal, checked with another program's terminal emulation.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};
use serde_json::json;

use crate::client::Client;
use crate::host_command::Place;
use crate::procs::{self, secs, wait_for};

const TOKEN: &str = "it-screen-client-8d10";
const HOST_TOKEN: &str = "it-screen-owner-77aa";

fn cells(count: u16) -> NonZero<u16> {
    NonZero::new(count).unwrap()
}

struct Screen {
    child: Child,
    master: File,
    slave: OwnedFd,
    model: Arc<Mutex<vt100::Parser>>,
    raw: Arc<Mutex<Vec<u8>>>,
}

impl Screen {
    fn start(place: &Place, arguments: &[&str]) -> Screen {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        tcsetwinsize(&master, Winsize { ws_row: 30, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let side = || Stdio::from(slave.try_clone().unwrap());
        let child = place
            .host(&[&["start", "--openwork-port=0", "--workspace=work"], arguments].concat())
            .env("TERM", "xterm")
            .env("OPENWORK_TOKEN", TOKEN)
            .env("OPENWORK_HOST_TOKEN", HOST_TOKEN)
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        let model = Arc::new(Mutex::new(vt100::Parser::new(cells(30), cells(120), 0)));
        let raw = Arc::new(Mutex::new(Vec::new()));
        let master = File::from(master);
        let (mut reader, seen, bytes) = (master.try_clone().unwrap(), model.clone(), raw.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                seen.lock().unwrap().process(&buffer[..count]);
                bytes.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Screen { child, master, slave, model, raw }
    }

    fn text(&self) -> String {
        self.model.lock().unwrap().screen().contents()
    }

    #[track_caller]
    fn wait_until_shown(&self, part: &str) -> String {
        let mut last = String::new();
        let shown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for(part, secs(60), || {
                last = self.text();
                last.contains(part).then(|| last.clone())
            })
        }));
        shown.unwrap_or_else(|_| panic!("{part:?} is not in\n{last}"))
    }

    fn key(&self, key: &str) {
        (&self.master).write_all(key.as_bytes()).unwrap();
    }

    fn client(&self, token: &str) -> Client {
        let text = self.wait_until_shown("http://");
        let at = text.find("http://").unwrap() + "http://".len();
        let address: String = text[at..].chars().take_while(|c| !c.is_whitespace() && *c != '/').collect();
        Client::new(address.parse().unwrap()).with("Authorization", &format!("Bearer {token}"))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        procs::signal(self.child.id(), Signal::TERM);
        let _ = self.child.wait();
    }
}

#[test]
fn approvals_are_answered_with_a_key_and_the_terminal_is_restored() {
    let place = Place::misbehaving("");
    let mut screen = Screen::start(&place, &["--approval=manual", "--approval-timeout=120000"]);
    let before = tcgetattr(&screen.slave).unwrap();
    screen.wait_until_shown("nothing waits");
    let text = screen.wait_until_shown("running 9.9.9");
    assert!(text.contains("Tokens") && text.contains("hidden") && text.contains("listening on"), "{text}");
    let client = screen.client(TOKEN);
    thread::scope(|scope| {
        let ask = |template: &'static str| {
            let client = &client;
            let id = client.get(200, "/workspaces")["items"][0]["id"].as_str().unwrap().to_owned();
            let body = json!({ "name": "greet", "template": template });
            let path = format!("/workspace/{id}/commands");
            scope.spawn(move || client.call("POST", &path, Some(&body)).status)
        };
        let allowed = ask("Say \u{1b}[2J hello");
        screen.wait_until_shown("1 waits for an answer");
        screen.key("\r");
        let all = screen.wait_until_shown("asked by");
        assert!(all.contains("Say \\u{1b}[2J hello"), "{all}");
        // The approval must have been visible for half a second, otherwise the key is refused and pressed again.
        screen.key("a");
        let mut pressed = Instant::now();
        let mut text = String::new();
        let answered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("the answer", secs(60), || {
                text = screen.text();
                // A person presses the key again, too.
                if pressed.elapsed() > Duration::from_secs(1) && !text.contains("Allowed.") {
                    screen.key("a");
                    pressed = Instant::now();
                }
                text.contains("Allowed.").then_some(())
            });
        }));
        assert!(answered.is_ok(), "not answered; the screen shows\n{text}");
        assert_eq!(allowed.join().unwrap(), 200);
        screen.wait_until_shown("nothing waits");

        let denied = ask("Say no");
        screen.wait_until_shown("1 waits for an answer");
        thread::sleep(std::time::Duration::from_millis(600));
        screen.key("d");
        screen.wait_until_shown("Denied.");
        assert_eq!(denied.join().unwrap(), 403);
    });
    assert!(
        !screen.raw.lock().unwrap().windows(4).any(|four| four == b"\x1b[2J"),
        "text from a client cleared the screen"
    );

    // The screen's own requests are not repeated in its log.
    assert!(screen.text().matches("GET /approvals ").count() < 12, "{}", screen.text());

    // Tokens are shown on request, and the size follows the terminal.
    assert!(!screen.text().contains(HOST_TOKEN));
    screen.key("t");
    screen.wait_until_shown(HOST_TOKEN);
    screen.key("t");
    screen.wait_until_shown("hidden");
    screen.model.lock().unwrap().screen_mut().set_size(cells(10), cells(60));
    tcsetwinsize(&screen.master, Winsize { ws_row: 10, ws_col: 60, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    wait_for("a small screen", secs(20), || {
        let text = screen.text();
        (text.lines().count() <= 10 && text.contains("q stop") && text.contains("Log")).then_some(())
    });

    screen.key("q");
    screen.wait_until_shown("Stop the host");
    screen.key("n");
    screen.wait_until_shown("q stop");
    screen.key("q");
    screen.wait_until_shown("Stop the host");
    screen.key("y");
    let ended = wait_for("the host to exit", secs(60), || screen.child.try_wait().unwrap());
    assert!(ended.success(), "{ended}");
    assert!(screen.raw.lock().unwrap().windows(8).any(|eight| eight == b"\x1b[?1049l"));
    let after = tcgetattr(&screen.slave).unwrap();
    assert_eq!((after.local_modes, after.input_modes), (before.local_modes, before.input_modes));
}

#[test]
fn the_screen_needs_a_terminal() {
    let place = Place::misbehaving("");
    let request = crate::server::run(&mut place.host(&["start", "--tui"]), secs(60));
    assert!(request.code == Some(2) && request.stderr.contains("--tui: needs a terminal"), "{request:?}");
    let without = Screen::start(&place, &["--no-tui"]);
    without.wait_until_shown("OpenWork host running");
    assert!(!without.raw.lock().unwrap().windows(8).any(|eight| eight == b"\x1b[?1049h"));
}
