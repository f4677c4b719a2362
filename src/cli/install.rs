//! `berth install` and `berth uninstall`: berth as a service of systemd where there is no package of it. Each step is
//! printed before it is done; at a terminal both ask first. What is there already is kept, so both can be repeated.

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::client::{self, ApiClient};
use super::setup::{agreed, ended};
use crate::base::{At, Error, Result, limits};
use crate::config::{CommandLine, FlagValues};
use crate::proc::tools;
use crate::store::{file, tree};

/// The unit, with the paths of the package.
const UNIT: &str = include_str!("../../assets/packaging/systemd/berth.service");
const UNIT_PATH: &str = "/etc/systemd/system/berth.service";
/// Where packages put theirs.
const PACKAGED_UNITS: [&str; 2] =
    ["/usr/lib/systemd/system/berth.service", "/lib/systemd/system/berth.service"];
const PACKAGED_BINARY: &str = "/usr/bin/berth";
const SETTINGS: &str = "/etc/berth";
const DATA: &str = "/var/lib/berth";
const ENVIRONMENT: &str = include_str!("../../assets/packaging/deb/environment");
/// A start may convert data, a stop waits for requests: the unit has limits of its own.
const SYSTEMCTL: Duration = Duration::from_secs(900);

/// A folder that a flag names.
fn folder(flag: &str, value: Option<&String>) -> Result<Option<PathBuf>> {
    let Some(path) = value.map(PathBuf::from) else { return Ok(None) };
    let absolute = path.is_absolute() && path.components().all(|part| part.as_os_str() != "..");
    if absolute { Ok(Some(path)) } else { Err(Error::config(flag, "must be an absolute path without ..")) }
}

