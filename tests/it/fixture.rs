//! What container tests start from: the tools, a base image that was really bootstrapped once and is kept in
//! `it-cache` in the target folder, one server that all of them share, and workspaces that are deleted with their owner.

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

/// What every container here is built from: this machine's own family, so its own mirror and keyring serve.
pub const DISTRO: &str = "debian-bookworm";

/// A workspace with everything that a test wants to do in it.
pub struct Place<'a> {
    pub server: &'a Server,
    pub client: Client,
    pub id: String,
    /// A container's root, or a host workspace's folder.
    pub root: PathBuf,
    /// Delete it in the end; not the default host workspace.
    ours: bool,
}

impl<'a> Place<'a> {
    /// The default host workspace.
    pub fn host(server: &'a Server) -> Place<'a> {
        Place { server, client: server.owner(), id: NIL.into(), root: server.work.clone(), ours: false }
    }

    /// A host workspace of its own.
    #[track_caller]
    pub fn another_host(server: &'a Server) -> Place<'a> {
        let client = server.owner();
        let made = client.post(200, "/api/workspaces", json!({"name": "another"}));
        let root = PathBuf::from(made["path"].as_str().unwrap());
        Place { server, client, id: made["id"].as_str().unwrap().to_owned(), root, ours: true }
    }

    /// A container workspace that has not been built; `extra` are further fields of its creation.
    #[track_caller]
    pub fn pending(server: &'a Server, extra: Value) -> Place<'a> {
        tools();
        let mut body = json!({"name": "box", "workspace_type": "container", "distro": DISTRO});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let client = server.owner();
        Place::of(server, &client.post(200, "/api/workspaces", body))
    }

    /// One that has just been made.
    pub fn of(server: &'a Server, made: &Value) -> Place<'a> {
        let root = PathBuf::from(made["path"].as_str().unwrap());
        let id = made["id"].as_str().unwrap().to_owned();
        Place { server, client: server.owner(), id, root, ours: true }
    }

    /// A built one.
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

    /// Builds it and waits until it is ready.
    #[track_caller]
    pub fn build(&self) {
        let told = self.client.call("POST", &self.path("/build"), None).expect(200).value();
        assert_eq!(told["status"], "building", "{told}");
        let done = self.settled();
        assert_eq!(done["status"], "ready", "{done}\n{}", self.init_log());
    }

    /// Waits for the end of a build.
    #[track_caller]
    pub fn settled(&self) -> Value {
        // A real debootstrap over a slow line is the longest thing that any test does.
        wait_for("a build to end", secs(900), || {
            let now = self.show();
            (now["status"] != "building").then_some(now)
        })
    }

    #[track_caller]
    pub fn init_log(&self) -> String {
        let told = self.client.get(200, &self.path("/init-log"));
        told["content"].as_str().unwrap().to_owned()
    }

    /// The first process of the running container.
    #[track_caller]
    pub fn init(&self) -> u32 {
        let init = self.server.owner().get(200, &self.path("/debug"))["machine"]["init_pid"].clone();
        init.as_u64().expect("the container does not run") as u32
    }

    /// Where this process finds a file of the running container: its root need not be mounted on the host.
    #[track_caller]
    pub fn inside(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/{file}", self.init()))
    }

    #[track_caller]
    pub fn exec(&self, body: Value) -> Value {
        self.client.post(200, &self.path("/exec"), body)
    }

    /// Runs a command that must end with 0, and returns its stdout.
    #[track_caller]
    pub fn sh(&self, command: &str) -> String {
        let told = self.exec(json!({"command": command, "timeout_secs": 60}));
        assert_eq!(told["exit_code"], 0, "{command}: {told}");
        told["stdout"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn exec_refused(&self, code: &str, body: Value) -> Value {
        self.client.refused(400, code, "POST", &self.path("/exec"), Some(body))
    }

    /// Deletes it now.
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

/// The one server of all container tests; it ends with this process, whatever ends this process.
#[track_caller]
pub fn shared() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(|| {
        // Collaborators may run commands in its containers; what manual mode does is for other tests.
        let server = seeded().arg("--approval=auto").start();
        guard(&server);
        server
    })
}

/// A container workspace on the shared server that nobody changes.
#[track_caller]
pub fn shared_box() -> Place<'static> {
    static BOX: Mutex<Option<(String, PathBuf)>> = Mutex::new(None);
    let server = shared();
    let mut made = BOX.lock().unwrap_or_else(|poison| poison.into_inner());
    if made.is_none() {
        let mut place =
            Place::ready(server, json!({"name": "shared box", "env_vars": {"FROM_WORKSPACE": "ws"}}));
        place.ours = false;
        *made = Some((place.id.clone(), place.root.clone()));
    }
    let (id, root) = made.clone().unwrap();
    Place { server, client: server.owner(), id, root, ours: false }
}

/// A set-up whose data folder already has the base image.
#[track_caller]
pub fn seeded() -> Setup {
    let setup = Setup::in_folder(Scratch::in_memory());
    fs::create_dir_all(setup.data_dir()).unwrap();
    copy_image(setup.data_dir());
    setup
}

/// Gives a data folder the base image.
#[track_caller]
pub fn copy_image(data: &Path) {
    copy(&cache().join("images"), &data.join("images"));
}

/// The tree of the base image in a data folder.
#[track_caller]
pub fn image_root(data: &Path) -> PathBuf {
    let images = data.join("images");
    let id = crate::server::read(images.join("names").join(DISTRO));
    images.join(id.trim()).join("root")
}

/// Fails with the name of the package, when a tool that container workspaces need is not there.
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

/// What the one real bootstrap was seen to do.
#[track_caller]
pub fn bootstrap_facts() -> Value {
    serde_json::from_slice(&fs::read(cache().join("facts.json")).unwrap()).unwrap()
}

/// `it-cache` in the target folder: `images/` as the server has made it, and `facts.json`. Made by the first test that asks; when
/// that fails, the others fail at once.
#[track_caller]
fn cache() -> &'static Path {
    static CACHE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let made = CACHE.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("it-cache");
        if path.join("images/names").join(DISTRO).is_file() {
            return Some(path);
        }
        panic::catch_unwind(|| bootstrap(&path)).ok().map(|()| path)
    });
    made.as_deref().expect("there is no base image: the bootstrap failed; the first container test says why")
}

/// Lets the real server build a real Debian, and keeps its images.
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

/// A static is never dropped: a shell waits for the end of our pipe, which is our own end, then ends the server,
/// if that process still is our binary, and removes its folder.
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
    // Its stdin stays open for as long as we live.
    static GUARDS: Mutex<Vec<std::process::Child>> = Mutex::new(Vec::new());
    GUARDS.lock().unwrap().push(guard);
}

/// One server for each way of making roots that works on this machine's test disk.
pub fn on_each_backend(test: impl Fn(&Server, &str)) {
    for way in ["overlay", "copy"] {
        let server = seeded().arg(format!("--root-backend={way}")).start();
        eprintln!("--root-backend={way}");
        test(&server, way);
        server.stop();
    }
}
