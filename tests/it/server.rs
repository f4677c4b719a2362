//! Starts the real binary on a free port with a separate data folder and home, with known tokens; keeps its output,
//! and ends it by its pid.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::Client;
use crate::procs::{self, secs};
use crate::scratch::Scratch;

pub const CLIENT_TOKEN: &str = "it-client-8d1f0c5ab79e44c2a1d4";
pub const HOST_TOKEN: &str = "it-host-52b09f7c6e6d4c07b3aa";
/// The default host workspace.
pub const NIL: &str = "00000000-0000-0000-0000-000000000000";
pub const BINARY: &str = env!("CARGO_BIN_EXE_berth");

/// Deadline for the line with the address. A start takes about 10 ms; a machine that builds two containers needs more;
/// with `--setup` a real package manager runs first.
const START: Duration = Duration::from_secs(90);
/// Deadline for the exit after SIGTERM; the server itself gives running requests 10 s.
const STOP: Duration = Duration::from_secs(20);

/// Settings of a start. The scratch folder contains `data`, `home` and `work`, the default host workspace.
#[derive(Clone)]
pub struct Setup {
    scratch: Arc<Scratch>,
    data: PathBuf,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    cwd: PathBuf,
}

/// A running server.
pub struct Server {
    child: Option<Child>,
    pub pid: u32,
    pub address: SocketAddr,
    pub data: PathBuf,
    /// The default host workspace.
    pub work: PathBuf,
    pub stdout: Arc<Printed>,
    pub stderr: Arc<Printed>,
    scratch: Arc<Scratch>,
}

