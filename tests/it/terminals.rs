//! Terminals on the host and in a container: [`promises`] defines a test of each function for both. Numbers in the
//! comments are reports of `assets/docs/field-reports.md`.

use std::time::Instant;

use serde_json::{Value, json};

use crate::fixture::Place;
use crate::procs::{self, secs, unique_secs, wait_for};
use crate::runs::UNPRIVILEGED;
use crate::server::{HOST_TOKEN, NIL, Server, Setup};
use crate::socket::Socket;
use crate::terminal::Terminal;

/// Defines a test of each function for the host and for a container.
macro_rules! promises {
    ($($name:ident)*) => {
        mod on_the_host {
            $(#[test]
            fn $name() {
                super::$name(&crate::fixture::Place::host($crate::terminals::server()));
            })*
        }
        mod in_a_container {
            $(#[test]
            fn $name() {
                super::$name(&crate::fixture::shared_box());
            })*
        }
    };
}

pub(crate) use promises;

promises! {
    the_terminal_belongs_to_its_workspace
    the_size_is_set_before_the_program_starts
    jobs_are_controlled_from_the_keyboard
    a_resize_reaches_the_program
    no_character_is_split_between_messages
    a_reconnecting_client_gets_the_current_screen
    leaving_a_full_screen_program_restores_the_screen
    reconnecting_types_nothing_into_the_shell
    terminal_queries_are_answered_once
    one_client_writes_until_another_takes_over
    a_terminal_without_clients_continues
    a_client_that_does_not_read_does_not_delay_others
    deleting_a_terminal_ends_all_its_processes
    the_end_of_a_terminal_is_reported_with_its_status
    input_can_be_bytes_text_or_keys
    input_to_a_program_that_does_not_read_fails_with_a_message
    the_workspace_lists_its_terminals
    the_program_of_a_terminal_can_run_as_another_user
}

/// One server for all host tests.
pub fn server() -> &'static Server {
    use std::sync::OnceLock;
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = Setup::new().arg("--approval=auto").start();
        crate::fixture::guard(&server);
        server
    })
}

fn the_terminal_belongs_to_its_workspace(place: &Place<'_>) {
    let terminal = Terminal::shell(place);
    terminal.type_in("clear; tty; test -c $(tty) && test -t 0 && : > $(tty) && echo 'it is there'; ps -o tty= -p $$ || true\r");
    let text = terminal.shows("it is there");
    let tty = text.lines().next().unwrap().to_owned();
    assert!(tty.starts_with("/dev/pts/"), "{text}");
    // `sudo`, `ssh` and `gpg` prompt there, independent of their standard streams.
    terminal.type_in("clear; echo asked > /dev/tty < /dev/null 2> /dev/null\r");
    terminal.shows("asked");
    // Line editing erases whole characters (IUTF8).
    terminal.type_in("clear; stty -a | grep -o ' iutf8'\r");
    terminal.shows(" iutf8");
}

/// 17
fn the_size_is_set_before_the_program_starts(place: &Place<'_>) {
    for (cols, rows) in [(132, 43), (20, 5), (1000, 100)] {
        let body = json!({"command": "stty size", "cols": cols, "rows": rows});
        let terminal = Terminal::start(place, body);
        terminal.ended();
        assert_eq!(terminal.text(), format!("{rows} {cols}\n"));
    }
    let usual = Terminal::start(place, json!({"command": "stty size; tput cols; tput lines"}));
    usual.ended();
    assert_eq!(usual.text(), "24 80\n80\n24\n");
}

