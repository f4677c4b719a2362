//! Decompresses a stream ahead of the unpacker: a separate thread reads and decompresses, so that two cores are used.
//! The output is limited in size and in its ratio to the input, and the memory of the decoder is limited, too.
//!
//! Thread: `image-read`, one for each stream; it ends with the stream. The channel to the unpacker is bounded; when it
//! is full, the thread waits for the unpacker.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use flate2::bufread::GzDecoder;

use super::rules::ArchiveRules;
use crate::base::{Code, Error, Result, limits};
use crate::proc::Cancel;

/// Maximum memory of an xz decoder, in KiB: `xz -9` takes 65 MiB.
const IMAGE_DECODER_KIB: u32 = 256 << 10;

/// A piece of the decompressed stream. Its memory is reused after the last reference is dropped.
pub(super) struct Chunk {
    bytes: Vec<u8>,
    back: Sender<Vec<u8>>,
}

impl Chunk {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // The other end may be closed. In this case, the buffer's memory is freed.
        let _ = self.back.try_send(std::mem::take(&mut self.bytes));
    }
}

/// The decompressed stream.
pub(super) struct DecompressedStream {
    chunks: Receiver<Result<Chunk>>,
    chunk: Option<Arc<Chunk>>,
    at: usize,
    ended: bool,
}

impl DecompressedStream {
    /// Returns whether the end of the stream has been reached.
    pub(super) fn at_end(&mut self) -> Result<bool> {
        while !self.ended && self.chunk.as_ref().is_none_or(|chunk| self.at == chunk.bytes.len()) {
            self.at = 0;
            self.chunk = match self.chunks.recv() {
                Ok(chunk) => Some(Arc::new(chunk?)),
                Err(_) => {
                    self.ended = true;
                    None
                }
            };
        }
        Ok(self.ended)
    }

    /// Returns at most `most` of the next bytes, as a part of a chunk. The part is empty at the end of the stream.
    pub(super) fn next(&mut self, most: u64) -> Result<(Option<Arc<Chunk>>, std::ops::Range<usize>)> {
        if self.at_end()? {
            return Ok((None, 0..0));
        }
        let chunk = self.chunk.clone();
        let left = chunk.as_ref().map_or(0, |chunk| chunk.bytes.len() - self.at);
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(left);
        let part = self.at..self.at + length;
        self.at += length;
        Ok((chunk, part))
    }

    /// Fills `buffer` and returns the number of bytes, which is less than the buffer's length only at the end of the
    /// stream.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            let (chunk, part) = self.next((buffer.len() - done) as u64)?;
            let Some(chunk) = chunk else { break };
            buffer[done..done + part.len()].copy_from_slice(&chunk.bytes[part.clone()]);
            done += part.len();
        }
        Ok(done)
    }

    /// Reads the stream to its end, so that the digests include all bytes.
    pub(super) fn drain(&mut self) -> Result<()> {
        while !self.at_end()? {
            self.chunk = None;
        }
        Ok(())
    }
}

/// Callbacks of the reading thread.
pub(super) struct StreamObserver<'a> {
    /// The limits for the stream.
    pub(super) rules: &'static ArchiveRules,
    /// Receives each piece before decompression.
    pub(super) raw: &'a mut (dyn FnMut(&[u8]) + Send),
    /// Receives each piece after decompression.
    pub(super) plain: &'a mut (dyn FnMut(&[u8]) + Send),
}

/// Decompresses `input`, in any supported format, on a separate thread while `body` runs.
///
/// # Errors
/// An error of `body`, which also receives the errors of the stream.
pub(super) fn read_ahead<R>(
    mut input: impl Read + Send,
    observe: StreamObserver<'_>,
    cancel: &Cancel,
    body: impl FnOnce(&mut DecompressedStream) -> Result<R>,
) -> Result<R> {
    // This channel is full when the unpacker is slower than this thread; then reading waits.
    let (send, chunks) = bounded(CHUNKS);
    // This channel is never full, because there are no more buffers than it has places.
    let (back, buffers) = bounded(CHUNKS + 8);
    thread::scope(|scope| {
        let work = move || {
            let result = decompress(&mut input, observe, cancel, &send, (&back, &buffers));
            if let Err(error) = result {
                // If the receiver is closed, no caller needs the error.
                let _ = send.send(Err(error));
            }
        };
        let started = thread::Builder::new().name("image-read".into()).stack_size(limits::STACK);
        started
            .spawn_scoped(scope, work)
            .map_err(|error| Error::internal("Could not start a thread").with_source(error))?;
        // The stream is moved into the closure, so that it is dropped and the thread ends before the scope joins the
        // thread.
        let mut stream = DecompressedStream { chunks, chunk: None, at: 0, ended: false };
        body(&mut stream)
    })
}

const CHUNKS: usize = 8;
const CHUNK_BYTES: usize = 256 << 10;

