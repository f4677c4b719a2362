//! The shell behind `/shell`, on the host and in a container. Numbers in comments are reports of
//! `assets/docs/field-reports.md`.

use serde_json::json;

use crate::fixture::Place;
use crate::server::{CLIENT_TOKEN, HOST_TOKEN, NIL};
use crate::socket::Socket;
use crate::terminals::promises;

promises! {
    a_shell_is_kept_for_a_reconnecting_client
    the_shell_uses_the_protocol_of_sandboxed_sh
}

/// 7, 14, 16: a socket that disconnects does not end the shell.
fn a_shell_is_kept_for_a_reconnecting_client(place: &Place<'_>) {
    let path = place.path("/shell");
    let mut first = Socket::open(place.server, &path);
    first.type_in("PS1='$ '; clear; echo pid $$ end\r");
    let pid = first.row("its pid", |row| row.starts_with("pid ") && row.ends_with(" end"));
    drop(first);
    let mut second = Socket::open(place.server, &path);
    second.row("the same shell", |row| row == pid);
    let mut third = Socket::open(place.server, &path);
    third.row("the same shell", |row| row == pid);
    // Both clients may type.
    third.type_in("echo from the third\r");
    second.shows("from the third");
    second.type_in("echo from the second\r");
    third.shows("from the second");
    // A query that the terminal of one client has answered is not answered by the other again.
    second.type_in("stty -echo; printf '\\033[6n'; read -r -s -d R -t 20 answer; read -r -s -n 20 -t 1 more; stty echo; echo \"got ${answer#*[} and '$more'\"\r");
    for socket in [&mut third, &mut second] {
        socket.until("the question", |socket| socket.text.contains("\x1b[6n").then_some(()));
        socket.type_in("\x1b[5;6R");
    }
    second.shows("got 5;6 and ''");
    let list = place.client.get(200, &place.path("/terminals"));
    assert!(
        list.as_array().unwrap().iter().any(|view| view["kind"] == "shell" && view["clients"] == 2),
        "{list}"
    );
    second.type_in("exit 4\r");
    for socket in [&mut second, &mut third] {
        assert_eq!(
            socket.until_closed().end_reason(),
            json!({"exit_code": 4, "signal": null, "ended_by": "exit"})
        );
    }
    let mut next = Socket::open(place.server, &path);
    next.type_in("clear; echo pid $$ end\r");
    assert_ne!(next.row("its pid", |row| row.starts_with("pid ") && row.ends_with(" end")), pid);
    next.type_in("exit\r");
    next.until_closed();
}

fn the_shell_uses_the_protocol_of_sandboxed_sh(place: &Place<'_>) {
    // A shell belongs to a workspace and a token, so these differ from those of the test above.
    let another = (place.id == NIL).then(|| Place::another_host(place.server));
    let (place, token) = another.as_ref().map_or((place, CLIENT_TOKEN), |another| (another, HOST_TOKEN));
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str()), ("Sec-WebSocket-Protocol", "sandboxed.sh")];
    let path = place.path("/shell?cols=111&rows=22");
    let mut shell = Socket::try_open(place.server, &path, &headers).unwrap();
    // The size that its first program sees; without a size from the client it is 80 × 24.
    shell.type_in("clear; stty size; echo $TERM\r");
    shell.shows("22 111");
    shell.shows("xterm-256color");
    assert_eq!(shell.protocol.as_deref(), Some("sandboxed.sh"));
    shell.type_in("shopt -q login_shell && echo it is a login shell\r");
    shell.shows("it is a login shell");
    shell.resize(120, 40);
    shell.type_in("clear; stty size\r");
    shell.shows("40 120");
    // Unknown messages are ignored.
    for ignored in [
        "",
        "{",
        "[]",
        "{\"t\":\"x\"}",
        "{\"t\":\"i\"}",
        "{\"t\":\"i\",\"d\":5}",
        "{\"t\":\"r\",\"c\":0,\"r\":0}",
        "{\"t\":\"r\",\"c\":-1,\"r\":99999}",
        "\"i\"",
    ] {
        shell.send_raw(tungstenite::Message::text(ignored));
    }
    shell.send_raw(tungstenite::Message::binary(b"echo binary\r".to_vec()));
    shell.type_in("clear; echo still there; stty size\r");
    shell.shows("still there");
    shell.shows("40 120");
    assert!(!shell.text.contains("binary") && shell.news.is_empty());
    shell.type_in("exit\r");
    assert_eq!(shell.until_closed().code, 1000);
}
