//! The child process of a probe: `berth probe NAME FOLDER`, single-threaded. It makes all changes in its own
//! namespaces, which end with it, and in FOLDER. It reports failures on stderr.

use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, move_mount,
    open_tree,
};
use rustix::thread::UnshareFlags;

use crate::base::{At, Error, Result};
use crate::proc::idmap::{self, refused};
use crate::proc::sys;

/// First host ID of the mapping; no file in the scratch directory has such an owner.
const FIRST_ID: u32 = 20 << 16;

/// Runs the probe that `args` name.
pub fn main(args: &[String]) -> ExitCode {
    let tried = match args {
        [name, folder] => enter(Path::new(folder)).and_then(|()| match name.as_str() {
            "userns" => user_namespace(),
            "overlay" => own_mounts().and_then(|()| overlay(".")),
            "idmap" => own_mounts().and_then(|()| id_mapped().map(drop)),
            "idmap-overlay" => own_mounts().and_then(|()| id_mapped_overlay()),
            _ => Err(Error::internal(format!("Unknown probe {name}"))),
        }),
        _ => Err(Error::internal("This command is internal to berth: berth probe NAME FOLDER")),
    };
    match tried {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

/// Makes `folder` the working directory. Later paths are relative to it, because mount options cannot contain
/// every absolute path.
fn enter(folder: &Path) -> Result<()> {
    std::env::set_current_dir(folder).at("enter", folder)
}

fn own_mounts() -> Result<()> {
    sys::new_namespaces(UnshareFlags::NEWNS).at("make", "a mount namespace")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).at("unshare", "mounts")
}

fn make(folders: &[&str]) -> Result<()> {
    folders.iter().try_for_each(|folder| std::fs::create_dir(folder).at("make", folder))
}

fn put(path: &str) -> Result<()> {
    std::fs::File::create_new(path).and_then(|mut file| file.write_all(b"x")).at("write", path)
}

fn same(what: &str, found: u32, wanted: u32) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(Error::internal(format!("{what} belongs to {found}, not to {wanted}")))
}

/// Creates a user namespace in which this process is root.
fn user_namespace() -> Result<()> {
    let uid = rustix::process::geteuid().as_raw();
    sys::new_namespaces(UnshareFlags::NEWUSER).map_err(|error| refused(&error))?;
    set("/proc/self/uid_map", &format!("0 {uid} 1"))?;
    same("the new namespace's root", rustix::process::geteuid().as_raw(), 0)
}

/// Mounts an overlay whose lower directory is in `lower`, then writes and removes files in it.
fn overlay(lower: &str) -> Result<()> {
    make(&["lower", "upper", "work", "merged"])?;
    put("lower/old")?;
    layer(&if lower == "." { "lower".to_owned() } else { format!("{lower}/lower") })?;
    put("merged/new")?;
    std::fs::remove_file("merged/old").at("remove", "merged/old")?;
    if Path::new("merged/old").exists() || !Path::new("lower/old").exists() {
        return Err(Error::internal("A removed file still exists, or was removed from the lower layer"));
    }
    Ok(())
}

fn layer(lower: &str) -> Result<()> {
    let options = format!("lowerdir={lower},upperdir=upper,workdir=work");
    let options = crate::proc::c_string(&options, crate::base::Code::Internal, "options")?;
    mount("overlay", "merged", "overlay", MountFlags::empty(), Some(options.as_c_str()))
        .at("mount", "an overlay")
}

/// Mounts a directory at `mapped`, read-only and with an ID mapping, and checks the mapped owner of a file.
fn id_mapped() -> Result<()> {
    make(&["lower", "mapped"])?;
    put("lower/old")?;
    let userns = idmap::ids_from(FIRST_ID)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, "lower", flags).at("clone", "a mount")?;
    idmap::id_map(tree.as_fd(), userns.as_fd(), true).at("map the ids of", "a mount")?;
    move_mount(tree, "", CWD, "mapped", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).at("attach", "a mount")?;
    same("a mapped file", owner("mapped/old")?, FIRST_ID)
}

/// Mounts an overlay on the mount of [`id_mapped`], with an upper layer that belongs to the container's root.
fn id_mapped_overlay() -> Result<()> {
    id_mapped()?;
    make(&["upper", "work", "merged"])?;
    for folder in ["upper", "work"] {
        std::os::unix::fs::chown(folder, Some(FIRST_ID), Some(FIRST_ID)).at("give away", folder)?;
    }
    layer("mapped")?;
    same("a file from below", owner("merged/old")?, FIRST_ID)?;
    // Writing copies the file into the upper layer; the copy keeps the mapped owner.
    let copied = std::fs::File::options().append(true).open("merged/old").and_then(|mut f| f.write_all(b"y"));
    copied.at("change", "merged/old")?;
    same("a changed file", owner("upper/old")?, FIRST_ID)
}

fn owner(path: &str) -> Result<u32> {
    std::fs::metadata(path).map(|meta| meta.uid()).at("look at", path)
}

fn set(path: &str, text: &str) -> Result<()> {
    std::fs::File::options()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .at("write", path)
}
