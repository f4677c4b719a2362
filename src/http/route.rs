//! The definition of a route, and the matching of paths.

use super::reply::Reply;
use super::request::{Method, Request, decode};
use super::response::Response;
use crate::access::Scope;
use crate::access::approval_request::FileChange;
use crate::base::{Code, Error, Result};
use crate::proc::Cancel;

/// The credential that a route requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    Public,
    /// A credential with at least this scope; otherwise the answer is 403.
    Scope(Scope),
    /// The host token or a token with scope owner; otherwise the answer is 401, as in the OpenWork server.
    Host,
}

/// Whether a route requires approval while the server is in manual approval mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApprovalPolicy {
    Open,
    /// Approval is required unless the sender is an owner. It is requested before the handler runs. The word is the
    /// action that approvers see.
    Collaborators(&'static str),
    /// Approval is required for all senders, including owners and hosts, as in the OpenWork server. The handler
    /// first validates the request and returns [`Answer::Prepared`]. The word is the action that approvers see.
    Everyone(&'static str),
    /// Approval may be required unless the sender is an owner. That depends on the OpenCode request that is proxied.
    Forwarded,
}

/// Whether a route changes state. A read-only server refuses writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The route changes nothing, or only state in memory.
    Read,
    Write,
}

/// The kind of work that a route does. It determines the threads that execute the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// At most one file access. Executed on the HTTP threads.
    Short,
    /// Access to files that the workspace's programs can make large. Executed by the file workers, in the
    /// workspace's lane.
    Files,
    /// A command. Validated on the HTTP threads, executed by the run workers.
    Run,
    /// A wait or a stream. Validated on the HTTP threads, executed by the stream workers.
    Stream,
    /// A streamed upload, the size of which the handler limits. Executed by the transfer workers.
    Upload,
    /// The end of other work. Validated on the HTTP threads, executed by dedicated workers, so that it never waits
    /// behind the work that it ends.
    End,
    /// A request that is proxied to an OpenCode. Validated on the HTTP threads, executed by the proxy workers.
    Proxy,
}

/// The result of a handler.
pub enum Answer {
    Now(Response),
    /// The request is valid; a worker of the route's class will do the work and answer.
    Later {
        work: DeferredWork,
        /// Raised when the client disconnects, so that the work ends; `None` if other clients use the result too.
        cancel: Option<Cancel>,
    },
    /// The request is valid and the write has not begun. A write of a route with [`ApprovalPolicy::Everyone`] must
    /// return this answer.
    Prepared(PreparedWrite),
}

/// A validated write that waits for approval.
pub struct PreparedWrite {
    /// One line that describes the write to the approver. It may contain secrets.
    pub summary: String,
    /// One line that describes the write in the logs, without secrets; `None` if the summary contains no secrets.
    pub note: Option<String>,
    /// The files that would be written, for the approver; `None` if there are none, or if no approval is needed.
    pub changes: Option<Vec<FileChange>>,
    /// The files and folders that the write affects.
    pub paths: Vec<String>,
    /// Performs the write, on a worker of the route's class. Only this function may read a large body.
    pub work: PreparedWork,
}

/// A function that performs a prepared write.
pub type PreparedWork = Box<dyn FnOnce(&mut Request) -> Result<Response> + Send>;

/// A function that does the work of a request, and answers at its end or earlier.
pub type DeferredWork = Box<dyn FnOnce(Reply) + Send>;

impl Answer {
    /// Returns an answer for work that computes the response.
    pub fn later(work: impl FnOnce() -> Result<Response> + Send + 'static, cancel: Option<Cancel>) -> Answer {
        Answer::Later { work: Box::new(move |reply: Reply| reply.send(work())), cancel }
    }

    /// Returns an answer for a write that may require approval.
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

    /// Sets the line for the logs, for a write of which the summary may contain secrets.
    #[must_use]
    pub fn noted(mut self, note: String) -> Answer {
        if let Answer::Prepared(prepared) = &mut self {
            prepared.note = Some(note);
        }
        self
    }

    /// Sets the files that a prepared write would change.
    #[must_use]
    pub fn changing(mut self, changes: Option<Vec<FileChange>>) -> Answer {
        if let Answer::Prepared(prepared) = &mut self {
            prepared.changes = changes;
        }
        self
    }
}

/// A handler. It parses the request, calls one service, and builds the answer.
pub type Handler<C> = fn(&C, &mut Request) -> Result<Answer>;

/// The type of [`Route::fast_path`].
pub type FastPath<C> = fn(&C, &mut Request) -> Option<Response>;

/// A row of the route table.
pub struct Route<C> {
    /// The method. A route for GET also answers HEAD.
    pub method: Method,
    /// The path pattern. A segment that starts with `:` is a parameter. A last segment that starts with `*` is a
    /// parameter for the rest of the path; `*` alone matches any rest, including none, and sets no parameter.
    pub pattern: &'static str,
    pub auth: Auth,
    pub gate: ApprovalPolicy,
    pub effect: Effect,
    pub class: Class,
    pub handler: Handler<C>,
    /// Answers a read of [`Class::Files`] on the HTTP thread, if that cannot block. If it returns `None`, the
    /// handler answers.
    pub fast_path: Option<FastPath<C>>,
}

/// The result of matching a path and method against the table.
pub enum RouteMatch<'a, C> {
    /// A route matches. Its parameters have been set in the request.
    Route(&'a Route<C>),
    /// Routes match the path, but only with these methods.
    OtherMethods(String),
    /// No route matches the path.
    Nothing,
}

/// The route table, indexed by number of segments.
pub struct RouteTable<C: 'static> {
    by_length: Vec<Vec<RouteEntry<C>>>,
    /// The routes with a last segment that starts with `*`.
    open: Vec<RouteEntry<C>>,
}

struct RouteEntry<C: 'static> {
    segments: Vec<&'static str>,
    route: &'static Route<C>,
}

impl<C> RouteTable<C> {
    /// Builds the index. If several routes match a path, the first one is used.
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

    /// Finds the route for a request and sets the request's parameters.
    ///
    /// # Errors
    /// `InvalidRequest` if a parameter is not percent-encoded UTF-8.
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
            request.params = params.ok_or_else(|| {
                Error::new(Code::InvalidRequest, "The path is not valid percent-encoded UTF-8")
            })?;
            return Ok(RouteMatch::Route(route));
        }
        Ok(if others.is_empty() { RouteMatch::Nothing } else { RouteMatch::OtherMethods(others.join(", ")) })
    }

    /// Returns all routes that match a path, with any method.
    pub fn rows(&self, path: &str) -> Vec<&'static Route<C>> {
        let path: Vec<&str> = unmounted(path).unwrap_or_default().split('/').collect();
        self.fitting(&path).map(|row| row.route).collect()
    }

    fn fitting<'a>(&'a self, path: &'a [&str]) -> impl Iterator<Item = &'a RouteEntry<C>> {
        self.by_length.get(path.len()).into_iter().flatten().chain(&self.open).filter(|row| row.fits(path))
    }
}

/// Returns the path without its mount: `/w/ID/workspace/ID/…` is an alias of `/workspace/ID/…`. Returns `None` if
/// the two ids differ, because such a path does not exist.
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

    /// Returns the parameters of a matching path, or `None` if one is not percent-encoded UTF-8.
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
    fn patterns_match_paths() {
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
