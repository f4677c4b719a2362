//! HTTP without application logic: requests, responses, and the matching of routes. Only `accept` and `request` use
//! tiny_http. Independent of workspaces.

pub mod accept;
pub mod client;
pub mod cors;
pub mod direct;
pub mod download;
pub mod event_stream;
pub mod multipart;
pub mod reply;
pub mod request;
pub mod response;
pub mod route;
pub mod sse;
pub mod stream;
pub mod websocket;

pub use reply::Reply;
pub use request::{Method, Request};
pub use response::Response;
pub use route::{Answer, ApprovalPolicy, Auth, Class, DeferredWork, Effect, PreparedWrite, Route};
