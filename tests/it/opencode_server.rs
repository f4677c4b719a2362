//! The real OpenCode as OpenWork starts it: with a password, for any folder; `opencode_serve` starts it for one
//! folder.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;

use crate::opencode_serve::program;
use crate::procs::{secs, wait_for};
use crate::server::{Printed, Setup};

pub const USERNAME: &str = "opencode";
pub const PASSWORD: &str = "it-opencode-3f9c1d";

/// A home folder, and settings that prevent outgoing requests.
pub fn environment(command: &mut Command, home: &Path) {
    std::fs::create_dir_all(home).unwrap();
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", home)
        .env("OPENCODE_DISABLE_AUTOUPDATE", "1")
        .env("OPENCODE_DISABLE_MODELS_FETCH", "1")
        .env("OPENCODE_DISABLE_LSP_DOWNLOAD", "1");
}

pub struct Opencode {
    child: Child,
    pub address: SocketAddr,
    _log: Arc<Printed>,
}

impl Opencode {
    /// Starts it with a home in `scratch` and in a separate folder, so that no result depends on its working
    /// directory.
    #[track_caller]
    pub fn start(version: &str, scratch: &Path) -> Opencode {
        let mut command = Command::new(program(version));
        environment(&mut command, &scratch.join(format!("{version}-home")));
        let mut child = command
            .args(["serve", "--hostname=127.0.0.1", "--port=0"])
            .env("OPENCODE_SERVER_USERNAME", USERNAME)
            .env("OPENCODE_SERVER_PASSWORD", PASSWORD)
            .current_dir(scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Printed::follow(child.stdout.take().unwrap());
        let complaints = Printed::follow(child.stderr.take().unwrap());
        let Some(line) = log.line_with("listening on http://", secs(90)) else {
            let _ = child.kill();
            panic!("{version} does not listen:\n{}{}", log.text(), complaints.text());
        };
        let address = line.rsplit("http://").next().unwrap().trim().parse().unwrap();
        let started = Opencode { child, address, _log: log };
        // 1.18.34 accepts requests during its first start that it never answers.
        wait_for("OpenCode to answer", secs(90), || started.is_healthy().then_some(()));
        started
    }

    fn is_healthy(&self) -> bool {
        let poll = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&self.address, secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            let head = format!(
                "GET /global/health HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\nConnection: close\r\n\r\n",
                self.authorization()
            );
            stream.write_all(head.as_bytes())?;
            // 1.1.53 does not exit on SIGTERM.
            let (mut reply, mut buffer) = (String::new(), [0; 1024]);
            while !reply.contains('}') {
                let count = stream.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                reply.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
            Ok(reply)
        };
        poll().is_ok_and(|reply| reply.contains("\"healthy\":true"))
    }

    /// A server that forwards requests to it.
    pub fn named_to(&self, setup: Setup) -> Setup {
        setup
            .arg(format!("--opencode-base-url={}", self.url()))
            .env("OPENWORK_OPENCODE_USERNAME", USERNAME)
            .env("OPENWORK_OPENCODE_PASSWORD", PASSWORD)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn authorization(&self) -> String {
        let both = format!("{USERNAME}:{PASSWORD}");
        format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(both))
    }
}

impl Drop for Opencode {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
