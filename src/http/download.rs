//! Answers with a file as the body: the file name, validators, and range requests (RFC 9110, 13 and 14). A small
//! body is returned at once; a large one is written to the client's own socket. Independent of the origin of the
//! files.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use super::client::Tickets;
use super::stream::StreamBody;
use super::{Method, Request, Response};
use crate::base::pool::Permit;
use crate::base::{At, Code, Error, Result};

/// Maximum size of a download that the worker thread sends itself, so that the connection stays open. A larger
/// download takes over the client's socket.
const DOWNLOAD_HELD_BYTES: u64 = 64 << 10;

/// The part of a file that the headers of a request select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RangeRequest {
    /// The whole file.
    Whole,
    /// The bytes from the first number (inclusive) to the second (exclusive).
    Range(u64, u64),
    /// The requested range is outside of the file.
    Unsatisfiable,
    /// The client's cached copy is current.
    NotModified,
}

/// A file to send, with its name and its validator. The validator is weak if the file changed very recently.
pub struct Download<'a> {
    /// The file, open for reading.
    pub file: File,
    /// The file name without directories.
    pub name: &'a str,
    /// The text of the ETag. It is equal for equal content.
    pub tag: String,
    /// Whether different content always has a different `tag`.
    pub is_strong: bool,
}

impl Download<'_> {
    /// Answers a GET or HEAD request. `permit` returns the permit that is needed to send a large body.
    ///
    /// # Errors
    /// Returns the error of `permit`, or fails if the file cannot be read.
    pub fn answer(
        mut self,
        request: &Request,
        tickets: &Tickets,
        permit: impl FnOnce() -> Result<Permit>,
    ) -> Result<Response> {
        let size = self.file.metadata().at("read", self.name)?.len();
        let etag = if self.is_strong { format!("\"{}\"", self.tag) } else { format!("W/\"{}\"", self.tag) };
        let is_get = request.method() == Method::Get;
        let range = request.header("Range").filter(|_| is_get);
        let headers = |response: Response| {
            response
                .with("Content-Type", "application/octet-stream")
                .with("Content-Disposition", disposition(self.name))
                .with("Accept-Ranges", "bytes")
                .with("ETag", etag.as_str())
                // A client must revalidate its cached copy before each use.
                .with("Cache-Control", "private, no-cache")
                .with("X-Content-Type-Options", "nosniff")
        };
        let wanted =
            evaluate_range(request.header("If-None-Match"), request.header("If-Range"), range, &etag, size);
        let (response, from, length) = match wanted {
            RangeRequest::NotModified => return Ok(headers(Response::empty(304))),
            RangeRequest::Unsatisfiable => {
                let message = format!("The requested range is outside the file, which has {size} bytes");
                let error = Error::new(Code::RangeNotSatisfiable, message).detail("size", size);
                return Ok(Response::error(&error).with("Content-Range", format!("bytes */{size}")));
            }
            RangeRequest::Whole => (None, 0, size),
            RangeRequest::Range(from, to) => {
                (Some(format!("bytes {from}-{}/{size}", to - 1)), from, to - from)
            }
        };
        let part = |whole: Response| match &response {
            None => headers(whole),
            Some(range) => headers(whole.with_status(206).with("Content-Range", range.as_str())),
        };
        if !is_get {
            return Ok(headers(Response::empty(200).without_body(Some(size))));
        }
        if length <= DOWNLOAD_HELD_BYTES {
            self.file.seek(SeekFrom::Start(from)).at("read", self.name)?;
            let mut body = Vec::with_capacity(length as usize);
            (&mut self.file).take(length).read_to_end(&mut body).at("read", self.name)?;
            if body.len() as u64 == length {
                return Ok(part(Response::empty(200).with_body(body)));
            }
            return Err(Error::new(Code::Busy, "The file is being changed; try again"));
        }
        let permit = permit()?;
        let file = self.file.try_clone().at("read", self.name)?;
        let ticket = tickets.issue(move |socket, _| {
            permit.run(move || {
                let mut body = StreamBody::new(socket);
                // If the file was truncated, the body ends early, and the client detects that by its length.
                if body.send_file(&file, from, length).is_ok() {
                    let _ = body.end();
                }
            });
        })?;
        Ok(part(Response::handed_over(ticket, Some(length))))
    }
}

/// Returns a `Content-Disposition` of `attachment` with the file name (RFC 6266). A plain ASCII name is unchanged.
/// For any other name, the header has an ASCII substitute for old clients, and the name in UTF-8 (RFC 8187).
pub fn disposition(name: &str) -> String {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '%') || c == ' ';
    let look_alike: String = name.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    let mut header = format!("attachment; filename=\"{look_alike}\"");
    if look_alike != name {
        header.push_str("; filename*=UTF-8''");
        for byte in name.bytes() {
            // RFC 8187, 3.2.1: these are the bytes of `attr-char`, which are not encoded.
            if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
                header.push(byte as char);
            } else {
                let _ = write!(header, "%{byte:02X}");
            }
        }
    }
    header
}

