//! The body of a request: read as it comes, held for an approver, received whole, or parsed as JSON. Large ones are
//! received into files, and count for [`PARSING`] while they are in memory.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::Request;
use crate::base::fields::KnownFields;
use crate::base::input_bytes::{InputBytes, PARSING};
use crate::base::json_keys;
use crate::base::{Code, Error, Result, limits};
use crate::store::spool::{SpoolArea, SpoolReader, SpooledFile};

/// How long a large body waits until others have been parsed, which takes each some milliseconds.
const PARSING_WAIT: Duration = Duration::from_secs(10);

/// A body that was read ahead of its handler, so that an approver sees the very bytes that will be used.
pub(super) enum BufferedBody {
    Memory(Arc<Vec<u8>>, usize),
    Spooled(SpooledFile, SpoolReader),
}

impl BufferedBody {
    fn size(&self) -> u64 {
        match self {
            BufferedBody::Memory(bytes, _) => bytes.len() as u64,
            BufferedBody::Spooled(file, _) => file.size(),
        }
    }
}

impl Read for BufferedBody {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            BufferedBody::Memory(bytes, at) => {
                let count = (&bytes[*at..]).read(buffer)?;
                *at += count;
                Ok(count)
            }
            BufferedBody::Spooled(_, reader) => reader.read(buffer),
        }
    }
}

