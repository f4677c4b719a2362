//! `--setup` with real package managers and packages built here: dnf, pacman, and apt-get with sudo. Each runs on this
//! machine with an overlay over its root, in a mount namespace: installed files disappear with the test. At a terminal
//! it asks first. The keys of Arch Linux come from a package with a test key.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::fixture::Place;
use crate::procs::{self, secs, wait_for};
use crate::scratch::Scratch;
use crate::server::{BINARY, CLIENT_TOKEN, Ended, HOST_TOKEN, Server, Setup, run};

/// Creates the machine in folder `$1`, changes it with the script `$2`, and executes the remaining arguments in it.
const MACHINE: &str = r#"
    set -e
    base=$1 change=$2 bin=$3
    shift 3
    mount -t tmpfs -o mode=755 machine "$base"
    mkdir "$base/upper" "$base/work" "$base/root"
    mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" machine "$base/root"
    cd "$base/root"
    for folder in proc sys dev; do mount --rbind "/$folder" "$folder"; done
    mount -t tmpfs machine tmp
    # The project may lie on another disk than the root.
    mkdir -p "./$bin" "./$base/../repo"
    mount --bind "$bin" "./$bin"
    mount --bind "$base/../repo" "./$base/../repo"
    chroot . sh -ec "$change"
    exec chroot . "$@"
"#;

/// Removes the programs and keys that container workspaces need.
const BARE: &str = "rm -f /usr/bin/systemd-nspawn /usr/sbin/debootstrap /usr/share/keyrings/*-archive-keyring.gpg \
                    /usr/bin/pacstrap /usr/share/keyrings/archlinux*; rm -rf /etc/pacman.d/gnupg\n";

/// Writes the file of the package `$name` below the folder `$1`: an empty script, or for the keys of Arch Linux a key
/// that is created here.
const CONTENT: &str = r#"
    mkdir -m 700 gnupg
    gpg --homedir gnupg --batch --quiet --passphrase '' --quick-generate-key 'packager <x@y.z>' rsa2048 sign
    gpg --homedir gnupg --batch --quiet --export > archlinux.gpg
    gpg --homedir gnupg --batch --with-colons --list-keys | sed -n 's/^fpr:*\([0-9A-F]*\):$/\1:4:/p' > archlinux-trusted
    gpgconf --homedir gnupg --kill all
    here=$PWD
    content() {
        mkdir -p "$1${file%/*}"
        case $name in
            archlinux-keyring) cp "$here/archlinux.gpg" "$here/archlinux-trusted" "$1${file%/*}" ;;
            *) echo '#!/bin/sh' > "$1$file"; chmod 755 "$1$file" ;;
        esac
    }
"#;

/// One row for each package: its name, and its file.
fn packages(
    systemd: &'static str,
    debian: &'static str,
    ubuntu: &'static str,
) -> [(&'static str, &'static str); 6] {
    [
        (systemd, "/usr/bin/systemd-nspawn"),
        ("debootstrap", "/usr/sbin/debootstrap"),
        (debian, "/usr/share/keyrings/debian-archive-keyring.gpg"),
        (ubuntu, "/usr/share/keyrings/ubuntu-archive-keyring.gpg"),
        ("arch-install-scripts", "/usr/bin/pacstrap"),
        ("archlinux-keyring", "/usr/share/keyrings/archlinux.gpg"),
    ]
}

/// Builds every package and then the repository, with a shell script that gets the name in `$name`, the file in
/// `$file`, and runs in the folder `repo`.
#[track_caller]
fn repository(scratch: &Scratch, packages: &[(&str, &str)], each: &str, then: &str) -> String {
    let repo = scratch.folder("repo");
    let mut script = format!("set -e\n{CONTENT}\n");
    for (name, file) in packages {
        script += &format!("name={name} file={file}\n{each}\n");
    }
    script += then;
    let created = run(Command::new("sh").args(["-c", &script]).current_dir(&repo), secs(120));
    assert_eq!(created.code, Some(0), "the repository could not be built: {created:?}");
    repo.to_str().unwrap().to_owned()
}