fn decompress(
    input: &mut (dyn Read + Send),
    observe: StreamObserver<'_>,
    cancel: &Cancel,
    send: &Sender<Result<Chunk>>,
    (back, buffers): (&Sender<Vec<u8>>, &Receiver<Vec<u8>>),
) -> Result<()> {
    // The decoder reads the input through a counter, and the loop below reads the count.
    let counted = AtomicU64::new(0);
    let mut raw = CountingReader { input, count: &counted, observe: observe.raw };
    let mut head = [0; 6];
    let length = fill(&mut raw, &mut head).map_err(stream_error)?;
    let kind = CompressionFormat::of(&head[..length]);
    let raw = head[..length].chain(raw);
    let mut decoded: Box<dyn Read + '_> = match kind {
        CompressionFormat::Plain => Box::new(raw),
        CompressionFormat::Gzip => Box::new(GzipMembers::new(BufReader::with_capacity(CHUNK_BYTES, raw))),
        CompressionFormat::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(
            BufReader::with_capacity(CHUNK_BYTES, raw),
            true,
            IMAGE_DECODER_KIB,
        )),
        // The decoder's own window limit of 128 MiB equals that of other readers (RFC 8878 recommends 8 MiB).
        CompressionFormat::Zstd => Box::new(
            zstd::Decoder::with_buffer(BufReader::with_capacity(CHUNK_BYTES, raw)).map_err(stream_error)?,
        ),
    };
    let mut written = 0_u64;
    loop {
        let mut bytes = buffers.try_recv().unwrap_or_default();
        bytes.resize(CHUNK_BYTES, 0);
        let length = fill(&mut decoded, &mut bytes).map_err(stream_error)?;
        bytes.truncate(length);
        written += length as u64;
        check(observe.rules, counted.load(Ordering::Relaxed), written)?;
        if cancel.is_cancelled() {
            return Err(Error::new(Code::Cancelled, "The operation was cancelled"));
        }
        (observe.plain)(&bytes);
        let whole = length == CHUNK_BYTES;
        if length > 0 && send.send(Ok(Chunk { bytes, back: back.clone() })).is_err() {
            return Ok(());
        }
        if !whole {
            return Ok(());
        }
    }
}

/// Concatenated gzip members (RFC 1952). Zero bytes after the last one are padding, as in gzip(1): tapes and block
/// devices are padded with them. Other trailing data is damage.
struct GzipMembers<R> {
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> GzipMembers<R> {
    fn new(input: R) -> GzipMembers<R> {
        GzipMembers { member: Some(GzDecoder::new(input)) }
    }
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let n = member.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            let Some(mut rest) = self.member.take().map(GzDecoder::into_inner) else { break };
            if another_member(&mut rest)? {
                self.member = Some(GzDecoder::new(rest));
            }
        }
        Ok(0)
    }
}

/// Returns whether another member follows; skips padding.
fn another_member(rest: &mut impl BufRead) -> io::Result<bool> {
    let mut padded = false;
    loop {
        let bytes = match rest.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            bytes => bytes?,
        };
        match bytes.iter().position(|byte| *byte != 0) {
            _ if bytes.is_empty() => return Ok(false),
            Some(0) if !padded => return Ok(true),
            Some(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "data follows the end of the gzip file",
                ));
            }
            None => {
                padded = true;
                let read = bytes.len();
                rest.consume(read);
            }
        }
    }
}

/// Checks the size of the output and its ratio to the input.
pub(super) fn check(rules: &ArchiveRules, read: u64, written: u64) -> Result<()> {
    if written > rules.bytes {
        return Err(Error::new(
            Code::InvalidImage,
            format!("The archive unpacks to more than {} GiB", rules.bytes >> 30),
        ));
    }
    if written > limits::IMAGE_RATIO_FREE && written / read.max(1) > rules.ratio {
        return Err(Error::new(
            Code::InvalidImage,
            format!(
                "The archive unpacks to more than {} times its size, which indicates a decompression bomb",
                rules.ratio
            ),
        ));
    }
    Ok(())
}

fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match input.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Converts an error of reading the stream into an error for the client.
fn stream_error(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => Error::new(
            Code::InvalidImage,
            format!(
                "The archive cannot be read: {error}; it may be damaged or incomplete, or need more memory than is allowed"
            ),
        ),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CompressionFormat {
    Plain,
    Gzip,
    Xz,
    Zstd,
}

impl CompressionFormat {
    fn of(head: &[u8]) -> CompressionFormat {
        match head {
            [0x1f, 0x8b, ..] => CompressionFormat::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0] => CompressionFormat::Xz,
            // The start of a frame or of a skippable frame.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => CompressionFormat::Zstd,
            _ => CompressionFormat::Plain,
        }
    }
}

struct CountingReader<'a, R> {
    input: R,
    count: &'a AtomicU64,
    observe: &'a mut (dyn FnMut(&[u8]) + Send),
}

impl<R: Read> Read for CountingReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buffer)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        (self.observe)(&buffer[..n]);
        Ok(n)
    }
}
