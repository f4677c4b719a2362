//! A project with skills and commands of all kinds: front matter as people write it, folders and names.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

pub fn put(work: &Path, rel: &str, bytes: &[u8]) {
    let path = work.join(rel);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Valid and invalid front matter; `NAME` is replaced by the folder's name.
const MATTERS: &[&str] = &[
    "---\nname: NAME\ndescription: plain\n---\nb\n",
    "---\nname: NAME\ndescription: Packs boxes on two axes: weight and size\n---\n",
    "--- \nname: NAME\ndescription: A blank behind the dashes\n---\n",
    "---\nname:\tNAME\ndescription:\tTabs behind the colon\n---\nb\n",
    "---\nname: NAME\ndescription: ok\nmetadata:\n\tauthor: me\n---\nb\n",
    "---\nname: NAME\ndescription: 'It''s quoted: yes'\n---\nb\n",
    "---\nname: NAME\ndescription: 'Don't do this'\n---\nb\n",
    "---\nname: NAME\ndescription: >-\n  one: two\n  three\n---\nb\n",
    "---\nname: NAME\ndescription: |\n  one: two\n\n  three\n---\nb\n",
    "---\nname: NAME\ndescription: first words\n  and more words on the next line\nlicense: MIT\n---\nb\n",
    "---\nname: NAME\ndescription: Use C# and F# #1 choice\n---\nb\n",
    "---\nname: NAME\ndescription: @mention people\n---\nb\n",
    "---\nname: NAME\ndescription: `code` first\n---\nb\n",
    "---\nname: NAME\ndescription: *important* thing\n---\nb\n",
    "---\nname: NAME\ndescription: %d percent\n---\nb\n",
    "---\nname: NAME\ndescription: [beta] Makes things\n---\nb\n",
    "---\nname: NAME\ndescription: {{placeholder}} text\n---\nb\n",
    "---\nname: NAME\ndescription: one\ndescription: two\n---\nb\n",
    "---\nname: NAME\ndescription: never closed\n\nbody\n",
    "---\nname: NAME\ndescription: never closed, nothing else\n",
    "---\nname: NAME\ndescription: closed by dots\n...\nbody\n",
    "----\nname: NAME\ndescription: four\n----\nbody\n",
    "\n---\nname: NAME\ndescription: a blank line first\n---\nbody\n",
    "<!-- note -->\n---\nname: NAME\ndescription: a remark first\n---\nbody\n",
    "---yaml\nname: NAME\ndescription: a language word\n---\nbody\n",
    "---json\n{\"name\": \"NAME\", \"description\": \"JSON\"}\n---\nbody\n",
    "---toml\nname = \"NAME\"\n---\nbody\n",
    "---\nname: NAME\ndescription: |\n  a\n  ---\n  b\n---\nbody\n",
    "---\nname: NAME\ndescription:\n---\nbody\n",
    "---\nname: NAME\ndescription: \"\"\n---\nbody\n",
    "---\nname: NAME\n---\nno description\n",
    "---\nname: NAME\ndescription:\n  - a\n  - b\n---\nbody\n",
    "---\nname: NAME\ndescription: yes\n---\nbody\n",
    "---\nname: NAME\ndescription: true\n---\nbody\n",
    "---\nname: NAME\ndescription: 2026-01-01\n---\nbody\n",
    "---\nname: NAME\ndescription: 12\n---\nbody\n",
    "---\nname: NAME\ndescription: 1:30\n---\nbody\n",
    "---\nname: 123\ndescription: numeric name\n---\nbody\n",
    "---\rname: NAME\rdescription: old Mac\r---\rbody\r",
    "---\r\nname: NAME\r\ndescription: from Windows\r\n---\r\nbody\r\n",
    "---\r\nname: NAME\r\ndescription: from Windows: with a colon\r\n---\r\nbody\r\n",
    "\u{feff}---\nname: NAME\ndescription: byte order mark\n---\nbody\n",
    "\u{feff}---\nname: NAME\ndescription: byte order mark: and a colon\n---\nbody\n",
    "---\nname: NAME\ndescription:\u{a0}hard blank\n---\nbody\n",
    "---\nname: NAME\u{200b}\ndescription: invisible\n---\nbody\n",
    "---\nname: NAME\ndescription: \u{201c}quoted: like this\u{201d}\n---\nbody\n",
    "---\nname: NAME\ndescription: &d words\nother: *d\n---\nbody\n",
    "---\nname: NAME\ndescription: ok\nmodel: !secret x\n---\nbody\n",
    "---\nname: NAME\ndescription: \"C:\\Users\\me\"\n---\nbody\n",
    "---\nname: NAME\ndescription: \"C:\\\\Users\\\\me\"\n---\nbody\n",
    "---\nname: NAME\ndescription: \u{1f680} Launch: now\n---\nbody\n",
    "---\nname: NAME\ndescription: trailing blank\n---  \nbody\n",
    "---\nname: NAME\ndescription: ends here\n---",
    "---\ndescription: no name given\n---\nbody\n",
    "---\nname: NAME\ndescription: a\0b\n---\nbody\n",
    "---\nname: NAME\ndescription: a\u{7}b\n---\nbody\n",
    "---\nname : NAME\ndescription : blank before colon\n---\nbody\n",
    "---\n\"name\": NAME\n\"description\": quoted keys\n---\nbody\n",
    "---\n{name: NAME, description: flow style}\n---\nbody\n",
    "---\n# SPDX: MIT\nname: NAME\ndescription: ok\n---\nbody\n",
    "---\nname: NAME\ndescription: See https://example.invalid: it works\n---\nbody\n",
    "---\nname: NAME\ndescription: Does x\nargument-hint: [file] [--all]\n---\nbody\n",
    "---\nname: NAME\ndescription: Does x\nallowed-tools: Bash(git:*), Read\n---\nbody\n",
    "---\nname: NAME\ndescription: Does x\nallowed-tools: Read: now\nbad: [\n---\nbody\n",
    "---\nname: NAME\n  description: indented\n---\nbody\n",
    "---\nname: NAME\ndescription: x\n---y\nbody\n",
    "---\n- name: NAME\n---\nbody\n",
    "---\nname: NAME\ndescription: ? what\n---\nbody\n",
    "---\nname: NAME\ndescription: a, b: [c]\nlist: [a, b\n---\nbody\n",
    "no front matter\n",
    "",
];

/// Selects the cases with a byte order mark and a colon to be repaired.
pub fn marked() -> usize {
    MATTERS.iter().position(|matter| matter.contains("byte order mark: and")).unwrap()
}

/// A project with all cases: every kind of folder and name.
pub fn corpus(work: &Path) {
    for (number, matter) in MATTERS.iter().enumerate() {
        let name = format!("odd-{number}");
        put(work, &format!(".opencode/skills/{name}/SKILL.md"), matter.replace("NAME", &name).as_bytes());
        // A command whose description is not a string prevents OpenCode from starting; `project` tests those.
        let typed = ["description:\n---", "  - a", ": true", "2026-01-01", ": 12\n", "1:30", "? what"];
        if typed.iter().any(|part| matter.contains(part)) {
            continue;
        }
        let command = matter.replace("name: NAME\n", "").replace("NAME", &format!("c{number}"));
        put(work, &format!(".opencode/commands/{name}.md"), command.as_bytes());
    }
    let skill = |name: &str| format!("---\nname: {name}\ndescription: d of {name}\n---\nbody of {name}\n");
    for (path, name) in [
        (".agents/skills/agents-only", "agents-only"),
        (".claude/skills/claude-only", "claude-only"),
        (".claude/skills/.hidden/in-hidden", "in-hidden"),
        (".opencode/skill/singular", "singular"),
        (".opencode/skills/group/nested-one", "nested-one"),
        (".opencode/skills/a/b/c/d/e/deep", "deep"),
        (".opencode/skills/.hidden/not-seen", "not-seen"),
        (".opencode/skills/box-tools", "Box Tools"),
        (".opencode/skills/other-folder", "not-its-folder"),
        (".opencode/skills/Upper_Case", "Upper_Case"),
        (".opencode/skills/größe", "größe"),
        (".opencode/skills/slash", "a/b"),
        (".opencode/skills", "on-top"),
    ] {
        put(work, &format!("{path}/SKILL.md"), skill(name).as_bytes());
    }
    let long = "n".repeat(120);
    put(work, ".opencode/skills/long-name/SKILL.md", skill(&long).as_bytes());
    let words = format!("---\nname: long-one\ndescription: {}\n---\n", "word ".repeat(300));
    put(work, ".opencode/skills/long-one/SKILL.md", words.as_bytes());
    put(work, ".opencode/skills/latin/SKILL.md", b"---\nname: latin\ndescription: Gr\xfc\xdfe\n---\n");
    let wide: Vec<u8> =
        "\u{feff}---\nname: utf16\ndescription: x\n---\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    put(work, ".opencode/skills/utf16/SKILL.md", &wide);
    put(work, ".opencode/skills/lower/skill.md", skill("lower").as_bytes());
    fs::create_dir_all(work.join(".opencode/skills/folder/SKILL.md")).unwrap();
    put(work, "shared/linked/SKILL.md", skill("linked").as_bytes());
    symlink("../../shared/linked", work.join(".opencode/skills/linked")).unwrap();
    put(work, "shared/file.md", skill("linked-file").as_bytes());
    fs::create_dir_all(work.join(".opencode/skills/linked-file")).unwrap();
    symlink("../../../shared/file.md", work.join(".opencode/skills/linked-file/SKILL.md")).unwrap();

    for path in [
        "commands/plain",
        "commands/git/commit",
        "commands/git/deep/er",
        "commands/speckit.plan",
        "command/single",
        "command/sub/one",
        "commands/größe",
        "commands/with blank",
        "commands/.dot/x",
        "commands/UPPER",
        "commands/x.md",
    ] {
        put(work, &format!(".opencode/{path}.md"), b"---\ndescription: x\n---\n\n Do $1 \n");
    }
    put(work, ".opencode/commands/UP.MD", b"not one");
    put(work, ".opencode/commands/renamed.md", b"---\nname: other/name.x\n---\nn");
    put(work, ".opencode/commands/number.md", b"---\nname: 42\n---\nn");
    put(work, ".opencode/commands/full.md", b"---\nagent: build\nmodel: a/b\nsubtask: true\n---\nt");
    fs::create_dir_all(work.join(".opencode/commands/folder.md")).unwrap();
}
