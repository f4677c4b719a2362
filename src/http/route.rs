//! Rows of the route table and how a path finds its row.

use super::reply::{Reply, Response};
use super::request::{Method, Request, decode};
use crate::access::Scope;
use crate::access::approval_request::FileChange;
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
pub enum ApprovalPolicy {
    /// Never.
    Open,
    /// Unless an owner asks; the word is the action that is shown. Asked before the handler has seen the request.
    Collaborators(&'static str),
    /// Whoever asks, owners and hosts too, as observed on the OpenWork routes. The handler checks the request first and
    /// answers with [`Answer::Prepared`].
    Everyone(&'static str),
    /// Unless an owner asks, for what the OpenCode that it is passed on to would do with it.
    Forwarded,
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
    /// Reads or writes what the programs of a workspace can make large: done by the file workers, in the workspace's lane.
    Files,
    /// A command: checked on the pool, run by the run workers.
    Run,
    /// Waits or streams: checked on the pool, done by the stream workers.
    Stream,
    /// A file that is read as it comes; the handler alone knows how large it may be. Done by the transfer workers.
    Upload,
    /// Ends something: checked on the pool, done by workers of its own, so that it never waits behind what it ends.
    End,
    /// Passed on to an OpenCode: checked on the pool, done by the proxy workers.
    Proxy,
}

/// What a handler says.
pub enum Answer {
    /// The reply.
    Now(Response),
    /// Everything is checked; this is the work, for the worker of the route's class.
    Later {
        /// What is left to do.
        work: DeferredWork,
        /// Raised when the client goes away, if nobody else wants the result.
        cancel: Option<Cancel>,
    },
    /// Everything is checked, nothing is done: a write of a route with [`ApprovalPolicy::Everyone`]. Only this is let through there.
    Prepared(PreparedWrite),
}

/// A write that waits for its permission.
pub struct PreparedWrite {
    /// One line for the approver. May hold secrets.
    pub summary: String,
    /// One line for the logs, without secrets; `None`: the summary has none.
    pub note: Option<String>,
    /// The files that it would write, for the approver; `None`: none, or nobody is asked.
    pub changes: Option<Vec<FileChange>>,
    /// Files and folders that it concerns.
    pub paths: Vec<String>,
    /// Does it: on a worker of the route's class. It may read the request's body only then, if it is large.
    pub work: PreparedWork,
}

/// What a prepared write does.
pub type PreparedWork = Box<dyn FnOnce(&mut Request) -> Result<Response> + Send>;

/// Work that replies at its end, or before.
pub type DeferredWork = Box<dyn FnOnce(Reply) + Send>;

impl Answer {
    /// Work whose result is the reply.
    pub fn later(work: impl FnOnce() -> Result<Response> + Send + 'static, cancel: Option<Cancel>) -> Answer {
        Answer::Later { work: Box::new(move |reply: Reply| reply.send(work())), cancel }
    }

    /// A write that a person may have to allow.
    pub fn prepared(
        summary: impl Into<String>,
        paths: Vec<String>,
        work: impl FnOnce(&mut Request) -> Result<Response> + Send + 'static,
    ) -> Answer {
        let (note, changes) = (None, None);
        Answer::Prepared(PreparedWrite {
            summary: summary.into(),
            note,
            changes,
            paths,
            work: Box::new(work),
        })
    }

    /// With a line for the logs, where the summary may hold secrets.
    #[must_use]
    pub fn noted(mut self, note: String) -> Answer {
        if let Answer::Prepared(prepared) = &mut self {
            prepared.note = Some(note);
        }
        self
    }

    /// With the files that a prepared write would change.
    #[must_use]
    pub fn changing(mut self, changes: Option<Vec<FileChange>>) -> Answer {
        if let Answer::Prepared(prepared) = &mut self {
            prepared.changes = changes;
        }
        self
    }
}

/// A handler: parse, call one service, shape the answer.
pub type Handler<C> = fn(&C, &mut Request) -> Result<Answer>;

/// What [`Route::fast_path`] is.
pub type FastPath<C> = fn(&C, &mut Request) -> Option<Response>;

/// A row of the table.
pub struct Route<C> {
    /// The method; GET answers HEAD as well.
    pub method: Method,
    /// Segments that start with `:` are parameters; a last one that starts with `*` is all that is left of the path; `*` alone
    /// is not looked at, may be empty, and may be anything.
    pub pattern: &'static str,
    /// The credential.
    pub auth: Auth,
    /// The approval.
    pub gate: ApprovalPolicy,
    /// The effect.
    pub effect: Effect,
    /// The workers.
    pub class: Class,
    /// The handler.
    pub handler: Handler<C>,
    /// Answers a read of [`Class::Files`] on the pool, where that waits for nothing; `None`: the handler has to.
    pub fast_path: Option<FastPath<C>>,
}

/// What a path and method lead to.
pub enum RouteMatch<'a, C> {
    /// This row; its parameters are in the request now.
    Route(&'a Route<C>),
    /// The path exists with these methods only.
    OtherMethods(String),
    /// No such path.
    Nothing,
}

/// The rows, arranged so that a request looks only at those with as many segments as its path.
pub struct RouteTable<C: 'static> {
    by_length: Vec<Vec<RouteEntry<C>>>,
    /// Those that end with `*`.
    open: Vec<RouteEntry<C>>,
}

struct RouteEntry<C: 'static> {
    segments: Vec<&'static str>,
    route: &'static Route<C>,
}

