//! Real programs on terminals, with screens compared to an independent model; and a third-party client
//! (`websockets_client.py`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::fixture::{Place, shared};
use crate::procs::{secs, wait_for};
use crate::server::{HOST_TOKEN, Server, run};
use crate::socket::Socket;
use crate::terminal::Terminal;

/// The text of every row.
fn lines(view: &Value) -> Vec<String> {
    serde_json::from_value(view["lines"].clone()).unwrap()
}

/// Waits until the client's screen, its cursor and the colours of its cells equal those that the server reports.
#[track_caller]
fn assert_same_screen(client: &mut Socket, terminal: &Terminal<'_>) {
    client.until("the same screen as the server's", |socket| {
        let view = terminal.view();
        let screen = socket.screen.screen();
        let (row, col) = screen.cursor_position();
        let cursor =
            screen.hide_cursor() || view["cursor"] == json!({"col": col, "row": row, "visible": true});
        (socket.rows() == lines(&view) && cursor && same_styles(socket, &view)).then_some(())
    });
}

fn same_styles(socket: &Socket, view: &Value) -> bool {
    view["cells"].as_array().unwrap().iter().enumerate().all(|(row, runs)| {
        let mut col = 0u16;
        runs.as_array().unwrap().iter().all(|run| {
            let width = u16::try_from(run["width"].as_u64().unwrap()).unwrap();
            let cell = socket.screen.screen().cell(u16::try_from(row).unwrap(), col).unwrap();
            let palette = |color: vt100::Color| match color {
                vt100::Color::Default => Value::Null,
                vt100::Color::Idx(number) => json!(number),
                vt100::Color::Rgb(r, g, b) => json!(format!("#{r:02x}{g:02x}{b:02x}")),
            };
            let styles: Vec<&str> = run["style"]
                .as_array()
                .map_or(Vec::new(), |all| all.iter().map(|style| style.as_str().unwrap()).collect());
            let same = palette(cell.fgcolor()) == run["fg"]
                && palette(cell.bgcolor()) == run["bg"]
                && cell.bold() == styles.contains(&"bold")
                && cell.inverse() == styles.contains(&"inverse")
                && cell.underline() == styles.contains(&"underline");
            col += width;
            same
        })
    })
}

/// Writes a file, pages through it and edits it, with clients that connect, disconnect and resize.
fn edits_and_pages(place: &Place<'_>, file: &Path, inside: &str) {
    let text: String = (1..=500).map(|n| format!("line {n} of the täxt\n")).collect();
    fs::write(file, text).unwrap();

    let less = Terminal::start(place, json!({"command": format!("less {inside}")}));
    less.until("its first page", |text| {
        text.starts_with("line 1 of the täxt\n") && text.contains("line 23 of")
    });
    let mut client = less.socket("");
    assert_same_screen(&mut client, &less);
    client.type_in("G");
    less.until("its last page", |text| text.contains("line 500 of the täxt\n(END)"));
    assert_same_screen(&mut client, &less);
    client.type_in("/line 25 \r");
    client.type_in("?line 250\r");
    less.until("the search result", |text| text.starts_with("line 250 of"));
    client.resize(60, 12);
    less.until("the smaller page", |text| text.lines().count() == 12 && text.starts_with("line 250 of"));
    assert_same_screen(&mut client, &less);
    let mut second = less.socket("?mode=read");
    second.screen.screen_mut().set_size(12.try_into().unwrap(), 60.try_into().unwrap());
    assert_same_screen(&mut second, &less);
    client.type_in("q");
    assert_eq!(client.until_closed().end_reason()["exit_code"], 0);

    let vim = Terminal::start(
        place,
        json!({"command": format!("vim.tiny -u NONE -N {inside}"), "cols": 100, "rows": 40}),
    );
    vim.until("its screen", |text| text.starts_with("line 1 of the täxt\n") && text.contains("500L"));
    let mut client = vim.socket("");
    client.screen.screen_mut().set_size(40.try_into().unwrap(), 100.try_into().unwrap());
    assert_same_screen(&mut client, &vim);
    client.type_in("ggOtyped € first\x1b");
    client.shows("typed € first");
    drop(client);
    // It continues without clients.
    vim.type_in(":%s/täxt/text/\r");
    vim.until("the change", |text| {
        text.contains("line 1 of the text\n") || text.contains("line 500 of the text")
    });
    vim.type_in(":split\r");
    let mut client = vim.socket("");
    client.screen.screen_mut().set_size(40.try_into().unwrap(), 100.try_into().unwrap());
    assert_same_screen(&mut client, &vim);
    client.resize(70, 20);
    assert_same_screen(&mut client, &vim);
    client.resize(110, 50);
    assert_same_screen(&mut client, &vim);
    client.type_in(":wqa\r");
    assert_eq!(client.until_closed().end_reason()["exit_code"], 0);
    let text = fs::read_to_string(file).unwrap();
    assert!(
        text.starts_with("typed € first\nline 1 of the text\n") && text.ends_with("line 500 of the text\n")
    );
}

