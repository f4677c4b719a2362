//! A run's output on disk: one file per stream, which contains each byte at its own offset, and a file of turns,
//! which records the order in which the streams were written. When a stream exceeds its window, holes are punched
//! at the front of its file, so offsets stay valid. If the disk is full, only the bytes written at that time are
//! lost. Memory use does not depend on the amount of output.
//!
//! Threads: one thread writes; any thread may read or free the front. Locks: `state` and `files`, both leaves; the
//! only I/O under them is opening files.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::disk_budget::DiskBudget;
use super::keeper_control::KeeperControl;
use super::track::StreamTrack;
use crate::base::thread::lock;
use crate::base::{At, Result, limits};

/// When a window is full, 1/n of it is freed at once, where n is this number, so that not every chunk causes disk
/// operations.
const SPOOL_STEP_SHARE: u64 = 16;
/// Maximum number of recorded switches between the two streams: 64 MiB. The order of later output is not recorded.
const SPOOL_TURNS: u64 = 4 << 20;

/// One of a command's two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputStream {
    /// The command's file descriptor 1.
    Stdout,
    /// The command's file descriptor 2.
    Stderr,
}

impl OutputStream {
    /// Returns `stdout` or `stderr`.
    pub fn as_str(self) -> &'static str {
        match self {
            OutputStream::Stdout => "stdout",
            OutputStream::Stderr => "stderr",
        }
    }
}

/// A position in both streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Offset in stdout.
    pub out: u64,
    /// Offset in stderr.
    pub err: u64,
}

impl Position {
    /// Returns the offset in one stream.
    pub fn of(self, stream: OutputStream) -> u64 {
        match stream {
            OutputStream::Stdout => self.out,
            OutputStream::Stderr => self.err,
        }
    }

    /// Sets the offset in one stream.
    pub fn set(&mut self, stream: OutputStream, offset: u64) {
        match stream {
            OutputStream::Stdout => self.out = offset,
            OutputStream::Stderr => self.err = offset,
        }
    }

    /// Returns, for each stream, the smaller of the two offsets.
    #[must_use]
    pub fn min(self, other: Position) -> Position {
        Position { out: self.out.min(other.out), err: self.err.min(other.err) }
    }

    /// Parses a position in the form `OUT:ERR`.
    pub fn parse(text: &str) -> Option<Position> {
        let (out, err) = text.split_once(':')?;
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?;
        Some(Position { out: number(out)?, err: number(err)? })
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.out, self.err)
    }
}

/// State of a run's output: the lengths of both streams and their gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolState {
    pub out: StreamTrack,
    pub err: StreamTrack,
    /// Number of recorded turns, that is, switches between the streams.
    pub turns: u64,
    /// Whether a write failed at some time, usually because the disk was full.
    #[serde(default)]
    pub disk_full: bool,
}

impl SpoolState {
    /// Returns the track of one stream.
    pub fn of(&self, stream: OutputStream) -> &StreamTrack {
        match stream {
            OutputStream::Stdout => &self.out,
            OutputStream::Stderr => &self.err,
        }
    }

    fn of_mut(&mut self, stream: OutputStream) -> &mut StreamTrack {
        match stream {
            OutputStream::Stdout => &mut self.out,
            OutputStream::Stderr => &mut self.err,
        }
    }

    /// Returns the position after the last byte of both streams.
    pub fn end(&self) -> Position {
        Position { out: self.out.end, err: self.err.end }
    }
}

/// The open files of a spool.
#[derive(Debug)]
pub struct SpoolFiles {
    out: File,
    err: File,
    turns: File,
}

const NAMES: [&str; 3] = ["stdout", "stderr", "turns"];
/// Size of a turn: the position in both streams at which the writer switched to the other stream.
const TURN_BYTES: u64 = 16;
/// Block size of file systems; a block can only be freed as a whole.
const BLOCK: u64 = 4096;

/// The output of one run.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    window: u64,
    budget: Arc<DiskBudget>,
    /// The open files, shared by all readers and the writer.
    files: Mutex<Weak<SpoolFiles>>,
    state: Mutex<SpoolState>,
    can_punch: AtomicBool,
    unchecked: AtomicU64,
    /// The keeper, if it writes the spool; it reports new state a little later than it writes the data.
    keeper: OnceLock<Arc<dyn KeeperControl>>,
    /// End of the output that this server gave up; the keeper may not have freed it yet.
    given_up: Mutex<Position>,
}

/// The writing end of a spool.
pub struct OutputWriter {
    spool: Arc<Spool>,
    files: Arc<SpoolFiles>,
    /// The stream that was last written to.
    turn: Option<OutputStream>,
}

