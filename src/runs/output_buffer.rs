//! Buffers the output of an exec until its response was sent: the first and last bytes of a stream up to a cap. A
//! small part is held in memory and the rest in a file without a name, so that a large output or a client that
//! does not read costs no memory.
//!
//! Used by one thread. Byte `n` of the stream is stored at offset `n` up to half of the cap; later bytes use the
//! other half as a ring buffer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::disk_budget::DiskBudget;
use crate::base::thread;
use crate::proc::Sink;

/// Bytes of a stream held in memory; with the two streams of 256 execs, 32 MiB.
const MEMORY_BYTES: usize = 64 << 10;
/// Size of the buffer for reading from the file.
const READ_BYTES: usize = 32 << 10;

/// The first and last bytes of one output stream.
#[derive(Debug)]
pub struct OutputBuffer {
    store: BufferStore,
    budget: Arc<DiskBudget>,
    cap: u64,
    total: u64,
    /// Set after a write error to the number of kept bytes: later bytes are dropped, and only the head remains.
    failed: Option<u64>,
}

#[derive(Debug)]
enum BufferStore {
    Memory(Vec<u8>),
    /// The file, and its length as accounted in the disk budget.
    File(File, u64),
}

impl OutputBuffer {
    /// Creates a buffer that keeps at most `cap` bytes and accounts for its file in `budget`.
    pub fn new(cap: usize, budget: Arc<DiskBudget>) -> OutputBuffer {
        OutputBuffer {
            store: BufferStore::Memory(Vec::new()),
            budget,
            cap: cap as u64,
            total: 0,
            failed: None,
        }
    }

    fn head_cap(&self) -> u64 {
        self.cap / 2
    }

    /// Returns the total number of bytes received.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Returns whether some of the received bytes are missing.
    pub fn is_cut(&self) -> bool {
        self.failed.is_some() || self.total > self.cap
    }

    /// Returns whether all kept bytes are in memory.
    pub fn is_small(&self) -> bool {
        matches!(self.store, BufferStore::Memory(_))
    }

    /// Stores bytes at an offset of the buffer; moves the buffer to a file when it outgrows memory.
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
            // This thread starts no other command before the exec is finished, so its priority can be lowered.
            thread::lower_priority();
            let file = self.budget.unnamed_file()?;
            file.write_all_at(memory, 0)?;
            self.budget.add(memory.len() as u64);
            let length = memory.len() as u64;
            self.store = BufferStore::File(file, length);
        }
        if let BufferStore::File(file, length) = &mut self.store {
            file.write_all_at(bytes, at)?;
            if end > *length {
                self.budget.add(end - *length);
                *length = end;
            }
        }
        Ok(())
    }

    /// Returns the kept ranges of the buffer in stream order: one before the gap, two after it.
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

    /// Returns the number of bytes missing in the gap.
    pub fn omitted(&self) -> u64 {
        self.total - self.stretches().iter().map(|(from, to)| to - from).sum::<u64>()
    }

    /// Passes the kept bytes to `each` in pieces: those before the gap, or after it if `behind_gap` is set.
    ///
    /// # Errors
    /// Errors of `each` and of reading the file.
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
            self.budget.sub(*length);
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
        let budget = Arc::new(DiskBudget::new(std::env::temp_dir(), u64::MAX));
        let mut held = OutputBuffer::new(cap, budget);
        chunks.for_each(|chunk| held.take(chunk));
        held
    }

    #[test]
    fn head_and_tail_are_kept_in_memory_and_on_disk_for_any_chunk_size() {
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
    fn without_a_disk_the_head_is_kept_and_the_rest_is_counted() {
        let budget = Arc::new(DiskBudget::new("/nonexistent".into(), u64::MAX));
        let mut held = OutputBuffer::new(1 << 20, budget);
        (0..10).for_each(|_| held.take(&[b'x'; 20_000]));
        let (head, tail) = kept(&held);
        assert_eq!((head.len(), tail.len(), held.omitted()), (60_000, 0, 140_000));
        assert!(held.is_cut());
    }
}
