//! `berth doctor` and `GET /api/doctor`: what this machine can do, what it cannot and what helps, and that looking leaves
//! nothing behind, however it ends.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::procs::{self, secs, wait_for};
use crate::scratch::Scratch;
use crate::server::{BINARY, Ended, Server, Setup, run};

/// As a person starts it, in a folder of its own; `wrapper` becomes it.
fn command(scratch: &Scratch, wrapper: &[&str], args: &[&str]) -> Command {
    let words = [wrapper, &[BINARY, "doctor"], args].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).current_dir(scratch.path()).env_clear();
    command.env("PATH", std::env::var("PATH").unwrap()).env("HOME", scratch.path());
    command.env("BERTH_DATA_DIR", scratch.path().join("place/data"));
    command
}

#[track_caller]
fn doctor(scratch: &Scratch, wrapper: &[&str], args: &[&str]) -> Ended {
    scratch.folder("place");
    run(&mut command(scratch, wrapper, args), secs(60))
}

/// Its report and its exit code.
#[track_caller]
pub fn report(scratch: &Scratch, wrapper: &[&str]) -> (Value, Option<i32>) {
    let ended = doctor(scratch, wrapper, &["--json"]);
    let report = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    (report, ended.code)
}

/// The row of this name.
#[track_caller]
pub fn row<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

/// Its status, and what helps.
#[track_caller]
pub fn of<'a>(report: &'a Value, name: &str) -> (&'a str, &'a str) {
    let row = row(report, name);
    assert!(row["found"].as_str().is_some_and(|found| !found.is_empty()), "{row}");
    let status = row["status"].as_str().unwrap();
    assert_eq!(
        status == "ok",
        row.get("fix").is_none(),
        "what is not ok needs a fix, and nothing else: {row}"
    );
    (status, row["fix"].as_str().unwrap_or_default())
}

/// Every folder below a cgroup hierarchy with this in its name.
pub fn cgroups(part: &str) -> Vec<std::path::PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![Path::new("/sys/fs/cgroup").to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().contains(part) {
                    found.push(entry.path());
                }
                folders.push(entry.path());
            }
        }
    }
    found
}

/// The name of the groups of `berth doctor` by this binary.
fn group() -> String {
    use std::os::unix::fs::MetadataExt as _;
    let meta = fs::metadata(BINARY).unwrap();
    format!("berth-doctor-{:x}-{:x}", meta.dev(), meta.ino())
}

/// No file, mount or process of it is there. Groups are looked at where no other doctor can be at work.
#[track_caller]
fn nothing_left(scratch: &Scratch) {
    let place = scratch.path().join("place");
    let left: Vec<_> = fs::read_dir(&place).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
    let inner: Vec<_> = procs::mounts_below(&place).into_iter().filter(|point| *point != place).collect();
    assert!(inner.is_empty(), "{inner:?}");
    wait_for("its processes to be gone", secs(5), || procs::mentioning(&place).is_empty().then_some(()));
}

#[test]
fn this_machine_can_do_everything_that_the_tests_need() {
    crate::fixture::tools();
    let scratch = Scratch::new();
    let (report, code) = report(&scratch, &[]);
    assert_eq!((code, &report["ok"]), (Some(0), &json!(true)), "{report:#}");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert!(report["checked_at"].as_str().is_some_and(|time| time.ends_with('Z')));
    for name in [
        "kernel",
        "root",
        "programs",
        "cgroups",
        "systemd-nspawn",
        "user namespaces",
        "data folder",
        "container",
        "build debian-bookworm",
        "disk",
        "terminals",
    ] {
        assert_eq!(of(&report, name), ("ok", ""), "{name}");
    }
    for name in [
        "seccomp",
        "CVE-2026-40226",
        "limit of memory",
        "limit of swap",
        "limit of processors",
        "limit of processes",
        "limit of disk",
        "id-mapped mounts",
        "overlayfs",
        "mapped overlays",
        "build ubuntu-noble",
        "build arch-linux",
        "memory",
        "open files",
        "processes",
        "virtual links",
        "address translation",
        "forwarding",
        "mounts",
    ] {
        let (status, fix) = of(&report, name);
        assert!(status == "ok" || status == "warn" && !fix.is_empty(), "{}", row(&report, name));
    }
    nothing_left(&scratch);
}

