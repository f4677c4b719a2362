//! Rows of the route table and how a path finds its row.

use super::reply::{Reply, Response};
use super::request::{Method, Request, decode};
use crate::access::Scope;
use crate::base::{Code, Error, Result};
use crate::proc::Cancel;

/// Which credential a route wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// None.
    Public,
    /// One with at least this scope; less is 403.
    Scope(Scope),
    /// The host token or an owner's; anything less is 401, as observed on the OpenWork routes.
    Host,
}

/// Whether a person must allow it in manual mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Never.
    Open,
    /// Unless an owner asks; the word is the action that is shown.
    Collaborators(&'static str),
}

/// Whether it changes anything; a read-only server refuses writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Changes nothing, or only memory.
    Read,
    /// Changes something.
    Write,
}

/// What kind of work it is, and so which threads do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing longer than a file: the pool.
    Short,
    /// A command: checked on the pool, run by the run workers.
    Run,
    /// Waits or streams: checked on the pool, done by the stream workers.
    Stream,
}

/// What a handler says.
pub enum Answer {
    /// The reply.
    Now(Response),
    /// Everything is checked; this is the work, for the worker of the route's class.
    Later {
        /// What is left to do.
        work: Work,
        /// Raised when the client goes away, if nobody else wants the result.
        cancel: Option<Cancel>,
    },
}

/// Work that replies at its end, or before.
pub type Work = Box<dyn FnOnce(Reply) + Send>;

impl Answer {
    /// Work whose result is the reply.
    pub fn later(work: impl FnOnce() -> Result<Response> + Send + 'static, cancel: Option<Cancel>) -> Answer {
        Answer::Later { work: Box::new(move |reply: Reply| reply.send(work())), cancel }
    }
}

/// A handler: parse, call one service, shape the answer.
pub type Handler<C> = fn(&C, &mut Request) -> Result<Answer>;

/// A row of the table.
pub struct Route<C> {
    /// The method; GET answers HEAD as well.
    pub method: Method,
    /// Segments that start with `:` are parameters.
    pub pattern: &'static str,
    /// The credential.
    pub auth: Auth,
    /// The approval.
    pub gate: Gate,
    /// The effect.
    pub effect: Effect,
    /// The workers.
    pub class: Class,
    /// The handler.
    pub handler: Handler<C>,
}

/// What a path and method lead to.
pub enum Match<'a, C> {
    /// This row; its parameters are in the request now.
    Route(&'a Route<C>),
    /// The path exists with these methods only.
    OtherMethods(String),
    /// No such path.
    Nothing,
}

/// Finds the row of a request.
///
/// # Errors
/// `InvalidRequest` when a parameter is not percent-encoded UTF-8.
pub fn find<'a, C>(routes: &'a [Route<C>], request: &mut Request) -> Result<Match<'a, C>> {
    let method = if request.method() == Method::Head { Method::Get } else { request.method() };
    let mut others: Vec<&str> = Vec::new();
    for route in routes {
        let Some(params) = matched(route.pattern, request.path()) else { continue };
        if route.method != method {
            others.push(route.method.as_str());
            continue;
        }
        let decoded: Option<Vec<_>> =
            params.into_iter().map(|(name, value)| Some((name, decode(value)?))).collect();
        request.params = decoded
            .ok_or_else(|| Error::new(Code::InvalidRequest, "The path is not percent-encoded UTF-8"))?;
        return Ok(Match::Route(route));
    }
    Ok(if others.is_empty() { Match::Nothing } else { Match::OtherMethods(others.join(", ")) })
}

/// Whether a path belongs to a pattern.
pub fn matches(pattern: &'static str, path: &str) -> bool {
    matched(pattern, path).is_some()
}

fn matched<'p>(pattern: &'static str, path: &'p str) -> Option<Vec<(&'static str, &'p str)>> {
    let mut params = Vec::new();
    let mut segments = path.split('/');
    for wanted in pattern.split('/') {
        let segment = segments.next()?;
        match wanted.strip_prefix(':') {
            Some(name) if !segment.is_empty() => params.push((name, segment)),
            None if segment == wanted => {}
            _ => return None,
        }
    }
    segments.next().is_none().then_some(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert_eq!(matched("/a/:id/b", "/a/x%20y/b"), Some(vec![("id", "x%20y")]));
        assert_eq!(matched("/a", "/a"), Some(vec![]));
        for (pattern, path) in
            [("/a", "/a/"), ("/a/:id", "/a/"), ("/a/:id", "/a"), ("/a/:id", "/a/b/c"), ("/a", "/b")]
        {
            assert_eq!(matched(pattern, path), None, "{pattern} {path}");
        }
    }
}
