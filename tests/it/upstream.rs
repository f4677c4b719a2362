//! An upstream that follows a test's script, byte by byte, and records its requests. Real OpenCode is in
//! `opencode_real`; this one reproduces its rare failures.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::server::Setup;

/// One request as received.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The connection, counted from 1.
    pub connection: usize,
    /// `GET /path HTTP/1.1`
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let (_, value) = found.next()?;
        assert!(found.next().is_none(), "{name} twice: {self:?}");
        Some(value)
    }

    /// Path and query.
    pub fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap()
    }
}

type Script = dyn Fn(&Seen, &mut TcpStream) -> bool + Send + Sync;

pub struct Upstream {
    pub address: SocketAddr,
    seen: Mutex<Receiver<Seen>>,
}

impl Upstream {
    /// Answers each request with `script`, which returns whether the connection stays open.
    pub fn start(script: impl Fn(&Seen, &mut TcpStream) -> bool + Send + Sync + 'static) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, seen) = channel();
        let script: Arc<Script> = Arc::new(script);
        // Ends with the test's process; a connection ends with its peer.
        thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                let (tell, script) = (tell.clone(), script.clone());
                thread::spawn(move || serve(number + 1, stream, &tell, &*script));
            }
        });
        Upstream { address, seen: Mutex::new(seen) }
    }

    /// Always answers with this response.
    pub fn saying(answer: &'static str) -> Upstream {
        Upstream::start(move |_, stream| stream.write_all(answer.as_bytes()).is_ok())
    }

    /// Waits for the next request.
    #[track_caller]
    pub fn seen(&self) -> Seen {
        let seen = self.seen.lock().unwrap();
        seen.recv_timeout(Duration::from_secs(20)).expect("the upstream was not asked")
    }

    #[track_caller]
    pub fn saw_nothing(&self) {
        assert!(self.seen.lock().unwrap().try_recv().is_err(), "the upstream was asked");
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A server whose workspace is served by this upstream.
    pub fn setup(&self) -> Setup {
        Setup::new().arg("--approval=auto").arg(format!("--opencode-base-url={}", self.url()))
    }
}

fn serve(connection: usize, stream: TcpStream, tell: &Sender<Seen>, script: &Script) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    while let Some(mut seen) = read_request(&mut reader) {
        seen.connection = connection;
        let _ = tell.send(seen.clone());
        if !script(&seen, &mut writer) {
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut seen = Seen { line: line(reader)?, ..Seen::default() };
    loop {
        let text = line(reader)?;
        if text.is_empty() {
            break;
        }
        let (name, value) = text.split_once(": ").unwrap_or_else(|| panic!("not a header: {text:?}"));
        seen.headers.push((name.to_owned(), value.to_owned()));
    }
    if let Some(length) = seen.header("content-length").map(|text| text.parse().unwrap()) {
        seen.body = vec![0; length];
        reader.read_exact(&mut seen.body).ok()?;
    } else if seen.header("transfer-encoding") == Some("chunked") {
        loop {
            let size = usize::from_str_radix(&line(reader)?, 16).unwrap();
            let start = seen.body.len();
            seen.body.resize(start + size, 0);
            reader.read_exact(&mut seen.body[start..]).ok()?;
            line(reader)?;
            if size == 0 {
                break;
            }
        }
    }
    Some(seen)
}

fn line(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut text = String::new();
    reader.read_line(&mut text).ok().filter(|count| *count > 0)?;
    Some(text.trim_end().to_owned())
}

/// Waits until the peer has disconnected.
#[track_caller]
pub fn expect_end(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let ended = match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    };
    assert!(ended, "the peer is still connected");
}