fn dnf(scratch: &Scratch) -> String {
    let spec = r#"
        content "$PWD/$name"
        printf '%s\n' "Name: $name" 'Version: 1' 'Release: 1' 'Summary: x' 'License: x' 'BuildArch: noarch' \
            'AutoReqProv: no' '%description' '%install' "mkdir -p %{buildroot}" "cp -a $PWD/$name/. %{buildroot}" \
            '%files' "${file%.gpg}*" > "$name.spec"
        rpmbuild -bb --quiet --define "_topdir $PWD/build" --define "_rpmdir $PWD/rpm" "$name.spec"
    "#;
    let rows = packages("systemd-container", "debian-keyring", "ubu-keyring");
    let repo = repository(scratch, &rows, spec, "createrepo_c --quiet rpm");
    format!(
        "{BARE} rm -rf /usr/bin/apt-get /etc/yum.repos.d; mkdir /etc/yum.repos.d
        printf '[berth]\nname=x\nbaseurl=file://{repo}/rpm\ngpgcheck=0\n' > /etc/yum.repos.d/berth.repo"
    )
}

fn pacman(scratch: &Scratch) -> String {
    let package = r#"
        pkg=$name-1-1-any.pkg.tar.xz
        content "$name"
        mkdir -p "db/$name-1-1"
        printf '%s\n' "pkgname = $name" "pkgbase = $name" 'pkgver = 1-1' 'pkgdesc = x' 'arch = any' > "$name/.PKGINFO"
        tar -C "$name" -cJf "$pkg" .PKGINFO usr
        printf '%%%s%%\n%s\n\n' FILENAME "$pkg" NAME "$name" VERSION 1-1 ARCH any CSIZE "$(stat -c %s "$pkg")" \
            SHA256SUM "$(sha256sum "$pkg" | cut -d ' ' -f 1)" > "db/$name-1-1/desc"
    "#;
    let rows = packages("systemd", "debian-archive-keyring", "ubuntu-keyring");
    let repo = repository(scratch, &rows, package, "cd db; tar -czf ../berth.db *");
    // A machine with pacman has package lists; berth must not refresh them without an upgrade.
    format!(
        "{BARE} rm -f /usr/bin/apt-get /usr/bin/dnf
        printf '[options]\nArchitecture = auto\nSigLevel = Never\n[berth]\nServer = file://{repo}\n' > /etc/pacman.conf
        pacman -Sy >&2"
    )
}

fn apt(scratch: &Scratch) -> String {
    let package = r#"
        content "$name"
        mkdir -p "$name/DEBIAN"
        printf '%s\n' "Package: $name" 'Version: 9999' 'Architecture: all' 'Maintainer: x <x@y.z>' 'Description: x' \
            > "$name/DEBIAN/control"
        dpkg-deb --root-owner-group -b "$name" "$name.deb" >&2
    "#;
    let rows = packages("systemd-container", "debian-archive-keyring", "ubuntu-keyring");
    // Without a Release file apt sometimes requests the Packages file repeatedly ("Method gave a blank filename").
    let index = r#"
        dpkg-scanpackages . > Packages
        printf '%s\n' "Date: $(date -Ru)" SHA256: \
            " $(sha256sum Packages | cut -d ' ' -f 1) $(stat -c %s Packages) Packages" > Release
    "#;
    let repo = repository(scratch, &rows, package, index);
    format!(
        "{BARE} rm -rf /etc/apt/sources.list.d /etc/apt/sources.list /usr/bin/dnf
        mkdir -p /etc/apt/sources.list.d
        echo 'deb [trusted=yes] file:{repo} ./' > /etc/apt/sources.list.d/berth.list"
    )
}

/// The prefix of a command that runs on the changed machine.
fn words<'a>(base: &'a str, change: &'a str) -> Vec<&'a str> {
    let bin = Path::new(BINARY).parent().unwrap().to_str().unwrap();
    vec!["unshare", "--mount", "--propagation=private", "sh", "-c", MACHINE, "machine", base, change, bin]
}

