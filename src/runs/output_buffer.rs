//! The output of an exec until its answer has gone: the first and the last bytes of a stream up to a cap. A little of it is
//! held in memory, more in a file without a name, so that neither an exec nor a client that does not read its answer
//! costs memory.
//!
//! One thread each. Byte `n` of the stream is stored at `n` up to half of the cap; what follows goes around the rest.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::disk_budget::DiskBudget;
use crate::base::thread;
use crate::proc::Sink;

/// What a stream holds in memory; with two streams of 256 execs that is 32 MiB.
const MEMORY_BYTES: usize = 64 << 10;
/// How much is read from a file at once.
const READ_BYTES: usize = 32 << 10;

/// Takes a stream.
#[derive(Debug)]
pub struct OutputBuffer {
    store: BufferStore,
    room: Arc<DiskBudget>,
    cap: u64,
    total: u64,
    /// The disk took no more: of what came later nothing is kept, and of what came before only the beginning.
    failed: Option<u64>,
}

#[derive(Debug)]
enum BufferStore {
    Memory(Vec<u8>),
    /// And how much it counts for.
    File(File, u64),
}

impl OutputBuffer {
    /// Keeps at most `cap` bytes, on the disk that `room` is an account of.
    pub fn new(cap: usize, room: Arc<DiskBudget>) -> OutputBuffer {
        OutputBuffer { store: BufferStore::Memory(Vec::new()), room, cap: cap as u64, total: 0, failed: None }
    }

    fn head_cap(&self) -> u64 {
        self.cap / 2
    }

    /// How many bytes came.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Whether some of them are missing.
    pub fn is_cut(&self) -> bool {
        self.failed.is_some() || self.total > self.cap
    }

    /// Whether all that is kept is in memory.
    pub fn is_small(&self) -> bool {
        matches!(self.store, BufferStore::Memory(_))
    }

    /// Stores bytes at an offset; a file where they need one.
    fn put(&mut self, at: u64, bytes: &[u8]) {
        if bytes.is_empty() || self.failed.is_some() {
            return;
        }
        let end = at + bytes.len() as u64;
        if let Err(error) = self.try_put(at, end, bytes) {
            log::error!("Output of an exec is lost: {error}");
            self.failed = Some(at.min(self.head_cap()));
        }
    }

    fn try_put(&mut self, at: u64, end: u64, bytes: &[u8]) -> io::Result<()> {
        if let BufferStore::Memory(memory) = &mut self.store {
            if end <= MEMORY_BYTES as u64 {
                let (at, end) = (at as usize, end as usize);
                if memory.len() < end {
                    memory.resize(end, 0);
                }
                memory[at..end].copy_from_slice(bytes);
                return Ok(());
            }
            // Nothing is started on this thread before its job is over.
            thread::lower_priority();
            let file = self.room.unnamed_file()?;
            file.write_all_at(memory, 0)?;
            self.room.add(memory.len() as u64);
            let length = memory.len() as u64;
            self.store = BufferStore::File(file, length);
        }
        if let BufferStore::File(file, length) = &mut self.store {
            file.write_all_at(bytes, at)?;
            if end > *length {
                self.room.add(end - *length);
                *length = end;
            }
        }
        Ok(())
    }

    /// The stretches of the store that are kept, in the order of the stream: before the gap, and behind it in two pieces.
    fn stretches(&self) -> [(u64, u64); 3] {
        if let Some(kept) = self.failed {
            return [(0, kept), (0, 0), (0, 0)];
        }
        if self.total <= self.cap {
            return [(0, self.total), (0, 0), (0, 0)];
        }
        let head = self.head_cap();
        let turn = (self.total - head) % (self.cap - head).max(1);
        [(0, head), (head + turn, self.cap), (head, head + turn)]
    }

    /// How many bytes are missing.
    pub fn omitted(&self) -> u64 {
        self.total - self.stretches().iter().map(|(from, to)| to - from).sum::<u64>()
    }

