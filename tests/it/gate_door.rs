//! The gate by itself, in this process, with a small tiny_http server behind it that misbehaves on purpose: streams,
//! early responses, clients that disconnect, sockets that are passed on, an inner server that dies.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use berth::gate::{Gate, GateSettings, Listen, ListenAddress, Listeners, PROBE_HEADER};
use berth::http::client::{ClientSocket, Disconnects, Tickets};
use berth::proc::Cancel;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tiny_http::{Header, Request, Response};
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

use crate::procs::{secs, wait_for};
use crate::scratch::Scratch;

/// State that the handlers of the inner server share with the test.
struct Inside {
    gone: Disconnects,
    tickets: Tickets,
    /// The requests that were handled, as `METHOD path`.
    seen: Mutex<Vec<String>>,
    /// Receives the reports of the handlers.
    report: Mutex<mpsc::Sender<String>>,
    opened: AtomicUsize,
    /// Number of server loops that exit at their next request.
    dying: AtomicUsize,
}

struct Place {
    gate: Gate,
    address: SocketAddr,
    unix: PathBuf,
    private: PathBuf,
    inside: Arc<Inside>,
    report: mpsc::Receiver<String>,
    _scratch: Scratch,
}

impl Place {
    fn start() -> Place {
        let scratch = Scratch::new();
        let (unix, private) = (scratch.path().join("door.sock"), scratch.path().join("private"));
        let (sender, report) = mpsc::channel();
        let inside = Arc::new(Inside {
            gone: Disconnects::default(),
            tickets: Tickets::default(),
            seen: Mutex::default(),
            report: Mutex::new(sender),
            opened: AtomicUsize::new(0),
            dying: AtomicUsize::new(0),
        });
        let doors = Listeners::bind(vec![
            Listen::parse("127.0.0.1:0").unwrap(),
            Listen::parse(&format!("unix:{}", unix.display())).unwrap(),
        ])
        .unwrap();
        let ListenAddress::Ip(address) = doors.addresses()[0].clone() else { panic!() };
        let settings = GateSettings {
            max_connections: 64,
            max_files: 4096,
            allowed_hosts: Vec::new(),
            cors_origins: Vec::new(),
            body_cap: Arc::new(|_, _| 4 << 20),
            direct: Arc::new(|_, _| None),
            claim: Arc::new(|_, _| Ok(())),
            private_folder: private.clone(),
            disconnects: inside.gone.clone(),
            tickets: inside.tickets.clone(),
        };
        let open = {
            let inside = inside.clone();
            move |path: &Path| {
                let server = tiny_http::Server::http_unix(path).unwrap();
                let inside = inside.clone();
                inside.opened.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || inside.serve(&server));
                Ok(())
            }
        };
        let gate = Gate::start(doors, settings, Box::new(open)).unwrap();
        Place { gate, address, unix, private, inside, report, _scratch: scratch }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    fn ask(&self, path: &str) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        stream
    }

    fn report(&self) -> String {
        self.report.recv_timeout(secs(10)).expect("a handler should have said something")
    }
}

impl Inside {
    fn serve(self: Arc<Inside>, server: &tiny_http::Server) {
        for request in server.incoming_requests() {
            if request.headers().iter().any(|header| header.field.equiv(PROBE_HEADER)) {
                if self.dying.swap(0, Ordering::SeqCst) > 0 {
                    return;
                }
                let _ = request.respond(Response::empty(204));
                continue;
            }
            self.seen.lock().unwrap().push(format!("{} {}", request.method(), request.url()));
            let inside = self.clone();
            thread::spawn(move || inside.handle(request));
        }
    }

    fn send_report(&self, word: impl Into<String>) {
        let _ = self.report.lock().unwrap().send(word.into());
    }