fn setup() -> Setup {
    for (program, package) in [
        ("dnf", "dnf"),
        ("rpmbuild", "rpm"),
        ("createrepo_c", "createrepo-c"),
        ("pacman", "pacman-package-manager"),
        ("dpkg-scanpackages", "dpkg-dev"),
        ("makepkg", "makepkg"),
        ("sudo", "sudo"),
        ("script", "bsdutils"),
    ] {
        let path = std::env::var("PATH").unwrap();
        let there = path.split(':').any(|folder| Path::new(folder).join(program).exists());
        assert!(there, "the tests of --setup need {program}: apt-get install {package}");
    }
    let setup = Setup::bare().env("OPENWORK_TOKEN", CLIENT_TOKEN).env("OPENWORK_HOST_TOKEN", HOST_TOKEN);
    setup.scratch().folder("machine");
    setup.data("/tmp/data").arg("--setup")
}

fn base(setup: &Setup) -> String {
    setup.scratch().path().join("machine").to_str().unwrap().to_owned()
}

/// The server has printed and executed this command, every program exists now, and it serves requests.
#[track_caller]
fn installed(server: &Server, commands: &[&str], manager_says: &str) {
    let log = server.log();
    for command in commands {
        assert!(log.contains(&format!("Setup: {command}")), "no {command:?} in:\n{log}");
    }
    assert!(log.contains(manager_says), "no word from the manager itself:\n{log}");
    assert!(log.contains("Setup: done") && !log.contains("cannot be built"), "{log}");
    let place = Place::host(server);
    for file in
        ["/usr/bin/systemd-nspawn", "/usr/sbin/debootstrap", "/usr/share/keyrings/ubuntu-archive-keyring.gpg"]
    {
        assert_eq!(place.sh(&format!("cat {file}")), "#!/bin/sh\n");
    }
    // Only a complete set of keys can replace the package.
    let keys = place.sh("sudo pacman-key --list-keys; ls -d /etc/pacman.d/gnupg*");
    assert!(keys.contains("[  full  ] packager <x@y.z>"), "{keys}");
    assert!(keys.ends_with("\n/etc/pacman.d/gnupg\n"), "{keys}");
}

#[test]
fn dnf_installs_missing_programs() {
    let setup = setup();
    let server = setup.start_through(&words(&base(&setup), &dnf(setup.scratch())));
    let packages =
        "systemd-container debootstrap debian-keyring ubu-keyring arch-install-scripts archlinux-keyring";
    let install = format!("dnf install --assumeyes --setopt=install_weak_deps=False {packages}");
    installed(&server, &[&install], "Complete!");
}

#[test]
fn pacman_installs_missing_programs() {
    let setup = setup();
    let server = setup.start_through(&words(&base(&setup), &pacman(setup.scratch())));
    let packages =
        "systemd debootstrap debian-archive-keyring ubuntu-keyring arch-install-scripts archlinux-keyring";
    installed(&server, &[&format!("pacman -S --needed --noconfirm {packages}")], "installing debootstrap");
}

#[test]
fn setup_without_root_uses_sudo() {
    let setup = setup();
    let change = apt(setup.scratch())
        + "\necho 'nobody ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/berth; chmod 440 /etc/sudoers.d/berth";
    let base = base(&setup);
    let mut words = words(&base, &change);
    words.extend(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    let server = setup.start_through(&words);
    let sudo = "sudo env DEBIAN_FRONTEND=noninteractive apt-get";
    let packages = "systemd-container debootstrap debian-archive-keyring ubuntu-keyring arch-install-scripts archlinux-keyring";
    let install = format!("{sudo} install --yes --no-install-recommends {packages}");
    installed(&server, &[&format!("{sudo} update"), &install], "Setting up debootstrap (9999)");
    assert_eq!(Place::host(&server).sh("id -u"), "65534\n");
}

#[test]
fn setup_without_a_package_manager_prints_instructions() {
    for (change, user, expected) in [
        (
            "rm /usr/bin/apt-get /usr/bin/dnf /usr/bin/pacman",
            "0",
            "install yourself: systemd-nspawn, debootstrap",
        ),
        ("rm /usr/bin/sudo", "65534", "sudo is missing; or run berth as root"),
    ] {
        let setup = setup();
        let change = format!("{BARE} {change}");
        let base = base(&setup);
        setup.scratch().folder("repo");
        let mut words = words(&base, &change);
        words.extend(["setpriv", "--reuid", user, "--clear-groups", "--", BINARY, "--setup", "--port=0"]);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env_clear().env("PATH", std::env::var("PATH").unwrap());
        let ended = run(command.env("BERTH_DATA_DIR", "/tmp/data"), secs(60));
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains(expected), "no {expected:?} in {ended:?}");
    }
}

