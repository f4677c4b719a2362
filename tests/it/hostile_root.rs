//! A container with a hostile root: its files are links to files of the host, pipes, endless or very deep.
//! **Invariant:** no operation of berth on it reads, writes or executes anything outside. Each test puts a
//! world-writable trap on the host, so that a careless process under a mapped id would be caught too.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use crate::fixture::{Place, shared};
use crate::procs::{self, secs, unique_secs};
use crate::scratch::Scratch;

const SECRET: &str = "the-secret-of-the-host-8d1f";
const LOG: &str = "/var/log/sandboxed.sh-init.log";

/// A folder of the host, and its contents before the test.
struct Trap {
    scratch: Scratch,
    before: Vec<String>,
}

impl Trap {
    fn new() -> Trap {
        let scratch = Scratch::new();
        scratch.file("trap/secret", format!("{SECRET}\n"));
        scratch.file("trap/victim", "untouched\n");
        scratch.file("trap/log/sandboxed.sh-init.log", format!("{SECRET}\n"));
        scratch.file("trap/os-release", format!("ID={SECRET}\nVERSION_CODENAME={SECRET}\n"));
        for name in ["sh", "bash", "true", "env", "init"] {
            let ran = scratch.path().join("trap/ran");
            scratch
                .file(&format!("trap/{name}"), format!("#!/bin/sh\necho \"$0 $*\" >> {}\n", ran.display()));
            scratch.file(
                &format!("trap/bin/{name}"),
                format!("#!/bin/sh\necho \"$0 $*\" >> {}\n", ran.display()),
            );
        }
        let mut trap = Trap { scratch, before: Vec::new() };
        for path in everything(&trap.folder()) {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        }
        trap.before = trap.look();
        trap
    }

    fn folder(&self) -> PathBuf {
        fs::canonicalize(self.scratch.path()).unwrap().join("trap")
    }

    fn path(&self, name: &str) -> String {
        self.folder().join(name).to_str().unwrap().to_owned()
    }

    fn look(&self) -> Vec<String> {
        everything(&self.folder())
            .iter()
            .map(|path| {
                let meta = fs::symlink_metadata(path).unwrap();
                let text =
                    if meta.is_file() { fs::read_to_string(path).unwrap_or_default() } else { String::new() };
                let (mode, uid, gid, mtime) =
                    (meta.mode(), meta.uid(), meta.gid(), (meta.mtime(), meta.mtime_nsec()));
                format!("{} {mode:o} {uid}:{gid} {mtime:?} {text:?}", path.display())
            })
            .collect()
    }

    #[track_caller]
    fn untouched(&self, after: &str) {
        let now = self.look();
        assert!(now == self.before, "{after}: the host has changed:\n{:#?}\nwas:\n{:#?}", now, self.before);
    }
}

fn everything(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    let mut next = 0;
    while next < found.len() {
        if fs::symlink_metadata(&found[next]).unwrap().is_dir() {
            let mut entries: Vec<_> =
                fs::read_dir(&found[next]).unwrap().flatten().map(|entry| entry.path()).collect();
            entries.sort();
            found.extend(entries);
        }
        next += 1;
    }
    found
}

