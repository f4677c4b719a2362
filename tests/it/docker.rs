//! A Docker engine for the tests: Debian's packages, unpacked into `it-docker` in the target folder and not installed,
//! in namespaces that end with the engine. All tests that run at the same time share one engine.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};

use rustix::process::Signal;

use crate::procs::{self, secs, wait_for};
use crate::scratch::Scratch;
use crate::server::{Ended, Printed, run};

/// The default image of berth.
pub const IMAGE: &str = "debian:bookworm-slim";

/// Programs in the image.
const PROGRAMS: [&str; 17] = [
    "sh", "bash", "cat", "cp", "chmod", "env", "id", "ls", "mkdir", "mv", "rm", "setsid", "sleep", "stat",
    "touch", "uname", "ln",
];

/// A running engine.
pub struct Docker {
    scratch: Scratch,
    daemon: Child,
    log: Arc<Printed>,
    programs: PathBuf,
}

impl Docker {
    /// Returns the engine that other tests use at this moment, or starts a new one with the image.
    pub fn shared() -> Arc<Docker> {
        static SHARED: Mutex<Weak<Docker>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(docker) = shared.upgrade() {
            return docker;
        }
        let docker = Arc::new(Docker::start());
        *shared = Arc::downgrade(&docker);
        docker
    }

    fn start() -> Docker {
        let programs = unpacked("it-docker", &DOCKER);
        let scratch = Scratch::new();
        let script = "mount -t tmpfs -o mode=711 it-docker $AT/data && ip link set lo up && exec dockerd \
            --data-root $AT/data --exec-root $AT/exec --pidfile $AT/pid --host unix://$AT/sock --iptables=false \
            --ip6tables=false --ip-forward=false --ip-masq=false --storage-driver overlay2 \
            --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent $GROUP";
        Docker::run(scratch, &[&programs], script)
    }

    /// Podman with its service of Docker's API. It shares nothing with other engines.
    pub fn podman() -> Docker {
        let (docker, podman) = (unpacked("it-docker", &DOCKER), unpacked("it-podman", &PODMAN));
        let scratch = Scratch::new();
        let at = scratch.path().display();
        let programs = podman.display();
        // Debian's crun refuses hosts that have both versions of cgroups.
        let runc = docker.join("usr/sbin/runc");
        scratch.file(
            "containers.conf",
            format!(
                "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"runc\"\n\
                 conmon_path = [\"{programs}/usr/bin/conmon\"]\nhelper_binaries_dir = [\"{programs}/usr/lib/podman\"]\n\
                 [engine.runtimes]\nrunc = [\"{}\"]\n\
                 [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{at}/data/networks\"\n",
                runc.display()
            ),
        );
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{at}/data/graph\"\nrunroot = \"{at}/data/run\"\n"
        );
        scratch.file("storage.conf", storage);
        let policy = "{\"default\": [{\"type\": \"insecureAcceptAnything\"}]}";
        scratch.file("home/.config/containers/policy.json", policy);
        // Podman has conmon start it once more, without its environment, to remove a container that has ended.
        let script = "(echo include /etc/ld.so.conf; echo $LD_LIBRARY_PATH | tr : '\\n') > $AT/libraries && \
            ldconfig -f $AT/libraries -C $AT/cache && mount --bind $AT/cache /etc/ld.so.cache && \
            mount -t tmpfs -o mode=711 it-podman $AT/data && mount -t tmpfs run /run && ip link set lo up && \
            export HOME=$AT/home CONTAINERS_CONF=$AT/containers.conf CONTAINERS_STORAGE_CONF=$AT/storage.conf && \
            exec podman system service --time 0 unix://$AT/sock";
        Docker::run(scratch, &[&podman, &docker], script)
    }

    /// Runs the script that becomes the engine, and gives it the image.
    fn run(scratch: Scratch, all: &[&Path], script: &str) -> Docker {
        let at = scratch.path().to_str().unwrap().to_owned();
        scratch.folder("data");
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child"]);
        command
            .args(["--mount-proc", "sh", "-c", script])
            .env("AT", &at)
            .env("GROUP", group())
            .env("LD_LIBRARY_PATH", all.iter().map(|one| libraries(one)).collect::<Vec<_>>().join(":"));
        command.env("PATH", path_of(all)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut daemon = command.spawn().expect("util-linux");
        let log = Printed::follow(daemon.stderr.take().unwrap());
        let programs = all.last().unwrap().to_path_buf();
        let docker = Docker { scratch, daemon, log, programs };
        wait_for(&format!("dockerd: {}", docker.log.text()), secs(60), || {
            (docker.ask(&["version"]).code == Some(0)).then_some(())
        });
        docker.import(IMAGE, &[]);
        docker
    }

    /// Creates an image of a few of this machine's programs and these.
    pub fn import(&self, image: &str, programs: &[&str]) {
        let folder = Scratch::new();
        let root = root(&folder, programs);
        let mut import = self.command("sh");
        import.args(["-c", "tar -C \"$1\" -c . | docker import - \"$2\"", "sh"]).arg(root).arg(image);
        let imported = run(&mut import, secs(120));
        assert_eq!(imported.code, Some(0), "{imported:?}{}", self.log.text());
    }

    /// Path of the program `docker`.
    pub fn program(&self) -> PathBuf {
        self.programs.join("usr/bin/docker")
    }

    /// Value of `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}/sock", self.scratch.path().display())
    }

    /// A process in the engine's network namespace.
    pub fn pid(&self) -> u32 {
        self.daemon.id()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("DOCKER_HOST", self.host()).env("PATH", path_of(&[&self.programs]));
        command.env("HOME", self.scratch.path());
        command
    }

    /// Runs `docker` and waits for its exit.
    pub fn ask(&self, words: &[&str]) -> Ended {
        run(self.command(self.program().to_str().unwrap()).args(words), secs(60))
    }

    /// The names of all containers of the engine.
    pub fn containers(&self) -> Vec<String> {
        let output = self.ask(&["ps", "--all", "--format", "{{.Names}}"]);
        assert_eq!(output.code, Some(0), "{output:?}");
        output.stdout.lines().map(str::to_owned).collect()
    }

    /// Output of `docker inspect`.
    #[track_caller]
    pub fn inspect(&self, name: &str) -> serde_json::Value {
        let output = self.ask(&["inspect", name]);
        assert_eq!(output.code, Some(0), "{output:?}");
        serde_json::from_str::<serde_json::Value>(&output.stdout).unwrap()[0].take()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // The daemon is the first process of its pid namespace: all other processes in it end with it.
        let child = procs::all().into_iter().find(|pid| procs::parent(*pid) == Some(self.daemon.id()));
        if let Some(child) = child {
            procs::signal(child, Signal::TERM);
            let deadline = std::time::Instant::now() + secs(15);
            while procs::alive(child) && std::time::Instant::now() < deadline {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        // Empty by now: one group of cgroup v2, or one of each controller.
        let top = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path());
        for folder in controllers.chain([top.to_owned()]) {
            let _ = fs::remove_dir(format!("{}{}", folder.display(), group()));
        }
    }
}