impl<C> RouteTable<C> {
    /// Arranges the rows; among those that fit a path, the first wins.
    pub fn new(routes: &'static [Route<C>]) -> RouteTable<C> {
        let (mut by_length, mut open): (Vec<Vec<RouteEntry<C>>>, Vec<RouteEntry<C>>) = Default::default();
        for route in routes {
            let segments: Vec<_> = route.pattern.split('/').collect();
            if segments.last().is_some_and(|last| last.starts_with('*')) {
                open.push(RouteEntry { segments, route });
                continue;
            }
            by_length.resize_with(by_length.len().max(segments.len() + 1), Vec::new);
            by_length[segments.len()].push(RouteEntry { segments, route });
        }
        RouteTable { by_length, open }
    }

    /// Finds the row of a request.
    ///
    /// # Errors
    /// `InvalidRequest` when a parameter is not percent-encoded UTF-8.
    pub fn find(&self, request: &mut Request) -> Result<RouteMatch<'static, C>> {
        let method = if request.method() == Method::Head { Method::Get } else { request.method() };
        let mut others: Vec<&str> = Vec::new();
        let mut found = None;
        let Some(path) = unmounted(request.path()) else { return Ok(RouteMatch::Nothing) };
        let path: Vec<&str> = path.split('/').collect();
        for row in self.fitting(&path) {
            if row.route.method == method {
                found = Some((row.route, row.params(&path)));
                break;
            }
            others.push(row.route.method.as_str());
        }
        if let Some((route, params)) = found {
            request.params = params
                .ok_or_else(|| Error::new(Code::InvalidRequest, "The path is not percent-encoded UTF-8"))?;
            return Ok(RouteMatch::Route(route));
        }
        Ok(if others.is_empty() { RouteMatch::Nothing } else { RouteMatch::OtherMethods(others.join(", ")) })
    }

    /// The rows to which a path belongs, whatever their methods.
    pub fn rows(&self, path: &str) -> Vec<&'static Route<C>> {
        let path: Vec<&str> = unmounted(path).unwrap_or_default().split('/').collect();
        self.fitting(&path).map(|row| row.route).collect()
    }

    fn fitting<'a>(&'a self, path: &'a [&str]) -> impl Iterator<Item = &'a RouteEntry<C>> {
        self.by_length.get(path.len()).into_iter().flatten().chain(&self.open).filter(|row| row.fits(path))
    }
}

