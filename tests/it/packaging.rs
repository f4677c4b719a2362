//! berth as a service and as a package: notifications to systemd, secrets from files, `berth install`, the Debian
//! package. Tests that need a booted systemd are in `tests/vm/package.sh`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use crate::procs::secs;
use crate::scratch::Scratch;
use crate::server::{self, BINARY, CLIENT_TOKEN, HOST_TOKEN, Setup};

fn message(socket: &UnixDatagram) -> String {
    let mut read = [0; 500];
    let count = socket.recv(&mut read).unwrap();
    String::from_utf8(read[..count].to_vec()).unwrap()
}

#[test]
fn the_service_manager_is_notified_of_start_and_stop() {
    let setup = Setup::new();
    let path = setup.scratch().path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(secs(60))).unwrap();
    let server = setup.arg("--drain-timeout=7").env("NOTIFY_SOCKET", path.to_str().unwrap()).start();
    let ready = message(&socket);
    assert!(ready.starts_with("READY=1\nSTATUS=1 workspace, data folder "), "{ready}");
    server.anyone().get(200, "/health");
    // A command in a workspace cannot send notifications for the service.
    let seen = server.owner().post(
        200,
        &format!("/api/workspaces/{}/exec", server::NIL),
        serde_json::json!({"command": "echo ${NOTIFY_SOCKET-none}"}),
    );
    assert_eq!(seen["stdout"], "none\n");
    server.stop();
    let stopping = message(&socket);
    assert!(
        stopping.starts_with("STOPPING=1\n") && stopping.ends_with("EXTEND_TIMEOUT_USEC=67000000"),
        "{stopping}"
    );
}

