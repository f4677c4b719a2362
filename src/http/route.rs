//! Route definitions, and the matching of paths.

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
    /// At least this scope, otherwise 403.
    Scope(Scope),
    /// The host token or an owner's token, otherwise 401, as in the OpenWork server.
    Host,
}

/// Whether a route requires approval in manual mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApprovalPolicy {
    Open,
    /// Required unless the sender is an owner. The word is the action shown to approvers. Approval is requested
    /// before the handler runs.
    Collaborators(&'static str),
    /// Required for all senders, including owners and hosts, as in the OpenWork server. The handler validates the
    /// request first and returns [`Answer::Prepared`].
    Everyone(&'static str),
    /// Required unless the sender is an owner, depending on the OpenCode request that is proxied.
    Forwarded,
}

/// Whether a route changes state; a read-only server refuses writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Changes nothing, or only memory.
    Read,
    Write,
}

/// The kind of work of a route, which determines the threads that execute it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// At most a file access: on the HTTP threads.
    Short,
    /// Accesses files that the workspace's programs can make large: on the file workers, in the workspace's lane.
    Files,
    /// A command: validated on the HTTP threads, executed by the run workers.
    Run,
    /// Waits or streams: validated on the HTTP threads, executed by the stream workers.
    Stream,
    /// A streamed upload; the handler enforces its size limit. Executed by the transfer workers.
    Upload,
    /// Ends other work: validated on the HTTP threads, executed by dedicated workers, so that it never waits behind
    /// the work that it ends.
    End,
    /// Proxied to an OpenCode: validated on the HTTP threads, executed by the proxy workers.
    Proxy,
}

/// The result of a handler.
pub enum Answer {
    Now(Response),
    /// The request is valid; the work remains for a worker of the route's class.
    Later {
        work: DeferredWork,
        /// Raised when the client disconnects, unless other clients use the result.
        cancel: Option<Cancel>,
    },
    /// The request is valid and nothing is done yet: a write of a route with [`ApprovalPolicy::Everyone`], which
    /// accepts no other answer.
    Prepared(PreparedWrite),
}

/// A validated write that waits for approval.
pub struct PreparedWrite {
    /// One line for the approver. May hold secrets.
    pub summary: String,
    /// One line for the logs, without secrets; `None` if the summary has none.
    pub note: Option<String>,
    /// The files to be written, for the approver; `None` if there are none, or if no approval is needed.
    pub changes: Option<Vec<FileChange>>,
    /// The files and folders affected.
    pub paths: Vec<String>,
    /// Performs the write, on a worker of the route's class. A large body may be read only here.
    pub work: PreparedWork,
}

/// The work of a prepared write.
pub type PreparedWork = Box<dyn FnOnce(&mut Request) -> Result<Response> + Send>;

/// Work that answers at its end or earlier.
pub type DeferredWork = Box<dyn FnOnce(Reply) + Send>;

impl Answer {
    /// Work that returns the answer.
    pub fn later(work: impl FnOnce() -> Result<Response> + Send + 'static, cancel: Option<Cancel>) -> Answer {
        Answer::Later { work: Box::new(move |reply: Reply| reply.send(work())), cancel }
    }

    /// A write that may require approval.
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

    /// Sets the line for the logs, if the summary may hold secrets.
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

/// A handler: parses the request, calls one service, builds the answer.
pub type Handler<C> = fn(&C, &mut Request) -> Result<Answer>;

/// The type of [`Route::fast_path`].
pub type FastPath<C> = fn(&C, &mut Request) -> Option<Response>;

/// A row of the route table.
pub struct Route<C> {
    /// The method; GET also answers HEAD.
    pub method: Method,
    /// Segments that start with `:` are parameters; a last segment that starts with `*` is the rest of the path; `*`
    /// alone matches any rest, including none.
    pub pattern: &'static str,
    pub auth: Auth,
    pub gate: ApprovalPolicy,
    pub effect: Effect,
    pub class: Class,
    pub handler: Handler<C>,
    /// Answers a read of [`Class::Files`] on the HTTP thread if that cannot block; `None` leaves it to the handler.
    pub fast_path: Option<FastPath<C>>,
}

/// The result of matching a path and method.
pub enum RouteMatch<'a, C> {
    /// A matching route; its parameters are set in the request.
    Route(&'a Route<C>),
    /// The path exists with these methods only.
    OtherMethods(String),
    /// No such path.
    Nothing,
}

/// The routes, indexed by their number of segments.
pub struct RouteTable<C: 'static> {
    by_length: Vec<Vec<RouteEntry<C>>>,
    /// Routes that end with `*`.
    open: Vec<RouteEntry<C>>,
}

struct RouteEntry<C: 'static> {
    segments: Vec<&'static str>,
    route: &'static Route<C>,
}

impl<C> RouteTable<C> {
    /// Builds the index; the first matching route wins.
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

    /// Finds the route of a request.
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

    /// All routes that match a path, with any method.
    pub fn rows(&self, path: &str) -> Vec<&'static Route<C>> {
        let path: Vec<&str> = unmounted(path).unwrap_or_default().split('/').collect();
        self.fitting(&path).map(|row| row.route).collect()
    }

    fn fitting<'a>(&'a self, path: &'a [&str]) -> impl Iterator<Item = &'a RouteEntry<C>> {
        self.by_length.get(path.len()).into_iter().flatten().chain(&self.open).filter(|row| row.fits(path))
    }
}

/// `/w/ID/workspace/ID/…` is an alias of `/workspace/ID/…`. Returns `None` if the two ids differ: there is no such
/// path.
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

    /// `None` if a parameter is not percent-encoded UTF-8.
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
