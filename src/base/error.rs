//! The crate's error type. Code that detects a failure chooses a [`Code`], a message for the person and details for the
//! client program; the HTTP status follows from the code and is defined only here.

use std::fmt;
use std::io;
use std::path::Path;

use serde_json::{Map, Value};

pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $status:literal $text:literal,)*) => {
        /// The kind of failure, as clients see it: a stable text in the body's `code` and an HTTP status.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// Returns the HTTP status of replies with this code.
            pub fn status(self) -> u16 { match self { $(Code::$variant => $status,)* } }

            /// Returns the text for the body's `code`.
            pub fn as_str(self) -> &'static str { match self { $(Code::$variant => $text,)* } }
        }
    };
}

codes! {
    /// The body is not JSON.
    InvalidJson = 400 "invalid_json",
    /// The body is JSON, but does not match the endpoint's schema.
    InvalidPayload = 400 "invalid_payload",
    /// The request line, a header or the query is malformed.
    InvalidRequest = 400 "invalid_request",
    /// The configuration is one that OpenCode would refuse at its start.
    InvalidConfig = 422 "invalid_config",
    /// A configuration file of a workspace is not JSON with comments.
    InvalidJsonc = 422 "invalid_jsonc",
    /// A file of a workspace is not JSON.
    InvalidJsonFile = 422 "invalid_json",
    /// The text is not a valid plugin name.
    InvalidPluginSpec = 400 "invalid_plugin_spec",
    /// The text is not a valid skill name, or it differs from the name in the skill's text.
    InvalidSkillName = 400 "invalid_skill_name",
    /// The skill has no text, or its front matter cannot be parsed.
    InvalidSkillContent = 400 "invalid_skill_content",
    /// The skill's description is missing or too long.
    InvalidDescription = 422 "invalid_description",
    /// The text is not a valid MCP server name.
    InvalidMcpName = 400 "invalid_mcp_name",
    /// The text is not a valid command name.
    InvalidCommandName = 400 "invalid_command_name",
    /// The command has no text.
    InvalidCommandTemplate = 400 "invalid_command_template",
    /// No skill has this name.
    SkillNotFound = 404 "skill_not_found",
    /// No scheduled job has this id.
    JobNotFound = 404 "job_not_found",
    /// The MCP server configuration is one that OpenCode would refuse.
    InvalidMcpConfig = 400 "invalid_mcp_config",
    /// An id in the request's path is malformed.
    InvalidId = 400 "invalid_id",
    /// The workspace name is not allowed.
    InvalidName = 400 "invalid_name",
    /// The folder is not allowed for this purpose.
    InvalidPath = 400 "invalid_path",
    /// The host folder may not be mounted into containers.
    MountNotAllowed = 403 "mount_not_allowed",
    /// The request has a setting for containers only, but does not name the workspace's type.
    WorkspaceTypeRequired = 422 "workspace_type_required",
    /// The distribution is not one of the supported ones.
    InvalidDistro = 400 "invalid_distro",
    /// The source cannot be turned into an image.
    InvalidImage = 400 "invalid_image",
    /// The kernel does not accept the name or the value of an environment variable.
    InvalidEnv = 400 "invalid_env",
    /// The working directory of a command does not exist or is outside of the workspace.
    InvalidCwd = 400 "invalid_cwd",
    /// The user does not exist where the command runs, or the command cannot switch to it.
    InvalidUser = 400 "invalid_user",
    /// The command cannot be run as given.
    InvalidCommand = 400 "invalid_command",
    /// The route does not apply to a host workspace.
    NotAContainer = 400 "not_a_container",
    /// The container is not built.
    NotReady = 400 "workspace_not_ready",
    /// `rerun-init` was called, but the workspace has no init script.
    NoInitScript = 400 "no_init_script",
    /// The default host workspace cannot be deleted.
    DefaultWorkspace = 400 "default_workspace",
    /// The credential is missing or invalid.
    Unauthorized = 401 "unauthorized",
    /// The credential is valid, but its scope does not permit the call.
    Forbidden = 403 "forbidden",
    /// The text is not a token scope.
    InvalidScope = 400 "invalid_scope",
    /// No token has this id.
    TokenNotFound = 404 "token_not_found",
    /// The write was denied, or not approved in time.
    WriteDenied = 403 "write_denied",
    /// No write with this id is waiting for approval.
    ApprovalNotFound = 404 "approval_not_found",
    /// Too many writes are waiting for approval.
    TooManyPending = 429 "too_many_pending",
    /// The server is read-only.
    ReadOnly = 403 "read_only",
    /// No route has this path.
    NotFound = 404 "not_found",
    /// No workspace has this id.
    WorkspaceNotFound = 404 "workspace_not_found",
    /// No image has this name.
    ImageNotFound = 404 "image_not_found",
    /// No terminal has this id.
    TerminalNotFound = 404 "terminal_not_found",
    /// No run has this id, or the record of the run has expired.
    RunNotFound = 404 "run_not_found",
    /// The route exists, but not for this method.
    MethodNotAllowed = 405 "method_not_allowed",
    /// The request conflicts with another operation or the resource's state.
    Conflict = 409 "conflict",
    /// The content has changed since an approver saw it.
    ApprovalOutdated = 409 "approval_outdated",
    /// The terminal's program has ended.
    TerminalEnded = 409 "terminal_ended",
    /// A build of this workspace is running.
    BuildRunning = 409 "build_running",
    /// The build would destroy data, and `rebuild` was not given.
    RebuildRequired = 409 "rebuild_required",
    /// The image is used by a workspace or by another image.
    ImageInUse = 409 "image_in_use",
    /// A file system is mounted inside the tree that was to be deleted.
    MountedInside = 409 "mounted_inside",
    /// The body exceeds the endpoint's limit.
    BodyTooLarge = 413 "body_too_large",
    /// The upload exceeds the inbox's limit.
    FileTooLarge = 413 "file_too_large",
    /// The body has a content coding that berth does not decode.
    UnsupportedEncoding = 415 "unsupported_encoding",
    /// The form contains no file.
    FileRequired = 400 "file_required",
    /// Uploads are disabled.
    InboxDisabled = 404 "inbox_disabled",
    /// The text is not the id of an inbox item.
    InvalidInboxItem = 400 "invalid_inbox_item",
    /// The inbox has no file with this id.
    InboxItemNotFound = 404 "inbox_item_not_found",
    /// The outbox is disabled.
    OutboxDisabled = 404 "outbox_disabled",
    /// The text is not the id of an artifact.
    InvalidArtifact = 400 "invalid_artifact",
    /// The outbox has no file with this id.
    ArtifactNotFound = 404 "artifact_not_found",
    /// The requested byte range is outside of the file.
    RangeNotSatisfiable = 416 "range_not_satisfiable",
    /// Login with a password is disabled.
    LoginDisabled = 404 "login_disabled",
    /// The web page is disabled.
    UiDisabled = 404 "ui_disabled",
    /// All workers for this kind of request are busy.
    Busy = 503 "busy",
    /// The token or its workspace already holds its share of a resource.
    OverShare = 429 "over_share",
    /// The server is shutting down.
    ShuttingDown = 503 "shutting_down",
    /// The workspace has no OpenCode address, or an invalid one.
    OpencodeUnconfigured = 400 "opencode_unconfigured",
    /// The URL is not allowed as the address of a workspace's OpenCode.
    InvalidBaseUrl = 400 "invalid_base_url",
    /// The workspace's OpenCode refused or closed the connection.
    OpencodeUnreachable = 502 "opencode_unreachable",
    /// The workspace's OpenCode did not answer in time.
    OpencodeTimeout = 504 "opencode_timeout",
    /// The managed OpenCode does not answer yet.
    OpencodeStarting = 503 "opencode_starting",
    /// The managed OpenCode failed and is not restarted automatically.
    OpencodeFailed = 503 "opencode_failed",
    /// The workspace's OpenCode could not reload its configuration.
    OpencodeReloadFailed = 502 "opencode_reload_failed",
    /// A resource that the call needs is not available, or not yet.
    Unavailable = 503 "unavailable",
    /// The container stopped while the command ran, or could not be started.
    ContainerStopped = 503 "container_stopped",
    /// The container does not respond to the start of a command, for example because all its processes are stopped.
    ContainerSilent = 503 "container_silent",
    /// The container has no memory or processes left for another command.
    ContainerFull = 503 "container_full",
    /// The library has no item with this name.
    NotInLibrary = 404 "not_in_library",
    /// The disk that holds berth's data is full.
    DiskFull = 507 "disk_full",
    /// A child process could not be started.
    SpawnFailed = 500 "spawn_failed",
    /// A build step failed; the message contains the tool's last lines of output.
    BuildFailed = 500 "build_failed",
    /// A client cancelled the operation.
    Cancelled = 409 "cancelled",
    /// A flag, variable or file was invalid when the server started; never sent to a client.
    Config = 500 "config",
    /// A newer version of berth wrote the data; never sent to a client.
    NewerFormat = 500 "newer_format",
    /// A bug in berth or a failure of the machine.
    Internal = 500 "internal_error",
    /// The Host header of a request on loopback or a Unix socket is not one of the server's names.
    HostNotAllowed = 403 "host_not_allowed",
    /// A web page from an origin that is not allowed sends a write or opens a WebSocket.
    OriginNotAllowed = 403 "origin_not_allowed",
    /// The request did not arrive before its deadline.
    RequestTimeout = 408 "request_timeout",
    /// The request has an `Expect` header other than `100-continue`.
    ExpectationFailed = 417 "expectation_failed",
    /// The request has too many headers, or they are too large.
    HeadTooLarge = 431 "head_too_large",
    /// The method or transfer coding is not supported.
    NotImplemented = 501 "not_implemented",
    /// The request's version is neither HTTP/1.1 nor HTTP/1.0.
    HttpVersion = 505 "http_version_not_supported",
}

