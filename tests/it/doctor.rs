//! `berth doctor` and `GET /api/doctor`: the supported and missing features of this machine with their fixes. The
//! examination leaves nothing behind, however it ends.

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

/// The command in a scratch folder, executed by `wrapper`.
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

/// Returns the report and the exit code.
#[track_caller]
pub fn report(scratch: &Scratch, wrapper: &[&str]) -> (Value, Option<i32>) {
    let ended = doctor(scratch, wrapper, &["--json"]);
    let report = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    (report, ended.code)
}

/// The row with this name.
#[track_caller]
pub fn row<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

/// Status and fix of a row.
#[track_caller]
pub fn of<'a>(report: &'a Value, name: &str) -> (&'a str, &'a str) {
    let row = row(report, name);
    assert!(row["found"].as_str().is_some_and(|found| !found.is_empty()), "{row}");
    let status = row["status"].as_str().unwrap();
    assert_eq!(
        status == "ok",
        row.get("fix").is_none(),
        "exactly the rows that are not ok need a fix: {row}"
    );
    (status, row["fix"].as_str().unwrap_or_default())
}

/// Returns every folder below a cgroup hierarchy with this in its name.
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

/// The name of the cgroups of `berth doctor` with this binary.
fn group() -> String {
    use std::os::unix::fs::MetadataExt as _;
    let meta = fs::metadata(BINARY).unwrap();
    format!("berth-doctor-{:x}-{:x}", meta.dev(), meta.ino())
}

/// Checks that no file, mount or process of the doctor remains. Cgroups are checked only where no other doctor can be
/// running.
#[track_caller]
fn nothing_left(scratch: &Scratch) {
    let place = scratch.path().join("place");
    let remaining: Vec<_> = fs::read_dir(&place).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(remaining.is_empty(), "{remaining:?}");
    let inner: Vec<_> = procs::mounts_below(&place).into_iter().filter(|point| *point != place).collect();
    assert!(inner.is_empty(), "{inner:?}");
    wait_for("its processes to exit", secs(5), || procs::mentioning(&place).is_empty().then_some(()));
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
fn the_output_is_a_readable_table() {
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
fn missing_tools_are_reported_with_their_packages() {
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
    assert_eq!(of(&report, "build debian-bookworm").0, "fail", "nothing can be built, which is a failure");
    let ended = doctor(&scratch, &wrapper, &[]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stdout.contains("FAIL  debootstrap") && ended.stdout.contains("do not work"), "{ended:?}");
    nothing_left(&scratch);
}

#[test]
fn a_firewall_that_drops_forwarded_traffic_is_reported() {
    let scratch = Scratch::new();
    let drop = "iptables -P FORWARD DROP || exit 9; [ $0 = nft ] || mount --bind /dev/null \"$(command -v nft)\" || exit 9; \
                exec \"$@\"";
    for (reader, finding, fix_part) in [
        ("nft", "table ip filter", "iifname \"vb*\""),
        ("iptables", "FORWARD of iptables", "-i vb+ and -o vb+"),
    ] {
        let (report, _) = report(&scratch, &["unshare", "-m", "-n", "sh", "-c", drop, reader]);
        let (status, fix) = of(&report, "forwarding");
        assert_eq!(status, "warn");
        assert!(fix.contains(fix_part), "{fix}");
        let found = row(&report, "forwarding")["found"].as_str().unwrap();
        assert!(found.contains(finding), "{found}");
    }
}

#[test]
fn without_root_the_other_checks_still_run() {
    let scratch = Scratch::new();
    let place = scratch.folder("place");
    std::os::unix::fs::chown(place, Some(65534), Some(65534)).unwrap();
    let unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let (report, code) = report(&scratch, &unprivileged);
    assert_eq!((code, &report["ok"]), (Some(1), &json!(false)), "{report:#}");
    assert_eq!(of(&report, "root"), ("fail", "start berth as root"));
    assert_eq!(of(&report, "programs").0, "ok");
    assert_eq!(of(&report, "data folder").0, "ok");
    assert_eq!(of(&report, "cgroups").0, "warn");
    assert!(of(&report, "container").1.contains("as root"));
    assert!(of(&report, "limit of memory").1.contains("Delegate=yes"), "{report:#}");
    nothing_left(&scratch);
    // A folder that may not even be listed.
    let closed = scratch.folder("place/closed");
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let ended = run(command(&scratch, &unprivileged, &["--json"]).env("BERTH_DATA_DIR", &closed), secs(60));
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code, of(&report, "data folder").0), (Some(1), "fail"), "{report:#}");
    fs::remove_dir(closed).unwrap();
}

/// Without CAP_SYS_RESOURCE, the doctor and the server's start-up log warn that the kernel may kill berth itself when
/// memory runs out.
#[test]
fn a_server_that_the_oom_killer_may_choose_warns() {
    let scratch = Scratch::new();
    let without = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource", "--"];
    let (reply, code) = report(&scratch, &without);
    assert_eq!((code, of(&reply, "oom").0), (Some(0), "warn"), "{reply:#}");
    assert!(of(&reply, "oom").1.contains("CAP_SYS_RESOURCE"), "{reply:#}");
    let server = Setup::new().start_through(&without);
    server.stdout.line_with("the kernel may kill berth itself", secs(10)).expect("no warning at the start");
    let reply = server.owner().get(200, "/api/doctor");
    assert_eq!(of(&reply, "oom").0, "warn", "{reply:#}");
    server.stop();
    // With the capability there is no warning; this machine may lack it.
    let server = Server::start();
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", server.pid)).unwrap();
    let expected = if score.trim() == "-900" { "ok" } else { "warn" };
    assert_eq!(of(&server.owner().get(200, "/api/doctor"), "oom").0, expected);
    assert_eq!(server.log().contains("the kernel may kill berth itself"), expected == "warn");
}

