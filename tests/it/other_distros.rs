//! Ubuntu and Arch Linux, whose archives a Debian machine cannot verify by itself: real debootstrap and real pacstrap
//! with small archives that are built and signed here. The Ubuntu archive contains Debian's own packages, so the
//! resulting system is a Debian; the procedure (suite, script of the family, components, keyring, signature) is that
//! of Ubuntu.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::fixture::{Place, image_root, seeded};
use crate::isolation::{CARELESS, Stranger, live, open_to_all};
use crate::procs::secs;
use crate::scratch::Scratch;
use crate::server::{Server, Setup, read, run};

#[track_caller]
fn shell(folder: &Path, script: &str) -> String {
    let script = format!("set -e\n{script}");
    let done = run(Command::new("sh").args(["-c", &script]).current_dir(folder), secs(120));
    assert_eq!(done.code, Some(0), "{script}: {done:?}");
    done.stdout
}

/// A gnupg folder with one signing key; `NAME.gpg` beside it is the public key.
#[track_caller]
fn key(scratch: &Scratch, name: &str) -> PathBuf {
    let home = scratch.folder(name);
    // The agent that gpg starts exits when its folder is removed (gpg-agent(1)); this command ends it at once.
    shell(
        scratch.path(),
        &format!(
            "chmod 700 {name}
            touch {name}/pubring.gpg # pacman wants this name (pacman-key --init)
            gpg --homedir {name} --batch --quiet --passphrase '' --quick-generate-key '{name} <x@y.z>' rsa2048 sign
            gpg --homedir {name} --batch --quiet --export > {name}.gpg
            gpgconf --homedir {name} --kill all"
        ),
    );
    home
}

/// An archive with the packages of a minimal Debian, signed with `key`. Some packages are compressed with zstd, as all
/// packages of Ubuntu are.
#[track_caller]
fn ubuntu(scratch: &Scratch) {
    let archive = scratch.folder("archive");
    packages(&archive);
    for suite in ["noble", "jammy"] {
        release(scratch, &archive, suite);
    }
}

#[track_caller]
fn packages(archive: &Path) {
    // The package names are those of the image that the other tests use.
    let image = seeded();
    let status = image_root(image.data_dir()).join("var/lib/dpkg/status");
    shell(
        archive,
        &format!(
            "mkdir pool
            names=$(sed -n 's/^Package: //p' {status})
            (cd pool; apt-get download -qq $names 2>/dev/null || {{ apt-get -qq update; apt-get download -qq $names; }}) >&2
            for name in base-files dash sed gzip; do
                deb=$(ls pool/${{name}}_*.deb)
                dpkg-deb --raw-extract $deb unpacked
                dpkg-deb -Zzstd --build unpacked $deb >&2
                rm -r unpacked
            done
            ar t $(ls pool/dash_*.deb) | grep -q data.tar.zst
            dpkg-scanpackages pool > Packages",
            status = status.display(),
        ),
    );
}

#[track_caller]
fn release(scratch: &Scratch, archive: &Path, suite: &str) {
    shell(
        archive,
        &format!(
            "mkdir -p dists/{suite}/main/binary-amd64 dists/{suite}/universe/binary-amd64
            cp Packages dists/{suite}/main/binary-amd64/Packages
            : > dists/{suite}/universe/binary-amd64/Packages
            cd dists/{suite}
            {{
                printf '%s\\n' 'Origin: Ubuntu' 'Suite: {suite}' 'Codename: {suite}' 'Architectures: amd64' \\
                    'Components: main universe' \"Date: $(date -Ru)\" SHA256:
                for file in */binary-amd64/Packages; do
                    echo \" $(sha256sum $file | cut -d ' ' -f 1) $(stat -c %s $file) $file\"
                done
            }} > Release
            gpg --homedir {good} --batch --quiet --clearsign -o InRelease Release
            gpgconf --homedir {good} --kill all",
            good = scratch.path().join("good").display(),
        ),
    );
}

/// Starts a server that uses this archive for Ubuntu's packages.
fn with_archive(scratch: &Scratch, keyring: Option<&str>) -> Setup {
    let folder = scratch.path().display();
    let mut setup = Setup::in_folder(Scratch::in_memory());
    for suite in ["noble", "jammy"] {
        setup = setup.arg(format!("--mirror=ubuntu-{suite}=file://{folder}/archive"));
        if let Some(keyring) = keyring {
            setup = setup.arg(format!("--keyring=ubuntu-{suite}={folder}/{keyring}"));
        }
    }
    setup
}

#[track_caller]
fn ubuntu_is_refused(server: &Server, extra: serde_json::Value) {
    let place = Place::pending(server, extra);
    place.client.call("POST", &place.path("/build"), None).expect(200);
    let done = place.settled();
    assert_eq!(done["status"], "error", "{done}");
    assert!(done["error_message"].as_str().unwrap().contains("signed by unknown key"), "{done}");
}

#[track_caller]
fn ubuntu_is_built(server: &Server, extra: serde_json::Value) {
    let place = Place::ready(server, extra);
    let log = read(place.root.with_extension("build.log"));
    for line in ["I: Valid Release signature", "I: Base system installed successfully", "by init"] {
        assert!(log.contains(line), "no {line:?} in\n{log}");
    }
    assert_eq!(place.sh("id -u; dpkg --audit; dpkg-query -Wf '${Status}' apt"), "0\ninstall ok installed");
}

