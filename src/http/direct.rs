//! Requests that the gate passes to their handler on the thread of their connection, without tiny_http. That saves
//! four thread switches, which dominate the cost of a request. It is used only by the OpenCode proxy, the handler of
//! which may block this thread, because the thread serves one client only.
//!
//! Threads: one `gate-N`. Lock: that of the answer, a leaf without contention.

use std::io::{self, Cursor, Write};
use std::sync::{Arc, Mutex};

use super::client::Socket;
use super::request::{Method, Request};
use crate::base::thread::lock;
use crate::base::{Error, Result, limits};

/// A request, split into its parts, as the gate buffered it.
pub(super) struct DirectRequest {
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Cursor<Vec<u8>>,
    pub(super) client: Arc<Socket>,
    pub(super) answered: DirectResponse,
}

/// The buffer that receives the answer, in tiny_http's format, when the request is answered or dropped.
#[derive(Clone, Default)]
pub struct DirectResponse(Arc<Mutex<Vec<u8>>>);

impl DirectResponse {
    /// Takes the complete answer. Returns an empty buffer if the request has not been answered yet.
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
    /// Parses a request in the format that the gate produces: a validated head, followed by the whole body.
    ///
    /// # Errors
    /// `Internal` if the head is invalid.
    pub fn direct_from(bytes: &[u8], client: Arc<Socket>) -> Result<(Request, DirectResponse)> {
        let broken = || Error::internal("The gate sent a malformed request");
        // The gate adds a few headers of its own to those of the client.
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
        Ok((Request::from_gate(direct, method), answered))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::http::Response;

    #[test]
    fn direct_requests_have_the_same_accessors() {
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
