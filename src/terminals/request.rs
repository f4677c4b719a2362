//! Request bodies for terminals (creation, size, input) and their validation. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::{TerminalKind, TerminalSpec};
use crate::base::{Code, Error, Result, limits};
use crate::proc::pty::WindowSize;
use crate::proc::{CommandSpec, c_string};
use crate::runs::request::{environment, in_shell};
use crate::runs::run::truncated_for_display;
use crate::runs::user::UserAccount;

/// Maximum width of a terminal.
const TERMINAL_COLS: u16 = 1000;
/// Maximum height of a terminal.
const TERMINAL_ROWS: u16 = 500;
/// Maximum number of cells of a terminal. The model has two screens with 20 bytes per cell, and four bytes of
/// output can change all cells.
const TERMINAL_CELLS: u32 = 100_000;
/// Default idle timeout: time without clients, input and output after which a terminal is closed.
const TERMINAL_IDLE: Duration = Duration::from_secs(3600);
/// Maximum idle timeout that a client can request.
const TERMINAL_IDLE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Time for which the shell of `/shell` continues after its last socket was closed, long enough for a laptop to
/// sleep briefly. sandboxed.sh uses 30 s, after which users lose their work.
const SHELL_LINGER: Duration = Duration::from_secs(300);

/// The body of `POST …/terminals`.
#[derive(Debug, Default, Deserialize)]
pub struct TerminalRequest {
    /// Command line for the shell; by default, a login shell is started.
    pub command: Option<String>,
    /// Working directory, relative to the workspace or absolute.
    pub cwd: Option<String>,
    /// Environment variables, added to the workspace's variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// User that runs the command, as in an exec; default root.
    pub user: Option<String>,
    /// Number of columns, default 80.
    pub cols: Option<u16>,
    /// Number of rows, default 24.
    pub rows: Option<u16>,
    /// Idle time after which the terminal is closed.
    pub idle_timeout_secs: Option<u64>,
}

/// The body of `POST …/resize`.
#[derive(Debug, Deserialize)]
pub struct ResizeRequest {
    cols: u16,
    rows: u16,
}

/// The JSON body of `POST …/input`: text followed by keys, or other bytes in base64.
#[derive(Debug, Default, Deserialize)]
pub struct InputRequest {
    text: Option<String>,
    #[serde(default)]
    keys: Vec<String>,
    base64: Option<String>,
}

/// Default size: that of terminals since the VT100, and of the shells of compatible servers.
const DEFAULT_SIZE: WindowSize = WindowSize { cols: 80, rows: 24 };

/// Value of TERM, a terminal type that the model and common clients support.
const TERM: &str = "xterm-256color";

