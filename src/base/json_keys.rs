//! Finds the positions of keys in a JSON text, so that an error about a value can name its field. Pure.

/// Describes a serde_json error with the field's name but without the position, which the caller reports separately.
pub fn describe_type_error(error: &serde_json::Error, keys: &[KeyPosition]) -> String {
    let message = error.to_string();
    let at = format!(" at line {} column {}", error.line(), error.column());
    let problem = message.strip_suffix(&at).unwrap_or(&message);
    let before = |key: &&KeyPosition| (key.line, key.column) <= (error.line(), error.column());
    match keys.iter().rev().find(before) {
        // "unknown field", "missing field" and "duplicate field" already name the field.
        Some(key) if problem.starts_with("invalid") => format!("{}: {problem}{}", key.path, hint(problem)),
        _ => problem.to_owned(),
    }
}

/// Returns advice on how to write the value, or an empty text if the problem does not suggest any.
fn hint(problem: &str) -> &'static str {
    let number = ["expected u64", "expected u32", "expected i64", "expected f64"];
    if problem.contains("string") && number.iter().any(|kind| problem.contains(kind)) {
        return "; write a number without quotes and without a unit (1 GiB is 1073741824)";
    }
    ""
}

/// A key in a JSON text: its path from the root, and its position.
#[derive(Debug)]
pub struct KeyPosition {
    /// The path from the root, for example `approval.mode` or `workspaces[0].path`.
    pub path: String,
    /// The line number, starting at 1.
    pub line: usize,
    /// The column in bytes, starting at 1.
    pub column: usize,
}

/// Returns the keys of a JSON text in the order of the text. The text must be valid JSON, so parse it with serde_json
/// first.
pub fn keys(text: &[u8]) -> Vec<KeyPosition> {
    let mut scanner = Scanner { bytes: text, at: 0, keys: Vec::new() };
    scanner.value("");
    scanner.keys
}

/// Scans valid JSON for keys.
struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    keys: Vec<KeyPosition>,
}

impl Scanner<'_> {
    /// Returns the next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    fn value(&mut self, path: &str) {
        match self.peek() {
            Some(b'{') => self.members(|scanner, _| {
                let start = scanner.at;
                let raw = scanner.string();
                let name: String = serde_json::from_slice(raw).unwrap_or_default();
                let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                let (line, column) = scanner.position(start);
                scanner.keys.push(KeyPosition { path: path.clone(), line, column });
                // Skip the colon.
                scanner.peek();
                scanner.at += 1;
                scanner.value(&path);
            }),
            Some(b'[') => self.members(|scanner, index| scanner.value(&format!("{path}[{index}]"))),
            Some(b'"') => {
                self.string();
            }
            _ => {
                let rest = &self.bytes[self.at..];
                let end = rest.iter().position(|b| b",]}".contains(b) || b.is_ascii_whitespace());
                self.at += end.unwrap_or(rest.len());
            }
        }
    }

    /// Calls `member` with the index of each member between a pair of brackets, starting at the opening bracket.
    fn members(&mut self, mut member: impl FnMut(&mut Self, usize)) {
        self.at += 1;
        let mut index = 0;
        loop {
            match self.peek() {
                None => return,
                Some(b'}' | b']') => {
                    self.at += 1;
                    return;
                }
                Some(b',') => self.at += 1,
                Some(_) => {
                    member(self, index);
                    index += 1;
                }
            }
        }
    }

    /// Skips the string literal at the current position and returns its bytes.
    fn string(&mut self) -> &[u8] {
        let start = self.at;
        self.at += 1;
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b'\\' => self.at += 2,
                b'"' => break,
                _ => self.at += 1,
            }
        }
        self.at = (self.at + 1).min(self.bytes.len());
        &self.bytes[start..self.at]
    }

    fn position(&self, offset: usize) -> (usize, usize) {
        let before = &self.bytes[..offset];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = offset - before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1) + 1;
        (line, column)
    }
}