    /// Gives the kept bytes in pieces: those before the gap, then those behind it.
    ///
    /// # Errors
    /// What `each` says; when the file cannot be read.
    pub fn read(&self, behind_gap: bool, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let [head, first, second] = self.stretches();
        let stretches = if behind_gap { [first, second] } else { [head, (0, 0)] };
        for (from, to) in stretches {
            match &self.store {
                BufferStore::Memory(memory) => {
                    let kept = memory.get(from as usize..to as usize).unwrap_or_default();
                    if !kept.is_empty() {
                        each(kept)?;
                    }
                }
                BufferStore::File(file, _) => {
                    let mut buffer = vec![0; READ_BYTES];
                    let mut at = from;
                    while at < to {
                        let wanted = ((to - at) as usize).min(buffer.len());
                        file.read_exact_at(&mut buffer[..wanted], at)?;
                        each(&buffer[..wanted])?;
                        at += wanted as u64;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Sink for OutputBuffer {
    fn take(&mut self, bytes: &[u8]) {
        let (head_cap, tail_cap) = (self.head_cap(), self.cap - self.head_cap());
        let mut at = self.total;
        self.total += bytes.len() as u64;
        let to_head = bytes.len().min(usize::try_from(head_cap.saturating_sub(at)).unwrap_or(usize::MAX));
        let (head, rest) = bytes.split_at(to_head);
        self.put(at, head);
        at += to_head as u64;
        let skipped = rest.len().saturating_sub(usize::try_from(tail_cap).unwrap_or(usize::MAX));
        let rest = &rest[skipped..];
        at += skipped as u64;
        if rest.is_empty() {
            return;
        }
        let turn = (at - head_cap) % tail_cap;
        let (first, second) = rest.split_at(rest.len().min((tail_cap - turn) as usize));
        self.put(head_cap + turn, first);
        self.put(head_cap, second);
    }
}

impl Drop for OutputBuffer {
    fn drop(&mut self) {
        if let BufferStore::File(_, length) = &self.store {
            self.room.sub(*length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(held: &OutputBuffer) -> (Vec<u8>, Vec<u8>) {
        let mut parts = [Vec::new(), Vec::new()];
        for (at, part) in parts.iter_mut().enumerate() {
            held.read(at == 1, &mut |bytes| {
                part.extend_from_slice(bytes);
                Ok(())
            })
            .unwrap();
        }
        let [head, tail] = parts;
        (head, tail)
    }

    fn held(cap: usize, chunks: &mut dyn Iterator<Item = &[u8]>) -> OutputBuffer {
        let room = Arc::new(DiskBudget::new(std::env::temp_dir(), u64::MAX));
        let mut held = OutputBuffer::new(cap, room);
        chunks.for_each(|chunk| held.take(chunk));
        held
    }

    #[test]
    fn head_and_tail_in_memory_and_on_disk_whatever_the_chunks() {
        let data: Vec<u8> = (0..=255u8).cycle().zip(0..700_000u32).map(|(a, b)| a ^ (b >> 8) as u8).collect();
        for cap in [0, 1, 10, 999, 60_000, 200_000, 699_999, 700_000, 800_000] {
            for size in [1013, 64 << 10] {
                let held = held(cap, &mut data.chunks(size));
                let (head, tail) = kept(&held);
                assert_eq!(held.total(), data.len() as u64);
                assert_eq!(held.is_cut(), cap < data.len());
                if cap >= data.len() {
                    assert!(head == data && tail.is_empty(), "{cap}");
                    continue;
                }
                assert!(head == data[..cap / 2], "{cap} {size}");
                assert!(tail == data[data.len() - (cap - cap / 2)..], "{cap} {size}");
                assert_eq!(held.omitted(), (data.len() - cap) as u64);
                assert_eq!(held.is_small(), cap <= MEMORY_BYTES);
            }
        }
    }

    #[test]
    fn without_a_disk_the_beginning_is_kept_and_the_rest_counted() {
        let room = Arc::new(DiskBudget::new("/nonexistent".into(), u64::MAX));
        let mut held = OutputBuffer::new(1 << 20, room);
        (0..10).for_each(|_| held.take(&[b'x'; 20_000]));
        let (head, tail) = kept(&held);
        assert_eq!((head.len(), tail.len(), held.omitted()), (60_000, 0, 140_000));
        assert!(held.is_cut());
    }
}
