//! Incremental decoding of message bodies: declared lengths and chunked encoding, for requests and answers. Pure: no
//! sockets, no deadlines.

use std::io::Write as _;

use crate::base::{Code, Error, Result, limits};

/// The part of a message body that has not been read yet.
#[derive(Debug)]
pub(super) enum RequestBody {
    /// The number of remaining bytes, for a declared length.
    Length(u64),
    /// The state of the decoder, for chunked encoding (RFC 9112, 7.1).
    Chunked(ChunkedDecoder),
}

impl RequestBody {
    pub(super) fn none() -> RequestBody {
        RequestBody::Length(0)
    }

    /// Returns whether the body is complete.
    pub(super) fn is_done(&self) -> bool {
        match self {
            RequestBody::Length(left) => *left == 0,
            RequestBody::Chunked(chunks) => chunks.state == ChunkState::Done,
        }
    }

    /// Consumes `input` up to the end of one piece of data. Returns the number of consumed bytes and the data among
    /// them. If the number is 0, more input is needed.
    ///
    /// # Errors
    /// `InvalidRequest` for a malformed chunk, `BodyTooLarge` for a body above the limit.
    pub(super) fn take<'a>(&mut self, input: &'a [u8]) -> Result<(usize, &'a [u8])> {
        match self {
            RequestBody::Length(left) => {
                let data = &input[..input.len().min(usize::try_from(*left).unwrap_or(usize::MAX))];
                *left -= data.len() as u64;
                Ok((data.len(), data))
            }
            RequestBody::Chunked(chunks) => chunks.take(input),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    /// Within the digits of a chunk size, with the number of digits so far.
    Size(u8),
    /// In the white space after the digits of a chunk size.
    SizePad,
    /// In a chunk extension, which is ignored.
    Extension,
    /// After the CR of a size line.
    SizeEnd,
    Data,
    /// Before the CR that follows the data (`DataCr`), and before the LF after that CR (`DataLf`).
    DataCr,
    DataLf,
    /// At the start of a trailer line (`Trailer`), in the trailer's name, in its value, or after its CR
    /// (`TrailerLf`).
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLf,
    /// After the CR of the empty line that ends the body.
    LastLf,
    Done,
}

/// A decoder for chunked encoding. Every line must end with CR LF.
#[derive(Debug)]
pub(super) struct ChunkedDecoder {
    state: ChunkState,
    /// The size of the current chunk while its digits are parsed; afterwards the number of its remaining bytes.
    left: u64,
    /// The number of data bytes that the rest of the body may still have.
    budget: u64,
    /// The number of bytes of padding and extension in the current size line.
    extension: usize,
    trailers: usize,
}

impl ChunkedDecoder {
    /// Creates a decoder for a body of at most `cap` bytes.
    pub(super) fn new(cap: u64) -> ChunkedDecoder {
        ChunkedDecoder { state: ChunkState::Size(0), left: 0, budget: cap, extension: 0, trailers: 0 }
    }

    fn take<'a>(&mut self, input: &'a [u8]) -> Result<(usize, &'a [u8])> {
        let mut at = 0;
        while at < input.len() && self.state != ChunkState::Done {
            if self.state == ChunkState::Data {
                let size = usize::try_from(self.left).unwrap_or(usize::MAX);
                let data = &input[at..at + size.min(input.len() - at)];
                self.left -= data.len() as u64;
                if self.left == 0 {
                    self.state = ChunkState::DataCr;
                }
                return Ok((at + data.len(), data));
            }
            self.byte(input[at])?;
            at += 1;
        }
        Ok((at, &[]))
    }

    /// Consumes one byte outside of the chunk data.
    fn byte(&mut self, byte: u8) -> Result<()> {
        let broken =
            |what: &str| Err(Error::new(Code::InvalidRequest, format!("Malformed chunked body: {what}")));
        self.state = match (self.state, byte) {
            (ChunkState::Size(digits), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                // A u64 holds 16 hex digits; RFC 9112, 7.1 requires recipients to detect overflow.
                if digits == 16 {
                    return broken("a chunk size of more than 16 digits");
                }
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                self.left = self.left << 4 | u64::from(digit);
                ChunkState::Size(digits + 1)
            }
            (ChunkState::Size(0), _) => return broken("a chunk without a size"),
            (ChunkState::Size(_), b'\r') => ChunkState::SizeEnd,
            (ChunkState::Size(_), b';') => ChunkState::Extension,
            // Some clients pad the size to a fixed width. White space before a semicolon, which RFC 9112 calls bad,
            // is refused like any other byte: no known client sends it, and implementations disagree about `2 2`.
            (ChunkState::Size(_) | ChunkState::SizePad, b' ' | b'\t') => {
                self.count_extension()?;
                ChunkState::SizePad
            }
            (ChunkState::SizePad, b'\r') => ChunkState::SizeEnd,
            (ChunkState::Size(_) | ChunkState::SizePad, _) => {
                return broken("a chunk size with a character other than a hex digit");
            }
            (ChunkState::Extension, b'\r') => ChunkState::SizeEnd,
            (ChunkState::Extension, byte) if byte == b'\t' || (b' '..0x7f).contains(&byte) => {
                self.count_extension()?;
                ChunkState::Extension
            }
            (ChunkState::Extension, _) => return broken("a control character in a chunk extension"),
            (ChunkState::SizeEnd, b'\n') => self.chunk()?,
            (ChunkState::SizeEnd, _) => return broken("a size line without CR LF"),
            (ChunkState::DataCr, b'\r') => ChunkState::DataLf,
            (ChunkState::DataLf, b'\n') => {
                self.left = 0;
                ChunkState::Size(0)
            }
            (ChunkState::DataCr | ChunkState::DataLf, _) => {
                return broken("more data than the chunk size allows");
            }
            (ChunkState::Trailer, b'\r') => ChunkState::LastLf,
            (ChunkState::TrailerValue, b'\r') => ChunkState::TrailerLf,
            (ChunkState::TrailerName, b':') => self.trailer(ChunkState::TrailerValue)?,
            (ChunkState::Trailer | ChunkState::TrailerName, byte) if is_token(byte) => {
                self.trailer(ChunkState::TrailerName)?
            }
            (ChunkState::TrailerValue, b'\t' | b' '..=b'~') => self.trailer(ChunkState::TrailerValue)?,
            (ChunkState::Trailer | ChunkState::TrailerName | ChunkState::TrailerValue, _) => {
                return broken("a trailer that is not of the form NAME: VALUE");
            }
            (ChunkState::TrailerLf, b'\n') => {
                self.trailers += 2;
                ChunkState::Trailer
            }
            (ChunkState::LastLf, b'\n') => ChunkState::Done,
            (ChunkState::TrailerLf | ChunkState::LastLf, _) => {
                return broken("a trailer line without CR LF");
            }
            (ChunkState::Data | ChunkState::Done, _) => return Ok(()),
        };
        Ok(())
    }

    fn count_extension(&mut self) -> Result<()> {
        self.extension += 1;
        if self.extension > limits::CHUNK_EXTENSION_BYTES {
            return Err(Error::new(
                Code::InvalidRequest,
                "Malformed chunked body: more chunk extensions than allowed",
            ));
        }
        Ok(())
    }

    /// Counts one byte of a trailer and returns `next`.
    fn trailer(&mut self, next: ChunkState) -> Result<ChunkState> {
        self.trailers += 1;
        if self.trailers > limits::TRAILER_BYTES {
            return Err(Error::new(Code::HeadTooLarge, "The trailers are too large"));
        }
        Ok(next)
    }

    /// Returns the state after a complete size line.
    fn chunk(&mut self) -> Result<ChunkState> {
        self.extension = 0;
        if self.left == 0 {
            return Ok(ChunkState::Trailer);
        }
        // A chunk that is too large is refused when its size is known, before any of its data is read.
        self.budget = self.budget.checked_sub(self.left).ok_or_else(too_large)?;
        Ok(ChunkState::Data)
    }
}

