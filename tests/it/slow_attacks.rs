//! slowhttptest, from Debian, with 400 connections that send their heads, send their bodies, or read their responses
//! as slowly as possible: the next client is served within 100 ms, and the server's memory, threads and descriptors
//! stay below their limits.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::gettid;
use serde_json::json;

use crate::procs::{memory, secs, wait_for};
use crate::server::{Ended, HOST_TOKEN, Server, Setup, run};
use crate::wire::{Raw, connect, get};

const CONNECTIONS: usize = 400;
/// Longest time that the next client may wait for its response.
const PATIENCE: Duration = Duration::from_millis(100);
/// For each connection its own thread and, while its response is not read, one of tiny_http's; and those of the
/// server.
const THREADS: usize = 2 * (CONNECTIONS + 8) + 40;
/// Memory while heads or bodies arrive: the cost of 500 idle connections.
const RSS_BYTES: u64 = 30 << 20;
/// Memory while responses of 58 KiB are not read: each is held once.
const RSS_READING_BYTES: u64 = RSS_BYTES + CONNECTIONS as u64 * (64 << 10);

/// The longest time of `/health`, on a new connection and on an open one, and the resources that the server used.
#[derive(Debug, Default)]
struct Worst {
    fresh: Duration,
    open: Duration,
    samples: usize,
    threads: usize,
    rss: u64,
}

impl Worst {
    fn took(&self) -> Duration {
        self.fresh.max(self.open)
    }
}

/// A server with the highest priority on this machine, so that the load of other processes is not measured. In a
/// session of its own: the kernel first divides the processor between sessions (sched(7), autogroup).
fn undisturbed() -> Server {
    let server = Setup::new().start_through(&["setsid", "nice", "-n", "-15"]);
    // Without root, or without autogroup, the priority stays as it is.
    let _ = fs::write(format!("/proc/{}/autogroup", server.pid), "-15");
    server
}

/// The same for this thread, which measures.
fn first_of_all() {
    let thread = gettid().as_raw_nonzero().to_string();
    let _ = Command::new("chrt").args(["--rr", "--pid", "1", &thread]).stderr(Stdio::null()).status();
}

fn health(stream: &mut TcpStream) {
    stream.write_all(get("").as_bytes()).unwrap();
    assert_eq!(Raw::read(stream).unwrap().status, 200);
}

fn watch(server: &Server, over: &AtomicBool) -> Worst {
    first_of_all();
    let (mut worst, mut open) = (Worst::default(), connect(server));
    health(&mut open);
    while !over.load(Ordering::Relaxed) {
        let start = Instant::now();
        health(&mut connect(server));
        worst.fresh = worst.fresh.max(start.elapsed());
        let start = Instant::now();
        health(&mut open);
        worst.open = worst.open.max(start.elapsed());
        worst.samples += 1;
        let threads = fs::read_dir(format!("/proc/{}/task", server.pid)).unwrap().count();
        worst.threads = worst.threads.max(threads);
        worst.rss = worst.rss.max(memory(server.pid, "VmRSS"));
        thread::sleep(Duration::from_millis(10));
    }
    worst
}

fn files(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid)).unwrap().count()
}

/// One attack, observed from its first connection on; a second server that is not attacked runs beside it.
fn attack(server: &Server, calm: &Server, arguments: &[&str]) -> (Ended, Worst, Worst) {
    let before = files(server);
    let mut command = Command::new("slowhttptest");
    // `-m` is the Accept header, and any text appended to it.
    let credential = format!("*/*\r\nAuthorization: Bearer {HOST_TOKEN}");
    command.args(["-c", "400", "-r", "400", "-p", "3", "-v", "1", "-m", &credential]).args(arguments);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let attacker = scope.spawn(|| {
            let ended = run(&mut command, secs(40));
            over.store(true, Ordering::Relaxed);
            ended
        });
        let beside = scope.spawn(|| watch(calm, &over));
        let watching = scope.spawn(|| watch(server, &over));
        wait_for("the attack to be in progress", secs(5), || {
            (files(server) >= before + CONNECTIONS || attacker.is_finished()).then_some(())
        });
        (attacker.join().unwrap(), watching.join().unwrap(), beside.join().unwrap())
    })
}

/// Removes colours and line ends.
fn plain(text: &str) -> String {
    let parts = text.split('\u{1b}').map(|part| match part.strip_prefix('[') {
        Some(code) => {
            code.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').get(1..).unwrap_or_default()
        }
        None => part,
    });
    parts.collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn four_hundred_slow_clients_do_not_delay_others() {
    let (server, calm) = (undisturbed(), undisturbed());
    // Its response has the maximum size that is held for a client.
    let script = "#".repeat(58 << 10);
    let workspace = json!({"name": "w", "workspace_type": "container", "init_script": script});
    server.owner().post(200, "/api/workspaces", workspace);
    let (health, list) =
        (format!("http://{}/health", server.address), format!("http://{}/api/workspaces", server.address));
    for (mode, arguments, rss) in [
        // The deadline for heads ends each connection after ten seconds; the remaining time is for a busy machine.
        ("heads", vec!["-H", "-u", &health, "-i", "1", "-l", "25"], RSS_BYTES),
        ("bodies", vec!["-B", "-u", &health, "-i", "1", "-s", "8192", "-l", "8"], RSS_BYTES),
        (
            "reading",
            vec!["-X", "-u", &list, "-k", "10", "-w", "512", "-y", "1024", "-n", "1", "-z", "32", "-l", "10"],
            RSS_READING_BYTES,
        ),
    ] {
        // If the machine has no processor time for any process, a slow response proves nothing about the server: the
        // attack is repeated, and the server that is not attacked is the control.
        for attempt in 1.. {
            let (ended, worst, beside) = attack(&server, &calm, &arguments);
            eprintln!("slow {mode}: {worst:?}; beside it, not attacked: {beside:?}");
            assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
            let reply = plain(&ended.stdout);
            assert!(reply.contains("connected: 400"), "{mode}: {reply}");
            assert!(!reply.contains("service available: NO"), "{mode}: {reply}");
            assert_eq!(mode == "heads", reply.contains("No open connections left"), "{mode}: {reply}");
            assert!(worst.threads <= THREADS, "{mode}: {worst:?}, at most {THREADS} threads");
            assert!(worst.rss <= rss, "{mode}: {worst:?}, at most {rss} bytes");
            if worst.took() <= PATIENCE {
                break;
            }
            let overloaded = beside.took() > PATIENCE / 2;
            assert!(
                overloaded && attempt < 4,
                "{mode}: {worst:?}, not attacked: {beside:?}, attempt {attempt}"
            );
        }
    }
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
