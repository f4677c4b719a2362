//! A terminal as tests use it: started, typed into, read over HTTP, and deleted at the end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::Place;
use crate::procs::{secs, wait_for};
use crate::socket::Socket;

/// A terminal that is deleted when dropped.
pub struct Terminal<'a> {
    pub place: &'a Place<'a>,
    pub id: String,
    gone: bool,
}

impl<'a> Terminal<'a> {
    #[track_caller]
    pub fn start(place: &'a Place<'_>, body: Value) -> Terminal<'a> {
        let reply = place.client.call("POST", &place.path("/terminals"), Some(&body)).expect(201);
        let created = reply.value();
        let id = created["id"].as_str().unwrap().to_owned();
        assert_eq!(reply.header("Location"), Some(place.path(&format!("/terminals/{id}")).as_str()));
        Terminal { place, id, gone: false }
    }

    /// A shell that has shown its prompt.
    #[track_caller]
    pub fn shell(place: &'a Place<'_>) -> Terminal<'a> {
        let terminal =
            Terminal::start(place, json!({"command": "PS1='ready> ' exec bash --norc --noprofile"}));
        terminal.until("a prompt", |text| text.starts_with("ready>"));
        terminal
    }

    pub fn path(&self, call: &str) -> String {
        self.place.path(&format!("/terminals/{}{call}", self.id))
    }

    #[track_caller]
    pub fn show(&self) -> Value {
        self.place.client.get(200, &self.path(""))
    }

    #[track_caller]
    pub fn text(&self) -> String {
        self.place.client.call("GET", &self.path("/screen"), None).expect(200).text()
    }

    #[track_caller]
    pub fn view(&self) -> Value {
        self.place.client.get(200, &self.path("/screen?format=json"))
    }

    #[track_caller]
    pub fn type_in(&self, text: &str) {
        let reply = self.place.client.send(
            "POST",
            &self.path("/input"),
            &[("Content-Type", "application/octet-stream")],
            Some(text.as_bytes()),
        );
        assert_eq!(reply.expect(200).value()["bytes"], text.len());
    }

    /// Waits until the screen satisfies the test, and returns it.
    #[track_caller]
    pub fn until(&self, what: &str, is: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + secs(30);
        loop {
            let text = self.text();
            if is(&text) {
                return text;
            }
            assert!(Instant::now() < deadline, "timed out waiting for: {what}\n{text}\n{}", self.show());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a line of the screen equals this text.
    #[track_caller]
    pub fn shows(&self, line: &str) -> String {
        self.until(line, |text| text.lines().any(|shown| shown == line))
    }

    #[track_caller]
    pub fn ended(&self) -> Value {
        wait_for("the terminal's end", secs(30), || {
            Some(self.show()).filter(|response| response["status"] == "ended")
        })
    }

    #[track_caller]
    pub fn socket(&self, query: &str) -> Socket {
        Socket::open(self.place.server, &self.path(&format!("/ws{query}")))
    }

    /// Leaves the deletion to another owner.
    pub fn keep(&mut self) {
        self.gone = true;
    }

    #[track_caller]
    pub fn delete(mut self) -> Value {
        self.gone = true;
        self.place.client.delete(200, &self.path(""))
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        if !self.gone {
            let _ = self.place.client.try_send("DELETE", &self.path(""), &[], None);
        }
    }
}
