//! The handle with which a worker answers its request.

use super::client::Subscription;
use super::request::Request;
use super::response::Response;
use crate::base::{Error, Result};

/// The handle to answer a request: may move between threads, and is used once. Dropping it unused answers with an
/// internal error.
pub struct Reply(Option<PendingReply>);

struct PendingReply {
    request: Request,
    finish: Box<dyn FnOnce(Request, Result<Response>) + Send>,
    watch: Option<Subscription>,
}

impl Reply {
    /// `finish` sends the answer; `watch` is kept until then.
    pub fn new(
        request: Request,
        watch: Option<Subscription>,
        finish: impl FnOnce(Request, Result<Response>) + Send + 'static,
    ) -> Reply {
        Reply(Some(PendingReply { request, finish: Box::new(finish), watch }))
    }

    /// Takes the disconnect subscription, to keep it beyond the answer.
    pub fn take_watch(&mut self) -> Option<Subscription> {
        self.0.as_mut().and_then(|pending| pending.watch.take())
    }

    /// The request being answered, for its body.
    pub fn request(&mut self) -> Option<&mut Request> {
        self.0.as_mut().map(|pending| &mut pending.request)
    }

    /// Answers although this worker continues with the work.
    pub fn send_early(mut self, result: Result<Response>) {
        if let Some(pending) = &mut self.0 {
            pending.request.set_continues();
        }
        self.send(result);
    }

    /// Answers at the end of the work; the worker is free soon after.
    pub fn send(mut self, result: Result<Response>) {
        if let Some(pending) = self.0.take() {
            pending.finish(result);
        }
    }
}

impl PendingReply {
    fn finish(self, result: Result<Response>) {
        drop(self.watch);
        (self.finish)(self.request, result);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(pending) = self.0.take() {
            pending.finish(Err(Error::internal("Unexpected server error")));
        }
    }
}