    fn handle(&self, mut request: Request) {
        let whole = Header::from_bytes("X-Berth-Whole", "1").unwrap();
        match request.url().to_owned().as_str() {
            "/trickle" => {
                let mut writer = request.into_writer();
                let mut send = |text: &str| {
                    writer.write_all(text.as_bytes()).unwrap();
                    writer.flush().unwrap();
                };
                send(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
                );
                for _ in 0..20 {
                    thread::sleep(Duration::from_millis(20));
                    self.send_report("written");
                    send("6\r\nevent\n\r\n");
                }
                send("0\r\n\r\n");
            }
            "/wait" => {
                let flag = Cancel::new().unwrap();
                let connection = header(&request, "X-Berth-Connection").parse().unwrap();
                let _interest = self.gone.subscribe(connection, &flag);
                self.send_report("waiting");
                let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
                poll(&mut [PollFd::new(&flag, PollFlags::IN)], Some(&patience)).unwrap();
                self.send_report(if flag.is_cancelled() { "gone" } else { "stayed" });
                let _ = request.respond(Response::from_string("late").with_header(whole));
            }
            "/slow" => {
                self.send_report("taken");
                thread::sleep(Duration::from_millis(500));
                let _ = request.respond(Response::from_string("slow").with_header(whole));
            }
            "/echo" => {
                let mut body = Vec::new();
                let read = request.as_reader().read_to_end(&mut body);
                self.send_report(format!("{} {}", read.is_ok(), body.len()));
                let _ = request.respond(Response::from_data(body).with_header(whole));
            }
            "/refuse" => {
                let _ = request.respond(Response::from_string("no").with_status_code(401).with_header(whole));
            }
            "/more" => {
                // Announces 2 bytes and sends more: the extra bytes must not become the response to another client.
                let mut writer = request.into_writer();
                let _ = writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged");
                let _ = writer.flush();
            }
            "/less" => {
                let mut writer = request.into_writer();
                let _ = writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok");
                let _ = writer.flush();
            }
            "/long" => {
                let _ = request
                    .respond(Response::from_data(vec![b'x'; 50 << 20]).with_chunked_threshold(usize::MAX));
            }
            "/socket" => {
                let accept = tungstenite::handshake::derive_accept_key(
                    header(&request, "Sec-WebSocket-Key").as_bytes(),
                );
                let ticket = self.tickets.issue(|socket, early| {
                    thread::spawn(move || echo(socket, early));
                });
                let response = Response::empty(101)
                    .with_header(Header::from_bytes("Sec-WebSocket-Accept", accept).unwrap())
                    .with_header(Header::from_bytes("X-Berth-Ticket", ticket.unwrap()).unwrap());
                let _ = request.respond(response);
            }
            _ => {
                let peer = header(&request, "X-Berth-Peer");
                let _ = request.respond(Response::from_string(format!("from {peer}")).with_header(whole));
            }
        }
    }
}

fn header(request: &Request, name: &'static str) -> String {
    request.headers().iter().find(|h| h.field.equiv(name)).map(|h| h.value.to_string()).unwrap_or_default()
}

/// Reads on one thread while another writes: each message is echoed, and 1000 others are sent at the same time.
fn echo(socket: ClientSocket, early: Vec<u8>) {
    let config = Some(WebSocketConfig::default());
    let (sender, messages) = mpsc::channel::<Message>();
    let mut writer = WebSocket::from_raw_socket(socket.clone(), Role::Server, config);
    let writing = thread::spawn(move || {
        for number in 0..1000 {
            writer.send(Message::text(format!("tick {number}"))).unwrap();
        }
        for message in messages {
            writer.send(message).unwrap();
        }
        writer.close(None).unwrap();
    });
    let mut reader = WebSocket::from_partially_read(socket, early, Role::Server, config);
    while let Ok(message) = reader.read() {
        if message.is_close() {
            break;
        }
        sender.send(message).unwrap();
    }
    drop(sender);
    writing.join().unwrap();
}

