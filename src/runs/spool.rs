//! A run's output on disk: one file for each stream, in which each byte lies at its own offset, and the turns in which
//! the streams were written. A full window moves on by punching holes at its front, so offsets stay true; a disk that
//! takes no more costs the bytes that came then, and nobody else notices. Nothing is kept in memory for each byte.
//!
//! Threads: one writes, any read; anybody may take from the front. Locks: `marks` and `files`, both leaves without I/O
//! under them but for opening.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::disk_budget::DiskBudget;
use super::kept::KeeperControl;
use super::track::StreamTrack;
use crate::base::thread::lock;
use crate::base::{At, Result, limits};

/// One of a command's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputStream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

impl OutputStream {
    /// `stdout` or `stderr`.
    pub fn as_str(self) -> &'static str {
        match self {
            OutputStream::Stdout => "stdout",
            OutputStream::Stderr => "stderr",
        }
    }
}

/// How far both streams are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Bytes of stdout.
    pub out: u64,
    /// Bytes of stderr.
    pub err: u64,
}

impl Position {
    /// How far this one is.
    pub fn of(self, stream: OutputStream) -> u64 {
        match stream {
            OutputStream::Stdout => self.out,
            OutputStream::Stderr => self.err,
        }
    }

    /// The same, with this one elsewhere.
    pub fn set(&mut self, stream: OutputStream, offset: u64) {
        match stream {
            OutputStream::Stdout => self.out = offset,
            OutputStream::Stderr => self.err = offset,
        }
    }

    /// The earlier place in each stream.
    #[must_use]
    pub fn min(self, other: Position) -> Position {
        Position { out: self.out.min(other.out), err: self.err.min(other.err) }
    }

    /// `O:E`.
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

/// What there is of a run's output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolState {
    /// Stdout.
    pub out: StreamTrack,
    /// Stderr.
    pub err: StreamTrack,
    /// Turns that were noted.
    pub turns: u64,
    /// The disk took no more at some time, or failed.
    #[serde(default)]
    pub disk_full: bool,
}

impl SpoolState {
    /// One stream's.
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

    /// Where both streams end.
    pub fn end(&self) -> Position {
        Position { out: self.out.end, err: self.err.end }
    }
}

/// The open files.
#[derive(Debug)]
pub struct SpoolFiles {
    out: File,
    err: File,
    turns: File,
}

const NAMES: [&str; 3] = ["stdout", "stderr", "turns"];
/// A turn: where both streams were when another one began to be written.
const TURN_BYTES: u64 = 16;
/// What file systems free at once.
const BLOCK: u64 = 4096;

/// The output of one run.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    window: u64,
    room: Arc<DiskBudget>,
    /// Open as long as anybody needs them.
    files: Mutex<Weak<SpoolFiles>>,
    state: Mutex<SpoolState>,
    can_punch: AtomicBool,
    unchecked: AtomicU64,
    /// Who writes it, if that is another process. Marks come from there, a little later than what they tell of.
    keeper: OnceLock<Arc<dyn KeeperControl>>,
    /// What was given up here, while the writer may not know of it yet.
    given_up: Mutex<Position>,
}

/// The writing end.
pub struct OutputWriter {
    spool: Arc<Spool>,
    files: Arc<SpoolFiles>,
    /// Whose turn it is.
    turn: Option<OutputStream>,
}

impl Spool {
    /// Makes the files in `folder`, which exists. `window`: bytes kept of each stream.
    ///
    /// # Errors
    /// `DiskFull`, or whatever keeps a file from being made.
    pub fn create(folder: &Path, window: u64, room: Arc<DiskBudget>) -> Result<(Arc<Spool>, OutputWriter)> {
        let spool = Arc::new(Spool::existing(folder, window, room, SpoolState::default()));
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

    /// One that lies there, or is being written by another process.
    pub fn existing(folder: &Path, window: u64, room: Arc<DiskBudget>, marks: SpoolState) -> Spool {
        room.add(size(&marks));
        Spool {
            folder: folder.to_owned(),
            window: window.max(2 * limits::PIPE_CHUNK as u64),
            room,
            files: Mutex::default(),
            state: Mutex::new(marks),
            can_punch: AtomicBool::new(true),
            unchecked: AtomicU64::new(0),
            keeper: OnceLock::new(),
            given_up: Mutex::default(),
        }
    }

    /// The writing end of one whose files are there and empty.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn reopen(folder: &Path, window: u64, room: Arc<DiskBudget>) -> Result<(Arc<Spool>, OutputWriter)> {
        let spool = Arc::new(Spool::existing(folder, window, room, SpoolState::default()));
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

    /// From now on a keeper writes it.
    pub fn set_keeper(&self, keeper: Arc<dyn KeeperControl>) {
        let _ = self.keeper.set(keeper);
    }

    /// Takes over what its keeper says there is.
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
        self.room.add(after.saturating_sub(before));
        self.room.sub(before.saturating_sub(after));
        self.wrote(after.saturating_sub(before));
    }

    /// Takes note of what lies there beyond what its keeper could tell.
    pub fn rescan(&self) {
        let found = Spool::scan(&self.folder);
        let mut marks = self.state();
        marks.out.end = marks.out.end.max(found.out.end);
        marks.err.end = marks.err.end.max(found.err.end);
        marks.turns = marks.turns.max(found.turns);
        self.set_state(marks);
    }

    /// Now and then there must be looked whether there is room.
    fn wrote(&self, bytes: u64) {
        if self.unchecked.fetch_add(bytes, Ordering::Relaxed) + bytes >= limits::SPOOL_CHECK_BYTES {
            self.unchecked.store(0, Ordering::Relaxed);
            self.room.check();
        }
    }

