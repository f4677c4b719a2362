//! Tests of sessions with well-behaved and misbehaving peers, with shorter timeouts than the defaults.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use super::super::client::Socket;
use super::*;
use crate::base::thread::{JoinOnDrop, spawn};
use crate::proc::Waker;

/// The state of a conversation that a test can change during its session.
struct TestHandle {
    waker: Waker,
    /// The number of messages, each of `size` bytes, that are still to be sent.
    to_send: AtomicUsize,
    size: AtomicUsize,
    revoked: Cancel,
    full: AtomicBool,
    received: AtomicUsize,
}

struct TestConversation(Arc<TestHandle>);

impl Conversation for TestConversation {
    fn wake(&self) -> BorrowedFd<'_> {
        self.0.waker.as_fd()
    }

    fn outgoing(&mut self) -> Vec<OutgoingMessage> {
        self.0.waker.clear();
        let left = self.0.to_send.load(Ordering::SeqCst);
        if left == 0 {
            return Vec::new();
        }
        self.0.to_send.store(left - 1, Ordering::SeqCst);
        self.0.waker.wake();
        vec![OutgoingMessage::Text("x".repeat(self.0.size.load(Ordering::SeqCst)))]
    }

    fn incoming(&mut self, message: IncomingMessage<'_>) {
        assert!(!self.0.full.load(Ordering::SeqCst), "{message:?} arrived while the conversation was full");
        self.0.received.fetch_add(1, Ordering::SeqCst);
    }

    fn is_full(&mut self) -> bool {
        self.0.full.load(Ordering::SeqCst)
    }

    fn revoked(&self) -> &Cancel {
        &self.0.revoked
    }
}

const FAST: SocketTimeouts = SocketTimeouts {
    ping: Duration::from_millis(200),
    patience: Duration::from_millis(300),
    stall: Duration::from_millis(400),
};

/// Receives the reason for the end of the session, and the time that the session took.
type SessionThread = mpsc::Receiver<(CloseReason, Duration)>;

fn talk(pace: SocketTimeouts) -> (Arc<TestHandle>, UnixStream, SessionThread, JoinOnDrop) {
    let hand = Arc::new(TestHandle {
        waker: Waker::new().unwrap(),
        to_send: AtomicUsize::new(0),
        size: AtomicUsize::new(1),
        revoked: Cancel::new().unwrap(),
        full: AtomicBool::new(false),
        received: AtomicUsize::new(0),
    });
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let socket = ClientSocket::new(Arc::new(Socket::Unix(ours)), Arc::new(()), false);
    let (sender, ended) = mpsc::channel();
    let talker = TestConversation(hand.clone());
    let thread = spawn("test-talk".into(), limits::STACK, move || {
        let start = Instant::now();
        let left = serve(socket, Vec::new(), talker, pace);
        let _ = sender.send((left, start.elapsed()));
    });
    (hand, theirs, ended, thread.unwrap())
}

fn client(stream: UnixStream) -> WebSocket<UnixStream> {
    WebSocket::from_raw_socket(stream, Role::Client, None)
}

fn wait(ended: &SessionThread) -> (CloseReason, Duration) {
    ended.recv_timeout(Duration::from_secs(20)).unwrap()
}

#[test]
fn a_peer_that_answers_pings_stays() {
    let (hand, stream, ended, _thread) = talk(FAST);
    let mut ws = client(stream);
    let start = Instant::now();
    let mut pings = 0;
    while start.elapsed() < Duration::from_secs(2) {
        pings += usize::from(ws.read().unwrap().is_ping());
    }
    assert!(pings >= 5, "{pings}");
    hand.size.store(100_000, Ordering::SeqCst);
    hand.to_send.store(3, Ordering::SeqCst);
    hand.waker.wake();
    let mut texts = 0;
    while texts < 3 {
        let message = ws.read().unwrap();
        texts += usize::from(message.is_text() && message.len() == 100_000);
    }
    ws.close(None).unwrap();
    while ws.read().is_ok() {}
    assert_eq!(wait(&ended).0, CloseReason::Closed);
}

#[test]
fn a_silent_peer_is_disconnected() {
    let (_hand, _stream, ended, _thread) = talk(FAST);
    let (left, took) = wait(&ended);
    assert_eq!(left, CloseReason::PingTimeout);
    assert!(took >= FAST.ping + FAST.patience && took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_peer_that_does_not_read_is_disconnected_and_a_slow_one_is_not() {
    // The peer sends, so it is connected, but it does not read.
    let patient = SocketTimeouts { patience: Duration::from_secs(60), ..FAST };
    let (hand, _stream, ended, _thread) = talk(patient);
    hand.size.store(1 << 20, Ordering::SeqCst);
    hand.to_send.store(100, Ordering::SeqCst);
    hand.waker.wake();
    assert_eq!(wait(&ended).0, CloseReason::WriteTimeout);
    assert!(
        hand.to_send.load(Ordering::SeqCst) > 90,
        "messages were fetched although the peer does not read"
    );

    let (hand, mut stream, ended, _thread) = talk(patient);
    hand.size.store(1 << 20, Ordering::SeqCst);
    hand.to_send.store(1, Ordering::SeqCst);
    hand.waker.wake();
    let mut chunk = [0u8; 64 << 10];
    let mut taken = 0;
    while taken < 1 << 20 {
        taken += stream.read(&mut chunk).unwrap();
        std::thread::sleep(FAST.stall / 4);
    }
    assert!(ended.try_recv().is_err());
    drop(stream);
    assert_eq!(wait(&ended).0, CloseReason::Closed);
}

#[test]
fn a_revoked_credential_ends_the_session() {
    let (hand, stream, ended, _thread) = talk(SocketTimeouts::default());
    let mut ws = client(stream);
    hand.revoked.cancel();
    let start = Instant::now();
    loop {
        if let Message::Close(Some(frame)) = ws.read().unwrap() {
            assert_eq!(u16::from(frame.code), 1008);
            break;
        }
    }
    assert!(start.elapsed() < limits::GOODBYE, "{:?}", start.elapsed());
    while ws.read().is_ok() {}
    assert_eq!(wait(&ended).0, CloseReason::Closed);
}

#[test]
fn a_missing_close_frame_is_not_waited_for() {
    let (hand, stream, ended, _thread) = talk(SocketTimeouts::default());
    hand.revoked.cancel();
    let (left, took) = wait(&ended);
    assert_eq!(left, CloseReason::Closed);
    assert!(took < limits::GOODBYE * 3, "{took:?}");
    drop(stream);
}

#[test]
fn a_full_conversation_stops_reading_but_a_disconnect_is_noticed() {
    let (hand, stream, ended, _thread) = talk(FAST);
    hand.full.store(true, Ordering::SeqCst);
    let mut ws = client(stream);
    for _ in 0..10 {
        ws.send(Message::text("x")).unwrap();
    }
    // This wait is much longer than the ping timeout, but the peer stays connected because it is this side that does
    // not read.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        assert!(ended.try_recv().is_err());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(hand.received.load(Ordering::SeqCst) <= 1);
    hand.full.store(false, Ordering::SeqCst);
    hand.waker.wake();
    let start = Instant::now();
    while hand.received.load(Ordering::SeqCst) < 10 {
        assert!(start.elapsed() < Duration::from_secs(10), "{}", hand.received.load(Ordering::SeqCst));
        std::thread::sleep(Duration::from_millis(5));
    }
    hand.full.store(true, Ordering::SeqCst);
    ws.send(Message::text("x")).unwrap();
    drop(ws);
    assert_eq!(wait(&ended).0, CloseReason::Closed);
}
