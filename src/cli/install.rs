//! `berth install` and `berth uninstall`: install berth as a systemd service on machines without a berth package, and
//! remove it. Each step is printed before it runs; on a terminal both commands first ask for confirmation. Existing
//! files are kept, so both commands can be repeated.

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::client::{self, ApiClient};
use super::setup::{agreed, ended};
use crate::base::{At, Error, Result, limits};
use crate::config::{CommandLine, FlagValues};
use crate::proc::tools;
use crate::store::beneath::Root;
use crate::store::tree;

/// The systemd unit, with the paths of the package.
const UNIT: &str = include_str!("../../assets/packaging/systemd/berth.service");
const UNIT_PATH: &str = "/etc/systemd/system/berth.service";
/// The symbolic link that `systemctl enable` creates for the unit's `WantedBy=`.
const WANTED: &str = "/etc/systemd/system/multi-user.target.wants/berth.service";
/// The paths at which packages install the unit.
const PACKAGED_UNITS: [&str; 2] =
    ["/usr/lib/systemd/system/berth.service", "/lib/systemd/system/berth.service"];
const PACKAGED_BINARY: &str = "/usr/bin/berth";
const SETTINGS: &str = "/etc/berth";
const DATA: &str = "/var/lib/berth";
const UNIT_BYTES: u64 = 1 << 20;
const ENVIRONMENT: &str = include_str!("../../assets/packaging/deb/environment");
/// The time limit of a systemctl call. A start may convert data and a stop waits for requests, so it is longer than
/// the limits in the unit.
const SYSTEMCTL: Duration = Duration::from_secs(900);

/// Checks a folder that a flag names.
fn folder(flag: &str, value: Option<&String>) -> Result<Option<PathBuf>> {
    let Some(path) = value.map(PathBuf::from) else { return Ok(None) };
    let absolute = path.is_absolute() && path.components().all(|part| part.as_os_str() != "..");
    if absolute { Ok(Some(path)) } else { Err(Error::config(flag, "must be an absolute path without ..")) }
}

/// Returns the folder for the binary. Its path is written into the unit, where all other characters may have a special
/// meaning (systemd.unit(5)).
fn bin_folder(value: Option<&String>) -> Result<PathBuf> {
    let plain = |c: char| c.is_alphanumeric() || "/._+-@:,=~".contains(c);
    let bin = folder("--bin", value)?.unwrap_or_else(|| "/usr/local/bin".into());
    match bin.to_string_lossy().chars().find(|c| !plain(*c)) {
        None => Ok(bin),
        Some(c) => Err(Error::config("--bin", format!("{c:?} cannot be in the path of a service's binary"))),
    }
}

/// The file tree into which the service is installed: that of this machine, or the one below `--root`. Symbolic links
/// in the tree are resolved as on a machine that boots from it, so no file outside of the tree is changed.
struct Machine {
    tree: Root,
    /// The folder that `--root` names.
    root: Option<PathBuf>,
}

impl Machine {
    fn open(root: Option<&Path>) -> Result<Machine> {
        let top = root.unwrap_or(Path::new("/"));
        Ok(Machine { tree: Root::open(top)?, root: root.map(Path::to_owned) })
    }

    /// Returns the path of a file of the tree, for messages.
    fn shown(&self, path: &str) -> String {
        match &self.root {
            Some(root) => below(root, path),
            None => path.to_owned(),
        }
    }

    /// Returns the same as [`Machine::installed`].
    ///
    /// # Errors
    /// Fails for the same reasons as [`Machine::installed`], and if berth is installed as a package.
    fn own_or_none(&self) -> Result<Option<String>> {
        for unit in PACKAGED_UNITS {
            if self.tree.exists(unit)? {
                return Err(Error::config(
                    self.shown(unit),
                    "berth is installed as a package here; use the package manager to upgrade or remove it",
                ));
            }
        }
        self.installed()
    }

    /// Returns the path of the binary that the installed unit starts; `None` if there is no unit of berth.
    fn installed(&self) -> Result<Option<String>> {
        let unit = self.tree.read(UNIT_PATH, UNIT_BYTES)?;
        let unit = unit.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let starts = unit.iter().flat_map(|unit| unit.lines());
        let mut starts = starts.filter_map(|line| line.strip_prefix("ExecStart=")?.split(' ').next());
        // A unit that was edited by hand may start another program, which must not be removed, so only a path of a
        // program named `berth` counts.
        let binary = starts.find(|path| path.starts_with('/') && path.ends_with("/berth"));
        Ok(binary.map(str::to_owned))
    }

