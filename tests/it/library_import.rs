//! Import of skills as one file: real zip archives made by Python, valid ones and hostile ones.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::client::{Client, Reply};
use crate::server::{Server, Setup};

const IMPORT: &str = "/api/library/skill/import";

/// An archive written by these lines of Python into `z`, a `zipfile.ZipFile`.
#[track_caller]
fn zip(lines: &str) -> Vec<u8> {
    let script = format!(
        "import io, stat, sys, zipfile, warnings\nwarnings.simplefilter('ignore')\nout = io.BytesIO()\n\
         def link(z, name, target, kind=stat.S_IFLNK):\n    i = zipfile.ZipInfo(name)\n    i.create_system = 3\n    \
         i.external_attr = (kind | 0o777) << 16\n    z.writestr(i, target)\n\
         z = zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED)\n{lines}\nz.close()\ndata = out.getvalue()\n\
         if 'change' in globals():\n    data = change(data)\nsys.stdout.buffer.write(data)\n"
    );
    let created = Command::new("python3").args(["-c", &script]).stderr(Stdio::inherit()).output().unwrap();
    assert!(created.status.success(), "{lines}");
    created.stdout
}

pub(crate) fn import(client: &Client, name: &str, file: &str, bytes: &[u8]) -> Reply {
    let mut body = format!(
        "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{file}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    )
    .into_bytes();
    body.extend_from_slice(bytes);
    body.extend_from_slice(b"\r\n--b--\r\n");
    let kind = [("Content-Type", "multipart/form-data; boundary=b")];
    client.send("POST", &format!("{IMPORT}?name={name}"), &kind, Some(&body))
}

#[track_caller]
fn refused(server: &Server, name: &str, file: &str, bytes: &[u8], status: u16, code: &str) -> String {
    let reply = import(&server.owner(), name, file, bytes).expect(status).value();
    assert_eq!(reply["code"], code, "{reply}");
    reply["message"].as_str().unwrap().to_owned()
}

/// Every file below a folder, including hidden ones.
fn all_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        found.push(entry.path().display().to_string());
        if entry.file_type().unwrap().is_dir() {
            found.extend(all_below(&entry.path()));
        }
    }
    found.sort();
    found
}

#[test]
fn skills_are_imported_from_text_or_an_archive() {
    let server = Server::start();
    let owner = server.owner();
    let created = owner.post(200, "/api/workspaces", json!({"name": "w", "skills": ["py", "pdf"]}));
    let folder = Path::new(created["path"].as_str().unwrap()).to_owned();
    let text = "---\ndescription: Python\n---\n# Py\n";
    let reply = import(&owner, "py", "Anything.MD", text.as_bytes()).expect(200).value();
    assert_eq!(
        reply,
        json!({"name": "py", "description": "Python", "path": "skill/py", "source": {"type": "Local"},
            "content": text, "files": [], "references": []})
    );
    assert!(fs::read_to_string(folder.join(".claude/skills/py/SKILL.md")).unwrap().ends_with("# Py\n"));

    // One folder around all files, the extra files of macOS, and a binary file.
    let archive = zip("z.mkdir('pdf-skill')\n\
        z.writestr('pdf-skill/SKILL.md', '# Pdf\\n')\n\
        z.writestr('pdf-skill/docs/forms.md', 'forms ' * 10000)\n\
        z.writestr('pdf-skill/scripts/fill.py', 'print()')\n\
        z.writestr('pdf-skill/font.ttf', bytes(range(256)) * 8000)\n\
        z.writestr('pdf-skill/.DS_Store', 'x')\nz.writestr('__MACOSX/._pdf-skill', 'x')\n\
        z.writestr(zipfile.ZipInfo('pdf-skill/stored.txt'), 'stored')");
    let reply = import(&owner, "%20PDF%20", "pdf-skill.zip", &archive).expect(200).value();
    assert_eq!((&reply["name"], &reply["content"]), (&json!("pdf"), &json!("# Pdf\n")));
    assert_eq!(reply["files"][0]["path"], "docs/forms.md");
    assert_eq!(reply["references"], json!(["font.ttf", "scripts/fill.py", "stored.txt"]));
    assert_eq!(owner.get(200, "/api/library/skill/pdf"), reply);
    let library = server.data.join("library/skill/pdf");
    assert_eq!(fs::read(library.join("font.ttf")).unwrap().len(), 256 * 8000);
    assert_eq!(fs::read_to_string(folder.join(".opencode/skill/pdf/docs/forms.md")).unwrap().len(), 60_000);

    // A skill with this name is still a skill.
    owner.call("PUT", "/api/library/skill/import", Some(&json!({"content": "# I\n"}))).expect(200);
    assert_eq!(owner.get(200, "/api/library/skills/import")["content"], "# I\n");
    // Files from the previous import with the same name stay.
    let message = refused(&server, "pdf", "other.md", b"# Other\n", 409, "conflict");
    assert!(message.contains("'pdf' already exists"), "{message}");
    assert_eq!(owner.get(200, "/api/library/skill/pdf"), reply);
}