    /// What lies in `folder`, by its files alone, as a writer left it that could not say more.
    pub fn scan(folder: &Path) -> SpoolState {
        let length = |name: &str| std::fs::metadata(folder.join(name)).map_or(0, |file| file.len());
        SpoolState {
            out: StreamTrack::whole(length(NAMES[0])),
            err: StreamTrack::whole(length(NAMES[1])),
            turns: length(NAMES[2]) / TURN_BYTES,
            disk_full: false,
        }
    }

    /// Removes the files; who has them open may read on.
    pub fn remove(&self) {
        for name in NAMES {
            let _ = std::fs::remove_file(self.folder.join(name));
        }
    }

    /// What there is.
    pub fn state(&self) -> SpoolState {
        lock(&self.state).clone()
    }

    /// Where both streams end.
    pub fn end(&self) -> Position {
        lock(&self.state).end()
    }

    /// The files, to read from.
    ///
    /// # Errors
    /// When they are gone, or the process is out of file descriptors.
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
    /// When the disk fails.
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
            // Gone since: what was read may have been the hole.
            if lock(&self.state).of(stream).is_cut_between(offset, offset + n.max(1) as u64) {
                continue;
            }
            if n > 0 && self.keeper.get().is_some() {
                // Its keeper may have given it up without our knowing yet: then there is a hole where we read.
                if let Some(to) = hole_at(files.of(stream), offset, offset + n as u64) {
                    return Ok(SpoolRead::Missed(to.min(end)));
                }
            }
            return Ok(if n == 0 { SpoolRead::Missed(until) } else { SpoolRead::Bytes(n) });
        }
    }

    /// Where the turn that begins at or before `at` ends, if it has ended, and its number.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn turn(&self, files: &SpoolFiles, at: Position, from: u64) -> Result<(u64, Option<Position>)> {
        let turns = lock(&self.state).turns;
        let sum = |turn: Position| turn.out + turn.err;
        // Turn 0 begins at the start, whatever is written there.
        let begins = |number: u64| -> Result<Position> {
            let mut bytes = [0; TURN_BYTES as usize];
            files.turns.read_exact_at(&mut bytes, number * TURN_BYTES).at("read", &self.folder)?;
            let number = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default();
            Ok(Position { out: number(0), err: number(8) })
        };
        // Whoever follows goes from one turn to the next; only the first look has to search.
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

    /// Gives up what lies before the last `keep` bytes of each stream.
    pub fn shrink(&self, keep: u64) {
        let Ok(files) = self.open() else { return };
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            self.lose_front(&files, stream, |track| track.end.saturating_sub(keep));
        }
        if let Some(keeper) = self.keeper.get() {
            keeper.shrink(keep);
        }
    }

    /// How many bytes are kept.
    pub fn size(&self) -> u64 {
        size(&lock(&self.state))
    }

    /// What the larger stream keeps.
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
            // Noted first, so that a reader can tell a hole from what was written.
            let before = track.kept();
            track.mark_lost(0, to);
            self.room.sub(before - track.kept());
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
            log::warn!(
                "{}: output that is not needed any more stays on the disk: {error}",
                self.folder.display()
            );
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.room.sub(size(&lock(&self.state)));
    }
}

/// What came of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpoolRead {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Everything up to this offset is gone.
    Missed(u64),
    /// The command has not written more.
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
    /// The next bytes of a stream. What the disk does not take is lost, and counted.
    pub fn append(&mut self, stream: OutputStream, bytes: &[u8]) {
        let (spool, length) = (&self.spool, bytes.len() as u64);
        let step = spool.window / limits::SPOOL_STEP_SHARE;
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
        // Without holes the beginning is kept and the rest is counted.
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
            // Less than before where gaps were joined.
            spool.room.add(track.kept().saturating_sub(before));
            spool.room.sub(before.saturating_sub(track.kept()));
        }
        spool.wrote(written);
    }

    /// How many of the bytes are on the disk now.
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
                    self.spool.room.reclaim(limits::SPOOL_CHECK_BYTES);
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

    /// Notes where the streams take turns; `false` when that was not possible.
    fn note_turn(&self) -> bool {
        let (turns, at) = {
            let marks = lock(&self.spool.state);
            (marks.turns, marks.end())
        };
        if turns >= limits::SPOOL_TURNS {
            return false;
        }
        let mut bytes = [0; TURN_BYTES as usize];
        bytes[..8].copy_from_slice(&at.out.to_le_bytes());
        bytes[8..].copy_from_slice(&at.err.to_le_bytes());
        let noted = self.files.turns.write_all_at(&bytes, turns * TURN_BYTES).is_ok();
        if noted {
            self.spool.room.add(TURN_BYTES);
        }
        noted
    }
}

fn size(marks: &SpoolState) -> u64 {
    marks.out.kept() + marks.err.kept() + marks.turns * TURN_BYTES
}

/// Where data begins again, if some of this stretch of a file is a hole.
fn hole_at(file: &File, from: u64, to: u64) -> Option<u64> {
    // The files are read by offset, so where their descriptors stand matters to nobody.
    let hole = seek(file, SeekFrom::Hole(from)).ok().filter(|hole| *hole < to)?;
    Some(seek(file, SeekFrom::Data(hole)).unwrap_or(u64::MAX))
}

fn punch(file: &File, from: u64, length: u64) -> std::result::Result<(), Errno> {
    if length == 0 {
        return Ok(());
    }
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, length)
}