    /// Copies this binary to `to`. The kernel refuses writes to a binary that is running, so an old binary is replaced
    /// by a new file.
    fn copy_binary(&self, to: &str) -> Result<()> {
        let itself = Path::new("/proc/self/exe");
        let ours = fs::metadata(itself).at("read", itself)?;
        let there = self.tree.metadata(to)?;
        if there.is_some_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            return Ok(());
        }
        self.make_parent(to)?;
        self.tree.write_new(to, &fs::read(itself).at("read", itself)?, 0o755)
    }

    fn make_parent(&self, path: &str) -> Result<()> {
        path.rsplit_once('/').map_or(Ok(()), |(parent, _)| self.tree.make_dirs(parent))
    }

    fn enable(&self) -> Result<()> {
        if self.root.is_none() {
            systemctl(&["daemon-reload"])?;
            return systemctl(&["enable", "berth.service"]);
        }
        // The link is created here because `systemctl --root` resolves absolute links in the tree to folders of this
        // machine (systemd 252).
        self.make_parent(WANTED)?;
        self.tree.link_new(WANTED, UNIT_PATH)
    }

    fn disable(&self) -> Result<()> {
        if self.root.is_none() {
            return systemctl(&["disable", "--now", "berth.service"]);
        }
        self.tree.remove(WANTED).map(drop)
    }

    /// Removes a folder with its content, unless a file system is still mounted in it. If the path is a symbolic link,
    /// both the link and its target folder are removed.
    fn remove_folder(&self, path: &str) -> Result<()> {
        if let Some(folder) = self.tree.real_path(path)? {
            if let Some(mount) = tree::mounts_below(&folder)?.first() {
                return Err(Error::internal(format!(
                    "{} is still mounted, so {} was kept; unmount it and remove the folder",
                    mount.display(),
                    folder.display()
                )));
            }
            let name = folder.file_name().and_then(|name| name.to_str());
            if let (Some(parent), Some(name)) = (folder.parent(), name) {
                tree::remove_tree(parent, name)?;
            }
        }
        self.tree.remove(path).map(drop)
    }
}

