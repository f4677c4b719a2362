//! `berth enclose TREE ROOT NETWORK PROGRAM ARGS…`: the process between the server and nspawn. It creates a mount
//! namespace, whose mounts vanish with its last process, even after SIGKILL. If the server mounted the container's
//! root, it attaches that mount there. It creates a network namespace if requested and executes PROGRAM. One
//! thread.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::process::ExitCode;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, mount, mount_change, move_mount};
use rustix::thread::UnshareFlags;

use crate::base::{At, Code, Error, Result};
use crate::proc::{c_string, sys};

/// Argument TREE for a root that is a plain directory; argument NETWORK for the host's network.
pub(super) const NONE: &str = "-";

/// Argument NETWORK for a new network namespace.
pub(super) const NETWORK: &str = "net";

/// Directory in which nspawn keeps its own files.
const NSPAWN: &str = "/run/systemd/nspawn";

/// Executes PROGRAM in the new namespaces. Returns only on failure.
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
    // The file system here must be a tmpfs: nspawn removes files below it.
    mount("berth", NSPAWN, "tmpfs", MountFlags::empty(), Some(c"mode=0755"))
        .at("mount a tmpfs on", NSPAWN)?;
    if tree != NONE {
        // TREE is the path of the server's descriptor of a detached mount; attach that mount at ROOT.
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