/// Evaluates the conditional and range headers of a request. `range` must be `None` unless the method is GET.
fn evaluate_range(
    none_match: Option<&str>,
    if_range: Option<&str>,
    range: Option<&str>,
    etag: &str,
    size: u64,
) -> RangeRequest {
    let opaque = |tag: &str| tag.trim().strip_prefix("W/").unwrap_or(tag.trim()).to_owned();
    if none_match
        .is_some_and(|tags| tags.trim() == "*" || tags.split(',').any(|tag| opaque(tag) == opaque(etag)))
    {
        return RangeRequest::NotModified;
    }
    // If-Range requires a strong comparison (13.1.5): a weak tag never matches. A date does not match either,
    // because the server sends no dates.
    if if_range.is_some_and(|tag| tag.trim() != etag || etag.starts_with("W/")) {
        return RangeRequest::Whole;
    }
    // A server may answer a request for several ranges (14.2), or for an invalid one, with the whole file.
    let Some((first, last)) = range
        .and_then(|range| range.trim().strip_prefix("bytes="))
        .filter(|ranges| !ranges.contains(','))
        .and_then(|range| range.trim().split_once('-'))
    else {
        return RangeRequest::Whole;
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first > last => RangeRequest::Whole,
        (Some(first), _) if first >= size && (last.is_empty() || number(last).is_some()) => {
            RangeRequest::Unsatisfiable
        }
        (Some(first), Some(last)) => RangeRequest::Range(first, size.min(last.saturating_add(1))),
        (Some(first), None) if last.is_empty() => RangeRequest::Range(first, size),
        (None, Some(0)) if first.is_empty() => RangeRequest::Unsatisfiable,
        (None, Some(last)) if first.is_empty() && size > 0 => {
            RangeRequest::Range(size.saturating_sub(last), size)
        }
        (None, Some(_)) if first.is_empty() => RangeRequest::Unsatisfiable,
        _ => RangeRequest::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_encoded_for_all_clients() {
        for (name, want) in [
            ("report.pdf", "attachment; filename=\"report.pdf\""),
            ("a b (1).txt", "attachment; filename=\"a b (1).txt\""),
            ("日本.txt", "attachment; filename=\"__.txt\"; filename*=UTF-8''%E6%97%A5%E6%9C%AC.txt"),
            ("a\"b\\c\n%41", "attachment; filename=\"a_b_c__41\"; filename*=UTF-8''a%22b%5Cc%0A%2541"),
        ] {
            assert_eq!(disposition(name), want);
        }
    }

    #[test]
    fn range_headers_are_evaluated() {
        use RangeRequest::{Range, Unsatisfiable, Whole};
        for (range, want) in [
            ("bytes=0-0", Range(0, 1)),
            ("bytes=2-", Range(2, 10)),
            ("bytes=2-4", Range(2, 5)),
            ("bytes=2-400", Range(2, 10)),
            ("bytes=-3", Range(7, 10)),
            ("bytes=-30", Range(0, 10)),
            ("bytes=9-", Range(9, 10)),
            ("bytes=10-", Unsatisfiable),
            ("bytes=10-12", Unsatisfiable),
            ("bytes=99999999999999999999999-", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=0-99999999999999999999999", Range(0, 10)),
            ("bytes=0-1,3-4", Whole),
            ("bytes=4-2", Whole),
            ("bytes=", Whole),
            ("bytes=-", Whole),
            ("bytes=a-b", Whole),
            ("bytes=1-b", Whole),
            ("bytes=+1-2", Whole),
            ("lines=0-1", Whole),
        ] {
            assert_eq!(evaluate_range(None, None, Some(range), "\"t\"", 10), want, "{range}");
        }
        assert_eq!(evaluate_range(None, None, Some("bytes=0-"), "\"t\"", 0), Unsatisfiable);
        assert_eq!(evaluate_range(None, None, Some("bytes=-1"), "\"t\"", 0), Unsatisfiable);
    }

    #[test]
    fn validators_are_compared() {
        use RangeRequest::{NotModified, Range, Whole};
        for (tags, want) in [
            ("\"t\"", NotModified),
            ("W/\"t\"", NotModified),
            ("*", NotModified),
            ("\"a\", \"t\"", NotModified),
            ("\"a\"", Whole),
        ] {
            assert_eq!(evaluate_range(Some(tags), None, None, "\"t\"", 10), want, "{tags}");
            assert_eq!(evaluate_range(Some(tags), None, None, "W/\"t\"", 10), want, "{tags}");
        }
        let range = Some("bytes=1-2");
        assert_eq!(evaluate_range(None, Some("\"t\""), range, "\"t\"", 10), Range(1, 3));
        assert_eq!(evaluate_range(None, Some("\"old\""), range, "\"t\"", 10), Whole);
        assert_eq!(evaluate_range(None, Some("W/\"t\""), range, "W/\"t\"", 10), Whole);
        assert_eq!(evaluate_range(None, Some("Wed, 21 Oct 2015 07:28:00 GMT"), range, "\"t\"", 10), Whole);
    }
}