/// A command that has exited.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Setup {
    /// A data folder, a home, one workspace, both tokens in the environment, any free port.
    pub fn new() -> Setup {
        Setup::in_folder(Scratch::new())
    }

    /// The same in another folder.
    pub fn in_folder(scratch: Scratch) -> Setup {
        Setup::bare_in(scratch)
            .arg("--workspace=work")
            .env("OPENWORK_TOKEN", CLIENT_TOKEN)
            .env("OPENWORK_HOST_TOKEN", HOST_TOKEN)
    }

    /// Only a data folder, a home and a free port.
    pub fn bare() -> Setup {
        Setup::bare_in(Scratch::new())
    }

    fn bare_in(scratch: Scratch) -> Setup {
        scratch.folder("home");
        scratch.folder("work");
        let data = scratch.path().join("data");
        let cwd = scratch.path().to_owned();
        Setup { scratch: Arc::new(scratch), data, args: vec!["--port=0".into()], env: BTreeMap::new(), cwd }
    }

    pub fn arg(mut self, arg: impl Into<String>) -> Setup {
        self.args.push(arg.into());
        self
    }

    pub fn args(mut self, args: &[&str]) -> Setup {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// Removes all arguments set so far, including `--port=0`.
    pub fn only_args(mut self, args: &[&str]) -> Setup {
        self.args.clear();
        self.args(args)
    }

    pub fn env(mut self, name: &str, value: impl Into<String>) -> Setup {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Another data folder than the scratch one; with an empty path the server chooses.
    pub fn data(mut self, path: impl Into<PathBuf>) -> Setup {
        self.data = path.into();
        self
    }

    pub fn cwd(mut self, path: impl Into<PathBuf>) -> Setup {
        self.cwd = path.into();
        self
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    #[track_caller]
    pub fn start(&self) -> Server {
        self.start_through(&[])
    }

    /// Starts the server through a command such as `setpriv` that executes its last arguments.
    #[track_caller]
    pub fn start_through(&self, wrapper: &[&str]) -> Server {
        let mut child = self.command(wrapper).spawn().unwrap();
        let stdout = Printed::follow(child.stdout.take().unwrap());
        let stderr = Printed::follow(child.stderr.take().unwrap());
        let deadline = Instant::now() + START;
        let address = loop {
            if let Some(line) = stdout.line_with("listening on http://", Duration::from_millis(20)) {
                break listening_address(&line);
            }
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the server ended at its start ({status}):\n{}{}", stdout.text(), stderr.text());
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!("no address after {START:?}:\n{}{}", stdout.text(), stderr.text());
            }
        };
        Server {
            pid: child.id(),
            child: Some(child),
            address,
            data: self.data.clone(),
            work: self.scratch.path().join("work"),
            stdout,
            stderr,
            scratch: Arc::clone(&self.scratch),
        }
    }

    /// Runs it to its end; it must exit by itself.
    #[track_caller]
    pub fn run(&self) -> Ended {
        let mut command = self.command(&[]);
        run(&mut command, secs(20))
    }

    fn command(&self, wrapper: &[&str]) -> Command {
        let mut words: Vec<&str> = wrapper.to_vec();
        words.push(BINARY);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(&self.args).current_dir(&self.cwd).env_clear();
        // The environment of any shell, and the package mirror, if this machine needs one.
        for (name, value) in std::env::vars() {
            if name == "PATH" || name.to_ascii_lowercase().ends_with("_proxy") {
                command.env(name, value);
            }
        }
        command.env("HOME", self.scratch.path().join("home")).env("LANG", "C.UTF-8");
        if !self.data.as_os_str().is_empty() {
            command.env("BERTH_DATA_DIR", &self.data);
        }
        command.envs(&self.env);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

impl Server {
    #[track_caller]
    pub fn start() -> Server {
        Setup::new().start()
    }

    /// A client with the host token.
    pub fn owner(&self) -> Client {
        self.with_token(HOST_TOKEN)
    }

    /// A client with the client token.
    pub fn collaborator(&self) -> Client {
        self.with_token(CLIENT_TOKEN)
    }

    pub fn with_token(&self, token: &str) -> Client {
        self.anyone().with("Authorization", &format!("Bearer {token}"))
    }

    /// A client without a credential.
    pub fn anyone(&self) -> Client {
        Client::new(self.address)
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// All output so far.
    pub fn log(&self) -> String {
        format!("{}{}", self.stdout.text(), self.stderr.text())
    }

    /// Simulates a power failure: kills all its processes.
    pub fn crash(mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends SIGTERM and waits for the exit.
    #[track_caller]
    pub fn stop(mut self) -> ExitStatus {
        self.end(Signal::TERM).expect("the server did not end after SIGTERM")
    }

    #[track_caller]
    pub fn stop_by(mut self, signal: Signal) -> ExitStatus {
        self.end(signal).expect("the server did not end after the signal")
    }

    fn end(&mut self, signal: Signal) -> Option<ExitStatus> {
        let mut child = self.child.take()?;
        procs::signal(child.id(), signal);
        let ended = wait_child(&mut child, STOP);
        if ended.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        ended
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGTERM first, because only the server has the list of containers that it must stop.
        self.end(Signal::TERM);
        if thread::panicking() {
            let log = self.log();
            let tail = log.lines().rev().take(60).collect::<Vec<_>>();
            let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
            eprintln!("--- the last lines of the server ---\n{tail}\n---");
        }
    }
}

/// The output of one stream of a child, line by line as it arrives.
pub struct Printed {
    lines: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Printed {
    pub fn follow(stream: impl Read + Send + 'static) -> Arc<Printed> {
        let printed = Arc::new(Printed { lines: Mutex::new((Vec::new(), false)), changed: Condvar::new() });
        let ours = Arc::clone(&printed);
        // Ends with the stream, that is with the last process that has it open.
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).into_owned();
                ours.lines.lock().unwrap().0.push(text);
                ours.changed.notify_all();
                line.clear();
            }
            ours.lines.lock().unwrap().1 = true;
            ours.changed.notify_all();
        });
        printed
    }

    pub fn text(&self) -> String {
        self.lines.lock().unwrap().0.concat()
    }

    /// The first line that contains `part`, as soon as it arrives.
    pub fn line_with(&self, part: &str, longest: Duration) -> Option<String> {
        let deadline = Instant::now() + longest;
        let mut lines = self.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.0.iter().find(|line| line.contains(part)) {
                return Some(line.trim_end().to_owned());
            }
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                return None;
            }
            lines = self.changed.wait_timeout(lines, remaining).unwrap().0;
        }
    }

    /// Waits for the end of the stream.
    fn ended(&self, longest: Duration) {
        let lines = self.lines.lock().unwrap();
        let _ = self.changed.wait_timeout_while(lines, longest, |lines| !lines.1);
    }
}

/// Runs any command to its end; fails at the deadline.
#[track_caller]
pub fn run(command: &mut Command, longest: Duration) -> Ended {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = Printed::follow(child.stdout.take().unwrap());
    let stderr = Printed::follow(child.stderr.take().unwrap());
    let status = wait_child(&mut child, longest);
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    stdout.ended(secs(2));
    stderr.ended(secs(2));
    let (stdout, stderr) = (stdout.text(), stderr.text());
    let status =
        status.unwrap_or_else(|| panic!("{command:?} still ran after {longest:?}:\n{stdout}{stderr}"));
    Ended { code: status.code(), stdout, stderr }
}

/// Runs `berth` with these arguments, in an environment with only a home.
#[track_caller]
pub fn berth(scratch: &Scratch, args: &[&str], env: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(BINARY);
    command.args(args).current_dir(scratch.path()).env_clear();
    command.env("HOME", scratch.folder("home")).env("PATH", std::env::var("PATH").unwrap());
    command.envs(env.iter().copied());
    run(&mut command, secs(20))
}

fn wait_child(child: &mut Child, longest: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + longest;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn listening_address(line: &str) -> SocketAddr {
    let rest = line.split_once("listening on http://").unwrap().1;
    let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || ".:[]-".contains(c))).unwrap_or(rest.len());
    let address = rest[..end].replace("localhost", "127.0.0.1");
    address.parse().unwrap_or_else(|_| panic!("no address in {line:?}"))
}

/// Reads a file that must exist.
#[track_caller]
pub fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
