//! `berth enclose TREE ROOT NETWORK PROGRAM ARGS…`: the process between the server and nspawn. It creates a mount
//! namespace (its mounts vanish with its last process, even after SIGKILL), attaches the container's root in it if the
//! root is a mount of the server's, creates a network namespace if requested, and executes PROGRAM. One thread.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::process::ExitCode;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, mount, mount_change, move_mount};
use rustix::thread::UnshareFlags;

use crate::base::{At, Code, Error, Result};
use crate::proc::{c_string, sys};

/// TREE for a root that is a plain directory; NETWORK for the host's network.
pub(super) const NONE: &str = "-";

/// NETWORK for a new network namespace.
pub(super) const NETWORK: &str = "net";

/// Directory of nspawn's own files.
const NSPAWN: &str = "/run/systemd/nspawn";

/// Executes the program that `args` name. Returns only on failure.
pub fn main(args: &[String]) -> ExitCode {
    let error = match args {
        [tree, root, network, program @ ..] if !program.is_empty() => {
            match enclose(tree, root, network, program) {
                Err(error) => error,
                Ok(never) => match never {},
            }
        }
        _ => Error::internal("This command is internal to berth: berth enclose TREE ROOT NETWORK PROGRAM"),
    };
    let _ = writeln!(io::stderr(), "{error}");
    ExitCode::FAILURE
}

fn enclose(tree: &str, root: &str, network: &str, program: &[String]) -> Result<std::convert::Infallible> {
    let network = if network == NETWORK { UnshareFlags::NEWNET } else { UnshareFlags::empty() };
    sys::new_namespaces(UnshareFlags::NEWNS | network).at("make", "namespaces")?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .at("unshare", "mounts")?;
    // This must be a tmpfs: nspawn removes files below it.
    mount("berth", NSPAWN, "tmpfs", MountFlags::empty(), Some(c"mode=0755"))
        .at("mount a tmpfs on", NSPAWN)?;
    if tree != NONE {
        // The server's descriptor of a detached mount, which is attached here.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let tree = rustix::fs::open(tree, flags, Mode::empty()).at("open", tree)?;
        move_mount(&tree, "", CWD, root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).at("attach", root)?;
    }
    let text = |text: &String| c_string(text, Code::Internal, "argument");
    let argv = program.iter().map(text).collect::<Result<Vec<_>>>()?;
    let env = std::env::vars_os().filter_map(|(name, value)| {
        let mut entry = name.into_vec();
        entry.push(b'=');
        entry.extend(value.into_vec());
        std::ffi::CString::new(entry).ok()
    });
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let stdio = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    Err(sys::exec(&[argv], &env.collect::<Vec<_>>(), stdio)).at("start", &program[0])
}