#[test]
fn invalid_archives_are_refused_and_leave_no_files() {
    let setup = Setup::new();
    let server = setup.start();
    let skills = setup.data_dir().join("library/skill");
    for name in ["", "A_b", "a%2Fb", "..", "%2e%2e%2fx", "a.b", "%C3%A9", "a%00", &"x".repeat(201)] {
        refused(&server, name, "x.md", b"# X\n", 400, "invalid_name");
    }
    let owner = server.owner();
    let form = [("Content-Type", "multipart/form-data; boundary=b")];
    owner.send("POST", IMPORT, &form, Some(b"--b--\r\n")).expect(400);
    let none = owner.send("POST", &format!("{IMPORT}?name=x"), &form, Some(b"--b--\r\n")).expect(400);
    assert_eq!(none.value()["code"], "file_required");
    owner.refused(400, "invalid_payload", "POST", &format!("{IMPORT}?name=x"), Some(json!({"content": "x"})));
    server.collaborator().call("POST", &format!("{IMPORT}?name=x"), None).expect(403);

    let wrong = |file: &str, bytes: &[u8]| refused(&server, "x", file, bytes, 400, "invalid_skill_content");
    assert!(wrong("x.tar.gz", b"x").contains(".zip or .md"));
    assert!(wrong("x.md", b"\xff\xfe").contains("UTF-8"));
    wrong("x.md", &vec![b'x'; (1 << 20) + 1]);
    wrong("x.zip", b"");
    wrong("x.zip", b"PK\x05\x06 not an archive");
    let main = "z.writestr('SKILL.md', '# X\\n')\n";
    for (what, lines) in [
        ("No SKILL.md", "z.writestr('a.txt', 'x')"),
        ("No SKILL.md", "z.writestr('a/SKILL.md', 'x')\nz.writestr('b/x.md', 'x')"),
        ("more than one", "z.writestr('Skill.md', 'x')\nz.writestr('SKILL.md', 'x')"),
        ("leads out", &format!("{main}z.writestr('../escaped.md', 'x')")),
        ("leads out", &format!("{main}z.writestr('a/../../escaped.md', 'x')")),
        ("leads out", &format!("{main}z.writestr('/escaped.md', 'x')")),
        ("leads out", &format!("{main}z.writestr('a\\\\..\\\\..\\\\escaped.md', 'x')")),
        ("leads out", &format!("{main}z.writestr('C:\\\\x', 'x')")),
        ("leads out", &format!("{main}z.writestr('.git/../../x', 'x')")),
        ("leads out", &format!("{main}z.mkdir('../folder')")),
        ("link or a device", &format!("{main}link(z, 'passwd', '/etc/passwd')")),
        ("link or a device", &format!("{main}link(z, 'a', '..')\nz.writestr('a/escaped.md', 'x')")),
        ("link or a device", &format!("{main}link(z, 'pipe', '', stat.S_IFIFO)")),
        ("link or a device", &format!("{main}link(z, 'null', '', stat.S_IFCHR)")),
        ("twice", &format!("{main}z.writestr('a', 'x')\nz.writestr('a', 'y')")),
        ("a file and a folder", &format!("{main}z.writestr('a', 'x')\nz.writestr('a/b', 'y')")),
        ("not UTF-8", "z.writestr('SKILL.md', bytes([255]))"),
        ("longer than 1048576", "z.writestr('SKILL.md', 'x' * (1 << 20) + 'x')"),
        ("compressed in a way", "z.writestr('SKILL.md', 'x' * 999, zipfile.ZIP_BZIP2)"),
        ("larger than", &format!("{main}z.writestr('zeros', bytes(40 << 20))")),
        ("more than 1000", &format!("{main}[z.writestr(f'{{n}}', '') for n in range(1001)]")),
        // Headers that contradict the contents.
        (
            "damaged",
            &format!(
                "{main}z.writestr('z', bytes(40 << 20))\n\
                 change = lambda d: d.replace((40 << 20).to_bytes(4, 'little'), (9).to_bytes(4, 'little'))"
            ),
        ),
        (
            "damaged",
            &format!(
                "{main}change = lambda d: d.replace(zipfile.crc32(b'# X\\n').to_bytes(4, 'little'), b'abcd')"
            ),
        ),
        ("two different names", &format!("{main}change = lambda d: d.replace(b'SKILL.md', b'OTHER.md', 1)")),
        (
            "entry count does not match",
            &format!("{main}change = lambda d: d[:-14] + bytes([2, 0, 2, 0]) + d[-10:]"),
        ),
        ("encrypted", &format!("{main}change = lambda d: d[:-22-54+8] + b'\\1' + d[-22-54+9:]")),
        // An entry whose data overlaps that of another entry.
        (
            "overlap",
            &format!(
                "{main}b = io.BytesIO()\ny = zipfile.ZipFile(b, 'w')\ny.writestr('b', 'bb')\ny.close()\n\
                 z.writestr(zipfile.ZipInfo('a'), b.getvalue())\ninner = y.filelist[0]\n\
                 inner.header_offset = z.filelist[-1].header_offset + 31\nz.filelist.append(inner)"
            ),
        ),
    ] {
        let message = wrong("x.zip", &zip(lines));
        assert!(message.contains(what), "{lines}: {message}");
    }
    // Truncated at any offset.
    let whole = zip(&format!("{main}z.writestr('more.md', 'more ' * 100)"));
    for at in (0..whole.len()).step_by(7) {
        wrong("x.zip", &whole[..at]);
    }
    refused(&server, "x", "x.zip", &vec![b'x'; (8 << 20) + 1], 413, "file_too_large");
    assert_eq!(all_below(&skills), Vec::<String>::new());
    assert_eq!(owner.get(200, "/api/library/skill"), json!([]));
    assert!(!setup.data_dir().join("library/escaped.md").exists() && !skills.join("escaped.md").exists());
}