impl Request {
    /// Reads the body ahead of its handler, which then reads the held bytes: into memory if the gate has all of it, else
    /// to disk. It stays until [`Request::release_body`], however often it is read.
    ///
    /// # Errors
    /// `BodyTooLarge` beyond `cap` bytes; `TooManyPending` when the spool is full; `DiskFull`; `InvalidRequest` when the
    /// body breaks off.
    pub fn buffer_body(&mut self, cap: u64, spool: &SpoolArea) -> Result<()> {
        if self.buffered.is_some() {
            return Ok(());
        }
        if !self.is_streamed() {
            let body = self.body(usize::try_from(cap).unwrap_or(usize::MAX))?;
            self.buffered = Some(BufferedBody::Memory(Arc::new(body), 0));
            return Ok(());
        }
        if self.announced_length().is_some_and(|length| length > cap) {
            return Err(too_large(cap));
        }
        let key = self.actor.as_ref().map(|actor| actor.token_hash.clone()).unwrap_or_default();
        let mut writer = spool.begin(&key)?;
        let (mut chunk, mut size) = (vec![0; limits::PIPE_CHUNK], 0);
        loop {
            let count = match self.source.reader().read(&mut chunk) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                read => read.map_err(truncated)?,
            };
            if count == 0 {
                break;
            }
            size += count as u64;
            if size > cap {
                return Err(too_large(cap));
            }
            writer.append(&chunk[..count])?;
        }
        let file = writer.finish();
        let reader = file.reader();
        self.buffered = Some(BufferedBody::Spooled(file, reader));
        Ok(())
    }

    /// A reader of the held body from its start, beside the handler's; none if the body is not held.
    pub fn buffered_body(&self) -> Option<Box<dyn Read>> {
        Some(match self.buffered.as_ref()? {
            BufferedBody::Memory(bytes, _) => Box::new(BufferedBody::Memory(bytes.clone(), 0)),
            BufferedBody::Spooled(file, _) => Box::new(file.reader()),
        })
    }

    /// Has the handler read a held body from its start again.
    pub fn rewind_body(&mut self) {
        match &mut self.buffered {
            Some(BufferedBody::Memory(_, at)) => *at = 0,
            Some(BufferedBody::Spooled(file, reader)) => *reader = file.reader(),
            None => {}
        }
    }

    /// Has a held body dropped once its handler has read it: nobody asks for it any more.
    pub fn release_body(&mut self) {
        self.released = true;
    }

    /// The body as it comes, for what is too large to be held in memory.
    pub fn reader(&mut self) -> &mut dyn Read {
        match &mut self.buffered {
            Some(held) => held,
            None => self.source.reader(),
        }
    }

    /// How large the body is, if its client has said so.
    pub fn announced_length(&self) -> Option<u64> {
        if self.is_streamed() {
            return self.header("X-Berth-Length")?.parse().ok();
        }
        self.source.body_length().map(|length| length as u64)
    }

    /// The body, at most `cap` bytes. A large one is received without being held in memory; from then until its handler
    /// returns it counts for [`PARSING`].
    ///
    /// # Errors
    /// `BodyTooLarge`, before anything is read if its length is announced; `InvalidRequest` when it breaks off; `Busy` when
    /// too many large bodies are in memory.
    pub fn body(&mut self, cap: usize) -> Result<Vec<u8>> {
        self.rewind_body();
        if let Some(held) = &mut self.buffered {
            if held.size() > cap as u64 {
                return Err(too_large(cap as u64));
            }
            if matches!(held, BufferedBody::Spooled(..)) {
                self.charge = Some(PARSING.charge(2 * held.size(), PARSING_WAIT)?);
            }
            let mut body = Vec::with_capacity(usize::try_from(held.size()).unwrap_or_default());
            held.read_to_end(&mut body).map_err(truncated)?;
            if self.released {
                // The answer may take long, and its body needs no room meanwhile.
                self.buffered = Some(BufferedBody::Memory(Arc::default(), 0));
            }
            return Ok(body);
        }
        let parcel = self.parcel(cap)?;
        if let InputBytes::File(_, length) = &parcel {
            // Itself, and what is made of it.
            self.charge = Some(PARSING.charge(2 * length, PARSING_WAIT)?);
        }
        parcel.into_vec()
    }

    /// The body as it came, at most `cap` bytes, for handlers that need not have it in memory.
    ///
    /// # Errors
    /// As above.
    pub fn parcel(&mut self, cap: usize) -> Result<InputBytes> {
        if self.buffered.is_some() {
            return InputBytes::from_vec(self.body(cap)?);
        }
        let announced = self.source.body_length();
        if announced.is_some_and(|length| length > cap) {
            return Err(too_large(cap as u64));
        }
        let parcel = InputBytes::read_from(self.source.reader(), cap)?;
        match announced {
            Some(length) if parcel.len() < length as u64 => {
                Err(Error::new(Code::InvalidRequest, "The body broke off"))
            }
            _ => Ok(parcel),
        }
    }

    /// Its body has been read and made into something else.
    pub fn end_charge(&mut self) {
        self.charge = None;
    }

    /// How long the body is, when it is known; 0: there is none.
    pub fn body_length(&self) -> Option<u64> {
        match (&self.buffered, self.is_streamed()) {
            (Some(held), _) => Some(held.size()),
            (None, true) => None,
            (None, false) => Some(self.source.body_length().unwrap_or(0) as u64),
        }
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// `InvalidJson` when it is not JSON, `InvalidPayload` when it is JSON of another shape.
    pub fn json<T: DeserializeOwned>(&mut self, cap: usize) -> Result<T> {
        self.json_of(cap, &KnownFields::from_type::<T>())
    }

    /// The same, where `fields` says more about the body than its type can.
    ///
    /// # Errors
    /// As [`Request::json`].
    pub fn json_of<T: DeserializeOwned>(&mut self, cap: usize, fields: &KnownFields) -> Result<T> {
        let body = self.body(cap)?;
        self.parse(&body, fields)
    }

    /// A body of the expected shape; fields that nothing reads are warned of.
    fn parse<T: DeserializeOwned>(&mut self, body: &[u8], fields: &KnownFields) -> Result<T> {
        let parsed = parse_json(body);
        self.warnings.extend(fields.unknown_fields(body));
        parsed
    }

    /// The body as JSON; `None` when there is none.
    ///
    /// # Errors
    /// As [`Request::json`].
    pub fn json_if_any<T: DeserializeOwned>(&mut self, cap: usize) -> Result<Option<T>> {
        let body = self.body(cap)?;
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        self.parse(&body, &KnownFields::from_type::<T>()).map(Some)
    }
}

fn too_large(cap: u64) -> Error {
    Error::new(Code::BodyTooLarge, format!("The body is larger than {cap} bytes"))
}

fn truncated(error: std::io::Error) -> Error {
    Error::new(Code::InvalidRequest, "The body broke off").with_source(error)
}

fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    // A struct would also be read from an array, field by field; no client means that.
    if body.iter().find(|byte| !byte.is_ascii_whitespace()).is_some_and(|first| *first != b'{') {
        serde_json::from_slice::<serde::de::IgnoredAny>(body).map_err(invalid_json)?;
        return Err(Error::new(Code::InvalidPayload, "The body must be a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            // Well-formed up to the error only; the scanner reads what serde_json has accepted.
            let whole = serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
            let keys = if whole { json_keys::keys(body) } else { Vec::new() };
            let problem = json_keys::describe_type_error(&error, &keys);
            Error::new(Code::InvalidPayload, format!("The body has not the expected shape: {problem}"))
        }
        _ => invalid_json(error),
    })
}

fn invalid_json(error: serde_json::Error) -> Error {
    Error::new(Code::InvalidJson, format!("The body is not JSON: {error}"))
}
