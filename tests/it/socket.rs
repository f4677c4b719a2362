//! A WebSocket client with a terminal behind it, like a browser: a screen model independent of the server's shows the
//! output. Every wait has a deadline.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::{HandshakeError, Message, WebSocket};

use crate::client::Reply;
use crate::server::{HOST_TOKEN, Server};

/// The close of a terminal's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    pub code: u16,
    pub reason: String,
}

impl Closed {
    /// The reason of a terminal's end.
    #[track_caller]
    pub fn end_reason(&self) -> Value {
        serde_json::from_str(&self.reason).unwrap_or_else(|_| panic!("{self:?}"))
    }
}

pub struct Socket {
    ws: WebSocket<TcpStream>,
    pub protocol: Option<String>,
    /// All output so far.
    pub text: String,
    /// The messages that contained it.
    pub pieces: Vec<String>,
    /// Control messages of `…/terminals/:t/ws`.
    pub news: Vec<Value>,
    pub screen: vt100::Parser,
    pub closed: Option<Closed>,
    pub pings: usize,
}

impl Socket {
    /// With the owner's token in the subprotocol, as browsers send it.
    #[track_caller]
    pub fn open(server: &Server, path: &str) -> Socket {
        let protocol = format!("sandboxed, jwt.{HOST_TOKEN}");
        Socket::try_open(server, path, &[("Sec-WebSocket-Protocol", &protocol)])
            .unwrap_or_else(|reply| panic!("{path}: {reply}"))
    }

    /// Returns the response if it is not 101.
    pub fn try_open(server: &Server, path: &str, headers: &[(&str, &str)]) -> Result<Socket, Reply> {
        let stream = TcpStream::connect(server.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        let mut request = format!("ws://{}{path}", server.address).into_client_request().unwrap();
        for (name, value) in headers {
            let name: tungstenite::http::HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        match tungstenite::client(request, stream) {
            Ok((ws, response)) => {
                ws.get_ref().set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                let protocol = response.headers().get("Sec-WebSocket-Protocol");
                Ok(Socket {
                    ws,
                    protocol: protocol.map(|value| value.to_str().unwrap().to_owned()),
                    text: String::new(),
                    pieces: Vec::new(),
                    news: Vec::new(),
                    screen: vt100::Parser::new(24.try_into().unwrap(), 80.try_into().unwrap(), 0),
                    closed: None,
                    pings: 0,
                })
            }
            Err(HandshakeError::Failure(tungstenite::Error::Http(response))) => {
                let (head, body) = response.into_parts();
                let header =
                    |(name, value): (&tungstenite::http::HeaderName, &tungstenite::http::HeaderValue)| {
                        (name.as_str().to_owned(), value.to_str().unwrap().to_owned())
                    };
                let headers = head.headers.iter().map(header).collect();
                Err(Reply { status: head.status.as_u16(), headers, body: body.unwrap_or_default() })
            }
            Err(error) => panic!("{path}: {error}"),
        }
    }

    pub fn send(&mut self, message: Value) {
        self.ws.send(Message::text(message.to_string())).unwrap();
    }

    pub fn send_raw(&mut self, message: Message) {
        self.ws.send(message).unwrap();
    }

    pub fn type_in(&mut self, keys: &str) {
        self.send(json!({"t": "i", "d": keys}));
    }

    pub fn resize(&mut self, cols: u16, rows: u16) {
        self.screen.screen_mut().set_size(rows.try_into().unwrap(), cols.try_into().unwrap());
        self.send(json!({"t": "r", "c": cols, "r": rows}));
    }

    /// Reads until `ready` returns true.
    #[track_caller]
    pub fn until<T>(&mut self, what: &str, mut ready: impl FnMut(&mut Socket) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(found) = ready(self) {
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "timed out waiting for: {what}\n{:?}\nscreen:\n{}\nlast pieces: {:?}",
                self.closed,
                self.screen.screen().contents(),
                &self.pieces[self.pieces.len().saturating_sub(5)..]
            );
            if !self.step() {
                let last = ready(self);
                return last.unwrap_or_else(|| {
                    panic!("the socket was closed ({:?}) before: {what}\n{}", self.closed, self.text)
                });
            }
        }
    }

    /// Processes the data that arrives within a moment; `false` at the end of the connection.
    pub fn step(&mut self) -> bool {
        match self.ws.read() {
            Ok(Message::Text(text)) => match serde_json::from_str::<Value>(&text) {
                // Output of a shell may be JSON as well, but no control message of it has a "t".
                Ok(value) if value.get("t").is_some() => self.news.push(value),
                _ => self.show(&text),
            },
            Ok(Message::Binary(bytes)) => self.show(std::str::from_utf8(&bytes).expect("output is UTF-8")),
            Ok(Message::Close(frame)) => {
                self.closed =
                    frame.map(|frame| Closed { code: frame.code.into(), reason: frame.reason.to_string() });
            }
            Ok(Message::Ping(_)) => self.pings += 1,
            Ok(_) => {}
            Err(tungstenite::Error::Io(error))
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return false,
        }
        true
    }

    fn show(&mut self, text: &str) {
        self.screen.process(text.as_bytes());
        self.text.push_str(text);
        self.pieces.push(text.to_owned());
    }

    /// Waits until a row of the screen satisfies the test.
    #[track_caller]
    pub fn row(&mut self, what: &str, is: impl Fn(&str) -> bool) -> String {
        self.until(what, |socket| socket.rows().into_iter().find(|row| is(row)))
    }

    /// Waits until a row of the screen equals this text.
    #[track_caller]
    pub fn shows(&mut self, expected: &str) {
        self.row(expected, |row| row == expected);
    }

    /// The rows of the client's own screen, without trailing blanks.
    pub fn rows(&self) -> Vec<String> {
        let (_, cols) = self.screen.screen().size();
        self.screen.screen().rows(0, cols.get()).map(|row| row.trim_end().to_owned()).collect()
    }

    #[track_caller]
    pub fn until_closed(&mut self) -> Closed {
        self.until("the close", |socket| socket.closed.clone())
    }
}

/// A handshake without a client library, for peers that violate the protocol.
#[track_caller]
pub fn raw_socket(server: &Server, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {HOST_TOKEN}\r\n\r\n",
        server.address
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    stream
}