impl Spool {
    /// Creates the files in `folder`, which must exist. `window` is the number of bytes to keep of each stream.
    ///
    /// # Errors
    /// `DiskFull`; other errors of creating a file.
    pub fn create(folder: &Path, window: u64, budget: Arc<DiskBudget>) -> Result<(Arc<Spool>, OutputWriter)> {
        let spool = Arc::new(Spool::existing(folder, window, budget, SpoolState::default()));
        let make = |name: &str| {
            let path = folder.join(name);
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .at("make", &path)
        };
        let files =
            Arc::new(SpoolFiles { out: make(NAMES[0])?, err: make(NAMES[1])?, turns: make(NAMES[2])? });
        *lock(&spool.files) = Arc::downgrade(&files);
        spool.can_punch.store(punch(&files.out, 0, BLOCK).is_ok(), Ordering::Relaxed);
        Ok((spool.clone(), OutputWriter { spool, files, turn: None }))
    }

    /// Opens a spool that has ended or that another process writes.
    pub fn existing(folder: &Path, window: u64, budget: Arc<DiskBudget>, marks: SpoolState) -> Spool {
        budget.add(size(&marks));
        Spool {
            folder: folder.to_owned(),
            window: window.max(2 * limits::PIPE_CHUNK as u64),
            budget,
            files: Mutex::default(),
            state: Mutex::new(marks),
            can_punch: AtomicBool::new(true),
            unchecked: AtomicU64::new(0),
            keeper: OnceLock::new(),
            given_up: Mutex::default(),
        }
    }