/// The parent cgroup of the containers.
fn group() -> String {
    format!("/it-docker-{}", std::process::id())
}

fn path_of(all: &[&Path]) -> String {
    let folders =
        all.iter().flat_map(|one| ["usr/bin", "usr/sbin"].map(|bin| one.join(bin).display().to_string()));
    folders.chain([std::env::var("PATH").unwrap()]).collect::<Vec<_>>().join(":")
}

/// Folders of shared libraries that this machine may lack.
fn libraries(programs: &Path) -> String {
    let folders = ["usr/lib", "lib"].map(|lib| programs.join(lib));
    let found = folders.iter().filter_map(|lib| fs::read_dir(lib).ok()).flatten().flatten();
    let found: Vec<String> = found.map(|entry| entry.path().display().to_string()).collect();
    found.join(":")
}

/// Debian's packages of each engine.
const DOCKER: [&str; 6] = ["docker.io", "containerd", "runc", "libdevmapper1.02.1", "libseccomp2", "tini"];
const PODMAN: [&str; 7] =
    ["podman", "conmon", "netavark", "aardvark-dns", "libsubid4", "libgpgme11", "libassuan0"];

/// An engine's programs, downloaded once into a folder of the target folder.
fn unpacked(name: &str, packages: &[&str]) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let programs = target.join(name);
    if programs.join("usr/bin").exists() {
        return programs;
    }
    let scratch = Scratch::new();
    let script = "set -e; cd \"$1\"; shift; apt-get -qq download \"$@\"; \
        for package in *.deb; do dpkg-deb -x \"$package\" root; done";
    let ended =
        run(Command::new("sh").args(["-c", script, "sh"]).arg(scratch.path()).args(packages), secs(300));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    // A concurrent test process may have renamed its folder first.
    let _ = fs::rename(scratch.path().join("root"), &programs);
    assert!(programs.join("usr/bin").exists(), "{ended:?}");
    programs
}

/// Creates a small root from programs of this machine, which is faster than a download.
fn root(scratch: &Scratch, programs: &[&str]) -> PathBuf {
    let root = scratch.folder("root");
    for folder in ["usr/bin", "usr/lib", "etc", "tmp", "proc", "sys", "dev", "root"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
    fs::copy("/etc/os-release", root.join("usr/lib/os-release")).unwrap();
    std::os::unix::fs::symlink("usr/bin", root.join("bin")).unwrap();
    let script = "set -e; cd \"$0\"; for name in \"$@\"; do from=$(command -v $name); cp -L $from usr/bin/; \
        ldd $from | grep -o '/[^ ]*' | sort -u; done | sort -u | while read library; do \
        mkdir -p .$(dirname $library); cp -Ln $library .$library; done; \
        for name in libpthread.so.0 libdl.so.2 libm.so.6 librt.so.1; do \
        from=$(ldconfig -p | grep -o \"/.*/$name$\" | head -1); test -z $from || \
        { mkdir -p .$(dirname $from); cp -Ln $from .$from; }; done";
    let ended =
        run(Command::new("sh").args(["-c", script]).arg(&root).args(PROGRAMS).args(programs), secs(60));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    root
}