/// `berth install`
///
/// # Errors
/// A wrong command line (exit code 2), no systemd, no rights, or a step that failed.
pub fn install(args: &[String]) -> Result<ExitCode> {
    let asked = match super::line("install", args)? {
        Ok(asked) => asked,
        Err(code) => return Ok(code),
    };
    let elsewhere = folder("--root", asked.root.as_ref())?;
    if elsewhere.as_deref() == Some(Path::new("/")) {
        return Err(Error::config("--root", "/ is this machine; leave --root out to install here"));
    }
    let root = elsewhere.clone().unwrap_or_else(|| "/".into());
    let bin = folder("--bin", asked.bin.as_ref())?.unwrap_or_else(|| "/usr/local/bin".into()).join("berth");
    refuse_packaged(&root)?;
    let starts = elsewhere.is_none() && !asked.no_start;
    check_host(elsewhere.is_some())?;
    let mut steps = vec![
        format!(
            "copy this binary (version {}) to {}",
            env!("CARGO_PKG_VERSION"),
            below(&root, &bin).display()
        ),
        format!("make {SETTINGS} with server.json and environment, if they are not there"),
        format!("write {}", below(&root, Path::new(UNIT_PATH)).display()),
        "enable the service berth".to_owned(),
    ];
    if starts {
        steps.push("start it, or restart it if it runs".to_owned());
    }
    let mut steps = InstallSteps::confirmed(&steps, asked.yes)?;

    steps.next();
    copy_binary(&below(&root, &bin))?;
    steps.next();
    let settings = below(&root, Path::new(SETTINGS));
    file::create_dir_private(&settings)?;
    for (name, text) in [("server.json", "{}\n"), ("environment", ENVIRONMENT)] {
        let path = settings.join(name);
        if !path.exists() {
            file::write_atomic(&path, text.as_bytes(), 0o600)?;
        }
    }
    steps.next();
    let unit = below(&root, Path::new(UNIT_PATH));
    make_folder(unit.parent())?;
    let start = format!("ExecStart={PACKAGED_BINARY} ");
    file::write_atomic(
        &unit,
        UNIT.replace(&start, &format!("ExecStart={} ", bin.display())).as_bytes(),
        0o644,
    )?;
    make_folder(Some(&below(&root, Path::new("/srv"))))?;
    steps.next();
    match &elsewhere {
        Some(root) => systemctl(&[&format!("--root={}", root.display()), "enable", "berth.service"])?,
        None => {
            systemctl(&["daemon-reload"])?;
            systemctl(&["enable", "berth.service"])?;
        }
    }
    if starts {
        steps.next();
        systemctl(&["restart", "berth.service"]).map_err(|error| {
            Error::internal(format!("{error}; `journalctl --unit=berth --lines=20` shows why"))
        })?;
        super::print(
            "berth runs. `berth token show` prints its tokens, `berth status` its state; the settings are in /etc/berth.\n",
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// `berth uninstall`
///
/// # Errors
/// A wrong command line (exit code 2), a service that does not end what it runs, or a step that failed.
pub fn uninstall(args: &[String]) -> Result<ExitCode> {
    let asked = match super::line("uninstall", args)? {
        Ok(asked) => asked,
        Err(code) => return Ok(code),
    };
    if asked.only_workloads {
        // What the package's scripts call: the rest is theirs.
        check_host(false)?;
        InstallSteps::confirmed(&["end detached runs, and stop containers".to_owned()], asked.yes)?.next();
        end_all(&asked)?;
        return Ok(ExitCode::SUCCESS);
    }
    refuse_packaged(Path::new("/"))?;
    check_host(false)?;
    let unit = fs::read_to_string(UNIT_PATH).map_err(|error| {
        Error::config("uninstall", format!("{UNIT_PATH}: {error}; `berth install` would make it"))
    })?;
    let binary = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")?.split(' ').next());
    let binary = binary.ok_or_else(|| Error::config(UNIT_PATH, "has no ExecStart="))?;
    let mut steps = vec![
        "start the service if it does not run, and have it end detached runs and containers".to_owned(),
        "stop and disable the service".to_owned(),
        format!("remove {UNIT_PATH} and {binary}"),
    ];
    if asked.purge {
        steps[0] = "start the service if it does not run, and have it delete all workspaces".to_owned();
        steps.push(format!("remove {SETTINGS} and {DATA}: tokens, images, templates, everything"));
    }
    let mut steps = InstallSteps::confirmed(&steps, asked.yes)?;
    steps.next();
    systemctl(&["start", "berth.service"])?;
    end_all(&asked)?;
    steps.next();
    systemctl(&["disable", "--now", "berth.service"])?;
    steps.next();
    remove_file(Path::new(UNIT_PATH))?;
    remove_file(Path::new(binary))?;
    systemctl(&["daemon-reload"])?;
    if asked.purge {
        steps.next();
        for folder in [DATA, SETTINGS].map(Path::new) {
            remove_folder(folder)?;
        }
    } else {
        super::print(&format!(
            "Kept: {SETTINGS} and {DATA}. `berth uninstall --purge` would have removed them.\n"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends what would outlive the service, and with `--purge` deletes the workspaces.
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
        // The default host workspace cannot be deleted, and has nothing of its own.
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
    /// Shows them and, unless `yes`, asks.
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

    /// Says which one begins.
    fn next(&mut self) {
        if let Some(step) = self.all.get(self.done) {
            eprintln!("{}/{} {step}", self.done + 1, self.all.len());
        }
        self.done += 1;
    }
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn refuse_packaged(root: &Path) -> Result<()> {
    match PACKAGED_UNITS.iter().map(|unit| below(root, Path::new(unit))).find(|unit| unit.exists()) {
        Some(unit) => Err(Error::config(
            unit.display(),
            "berth is installed as a package here; use the package manager to upgrade or remove it",
        )),
        None => Ok(()),
    }
}

fn check_host(elsewhere: bool) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::internal("A service is installed by root; run it with sudo"));
    }
    // sd_booted(3)
    if !elsewhere && !Path::new("/run/systemd/system").exists() {
        return Err(Error::internal(
            "systemd does not run here; start `berth serve` with what starts services on this machine, or write the \
             service below another folder with --root",
        ));
    }
    Ok(())
}

fn make_folder(folder: Option<&Path>) -> Result<()> {
    let Some(folder) = folder else { return Ok(()) };
    fs::create_dir_all(folder).at("make", folder)
}

/// A binary that runs cannot be written to, so it is replaced.
fn copy_binary(to: &Path) -> Result<()> {
    let itself = Path::new("/proc/self/exe");
    let same =
        fs::canonicalize(itself).ok().zip(fs::canonicalize(to).ok()).is_some_and(|(one, other)| one == other);
    if same {
        return Ok(());
    }
    make_folder(to.parent())?;
    let part = to.with_file_name(format!(".berth-{}", std::process::id()));
    let copied = (|| {
        fs::copy(itself, &part).at("write", &part)?;
        fs::set_permissions(&part, fs::Permissions::from_mode(0o755)).at("write", &part)?;
        fs::File::open(&part).and_then(|file| file.sync_all()).at("write", &part)?;
        fs::rename(&part, to).at("write", to)
    })();
    if copied.is_err() {
        let _ = fs::remove_file(&part);
    }
    copied
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("remove", path),
        _ => Ok(()),
    }
}

/// Removes a folder with all in it, unless something is still mounted there.
fn remove_folder(folder: &Path) -> Result<()> {
    if let Some(mount) = tree::mounts_below(folder)?.first() {
        return Err(Error::internal(format!(
            "{} is still mounted, so {} was kept; unmount it and remove the folder",
            mount.display(),
            folder.display()
        )));
    }
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name().and_then(|name| name.to_str()))
    else {
        return Ok(());
    };
    if folder.exists() { tree::remove_tree(parent, name) } else { Ok(()) }
}

/// Runs systemctl under the person's eyes.
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