#[test]
fn the_table_is_for_people() {
    let scratch = Scratch::new();
    let ended = doctor(&scratch, &[], &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.is_empty(), "{ended:?}");
    let line = ended.stdout.lines().find(|line| line.contains("  container  ")).unwrap();
    assert!(line.starts_with("ok ") && line.contains("started and answered in"), "{line}");
    assert!(
        ended.stdout.lines().last().unwrap().starts_with("Workspaces in containers work")
            || ended.stdout.ends_with("Everything is there.\n"),
        "{ended:?}"
    );
    nothing_left(&scratch);
}

#[test]
fn what_is_missing_is_named_with_its_package() {
    let scratch = Scratch::new();
    let hide = "for tool in systemd-nspawn debootstrap; do mount --bind /dev/null \"$(command -v $tool)\" || exit 9; done; \
                exec \"$@\"";
    let wrapper = ["unshare", "-m", "sh", "-c", hide, "sh"];
    let (report, code) = report(&scratch, &wrapper);
    assert_eq!((code, &report["ok"]), (Some(1), &json!(false)), "{report:#}");
    for (name, package) in [("systemd-nspawn", "systemd-container"), ("debootstrap", "debootstrap")] {
        let (status, fix) = of(&report, name);
        assert_eq!(status, "fail");
        assert!(fix.contains(&format!("apt-get install {package}")) && fix.contains("--setup"), "{fix}");
    }
    assert_eq!(of(&report, "container").0, "fail");
    assert_eq!(of(&report, "build debian-bookworm").0, "fail", "nothing can be built, so this is no detail");
    let ended = doctor(&scratch, &wrapper, &[]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stdout.contains("FAIL  debootstrap") && ended.stdout.contains("do not work"), "{ended:?}");
    nothing_left(&scratch);
}

#[test]
fn a_firewall_that_drops_what_it_does_not_know_is_named() {
    let scratch = Scratch::new();
    let drop = "iptables -P FORWARD DROP || exit 9; [ $0 = nft ] || mount --bind /dev/null \"$(command -v nft)\" || exit 9; \
                exec \"$@\"";
    for (reader, says, helps) in [
        ("nft", "table ip filter", "iifname \"vb*\""),
        ("iptables", "FORWARD of iptables", "-i vb+ and -o vb+"),
    ] {
        let (report, _) = report(&scratch, &["unshare", "-m", "-n", "sh", "-c", drop, reader]);
        let (status, fix) = of(&report, "forwarding");
        assert_eq!(status, "warn");
        assert!(fix.contains(helps), "{fix}");
        let found = row(&report, "forwarding")["found"].as_str().unwrap();
        assert!(found.contains(says), "{found}");
    }
}

#[test]
fn without_root_it_says_so_and_looks_at_the_rest() {
    let scratch = Scratch::new();
    let place = scratch.folder("place");
    std::os::unix::fs::chown(place, Some(65534), Some(65534)).unwrap();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let (report, code) = report(&scratch, &nobody);
    assert_eq!((code, &report["ok"]), (Some(1), &json!(false)), "{report:#}");
    assert_eq!(of(&report, "root"), ("fail", "start berth as root"));
    assert_eq!(of(&report, "programs").0, "ok");
    assert_eq!(of(&report, "data folder").0, "ok");
    assert_eq!(of(&report, "cgroups").0, "warn");
    assert!(of(&report, "container").1.contains("as root"));
    assert!(of(&report, "limit of memory").1.contains("Delegate=yes"), "{report:#}");
    nothing_left(&scratch);
    // Where it may not even look.
    let closed = scratch.folder("place/closed");
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let ended = run(command(&scratch, &nobody, &["--json"]).env("BERTH_DATA_DIR", &closed), secs(60));
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code, of(&report, "data folder").0), (Some(1), "fail"), "{report:#}");
    fs::remove_dir(closed).unwrap();
}

