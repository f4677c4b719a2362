//! The one error type. Who finds the fault says *what* is wrong ([`Code`], a sentence for the person who asked,
//! details for their program); the HTTP status follows from the code and stands only here.

use std::fmt;
use std::io;
use std::path::Path;

use serde_json::{Map, Value};

/// `Result` with berth's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $status:literal $text:literal,)*) => {
        /// What went wrong, as clients see it: a stable text in the body's `code` and an HTTP status.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// The HTTP status of replies with this code.
            pub fn status(self) -> u16 { match self { $(Code::$variant => $status,)* } }

            /// The text in the body's `code`.
            pub fn as_str(self) -> &'static str { match self { $(Code::$variant => $text,)* } }
        }
    };
}

codes! {
    /// The body is not JSON.
    InvalidJson = 400 "invalid_json",
    /// The body is JSON of another shape than the endpoint takes.
    InvalidPayload = 400 "invalid_payload",
    /// The request line, a header or the query cannot be understood.
    InvalidRequest = 400 "invalid_request",
    /// A configuration that OpenCode would not start with.
    InvalidConfig = 422 "invalid_config",
    /// A configuration file of a workspace that is not JSON with comments.
    InvalidJsonc = 422 "invalid_jsonc",
    /// A file of a workspace that is not JSON.
    InvalidJsonFile = 422 "invalid_json",
    /// No name for a plugin.
    InvalidPluginSpec = 400 "invalid_plugin_spec",
    /// No name for a skill, or not the one in its text.
    InvalidSkillName = 400 "invalid_skill_name",
    /// A skill without a text, or one whose front matter cannot be read.
    InvalidSkillContent = 400 "invalid_skill_content",
    /// A skill's description that is missing or too long.
    InvalidDescription = 422 "invalid_description",
    /// No name for an MCP server.
    InvalidMcpName = 400 "invalid_mcp_name",
    /// No name for a command.
    InvalidCommandName = 400 "invalid_command_name",
    /// A command without a text.
    InvalidCommandTemplate = 400 "invalid_command_template",
    /// No such skill.
    SkillNotFound = 404 "skill_not_found",
    /// No such scheduled job.
    JobNotFound = 404 "job_not_found",
    /// An MCP server that OpenCode would not start with.
    InvalidMcpConfig = 400 "invalid_mcp_config",
    /// An id in the path is not an id.
    InvalidId = 400 "invalid_id",
    /// A workspace name that is not allowed.
    InvalidName = 400 "invalid_name",
    /// A folder that is not allowed for this purpose.
    InvalidPath = 400 "invalid_path",
    /// A folder of the host that containers are not given.
    MountNotAllowed = 403 "mount_not_allowed",
    /// What only a container can have was given without the type of the workspace.
    WorkspaceTypeRequired = 422 "workspace_type_required",
    /// Not one of the supported distributions.
    InvalidDistro = 400 "invalid_distro",
    /// What was to become an image cannot be one.
    InvalidImage = 400 "invalid_image",
    /// An environment variable's name or value that no process can have.
    InvalidEnv = 400 "invalid_env",
    /// The working directory of a command does not exist or leaves the workspace.
    InvalidCwd = 400 "invalid_cwd",
    /// A user that does not exist where the command is to run, or whom it cannot become.
    InvalidUser = 400 "invalid_user",
    /// A command that cannot be run as given.
    InvalidCommand = 400 "invalid_command",
    /// The call makes no sense for a host workspace.
    NotAContainer = 400 "not_a_container",
    /// The container is not built.
    NotReady = 400 "workspace_not_ready",
    /// `rerun-init` without an init script.
    NoInitScript = 400 "no_init_script",
    /// The default host workspace cannot be deleted.
    DefaultWorkspace = 400 "default_workspace",
    /// No, or no valid, credential.
    Unauthorized = 401 "unauthorized",
    /// A valid credential that does not reach.
    Forbidden = 403 "forbidden",
    /// A token's scope that does not exist.
    InvalidScope = 400 "invalid_scope",
    /// No token with this id.
    TokenNotFound = 404 "token_not_found",
    /// Nobody allowed it.
    WriteDenied = 403 "write_denied",
    /// No write with this id waits for approval.
    ApprovalNotFound = 404 "approval_not_found",
    /// Too many writes wait for approval.
    TooManyPending = 429 "too_many_pending",
    /// The server is read-only.
    ReadOnly = 403 "read_only",
    /// No such route.
    NotFound = 404 "not_found",
    /// No such workspace.
    WorkspaceNotFound = 404 "workspace_not_found",
    /// No such image.
    ImageNotFound = 404 "image_not_found",
    /// No such terminal.
    TerminalNotFound = 404 "terminal_not_found",
    /// No such run, or one that was forgotten.
    RunNotFound = 404 "run_not_found",
    /// The route exists with another method.
    MethodNotAllowed = 405 "method_not_allowed",
    /// Something else is going on that excludes this.
    Conflict = 409 "conflict",
    /// What an approver was shown is not what would be written any more.
    ApprovalOutdated = 409 "approval_outdated",
    /// The terminal's program has ended.
    TerminalEnded = 409 "terminal_ended",
    /// A build of this workspace is under way.
    BuildRunning = 409 "build_running",
    /// Would destroy data, and `rebuild` was not given.
    RebuildRequired = 409 "rebuild_required",
    /// Somebody needs the image.
    ImageInUse = 409 "image_in_use",
    /// A file system is mounted inside what would be deleted.
    MountedInside = 409 "mounted_inside",
    /// The body is larger than the endpoint takes.
    BodyTooLarge = 413 "body_too_large",
    /// An upload that is larger than the inbox takes.
    FileTooLarge = 413 "file_too_large",
    /// A body in a content coding that is not decoded here.
    UnsupportedEncoding = 415 "unsupported_encoding",
    /// A form without a file.
    FileRequired = 400 "file_required",
    /// Uploads are switched off.
    InboxDisabled = 404 "inbox_disabled",
    /// An id that is none of an inbox.
    InvalidInboxItem = 400 "invalid_inbox_item",
    /// No such file in the inbox.
    InboxItemNotFound = 404 "inbox_item_not_found",
    /// The outbox is switched off.
    OutboxDisabled = 404 "outbox_disabled",
    /// An id that is none of an outbox.
    InvalidArtifact = 400 "invalid_artifact",
    /// No such file in the outbox.
    ArtifactNotFound = 404 "artifact_not_found",
    /// Bytes that a file does not have.
    RangeNotSatisfiable = 416 "range_not_satisfiable",
    /// Nobody can log in with a password.
    LoginDisabled = 404 "login_disabled",
    /// The page is switched off.
    UiDisabled = 404 "ui_disabled",
    /// All workers of this kind are taken.
    Busy = 503 "busy",
    /// The token or its workspace holds its share of something already.
    OverShare = 429 "over_share",
    /// The server is going down.
    ShuttingDown = 503 "shutting_down",
    /// The workspace does not say where its OpenCode is, or says it wrongly.
    OpencodeUnconfigured = 400 "opencode_unconfigured",
    /// An address that no workspace's OpenCode may have.
    InvalidBaseUrl = 400 "invalid_base_url",
    /// The workspace's OpenCode cannot be reached, or hung up.
    OpencodeUnreachable = 502 "opencode_unreachable",
    /// The workspace's OpenCode did not answer in time.
    OpencodeTimeout = 504 "opencode_timeout",
    /// The OpenCode that this server runs does not answer yet.
    OpencodeStarting = 503 "opencode_starting",
    /// The OpenCode that this server runs is not started again by itself.
    OpencodeFailed = 503 "opencode_failed",
    /// The workspace's OpenCode could not read its configuration again.
    OpencodeReloadFailed = 502 "opencode_reload_failed",
    /// What this call needs is not there (yet).
    Unavailable = 503 "unavailable",
    /// The container ended while something ran in it, or could not be started.
    ContainerStopped = 503 "container_stopped",
    /// Nothing in the container does what a command's start needs: somebody has stopped it all.
    ContainerSilent = 503 "container_silent",
    /// What runs in the container leaves nothing for another command.
    ContainerFull = 503 "container_full",
    /// The library has nothing of this name.
    NotInLibrary = 404 "not_in_library",
    /// No space left where berth keeps its data.
    DiskFull = 507 "disk_full",
    /// A child could not be started.
    SpawnFailed = 500 "spawn_failed",
    /// A build step failed; the message has the tool's last words.
    BuildFailed = 500 "build_failed",
    /// Ended because somebody asked for it.
    Cancelled = 409 "cancelled",
    /// Bad flag, variable or file at the start; never reaches a client.
    Config = 500 "config",
    /// Data that a newer version wrote; never reaches a client.
    NewerFormat = 500 "newer_format",
    /// Our bug, or the machine failed us.
    Internal = 500 "internal_error",
    /// On loopback or a Unix socket, a Host that is not ours.
    HostNotAllowed = 403 "host_not_allowed",
    /// A page that was not allowed for sends a write or opens a WebSocket.
    OriginNotAllowed = 403 "origin_not_allowed",
    /// The request did not arrive in time.
    RequestTimeout = 408 "request_timeout",
    /// An `Expect` other than `100-continue`.
    ExpectationFailed = 417 "expectation_failed",
    /// Too many or too large headers.
    HeadTooLarge = 431 "head_too_large",
    /// A method or transfer coding that does not exist here.
    NotImplemented = 501 "not_implemented",
    /// Neither HTTP/1.1 nor HTTP/1.0.
    HttpVersion = 505 "http_version_not_supported",
}