#[test]
fn output_is_forwarded_without_delay() {
    let place = Place::start();
    let mut stream = place.ask("/trickle");
    read_until(&mut stream, b"\r\n\r\n");
    let mut delays = Vec::new();
    for _ in 0..20 {
        assert_eq!(place.report(), "written");
        let start = Instant::now();
        read_until(&mut stream, b"event\n\r\n");
        delays.push(start.elapsed());
    }
    delays.sort();
    eprintln!(
        "latency from a handler's write to the client: median {:?}, maximum {:?}",
        delays[10], delays[19]
    );
    assert!(delays[10] < Duration::from_millis(10), "{delays:?}");
    assert_eq!(read_until(&mut stream, b"0\r\n\r\n"), b"0\r\n\r\n");
    // The connection stays open.
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    read_until(&mut stream, b"from 127.0.0.1");
}

#[test]
fn http_1_0_clients_receive_an_unchunked_body() {
    let place = Place::start();
    let mut stream = place.connect();
    stream.write_all(b"GET /trickle HTTP/1.0\r\n\r\n").unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let text = String::from_utf8(all).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(!head.contains("Transfer-Encoding") && head.contains("Connection: close"), "{head}");
    assert_eq!(body, "event\n".repeat(20));
}

#[test]
fn client_disconnects_are_detected() {
    let place = Place::start();
    for reset in [false, true] {
        let stream = place.ask("/wait");
        assert_eq!(place.report(), "waiting");
        if reset {
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        }
        drop(stream);
        assert_eq!(place.report(), "gone");
    }
    let mut stream = UnixStream::connect(&place.unix).unwrap();
    stream.write_all(b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(place.report(), "waiting");
    drop(stream);
    assert_eq!(place.report(), "gone");
    // A half-closed connection is reported as well, but still receives its response.
    let mut stream = place.ask("/wait");
    stream.shutdown(Shutdown::Write).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert!(all.ends_with("late"), "{all}");
    wait_for("all connections to be closed", secs(5), || place.gate.connections().is_empty().then_some(()));
}

#[test]
fn request_bodies_arrive_unchanged() {
    let place = Place::start();
    for size in [0, 1, 1024, 1025, 65_536, 65_537, 300_000, 4 << 20] {
        for chunked in [false, true] {
            let body: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            let mut stream = place.connect();
            let (head, sent) = if chunked {
                let mut sent = Vec::new();
                for part in body.chunks(10_007) {
                    write!(sent, "{:X};x=y\r\n", part.len()).unwrap();
                    sent.extend_from_slice(part);
                    sent.extend_from_slice(b"\r\n");
                }
                sent.extend_from_slice(b"0\r\nT: x\r\n\r\n");
                ("Transfer-Encoding: chunked".to_owned(), sent)
            } else {
                (format!("Content-Length: {size}"), body.clone())
            };
            let mut writer = stream.try_clone().unwrap();
            let sending = thread::spawn(move || {
                write!(writer, "POST /echo HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n").unwrap();
                writer.write_all(&sent).unwrap();
                writer.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            });
            let head = String::from_utf8(read_until(&mut stream, b"\r\n\r\n")).unwrap();
            let got = if head.contains("Transfer-Encoding: chunked") {
                read_chunks(&mut stream)
            } else {
                let mut got = vec![0; size];
                stream.read_exact(&mut got).unwrap();
                got
            };
            assert!(got == body, "{size} {chunked}: {head}");
            assert_eq!(place.report(), format!("true {size}"));
            // The following request is not mistaken for a part of the body.
            read_until(&mut stream, b"from 127.0.0.1");
            sending.join().unwrap();
        }
    }
}

#[test]
fn an_incomplete_body_is_never_accepted_as_complete() {
    let place = Place::start();
    for (sent, goes_in) in [
        ("Content-Length: 10\r\n\r\nabc", false),
        ("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", false),
        ("Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", false),
        // Too large to be buffered: the beginning is passed on.
        ("Content-Length: 100000\r\n\r\nabc", true),
        ("Transfer-Encoding: chunked\r\n\r\nX\r\n", true),
    ] {
        let mut stream = place.connect();
        let sent = sent.replace("X\r\n", &format!("11170\r\n{}\r\nzz\r\n", "x".repeat(70_000)));
        write!(stream, "POST /echo HTTP/1.1\r\nHost: localhost\r\n{sent}").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        if goes_in {
            let reply = place.report();
            assert!(reply.starts_with("false "), "{reply}");
        }
    }
    assert!(place.report.try_recv().is_err(), "another request was passed on");
    read_until(&mut place.ask("/"), b"from 127.0.0.1");
}

#[test]
fn early_responses_do_not_wait_for_the_body() {
    let place = Place::start();
    for announced in [200_000, 4 << 20] {
        let mut stream = place.connect();
        write!(stream, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {announced}\r\n\r\nabc")
            .unwrap();
        let head = String::from_utf8(read_until(&mut stream, b"\r\n\r\n")).unwrap();
        read_until(&mut stream, b"from 127.0.0.1");
        // A small remaining body is read to keep the connection, a large one is not.
        let keeps = announced <= 256 << 10;
        assert_eq!(head.contains("Connection: close"), !keeps, "{head}");
        if keeps {
            stream.write_all(&vec![b'x'; announced - 3]).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            read_until(&mut stream, b"from 127.0.0.1");
        }
    }
}

#[test]
fn responses_with_a_wrong_length_affect_no_other_response() {
    let place = Place::start();
    for _ in 0..20 {
        let mut stream = place.ask("/more");
        read_until(&mut stream, b"\r\n\r\nok");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let next = read_until(&mut stream, b"from 127.0.0.1");
        assert!(!next.windows(6).any(|window| window == b"forged"));
    }
    // A streamed body has its own connection, which closes to show that the response is too short.
    let mut stream = place.connect();
    let body = "x".repeat(70_000);
    write!(stream, "POST /less HTTP/1.1\r\nHost: localhost\r\nContent-Length: 70000\r\n\r\n{body}").unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    assert!(all.ends_with(b"\r\n\r\nok"), "{}", String::from_utf8_lossy(&all));
}

#[test]
fn a_slow_reader_does_not_delay_other_clients() {
    let place = Place::start();
    let slow: Vec<TcpStream> = (0..8).map(|_| place.ask("/long")).collect();
    for mut stream in &slow {
        stream.read_exact(&mut [0; 1]).unwrap();
    }
    let start = Instant::now();
    for _ in 0..50 {
        read_until(&mut place.ask("/"), b"from 127.0.0.1");
    }
    assert!(start.elapsed() < secs(2), "{:?}", start.elapsed());
    let mut stream = &slow[0];
    let mut remaining = 0;
    let mut buffer = vec![0; 1 << 16];
    while remaining < 50 << 20 {
        remaining += stream.read(&mut buffer).unwrap();
    }
}

#[test]
fn a_socket_is_passed_on_with_the_bytes_after_the_handshake() {
    let place = Place::start();
    web_socket(&place, place.connect());
    let stream = UnixStream::connect(&place.unix).unwrap();
    stream.set_read_timeout(Some(secs(20))).unwrap();
    web_socket(&place, stream);
    wait_for("all connections to be closed", secs(5), || place.gate.connections().is_empty().then_some(()));
}

fn web_socket(place: &Place, mut stream: impl Read + Write) {
    // Frames in the same packet as the handshake, masked as RFC 6455 requires of clients.
    let mut first =
        b"GET /socket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            .to_vec();
    for word in ["early 1", "early 2"] {
        first.extend_from_slice(&[0x81, 0x80 | word.len() as u8, 0, 0, 0, 0]);
        first.extend_from_slice(word.as_bytes());
    }
    stream.write_all(&first).unwrap();
    let head = String::from_utf8(read_until(&mut stream, b"\r\n\r\n")).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    assert!(!head.contains("Ticket") && !head.contains("Content-Length"), "{head}");
    assert_eq!(place.gate.connections().len(), 1);
    let mut socket = WebSocket::from_raw_socket(stream, Role::Client, None);
    let mut echoed = Vec::new();
    for number in 0..100 {
        socket.send(Message::text(format!("late {number}"))).unwrap();
    }
    let mut ticks = 0;
    while echoed.len() < 102 {
        let text = socket.read().unwrap().into_text().unwrap().to_string();
        if text.starts_with("tick") { ticks += 1 } else { echoed.push(text) }
    }
    assert_eq!(ticks, 1000);
    assert_eq!(
        (echoed[0].as_str(), echoed[1].as_str(), echoed[101].as_str()),
        ("early 1", "early 2", "late 99")
    );
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
}

#[test]
fn only_failed_logins_are_delayed() {
    let place = Place::start();
    let mut stream = place.connect();
    let mut ask = |path: &str| {
        let start = Instant::now();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        read_until(&mut stream, if path == "/refuse" { b"no" } else { b"from 127.0.0.1" });
        start.elapsed()
    };
    let burst: Duration = (0..20).map(|_| ask("/refuse")).sum();
    assert!(burst < secs(1), "{burst:?}");
    assert!(ask("/refuse") >= Duration::from_millis(900));
    assert!(ask("/") < Duration::from_millis(200));
}

#[test]
fn draining_lets_responses_finish() {
    let place = Place::start();
    let mut idle = place.connect();
    let mut busy = place.ask("/slow");
    assert_eq!(place.report(), "taken");
    assert!(place.gate.drain(Instant::now() + secs(5)));
    let mut all = String::new();
    busy.read_to_string(&mut all).unwrap();
    assert!(all.ends_with("slow") && all.contains("Connection: close"), "{all}");
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    assert!(TcpStream::connect(place.address).is_err());
    assert!(!place.unix.exists());
    assert_eq!(std::fs::metadata(&place.private).unwrap().permissions().mode() & 0o777, 0o700);
    let private = place.private.clone();
    drop(place);
    assert!(!private.exists());
}

#[test]
fn unfinished_requests_are_closed_at_the_deadline() {
    let place = Place::start();
    let mut busy = place.ask("/wait");
    assert_eq!(place.report(), "waiting");
    assert!(!place.gate.drain(Instant::now() + Duration::from_millis(50)));
    place.gate.stop();
    let mut all = Vec::new();
    let _ = busy.read_to_end(&mut all);
    assert!(all.is_empty());
    assert_eq!(place.report(), "gone");
}

#[test]
fn a_dead_inner_server_is_replaced() {
    let place = Place::start();
    read_until(&mut place.ask("/"), b"from 127.0.0.1");
    // Waits for the pause between two replacements.
    thread::sleep(Duration::from_millis(1100));
    place.inside.dying.store(1, Ordering::SeqCst);
    // The pool has one open connection to the inner server; a second one must be opened, and its greeting ends the
    // loop.
    let busy = place.ask("/slow");
    assert_eq!(place.report(), "taken");
    let mut stream = place.ask("/");
    read_until(&mut stream, b"from 127.0.0.1");
    assert_eq!(place.inside.opened.load(Ordering::SeqCst), 2);
    drop(busy);
}

fn read_until(stream: &mut impl Read, end: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    while !all.ends_with(end) {
        let mut byte = [0];
        if let Err(error) = stream.read_exact(&mut byte) {
            panic!("{error} after {:?}", String::from_utf8_lossy(&all));
        }
        all.push(byte[0]);
    }
    all
}

fn read_chunks(stream: &mut impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let line = String::from_utf8(read_until(stream, b"\r\n")).unwrap();
        let size = usize::from_str_radix(line.trim(), 16).unwrap();
        let start = all.len();
        all.resize(start + size + 2, 0);
        stream.read_exact(&mut all[start..]).unwrap();
        all.truncate(start + size);
        if size == 0 {
            return all;
        }
    }
}
