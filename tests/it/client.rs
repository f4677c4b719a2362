//! A small HTTP/1.1 client over `TcpStream`: keep-alive, a deadline for every read, and the expected status as an
//! argument of every call, so that no test forgets to check it. Independent of processes.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;

/// Longer than any response may take, shorter than the timeout of the test suite.
const PATIENCE: Duration = Duration::from_secs(90);

/// A client with an address, fixed headers and one connection. Its calls run one after the other.
pub struct Client {
    address: SocketAddr,
    headers: Vec<(String, String)>,
    connection: Mutex<Option<BufReader<TcpStream>>>,
}

/// A complete response.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Client {
    pub fn new(address: SocketAddr) -> Client {
        Client { address, headers: Vec::new(), connection: Mutex::new(None) }
    }

    /// Sends this header with every call.
    pub fn with(mut self, name: &str, value: &str) -> Client {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    #[track_caller]
    pub fn get(&self, status: u16, path: &str) -> Value {
        self.call("GET", path, None).expect(status).value()
    }

    #[track_caller]
    pub fn delete(&self, status: u16, path: &str) -> Value {
        self.call("DELETE", path, None).expect(status).value()
    }

    #[track_caller]
    pub fn post(&self, status: u16, path: &str, body: Value) -> Value {
        self.call("POST", path, Some(&body)).expect(status).value()
    }

    #[track_caller]
    pub fn put(&self, status: u16, path: &str, body: Value) -> Value {
        self.call("PUT", path, Some(&body)).expect(status).value()
    }

    /// Checks status and `code`, and that the body has the error format of the APIs; returns the body.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str, method: &str, path: &str, body: Option<Value>) -> Value {
        let reply = self.call(method, path, body.as_ref());
        let answer = reply.clone().expect(status).value();
        assert_eq!(answer["code"], code, "{method} {path} with {body:?} answered {reply}");
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(!message.is_empty(), "{method} {path}: an error without a message: {reply}");
        for key in answer.as_object().expect("an error is an object").keys() {
            assert!(
                ["code", "message", "details"].contains(&key.as_str()),
                "unknown error field {key}: {reply}"
            );
        }
        answer
    }

    #[track_caller]
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Reply {
        let body = body.map(|value| serde_json::to_vec(value).unwrap());
        self.send(method, path, &[], body.as_deref())
    }

    #[track_caller]
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> Reply {
        match self.try_send(method, path, headers, body) {
            Ok(reply) => reply,
            Err(error) => panic!("{method} {path} received no response: {error}"),
        }
    }

    /// Like `send`, for tests in which the server may exit.
    pub fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> io::Result<Reply> {
        let head = self.head(method, path, headers, body);
        let mut connection = self.connection.lock().unwrap_or_else(|poison| poison.into_inner());
        if let Some(open) = connection.take() {
            // A kept connection may have been closed while it was idle; then the server has read nothing of this
            // request.
            if still_open(open.get_ref()) {
                let (reply, back) = exchange(open, method, &head, body)?;
                *connection = back;
                return Ok(reply);
            }
        }
        let stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(10))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let (reply, back) = exchange(BufReader::new(stream), method, &head, body)?;
        *connection = back;
        Ok(reply)
    }

    fn head(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.address);
        for (name, value) in &self.headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        for (name, value) in headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        if let Some(body) = body {
            if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
                head.push_str("Content-Type: application/json\r\n");
            }
            write!(head, "Content-Length: {}\r\n", body.len()).unwrap();
        } else if method != "GET" && method != "HEAD" && method != "OPTIONS" {
            head.push_str("Content-Length: 0\r\n");
        }
        head.push_str("\r\n");
        head
    }
}

impl Reply {
    #[track_caller]
    pub fn expect(self, status: u16) -> Reply {
        assert_eq!(self.status, status, "expected {status}, received {self}");
        self
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns JSON as such, any other body as a string, and an empty body as null.
    #[track_caller]
    pub fn value(&self) -> Value {
        if self.body.is_empty() {
            return Value::Null;
        }
        if self.header("content-type").is_some_and(|kind| kind.starts_with("application/json")) {
            return serde_json::from_slice(&self.body).unwrap_or_else(|error| {
                panic!("the body is not the JSON that its type promises: {error}: {self}")
            });
        }
        Value::String(self.text())
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.text();
        let shown: String = text.chars().take(2000).collect();
        write!(f, "{} {:?} {shown}", self.status, self.headers)?;
        if shown.len() < text.len() { write!(f, "… ({} bytes)", self.body.len()) } else { Ok(()) }
    }
}

/// An idle connection has nothing to read; a byte or EOF means that the server has closed it.
fn still_open(stream: &TcpStream) -> bool {
    let _ = stream.set_nonblocking(true);
    let idle = matches!(stream.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    let _ = stream.set_nonblocking(false);
    idle
}

type KeptConnection = Option<BufReader<TcpStream>>;

fn exchange(
    mut stream: BufReader<TcpStream>,
    method: &str,
    head: &str,
    body: Option<&[u8]>,
) -> io::Result<(Reply, KeptConnection)> {
    let mut request = head.as_bytes().to_vec();
    request.extend_from_slice(body.unwrap_or_default());
    // A server may refuse a large body before it has read it; then its response matters more than the failed write.
    let written = stream.get_mut().write_all(&request);
    let reply = read_reply(&mut stream, method == "HEAD").map_err(|error| match &written {
        Err(first) => io::Error::new(first.kind(), format!("write: {first}; read: {error}")),
        Ok(()) => error,
    })?;
    let close =
        written.is_err() || reply.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
    Ok((reply, (!close).then_some(stream)))
}

fn read_reply(stream: &mut BufReader<TcpStream>, head_only: bool) -> io::Result<Reply> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let first = line(stream)?;
    let status = first.split(' ').nth(1).and_then(|number| number.parse().ok());
    let status: u16 = status.ok_or_else(|| bad(&format!("not a status line: {first:?}")))?;
    let mut headers = Vec::new();
    loop {
        let text = line(stream)?;
        if text.is_empty() {
            break;
        }
        let (name, value) = text.split_once(':').ok_or_else(|| bad(&format!("not a header: {text:?}")))?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut reply = Reply { status, headers, body: Vec::new() };
    if head_only || status == 204 || status == 304 {
        return Ok(reply);
    }
    if reply.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        loop {
            let size = line(stream)?;
            let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)
                .map_err(|_| bad(&format!("not a chunk size: {size:?}")))?;
            let start = reply.body.len();
            reply.body.resize(start + size, 0);
            stream.read_exact(&mut reply.body[start..])?;
            line(stream)?;
            if size == 0 {
                return Ok(reply);
            }
        }
    }
    let length = reply.header("content-length").map(str::parse::<usize>);
    match length {
        Some(length) => {
            reply.body = vec![0; length.map_err(|_| bad("not a Content-Length"))?];
            stream.read_exact(&mut reply.body)?;
        }
        None => {
            stream.read_to_end(&mut reply.body)?;
        }
    }
    Ok(reply)
}

fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut text = Vec::new();
    stream.by_ref().take(64 << 10).read_until(b'\n', &mut text)?;
    if text.pop() != Some(b'\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
    }
    if text.last() == Some(&b'\r') {
        text.pop();
    }
    String::from_utf8(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
