//! The real OpenCode, from npm (tests/run installs it): started for a folder, with a separate home, and killed with
//! all its children.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::client::Client;
use crate::procs::secs;
use crate::scratch::Scratch;
use crate::server::Printed;

/// Both tested versions: the one of the observed OpenWork server, and the newest.
pub const VERSIONS: [&str; 2] = ["opencode-old", "opencode-new"];

/// The folder in which `tests/run` installed the npm package of this name.
pub fn package(name: &str) -> PathBuf {
    let mut folders = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .ancestors()
        .map(|up| up.join("it-npm/node_modules").join(name));
    let found = folders.find(|folder| folder.is_dir());
    found.unwrap_or_else(|| panic!("no npm package {name}: tests/run installs it"))
}

/// The path of its program.
pub fn program(version: &str) -> PathBuf {
    package(version).join("bin/opencode")
}

/// A running `opencode serve`.
pub struct OpenCode {
    child: Child,
    pub address: SocketAddr,
    _home: Scratch,
}

impl OpenCode {
    /// Starts it in this folder, without a password.
    pub fn start(version: &str, folder: &Path) -> OpenCode {
        let home = Scratch::new();
        let mut command = Command::new(program(version));
        command
            .args(["serve", "--hostname", "127.0.0.1", "--port", "0", "--print-logs"])
            .current_dir(folder)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", home.path())
            // No request may go to the network, which may be missing.
            .env("OPENCODE_DISABLE_AUTOUPDATE", "1")
            .env("OPENCODE_DISABLE_MODELS_FETCH", "1")
            .env("OPENCODE_DISABLE_LSP_DOWNLOAD", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0);
        let mut child = command.spawn().expect("opencode starts");
        let printed = Printed::follow(child.stdout.take().unwrap());
        let line = printed.line_with("listening on http://", secs(60));
        let line = line.unwrap_or_else(|| panic!("opencode did not start: {}", printed.text()));
        let address = line.rsplit("http://").next().unwrap().trim().parse().unwrap();
        OpenCode { child, address, _home: home }
    }

    /// A client that connects to it directly, without the proxy.
    pub fn client(&self) -> Client {
        Client::new(self.address)
    }
}

impl Drop for OpenCode {
    fn drop(&mut self) {
        let group = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}
