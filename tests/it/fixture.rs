//! Fixtures of the container tests: the required tools, a base image that was bootstrapped once and is cached in
//! `it-cache` in the target folder, one shared server, and workspaces that are deleted on drop.

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};

use serde_json::{Value, json};

use crate::client::{Client, Reply};
use crate::procs::{secs, wait_for};
use crate::scratch::Scratch;
use crate::server::{BINARY, NIL, Server, Setup};

/// The distribution of every test container: the family of this machine, so that its mirror and keyring can be used.
pub const DISTRO: &str = "debian-bookworm";

/// A workspace with its server, a client and its id.
pub struct Place<'a> {
    pub server: &'a Server,
    pub client: Client,
    pub id: String,
    /// The root of a container, or the folder of a host workspace.
    pub root: PathBuf,
    /// Whether it is deleted on drop; not the default host workspace.
    ours: bool,
}

impl<'a> Place<'a> {
    /// The default host workspace.
    pub fn host(server: &'a Server) -> Place<'a> {
        Place { server, client: server.owner(), id: NIL.into(), root: server.work.clone(), ours: false }
    }

    /// Creates a host workspace.
    #[track_caller]
    pub fn another_host(server: &'a Server) -> Place<'a> {
        let client = server.owner();
        let created = client.post(200, "/api/workspaces", json!({"name": "another"}));
        let root = PathBuf::from(created["path"].as_str().unwrap());
        Place { server, client, id: created["id"].as_str().unwrap().to_owned(), root, ours: true }
    }

    /// Creates a container workspace without building it; `extra` has further fields of the request.
    #[track_caller]
    pub fn pending(server: &'a Server, extra: Value) -> Place<'a> {
        tools();
        let mut body = json!({"name": "box", "workspace_type": "container", "distro": DISTRO});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let client = server.owner();
        Place::of(server, &client.post(200, "/api/workspaces", body))
    }

    /// The workspace that a create request returned.
    pub fn of(server: &'a Server, created: &Value) -> Place<'a> {
        let root = PathBuf::from(created["path"].as_str().unwrap());
        let id = created["id"].as_str().unwrap().to_owned();
        Place { server, client: server.owner(), id, root, ours: true }
    }

    /// Creates and builds a container workspace.
    #[track_caller]
    pub fn ready(server: &'a Server, extra: Value) -> Place<'a> {
        let place = Place::pending(server, extra);
        place.build();
        place
    }

    pub fn path(&self, call: &str) -> String {
        format!("/api/workspaces/{}{call}", self.id)
    }

    #[track_caller]
    pub fn show(&self) -> Value {
        self.client.get(200, &self.path(""))
    }

    /// Builds the workspace and waits until it is ready.
    #[track_caller]
    pub fn build(&self) {
        let reply = self.client.call("POST", &self.path("/build"), None).expect(200).value();
        assert_eq!(reply["status"], "building", "{reply}");
        let done = self.settled();
        assert_eq!(done["status"], "ready", "{done}\n{}", self.init_log());
    }

    /// Waits for the end of a build.
    #[track_caller]
    pub fn settled(&self) -> Value {
        // A real debootstrap over a slow connection takes longer than any other step of a test.
        wait_for("a build to end", secs(900), || {
            let now = self.show();
            (now["status"] != "building").then_some(now)
        })
    }

    #[track_caller]
    pub fn init_log(&self) -> String {
        let reply = self.client.get(200, &self.path("/init-log"));
        reply["content"].as_str().unwrap().to_owned()
    }

    /// Pid on the host of the container's first process.
    #[track_caller]
    pub fn init(&self) -> u32 {
        let init = self.server.owner().get(200, &self.path("/debug"))["machine"]["init_pid"].clone();
        init.as_u64().expect("the container is not running") as u32
    }

    /// Path to a file of the running container on the host, through /proc: the root need not be mounted on the host.
    #[track_caller]
    pub fn inside(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/{file}", self.init()))
    }

    #[track_caller]
    pub fn exec(&self, body: Value) -> Value {
        self.client.post(200, &self.path("/exec"), body)
    }

    /// Runs a command that must exit with 0, and returns its stdout.
    #[track_caller]
    pub fn sh(&self, command: &str) -> String {
        let reply = self.exec(json!({"command": command, "timeout_secs": 60}));
        assert_eq!(reply["exit_code"], 0, "{command}: {reply}");
        reply["stdout"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn exec_refused(&self, code: &str, body: Value) -> Value {
        self.client.refused(400, code, "POST", &self.path("/exec"), Some(body))
    }

    /// Deletes the workspace.
    #[track_caller]
    pub fn delete(mut self) -> Reply {
        self.ours = false;
        self.client.call("DELETE", &self.path(""), None).expect(200)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.ours {
            let _ = self.server.owner().try_send("DELETE", &self.path(""), &[], None);
        }
    }
}

/// The shared server of all container tests; it ends with this process, even if this process is killed.
#[track_caller]
pub fn shared() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(|| {
        // Collaborators may run commands in its containers; other tests cover manual mode.
        let server = seeded().arg("--approval=auto").start();
        guard(&server);
        server
    })
}

/// A container workspace on the shared server that tests may not change.
#[track_caller]
pub fn shared_box() -> Place<'static> {
    static BOX: Mutex<Option<(String, PathBuf)>> = Mutex::new(None);
    let server = shared();
    let mut created = BOX.lock().unwrap_or_else(|poison| poison.into_inner());
    if created.is_none() {
        let mut place =
            Place::ready(server, json!({"name": "shared box", "env_vars": {"FROM_WORKSPACE": "ws"}}));
        place.ours = false;
        *created = Some((place.id.clone(), place.root.clone()));
    }
    let (id, root) = created.clone().unwrap();
    Place { server, client: server.owner(), id, root, ours: false }
}

/// A set-up with the base image in its data folder.
#[track_caller]
pub fn seeded() -> Setup {
    let setup = Setup::in_folder(Scratch::in_memory());
    fs::create_dir_all(setup.data_dir()).unwrap();
    copy_image(setup.data_dir());
    setup
}

/// Copies the base image into a data folder.
#[track_caller]
pub fn copy_image(data: &Path) {
    copy(&cache().join("images"), &data.join("images"));
}

/// Path of the base image's files in a data folder.
#[track_caller]
pub fn image_root(data: &Path) -> PathBuf {
    let images = data.join("images");
    let id = crate::server::read(images.join("names").join(DISTRO));
    images.join(id.trim()).join("root")
}

/// Panics with the name of the package if a tool that container workspaces need is missing.
#[track_caller]
pub fn tools() {
    for (tool, package) in [
        ("systemd-nspawn", "systemd-container"),
        ("debootstrap", "debootstrap"),
        ("setpriv", "util-linux"),
        ("umount", "mount"),
    ] {
        let path = std::env::var("PATH").unwrap();
        assert!(
            path.split(':').any(|folder| Path::new(folder).join(tool).exists()),
            "container tests need {tool}: apt-get install {package}"
        );
    }
    let keyring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
    assert!(keyring.exists(), "container tests need Debian's keys: apt-get install debian-archive-keyring");
}

/// Observations of the one real bootstrap.
#[track_caller]
pub fn bootstrap_facts() -> Value {
    serde_json::from_slice(&fs::read(cache().join("facts.json")).unwrap()).unwrap()
}

/// `it-cache` in the target folder: `images/` as the server wrote it, and `facts.json`. Created by the first test that
/// needs it; if that fails, the others fail at once.
#[track_caller]
fn cache() -> &'static Path {
    static CACHE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let created = CACHE.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("it-cache");
        if path.join("images/names").join(DISTRO).is_file() {
            return Some(path);
        }
        panic::catch_unwind(|| bootstrap(&path)).ok().map(|()| path)
    });
    created
        .as_deref()
        .expect("there is no base image: the bootstrap failed; the first container test reports the cause")
}

/// Builds a Debian with the real server, and keeps its images.
fn bootstrap(path: &Path) {
    tools();
    eprintln!("building the base image for the tests, once, from this machine's package mirror …");
    let setup = Setup::new();
    let server = setup.start();
    let place = Place::pending(&server, json!({"name": "first"}));
    place.client.call("POST", &place.path("/build"), None).expect(200);
    let mut seen_lengths = Vec::new();
    wait_for("the first build to end", secs(1200), || {
        let log = place.client.get(200, &place.path("/init-log"));
        let length = log["content"].as_str().unwrap().len();
        if seen_lengths.last() != Some(&length) {
            seen_lengths.push(length);
        }
        (place.show()["status"] != "building").then_some(())
    });
    let done = place.show();
    let log = place.init_log();
    assert_eq!(done["status"], "ready", "{done}\n{log}");
    let debian = place.sh("cat /etc/debian_version");
    place.delete();
    server.stop();
    let facts = json!({"log": log, "log_lengths_seen": seen_lengths, "debian_version": debian});
    let next = path.with_extension("new");
    let _ = fs::remove_dir_all(&next);
    fs::create_dir_all(&next).unwrap();
    copy(&setup.data_dir().join("images"), &next.join("images"));
    fs::write(next.join("facts.json"), serde_json::to_vec_pretty(&facts).unwrap()).unwrap();
    let _ = fs::remove_dir_all(path);
    fs::rename(&next, path).unwrap();
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").args(["-a", "-T", "--reflink=auto"]).arg(from).arg(to).status().unwrap();
    assert!(done.success(), "cp -a {} {}", from.display(), to.display());
}

/// Starts a shell that ends the server and removes its folder after this process exits, since statics are never
/// dropped. The shell waits for EOF on a pipe that this process holds open, and checks that the pid is still a berth
/// server.
pub fn guard(server: &Server) {
    let script = r#"
        read -r _
        ours() { [ "$(readlink "/proc/$1/exe")" = "$2" ]; }
        ours "$1" "$2" && kill -TERM "$1"
        for _ in $(seq 150); do ours "$1" "$2" || break; sleep 0.1; done
        ours "$1" "$2" && kill -KILL "$1"
        umount -l "$3" 2>/dev/null
        grep -q " $3[/ ]" /proc/self/mountinfo || rm -rf --one-file-system "$3"
    "#;
    let exe = fs::canonicalize(BINARY).unwrap();
    let guard = Command::new("sh")
        .args(["-c", script, "guard", &server.pid.to_string()])
        .arg(exe)
        .arg(server.scratch().path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The pipe stays open until this process exits.
    static GUARDS: Mutex<Vec<std::process::Child>> = Mutex::new(Vec::new());
    GUARDS.lock().unwrap().push(guard);
}

/// Runs the test with a server for each root backend that works on the disk of the tests.
pub fn on_each_backend(test: impl Fn(&Server, &str)) {
    for way in ["overlay", "copy"] {
        let server = seeded().arg(format!("--root-backend={way}")).start();
        eprintln!("--root-backend={way}");
        test(&server, way);
        server.stop();
    }
}
