//! Reads audit logs backwards, block by block: the two files of berth's own log, merged with the log that the
//! OpenWork server left in the workspace. Processes in the workspace can write anything to the latter.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

use serde_json::Value;

use crate::base::limits;

/// Maximum number of bytes that are read from the end of each file. berth's own files are smaller; the limit bounds
/// reads of foreign files.
const AUDIT_SCAN_BYTES: u64 = 16 << 20;

/// Returns whether a successful line with this action and target is a change of the workspace through the OpenWork
/// API.
pub(super) fn changes(action: &str, target: &str) -> bool {
    !target.starts_with("/api/") && !action.starts_with("approval.")
}

/// berth's own log and that of the OpenWork server, merged, newest line first.
pub(super) struct MergedLog {
    server_log: Vec<ReverseLines>,
    workspace_log: Option<ReverseLines>,
    /// The next line of each of the two logs.
    next: [Option<Value>; 2],
}

impl MergedLog {
    /// Merges two logs. `ours` are the files of berth's own log, the newer one first.
    pub(super) fn new(ours: Vec<File>, old: Option<File>) -> MergedLog {
        let mut ours: Vec<ReverseLines> =
            ours.into_iter().filter_map(|file| ReverseLines::new(file).ok()).collect();
        ours.reverse();
        MergedLog {
            server_log: ours,
            workspace_log: old.and_then(|file| ReverseLines::new(file).ok()),
            next: [None, None],
        }
    }

    pub(super) fn next(&mut self) -> Option<io::Result<Value>> {
        if self.next[0].is_none() {
            while let Some(file) = self.server_log.last_mut() {
                match file.next() {
                    Ok(Some(line)) => {
                        self.next[0] = Some(line);
                        break;
                    }
                    Ok(None) => drop(self.server_log.pop()),
                    Err(error) => return Some(Err(error)),
                }
            }
        }
        if self.next[1].is_none() {
            // Read errors of the file in the workspace are ignored.
            self.next[1] = self.workspace_log.as_mut().and_then(|old| old.next().ok().flatten());
        }
        let time = |line: &Option<Value>| line.as_ref().map(|line| line["timestamp"].as_u64().unwrap_or(0));
        let newest = if time(&self.next[1]) > time(&self.next[0]) { 1 } else { 0 };
        self.next[newest].take().map(Ok)
    }
}

/// A file, the lines of which are read from its end.
struct ReverseLines {
    file: File,
    /// The offset from which on everything has been read.
    at: u64,
    /// The bytes that were read and not returned yet.
    tail: Vec<u8>,
    /// Whether the current line exceeds the limit and is skipped.
    skipping: bool,
    /// The number of bytes that may still be read.
    budget: u64,
}

impl ReverseLines {
    fn new(mut file: File) -> io::Result<ReverseLines> {
        let at = file.seek(SeekFrom::End(0))?;
        Ok(ReverseLines { file, at, tail: Vec::new(), skipping: false, budget: AUDIT_SCAN_BYTES })
    }

    /// Returns the next line that is a JSON object. Skips all other lines.
    fn next(&mut self) -> io::Result<Option<Value>> {
        while let Some(line) = self.line()? {
            if let Ok(value @ Value::Object(_)) = serde_json::from_slice(&line) {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.tail.iter().rposition(|byte| *byte == b'\n') {
                let line = self.tail.split_off(end + 1);
                self.tail.pop();
                if !std::mem::take(&mut self.skipping) {
                    return Ok(Some(line));
                }
                continue;
            }
            if self.tail.len() > limits::AUDIT_LINE_BYTES {
                self.tail.clear();
                self.skipping = true;
            }
            let size = (limits::PIPE_CHUNK as u64).min(self.at).min(self.budget);
            if size == 0 {
                let line = std::mem::take(&mut self.tail);
                let whole = self.at == 0 && !line.is_empty() && !self.skipping;
                return Ok(whole.then_some(line));
            }
            let mut block = vec![0; usize::try_from(size).unwrap_or(0)];
            self.at -= size;
            self.budget -= size;
            self.file.read_exact_at(&mut block, self.at)?;
            block.append(&mut self.tail);
            self.tail = block;
        }
    }
}
