//! Finds secrets in unstructured text: a script, a log line, a command, a URL. The scan is one pass that reads each
//! byte a bounded number of times.

use std::ops::Range;

use super::redact::{is_reference, is_secret_name};

/// Prefixes of tokens in known formats, each with the minimum number of characters after the prefix.
const FORMS: [(&str, usize); 22] = [
    ("sk-", 16),
    ("sk_live_", 8),
    ("sk_test_", 8),
    ("rk_live_", 8),
    ("whsec_", 8),
    ("ghp_", 16),
    ("gho_", 16),
    ("ghu_", 16),
    ("ghs_", 16),
    ("ghr_", 16),
    ("github_pat_", 16),
    ("glpat-", 12),
    ("xoxb-", 10),
    ("xoxp-", 10),
    ("xoxa-", 10),
    ("xapp-", 10),
    ("AKIA", 16),
    ("ASIA", 16),
    ("AIza", 30),
    ("hf_", 20),
    ("npm_", 20),
    ("eyJ", 40),
];

/// Names of secrets that are also common words. They count only in a URL's query or as an option.
const SHORT: [&str; 9] = ["key", "sig", "auth", "code", "pass", "pw", "pwd", "creds", "pat"];

/// Headers whose whole value is a secret.
const HEADERS: [&str; 5] = ["authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"];

/// Maximum length of a name; a longer name is truncated at its start.
const NAME_BYTES: usize = 64;

/// Number of bytes at the start of a header's value that decide whether it is a credential.
const DECIDES: usize = 256;

const KEY_BEGIN: &str = "-----BEGIN ";
const KEY_END: &str = "-----END ";

/// How the next word of a command line is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WordContext {
    /// The next word is an ordinary word.
    Plain,
    /// The next word is the value of an option that takes a secret.
    Secret,
    /// The next word is the value of an option that takes `name:password`.
    Login,
}

impl WordContext {
    /// Returns how the word after `word` is treated.
    pub(super) fn after(word: &str) -> WordContext {
        let name = word.trim_start_matches('-');
        if name.len() == word.len() || name.contains(['=', ' ']) {
            return WordContext::Plain;
        }
        match name {
            "u" | "user" | "proxy-user" => WordContext::Login,
            _ if word.starts_with("--") && names_secret(name, true) => WordContext::Secret,
            _ => WordContext::Plain,
        }
    }

    pub(super) fn is_secret(self, word: &str) -> bool {
        match self {
            WordContext::Plain => false,
            WordContext::Secret => !word.starts_with("--"),
            WordContext::Login => word.contains(':'),
        }
    }
}

/// Returns the byte ranges of a text that may be secrets.
pub(super) fn secrets(text: &str) -> Vec<Range<usize>> {
    let mut scan = TextScan { text, bytes: text.as_bytes(), found: Vec::new() };
    let mut at = 0;
    while at < scan.bytes.len() {
        at = scan.step(at).max(at + 1);
    }
    scan.found
}

struct TextScan<'a> {
    text: &'a str,
    bytes: &'a [u8],
    found: Vec<Range<usize>>,
}