impl TerminalRequest {
    /// Converts the request into the specification of a terminal. `user` is `None` for root. `place` has variables
    /// that describe the workspace; `defaults` are the workspace's own variables, which were validated when they
    /// were stored.
    ///
    /// # Errors
    /// `InvalidCommand`, `InvalidEnv`, `InvalidCwd` or `InvalidPayload` for the invalid field.
    pub fn plan(
        &self,
        home: &str,
        user: Option<UserAccount>,
        place: &[(&str, &str)],
        defaults: &BTreeMap<String, String>,
        kind: TerminalKind,
    ) -> Result<TerminalSpec> {
        let mut defaults = defaults.clone();
        let name = user.as_ref().map(|account| account.name.as_str());
        let names = ["USER", "LOGNAME"].into_iter().filter_map(|variable| Some((variable, name?)));
        for (name, value) in place.iter().copied().chain([("TERM", TERM)]).chain(names) {
            defaults.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
        let attempts = match &self.command {
            None => [["/bin/bash", "--login"], ["/bin/sh", "-i"]]
                .iter()
                .map(|line| line.iter().map(|word| c_string(word, Code::Internal, "shell")).collect())
                .collect::<Result<_>>()?,
            Some(command) if command.trim().is_empty() => {
                return Err(Error::new(
                    Code::InvalidCommand,
                    "command is empty; leave it out to get a shell",
                ));
            }
            Some(command) if command.len() > limits::COMMAND_BYTES => {
                let longest = limits::COMMAND_BYTES;
                return Err(Error::new(
                    Code::InvalidCommand,
                    format!("command is longer than {longest} bytes"),
                ));
            }
            Some(command) => in_shell(&["-c", command])?,
        };
        let cwd = self.cwd.clone().unwrap_or_default();
        if cwd.contains('\0') {
            return Err(Error::new(Code::InvalidCwd, "cwd contains a NUL byte"));
        }
        let home = user.as_ref().map_or(home, |account| &account.home);
        let (env, _) = environment(home, &defaults, &self.env)?;
        let user = user.map(|account| account.user);
        Ok(TerminalSpec {
            command: CommandSpec {
                attempts,
                env,
                cwd,
                limits: None,
                tty: true,
                user,
                account: false,
                patience: None,
            },
            label: self.command.clone().unwrap_or_else(|| "login shell".to_owned()),
            user: self.user.as_deref().map(truncated_for_display),
            size: size(self.cols.unwrap_or(DEFAULT_SIZE.cols), self.rows.unwrap_or(DEFAULT_SIZE.rows))?,
            kind,
            idle: match kind {
                TerminalKind::Terminal => self.idle()?,
                TerminalKind::Shell => SHELL_LINGER,
            },
        })
    }

    fn idle(&self) -> Result<Duration> {
        let longest = TERMINAL_IDLE_MAX;
        match self.idle_timeout_secs.map(Duration::from_secs) {
            None => Ok(TERMINAL_IDLE),
            Some(idle) if !idle.is_zero() && idle <= longest => Ok(idle),
            Some(_) => Err(Error::new(
                Code::InvalidPayload,
                format!("idle_timeout_secs is a number of seconds from 1 to {}", longest.as_secs()),
            )),
        }
    }
}

impl ResizeRequest {
    /// Returns the requested size.
    ///
    /// # Errors
    /// `InvalidPayload` when the size exceeds the limits.
    pub fn size(&self) -> Result<WindowSize> {
        size(self.cols, self.rows)
    }
}

/// Validates a terminal size.
///
/// # Errors
/// `InvalidPayload` when the size exceeds the limits, which the message states.
pub fn size(cols: u16, rows: u16) -> Result<WindowSize> {
    if cols == 0 || rows == 0 || nearest_size(cols, rows) != (WindowSize { cols, rows }) {
        return Err(Error::new(
            Code::InvalidPayload,
            format!(
                "A terminal has 1 to {} cols, 1 to {} rows and at most {} cells, not {cols} × {rows}",
                TERMINAL_COLS, TERMINAL_ROWS, TERMINAL_CELLS
            ),
        ));
    }
    Ok(WindowSize { cols, rows })
}

/// Returns the valid size nearest to the requested one, for clients that cannot receive an error.
pub fn nearest_size(cols: u16, rows: u16) -> WindowSize {
    let cols = cols.clamp(1, TERMINAL_COLS);
    let most = u16::try_from(TERMINAL_CELLS / u32::from(cols)).unwrap_or(u16::MAX);
    WindowSize { cols, rows: rows.clamp(1, TERMINAL_ROWS.min(most)) }
}

impl InputRequest {
    /// Returns the bytes that a keyboard would send. If `application` is set, arrow keys are encoded in
    /// application mode.
    ///
    /// # Errors
    /// `InvalidPayload` for an empty input, an unknown key or invalid base64.
    pub fn bytes(&self, application: bool) -> Result<Vec<u8>> {
        let wrong = |message: String| Error::new(Code::InvalidPayload, message);
        if self.text.is_none() && self.keys.is_empty() && self.base64.is_none() {
            return Err(wrong("Give \"text\", \"keys\" or \"base64\", or send raw bytes as the body".into()));
        }
        let mut bytes = match &self.base64 {
            Some(text) => BASE64_STANDARD
                .decode(text)
                .map_err(|error| wrong(format!("base64 cannot be decoded: {error}")))?,
            None => Vec::new(),
        };
        bytes.extend_from_slice(self.text.as_deref().unwrap_or_default().as_bytes());
        for name in &self.keys {
            let key = key(name, application).ok_or_else(|| {
                wrong(format!(
                    "There is no key '{}'; use enter, tab, escape, space, backspace, delete, insert, home, end, \
                     page-up, page-down, up, down, left, right, f1 to f12, ctrl-X and alt-X",
                    name.escape_debug()
                ))
            })?;
            bytes.extend_from_slice(&key);
        }
        Ok(bytes)
    }
}

/// Returns the bytes that xterm sends for a key.
fn key(name: &str, application: bool) -> Option<Vec<u8>> {
    let arrow = |letter: char| if application { format!("\x1bO{letter}") } else { format!("\x1b[{letter}") };
    let text = match name {
        "enter" => "\r".to_owned(),
        "tab" => "\t".to_owned(),
        "escape" => "\x1b".to_owned(),
        "space" => " ".to_owned(),
        "backspace" => "\x7f".to_owned(),
        "up" => arrow('A'),
        "down" => arrow('B'),
        "right" => arrow('C'),
        "left" => arrow('D'),
        "home" => arrow('H'),
        "end" => arrow('F'),
        "insert" => "\x1b[2~".to_owned(),
        "delete" => "\x1b[3~".to_owned(),
        "page-up" => "\x1b[5~".to_owned(),
        "page-down" => "\x1b[6~".to_owned(),
        _ => return modified(name).or_else(|| function(name)),
    };
    Some(text.into_bytes())
}

/// Parses the key names `ctrl-X` and `alt-X`.
fn modified(name: &str) -> Option<Vec<u8>> {
    let single = |text: &str| {
        let mut all = text.chars();
        all.next().filter(|_| all.next().is_none())
    };
    if let Some(c) = name.strip_prefix("ctrl-").and_then(single) {
        // A control character is the letter without its upper bits (ECMA-48).
        return match c.to_ascii_uppercase() {
            '?' => Some(vec![0x7f]),
            c @ '@'..='_' => Some(vec![c as u8 & 0x1f]),
            _ => None,
        };
    }
    let c = name.strip_prefix("alt-").and_then(single)?;
    Some(format!("\x1b{c}").into_bytes())
}

fn function(name: &str) -> Option<Vec<u8>> {
    let number: usize = name.strip_prefix('f')?.parse().ok()?;
    let keys = [
        "\x1bOP", "\x1bOQ", "\x1bOR", "\x1bOS", "\x1b[15~", "\x1b[17~", "\x1b[18~", "\x1b[19~", "\x1b[20~",
        "\x1b[21~", "\x1b[23~", "\x1b[24~",
    ];
    keys.get(number.checked_sub(1)?).map(|key| key.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(json: serde_json::Value) -> Result<Vec<u8>> {
        serde_json::from_value::<InputRequest>(json).unwrap().bytes(false)
    }

    #[test]
    fn keys_give_the_bytes_of_a_keyboard() {
        use serde_json::json;
        assert_eq!(input(json!({"text": "ls", "keys": ["enter"]})).unwrap(), b"ls\r");
        assert_eq!(
            input(json!({"keys": ["ctrl-c", "ctrl-[", "ctrl-?", "alt-x", "f1", "f12"]})).unwrap(),
            b"\x03\x1b\x7f\x1bx\x1bOP\x1b[24~"
        );
        assert_eq!(input(json!({"base64": "AP8="})).unwrap(), [0, 255]);
        assert_eq!(
            (key("up", false).unwrap(), key("up", true).unwrap()),
            (b"\x1b[A".to_vec(), b"\x1bOA".to_vec())
        );
        for bad in [
            json!({}),
            json!({"keys": ["nope"]}),
            json!({"keys": ["ctrl-"]}),
            json!({"keys": ["f0"]}),
            json!({"keys": ["f13"]}),
            json!({"keys": ["ctrl-é"]}),
            json!({"base64": "!"}),
        ] {
            assert_eq!(input(bad.clone()).unwrap_err().code(), Code::InvalidPayload, "{bad}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        assert!(
            size(80, 24).is_ok() && size(1, 1).is_ok() && size(1000, 100).is_ok() && size(200, 500).is_ok()
        );
        for (cols, rows) in [(0, 24), (80, 0), (1001, 1), (1, 501), (1000, 101), (65535, 65535)] {
            let error = size(cols, rows).unwrap_err();
            assert_eq!(error.code(), Code::InvalidPayload);
            let near = nearest_size(cols, rows);
            assert!(size(near.cols, near.rows).is_ok(), "{cols} × {rows} became {near:?}");
        }
    }

    #[test]
    fn the_default_is_a_shell_with_a_terminal() {
        let plan = |request: &TerminalRequest| {
            let workspace = BTreeMap::from([("TERM".to_owned(), "vt100".to_owned())]);
            request.plan("/root", None, &[("WORKSPACE_ID", "7")], &workspace, TerminalKind::Terminal)
        };
        let made = plan(&TerminalRequest::default()).unwrap();
        assert_eq!(made.command.attempts[0][0].to_str().unwrap(), "/bin/bash");
        let env: Vec<_> = made.command.env.iter().map(|entry| entry.to_str().unwrap()).collect();
        assert!(env.contains(&"TERM=vt100") && env.contains(&"WORKSPACE_ID=7"), "{env:?}");
        assert_eq!((made.size, made.idle, made.command.tty), (DEFAULT_SIZE, TERMINAL_IDLE, true));
        for bad in [
            TerminalRequest { command: Some(" ".into()), ..TerminalRequest::default() },
            TerminalRequest { command: Some("a\0".into()), ..TerminalRequest::default() },
            TerminalRequest { cwd: Some("a\0".into()), ..TerminalRequest::default() },
            TerminalRequest { cols: Some(0), ..TerminalRequest::default() },
            TerminalRequest { idle_timeout_secs: Some(0), ..TerminalRequest::default() },
            TerminalRequest { idle_timeout_secs: Some(u64::MAX), ..TerminalRequest::default() },
        ] {
            assert_eq!(plan(&bad).unwrap_err().code().status(), 400, "{bad:?}");
        }
    }
}
