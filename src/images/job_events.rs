//! Publishes the events of images on the bus. Each import and each build is a job with an ID, which has the events
//! `started`, `progress`, and `done` or `failed`. The removal of an image has the event `removed`.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};
use serde_json::{Map, Value, json};

use super::import::ImageImport;
use super::report::{ImportProgress, ImportSpec, ImportedImage, ProgressFn};
use super::{ImageId, ImageName, Images};
use crate::base::{Error, Result, limits};
use crate::events::Topic;
use crate::proc::Cancel;

impl Images {
    /// Publishes events to this topic.
    #[must_use]
    pub fn with_events(mut self, topic: Arc<Topic>) -> Images {
        self.events = Some(topic);
        self
    }

    pub fn events(&self) -> Option<&Arc<Topic>> {
        self.events.as_ref()
    }

    /// Imports a file or directory of this host.
    ///
    /// # Errors
    /// `InvalidImage` with the problem, `InvalidPath` when the path does not exist, `Cancelled`, `DiskFull`.
    pub fn import_path(
        &self,
        path: &Path,
        wanted: &ImportSpec<'_>,
        progress: ProgressFn<'_>,
        cancel: &Cancel,
    ) -> Result<ImportedImage> {
        self.run_job("import", wanted.name, progress, |progress| {
            ImageImport { images: self, spec: wanted, progress, cancel }.path(path)
        })
    }

    /// Imports a client's upload, `length` bytes if the client stated it. The calling thread reads from the client;
    /// another thread, `image-import`, does the rest and ends before this returns.
    ///
    /// # Errors
    /// The same as for [`Images::import_path`], and `InvalidImage` for a truncated upload.
    pub fn import_upload(
        &self,
        input: &mut dyn Read,
        length: Option<u64>,
        wanted: &ImportSpec<'_>,
        cancel: &Cancel,
    ) -> Result<ImportedImage> {
        // When this channel is full, the disk is slower than the client, so the client waits.
        let (send, pieces) = bounded::<std::io::Result<Vec<u8>>>(8);
        std::thread::scope(|scope| {
            let work = || {
                self.run_job("import", wanted.name, &mut |_| {}, |progress| {
                    let fed = ChannelReader { pieces, piece: Vec::new(), at: 0 };
                    ImageImport { images: self, spec: wanted, progress, cancel }.stream(fed, length)
                })
            };
            let started = std::thread::Builder::new().name("image-import".into()).stack_size(limits::STACK);
            let import = started
                .spawn_scoped(scope, work)
                .map_err(|error| Error::internal("Could not start a thread").with_source(error))?;
            let mut read = 0;
            loop {
                let mut piece = vec![0; 64 << 10];
                let next = match input.read(&mut piece) {
                    Ok(0) if length.is_some_and(|length| read < length) => {
                        Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof))
                    }
                    Ok(0) => break,
                    Ok(n) => {
                        piece.truncate(n);
                        read += n as u64;
                        Ok(piece)
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(error) => Err(error),
                };
                let last = next.is_err();
                // The import may have ended early with an error.
                if send.send(next).is_err() || last {
                    break;
                }
            }
            drop(send);
            import.join().unwrap_or_else(|_| Err(Error::internal("The import thread failed")))
        })
    }

    /// Runs `work` as a job and publishes its events.
    pub(super) fn run_job<R: serde::Serialize>(
        &self,
        kind: &'static str,
        name: &ImageName,
        progress: ProgressFn<'_>,
        work: impl FnOnce(ProgressFn<'_>) -> Result<R>,
    ) -> Result<R> {
        let job = uuid::Uuid::new_v4().to_string();
        let publish = |event: &'static str, more: Value| {
            if let Some(topic) = &self.events {
                let mut data = Map::new();
                data.insert("job".into(), job.as_str().into());
                data.insert("kind".into(), kind.into());
                data.insert("name".into(), name.as_str().into());
                data.extend(more.as_object().cloned().unwrap_or_default());
                topic.publish(event, data);
            }
        };
        publish("started", Value::Null);
        let result = work(&mut |update: ImportProgress| {
            publish("progress", json!(update));
            progress(update);
        });
        match &result {
            Ok(done) => publish("done", json!({ "image": done })),
            Err(error) => publish("failed", error.body()),
        }
        result
    }

    pub(super) fn publish_removed(&self, id: &ImageId) {
        if let Some(topic) = &self.events {
            topic.publish("removed", Map::from_iter([("id".to_owned(), json!(id))]));
        }
    }
}

/// Reads the data that the other thread sends.
struct ChannelReader {
    pieces: Receiver<std::io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.piece.len() {
            match self.pieces.recv() {
                Ok(piece) => (self.piece, self.at) = (piece?, 0),
                Err(_) => return Ok(0),
            }
        }
        let n = buffer.len().min(self.piece.len() - self.at);
        buffer[..n].copy_from_slice(&self.piece[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
