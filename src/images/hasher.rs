//! Computes digests of files while they are written, on a separate thread, so that the writer does not wait.
//!
//! Thread: `image-hash`, one for each tree; it ends with the tree. The channel to the thread is bounded; when it is
//! full, the writer waits.

use std::ops::Range;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::{Sender, bounded};
use sha2::{Digest, Sha256};

use super::compression::Chunk;
use super::listing::KnownDigests;
use crate::base::{Error, Result, limits};

enum HashInput {
    Bytes(Arc<Chunk>, Range<usize>),
    Zeros(u64),
    /// The end of the file with this inode.
    End(u64),
}

/// Hashes files one after the other.
pub(super) struct FileHasher {
    pieces: Sender<HashInput>,
    thread: JoinHandle<KnownDigests>,
}

impl FileHasher {
    pub(super) fn start() -> Result<FileHasher> {
        let (pieces, wanted) = bounded(QUEUE);
        let work = move || {
            let (mut known, mut digest) = (KnownDigests::new(), Sha256::new());
            let zeros = vec![0; 64 << 10];
            for piece in wanted {
                match piece {
                    HashInput::Bytes(chunk, part) => digest.update(&chunk.bytes()[part]),
                    HashInput::Zeros(mut left) => {
                        while left > 0 {
                            let length = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
                            digest.update(&zeros[..length]);
                            left -= length as u64;
                        }
                    }
                    HashInput::End(inode) => {
                        known.insert(inode, std::mem::take(&mut digest).finalize().into());
                    }
                }
            }
            known
        };
        let thread = Builder::new().name("image-hash".into()).stack_size(limits::STACK).spawn(work);
        let thread =
            thread.map_err(|error| Error::internal("Could not start a thread").with_source(error))?;
        Ok(FileHasher { pieces, thread })
    }

    pub(super) fn bytes(&self, chunk: Arc<Chunk>, part: Range<usize>) {
        // The thread outlives this sender. If the thread has panicked, `finish` reports it.
        let _ = self.pieces.send(HashInput::Bytes(chunk, part));
    }

    pub(super) fn zeros(&self, count: u64) {
        let _ = self.pieces.send(HashInput::Zeros(count));
    }

    pub(super) fn end(&self, inode: u64) {
        let _ = self.pieces.send(HashInput::End(inode));
    }

    /// Waits for the thread and returns the digests of all files.
    pub(super) fn finish(self) -> Result<KnownDigests> {
        drop(self.pieces);
        self.thread.join().map_err(|_| Error::internal("The hashing thread failed"))
    }
}

/// Maximum number of queued messages: enough for many small files, and as many as there are buffers.
const QUEUE: usize = 64;
