//! The language of the project: plain technical English. Phrases that name no actor and no thing are counted, since a text
//! that is full of them needs a second reading.

use std::fs;
use std::path::{Path, PathBuf};

use super::tidy::sources;

/// Each may occur once in so many words.
const WORDS: usize = 10_000;

/// A phrase that is counted, and a better way to write it.
const PHRASES: [(&str, &str); 16] = [
    ("nobody", "name the actor: the client, the owner, no thread"),
    ("whoever", "name the actor: the caller, the client, the process that"),
    ("somebody", "name the actor"),
    ("someone", "name the actor"),
    ("whom", "name the actor"),
    ("what is", "name the thing: the remaining bytes, the running processes"),
    ("what was", "name the thing"),
    ("what it is", "name the thing"),
    ("told", "use returns, reports, is notified, receives"),
    ("says", "use reports, states, returns, contains"),
    ("lies", "use is stored in, is in"),
    ("want of", "use out of, lack of"),
    ("hinders", "use prevents"),
    ("breaks off", "use closes, fails, disconnects"),
    ("hangs up", "use disconnects"),
    ("so often", "state the interval"),
];

/// The comments and strings of Rust code.
fn prose_of_rust(text: &str) -> String {
    let mut prose = String::new();
    for line in text.lines() {
        let trimmed = line.trim_start();
        if let Some(comment) = trimmed.strip_prefix("//") {
            prose.push_str(comment.trim_start_matches(['/', '!']));
        } else {
            for part in line.split('"').skip(1).step_by(2) {
                prose.push_str(part);
                prose.push(' ');
            }
            if let Some((_, comment)) = line.rsplit_once(" // ") {
                prose.push_str(comment);
            }
        }
        prose.push('\n');
    }
    prose
}

/// The comments of scripts.
fn prose_of_script(text: &str) -> String {
    let comments = text.lines().map(|line| line.trim_start().strip_prefix('#').unwrap_or_default());
    comments.collect::<Vec<_>>().join("\n")
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Each text with its path, by area.
fn areas() -> Vec<(&'static str, Vec<(String, String)>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rust = |folder: &str| -> Vec<(String, String)> {
        sources(folder).into_iter().map(|(file, text)| (file, prose_of_rust(&text))).collect()
    };
    let mut documents = vec![("README.md".to_owned(), fs::read_to_string(root.join("README.md")).unwrap())];
    let mut files = Vec::new();
    files_below(&root.join("assets"), &mut files);
    files_below(&root.join("tests"), &mut files);
    for path in files {
        let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        let Ok(text) = fs::read_to_string(&path) else { continue };
        match path.extension().and_then(|ext| ext.to_str()) {
            Some("md") => documents.push((name, text)),
            Some("py" | "sh") => documents.push((name, prose_of_script(&text))),
            None if text.starts_with("#!") => documents.push((name, prose_of_script(&text))),
            _ => {}
        }
    }
    vec![("src", rust("src")), ("tests", rust("tests")), ("documents and scripts", documents)]
}

/// How often a phrase occurs in a text, as whole words.
fn occurrences<'a>(text: &'a str, phrase: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(phrase)
        .filter(move |(at, _)| {
            let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            !is_word(text[..*at].chars().next_back()) && !is_word(text[at + phrase.len()..].chars().next())
        })
        .map(|(at, _)| at)
}

#[test]
fn the_language_is_plain() {
    let mut wrong = Vec::new();
    for (area, texts) in areas() {
        let texts: Vec<(String, String)> = texts
            .into_iter()
            .filter(|(file, _)| !file.ends_with("tidy_language.rs"))
            .map(|(file, text)| (file, text.to_lowercase()))
            .collect();
        let words: usize = texts.iter().map(|(_, text)| text.split_whitespace().count()).sum();
        assert!(words > 1_000, "the prose of {area} was not found");
        let allowed = words.div_ceil(WORDS);
        for (phrase, instead) in PHRASES {
            let mut places = Vec::new();
            for (file, text) in &texts {
                places.extend(
                    occurrences(text, phrase)
                        .map(|at| format!("{file}:{}", text[..at].matches('\n').count() + 1)),
                );
            }
            if places.len() > allowed {
                wrong.push(format!(
                    "{area}: \"{phrase}\" occurs {} times in {words} words, at most {allowed}; {instead}:\n  {}",
                    places.len(),
                    places.join("\n  ")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn prose_is_found() {
    let code = "/// Says so.\nlet told = f(\"it lies, nobody\"); // whoever";
    assert_eq!(
        prose_of_rust(code).split_whitespace().collect::<Vec<_>>(),
        ["Says", "so.", "it", "lies,", "nobody", "whoever"]
    );
    assert_eq!(occurrences("told untold told_x told", "told").collect::<Vec<_>>(), [0, 19]);
}