    /// Opens the writing end of a spool whose files exist and are empty.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn reopen(folder: &Path, window: u64, budget: Arc<DiskBudget>) -> Result<(Arc<Spool>, OutputWriter)> {
        let spool = Arc::new(Spool::existing(folder, window, budget, SpoolState::default()));
        let open = |name: &str| {
            let path = folder.join(name);
            OpenOptions::new().read(true).write(true).open(&path).at("open", &path)
        };
        let files =
            Arc::new(SpoolFiles { out: open(NAMES[0])?, err: open(NAMES[1])?, turns: open(NAMES[2])? });
        *lock(&spool.files) = Arc::downgrade(&files);
        spool.can_punch.store(punch(&files.out, 0, BLOCK).is_ok(), Ordering::Relaxed);
        Ok((spool.clone(), OutputWriter { spool, files, turn: None }))
    }

    /// Sets the keeper that writes this spool.
    pub fn set_keeper(&self, keeper: Arc<dyn KeeperControl>) {
        let _ = self.keeper.set(keeper);
    }

    /// Applies the state that the keeper reported.
    pub fn set_state(&self, mut new: SpoolState) {
        let given_up = *lock(&self.given_up);
        new.out.mark_lost(0, given_up.out);
        new.err.mark_lost(0, given_up.err);
        let (before, after) = {
            let mut marks = lock(&self.state);
            let before = size(&marks);
            *marks = new;
            (before, size(&marks))
        };
        self.budget.add(after.saturating_sub(before));
        self.budget.sub(before.saturating_sub(after));
        self.wrote(after.saturating_sub(before));
    }

    /// Extends the state by data on disk that the keeper has not reported.
    pub fn rescan(&self) {
        let found = Spool::scan(&self.folder);
        let mut marks = self.state();
        marks.out.end = marks.out.end.max(found.out.end);
        marks.err.end = marks.err.end.max(found.err.end);
        marks.turns = marks.turns.max(found.turns);
        self.set_state(marks);
    }

    /// Accounts for written bytes and checks the disk budget from time to time.
    fn wrote(&self, bytes: u64) {
        if self.unchecked.fetch_add(bytes, Ordering::Relaxed) + bytes >= limits::SPOOL_CHECK_BYTES {
            self.unchecked.store(0, Ordering::Relaxed);
            self.budget.check();
        }
    }

    /// Derives the state of a spool from its files; used if the writer left no record.
    pub fn scan(folder: &Path) -> SpoolState {
        let length = |name: &str| std::fs::metadata(folder.join(name)).map_or(0, |file| file.len());
        SpoolState {
            out: StreamTrack::whole(length(NAMES[0])),
            err: StreamTrack::whole(length(NAMES[1])),
            turns: length(NAMES[2]) / TURN_BYTES,
            disk_full: false,
        }
    }

    /// Removes the files. Readers that have opened them can continue.
    pub fn remove(&self) {
        for name in NAMES {
            let _ = std::fs::remove_file(self.folder.join(name));
        }
    }

    /// Returns the current state of the output.
    pub fn state(&self) -> SpoolState {
        lock(&self.state).clone()
    }

    /// Returns the position after the last byte of both streams.
    pub fn end(&self) -> Position {
        lock(&self.state).end()
    }

    /// Opens the files for reading.
    ///
    /// # Errors
    /// When the files were removed, or the process has no free descriptor.
    pub fn open(&self) -> Result<Arc<SpoolFiles>> {
        let mut open = lock(&self.files);
        if let Some(files) = open.upgrade() {
            return Ok(files);
        }
        let read = |name: &str| {
            let path = self.folder.join(name);
            File::open(&path).at("open", &path)
        };
        let files =
            Arc::new(SpoolFiles { out: read(NAMES[0])?, err: read(NAMES[1])?, turns: read(NAMES[2])? });
        *open = Arc::downgrade(&files);
        Ok(files)
    }

    /// Reads from one stream into `buffer`.
    ///
    /// # Errors
    /// When reading from disk fails.
    pub fn read(
        &self,
        files: &SpoolFiles,
        stream: OutputStream,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<SpoolRead> {
        loop {
            let (end, gap, until) = {
                let marks = lock(&self.state);
                let track = marks.of(stream);
                (track.end, track.gap_at(offset), track.kept_until(offset))
            };
            if offset >= end {
                return Ok(SpoolRead::Nothing);
            }
            if let Some(to) = gap {
                return Ok(SpoolRead::Missed(to));
            }
            let wanted = usize::try_from(until - offset).unwrap_or(usize::MAX).min(buffer.len());
            let n = files.of(stream).read_at(&mut buffer[..wanted], offset).at("read", &self.folder)?;
            // The range was freed during the read, so the bytes may come from a hole.
            if lock(&self.state).of(stream).is_cut_between(offset, offset + n.max(1) as u64) {
                continue;
            }
            if n > 0 && self.keeper.get().is_some() {
                // The keeper may have freed the range without having reported it yet; the file then has a hole.
                if let Some(to) = hole_at(files.of(stream), offset, offset + n as u64) {
                    return Ok(SpoolRead::Missed(to.min(end)));
                }
            }
            return Ok(if n == 0 { SpoolRead::Missed(until) } else { SpoolRead::Bytes(n) });
        }
    }

    /// Returns the number of the turn that contains `at`, and the turn's end; `None` for the last turn.
    ///
    /// # Errors
    /// When reading from disk fails.
    pub fn turn(&self, files: &SpoolFiles, at: Position, from: u64) -> Result<(u64, Option<Position>)> {
        let turns = lock(&self.state).turns;
        let sum = |turn: Position| turn.out + turn.err;
        // Turn 0 begins at the start of the output, whatever the file contains there.
        let begins = |number: u64| -> Result<Position> {
            let mut bytes = [0; TURN_BYTES as usize];
            files.turns.read_exact_at(&mut bytes, number * TURN_BYTES).at("read", &self.folder)?;
            let number = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default();
            Ok(Position { out: number(0), err: number(8) })
        };
        // A follower proceeds from one turn to the next; only its first call searches.
        let mut low = from.min(turns.saturating_sub(1));
        if low + 1 < turns && sum(begins(low + 1)?) <= sum(at) {
            let mut high = turns;
            while high - low > 1 {
                let middle = low + (high - low) / 2;
                if sum(begins(middle)?) <= sum(at) {
                    low = middle;
                } else {
                    high = middle;
                }
            }
        }
        Ok((low, if low + 1 < turns { Some(begins(low + 1)?) } else { None }))
    }

    /// Frees all but the last `keep` bytes of each stream.
    pub fn shrink(&self, keep: u64) {
        let Ok(files) = self.open() else { return };
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            self.lose_front(&files, stream, |track| track.end.saturating_sub(keep));
        }
        if let Some(keeper) = self.keeper.get() {
            keeper.shrink(keep);
        }
    }

    /// Returns the number of kept bytes, including the turns.
    pub fn size(&self) -> u64 {
        size(&lock(&self.state))
    }

    /// Returns the number of kept bytes of the larger stream.
    pub fn largest(&self) -> u64 {
        let marks = lock(&self.state);
        marks.out.kept().max(marks.err.kept())
    }

    fn lose_front(&self, files: &SpoolFiles, stream: OutputStream, to: impl FnOnce(&StreamTrack) -> u64) {
        let (from, to) = {
            let mut marks = lock(&self.state);
            let track = marks.of_mut(stream);
            let (from, to) = (track.start(), to(track));
            if to <= from || !self.can_punch.load(Ordering::Relaxed) {
                return;
            }
            // Record the loss before freeing the range, so that a reader can distinguish a hole from data.
            let before = track.kept();
            track.mark_lost(0, to);
            self.budget.sub(before - track.kept());
            (from, to)
        };
        if self.keeper.get().is_some() {
            let mut given_up = lock(&self.given_up);
            let most = given_up.of(stream).max(to);
            given_up.set(stream, most);
            return;
        }
        let (from, to) = (from / BLOCK * BLOCK, to / BLOCK * BLOCK);
        if let Err(error) = punch(files.of(stream), from, to - from) {
            log::warn!("{}: freed output stays on the disk: {error}", self.folder.display());
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.budget.sub(size(&lock(&self.state)));
    }
}