/// An error with its code, message, details and cause. Cheap to move: one pointer.
#[derive(Debug)]
pub struct Error(Box<ErrorInner>);

#[derive(Debug)]
struct ErrorInner {
    code: Code,
    message: String,
    /// Null or an object; a list in the errors for which OpenWork returns a list.
    details: Value,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Creates an error; `message` is a sentence for people: the failure, the offending value, and what to do.
    pub fn new(code: Code, message: impl Into<String>) -> Error {
        Error(Box::new(ErrorInner { code, message: message.into(), details: Value::Null, source: None }))
    }

    /// Creates an error for a bug or a failure of the machine. The client sees `message`; the log also shows the
    /// source.
    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(Code::Internal, message)
    }

    /// Creates a start-up error; `place` names the flag, variable or file.
    pub fn config(place: impl fmt::Display, problem: impl fmt::Display) -> Error {
        Error::new(Code::Config, format!("{place}: {problem}"))
    }

    /// Adds a field to `details`.
    #[must_use]
    pub fn detail(mut self, key: &str, value: impl Into<Value>) -> Error {
        match &mut self.0.details {
            Value::Object(fields) => drop(fields.insert(key.to_owned(), value.into())),
            details => *details = Value::Object(Map::from_iter([(key.to_owned(), value.into())])),
        }
        self
    }

    /// Makes `details` a list, for errors whose `details` clients of OpenWork expect to be a list.
    #[must_use]
    pub fn detail_list(mut self, list: Vec<Value>) -> Error {
        self.0.details = Value::Array(list);
        self
    }

    /// Adds the cause, which only the log shows.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        self.0.source = Some(source.into());
        self
    }

    pub fn code(&self) -> Code {
        self.0.code
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Returns the reply body: `{"code","message","details"?}`.
    pub fn body(&self) -> Value {
        let mut body = Map::new();
        body.insert("code".into(), self.0.code.as_str().into());
        body.insert("message".into(), self.0.message.clone().into());
        if !self.0.details.is_null() {
            body.insert("details".into(), self.0.details.clone());
        }
        Value::Object(body)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        let mut cause: Option<&dyn std::error::Error> =
            self.0.source.as_deref().map(|source| source as &dyn std::error::Error);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Adds the operation and the path to the error of a system call.
pub trait At<T> {
    /// Names the failed operation and its path: `fs::read(&path).at("read", &path)?`. A full disk becomes
    /// [`Code::DiskFull`].
    fn at(self, verb: &str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, verb: &str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|error| {
            let error: io::Error = error.into();
            let path = path.as_ref().display();
            match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::new(
                    Code::DiskFull,
                    format!(
                        "Could not {verb} {path}: no space left on the disk; free some space and try again"
                    ),
                ),
                _ => Error::internal(format!("Could not {verb} {path}: {error}")),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disk_has_its_own_code() {
        let failed: io::Result<()> = Err(io::Error::from_raw_os_error(28));
        assert_eq!(failed.at("write", "/data/x").unwrap_err().code(), Code::DiskFull);
    }

    #[test]
    fn body_has_details_only_when_there_are_some() {
        let error = Error::new(Code::Conflict, "no");
        assert_eq!(error.body().to_string(), r#"{"code":"conflict","message":"no"}"#);
        assert_eq!(error.detail("a", 1).body()["details"]["a"], 1);
    }
}
