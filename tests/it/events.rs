//! A client of an event stream over one connection: it reads event by event, with a deadline for each, and can
//! disconnect at any point.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use crate::procs::secs;
use crate::server::{HOST_TOKEN, Server};

/// An open stream.
pub struct Events {
    reader: BufReader<TcpStream>,
    pub head: String,
    ndjson: bool,
    /// The received bytes; those before `at` are consumed.
    text: Vec<u8>,
    at: usize,
    ended: bool,
}

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    pub name: String,
    pub id: String,
    pub data: Value,
}

impl Event {
    /// The bytes of an output event.
    pub fn bytes(&self) -> Vec<u8> {
        match (self.data["text"].as_str(), self.data["base64"].as_str()) {
            (Some(text), None) => text.as_bytes().to_vec(),
            (None, Some(text)) => BASE64.decode(text).unwrap(),
            _ => panic!("neither text nor base64: {self:?}"),
        }
    }
}

impl Events {
    /// Follows a run; `last` is the id of the last event that was received.
    #[track_caller]
    pub fn follow(server: &Server, run: &str, last: Option<&str>) -> Events {
        let resume = last.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        Events::ask(server, &format!("GET {run}/events HTTP/1.1\r\n{resume}"), None)
    }

    /// Sends a request with a stream as its response; `head` has neither Host nor credential.
    #[track_caller]
    pub fn ask(server: &Server, head: &str, body: Option<&Value>) -> Events {
        Events::ask_as(server, HOST_TOKEN, head, body)
    }

    /// Like `ask`, with another token.
    #[track_caller]
    pub fn ask_as(server: &Server, token: &str, head: &str, body: Option<&Value>) -> Events {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(secs(60))).unwrap();
        let body = body.map(|value| serde_json::to_vec(value).unwrap());
        let length =
            body.as_ref().map(|body| format!("Content-Length: {}\r\n", body.len())).unwrap_or_default();
        let head = format!("{head}Host: localhost\r\nAuthorization: Bearer {token}\r\n{length}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&body.unwrap_or_default()).unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "the server closed the connection: {head}");
        }
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let ndjson = head.contains("application/x-ndjson");
        Events { reader, head, ndjson, text: Vec::new(), at: 0, ended: false }
    }

    /// Waits until the stream closes without its final chunk.
    #[track_caller]
    pub fn until_cut(mut self) {
        let mut rest = Vec::new();
        // A reset counts as EOF.
        let _ = self.reader.read_to_end(&mut rest);
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));
    }

    /// Reads the next chunk; `false` at the final chunk, panics if the connection closes before it.
    fn chunk(&mut self) -> bool {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        let size = usize::from_str_radix(line.trim_end(), 16)
            .unwrap_or_else(|error| panic!("the stream closed: {line:?}: {error}"));
        self.ended = size == 0;
        let start = self.text.len();
        self.text.resize(start + size + 2, 0);
        self.reader.read_exact(&mut self.text[start..]).unwrap();
        assert_eq!(self.text.split_off(start + size), b"\r\n");
        !self.ended
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(length) = self.text[self.at..].iter().position(|byte| *byte == b'\n') {
                let line = self.text[self.at..self.at + length].to_vec();
                self.at += length + 1;
                return Some(String::from_utf8(line).expect("events are UTF-8"));
            }
            self.text.drain(..self.at);
            self.at = 0;
            if self.ended || !self.chunk() {
                assert!(self.text.is_empty(), "a partial line at the end: {:?}", self.text);
                return None;
            }
        }
    }

    /// Returns the next event or comment (with an empty name); `None` at the end.
    pub fn next_or_comment(&mut self) -> Option<Event> {
        let mut event = Event { name: String::new(), id: String::new(), data: Value::Null };
        if self.ndjson {
            let data: Value = serde_json::from_str(&self.line()?).unwrap();
            let text = |field: &str| data[field].as_str().unwrap_or_default().to_owned();
            return Some(Event { name: text("event"), id: text("id"), data });
        }
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Some(event);
            }
            match line.split_once(": ").unwrap_or_else(|| panic!("not a field: {line}")) {
                ("event", name) => name.clone_into(&mut event.name),
                ("id", id) => id.clone_into(&mut event.id),
                ("data", data) => event.data = serde_json::from_str(data).unwrap(),
                ("retry" | "", _) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn next(&mut self) -> Option<Event> {
        loop {
            let event = self.next_or_comment()?;
            if !event.name.is_empty() && event.name != "ping" {
                return Some(event);
            }
        }
    }

    /// Returns the first event with this name.
    #[track_caller]
    pub fn wait(&mut self, name: &str) -> Event {
        loop {
            let event = self.next().unwrap_or_else(|| panic!("the stream ended without {name}"));
            if event.name == name {
                return event;
            }
        }
    }

    /// Returns all bytes of stdout and stderr, and the last event.
    #[track_caller]
    pub fn collect(mut self) -> (Vec<u8>, Vec<u8>, Event) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            let event = self.next().expect("a stream ends with an exit event");
            match event.name.as_str() {
                "stdout" => out.extend(event.bytes()),
                "stderr" => err.extend(event.bytes()),
                "status" => {}
                "exit" => {
                    assert!(self.next().is_none(), "an event follows the exit");
                    return (out, err, event);
                }
                other => panic!("unexpected event {other}: {event:?}"),
            }
        }
    }
}