#[test]
fn ubuntu_is_built_by_debootstrap_from_a_signed_archive() {
    let scratch = Scratch::new();
    key(&scratch, "good");
    key(&scratch, "other");
    ubuntu(&scratch);
    let noble =
        json!({"name": "noble", "distro": "ubuntu-noble", "init_script": "#!/bin/sh\necho by init\n"});
    let jammy =
        json!({"name": "jammy", "distro": "ubuntu-jammy", "init_script": "#!/bin/sh\necho by init\n"});

    // An archive signed with a different key: no file of it may be used.
    let server = with_archive(&scratch, Some("other.gpg")).start();
    ubuntu_is_refused(&server, noble.clone());
    server.stop();
    // Without a keyring on the host, berth's own keyring is used, which does not contain the test's key.
    let hide = "for file in /usr/share/keyrings/ubuntu-archive-keyring.*; do
                    [ ! -e $file ] || mount --bind /dev/null $file
                done
                exec \"$@\"";
    let words = ["unshare", "--mount", "--propagation=private", "sh", "-ec", hide, "sh"];
    let server = with_archive(&scratch, None).start_through(&words);
    let checks = server.owner().get(200, "/api/doctor")["checks"].clone();
    let row = checks.as_array().unwrap().iter().find(|row| row["name"] == "build ubuntu-noble").unwrap();
    assert_eq!(row["status"], "ok", "{row}");
    assert!(
        row["found"].as_str().unwrap().contains("Ubuntu's archive keys, which are part of berth"),
        "{row}"
    );
    ubuntu_is_refused(&server, noble.clone());
    server.stop();

    // With the weakest umask and an open data folder: no other user reaches the files of a bootstrap, during it or
    // afterwards.
    let setup = with_archive(&scratch, Some("good.gpg"));
    open_to_all(&[setup.scratch().path(), setup.data_dir()]);
    let other_user = Stranger::watch(&[setup.data_dir()]);
    let server = setup.start_through(&CARELESS);
    ubuntu_is_built(&server, noble.clone());
    live(&Place::ready(&server, noble));
    server.stop();
    other_user.saw_nothing();
    // A host whose dpkg-deb does not support zstd, or that has no dpkg-deb: debootstrap's other extractor.
    let hide = "mount --bind /dev/null /usr/bin/dpkg-deb; exec \"$@\"";
    let words = ["unshare", "--mount", "--propagation=private", "sh", "-ec", hide, "sh"];
    let server = with_archive(&scratch, Some("good.gpg")).start_through(&words);
    ubuntu_is_built(&server, jammy);
}

#[test]
fn arch_is_built_by_pacstrap_from_signed_packages() {
    let scratch = Scratch::new();
    let good = key(&scratch, "good");
    // The keyring contains the signer, but does not trust it. (pacman 6.0.2 itself crashes on an unknown signer.)
    let other = key(&scratch, "other");
    shell(
        scratch.path(),
        "gpg --homedir other --batch --quiet --import good.gpg; gpgconf --homedir other --kill all",
    );
    let archive = scratch.folder("archive");
    // One static program is enough for a system; pacstrap requests the package `base`.
    shell(
        &archive,
        "(apt-get download -qq busybox-static 2>/dev/null || { apt-get -qq update; apt-get download -qq busybox-static; }) >&2
        dpkg-deb -x busybox-static_*.deb busybox
        mkdir -p base/usr/bin base/etc base/root db/base-1-1
        cp busybox/bin/busybox base/usr/bin/busybox
        for applet in sh cat echo id ls sleep; do ln -s busybox base/usr/bin/$applet; done
        for folder in bin sbin; do ln -s usr/bin base/$folder; done
        printf 'ID=arch\\nNAME=\"Arch Linux\"\\n' > base/etc/os-release
        echo root:x:0:0:root:/root:/bin/sh > base/etc/passwd
        printf '%s\\n' 'pkgname = base' 'pkgbase = base' 'pkgver = 1-1' 'pkgdesc = x' 'arch = any' > base/.PKGINFO
        pkg=base-1-1-any.pkg.tar.xz
        tar -C base --owner=0 --group=0 -cJf $pkg .PKGINFO bin etc root sbin usr
        gpg --homedir $(realpath ../good) --batch --quiet --detach-sign $pkg
        gpgconf --homedir $(realpath ../good) --kill all
        printf '%%%s%%\\n%s\\n\\n' FILENAME $pkg NAME base VERSION 1-1 ARCH any CSIZE $(stat -c %s $pkg) \
            SHA256SUM $(sha256sum $pkg | cut -d ' ' -f 1) PGPSIG $(base64 -w 0 $pkg.sig) > db/base-1-1/desc
        tar -C db -czf core.db base-1-1
        tar -czf extra.db --files-from=/dev/null",
    );
    let start = |keyring: &Path| {
        Setup::in_folder(Scratch::in_memory())
            .arg(format!("--mirror=arch-linux=file://{}", archive.display()))
            .arg(format!("--keyring=arch-linux={}", keyring.display()))
            .start()
    };
    let extra = json!({"name": "arch", "distro": "arch-linux", "init_script": "echo by init\n"});

    let server = start(&other);
    let place = Place::pending(&server, extra.clone());
    place.client.call("POST", &place.path("/build"), None).expect(200);
    let done = place.settled();
    assert_eq!(done["status"], "error", "{done}");
    let message = done["error_message"].as_str().unwrap();
    assert!(message.contains("signature from \"good <x@y.z>\" is unknown trust"), "{message}");
    drop(place);
    server.stop();

    let server = start(&good);
    let place = Place::ready(&server, extra);
    assert!(place.init_log().contains("by init"), "{}", place.init_log());
    assert_eq!(place.sh("cat /etc/os-release; id -u"), "ID=arch\nNAME=\"Arch Linux\"\n0\n");
}