/// An error with everything its reader needs. Cheap to move: one pointer.
#[derive(Debug)]
pub struct Error(Box<ErrorInner>);

#[derive(Debug)]
struct ErrorInner {
    code: Code,
    message: String,
    /// Null, an object, or where the observed API has one a list.
    details: Value,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error whose `message` tells the person who asked what to do.
    pub fn new(code: Code, message: impl Into<String>) -> Error {
        Error(Box::new(ErrorInner { code, message: message.into(), details: Value::Null, source: None }))
    }

    /// A failure of ours or of the machine; the client sees `message`, the log sees the source too.
    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(Code::Internal, message)
    }

    /// A start-up error that names the flag, variable or file (`place`).
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

    /// Makes `details` a list, where clients know one.
    #[must_use]
    pub fn detail_list(mut self, list: Vec<Value>) -> Error {
        self.0.details = Value::Array(list);
        self
    }

    /// Adds the cause, for the log.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        self.0.source = Some(source.into());
        self
    }

    /// What went wrong.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The sentence for the person who asked.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The reply body: `{"code","message","details"?}`.
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

/// Gives a failed system call the verb and the path that it lacks.
pub trait At<T> {
    /// `fs::read(&path).at("read", &path)?`; a full disk keeps its own code on the way.
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
                    format!("No space left to {verb} {path}; free some disk space and try again"),
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
    fn a_full_disk_keeps_its_code() {
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