/// Returns the doctor's row for a data folder on this mount.
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
    let reply = report(&scratch, &[]);
    nothing_left(&scratch);
    reply
}

#[test]
fn an_unsuitable_data_folder_is_reported() {
    let (report, code) = on("-t tmpfs -o noexec,nodev,size=2g tmpfs");
    assert_eq!(code, Some(1));
    let (status, fix) = of(&report, "data folder");
    assert_eq!(status, "fail");
    assert!(fix.contains("noexec") && fix.contains("--data-dir"), "{fix}");

    let (report, code) = on("-t tmpfs -o size=200m tmpfs");
    assert_eq!(code, Some(1));
    assert_eq!(of(&report, "disk").0, "fail");
    assert!(row(&report, "disk")["found"].as_str().unwrap().contains("MiB free of 200 MiB"), "{report:#}");

    // As in many outer containers: overlays cannot be stacked there, and files get new owners; containers do start.
    let (report, code) = on("-t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay");
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(of(&report, "overlayfs").0, "warn");
    assert_eq!(of(&report, "mapped overlays").0, "warn");
    assert_eq!(of(&report, "container").0, "ok");
}

#[test]
fn a_vulnerable_systemd_is_reported() {
    let scratch = Scratch::new();
    // The version alone does not show it; the changelog of the package does.
    let hide = "mount --bind /dev/null /usr/share/doc/systemd-container/changelog.Debian.gz && exec \"$@\"";
    let changes = Path::new("/usr/share/doc/systemd-container/changelog.Debian.gz");
    assert!(changes.exists(), "this test is for Debian");
    let (patched, _) = report(&scratch, &[]);
    assert_eq!(of(&patched, "CVE-2026-40226").0, "ok", "{patched:#}");
    let (hidden, code) = report(&scratch, &["unshare", "-m", "sh", "-c", hide, "sh"]);
    let (status, fix) = of(&hidden, "CVE-2026-40226");
    assert_eq!(status, "warn");
    assert!(fix.contains("259.4"), "{fix}");
    assert_eq!(code, Some(0), "berth itself never reads such files");
}

#[test]
fn missing_privileges_of_a_restricted_root_are_reported() {
    // As in an outer container with default restrictions.
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
fn doctor_accepts_the_flags_of_serve_and_refuses_others() {
    let scratch = Scratch::new();
    let key = scratch.file("key.gpg", "k");
    let keyring = format!("--keyring=ubuntu-noble={}", key.display());
    let ended = doctor(&scratch, &[], &["--json", &keyring, "--max-connections=60000"]);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(of(&report, "build ubuntu-noble"), ("ok", ""));
    assert!(row(&report, "build ubuntu-noble")["found"].as_str().unwrap().contains("gutsy"), "{report:#}");
    // Without a keyring on this machine, berth uses the one that it contains.
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
fn an_interrupted_doctor_leaves_nothing_behind() {
    let scratch = Scratch::new();
    scratch.folder("place");
    let end = |signal: Signal, after: Duration| {
        let mut command = command(&scratch, &[], &["--json"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Time is part of this test: there is no other handle for a point in the middle.
        thread::sleep(after);
        procs::signal(child.id(), signal);
        wait_for("the doctor to exit", secs(20), || child.try_wait().unwrap());
    };
    for step in 0..8 {
        end(Signal::INT, Duration::from_millis(50 + step * 60));
        nothing_left(&scratch);
    }
    // After SIGKILL there is no immediate cleanup; the next doctor cleans up.
    for step in 0..8 {
        end(Signal::KILL, Duration::from_millis(50 + step * 60));
    }
    let (_, code) = report(&scratch, &[]);
    assert_eq!(code, Some(0));
    nothing_left(&scratch);
    // Other tests run a doctor with the same binary on this machine, each for a limited time.
    wait_for("its cgroups to be removed", secs(60), || cgroups(&group()).is_empty().then_some(()));
}

#[test]
fn the_server_returns_the_same_report() {
    let server = Server::start();
    server.anyone().refused(401, "unauthorized", "GET", "/api/doctor", None);
    // Concurrent requests share one examination.
    let reports: Vec<Value> = thread::scope(|scope| {
        let request: Vec<_> =
            (0..8).map(|_| scope.spawn(|| server.collaborator().get(200, "/api/doctor"))).collect();
        request.into_iter().map(|request| request.join().unwrap()).collect()
    });
    for report in &reports {
        assert_eq!(report["checked_at"], reports[0]["checked_at"]);
        assert_eq!(of(report, "container"), ("ok", ""), "{report:#}");
    }
    let remaining: Vec<_> = fs::read_dir(&server.data)
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("doctor"))
        .collect();
    assert!(remaining.is_empty(), "{remaining:?}");
    for secret in [crate::server::CLIENT_TOKEN, crate::server::HOST_TOKEN] {
        assert!(!reports[0].to_string().contains(secret));
    }
}

#[test]
fn shutdown_does_not_wait_for_the_doctor() {
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
    let remaining = fs::read_dir(&data).unwrap().flatten();
    assert!(remaining.into_iter().all(|entry| !entry.file_name().to_string_lossy().contains("doctor")));
}
