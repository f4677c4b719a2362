//! A streaming parser for forms with files (multipart/form-data, RFC 7578 and 2046), which uses constant memory.
//! Pure: each call is passed the reader, so a partly read form can wait for approval while its request moves to
//! another thread.
//!
//! The crate `multipart` (0.18) is not used because of these bugs: it treats a CR LF before a boundary as data if it
//! is at the edge of the crate's buffer, so that a file of 8,123 bytes becomes 8,125; a line that merely contains
//! the boundary ends a file; a truncated body yields a complete file; a file name that contains `;` is truncated.

use std::io::{self, Read};

use memchr::memmem::Finder;

use super::request::decode;
use crate::base::{Code, Error, Result, limits};

/// Maximum size of the head of one part of a form. Browsers send about 200 bytes and the file's name.
const FORM_HEAD_BYTES: usize = 16 << 10;

/// The size of the read buffer. It is larger than the head of any part.
const BUFFER: usize = 64 << 10;

/// A form that is being read.
#[derive(Debug)]
pub struct MultipartForm {
    delimiter: Finder<'static>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Number of bytes read that belong to no file.
    skipped: usize,
    done: bool,
}

/// The head of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormPart {
    /// The name of the form field.
    pub name: String,
    /// The file name; `None` if the part is not a file.
    pub file_name: Option<String>,
}

fn malformed(what: &str) -> Error {
    Error::new(Code::InvalidPayload, format!("The form is malformed: {what}"))
}

impl MultipartForm {
    /// Creates a parser for a request with this `Content-Type`.
    ///
    /// # Errors
    /// `InvalidPayload` if the `Content-Type` is not that of a form.
    pub fn new(content_type: Option<&str>) -> Result<MultipartForm> {
        let boundary = content_type.and_then(boundary).ok_or_else(|| {
            Error::new(
                Code::InvalidPayload,
                "Expected multipart/form-data with a boundary, as `curl -F file=@NAME` sends it",
            )
        })?;
        let mut buffer = vec![0; BUFFER].into_boxed_slice();
        // A delimiter includes the preceding line break, but the first one may be at the start of the body.
        buffer[..2].copy_from_slice(b"\r\n");
        let delimiter = Finder::new(format!("\r\n--{boundary}").as_bytes()).into_owned();
        Ok(MultipartForm { delimiter, buffer, start: 0, end: 2, skipped: 0, done: false })
    }

    /// Skips the rest of the current part and returns the head of the next one, or `None` at the end of the form.
    ///
    /// # Errors
    /// `InvalidPayload` if the form is malformed, `InvalidRequest` if it is truncated, `BodyTooLarge` if too many
    /// bytes were skipped.
    pub fn next_part(&mut self, source: &mut dyn Read) -> Result<Option<FormPart>> {
        while !self.done {
            let n = self.data(source)?.len();
            if n == 0 {
                break;
            }
            self.count_skipped(n)?;
        }
        if self.done {
            return Ok(None);
        }
        self.start += self.delimiter.needle().len();
        self.need(source, 2)?;
        if self.buffer[self.start..].starts_with(b"--") {
            self.done = true;
            return Ok(None);
        }
        loop {
            self.need(source, 2)?;
            match self.buffer[self.start] {
                b' ' | b'\t' => self.start += 1,
                b'\r' if self.buffer[self.start + 1] == b'\n' => break,
                _ => return Err(malformed("unexpected bytes after a boundary")),
            }
        }
        self.head(source).map(Some)
    }

    /// Returns further bytes of the current part; empty at the end of the part.
    ///
    /// # Errors
    /// `InvalidRequest` if the body is truncated.
    pub fn data(&mut self, source: &mut dyn Read) -> Result<&[u8]> {
        if self.done {
            return Ok(&[]);
        }
        loop {
            let bytes = &self.buffer[self.start..self.end];
            let sure = match self.delimiter.find(bytes) {
                Some(at) => Some(at),
                // The last bytes of the buffer may be the beginning of a delimiter, so they are not returned yet.
                None => bytes.len().checked_sub(self.delimiter.needle().len() - 1).filter(|sure| *sure > 0),
            };
            if let Some(sure) = sure {
                let from = self.start;
                self.start += sure;
                return Ok(&self.buffer[from..self.start]);
            }
            self.fill(source)?;
        }
    }

    /// Reads the current part as text.
    ///
    /// # Errors
    /// Fails like [`MultipartForm::data`]; `InvalidPayload` if the part is not UTF-8, `BodyTooLarge` above
    /// [`limits::FORM_FIELDS_BYTES`].
    pub fn text(&mut self, source: &mut dyn Read) -> Result<String> {
        let mut text = Vec::new();
        loop {
            let piece = self.data(source)?;
            if piece.is_empty() {
                break;
            }
            text.extend_from_slice(piece);
            let n = piece.len();
            self.count_skipped(n)?;
        }
        String::from_utf8(text).map_err(|_| malformed("a field is not UTF-8"))
    }