fn jobs_are_controlled_from_the_keyboard(place: &Place<'_>) {
    let terminal = Terminal::shell(place);
    let (first, second) = (unique_secs(), unique_secs());
    terminal.type_in(&format!("sleep {first} & fg\r"));
    let pid = procs::wait_sleep(&first);
    // Only now do ^Z and ^C reach the program: bash prints its name slightly earlier.
    let in_front =
        || wait_for("the job in the foreground", secs(10), || procs::in_foreground(pid).then_some(()));
    in_front();
    terminal.type_in("\x1a");
    terminal.until("the job to be stopped", |text| text.contains("Stopped"));
    assert!(procs::status(pid, "State").unwrap().starts_with('T'));
    terminal.type_in("bg\r");
    wait_for("the job to go on", secs(10), || {
        procs::status(pid, "State").filter(|state| !state.starts_with('T'))
    });
    terminal.type_in("fg\r");
    in_front();
    terminal.type_in("\x03");
    wait_for("^C to end the job", secs(10), || (!procs::alive(pid)).then_some(()));
    terminal.type_in(&format!("clear; sleep {second}\r"));
    procs::wait_sleep(&second);
    terminal.type_in("\x03");
    terminal.type_in("echo status $?\r");
    terminal.shows("status 130");
    // ^D is end of file. While bash is still in its line editor, a return does not end a line.
    terminal.type_in("clear; echo 'go 'on; cat; echo cat has ended\r");
    terminal.shows("go on");
    terminal.type_in("line\r\x04");
    terminal.shows("cat has ended");
}

fn a_resize_reaches_the_program(place: &Place<'_>) {
    // Not a trap of a shell: bash loses a signal that arrives while it handles the previous one.
    let script = "perl -e '$| = 1; $SIG{WINCH} = sub { $new = 1 }; print \"ready\\n\"; \
                  while (1) { select undef, undef, undef, 0.05; if ($new) { $new = 0; system \"stty size\" } }'";
    let terminal = Terminal::start(place, json!({"command": script}));
    terminal.shows("ready");
    let reply = place.client.post(200, &terminal.path("/resize"), json!({"cols": 101, "rows": 31}));
    assert_eq!((&reply["cols"], &reply["rows"]), (&json!(101), &json!(31)));
    terminal.shows("31 101");
    let mut client = terminal.socket("");
    client.resize(90, 20);
    client.row("the size", |row| row == "20 90");
    let view = terminal.view();
    assert_eq!((&view["cols"], &view["rows"]), (&json!(90), &json!(20)));
    // A client that only watches gets an error and cannot resize.
    let mut reader = terminal.socket("?mode=read");
    reader.resize(50, 10);
    client.resize(91, 20);
    reader.until("the news", |socket| {
        socket.news.contains(&json!({"t": "size", "c": 91, "r": 20})).then_some(())
    });
    terminal.shows("20 91");
    assert!(!terminal.text().contains("10 50"));
    for bad in [
        json!({"cols": 0, "rows": 5}),
        json!({"cols": 1001, "rows": 5}),
        json!({"cols": 1000, "rows": 500}),
        json!({}),
    ] {
        place.client.refused(400, "invalid_payload", "POST", &terminal.path("/resize"), Some(bad));
    }
    // On a socket no error can be reported, so the nearest valid size is used.
    client.send(json!({"t": "r", "c": 65535, "r": 65535}));
    terminal.shows("100 1000");
}

/// Every message of a socket contains whole characters and whole control sequences, wherever the kernel split the
/// output.
fn no_character_is_split_between_messages(place: &Place<'_>) {
    // Two, three and four bytes each; 11 bytes at a time are out of step with every buffer size.
    let script = "read _; i=0; while [ $i -lt 40 ]; do printf 'aäöü€𝄞%.0s' $(seq 500); printf '\\033[38;5;196mx\\033[0m'; i=$((i+1)); done; \
                  for byte in 303 274 342 202 254 360 235 204 236; do printf \"\\\\$byte\"; sleep 0.02; done; \
                  printf '\\033['; sleep 0.05; printf '1;3'; sleep 0.05; printf '1mred\\033[0'; sleep 0.05; printf 'm\\n'; echo the end";
    let terminal = Terminal::start(place, json!({"command": script, "cols": 200, "rows": 50}));
    let mut client = terminal.socket("");
    client.type_in("\r");
    client.until("the end", |socket| socket.text.contains("the end").then_some(()));
    assert!(!client.text.contains('\u{fffd}'));
    assert_eq!(client.text.matches('𝄞').count(), 40 * 500 + 1);
    assert_eq!(client.text.matches("ü€𝄞").count(), 40 * 500 + 1);
    for piece in &client.pieces {
        let open = piece.rfind('\x1b').map(|at| &piece[at..]);
        assert!(
            open.is_none_or(
                |rest| rest.len() > 1 && rest.contains(|c: char| c.is_ascii_alphabetic() || c == '>')
            ),
            "{open:?}"
        );
    }
    assert!(client.pieces.iter().any(|piece| piece.contains("\x1b[1;31mred")), "the sequence was split");
}