/// Whoever starts berth without the privilege is told, by the doctor and at the start, that memory may run out for berth
/// itself as well.
#[test]
fn a_server_that_the_kernel_may_end_for_memory_says_so() {
    let scratch = Scratch::new();
    let without = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource", "--"];
    let (told, code) = report(&scratch, &without);
    assert_eq!((code, of(&told, "oom").0), (Some(0), "warn"), "{told:#}");
    assert!(of(&told, "oom").1.contains("CAP_SYS_RESOURCE"), "{told:#}");
    let server = Setup::new().start_through(&without);
    server.stdout.line_with("the kernel may kill berth itself", secs(10)).expect("a line at the start");
    let told = server.owner().get(200, "/api/doctor");
    assert_eq!(of(&told, "oom").0, "warn", "{told:#}");
    server.stop();
    // With it there is nothing to say; this machine may lack it.
    let server = Server::start();
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", server.pid)).unwrap();
    let wanted = if score.trim() == "-900" { "ok" } else { "warn" };
    assert_eq!(of(&server.owner().get(200, "/api/doctor"), "oom").0, wanted);
    assert_eq!(server.log().contains("the kernel may kill berth itself"), wanted == "warn");
}

/// What a data folder on this mount is said to be good for.
#[track_caller]
fn on(mount: &str) -> (Value, Option<i32>) {
    let scratch = Scratch::new();
    let place = scratch.folder("place");
    for folder in ["lower", "upper", "work"] {
        scratch.folder(&format!("layers/{folder}"));
    }
    let layers = scratch.path().join("layers").display().to_string();
    let done = run(
        Command::new("sh").args(["-c", &format!("cd {layers} && mount {mount} {}", place.display())]),
        secs(10),
    );
    assert_eq!(done.code, Some(0), "{done:?}");
    let told = report(&scratch, &[]);
    nothing_left(&scratch);
    told
}

#[test]
fn a_data_folder_that_is_no_good_is_said_to_be_none() {
    let (report, code) = on("-t tmpfs -o noexec,nodev,size=2g tmpfs");
    assert_eq!(code, Some(1));
    let (status, fix) = of(&report, "data folder");
    assert_eq!(status, "fail");
    assert!(fix.contains("noexec") && fix.contains("--data-dir"), "{fix}");

    let (report, code) = on("-t tmpfs -o size=200m tmpfs");
    assert_eq!(code, Some(1));
    assert_eq!(of(&report, "disk").0, "fail");
    assert!(row(&report, "disk")["found"].as_str().unwrap().contains("MiB free of 200 MiB"), "{report:#}");

    // As in many an outer container: no layers upon layers there, and files get new owners; containers do start.
    let (report, code) = on("-t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay");
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(of(&report, "overlayfs").0, "warn");
    assert_eq!(of(&report, "mapped overlays").0, "warn");
    assert_eq!(of(&report, "container").0, "ok");
}

#[test]
fn a_systemd_that_may_have_the_known_hole_is_named() {
    let scratch = Scratch::new();
    // The version alone does not tell; the package's own list of changes does.
    let hide = "mount --bind /dev/null /usr/share/doc/systemd-container/changelog.Debian.gz && exec \"$@\"";
    let changes = Path::new("/usr/share/doc/systemd-container/changelog.Debian.gz");
    assert!(changes.exists(), "this test is for Debian");
    let (patched, _) = report(&scratch, &[]);
    assert_eq!(of(&patched, "CVE-2026-40226").0, "ok", "{patched:#}");
    let (hidden, code) = report(&scratch, &["unshare", "-m", "sh", "-c", hide, "sh"]);
    let (status, fix) = of(&hidden, "CVE-2026-40226");
    assert_eq!(status, "warn");
    assert!(fix.contains("259.4"), "{fix}");
    assert_eq!(code, Some(0), "berth itself never reads such a file");
}

#[test]
fn where_root_is_not_really_root_it_says_what_that_one_may_not() {
    // As in an outer container that was not made for this.
    let scratch = Scratch::new();
    let switch_off = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
    let wrapper = ["unshare", "--user", "--map-root-user", "sh", "-c", switch_off, "sh"];
    let (report, code) = report(&scratch, &wrapper);
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(of(&report, "user namespaces"), ("fail", "sysctl -w user.max_user_namespaces=65536"));
    assert!(
        row(&report, "user namespaces")["found"].as_str().unwrap().contains("as many as allowed"),
        "{report:#}"
    );
    let (status, fix) = of(&report, "data folder");
    assert!(status == "fail" && fix.contains("CAP_MKNOD"), "{report:#}");
    assert_eq!(of(&report, "container").0, "fail");
    assert_eq!(of(&report, "id-mapped mounts").0, "warn");
    nothing_left(&scratch);
}