/// A berth process at its own terminal.
struct AtTerminal {
    child: Child,
    setup: Setup,
}

impl AtTerminal {
    #[track_caller]
    fn start() -> AtTerminal {
        let setup = setup();
        let change = dnf(setup.scratch());
        let screen = setup.scratch().path().join("screen");
        let base = base(&setup);
        // script(1) creates the terminal; it runs outside of the machine, so that its record can be read here.
        let inner = "exec unshare --mount --propagation=private sh -c \"$MACHINE\" machine \"$BASE\" \"$CHANGE\" \"$BIN\" \
                     \"$BIN/berth\" --setup --port=0 --data-dir=/tmp/data";
        let mut command = Command::new("script");
        command.args(["--quiet", "--flush", "--return", "--command", inner]).arg(screen);
        command.env("MACHINE", MACHINE).env("BASE", &base).env("CHANGE", change).env("SHELL", "/bin/sh");
        command.env("BIN", Path::new(BINARY).parent().unwrap());
        let child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        AtTerminal { child, setup }
    }

    fn screen(&self) -> String {
        let bytes = std::fs::read(self.setup.scratch().path().join("screen")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[track_caller]
    fn wait(&self, text: &str) -> String {
        wait_for(text, secs(60), || Some(self.screen()).filter(|screen| screen.contains(text)))
    }

    /// Types this text; `None` closes the terminal's input.
    #[track_caller]
    fn typed(&mut self, keys: Option<&str>) {
        match keys {
            Some(keys) => self.child.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap(),
            None => drop(self.child.stdin.take()),
        }
    }

    #[track_caller]
    fn ended(mut self) -> Ended {
        let status = wait_for("berth's end", secs(60), || self.child.try_wait().unwrap());
        Ended { code: status.code(), stdout: self.screen(), stderr: String::new() }
    }
}

impl Drop for AtTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn setup_at_a_terminal_shows_the_commands_and_continues_after_yes() {
    let mut berth = AtTerminal::start();
    let question = berth.wait("Go on? [y/N] ");
    let install = "dnf install --assumeyes --setopt=install_weak_deps=False systemd-container debootstrap";
    assert!(question.contains(&format!("berth would run: {install}")), "{question}");
    assert!(!question.contains("Dependencies resolved"), "it did not wait for the answer:\n{question}");
    berth.typed(Some("y\n"));
    let screen = berth.wait("listening on http://");
    assert!(screen.contains("Complete!") && screen.contains("Setup: done"), "{screen}");
    let pid = berth.child.id();
    let server = procs::all().into_iter().find(|other| procs::parent(*other) == Some(pid)).unwrap();
    procs::signal(server, Signal::TERM);
    assert_eq!(berth.ended().code, Some(0));
}

#[test]
fn setup_at_a_terminal_installs_nothing_without_yes() {
    for keys in [Some("n\n"), Some("\n"), None] {
        let mut berth = AtTerminal::start();
        berth.wait("Go on? [y/N] ");
        berth.typed(keys);
        let ended = berth.ended();
        assert_eq!(ended.code, Some(1), "{keys:?}: {ended:?}");
        assert!(ended.stdout.contains("Setup was not confirmed"), "{keys:?}: {ended:?}");
        assert!(!ended.stdout.contains("Dependencies resolved"), "{keys:?}: {ended:?}");
        assert!(!ended.stdout.contains("listening"), "{keys:?}: {ended:?}");
    }
}