/// `/w/ID/workspace/ID/…` is another name of `/workspace/ID/…`; `None` when the two ids differ: there is no such path.
fn unmounted(path: &str) -> Option<&str> {
    let Some((mount, rest)) = path.strip_prefix("/w/").and_then(|rest| rest.split_once('/')) else {
        return Some(path);
    };
    let Some(named) = rest.strip_prefix("workspace/") else { return Some(path) };
    let id = named.split('/').next().unwrap_or_default();
    (decode(id)? == decode(mount)?).then(|| &path["/w/".len() + mount.len()..])
}

impl<C> RouteEntry<C> {
    fn fits(&self, path: &[&str]) -> bool {
        path.len() >= self.segments.len()
            && self.segments.iter().zip(path).all(|(wanted, segment)| {
                if *wanted == "*" {
                    true
                } else if wanted.starts_with([':', '*']) {
                    !segment.is_empty()
                } else {
                    segment == wanted
                }
            })
    }

    /// `None` when one is not percent-encoded UTF-8.
    fn params(&self, path: &[&str]) -> Option<Vec<(&'static str, String)>> {
        let mut params = Vec::new();
        for (at, (wanted, segment)) in self.segments.iter().zip(path).enumerate() {
            if let Some(name) = wanted.strip_prefix(':') {
                params.push((name, decode(segment)?));
            } else if let Some(name) = wanted.strip_prefix('*').filter(|name| !name.is_empty()) {
                params.push((name, decode(&path[at..].join("/"))?));
            }
        }
        Some(params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn row(method: Method, pattern: &'static str) -> Route<()> {
        let handler: Handler<()> = |(), _| Ok(Answer::Now(Response::empty(204)));
        Route {
            method,
            pattern,
            auth: Auth::Public,
            gate: ApprovalPolicy::Open,
            effect: Effect::Read,
            class: Class::Short,
            handler,
            fast_path: None,
        }
    }

    static ROWS: [Route<()>; 5] = [
        row(Method::Get, "/f/*path"),
        row(Method::Get, "/a"),
        row(Method::Get, "/a/:id"),
        row(Method::Put, "/a/:id"),
        row(Method::Get, "/a/:id/b"),
    ];

    #[test]
    fn patterns() {
        let table = RouteTable::new(&ROWS);
        let count = |path: &str| table.rows(path).len();
        assert_eq!((count("/a"), count("/a/x"), count("/a/x%20y/b")), (1, 2, 1));
        for path in ["", "/", "a", "/a/", "//a", "/a//b", "/a/x/", "/a/x/c", "/b", "/a/x/b/", "/a/x/b/c"] {
            assert_eq!(count(path), 0, "{path}");
        }
        let params = |path: &str| {
            let path: Vec<&str> = path.split('/').collect();
            table.fitting(&path).next().map(|row| row.params(&path))
        };
        assert_eq!(params("/a/x%20y/b"), Some(Some(vec![("id", "x y".to_owned())])));
        assert_eq!(params("/a/%zz"), Some(None));
        assert_eq!(unmounted("/w/a/workspace/a/x"), Some("/workspace/a/x"));
        assert_eq!(unmounted("/w/%61/workspace/a/x"), Some("/workspace/a/x"));
        for path in ["/w/a/workspace/b/x", "/w/a/workspace/", "/w/%zz/workspace/%zz"] {
            assert_eq!(unmounted(path), None, "{path}");
        }
        for path in ["/w/a/status", "/workspace/a", "/w/a", "/w/a/workspaces", "/x"] {
            assert_eq!(unmounted(path), Some(path));
        }
        assert_eq!(params("/f/x/y%20z"), Some(Some(vec![("path", "x/y z".to_owned())])));
        assert_eq!((count("/f"), count("/f/"), count("/f//x"), count("/f/x/")), (0, 0, 0, 1));
    }
}