impl TextScan<'_> {
    /// Checks for a secret at `at`. Returns the position at which the scan continues.
    fn step(&mut self, at: usize) -> usize {
        match self.bytes[at] {
            b':' if self.bytes[at..].starts_with(b"://") => self.login(at),
            b'=' => self.assignment(at),
            b':' => self.header(at),
            b'-' if self.begins(at) && self.bytes[at..].starts_with(KEY_BEGIN.as_bytes()) => {
                self.private_key(at)
            }
            b'-' if self.begins(at) => self.option(at),
            byte if byte.is_ascii_alphabetic() && self.begins(at) => self.token(at),
            _ => at,
        }
    }

    /// Returns whether a word starts at `at`.
    fn begins(&self, at: usize) -> bool {
        at == 0 || !(is_name(self.bytes[at - 1]) || self.bytes[at - 1] >= 0x80)
    }

    fn hide(&mut self, range: Range<usize>) -> usize {
        let end = range.end;
        // Both bounds are ASCII characters, and therefore character boundaries.
        if self.text.get(range.clone()).is_some_and(|value| !is_reference(value)) {
            self.found.push(range);
        }
        end
    }

    /// Hides the login in `scheme://user:password@host`.
    fn login(&mut self, at: usize) -> usize {
        let start = at + 3;
        let end = self.until(start, |byte| matches!(byte, b'/' | b'?' | b'#' | b'\\' | b'`') || is_end(byte));
        let Some(sign) = self.bytes[start..end].iter().rposition(|byte| *byte == b'@') else { return start };
        let login = start..start + sign;
        let word = self.name_before(at);
        // `ssh://git@host`: a user name without a password is not a secret.
        let named = !self.text[login.clone()].contains(':') && word.ends_with("ssh");
        if named { login.end } else { self.hide(login) }
    }

    /// Hides the secret in `NAME=value`, `--name=value` or `?name=value`.
    fn assignment(&mut self, at: usize) -> usize {
        let name = self.name_before(at);
        let before = at.checked_sub(name.len() + 1).map(|at| self.bytes[at]);
        let in_query = matches!(before, Some(b'?' | b'&' | b';'));
        if !names_secret(name.trim_start_matches('-'), in_query || name.starts_with("--")) {
            return at;
        }
        let (start, end) = self.value(at + 1, in_query);
        self.hide(start..end)
    }

    /// Hides the secret in `Name: value` or `"name": "value"`.
    fn header(&mut self, at: usize) -> usize {
        let quoted = at > 0 && matches!(self.bytes[at - 1], b'"' | b'\'');
        let name = self.name_before(at - usize::from(quoted));
        if name.is_empty() || !is_secret_name(name) {
            return at;
        }
        let blanks = self.until(at + 1, |byte| byte != b' ' && byte != b'\t');
        if HEADERS.iter().any(|header| name.eq_ignore_ascii_case(header)) {
            let open = self.bytes.get(blanks).copied().filter(|byte| matches!(byte, b'"' | b'\''));
            let start = blanks + usize::from(open.is_some());
            let ends = |byte: u8| matches!(byte, b'\n' | b'\r' | b'"' | b'\'' | b'`');
            // Only the first bytes decide: otherwise a long line with many names would be read once for each name.
            let window = &self.bytes[start..self.bytes.len().min(start + DECIDES)];
            let length = window.iter().position(|byte| ends(*byte)).unwrap_or(window.len());
            if !is_credential(&String::from_utf8_lossy(&window[..length])) {
                return at;
            }
            return self.hide(start..self.until(start, ends));
        }
        let (start, end) = self.value(blanks, false);
        // "the token: it has expired" is a sentence, `api_key: abc` is not.
        let word = name.bytes().all(|byte| byte.is_ascii_lowercase()) && !quoted && name != "apikey";
        let sentence = word
            || (blanks > at + 1 && name.bytes().skip(1).all(|byte| byte.is_ascii_lowercase()) && !quoted);
        if sentence && !looks_random(&self.text[start..end]) {
            return at;
        }
        self.hide(start..end)
    }

    /// Hides the secret in `--token value` or `-u name:password`.
    fn option(&mut self, at: usize) -> usize {
        let end = self.until(at, |byte| !is_name(byte));
        let blanks = self.until(end, |byte| byte != b' ');
        let next = WordContext::after(&self.text[at..end]);
        if blanks == end || next == WordContext::Plain {
            return if self.bytes.get(end) == Some(&b'=') { end - 1 } else { end };
        }
        let (start, end) = self.value(blanks, false);
        if next.is_secret(&self.text[start..end]) { self.hide(start..end) } else { blanks }
    }

    /// Hides a token in a known format, or a token after `Bearer`.
    fn token(&mut self, at: usize) -> usize {
        let rest = &self.bytes[at..];
        if rest.len() > 7 && rest[..7].eq_ignore_ascii_case(b"bearer ") {
            let (start, end) = self.value(at + 7, false);
            return if looks_random(&self.text[start..end]) { self.hide(start..end) } else { at + 6 };
        }
        for (form, least) in FORMS {
            if !rest.starts_with(form.as_bytes()) {
                continue;
            }
            let start = at + form.len();
            let end = self
                .until(start, |byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')));
            if end - start >= least && looks_random(&self.text[start..end]) {
                return self.hide(at..end);
            }
        }
        at
    }

    fn private_key(&mut self, at: usize) -> usize {
        let title = String::from_utf8_lossy(&self.bytes[at..self.bytes.len().min(at + NAME_BYTES)]);
        if !title.lines().next().is_some_and(|title| title.contains("PRIVATE KEY")) {
            return at + KEY_BEGIN.len();
        }
        let line = self.until(at, |byte| byte == b'\n');
        let end = self.text[line..].find(KEY_END).map_or(self.bytes.len(), |end| line + end);
        self.hide(line..end)
    }

    /// Returns the name that ends before `at`.
    fn name_before(&self, at: usize) -> &str {
        let least = at.saturating_sub(NAME_BYTES);
        let start = (least..at).rev().take_while(|place| is_name(self.bytes[*place])).last().unwrap_or(at);
        self.text.get(start..at).unwrap_or_default()
    }

    /// Returns the range of the value that starts at `at`, quoted or not.
    fn value(&self, at: usize, in_query: bool) -> (usize, usize) {
        match self.bytes.get(at).copied() {
            Some(quote @ (b'"' | b'\'')) if !in_query => {
                let end = self.until(at + 1, |byte| byte == quote || byte == b'\n');
                (at + 1, end)
            }
            _ => {
                let ends = |byte: u8| is_end(byte) || (in_query && matches!(byte, b'&' | b'#'));
                (
                    at,
                    self.until(at, |byte| {
                        ends(byte) || (!in_query && matches!(byte, b';' | b'&' | b'|' | b','))
                    }),
                )
            }
        }
    }

    fn until(&self, at: usize, ends: impl Fn(u8) -> bool) -> usize {
        self.bytes[at.min(self.bytes.len())..]
            .iter()
            .position(|byte| ends(*byte))
            .map_or(self.bytes.len(), |length| at + length)
    }
}

fn names_secret(name: &str, short: bool) -> bool {
    is_secret_name(name) || (short && SHORT.iter().any(|word| name.eq_ignore_ascii_case(word)))
}

/// Returns whether the text is a header's value rather than the rest of a sentence that names the header.
fn is_credential(value: &str) -> bool {
    let scheme = ["bearer ", "basic ", "token "]
        .into_iter()
        .find(|scheme| value.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
    let rest = &value[scheme.map_or(0, str::len)..];
    let first = rest.split(' ').next().unwrap_or_default();
    first.len() == rest.trim_end().len() || first.contains('=') || looks_random(first)
}

/// Returns whether the text is unlikely to be a word of a sentence.
fn looks_random(text: &str) -> bool {
    text.len() >= 6 && (text.len() >= 24 || text.bytes().any(|byte| byte.is_ascii_digit()))
        || text.bytes().any(|byte| byte == b'-') && text.len() >= 8
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

fn is_end(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\'' | b'<' | b'>' | b'`' | b'(' | b')')
}
