//! A request that the gate hands over on the client's own thread, past tiny_http, and its answer, which goes back the same
//! way: four changes of thread fewer, where a change of thread is most of what a request costs. Only for what may wait
//! on that thread, since it serves this client alone: what is passed on to an OpenCode.
//!
//! Threads: one `gate-N`. Lock: the answer's, a leaf that nobody waits for.

use std::io::{self, Cursor, Write};
use std::sync::{Arc, Mutex};

use super::client::Socket;
use super::request::{Method, Request};
use crate::base::thread::lock;
use crate::base::{Error, Result, limits};

/// What of a request stands in the gate's own buffer.
pub(super) struct DirectRequest {
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Cursor<Vec<u8>>,
    pub(super) client: Arc<Socket>,
    pub(super) answered: DirectResponse,
}

/// Where the answer will be: as it would come from tiny_http, once the request was answered or dropped.
#[derive(Clone, Default)]
pub struct DirectResponse(Arc<Mutex<Vec<u8>>>);

impl DirectResponse {
    /// The whole message; empty as long as there is none.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *lock(&self.0))
    }
}

impl Write for DirectResponse {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Request {
    /// Reads what the gate would send inside: a checked head, and the whole body behind it.
    ///
    /// # Errors
    /// `Internal` when the head is none.
    pub fn direct_from(bytes: &[u8], client: Arc<Socket>) -> Result<(Request, DirectResponse)> {
        let broken = || Error::internal("Unexpected request from the gate");
        // Some are the gate's own.
        let mut storage = [httparse::EMPTY_HEADER; limits::HEAD_LINES + 8];
        let mut parsed = httparse::Request::new(&mut storage);
        let Ok(httparse::Status::Complete(length)) = parsed.parse(bytes) else { return Err(broken()) };
        let method = parsed.method.and_then(Method::parse).ok_or_else(broken)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| broken());
        let headers = parsed
            .headers
            .iter()
            .map(|header| Ok((header.name.to_owned(), text(header.value)?)))
            .collect::<Result<_>>()?;
        let answered = DirectResponse::default();
        let direct = DirectRequest {
            target: parsed.path.ok_or_else(broken)?.to_owned(),
            headers,
            body: Cursor::new(bytes[length..].to_vec()),
            client,
            answered: answered.clone(),
        };
        Ok((Request::of_gate(direct, method), answered))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::http::Response;

    #[test]
    fn a_request_of_the_gate_is_as_any_other() {
        let (client, _other) = UnixStream::pair().unwrap();
        let bytes =
            b"POST /w/x/opencode/a?b=c%20d HTTP/1.1\r\nHost: h\r\nAuthorization: bearer t\r\nX-Berth-Peer: \
            1.2.3.4\r\nX-Berth-Connection: 7\r\nContent-Length: 2\r\n\r\nhi";
        let client = Arc::new(Socket::Unix(client));
        let (mut request, answered) = Request::direct_from(bytes, client.clone()).unwrap();
        assert_eq!((request.method(), request.path()), (Method::Post, "/w/x/opencode/a"));
        assert_eq!((request.query("b").as_deref(), request.bearer()), (Some("c d"), Some("t")));
        assert_eq!((request.peer(), request.connection()), ("1.2.3.4", Some(7)));
        assert_eq!((request.body_length(), request.is_streamed()), (Some(2), false));
        let mut body = String::new();
        request.reader().read_to_string(&mut body).unwrap();
        assert_eq!(body, "hi");
        assert!(answered.take().is_empty());
        request.answer(Response::empty(200).with_body(b"yes".to_vec()));
        let text = String::from_utf8(answered.take()).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\nX-Berth-Whole: 1\r\n"), "{text}");
        assert!(text.ends_with("Content-Length: 3\r\n\r\nyes"), "{text}");
        assert!(Request::direct_from(b"GET / HTTP/1.1\r\n", client).is_err());
    }
}