/// Runs `berth install`.
///
/// # Errors
/// Fails for an invalid command line (exit code 2), without systemd, without root privileges, or if a step fails.
pub fn install(args: &[String]) -> Result<ExitCode> {
    let asked = match super::line("install", args)? {
        Ok(asked) => asked,
        Err(code) => return Ok(code),
    };
    let root = root_folder(asked.root.as_ref())?;
    let binary = bin_folder(asked.bin.as_ref())?.join("berth").display().to_string();
    let shown = |path: &str| below(root.as_deref().unwrap_or(Path::new("/")), path);
    let starts = root.is_none() && !asked.no_start;
    check_host(root.is_some())?;
    // If the folder does not exist yet, it contains no other service.
    let there = root.as_ref().is_none_or(|root| root.exists());
    let before = if there { Machine::open(root.as_deref())?.own_or_none()? } else { None };
    let before = before.filter(|before| *before != binary);
    let mut steps = vec![
        format!("copy this binary (version {}) to {}", env!("CARGO_PKG_VERSION"), shown(&binary)),
        format!("make {} with server.json and environment, if they are not there", shown(SETTINGS)),
        format!("write {}", shown(UNIT_PATH)),
        "enable the service berth".to_owned(),
    ];
    if starts {
        steps.push("start it, or restart it if it runs".to_owned());
    }
    steps.extend(before.as_ref().map(|before| format!("remove the binary of before, {}", shown(before))));
    let mut steps = InstallSteps::confirmed(&steps, asked.yes)?;

    if let Some(root) = &root {
        fs::create_dir_all(root).at("make", root)?;
    }
    let machine = Machine::open(root.as_deref())?;
    steps.next();
    machine.copy_binary(&binary)?;
    steps.next();
    machine.tree.make_private_dir(SETTINGS)?;
    for (name, text) in [("server.json", "{}\n"), ("environment", ENVIRONMENT)] {
        let path = format!("{SETTINGS}/{name}");
        if !machine.tree.exists(&path)? {
            machine.tree.write_new(&path, text.as_bytes(), 0o600)?;
        }
    }
    steps.next();
    machine.make_parent(UNIT_PATH)?;
    let unit = UNIT.replace(&format!("ExecStart={PACKAGED_BINARY} "), &format!("ExecStart={binary} "));
    machine.tree.write_new(UNIT_PATH, unit.as_bytes(), 0o644)?;
    machine.tree.make_dirs("/srv")?;
    steps.next();
    machine.enable()?;
    if starts {
        steps.next();
        systemctl(&["restart", "berth.service"]).map_err(|error| {
            Error::internal(format!("{error}; `journalctl --unit=berth --lines=20` shows why"))
        })?;
    }
    if let Some(before) = before {
        steps.next();
        // Both paths may name the same file, through a symbolic link.
        if machine.tree.real_path(&before)? != machine.tree.real_path(&binary)? {
            machine.tree.remove(&before)?;
        }
    }
    if starts {
        super::print(
            "berth runs. `berth token show` prints its tokens, `berth status` its state; the settings are in /etc/berth.\n",
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `berth uninstall`.
///
/// # Errors
/// Fails for an invalid command line (exit code 2), if the service does not end its runs and containers, or if a step
/// fails.
pub fn uninstall(args: &[String]) -> Result<ExitCode> {
    let asked = match super::line("uninstall", args)? {
        Ok(asked) => asked,
        Err(code) => return Ok(code),
    };
    let root = root_folder(asked.root.as_ref())?;
    if asked.only_workloads {
        if root.is_some() {
            return Err(Error::config("--only-workloads", "contradicts --root: nothing runs there"));
        }
        // The scripts of the package run this command with `--only-workloads`; they do the remaining steps themselves.
        check_host(false)?;
        InstallSteps::confirmed(&["end detached runs, and stop containers".to_owned()], asked.yes)?.next();
        end_all(&asked)?;
        return Ok(ExitCode::SUCCESS);
    }
    check_host(root.is_some())?;
    let machine = Machine::open(root.as_deref())?;
    let binary = machine.own_or_none()?.ok_or_else(|| {
        let problem = "there is no such unit with a binary named berth; `berth install` would make it";
        Error::config(machine.shown(UNIT_PATH), problem)
    })?;
    let mut steps = Vec::new();
    if root.is_none() {
        let what = if asked.purge { "delete all workspaces" } else { "end detached runs and containers" };
        steps.push(format!("start the service if it does not run, and have it {what}"));
    }
    steps.push("stop and disable the service".to_owned());
    steps.push(format!("remove {} and {}", machine.shown(UNIT_PATH), machine.shown(&binary)));
    if asked.purge {
        let (settings, data) = (machine.shown(SETTINGS), machine.shown(DATA));
        steps.push(format!("remove {settings} and {data}: tokens, images, templates, everything"));
    }
    let mut steps = InstallSteps::confirmed(&steps, asked.yes)?;
    if root.is_none() {
        steps.next();
        systemctl(&["start", "berth.service"])?;
        end_all(&asked)?;
    }
    steps.next();
    machine.disable()?;
    steps.next();
    machine.tree.remove(UNIT_PATH)?;
    machine.tree.remove(&binary)?;
    if root.is_none() {
        systemctl(&["daemon-reload"])?;
    }
    if asked.purge {
        steps.next();
        for folder in [DATA, SETTINGS] {
            machine.remove_folder(folder)?;
        }
    } else {
        super::print(&format!(
            "Kept: {} and {}. `berth uninstall --purge` would have removed them.\n",
            machine.shown(SETTINGS),
            machine.shown(DATA)
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends the runs and containers that would outlive the service. With `--purge`, also deletes the workspaces.
fn end_all(asked: &CommandLine) -> Result<()> {
    let flags = FlagValues {
        data_dir: Some(DATA.to_owned()),
        openwork_url: asked.openwork_url.clone(),
        host_token: asked.host_token.clone(),
        ..FlagValues::default()
    };
    let client = client::of(&flags.into())?;
    let list = client.call("GET", "/api/workspaces", None)?;
    for workspace in list.as_array().into_iter().flatten() {
        let Some(id) = workspace["id"].as_str() else { continue };
        end_runs(&client, id)?;
        let container = workspace["workspace_type"] == "container";
        // The default host workspace cannot be deleted, and it has no files that berth created.
        if asked.purge && container {
            client.call("DELETE", &format!("/api/workspaces/{id}"), None)?;
        } else if container {
            client.call("POST", &format!("/api/workspaces/{id}/stop"), None)?;
        }
    }
    Ok(())
}

fn end_runs(client: &ApiClient, id: &str) -> Result<()> {
    let runs = client.call("GET", &format!("/api/workspaces/{id}/runs"), None)?;
    let live = |run: &&Value| run["status"] == "running";
    for run in runs.as_array().into_iter().flatten().filter(live) {
        if let Some(run) = run["id"].as_str() {
            client.call("DELETE", &format!("/api/workspaces/{id}/runs/{run}"), None)?;
        }
    }
    Ok(())
}

/// The steps of one command.
struct InstallSteps {
    all: Vec<String>,
    done: usize,
}

impl InstallSteps {
    /// Shows the steps and, unless `yes` is set, asks for confirmation.
    fn confirmed(all: &[String], yes: bool) -> Result<InstallSteps> {
        if !yes {
            if !io::stdin().is_terminal() {
                return Err(Error::config("--yes", "is needed where there is no terminal to ask at"));
            }
            let list: String = all.iter().map(|step| format!("  {step}\n")).collect();
            let question = format!("berth would\n{list}Continue? [y/N] ");
            io::stderr().write_all(question.as_bytes()).at("ask at", "the terminal")?;
            if !agreed(io::stdin().lock(), limits::SETUP_ANSWER) {
                return Err(Error::internal("Nothing was changed"));
            }
        }
        Ok(InstallSteps { all: all.to_vec(), done: 0 })
    }

    /// Prints the step that begins now.
    fn next(&mut self) {
        if let Some(step) = self.all.get(self.done) {
            eprintln!("{}/{} {step}", self.done + 1, self.all.len());
        }
        self.done += 1;
    }
}

fn below(root: &Path, path: &str) -> String {
    root.join(path.trim_start_matches('/')).display().to_string()
}

/// Returns the folder that `--root` names; `None` for this machine itself.
fn root_folder(value: Option<&String>) -> Result<Option<PathBuf>> {
    let root = folder("--root", value)?;
    // `/` is also refused if the flag names it by another path.
    let real = root.as_ref().and_then(|root| fs::canonicalize(root).ok());
    if root.as_deref() == Some(Path::new("/")) || real.as_deref() == Some(Path::new("/")) {
        return Err(Error::config("--root", "/ is this machine; leave --root out for it"));
    }
    Ok(root)
}

fn check_host(elsewhere: bool) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::internal("Only root can install or remove a service; run it with sudo"));
    }
    // Checks whether systemd is running, as sd_booted(3) does.
    if !elsewhere && !Path::new("/run/systemd/system").exists() {
        return Err(Error::internal(
            "systemd does not run here; start `berth serve` with what starts services on this machine, or write the \
             service below another folder with --root",
        ));
    }
    Ok(())
}

/// Runs systemctl, whose output the user sees.
#[expect(clippy::disallowed_methods, reason = "interactive: shares the person's terminal and process group")]
fn systemctl(args: &[&str]) -> Result<()> {
    let line = format!("systemctl {}", args.join(" "));
    let path = tools::find("systemctl").ok_or_else(|| {
        Error::internal(format!("systemctl is missing; install systemd, or do yourself: {line}"))
    })?;
    let failed = |how: String| Error::internal(format!("{line}: {how}"));
    let mut child = Command::new(path)
        .args(args)
        .env_clear()
        .env("PATH", tools::PATH)
        .env("LANG", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::from(io::stderr()))
        .spawn()
        .map_err(|error| failed(format!("could not start ({error})")))?;
    if !ended(&child, SYSTEMCTL) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(failed(format!("gave up after {} s", SYSTEMCTL.as_secs())));
    }
    let status = child.wait().map_err(|error| failed(format!("could not be waited for ({error})")))?;
    if status.success() { Ok(()) } else { Err(failed(format!("failed ({status})"))) }
}