#[test]
fn it_takes_the_flags_of_serve_and_refuses_others() {
    let scratch = Scratch::new();
    let key = scratch.file("key.gpg", "k");
    let keyring = format!("--keyring=ubuntu-noble={}", key.display());
    let ended = doctor(&scratch, &[], &["--json", &keyring, "--max-connections=60000"]);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(of(&report, "build ubuntu-noble"), ("ok", ""));
    assert!(row(&report, "build ubuntu-noble")["found"].as_str().unwrap().contains("gutsy"), "{report:#}");
    // Without a keyring of its own: the one that berth carries.
    assert_eq!(of(&report, "build ubuntu-jammy"), ("ok", ""));
    let found = row(&report, "build ubuntu-jammy")["found"].as_str().unwrap();
    let keys = ["Ubuntu's archive keys, which are part of berth", "ubuntu-archive-keyring"];
    assert!(keys.iter().any(|keys| found.contains(keys)), "{report:#}");
    let (status, fix) = of(&report, "open files");
    assert!(status == "ok" || fix.contains("LimitNOFILE=240040"), "{fix}");
    for args in [&["--nonsense"][..], &["--port=x"], &["now"]] {
        let ended = doctor(&scratch, &[], args);
        assert_eq!(ended.code, Some(2), "{ended:?}");
    }
    nothing_left(&scratch);
}

#[test]
fn an_end_at_any_moment_leaves_nothing() {
    let scratch = Scratch::new();
    scratch.folder("place");
    let end = |signal: Signal, after: Duration| {
        let mut command = command(&scratch, &[], &["--json"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Time is the test here: there is no other handle for "somewhere in the middle".
        thread::sleep(after);
        procs::signal(child.id(), signal);
        wait_for("its end", secs(20), || child.try_wait().unwrap());
    };
    for step in 0..8 {
        end(Signal::INT, Duration::from_millis(50 + step * 60));
        nothing_left(&scratch);
    }
    // Nobody can clean up after a KILL at once; the next one does.
    for step in 0..8 {
        end(Signal::KILL, Duration::from_millis(50 + step * 60));
    }
    let (_, code) = report(&scratch, &[]);
    assert_eq!(code, Some(0));
    nothing_left(&scratch);
    // The other tests look at this machine with the same binary: one of them may be at work, but none for ever.
    wait_for("its groups to be gone", secs(60), || cgroups(&group()).is_empty().then_some(()));
}

#[test]
fn the_server_tells_the_same() {
    let server = Server::start();
    server.anyone().refused(401, "unauthorized", "GET", "/api/doctor", None);
    // However many ask at once, it looks once.
    let reports: Vec<Value> = thread::scope(|scope| {
        let asked: Vec<_> =
            (0..8).map(|_| scope.spawn(|| server.collaborator().get(200, "/api/doctor"))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    for report in &reports {
        assert_eq!(report["checked_at"], reports[0]["checked_at"]);
        assert_eq!(of(report, "container"), ("ok", ""), "{report:#}");
    }
    let left: Vec<_> = fs::read_dir(&server.data)
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("doctor"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    for secret in [crate::server::CLIENT_TOKEN, crate::server::HOST_TOKEN] {
        assert!(!reports[0].to_string().contains(secret));
    }
}

#[test]
fn a_server_that_stops_does_not_wait_for_the_doctor() {
    let setup = Setup::new();
    let server = setup.start();
    let data = setup.data_dir().to_owned();
    thread::scope(|scope| {
        let owner = server.owner();
        scope.spawn(move || owner.try_send("GET", "/api/doctor", &[], None));
        wait_for("the examination", secs(10), || {
            let names = fs::read_dir(&data).unwrap().flatten().map(|entry| entry.file_name());
            names.into_iter().any(|name| name.to_string_lossy().starts_with(".berth-doctor-")).then_some(())
        });
        assert_eq!(server.stop().code(), Some(0));
    });
    assert!(procs::mounts_below(&data).is_empty());
    let left = fs::read_dir(&data).unwrap().flatten();
    assert!(left.into_iter().all(|entry| !entry.file_name().to_string_lossy().contains("doctor")));
}