#[test]
fn secrets_come_from_files_and_credentials() {
    let setup = Setup::bare().arg("--workspace=work");
    let folder = setup.scratch().path().to_owned();
    fs::write(folder.join("host"), format!("{HOST_TOKEN}\n")).unwrap();
    let credentials = folder.join("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::write(credentials.join("OPENWORK_TOKEN"), CLIENT_TOKEN).unwrap();
    let setup = setup
        .env("OPENWORK_HOST_TOKEN_FILE", "host")
        .env("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap());
    let server = setup.start();
    server.owner().get(200, "/status");
    server.collaborator().get(200, "/workspaces");
    drop(server);
    let both = setup.clone().env("OPENWORK_HOST_TOKEN", HOST_TOKEN).run();
    assert_eq!(both.code, Some(2), "{both:?}");
    assert!(
        both.stderr.contains("OPENWORK_HOST_TOKEN_FILE") && both.stderr.contains("set one of the two"),
        "{both:?}"
    );
    for (content, problem) in [("\n", "is empty"), (&"x".repeat(70_000), "larger than")] {
        fs::write(folder.join("host"), content).unwrap();
        let refused = setup.run();
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains(problem), "{refused:?}");
    }
    let missing = setup.env("OPENWORK_HOST_TOKEN_FILE", "nowhere").run();
    assert!(missing.code == Some(2) && missing.stderr.contains("nowhere"), "{missing:?}");
}

fn berth(args: &[&str]) -> server::Ended {
    server::run(
        Command::new(BINARY).args(args).env_clear().env("PATH", std::env::var("PATH").unwrap()),
        secs(60),
    )
}

#[test]
fn a_service_is_installed_below_another_root_and_reinstalled() {
    let scratch = Scratch::new();
    let root = scratch.path().join("root");
    let root_flag = format!("--root={}", root.display());
    let asks = berth(&["install", &root_flag]);
    assert!(asks.code == Some(2) && asks.stderr.contains("--yes") && !root.exists(), "{asks:?}");
    let here = berth(&["install", "--root=/", "--bin=/nowhere/bin", "--yes", "--no-start"]);
    assert!(here.code == Some(2) && here.stderr.contains("--root: / is this machine"), "{here:?}");
    for _ in 0..2 {
        let done = berth(&["install", &root_flag, "--bin=/opt/bin", "--yes"]);
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(done.stderr.contains("4/4 enable the service berth"), "{done:?}");
        let unit = fs::read_to_string(root.join("etc/systemd/system/berth.service")).unwrap();
        assert!(
            unit.contains("\nExecStart=/opt/bin/berth serve\n") && !unit.contains("/usr/bin/berth"),
            "{unit}"
        );
        let enabled = root.join("etc/systemd/system/multi-user.target.wants/berth.service");
        assert!(fs::symlink_metadata(enabled).unwrap().is_symlink());
        assert!(fs::read(root.join("opt/bin/berth")).unwrap() == fs::read(BINARY).unwrap());
        let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(
            ["etc/berth", "etc/berth/server.json", "etc/berth/environment", "opt/bin/berth"].map(mode),
            [0o700, 0o600, 0o600, 0o755]
        );
        // Settings of the user stay.
        fs::write(root.join("etc/berth/environment"), "OPENWORK_APPROVAL_MODE=auto\n").unwrap();
    }
    assert_eq!(
        fs::read_to_string(root.join("etc/berth/environment")).unwrap(),
        "OPENWORK_APPROVAL_MODE=auto\n"
    );
    fs::create_dir_all(root.join("usr/lib/systemd/system")).unwrap();
    fs::write(root.join("usr/lib/systemd/system/berth.service"), "").unwrap();
    let packaged = berth(&["install", &root_flag, "--yes"]);
    assert!(packaged.code == Some(2) && packaged.stderr.contains("package"), "{packaged:?}");
    for (args, message) in [
        (&["install", "--bin=bin", "--yes"][..], "absolute"),
        (&["install", "--root=../x", "--yes"], "absolute"),
        (&["install", "--root", "--yes"], "--root: needs a value"),
        (&["install", "--purge"], "--purge: unknown flag"),
        (&["install", "now"], "now: unexpected argument"),
        (&["uninstall", "--no-start"], "--no-start: unknown flag"),
    ] {
        let refused = berth(args);
        assert!(refused.code == Some(2) && refused.stderr.contains(message), "{args:?}: {refused:?}");
    }
    for (bin, message) in
        [("/opt/my bin", "' '"), ("/opt/100%", "'%'"), ("/opt/\"x", "'\"'"), ("/opt/x\ny", "'\\n'")]
    {
        let refused = berth(&["install", &format!("--bin={bin}"), "--yes", &root_flag]);
        assert!(refused.code == Some(2) && refused.stderr.contains(message), "{bin:?}: {refused:?}");
    }
    // This machine has no systemd, or must not be changed.
    if !Path::new("/run/systemd/system").exists() {
        let refused = berth(&["uninstall", "--yes"]);
        assert!(
            refused.code == Some(1) && refused.stderr.contains("systemd does not run here"),
            "{refused:?}"
        );
    }
}

#[test]
fn install_below_a_root_stays_there_and_uninstall_removes_all_of_it() {
    let scratch = Scratch::new();
    let root = scratch.folder("root");
    let root_flag = format!("--root={}", root.display());
    let path = |rel: &str| root.join(rel);
    // As in an image of a machine, links are absolute and name its own folders; some name folders of this one as well.
    let outside = scratch.folder("outside");
    fs::create_dir_all(path("usr/local/lib/bin")).unwrap();
    fs::create_dir_all(path(&format!(".{}", outside.display()))).unwrap();
    fs::create_dir_all(path("state/data")).unwrap();
    fs::create_dir_all(path("var/lib")).unwrap();
    symlink("/usr/local/lib/bin", path("usr/local/bin")).unwrap();
    symlink(&outside, path("etc")).unwrap();
    symlink("/state/data", path("var/lib/berth")).unwrap();
    symlink("../../../../../../../../srv", path("srv")).unwrap();
    fs::write(path("state/data/tokens.json"), "{}").unwrap();
    let kept = everything(&root);
    let install = |bin: &[&str]| {
        let done = berth(&[&["install", &root_flag, "--yes"], bin].concat());
        assert_eq!(done.code, Some(0), "{done:?}");
        done.stderr
    };
    let uninstall = |flags: &[&str]| berth(&[&["uninstall", &root_flag, "--yes"], flags].concat());
    let none = uninstall(&[]);
    assert!(none.code == Some(2) && none.stderr.contains("berth.service: there is no such unit"), "{none:?}");
    // `srv` leads to itself: the tree stands in the way, and nothing else was touched.
    let circle = berth(&["install", &root_flag, "--yes"]);
    assert!(circle.code == Some(1) && circle.stderr.contains("srv"), "{circle:?}");
    fs::remove_file(path("srv")).unwrap();
    install(&[]);
    assert!(path("usr/local/lib/bin/berth").is_file());
    assert!(fs::read_dir(&outside).unwrap().next().is_none(), "something was written outside of the root");
    let inside = path(&format!(".{}", outside.display()));
    assert!(
        inside.join("berth/server.json").is_file() && inside.join("systemd/system/berth.service").is_file()
    );

    // Another place for the binary: the one before goes, unless it is the same file by another name.
    let moved = install(&["--bin=/opt/bin"]);
    assert!(
        moved.contains("remove the binary of before") && moved.contains("usr/local/bin/berth"),
        "{moved}"
    );
    assert!(path("opt/bin/berth").is_file() && !path("usr/local/lib/bin/berth").exists());
    install(&["--bin=/usr/local/lib/bin"]);
    install(&["--bin=/usr/local/bin"]);
    assert!(path("usr/local/lib/bin/berth").is_file() && !path("opt/bin/berth").exists());

    let contradicts = uninstall(&["--only-workloads"]);
    assert!(contradicts.code == Some(2) && contradicts.stderr.contains("--root"), "{contradicts:?}");
    let done = uninstall(&[]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stdout.contains("Kept: ") && done.stdout.contains("uninstall --purge"), "{done:?}");
    assert!(inside.join("berth/server.json").is_file() && path("state/data/tokens.json").is_file());
    install(&[]);
    let done = uninstall(&["--purge"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    // Folders of the system stay; all files of berth are gone.
    let kept: Vec<_> =
        kept.into_iter().filter(|path| !path.contains("state/data") && path != "srv").collect();
    let left: Vec<_> =
        everything(&root).into_iter().filter(|path| path.contains("berth") || kept.contains(path)).collect();
    let kept: Vec<_> = kept.into_iter().filter(|path| path != "var/lib/berth").collect();
    assert_eq!(left, kept);
    assert!(fs::read_dir(&outside).unwrap().next().is_none());
}

/// The paths of all entries below a folder, sorted.
fn everything(folder: &Path) -> Vec<String> {
    let found = server::run(
        Command::new("find").args([".", "-mindepth", "1", "-printf", "%P\\n"]).current_dir(folder),
        secs(20),
    );
    let mut all: Vec<String> = found.stdout.lines().map(str::to_owned).collect();
    all.sort();
    all
}

#[test]
fn another_user_is_told_what_to_do() {
    let setup = Setup::new();
    setup.start().stop();
    let data = format!("--data-dir={}", setup.data_dir().display());
    let file = setup.scratch().path().join("backup");
    let words: [(&[&str], i32, &str); 5] = [
        (&["install", "--yes"], 1, "sudo"),
        (&["uninstall", "--yes"], 1, "sudo"),
        (&["install", "--root=/nowhere/root", "--yes"], 1, "sudo"),
        (&["backup", file.to_str().unwrap(), &data], 2, "run this with sudo"),
        (&["restore", file.to_str().unwrap(), &data, "--replace"], 2, "run this with sudo"),
    ];
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(&file).unwrap();
    for (words, code, said) in words {
        if words[0] == "restore" {
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid=4242", "--regid=4242", "--clear-groups", BINARY]).args(words);
        command.env_clear().env("PATH", std::env::var("PATH").unwrap()).current_dir("/");
        let refused = server::run(&mut command, secs(20));
        assert_eq!(refused.code, Some(code), "{words:?}: {refused:?}");
        assert!(refused.stderr.contains(said), "{words:?}: {refused:?}");
    }
}

#[test]
fn an_unknown_command_is_an_error_that_names_the_nearest() {
    for (words, said) in [
        (&["help", "bogus"][..], "unknown command `bogus`; the commands are serve"),
        (&["help", "mann"], "did you mean `man`?"),
        (&["help", "restor"], "did you mean `restore`?"),
        (&["instal"], "did you mean `install`?"),
        (&["bakcup", "x"], "did you mean `backup`?"),
        (&["\u{1b}[31m"], "unknown command `\\u{1b}[31m`"),
    ] {
        let refused = berth(words);
        assert!(refused.code == Some(2) && refused.stdout.is_empty(), "{words:?}: {refused:?}");
        assert!(refused.stderr.contains(said), "{words:?}: {refused:?}");
    }
    for words in [&["help"][..], &["help", "backup"], &["help", "--help"]] {
        assert_eq!(berth(words).code, Some(0), "{words:?}");
    }
}

#[test]
fn the_debian_package_has_the_binary_the_units_and_settings() {
    let scratch = Scratch::new();
    let build = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/packaging/deb/build");
    let build = |out: &Path| {
        let created = server::run(
            // A debug build is large.
            Command::new(build)
                .arg(BINARY)
                .arg(out)
                .env("SOURCE_DATE_EPOCH", "1700000000")
                .env("DEB_COMPRESSION", "none"),
            secs(120),
        );
        assert_eq!(created.code, Some(0), "{created:?}");
        created.stdout.trim().to_owned()
    };
    let one = build(&scratch.path().join("one"));
    let other = build(&scratch.path().join("other"));
    assert!(fs::read(&one).unwrap() == fs::read(other).unwrap(), "two builds differ");
    let root = scratch.path().join("root");
    let unpacked = server::run(Command::new("dpkg-deb").args(["-x", &one]).arg(&root), secs(60));
    assert_eq!(unpacked.code, Some(0), "{unpacked:?}");
    let version = server::run(Command::new(root.join("usr/bin/berth")).arg("--version"), secs(20));
    assert_eq!(version.stdout.trim(), env!("CARGO_PKG_VERSION"));
    let unit = fs::read_to_string(root.join("usr/lib/systemd/system/berth.service")).unwrap();
    assert!(
        unit.contains("Type=notify") && !unit.lines().any(|line| line.starts_with("Delegate=")),
        "{unit}"
    );
    let here = scratch.path().join("berth.service");
    fs::write(&here, unit.replace("/usr/bin/berth", BINARY)).unwrap();
    let checked = server::run(Command::new("systemd-analyze").arg("verify").arg(&here), secs(60));
    assert_eq!((checked.code, checked.stderr.as_str()), (Some(0), ""), "{checked:?}");
    let depends = server::run(Command::new("dpkg-deb").args(["-f", &one, "Depends"]), secs(20));
    assert_eq!(depends.stdout.trim(), "systemd-container, debootstrap");

    // The package checks the format of the data folder before it unpacks any file.
    let control = scratch.path().join("control");
    let unpacked = server::run(Command::new("dpkg-deb").args(["-e", &one]).arg(&control), secs(60));
    assert_eq!(unpacked.code, Some(0), "{unpacked:?}");
    let data = scratch.folder("moved");
    let here = format!("BERTH_DATA_DIR=\"{}\"\n", data.display());
    let environment = scratch.file("environment", here);
    let script = fs::read_to_string(control.join("preinst")).unwrap();
    let script = script.replace("/etc/berth/environment", environment.to_str().unwrap());
    let script = scratch.file("preinst", script);
    let upgrade = || server::run(Command::new("sh").arg(&script).args(["upgrade", "0.0.1"]), secs(20));
    assert_eq!(upgrade().code, Some(0), "a folder without a version has the first one");
    for (format, code) in [("1\n", 0), ("2\n", 1), ("10", 1), ("damaged", 0)] {
        fs::write(data.join("format"), format).unwrap();
        let ended = upgrade();
        assert_eq!(ended.code, Some(code), "{format}: {ended:?}");
        assert_eq!(ended.stderr.contains("a newer berth wrote"), code == 1, "{ended:?}");
    }
}

#[test]
fn the_manual_page_and_completions_have_every_command_and_flag() {
    let scratch = Scratch::new();
    let help = berth(&["help"]).stdout;
    let page = berth(&["help", "man"]);
    assert_eq!(page.code, Some(0), "{page:?}");
    let file = scratch.file("berth.1", page.stdout.replacen("\"\"", "\"2026-01-01\"", 1));
    let lint = server::run(Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(&file), secs(30));
    assert_eq!((lint.code, lint.stdout.as_str()), (Some(0), ""), "{lint:?}");
    let view =
        server::run(Command::new("mandoc").args(["-T", "utf8", "-O", "width=100"]).arg(&file), secs(30));
    // In bold text each letter is printed twice.
    let view: String = {
        let mut plain = String::new();
        for c in view.stdout.chars() {
            if c == '\u{8}' {
                plain.pop();
            } else {
                plain.push(c)
            }
        }
        plain.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    // Headings in the help text are headings there, and no line of a list runs into the next one.
    let headings = help.lines().zip(help.lines().skip(1)).filter(|(line, next)| {
        !line.starts_with([' ', 'b', 'U'])
            && !line.is_empty()
            && !line.ends_with('.')
            && next.starts_with("  ")
    });
    for (heading, _) in headings {
        let heading = heading.to_uppercase().replace("CODES", "STATUS").replace('-', "\\-");
        assert!(page.stdout.lines().any(|line| line == format!(".SH {heading}")), "{heading}");
    }
    for line in help.lines().filter(|line| line.starts_with(&" ".repeat(20))) {
        assert!(!line.ends_with(':'), "{line:?} is a heading inside of an entry");
    }
    let view = view.to_uppercase();
    for line in help.replace("Usage:", "").replace("codes", "status").lines() {
        for word in line.split_whitespace().filter(|word| word.len() > 3) {
            let expected = word.replace('…', "...").to_uppercase();
            assert!(view.contains(&expected), "{word} of {line:?} is not in the manual page");
        }
    }

    let completions = scratch.file("berth.bash", berth(&["help", "bash"]).stdout);
    let complete = |words: &[&str]| {
        let script = r#"source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _berth; printf '%s\n' "${COMPREPLY[@]}""#;
        let mut bash = Command::new("bash");
        bash.args(["-c", script]).arg(&completions).args(words).current_dir(scratch.path());
        let ended = server::run(&mut bash, secs(20));
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
        ended.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete(&["berth", "ba"]), ["backup"]);
    assert_eq!(complete(&["berth", "token", ""]), ["show", "make"]);
    assert_eq!(complete(&["berth", "backup", "--wi"]), ["--without-containers"]);
    assert_eq!(complete(&["berth", "backup", "--data-dir", "berth.b"]), ["berth.bash"]);
    assert_eq!(complete(&["berth", "host", "start", "--detac"]), ["--detach"]);
    assert!(complete(&["berth", "--max-"]).contains(&"--max-runs".to_owned()));
    assert_eq!(complete(&["berth", "restore", "berth.1"]), ["berth.1"]);
}
