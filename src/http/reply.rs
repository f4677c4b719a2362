//! The handle with which a worker answers a request.

use super::client::Subscription;
use super::request::Request;
use super::response::Response;
use crate::base::{Error, Result};

/// The handle with which a request is answered once. It may move between threads. Dropping it unused answers the
/// request with an internal error.
pub struct Reply(Option<PendingReply>);

struct PendingReply {
    request: Request,
    finish: Box<dyn FnOnce(Request, Result<Response>) + Send>,
    watch: Option<Subscription>,
}

impl Reply {
    /// Creates a handle. `finish` sends the answer; `watch` is kept until the answer is sent.
    pub fn new(
        request: Request,
        watch: Option<Subscription>,
        finish: impl FnOnce(Request, Result<Response>) + Send + 'static,
    ) -> Reply {
        Reply(Some(PendingReply { request, finish: Box::new(finish), watch }))
    }

    /// Takes the subscription to the client's disconnect, so that the caller can keep it beyond the answer.
    pub fn take_watch(&mut self) -> Option<Subscription> {
        self.0.as_mut().and_then(|pending| pending.watch.take())
    }

    /// Returns the request that is being answered, so that the caller can read its body.
    pub fn request(&mut self) -> Option<&mut Request> {
        self.0.as_mut().map(|pending| &mut pending.request)
    }

    /// Answers the request although the worker continues with the request's work.
    pub fn send_early(mut self, result: Result<Response>) {
        if let Some(pending) = &mut self.0 {
            pending.request.set_continues();
        }
        self.send(result);
    }

    /// Answers the request at the end of its work. The worker becomes free soon after.
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