/// A full-screen program that uses tput, which every Debian has: colours, line drawing, a title, a hidden cursor.
const FULL_SCREEN: &str = r#"
    printf '\033]2;the title\007'; tput smcup; tput civis; tput clear; tput cup 2 5; tput setaf 3; tput rev; printf ' menü '; tput sgr0
    tput cup 4 0; tput smacs; echo 'lqqqqk'; echo 'x    x'; echo 'mqqqqj'; tput rmacs
    tput csr 10 12; tput cup 12 0; printf 'one\ntwo\nthree\nfour'; tput csr 0 23
    tput cup 20 70; printf 'across the edge'; tput smkx; printf '\033[?1002h\033[?1006h\033[?2004h'; tput cup 6 7
"#;

/// The lines of the client's screen and of the server's screen must be equal.
#[track_caller]
fn assert_same_screen(client: &mut Socket, terminal: &Terminal<'_>) {
    let lines = |view: &Value| -> Vec<String> {
        view["lines"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
    };
    let view = terminal.view();
    client.until(&format!("the same screen as {:#?}", lines(&view)), |socket| {
        (socket.rows() == lines(&view)).then_some(())
    });
    let (row, col) = client.screen.screen().cursor_position();
    assert_eq!(json!([row, col]), json!([view["cursor"]["row"], view["cursor"]["col"]]));
    assert_eq!(client.screen.screen().hide_cursor(), view["cursor"]["visible"] == false);
}

/// 16
fn a_reconnecting_client_gets_the_current_screen(place: &Place<'_>) {
    let terminal = Terminal::start(
        place,
        json!({"command": format!("echo before\n{FULL_SCREEN}\nread x; tput rmcup; tput cnorm; echo after; read x")}),
    );
    terminal.until("the program's screen", |text| text.contains("across"));
    wait_for("the program to wait", secs(10), || {
        (terminal.view()["cursor"] == json!({"col": 7, "row": 6, "visible": false})).then_some(())
    });
    let view = terminal.view();
    assert_eq!((&view["title"], &view["alternate_screen"]), (&json!("the title"), &json!(true)));
    assert_eq!(view["lines"][2], "      menü");
    assert_eq!(view["cells"][2][1], json!({"text": " menü ", "width": 6, "fg": 3, "style": ["inverse"]}));
    assert_eq!((&view["lines"][4], &view["lines"][6]), (&json!("┌────┐"), &json!("└────┘")));
    for _ in 0..3 {
        // vt100 does not support line drawing characters; another test compares the server's model with itself.
        let mut client = terminal.socket("?mode=read");
        client.until("the screen", |socket| {
            (socket.rows() == serde_json::from_value::<Vec<String>>(view["lines"].clone()).unwrap())
                .then_some(())
        });
        let screen = client.screen.screen();
        assert_eq!(screen.cursor_position(), (6, 7));
        assert!(screen.hide_cursor() && screen.alternate_screen() && screen.bracketed_paste());
        assert!(screen.application_keypad() && screen.application_cursor());
        assert_eq!(screen.mouse_protocol_mode(), vt100::MouseProtocolMode::ButtonMotion);
        assert_eq!(screen.mouse_protocol_encoding(), vt100::MouseProtocolEncoding::Sgr);
        assert_eq!(screen.cell(2, 6).unwrap().fgcolor(), vt100::Color::Idx(3));
    }
}

fn leaving_a_full_screen_program_restores_the_screen(place: &Place<'_>) {
    let script =
        "echo the shell; tput smcup; tput clear; echo the program; read x; tput rmcup; echo after; read x";
    let terminal = Terminal::start(place, json!({"command": script}));
    terminal.shows("the program");
    let mut client = terminal.socket("");
    client.shows("the program");
    assert!(!client.rows().contains(&"the shell".to_owned()));
    client.type_in("\r");
    client.shows("after");
    assert_eq!(client.rows()[..2], ["the shell", "after"], "the output from before the client connected");
    assert_same_screen(&mut client, &terminal);
}

/// 16: a question that a program has asked the terminal must not be replayed to a client that reconnects, because its
/// answer would be typed into the shell.
fn reconnecting_types_nothing_into_the_shell(place: &Place<'_>) {
    let terminal = Terminal::shell(place);
    terminal.type_in("clear; printf '\\033[c\\033[>c\\033[6n\\033[5n\\033]11;?\\007\\033P$qm\\033\\\\\\033[?2004$p'; sleep 0.3; read -t 0.5 -n 100 -s; clear; echo asked\r");
    terminal.shows("asked");
    for _ in 0..3 {
        let mut client = terminal.socket("");
        client.shows("asked");
        for question in ["\x1b[c", "\x1b[>c", "6n", "5n", "11;?", "$q", "$p"] {
            assert!(!client.text.contains(question), "{:?}", client.text);
        }
    }
    terminal.type_in("echo $((6*7))\r");
    let text = terminal.shows("42");
    assert!(text.contains("ready> echo $((6*7))\n42"), "{text}");
}

/// The client that writes answers, or else the server: exactly one of them.
fn terminal_queries_are_answered_once(place: &Place<'_>) {
    let terminal = Terminal::shell(place);
    let ask = "clear; stty -echo; printf '\\033[6n'; read -r -s -d R -t 20 answer; read -r -s -n 20 -t 1 more; stty echo; echo \"got ${answer#*[} and '$more'\"\r";
    terminal.type_in(ask);
    terminal.shows("got 1;1 and ''");
    let mut reader = terminal.socket("?mode=read");
    reader.shows("got 1;1 and ''");
    terminal.type_in(ask);
    reader.until("the question", |socket| socket.text.contains("\x1b[6n").then_some(()));
    reader.type_in("\x1b[9;9R");
    reader.shows("got 1;1 and ''");
    let mut writer = terminal.socket("");
    writer.type_in(ask);
    writer.until("the question", |socket| socket.text.contains("\x1b[6n").then_some(()));
    writer.type_in("\x1b[7;8R");
    writer.shows("got 7;8 and ''");
}

/// 18
fn one_client_writes_until_another_takes_over(place: &Place<'_>) {
    let terminal = Terminal::shell(place);
    let role = |socket: &mut Socket, writes: bool| {
        socket.until("its role", |socket| {
            (socket.news.last() == Some(&json!({"t": "role", "writes": writes}))).then_some(())
        });
    };
    let mut first = terminal.socket("");
    role(&mut first, true);
    let mut second = terminal.socket("");
    role(&mut second, false);
    second.type_in("echo from the second\r");
    first.type_in("echo from the first\r");
    second.shows("from the first");
    assert!(!terminal.text().contains("from the second"));
    let view = terminal.show();
    assert_eq!((&view["clients"], &view["writer"]), (&json!(2), &json!(true)));
    let mut third = terminal.socket("?takeover=true");
    role(&mut third, true);
    role(&mut first, false);
    first.type_in("echo once more\r");
    third.type_in("echo taken over\r");
    for socket in [&mut first, &mut second, &mut third] {
        socket.shows("taken over");
    }
    assert!(!terminal.text().contains("once more"));
    second.send(json!({"t": "take"}));
    role(&mut second, true);
    role(&mut third, false);
    drop(second);
    wait_for("the client to disconnect", secs(10), || (terminal.show()["writer"] == false).then_some(()));
    // All clients received the same output, in the same order, with no character split.
    for socket in [&mut first, &mut third] {
        assert_same_screen(socket, &terminal);
    }
    let headers = [("Authorization", format!("Bearer {}", HOST_TOKEN))];
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    for query in ["?mode=both", "?mode=read&takeover=true", "?takeover=perhaps"] {
        let refused =
            Socket::try_open(place.server, &terminal.path(&format!("/ws{query}")), &headers).err().unwrap();
        assert_eq!((refused.status, refused.value()["code"].as_str()), (400, Some("invalid_request")));
    }
    place.client.refused(400, "invalid_request", "GET", &terminal.path("/ws"), None);
}

/// 15
fn a_terminal_without_clients_continues(place: &Place<'_>) {
    // Much more than the kernel buffers.
    let terminal = Terminal::start(place, json!({"command": "seq 1 300000; echo done; read x"}));
    let text = terminal.shows("done");
    assert!(!text.starts_with("1\n") && text.ends_with("300000\ndone\n"), "{text}");
    let endless = Terminal::shell(place);
    endless.type_in("yes\r");
    endless.until("yes", |text| text.starts_with("y\ny\n"));
    endless.type_in("\x03");
    endless.type_in("clear; echo stopped\r");
    endless.shows("stopped");
}

/// 14, 18: a suspended laptop.
fn a_client_that_does_not_read_does_not_delay_others(place: &Place<'_>) {
    let terminal = Terminal::shell(place);
    let mut sleeper = terminal.socket("?mode=read");
    sleeper.until("its picture", |socket| (!socket.text.is_empty()).then_some(()));
    let mut other = terminal.socket("");
    let before = procs::memory(place.server.pid, "VmRSS");
    let start = Instant::now();
    other.type_in("clear; seq 1 300000; echo done\r");
    other.shows("done");
    let took = start.elapsed();
    let growth = procs::memory(place.server.pid, "VmRSS").saturating_sub(before) >> 20;
    assert!(growth < 24, "the server has grown by {growth} MB");
    eprintln!("2 MB of output on {} took {took:?}, {growth} MB of memory", place.id);
    // After it resumes, it sees the current screen, not old output.
    sleeper.shows("done");
    assert_same_screen(&mut sleeper, &terminal);
    assert!(sleeper.text.len() < 1 << 20, "it received {} bytes of old output", sleeper.text.len());
}

fn deleting_a_terminal_ends_all_its_processes(place: &Place<'_>) {
    let terminal = Terminal::shell(place);
    let numbers: Vec<String> = (0..4).map(|_| unique_secs()).collect();
    let [a, b, c, d] = &numbers[..] else { panic!() };
    terminal.type_in(&format!(
        "trap '' HUP TERM; sleep {a} & setsid sleep {b} & nohup setsid sh -c 'trap \"\" HUP TERM INT; sleep {c}; sleep 1000' > /dev/null 2>&1 & sleep {d}\r"
    ));
    for number in &numbers {
        procs::wait_sleep(number);
    }
    let mut client = terminal.socket("");
    client.until("its picture", |socket| (!socket.text.is_empty()).then_some(()));
    let path = terminal.path("");
    let reply = terminal.delete();
    assert_eq!((&reply["status"], &reply["ended_by"]), (&json!("ended"), &json!("deleted")), "{reply}");
    for number in &numbers {
        assert!(procs::sleeps(number).is_empty(), "sleep {number} is still running");
    }
    assert_eq!(client.until_closed().end_reason()["ended_by"], "deleted");
    place.client.refused(404, "terminal_not_found", "GET", &path, None);
    place.client.refused(404, "terminal_not_found", "DELETE", &path, None);
}

fn the_end_of_a_terminal_is_reported_with_its_status(place: &Place<'_>) {
    for (command, code, signal) in
        [("exit 0", 0, json!(null)), ("exit 7", 7, json!(null)), ("kill -9 $$", -1, json!(9))]
    {
        let terminal =
            Terminal::start(place, json!({"command": format!("read x; printf 'last words'; {command}")}));
        let mut client = terminal.socket("");
        client.type_in("\r");
        let closed = client.until_closed();
        assert_eq!(closed.code, 1000);
        let expected = json!({"exit_code": code, "signal": signal, "ended_by": "exit"});
        assert_eq!(closed.end_reason(), expected);
        assert_eq!(client.news.last().unwrap()["exit_code"], code);
        assert!(client.text.ends_with("last words"), "{:?}", client.text);
        let reply = terminal.ended();
        assert_eq!(
            (&reply["exit_code"], &reply["signal"], &reply["ended_by"]),
            (&expected["exit_code"], &expected["signal"], &expected["ended_by"])
        );
        // The last output can still be read; input is refused.
        assert!(terminal.text().ends_with("last words\n"));
        place.client.refused(
            409,
            "terminal_ended",
            "POST",
            &terminal.path("/resize"),
            Some(json!({"cols": 5, "rows": 5})),
        );
        place.client.refused(
            409,
            "terminal_ended",
            "POST",
            &terminal.path("/input"),
            Some(json!({"text": "x"})),
        );
        let headers = format!("Bearer {}", HOST_TOKEN);
        let refused = Socket::try_open(place.server, &terminal.path("/ws"), &[("Authorization", &headers)])
            .err()
            .unwrap();
        assert_eq!(refused.status, 409);
    }
    // Long final output is not lost either.
    let terminal = Terminal::start(place, json!({"command": "read x; seq 1 100000"}));
    let mut client = terminal.socket("");
    client.type_in("\r");
    client.until_closed();
    assert!(client.text.ends_with("99999\r\n100000\r\n"), "{:?}", &client.text[client.text.len() - 40..]);
}

fn input_can_be_bytes_text_or_keys(place: &Place<'_>) {
    let terminal = Terminal::shell(place);
    let post = |body: Value| place.client.post(200, &terminal.path("/input"), body);
    assert_eq!(post(json!({"text": "clear; echo grün €", "keys": ["enter"]})), json!({"bytes": 22}));
    terminal.shows("grün €");
    post(json!({"text": "echo thrown away", "keys": ["ctrl-u"]}));
    post(json!({"text": "echo ab", "keys": ["left", "backspace", "end", "enter"]}));
    terminal.shows("b");
    post(json!({"base64": "ZWNobyA2NAo="}));
    terminal.shows("64");
    terminal.type_in("cat -v\r");
    terminal.until("cat", |text| text.trim_end().ends_with("cat -v"));
    post(json!({"keys": ["up", "f5", "alt-x", "escape", "enter"]}));
    // Once echoed by the terminal, and once from the program, which has started by then.
    terminal.until("the output of cat", |text| text.matches("^[[A^[[15~^[x^[").count() == 2);
    // In a program that has requested application mode, arrow keys send its sequences (DECCKM).
    post(json!({"keys": ["ctrl-c"]}));
    terminal.until("the prompt", |text| text.ends_with("ready>\n"));
    terminal.type_in("clear; tput smkx; echo begun; cat -v\r");
    terminal.shows("begun");
    post(json!({"keys": ["up", "enter"]}));
    terminal.shows("^[OA");
    for (bad, code) in [
        (json!({}), "invalid_payload"),
        (json!({"keys": ["nope"]}), "invalid_payload"),
        (json!({"base64": "%"}), "invalid_payload"),
        (json!({"text": 5}), "invalid_payload"),
        (json!([]), "invalid_payload"),
    ] {
        place.client.refused(400, code, "POST", &terminal.path("/input"), Some(bad));
    }
    let long = vec![b'x'; (8 << 20) + 1];
    let reply =
        place.client.send("POST", &terminal.path("/input"), &[("Content-Type", "text/plain")], Some(&long));
    assert_eq!((reply.status, reply.value()["code"].as_str()), (413, Some("body_too_large")));
}

fn input_to_a_program_that_does_not_read_fails_with_a_message(place: &Place<'_>) {
    let script = "stty raw -echo; echo ready; while test ! -e /tmp/berth-go-$PPID-$$; do sleep 0.05; done; dd bs=1 count=1000 2>/dev/null | wc -c; sleep 60";
    let terminal = Terminal::start(place, json!({"command": script}));
    terminal.shows("ready");
    let chunk = vec![b'x'; 32 << 10];
    let refused = wait_for("the input buffer to be full", secs(20), || {
        let reply = place.client.send(
            "POST",
            &terminal.path("/input"),
            &[("Content-Type", "text/plain")],
            Some(&chunk),
        );
        (reply.status != 200).then_some(reply)
    });
    assert_eq!((refused.status, refused.value()["code"].as_str()), (409, Some("conflict")), "{refused}");
    // A socket waits instead, and still receives everything else.
    let mut client = terminal.socket("");
    client.shows("ready");
    for _ in 0..4 {
        client.send_raw(tungstenite::Message::binary(chunk.clone()));
    }
    place.client.post(200, &terminal.path("/resize"), json!({"cols": 60, "rows": 20}));
    client
        .until("news", |socket| socket.news.contains(&json!({"t": "size", "c": 60, "r": 20})).then_some(()));
    terminal.delete();
    assert_eq!(client.until_closed().end_reason()["ended_by"], "deleted");
}

fn the_workspace_lists_its_terminals(place: &Place<'_>) {
    let script = "echo \"$WORKSPACE_ID|$TERM|$X|$HOME\"; pwd; env | grep -c -e TOKEN -e BERTH || true";
    let terminal = Terminal::start(place, json!({"command": script, "cwd": "/tmp", "env": {"X": "mine"}}));
    terminal.ended();
    let home = if place.id == NIL {
        place.server.scratch().path().join("home").display().to_string()
    } else {
        "/root".into()
    };
    let text = terminal.text().replace('\n', "");
    assert_eq!(text, format!("{}|xterm-256color|mine|{home}/tmp0", place.id));
    for (bad, code) in [
        (json!({"command": " "}), "invalid_command"),
        (json!({"command": "a\u{0}"}), "invalid_command"),
        (json!({"env": {"A B": "x"}}), "invalid_env"),
        (json!({"cwd": "/no/such/folder"}), "invalid_cwd"),
        (json!({"cols": 0}), "invalid_payload"),
        (json!({"rows": 501}), "invalid_payload"),
        (json!({"idle_timeout_secs": 0}), "invalid_payload"),
        (json!({"cols": -1}), "invalid_payload"),
    ] {
        place.client.refused(400, code, "POST", &place.path("/terminals"), Some(bad));
    }
}

fn the_program_of_a_terminal_can_run_as_another_user(place: &Place<'_>) {
    let script =
        "id -u; id -g; echo $USER $LOGNAME $HOME; echo mine > $(tty); stat -c %u $(tty); cat /etc/shadow";
    let body = json!({"command": script, "user": UNPRIVILEGED, "cwd": "/"});
    let terminal = Terminal::start(place, body);
    assert_eq!(terminal.ended()["user"], UNPRIVILEGED);
    let names = format!("{UNPRIVILEGED} {UNPRIVILEGED} /nonexistent");
    let seen = format!("65534\n65534\n{names}\nmine\n65534\ncat: /etc/shadow: Permission denied\n");
    assert_eq!(terminal.text(), seen);
    let another =
        Terminal::start(place, json!({"command": "id -u; id -g", "user": "4711:daemon", "cwd": "/"}));
    another.ended();
    assert_eq!(another.text(), "4711\n1\n");
    place.sh("mkdir -p -m 700 /tmp/it-only-root");
    let refused = |code: &str, body: Value| {
        place.client.refused(400, code, "POST", &place.path("/terminals"), Some(body));
    };
    refused("invalid_cwd", json!({"user": UNPRIVILEGED, "cwd": "/tmp/it-only-root"}));
    for user in ["no-such-user", "", "root:no-such-group", "-1", "root\n"] {
        refused("invalid_user", json!({"user": user}));
    }
}