/// Appends `data` as one chunk. Empty data is skipped: a chunk of size 0 would end the body.
pub(super) fn write_chunk(data: &[u8], out: &mut Vec<u8>) {
    if data.is_empty() {
        return;
    }
    // Writing to a vector cannot fail.
    let _ = write!(out, "{:x}\r\n", data.len());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Returns whether `byte` is a `tchar` of RFC 9110, 5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Returns the error for a body that is too large (status 413).
pub(super) fn too_large() -> Error {
    Error::new(Code::BodyTooLarge, "The request body is larger than this endpoint accepts")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `input` in pieces of `step` bytes. Returns the data and the number of bytes after the body.
    fn read(input: &[u8], step: usize, cap: u64) -> Result<(Vec<u8>, usize)> {
        let (mut body, mut data, mut used) = (RequestBody::Chunked(ChunkedDecoder::new(cap)), Vec::new(), 0);
        while !body.is_done() {
            let piece = &input[used..input.len().min(used + step)];
            if piece.is_empty() {
                return Err(Error::internal("unfinished"));
            }
            let (n, part) = body.take(piece)?;
            data.extend_from_slice(part);
            used += n;
        }
        Ok((data, input.len() - used))
    }

    #[test]
    fn chunks_decode_the_same_at_any_split() {
        for (input, want, rest) in [
            ("0\r\n\r\n", "", 0),
            ("5\r\nhello\r\n0\r\n\r\nGET", "hello", 3),
            ("3;a=b;c=\"d\"\r\nabc\r\n002\r\nde\r\n00\r\nX: y\r\nZ: \r\n\r\n", "abcde", 0),
            ("A \r\n0123456789\r\n0\r\n\r\n", "0123456789", 0),
        ] {
            for step in 1..=input.len() {
                let (data, left) = read(input.as_bytes(), step, 100).unwrap();
                assert_eq!((data.as_slice(), left), (want.as_bytes(), rest), "{input:?} in steps of {step}");
            }
        }
    }

    #[test]
    fn malformed_chunks_are_refused_at_any_split() {
        let long = format!("1;{}\r\n", "x".repeat(300));
        let padded = format!("1{}\r\n", " ".repeat(300));
        let trailers = format!("0\r\n{}", "A: b\r\n".repeat(2000));
        for (input, status) in [
            ("\r\n", 400),
            ("g\r\n", 400),
            ("-1\r\n", 400),
            ("+1\r\n", 400),
            ("0x1\r\n", 400),
            ("1\nA", 400),
            ("1\rA", 400),
            ("3\r\nabcd\r\n", 400),
            ("3\r\nabc\n0\r\n\r\n", 400),
            ("3\r\nabc\rX", 400),
            ("00000000000000001\r\n", 400),
            ("0\r\nX: \0\r\n\r\n", 400),
            ("0\r\nX: y\n\r\n", 400),
            ("0\r\n\rX", 400),
            ("0\r\nX\r\n\r\n", 400),
            ("0\r\nX : y\r\n\r\n", 400),
            ("0\r\nX: y\r\n z\r\n\r\n", 400),
            ("0\r\n: y\r\n\r\n", 400),
            ("0\r\nX: \u{e4}\r\n\r\n", 400),
            ("2 2\r\nab\r\n", 400),
            ("2 ;x\r\nab\r\n", 400),
            ("1;\n\r\n", 400),
            ("65\r\n", 413),
            ("ffffffffffffffff\r\n", 413),
            ("60\r\n", 0),
            (&long, 400),
            (&padded, 400),
            (&trailers, 431),
        ] {
            for step in [1, 2, 3, 7, input.len()] {
                let error = read(input.as_bytes(), step, 100).unwrap_err();
                let status = if status == 0 { 500 } else { status };
                assert_eq!(error.code().status(), status, "{input:.50?} in steps of {step}: {error}");
            }
        }
    }

    #[test]
    fn the_limit_covers_all_chunks() {
        let input = b"3\r\nabc\r\n3\r\nabc\r\n0\r\n\r\n";
        assert!(read(input, 5, 6).is_ok());
        assert_eq!(read(input, 5, 5).unwrap_err().code(), Code::BodyTooLarge);
    }
}
