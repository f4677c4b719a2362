//! A build's log: a file that grows during the build, and the last lines, which error messages include. A log has one
//! writer.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use crate::base::{At, Result, limits};
use crate::proc::Sink;

/// The log of one build: the output of tools, and lines that berth adds.
#[derive(Debug)]
pub struct BuildLog {
    file: File,
    written: u64,
    line: Vec<u8>,
    last: VecDeque<String>,
    listener: Option<LineListener>,
}

struct LineListener(Box<dyn FnMut(&str) + Send>);

impl std::fmt::Debug for LineListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener")
    }
}

impl BuildLog {
    /// Creates or truncates the log at `path`, mode 0600.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(path: &Path) -> Result<BuildLog> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        Ok(BuildLog::to_file(options.open(path).at("write", path)?))
    }

    /// Creates a log that writes to an open file.
    pub fn to_file(file: File) -> BuildLog {
        BuildLog { file, written: 0, line: Vec::new(), last: VecDeque::new(), listener: None }
    }

    /// Calls `listener` with every complete line from now on.
    pub fn listen(&mut self, listener: impl FnMut(&str) + Send + 'static) {
        self.listener = Some(LineListener(Box::new(listener)));
    }

    /// Writes a line that berth adds to the output of the tools.
    pub fn note(&mut self, text: impl AsRef<str>) {
        let line = format!("[berth] {}\n", text.as_ref());
        self.write(line.as_bytes());
        self.notify(line.trim_end());
    }

    fn notify(&mut self, line: &str) {
        if let Some(LineListener(listener)) = &mut self.listener {
            listener(line);
        }
    }

    /// Forgets the last lines at the start of a new tool.
    pub fn new_step(&mut self) {
        self.last.clear();
        self.line.clear();
    }

    /// Returns the last meaningful lines, joined for an error message; never empty.
    pub fn last_lines(&self) -> String {
        let unfinished = String::from_utf8_lossy(&self.line);
        let lines: Vec<&str> = self
            .last
            .iter()
            .map(String::as_str)
            .chain([unfinished.trim()])
            .filter(|line| !line.is_empty())
            .collect();
        // If the tool marks its errors, return the marked lines; otherwise return the last lines.
        let errors: Vec<&str> = lines
            .iter()
            .copied()
            .filter(|l| l.starts_with("E:") || l.to_ascii_lowercase().contains("error"))
            .collect();
        let chosen = if errors.is_empty() { &lines } else { &errors };
        let skip = chosen.len().saturating_sub(limits::ERROR_TAIL_LINES);
        match chosen[skip..].join(" | ") {
            text if text.is_empty() => "no output".to_owned(),
            text => text,
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.written > limits::BUILD_LOG_BYTES {
            return;
        }
        self.written += bytes.len() as u64;
        // A full disk must not fail a build only because its log cannot be written.
        let _ = self.file.write_all(bytes);
        if self.written > limits::BUILD_LOG_BYTES {
            let _ =
                self.file.write_all(b"\n[berth] The log has reached its limit; the rest is not recorded\n");
        }
    }
}

impl Sink for BuildLog {
    fn take(&mut self, bytes: &[u8]) {
        self.write(bytes);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() < 4096 {
                self.line.extend_from_slice(&piece[..piece.len().min(4096)]);
            }
            if piece.ends_with(b"\n") {
                let line = String::from_utf8_lossy(&self.line).trim().to_owned();
                self.line.clear();
                if !line.is_empty() {
                    self.notify(&line);
                    if self.last.len() >= 4 * limits::ERROR_TAIL_LINES {
                        self.last.pop_front();
                    }
                    self.last.push_back(line);
                }
            }
        }
    }
}
