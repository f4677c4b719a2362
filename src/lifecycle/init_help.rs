//! Explains why an init script could not run, from the script itself and the container's files.

use crate::store::beneath::Root;

/// Returns the cause of a script's failure and how to correct it, or `None` if no cause can be found. `own` is the
/// workspace's own script; `before` is the part that bash runs first.
pub(super) fn help(root: &Root, own: Option<&str>, before: &str) -> Option<String> {
    if !before.is_empty() && !has_program(root, "bash") {
        return Some(
            "bash is not in the container, and the library's init scripts and the setup commands of skills need it; \
             use an image that has it"
                .to_owned(),
        );
    }
    let sections = before.split("\n# === ").skip(1).filter_map(|section| section.split_once(" ===\n"));
    let mut crlf: Vec<String> =
        sections.filter(|(_, text)| text.contains(CRLF)).map(|(name, _)| format!("'{name}'")).collect();
    if own.is_some_and(|own| own.contains(CRLF)) {
        crlf.push("the init script".to_owned());
    }
    if !crlf.is_empty() {
        return Some(format!(
            "{} has Windows line endings (CRLF), which Linux treats as part of each command; save it with LF only, \
             for example with `sed -i 's/\\r$//' FILE`",
            crlf.join(" and ")
        ));
    }
    let missing = interpreter(own?).filter(|program| !has_program(root, program))?;
    Some(format!(
        "the interpreter '{}' of the init script is not in the container; install it in an init script of the library, \
         which runs first, or begin the script with #!/bin/sh",
        missing.escape_debug()
    ))
}

const CRLF: &str = "\r\n";

/// Returns the program in the shebang of a script (execve(2)). If that is `env`, returns the program that `env` looks
/// up.
fn interpreter(script: &str) -> Option<&str> {
    let line = script.strip_prefix("#!")?.lines().next()?;
    let mut words = line.split_whitespace();
    let program = words.next()?;
    if program.rsplit('/').next() != Some("env") {
        return Some(program);
    }
    let found = words.find(|word| !word.starts_with('-') && !word.contains('='));
    Some(found.unwrap_or(program))
}

/// Returns whether the container has a program, at this path or in a folder of `PATH`.
fn has_program(root: &Root, program: &str) -> bool {
    const PATH: [&str; 6] = ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"];
    let there =
        |path: &str| root.metadata(path).is_ok_and(|found| found.is_some_and(|found| found.is_file()));
    match program.starts_with('/') {
        true => there(program),
        false => PATH.iter().any(|folder| there(&format!("{folder}/{program}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::file::write_atomic;
    use crate::store::scratch::TestFolder;

    #[test]
    fn crlf_and_missing_interpreters_are_explained() {
        let dir = TestFolder::new();
        std::fs::create_dir_all(dir.join("usr/bin")).unwrap();
        std::os::unix::fs::symlink("usr/bin", dir.join("bin")).unwrap();
        write_atomic(&dir.join("usr/bin/bash"), b"", 0o755).unwrap();
        let root = Root::open(&dir).unwrap();
        let message = |own: Option<&str>, before: &str| help(&root, own, before).unwrap_or_default();
        for own in [
            "#!/bin/bash\nexit 3\n",
            "#!/usr/bin/env bash\nx",
            "exit 1",
            "#! /bin/bash -e\n",
            "#!/usr/bin/env -S bash -e\n",
        ] {
            assert_eq!(message(Some(own), ""), "", "{own}");
        }
        assert!(
            message(Some("#!/bin/bash\r\nx\r\n"), "").contains("the init script has Windows line endings")
        );
        assert!(message(Some("#!/usr/bin/python3\nx"), "").contains("'/usr/bin/python3' of the init script"));
        assert!(message(Some("#!/usr/bin/env -S node --x\n"), "").contains("'node'"));
        let before = "\n# === base ===\necho\r\n\n# === good ===\necho\n";
        assert!(message(None, before).starts_with("'base' has Windows"));
        std::fs::remove_file(dir.join("usr/bin/bash")).unwrap();
        assert!(message(None, before).starts_with("bash is not in the container"));
    }
}