#[test]
fn an_editor_and_a_pager_on_the_host() {
    let server = Server::start();
    let place = Place::host(&server);
    let file = server.work.join("file");
    edits_and_pages(&place, &file, "file");
}

#[test]
fn an_editor_and_a_pager_in_a_container() {
    let place = Place::ready(shared(), json!({"name": "editing"}));
    place.sh("true");
    // The container usually has the distribution of this machine, so the machine's programs run in it, without the
    // network.
    for program in ["less", "vim.tiny"] {
        let inside = place.inside(&format!("usr/local/bin/{program}"));
        fs::copy(Path::new("/usr/bin").join(program), inside).unwrap();
    }
    let runs = place.exec(json!({"command": "less --version && vim.tiny --version"}));
    if runs["exit_code"] != 0 {
        place.sh("rm /usr/local/bin/*; apt-get -qq update && apt-get -qq install -y --no-install-recommends less vim-tiny");
    }
    place.sh("touch /root/file");
    edits_and_pages(&place, &place.inside("root/file"), "/root/file");
}

#[test]
fn a_program_that_draws_all_the_time() {
    let server = Server::start();
    let place = Place::host(&server);
    let htop = Terminal::start(&place, json!({"command": "htop --delay=100", "cols": 120, "rows": 40}));
    let text = htop
        .until("its screen", |text| text.contains("PID") && text.contains("Mem[") && text.contains("F10"));
    assert!(text.contains("USER") && text.contains("Load average"), "{text}");
    let view = htop.view();
    assert_eq!((&view["alternate_screen"], &view["cursor"]["visible"]), (&json!(true), &json!(false)));
    let bar = view["cells"].as_array().unwrap().last().unwrap().to_string();
    assert!(bar.contains("\"bg\":6"), "the row of keys is cyan: {bar}");
    for _ in 0..3 {
        let mut client = htop.socket("");
        client.screen.screen_mut().set_size(40.try_into().unwrap(), 120.try_into().unwrap());
        client.row("the keys", |row| row.starts_with("F1Help") && row.contains("F10Quit"));
        assert_same_screen(&mut client, &htop);
    }
    place.client.post(200, &htop.path("/input"), json!({"keys": ["f10"]}));
    assert_eq!(htop.ended()["exit_code"], 0);
}

#[test]
fn a_third_party_client_works() {
    let mut folders = Path::new(env!("CARGO_TARGET_TMPDIR")).ancestors().map(|up| up.join("it-python"));
    let packages = folders.find(|folder| folder.join("websockets").is_dir() && folder.join("pyte").is_dir());
    let packages = packages.expect("websockets and pyte are missing: tests/run installs them");
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/websockets_client.py");
    for place in [Place::host(&Server::start()), Place::ready(shared(), json!({"name": "for python"}))] {
        let mut python = Command::new("python3");
        python.arg("-B").arg(&script).env("PYTHONPATH", &packages);
        python.args([&place.server.address.to_string(), HOST_TOKEN, &place.id]);
        let ended = run(&mut python, secs(150));
        assert_eq!((ended.code, ended.stdout.trim()), (Some(0), "ok"), "{}", ended.stderr);
        wait_for("its terminals to be removed", secs(10), || {
            let list = place.client.get(200, &place.path("/terminals"));
            list.as_array().unwrap().iter().all(|view| view["status"] == "ended").then_some(())
        });
    }
}
