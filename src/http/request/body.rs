//! The body of a request: it can be streamed, buffered for an approver, read as a whole, or parsed as JSON. A large
//! body is received into a file, and is counted in [`PARSING`] while it is in memory.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::Request;
use crate::base::input_bytes::{InputBytes, PARSING};
use crate::base::json_keys;
use crate::base::unknown_fields::KnownFields;
use crate::base::{Code, Error, Result, limits};
use crate::store::spool::{SpoolArea, SpoolReader, SpooledFile};

/// How long a request with a large body waits until other large bodies have been parsed. Parsing one takes some
/// milliseconds.
const PARSING_WAIT: Duration = Duration::from_secs(10);

/// A body that was read before the handler runs, so that an approver sees exactly the bytes that the handler will
/// use.
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
    /// Reads the body before the handler runs, so that the handler reads the buffered bytes. The body is buffered in
    /// memory if the gate has received all of it, otherwise on disk. It can be read repeatedly until
    /// [`Request::release_body`].
    ///
    /// # Errors
    /// `BodyTooLarge` above `cap` bytes; `TooManyPending` if the spool is full; `DiskFull`; `InvalidRequest` if the
    /// body is truncated.
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

    /// Returns a separate reader of the buffered body, from its start; `None` if the body is not buffered.
    pub fn buffered_body(&self) -> Option<Box<dyn Read>> {
        Some(match self.buffered.as_ref()? {
            BufferedBody::Memory(bytes, _) => Box::new(BufferedBody::Memory(bytes.clone(), 0)),
            BufferedBody::Spooled(file, _) => Box::new(file.reader()),
        })
    }

    /// Makes the handler read a buffered body from its start again.
    pub fn rewind_body(&mut self) {
        match &mut self.buffered {
            Some(BufferedBody::Memory(_, at)) => *at = 0,
            Some(BufferedBody::Spooled(file, reader)) => *reader = file.reader(),
            None => {}
        }
    }

    /// Allows the buffered body to be dropped once the handler has read it.
    pub fn release_body(&mut self) {
        self.released = true;
    }

    /// Returns the body as a stream, for bodies that are too large for memory.
    pub fn reader(&mut self) -> &mut dyn Read {
        match &mut self.buffered {
            Some(held) => held,
            None => self.source.reader(),
        }
    }

    /// Returns the declared length of the body, if the client declared one.
    pub fn announced_length(&self) -> Option<u64> {
        if self.is_streamed() {
            return self.header("X-Berth-Length")?.parse().ok();
        }
        self.source.body_length().map(|length| length as u64)
    }

    /// Reads the body, at most `cap` bytes. A large body is first received into a file, and is then counted in
    /// [`PARSING`] until the handler returns.
    ///
    /// # Errors
    /// `BodyTooLarge` above `cap` bytes (if the length is declared, before anything is read); `InvalidRequest` if
    /// the body is truncated; `Busy` if too many large bodies are in memory.
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
                // The buffered copy is freed at once, because the answer may take long.
                self.buffered = Some(BufferedBody::Memory(Arc::default(), 0));
            }
            return Ok(body);
        }
        let parcel = self.parcel(cap)?;
        if let InputBytes::File(_, length) = &parcel {
            // The count covers the body and the values parsed from it.
            self.charge = Some(PARSING.charge(2 * length, PARSING_WAIT)?);
        }
        parcel.into_vec()
    }

    /// Reads the body, at most `cap` bytes, for handlers that do not need all of it in memory.
    ///
    /// # Errors
    /// Fails like [`Request::body`].
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
                Err(Error::new(Code::InvalidRequest, "The request body was truncated"))
            }
            _ => Ok(parcel),
        }
    }

    /// Ends the count in [`PARSING`]. The caller has parsed the body.
    pub fn end_charge(&mut self) {
        self.charge = None;
    }

    /// Returns the length of the body: 0 if there is no body, `None` if the length is not known yet.
    pub fn body_length(&self) -> Option<u64> {
        match (&self.buffered, self.is_streamed()) {
            (Some(held), _) => Some(held.size()),
            (None, true) => None,
            (None, false) => Some(self.source.body_length().unwrap_or(0) as u64),
        }
    }

    /// Parses the body as JSON.
    ///
    /// # Errors
    /// `InvalidJson` if the body is not JSON, `InvalidPayload` if it does not match the schema.
    pub fn json<T: DeserializeOwned>(&mut self, cap: usize) -> Result<T> {
        self.json_of(cap, &KnownFields::from_type::<T>())
    }

    /// Parses the body as JSON, like [`Request::json`]. `fields` describes fields that the type alone does not.
    ///
    /// # Errors
    /// Fails like [`Request::json`].
    pub fn json_of<T: DeserializeOwned>(&mut self, cap: usize, fields: &KnownFields) -> Result<T> {
        let body = self.body(cap)?;
        self.parse(&body, fields)
    }

    /// Parses a body as JSON, and adds a warning for each unknown field.
    fn parse<T: DeserializeOwned>(&mut self, body: &[u8], fields: &KnownFields) -> Result<T> {
        let parsed = parse_json(body);
        self.warnings.extend(fields.unknown_fields(body));
        parsed
    }

    /// Parses the body as JSON. Returns `None` if the body is empty.
    ///
    /// # Errors
    /// Fails like [`Request::json`].
    pub fn json_if_any<T: DeserializeOwned>(&mut self, cap: usize) -> Result<Option<T>> {
        let body = self.body(cap)?;
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        self.parse(&body, &KnownFields::from_type::<T>()).map(Some)
    }
}

fn too_large(cap: u64) -> Error {
    Error::new(Code::BodyTooLarge, format!("The request body is larger than {cap} bytes"))
}

fn truncated(error: std::io::Error) -> Error {
    Error::new(Code::InvalidRequest, "The request body was truncated").with_source(error)
}

fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    // serde would also accept an array for a struct, field by field, which no client intends.
    if body.iter().find(|byte| !byte.is_ascii_whitespace()).is_some_and(|first| *first != b'{') {
        serde_json::from_slice::<serde::de::IgnoredAny>(body).map_err(invalid_json)?;
        return Err(Error::new(Code::InvalidPayload, "The request body must be a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            // The error may precede a syntax error, but `json_keys` requires valid JSON; so the whole body is
            // checked.
            let whole = serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
            let keys = if whole { json_keys::keys(body) } else { Vec::new() };
            let problem = json_keys::describe_type_error(&error, &keys);
            Error::new(Code::InvalidPayload, format!("The request body does not match the schema: {problem}"))
        }
        _ => invalid_json(error),
    })
}

fn invalid_json(error: serde_json::Error) -> Error {
    Error::new(Code::InvalidJson, format!("The body is not JSON: {error}"))
}