    /// Discards the bytes after the form, so that the connection can be reused.
    pub fn finish(&mut self, source: &mut dyn Read) {
        // If there are too many bytes, the connection closes, but the upload succeeds.
        let _ = io::copy(&mut source.take(limits::DRAINED_BODY_BYTES), &mut io::sink());
    }

    fn count_skipped(&mut self, n: usize) -> Result<()> {
        self.skipped += n;
        if self.skipped > limits::FORM_FIELDS_BYTES {
            let message = format!("The form's fields are larger than {} bytes", limits::FORM_FIELDS_BYTES);
            return Err(Error::new(Code::BodyTooLarge, message));
        }
        Ok(())
    }

    /// Reads the head of a part. The buffer starts with the line break before the head.
    fn head(&mut self, source: &mut dyn Read) -> Result<FormPart> {
        loop {
            let bytes = &self.buffer[self.start..self.end];
            if let Some(at) = memchr::memmem::find(bytes, b"\r\n\r\n") {
                let part = part(&bytes[2..at + 4])?;
                self.start += at + 4;
                return Ok(part);
            }
            if bytes.len() > FORM_HEAD_BYTES {
                return Err(malformed("the headers of a part are too large"));
            }
            self.fill(source)?;
        }
    }

    /// Reads until the buffer holds at least `n` bytes.
    fn need(&mut self, source: &mut dyn Read, n: usize) -> Result<()> {
        while self.end - self.start < n {
            self.fill(source)?;
        }
        Ok(())
    }

    fn fill(&mut self, source: &mut dyn Read) -> Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let read = loop {
            match source.read(&mut self.buffer[self.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(n) if n > 0 => {
                self.end += n;
                Ok(())
            }
            read => {
                let error =
                    Error::new(Code::InvalidRequest, "The request body ended before the end of the form");
                Err(match read {
                    Err(cause) => error.with_source(cause),
                    Ok(_) => error,
                })
            }
        }
    }
}

/// Returns the boundary in a `Content-Type` (RFC 2046, 5.1.1).
fn boundary(content_type: &str) -> Option<String> {
    let (kind, rest) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameters(rest.as_bytes()).into_iter().find(|(name, _)| name == "boundary")?.1;
    let boundary = String::from_utf8(boundary).ok()?;
    let fits =
        (1..=70).contains(&boundary.len()) && boundary.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    (fits && !boundary.ends_with(' ')).then_some(boundary)
}

/// Parses the head of a part.
fn part(head: &[u8]) -> Result<FormPart> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let read = httparse::parse_headers(head, &mut headers);
    let Ok(httparse::Status::Complete((_, headers))) = read else {
        return Err(malformed("the headers of a part are malformed"));
    };
    let disposition = headers.iter().find(|header| header.name.eq_ignore_ascii_case("Content-Disposition"));
    let disposition = disposition.ok_or_else(|| malformed("a part has no Content-Disposition"))?.value;
    let (kind, rest) = disposition.split_at(memchr::memchr(b';', disposition).unwrap_or(disposition.len()));
    if !kind.trim_ascii().eq_ignore_ascii_case(b"form-data") {
        return Err(malformed("a part is not form-data"));
    }
    let parameters = parameters(rest.get(1..).unwrap_or_default());
    let find = |wanted: &str| parameters.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
    let text = |value: &Vec<u8>| String::from_utf8_lossy(value).replace("%22", "\"");
    let name = find("name").map(text).ok_or_else(|| malformed("a part has no name"))?;
    // RFC 7578, 4.2 forbids `filename*`, but some clients send it.
    let extended = find("filename*").and_then(|value| {
        let value = std::str::from_utf8(value).ok()?;
        let (charset, rest) = value.split_once('\'')?;
        charset.eq_ignore_ascii_case("utf-8").then(|| decode(rest.split_once('\'')?.1))?
    });
    Ok(FormPart { name, file_name: extended.or_else(|| find("filename").map(text)) })
}

/// Parses parameters such as `; name=value; name="quoted"`. Returns their names, in lower case, and values. Within
/// quotes, a backslash escapes a quote or a backslash; before any other character it is literal, as browsers send
/// it.
fn parameters(mut rest: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    while let Some(at) = memchr::memchr(b'=', rest) {
        let name = &rest[..at];
        let name = &name[memchr::memrchr(b';', name).map_or(0, |semicolon| semicolon + 1)..];
        let name = String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase();
        rest = rest[at + 1..].trim_ascii_start();
        let mut value = Vec::new();
        if let Some(quoted) = rest.strip_prefix(b"\"") {
            let mut at = 0;
            while at < quoted.len() && quoted[at] != b'"' {
                if quoted[at] == b'\\' && matches!(quoted.get(at + 1), Some(b'"' | b'\\')) {
                    at += 1;
                }
                value.push(quoted[at]);
                at += 1;
            }
            rest = quoted.get(at + 1..).unwrap_or_default();
        } else {
            let end = memchr::memchr(b';', rest).unwrap_or(rest.len());
            value.extend_from_slice(rest[..end].trim_ascii());
            rest = &rest[end..];
        }
        found.push((name, value));
    }
    found
}

#[cfg(test)]
#[path = "multipart_tests.rs"]
mod tests;