#[test]
fn an_unusable_entry_is_skipped_and_named() {
    let server = Server::start();
    let owner = server.owner();
    let main = "z.writestr('x/SKILL.md', '# X\\n')\nz.writestr('x/ok.txt', 'ok')\n";
    let long = "x".repeat(201);
    for (number, (name, why, lines)) in [
        ("x/a\nb", "control characters", "z.writestr('x/a\\nb', 'x')".to_owned()),
        ("x/Icon\r", "control characters", "z.writestr('x/Icon\\r', '')".to_owned()),
        ("x/a/b/c/d/e/f/g/h/i", "too many folders", "z.writestr('x/a/b/c/d/e/f/g/h/i', 'x')".to_owned()),
        (&format!("x/{long}"), "longer than 200", format!("z.writestr('x/{long}', 'x')")),
        ("x/b", "compressed in a way", "z.writestr('x/b', 'x' * 999, zipfile.ZIP_BZIP2)".to_owned()),
        (
            "x/e",
            "encrypted",
            "z.writestr('x/e', 'x')\n\
             change = lambda d: d[:-22-49+8] + bytes([d[-22-49+8] | 1]) + d[-22-49+9:]"
                .to_owned(),
        ),
        (
            "x/f\u{fffd}r",
            "not valid UTF-8",
            "z.writestr('x/f\u{fc}r', 'x')\nchange = lambda d: d.replace('\u{fc}'.encode(), b'z\\x81')"
                .to_owned(),
        ),
        // GBK names, as Windows in Chinese writes them.
        (
            "x/╦╡├≈.txt",
            "does not state",
            "z.writestr('x/GGGG.txt', 'x')\n\
             change = lambda d: d.replace(b'GGGG', bytes([0xcb, 0xb5, 0xc3, 0xf7]))"
                .to_owned(),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let reply = import(&owner, &format!("s{number}"), "x.zip", &zip(&format!("{main}{lines}")));
        let reply = reply.expect(200).value();
        let skipped = reply["skipped"][0].as_str().unwrap_or_default();
        assert!(skipped == name || name.contains('\u{fffd}') && skipped.contains('\u{fffd}'), "{reply}");
        assert_eq!(reply["skipped"].as_array().map(Vec::len), Some(1), "{reply}");
        assert!(reply["warnings"][0].as_str().unwrap().contains(why), "{reply}");
        assert_eq!(reply["references"], json!(["ok.txt"]), "{reply}");
    }
    // Files that the library cannot show as text are stored as data.
    let archive = zip("z.writestr('SKILL.md', '# X\\n')\nz.writestr('bad.md', bytes([255]))\n\
        z.writestr('long.md', 'x' * (1 << 20) + 'x')");
    let reply = import(&owner, "data", "x.zip", &archive).expect(200).value();
    assert_eq!(reply.get("skipped"), None, "{reply}");
    assert!(reply["files"][0]["error"].as_str().unwrap().contains("not UTF-8"), "{reply}");
    assert_eq!(fs::read(server.data.join("library/skill/data/bad.md")).unwrap(), [255]);
}

#[test]
fn archives_of_common_tools_are_accepted() {
    let server = Server::start();
    let owner = server.owner();
    let library = server.data.join("library/skill");
    let main = "z.writestr('SKILL.md', '# X\\n')\n";
    let raw = "def raw(name, data='x', system=0, attributes=0, flags=None, extra=b''):\n    \
        i = zipfile.ZipInfo('x')\n    i.filename = name\n    i.create_system = system\n    \
        i.external_attr = attributes\n    i.extra = extra\n    z.writestr(i, data)\n";
    for (number, (what, lines, files)) in [
        ("PowerShell 5.1", "raw('b\\\\SKILL.md')\nraw('b\\\\docs\\\\a.md')\nraw('b\\\\docs\\\\', '')", "SKILL.md docs/a.md"),
        ("jar", "raw('b/', '')\nraw('b/SKILL.md')\nraw('b/docs/', '', 0, 0, None, bytes([254, 202, 0, 0]))\nraw('b/docs/a')", "SKILL.md docs/a"),
        ("no attributes", "raw('b/', '', 3)\nraw('b/SKILL.md', 'x', 3)", "SKILL.md"),
        ("permissions without a type", "raw('b/', '', 3, 0o755 << 16)\nraw('b/SKILL.md', 'x', 3, 0o644 << 16)", "SKILL.md"),
        ("folder by attribute", "raw('b', '', 0, 16)\nraw('b/SKILL.md')", "SKILL.md"),
        ("two dots in a name", "raw('SKILL.md')\nraw('v1..v2.md')\nraw('app/[...slug]/page.tsx')\nraw('..x')\nraw('x..')", "..x SKILL.md app/[...slug]/page.tsx v1..v2.md x.."),
        ("detours", "raw('./b/SKILL.md')\nraw('b//a')\nraw('b/./c')", "SKILL.md a c"),
        ("Finder", "raw('b/SKILL.md')\nraw('__MACOSX/b/._SKILL.md')\nraw('b/.DS_Store')\nraw('b/.env.example')", ".env.example SKILL.md"),
        ("a repository", "raw('b/SKILL.md')\nraw('.github/x.yml')", "SKILL.md"),
        ("UTF-8 that is not announced", "raw('SKILL.md')\nraw('f_r.md')\nchange = lambda d: d.replace(b'f_r', b'\\xc3\\xbcr')", "SKILL.md \u{fc}r.md"),
        ("CP437", "raw('SKILL.md')\nraw('f_r.md')\nchange = lambda d: d.replace(b'f_r', b'f\\x81r')", "SKILL.md f\u{fc}r.md"),
        ("a comment with a signature", "raw('SKILL.md')\nz.comment = b'made by PK\\5\\6 and so on'", "SKILL.md"),
        ("Info-ZIP's Unicode path", "import struct\nraw('SKILL.md')\ndef up(n, u):\n    u = bytes([1]) + struct.pack('<I', zipfile.crc32(n)) + u.encode()\n    return struct.pack('<HH', 0x7075, len(u)) + u\n\
raw('x', 'x', 0, 0, None, up(b'x', '\u{8aaa}.md'))\nraw('y', 'x', 0, 0, None, up(b'other', 'stale.md'))", "SKILL.md y \u{8aaa}.md"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("s{number}");
        let reply = import(&owner, &name, "x.zip", &zip(&format!("{raw}{lines}")));
        assert_eq!(reply.status, 200, "{what}: {}", reply.text());
        let top = library.join(&name);
        let mut found: Vec<String> = all_below(&top)
            .into_iter()
            .filter(|path| Path::new(path).is_file())
            .map(|path| path[top.display().to_string().len() + 1..].to_owned())
            .collect();
        found.sort();
        assert_eq!(found.join(" "), files, "{what}");
    }
    // A name that any reader could take for a path outside makes the whole archive invalid, however it is written.
    for lines in [
        "raw('a', 'x', 0, 0, None, bytes([0x75, 0x70, 11, 0, 1]) + zipfile.crc32(b'a').to_bytes(4, 'little') + b'../../')",
        "raw('..\\\\x')",
        "raw('\\\\x')",
        "raw('b/..')",
        "raw('c:/x')",
        "raw('__MACOSX/../../x')",
        "raw('x', '/etc', 0, 0o120777 << 16)",
        "raw('.git', '/etc', 3, 0o120777 << 16)",
        "raw('a/b')\nraw('a\\\\b')",
        "raw('a//b')\nraw('a/./b')",
        "raw('a/', '')\nraw('a')",
    ] {
        refused(&server, "bad", "x.zip", &zip(&format!("{raw}{main}{lines}")), 400, "invalid_skill_content");
    }
}

#[test]
fn a_partial_import_is_removed_at_the_next_start() {
    let setup = Setup::new();
    let remaining = setup.data_dir().join("library/skill/.importing-1/docs");
    fs::create_dir_all(&remaining).unwrap();
    fs::write(remaining.join("half.md"), "x").unwrap();
    let server = setup.start();
    assert_eq!(server.owner().get(200, "/api/library/skill"), json!([]));
    assert!(!remaining.parent().unwrap().exists());
}

#[test]
fn concurrent_imports_of_one_name_do_not_mix() {
    let server = Server::start();
    let archives: Vec<Vec<u8>> = (0..4)
        .map(|n| {
            zip(&format!(
                "z.writestr('SKILL.md', '# {n}\\n')\n[z.writestr(f'f{{i}}.md', '{n}') for i in range(40)]"
            ))
        })
        .collect();
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let calls: Vec<_> = archives
            .iter()
            .map(|archive| scope.spawn(|| import(&server.owner(), "x", "x.zip", archive).status))
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 409].contains(status)), "{statuses:?}");
    let skill = server.owner().get(200, "/api/library/skill/x");
    let winner = skill["content"].as_str().unwrap()[2..3].to_owned();
    let files = skill["files"].as_array().unwrap();
    assert_eq!(files.len(), 40);
    assert!(files.iter().all(|file| file["content"] == Value::String(winner.clone())), "{skill}");
    assert_eq!(all_below(&server.data.join("library/skill")).len(), 1 + 1 + 40);
}
