//! Captures the first and the last bytes of a stream, up to a maximum in total, and counts all bytes.

use std::collections::VecDeque;

/// Receives a child's output.
pub trait Sink {
    /// Receives the next bytes: at most [`limits::PIPE_CHUNK`](crate::base::limits::PIPE_CHUNK) bytes.
    fn take(&mut self, bytes: &[u8]);
}

/// Keeps the head and the tail of a stream in bounded memory.
#[derive(Debug)]
pub struct OutputCapture {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    cap: usize,
    total: u64,
}

/// The result of an [`OutputCapture`].
#[derive(Debug, Default)]
pub struct CapturedOutput {
    /// The kept bytes: the whole stream, or its head and tail joined.
    pub bytes: Vec<u8>,
    /// The position in `bytes` at which bytes were omitted; `None` if all bytes were kept.
    pub gap: Option<usize>,
    /// The number of bytes that the stream contained.
    pub total: u64,
}

impl OutputCapture {
    /// Creates a capture that keeps at most `cap` bytes.
    pub fn new(cap: usize) -> OutputCapture {
        OutputCapture { head: Vec::new(), tail: VecDeque::new(), cap, total: 0 }
    }

    /// Ends the capture and returns the kept bytes.
    pub fn finish(self) -> CapturedOutput {
        let mut bytes = self.head;
        let gap = (self.total > (bytes.len() + self.tail.len()) as u64).then_some(bytes.len());
        bytes.reserve_exact(self.tail.len());
        let (front, back) = self.tail.as_slices();
        bytes.extend_from_slice(front);
        bytes.extend_from_slice(back);
        CapturedOutput { bytes, gap, total: self.total }
    }
}

impl Sink for OutputCapture {
    fn take(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let head_cap = self.cap / 2;
        let to_head = bytes.len().min(head_cap.saturating_sub(self.head.len()));
        self.head.extend_from_slice(&bytes[..to_head]);
        let rest = &bytes[to_head..];
        let tail_cap = self.cap - head_cap;
        let rest = &rest[rest.len().saturating_sub(tail_cap)..];
        let overflow = (self.tail.len() + rest.len()).saturating_sub(tail_cap);
        self.tail.drain(..overflow);
        self.tail.extend(rest);
    }
}

impl CapturedOutput {
    /// Returns the number of bytes that were not kept.
    pub fn omitted(&self) -> u64 {
        self.total - self.bytes.len() as u64
    }

    /// Returns the kept bytes as text: invalid UTF-8 is replaced, and a separate line marks the omitted bytes.
    pub fn into_text(self) -> String {
        let omitted = self.omitted();
        match self.gap {
            None => match String::from_utf8(self.bytes) {
                Ok(text) => text,
                Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
            },
            Some(gap) => {
                let note = format!("\n[... {omitted} bytes omitted ...]\n");
                let mut text = String::with_capacity(self.bytes.len() + note.len());
                text.push_str(&String::from_utf8_lossy(&self.bytes[..gap]));
                text.push_str(&note);
                text.push_str(&String::from_utf8_lossy(&self.bytes[gap..]));
                text
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(cap: usize, chunks: &[&[u8]]) -> CapturedOutput {
        let mut capture = OutputCapture::new(cap);
        for chunk in chunks {
            capture.take(chunk);
        }
        capture.finish()
    }

    #[test]
    fn streams_up_to_the_cap_are_complete() {
        let all = captured(10, &[b"01234", b"56789"]);
        assert_eq!((all.bytes.as_slice(), all.gap, all.total), (b"0123456789".as_slice(), None, 10));
    }

    #[test]
    fn longer_streams_keep_head_and_tail() {
        let cut = captured(10, &[b"0123", b"456789abcdef", b"g"]);
        assert_eq!((cut.bytes.as_slice(), cut.gap, cut.total), (b"01234cdefg".as_slice(), Some(5), 17));
        assert_eq!(cut.into_text(), "01234\n[... 7 bytes omitted ...]\ncdefg");
    }

    #[test]
    fn result_does_not_depend_on_the_chunks() {
        let data: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let whole = captured(1000, &[&data]).bytes;
        for size in [1, 7, 499, 500, 501, 999, 1000, 1001, 4999] {
            let chunks: Vec<&[u8]> = data.chunks(size).collect();
            assert_eq!(captured(1000, &chunks).bytes, whole, "chunks of {size}");
        }
    }
}