/// Result of [`Spool::read`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpoolRead {
    /// The number of bytes read, at least one.
    Bytes(usize),
    /// All bytes up to this offset were removed.
    Missed(u64),
    /// The command has not written any more bytes.
    Nothing,
}

impl SpoolFiles {
    fn of(&self, stream: OutputStream) -> &File {
        match stream {
            OutputStream::Stdout => &self.out,
            OutputStream::Stderr => &self.err,
        }
    }
}

impl OutputWriter {
    /// Appends bytes to a stream. Bytes that cannot be written to disk are lost, but counted.
    pub fn append(&mut self, stream: OutputStream, bytes: &[u8]) {
        let (spool, length) = (&self.spool, bytes.len() as u64);
        let step = spool.window / SPOOL_STEP_SHARE;
        let (end, start) = {
            let marks = lock(&spool.state);
            (marks.of(stream).end, marks.of(stream).start())
        };
        let full = end + length - start > spool.window;
        if full {
            spool.lose_front(&self.files, stream, |track| {
                (track.end + length + step).saturating_sub(spool.window)
            });
        }
        // Without hole punching, the beginning is kept, and further bytes are only counted.
        let wanted = !full || spool.can_punch.load(Ordering::Relaxed);
        let written = if wanted { self.write(stream, end, bytes) } else { 0 };
        let noted = self.turn != Some(stream) && self.note_turn();
        self.turn = Some(stream);
        {
            let mut marks = lock(&spool.state);
            marks.turns += u64::from(noted);
            marks.disk_full |= wanted && written < length;
            let track = marks.of_mut(stream);
            let before = track.kept();
            track.end += length;
            track.mark_lost(end + written, end + length);
            // The number of kept bytes can decrease if gaps were merged.
            spool.budget.add(track.kept().saturating_sub(before));
            spool.budget.sub(before.saturating_sub(track.kept()));
        }
        spool.wrote(written);
    }

    /// Writes bytes and returns how many of them are on disk.
    fn write(&self, stream: OutputStream, at: u64, bytes: &[u8]) -> u64 {
        let mut done = 0;
        let mut asked = false;
        while done < bytes.len() {
            match self.files.of(stream).write_at(&bytes[done..], at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if asked {
                        self.log_lost_output(&error);
                        break;
                    }
                    asked = true;
                    self.spool.budget.reclaim(limits::SPOOL_CHECK_BYTES);
                }
            }
        }
        done as u64
    }

    fn log_lost_output(&self, error: &std::io::Error) {
        if !lock(&self.spool.state).disk_full {
            log::error!("{}: output is lost: {error}", self.spool.folder.display());
        }
    }

    /// Records a switch to the other stream; returns `false` if that was not possible.
    fn note_turn(&self) -> bool {
        let (turns, at) = {
            let marks = lock(&self.spool.state);
            (marks.turns, marks.end())
        };
        if turns >= SPOOL_TURNS {
            return false;
        }
        let mut bytes = [0; TURN_BYTES as usize];
        bytes[..8].copy_from_slice(&at.out.to_le_bytes());
        bytes[8..].copy_from_slice(&at.err.to_le_bytes());
        let noted = self.files.turns.write_all_at(&bytes, turns * TURN_BYTES).is_ok();
        if noted {
            self.spool.budget.add(TURN_BYTES);
        }
        noted
    }
}

fn size(marks: &SpoolState) -> u64 {
    marks.out.kept() + marks.err.kept() + marks.turns * TURN_BYTES
}

/// Returns the offset at which data begins again if a part of this range of the file is a hole.
fn hole_at(file: &File, from: u64, to: u64) -> Option<u64> {
    // The files are read by offset, so the descriptors' positions do not matter.
    let hole = seek(file, SeekFrom::Hole(from)).ok().filter(|hole| *hole < to)?;
    Some(seek(file, SeekFrom::Data(hole)).unwrap_or(u64::MAX))
}

fn punch(file: &File, from: u64, length: u64) -> std::result::Result<(), Errno> {
    if length == 0 {
        return Ok(());
    }
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, length)
}