fn fresh(name: &str, extra: Value) -> Place<'static> {
    let mut body = json!({"name": name, "init_script": "#!/bin/sh\necho init ran\n"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    Place::ready(shared(), body)
}

/// Calls every operation on a workspace and returns all responses.
fn call_every_operation(place: &Place<'_>, trap: &Trap, what: &str) -> String {
    let mut answer = String::new();
    for (method, call, body) in [
        ("GET", "/init-log", None),
        ("GET", "/debug", None),
        ("POST", "/exec", Some(json!({"command": "true", "timeout_secs": 5}))),
        ("POST", "/exec", Some(json!({"command": "true", "cwd": "/etc", "timeout_secs": 5}))),
        ("POST", "/rerun-init", None),
        ("GET", "/init-log", None),
        ("GET", "", None),
    ] {
        let start = Instant::now();
        let reply = place.client.call(method, &place.path(call), body.as_ref());
        assert!(start.elapsed() < secs(45), "{what}: {method} {call} took {:?}", start.elapsed());
        answer.push_str(&reply.text());
        assert!(!reply.text().contains(SECRET), "{what}: {method} {call} returns the host's secret: {reply}");
        trap.untouched(&format!("{what}: {method} {call}"));
    }
    answer
}

/// Ends the container from outside, so that the next call must start it with the root in its present state.
fn restart(place: &Place<'_>) {
    let number = unique_secs();
    thread::scope(|scope| {
        let (server, path) = (place.server, place.path("/exec"));
        let body = json!({"command": format!("sleep {number}"), "timeout_secs": 20});
        scope.spawn(move || server.owner().call("POST", &path, Some(&body)));
        let pid = procs::wait_sleep(&number);
        procs::kill(procs::init_of(pid).unwrap());
    });
}

/// Replaces `path` inside by a link to `target`, in a process that is already loaded, because `path` may be one of its
/// own libraries. Then ends the container from outside.
fn replace(place: &Place<'_>, path: &str, target: &Path) {
    let target = target.to_str().unwrap();
    let perl = format!(
        "my $p = '{path}'; rename($p, \"$p.real\") or die; symlink('{target}', $p) or die; sleep 600"
    );
    let number = unique_secs();
    thread::scope(|scope| {
        let (server, exec) = (place.server, place.path("/exec"));
        // Found by the sleep beside it, which must have started before its program may be replaced.
        let command = format!(
            "sleep {number} & until grep -q sleep /proc/$!/comm; do :; done; exec perl -e '{}'",
            perl.replace('\'', "'\\''")
        );
        let body = json!({"command": command, "timeout_secs": 30});
        scope.spawn(move || server.owner().call("POST", &exec, Some(&body)));
        let pid = procs::wait_sleep(&number);
        let init = procs::init_of(pid).unwrap();
        // The container's own view of its root through /proc, while it runs.
        let inside = format!("/proc/{init}/root{path}");
        procs::wait_for(&format!("{path} to be replaced"), secs(20), || {
            fs::read_link(&inside).is_ok_and(|link| link == Path::new(target)).then_some(())
        });
        procs::kill(init);
    });
}

#[test]
fn an_init_log_that_is_a_link_is_not_followed() {
    let trap = Trap::new();
    let place = fresh("log link", json!({}));
    for target in
        [trap.path("secret"), trap.path("victim"), "/etc/shadow".into(), "/proc/self/environ".into()]
    {
        place.sh(&format!("ln -sfn {target} {LOG}"));
        let reply = call_every_operation(&place, &trap, &target);
        // A link to /etc/shadow leads to the container's own file, not to the host's.
        let host_shadow = fs::read_to_string("/etc/shadow").unwrap();
        let inside = place.sh("cat /etc/shadow");
        for line in host_shadow.lines().filter(|line| !inside.contains(*line)) {
            assert!(!reply.contains(line), "{target}: {reply}");
        }
        assert!(!reply.contains("OPENWORK_"), "{target}: {reply}");
        place.sh(&format!("rm -rf {LOG}"));
    }
    // A parent folder as a link.
    place.sh(&format!("mv /var/log /var/log.real; ln -sfn {} /var/log", trap.path("log")));
    call_every_operation(&place, &trap, "/var/log");
    place.sh(&format!("rm /var/log; ln -s ../../../../../../..{} /var/log", trap.path("log")));
    call_every_operation(&place, &trap, "relative /var/log");
    place.delete();
    trap.untouched("delete");
}

#[test]
fn an_init_log_that_is_not_a_file_is_not_read() {
    let trap = Trap::new();
    let place = fresh("log pipe", json!({}));
    for make in [
        format!("mkfifo {LOG}"),
        format!("mkdir {LOG}"),
        format!("truncate -s 500G {LOG}"),
        format!("ln -s {LOG} {LOG}"),
        format!("mknod {LOG} c 1 5"),
        format!("head -c 3000000 /dev/urandom > {LOG}"),
        format!(
            "python3 -c 1 2>/dev/null; perl -e 'use Socket; socket(S,AF_UNIX,SOCK_STREAM,0); bind(S,sockaddr_un(\"{LOG}\"))'"
        ),
    ] {
        place.exec(json!({"command": format!("rm -rf {LOG}; {make}")}));
        call_every_operation(&place, &trap, &make);
    }
    place.client.get(200, &place.path("/debug"));
}

#[test]
fn an_init_script_that_is_a_link_is_not_followed() {
    let trap = Trap::new();
    let place = fresh("script link", json!({}));
    for name in [
        "/sandboxed-init.sh",
        "/.opencode",
        "/.build.log",
        "/root/.claude",
        "/tmp/berth",
        "/run/berth",
        "/.berth",
    ] {
        place.exec(json!({"command": format!("rm -rf {name}; ln -sfn {} {name}", trap.path("victim"))}));
        call_every_operation(&place, &trap, name);
        place.exec(json!({"command": format!("rm -rf {name}; ln -sfn {} {name}", trap.folder().display())}));
        call_every_operation(&place, &trap, name);
    }
    restart(&place);
    call_every_operation(&place, &trap, "all operations after a restart");
    place.client.call("POST", &place.path("/build?rebuild=true"), None).expect(200);
    assert_eq!(place.settled()["status"], "ready");
    trap.untouched("rebuild");
}

#[test]
fn shells_that_are_links_are_not_followed() {
    let trap = Trap::new();
    let place = fresh("shell links", json!({}));
    let links = format!(
        "cp /usr/bin/ln /root/ln; for f in sh bash env perl true sleep; do /root/ln -sfn {}/$f /usr/bin/$f; done; true",
        trap.folder().display()
    );
    place.exec(json!({"command": links}));
    call_every_operation(&place, &trap, "shells");
    let reply = place.client.call("POST", &place.path("/exec"), Some(&json!({"command": "true"})));
    assert!(reply.status != 200 || reply.value()["exit_code"] != 0, "a command ran without a shell: {reply}");
    place.delete();
    trap.untouched("delete");
}

#[test]
fn files_of_etc_that_are_links_are_not_followed() {
    let trap = Trap::new();
    let place = fresh("etc files", json!({}));
    let victim = trap.path("victim");
    place.sh(&format!(
        "for f in resolv.conf hostname hosts localtime machine-id timezone passwd.new nsswitch.conf; do
            rm -f /etc/$f; ln -s {victim} /etc/$f; done
         rm -f /etc/os-release /usr/lib/os-release; ln -s {} /etc/os-release; ln -s {0} /usr/lib/os-release",
        trap.path("os-release")
    ));
    restart(&place);
    call_every_operation(&place, &trap, "small files");
    place.client.call("POST", &place.path("/build"), None);
    assert!(!place.settled().to_string().contains(SECRET));
    trap.untouched("build");
    place.client.call("POST", &place.path("/build?rebuild=true"), None).expect(200);
    assert_eq!(place.settled()["status"], "ready");
    trap.untouched("rebuild");
}

#[test]
fn folders_that_are_links_are_not_followed() {
    let trap = Trap::new();
    for folder in ["/etc", "/root", "/var", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/home", "/opt"] {
        let place = fresh(&format!("folder {}", &folder[1..]), json!({}));
        replace(&place, folder, &trap.folder());
        trap.untouched(folder);
        call_every_operation(&place, &trap, folder);
        let reply = place.client.get(200, &place.path("/debug"));
        let entry =
            reply["directories"].as_array().unwrap().iter().find(|entry| entry["path"] == folder[1..]);
        if let Some(entry) = entry {
            // nspawn creates the target of the link inside the root as a mount point, which is counted.
            let on_the_host = fs::read_dir(trap.folder()).unwrap().count();
            assert_ne!(entry["file_count"], json!(on_the_host), "the host's files were counted: {reply}");
        }
        place.client.call("POST", &place.path("/build"), None);
        place.settled();
        trap.untouched(&format!("{folder}: build"));
        place.client.call("POST", &place.path("/build?rebuild=true"), None).expect(200);
        assert_eq!(place.settled()["status"], "ready", "{folder}");
        trap.untouched(&format!("{folder}: rebuild"));
        assert_eq!(place.sh("cat /etc/debian_version | cut -c 1-3"), "12.\n", "{folder}");
    }
}

#[test]
fn delete_follows_no_links_and_removes_trees_of_any_depth() {
    let trap = Trap::new();
    let place = fresh("strange tree", json!({}));
    place.sh(&format!(
        "mkdir /srv/t; cd /srv/t; ln -s {0} link; ln -s {0}/secret file; ln -s / root; ln -s . self; mkfifo pipe
         touch \"$(printf 'new\\nline')\" \"$(printf '\\377bytes')\" -- '-rf' '$(id)'; mkdir -m 000 closed; mkdir 'sp ace'
         perl -e 'for (1..3000) {{ mkdir \"d\"; chdir \"d\" }} open F, \">f\"'
         for n in $(seq 2000); do : > many-$n; done; ln many-1 hard",
        trap.folder().display()
    ));
    let folder = place.root.parent().unwrap().to_owned();
    let start = Instant::now();
    place.delete();
    assert!(start.elapsed() < secs(20), "{:?}", start.elapsed());
    assert!(!folder.exists(), "the folder was not deleted");
    trap.untouched("delete");
}

#[test]
fn mounts_inside_do_not_block_deletion_or_lead_out() {
    let trap = Trap::new();
    let place = fresh("mounts", json!({}));
    // As far as the container may mount.
    place.exec(json!({"command": "mkdir -p /srv/m; mount -t tmpfs x /srv/m && echo y > /srv/m/f; mount --bind /proc /mnt"}));
    call_every_operation(&place, &trap, "mounts");
    let folder = place.root.parent().unwrap().to_owned();
    place.delete();
    assert!(!folder.exists());
    assert!(procs::mounts_below(&folder).is_empty());
}

#[test]
fn links_as_cwd_do_not_lead_outside() {
    let trap = Trap::new();
    let place = fresh("cwd links", json!({}));
    place.sh(&format!(
        "ln -sfn {} /srv/out; ln -sfn ../../../../../..{} /srv/rel",
        trap.folder().display(),
        trap.folder().display()
    ));
    for cwd in ["/srv/out", "srv/out", "/srv/rel", "/proc/1/root", "/proc/1/cwd", "/proc/self/fd/0"] {
        let reply = place.client.call(
            "POST",
            &place.path("/exec"),
            Some(&json!({"command": "ls; cat secret", "cwd": cwd})),
        );
        assert!(!reply.text().contains(SECRET) && !reply.text().contains("victim"), "{cwd}: {reply}");
    }
    trap.untouched("cwd");
}
