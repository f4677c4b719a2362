//! Pseudo-terminals below the API: a program on the host and in a real container gets one as its controlling terminal,
//! with the correct size from the start.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use berth::containers::Engine;
use berth::containers::container::ContainerSpec;
use berth::images::Images;
use berth::proc::pty::{WindowSize, set_size};
use berth::proc::{Cgroups, CommandSpec, Exit, Launcher};
use berth::roots::Roots;
use berth::runs::HostLauncher;
use berth::store::allowlist::Allowlist;

use crate::fixture::{image_root, seeded};
use crate::procs::{secs, wait_for};
use crate::server::BINARY;

/// Runs a shell script on a terminal of 132 × 43 and returns all output.
fn on_terminal(launcher: &dyn Launcher, script: &str) -> String {
    let command = CommandSpec {
        attempts: vec![["/bin/sh", "-c", script].map(|word| word.parse_c()).to_vec()],
        env: vec!["PATH=/usr/bin:/bin".parse_c()],
        cwd: "/".into(),
        tty: true,
        user: None,
        account: false,
        patience: None,
        limits: None,
    };
    let pty = launcher.terminal().unwrap();
    set_size(&pty.master, WindowSize { cols: 132, rows: 43 }).unwrap();
    let (master, stdio) = pty.split().unwrap();
    let mut process = launcher.launch("pty-test", &command, stdio).unwrap();
    let output = read_to_the_end(master);
    let exit = wait_for("the script to end", secs(10), || process.try_exit().unwrap());
    assert_eq!(exit, Exit::Code(7), "{output}");
    output
}

/// A terminal returns EIO when its other end has no open descriptor.
fn read_to_the_end(master: OwnedFd) -> String {
    rustix::io::ioctl_fionbio(&master, false).unwrap();
    let mut output = Vec::new();
    let error = std::fs::File::from(master).read_to_end(&mut output).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    String::from_utf8(output).unwrap()
}

trait ParseC {
    fn parse_c(&self) -> std::ffi::CString;
}

impl ParseC for str {
    fn parse_c(&self) -> std::ffi::CString {
        std::ffi::CString::new(self).unwrap()
    }
}

/// Properties of every terminal.
const SCRIPT: &str = r#"
    tty; stty size; test -c "$(tty)" && : > "$(tty)" && echo opens
    : > /dev/tty && echo controls
    test "$(ps -o tty= -p $$ 2>/dev/null || echo pts/0)" = "$(tty | cut -c6-)" && echo "ps knows"
    stty -a | grep -o ' iutf8'
    exit 7"#;

fn check(output: &str) {
    let lines: Vec<&str> = output.lines().collect();
    let number = lines[0].strip_prefix("/dev/pts/").unwrap_or_else(|| panic!("{output}"));
    assert!(number.parse::<u32>().is_ok(), "{output}");
    assert_eq!(lines[1..], ["43 132", "opens", "controls", "ps knows", " iutf8"], "{output}");
}

#[test]
fn a_program_on_the_host_has_a_terminal() {
    let cgroups = Cgroups::take(&format!("berth-it-pty-{}", std::process::id()));
    let launcher = HostLauncher { cgroups: cgroups.clone(), group: "runs".into(), folder: "/".into() };
    check(&on_terminal(&launcher, SCRIPT));
    cgroups.release();
}

#[test]
fn a_program_in_a_container_has_a_terminal_of_the_container() {
    let setup = seeded();
    let data = setup.data_dir();
    let cgroups = Cgroups::take(&format!("berth-it-ptyc-{}", std::process::id()));
    let images = Images::open(&data.join("images"), Default::default(), cgroups.clone()).unwrap();
    let roots = Roots::open(data, Arc::new(images), cgroups.clone(), None).unwrap();
    let allowlist = Allowlist {
        path: data.join("none"),
        home: data.to_owned(),
        data_dir: data.to_owned(),
        granted: Vec::new(),
    };
    let engine = Engine::new(cgroups.clone(), data, roots, Default::default(), allowlist).unwrap();
    let root = image_root(data);
    let place = ContainerSpec {
        machine_name: format!("berth-it-{}", std::process::id()),
        host_name: "box".into(),
        // A folder that contains the root as `root`, like a workspace's own folder.
        runtime: root.parent().unwrap().to_owned(),
        root,
        agent: Path::new(BINARY).to_owned(),
        network: Default::default(),
        mounts: Vec::new(),
        limits: Default::default(),
        tmpfs_bytes: None,
        idle_timeout: None,
    };
    let machine = engine.container(place).unwrap();
    let output = on_terminal(&machine, SCRIPT);
    check(&output);
    // The first terminal of this devpts, so not a terminal of the host; it belongs to root inside.
    assert!(output.starts_with("/dev/pts/0\r\n"), "{output}");
    let owner = on_terminal(&machine, "stat -c '%u %a' $(tty); exit 7");
    assert!(owner.starts_with("0 "), "{owner}");
    // A replacement by the workload is not opened.
    let command = "mount -t tmpfs none /dev/pts; mkfifo /dev/pts/ptmx; ls -l /dev/pts/ptmx; exit 7";
    let output = on_terminal(&machine, command);
    if output.lines().last().is_some_and(|line| line.starts_with('p')) {
        let error = machine.terminal().unwrap_err();
        assert!(error.message().contains("not the terminal multiplexer device"), "{error}");
    } else {
        panic!("the container could not hide its terminals: {output}");
    }
    engine.stop_all(&|_| false);
    cgroups.release();
}
