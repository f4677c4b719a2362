//! The log. **Invariant:** one record is exactly one line, whatever text a client or a workload puts into it.
//! `cli::serve` initialises the log once. The log has no threads; a line is formatted without a lock and written under
//! stdout's lock.
//!
//! The format `Pretty` is for people: an RFC 3339 time in UTC, the level unless it is INFO, and the text. Records with
//! the target [`BOOT`] are bare text, because clients of the OpenWork server search for these lines. `Json` is the
//! format of OpenWork's log: the key-values of a record (`info!(method = m; "…")`) become `attributes` and keep their
//! types.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use log::kv::{self, VisitSource, VisitValue};
use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;
use serde_json::ser::Formatter;
use simplelog::{CombinedLogger, Config, SharedLogger};

use super::clock;

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Pretty,
    /// One JSON object per line.
    Json,
}

/// Log target of the lines that the OpenWork server prints at its start, word for word.
pub const BOOT: &str = "berth::boot";

/// The destination of log lines.
pub enum LogOutput {
    Stdout,
    Stderr,
    /// A function that receives each line.
    Other(Box<LineSink>),
}

/// A function that receives a line, including its line break.
pub type LineSink = dyn Fn(&[u8]) + Send + Sync;

/// Starts logging to `output`; each JSON line contains `run_id`. A second call has no effect.
pub fn init(format: LogFormat, verbose: bool, run_id: String, output: LogOutput) {
    let level = if verbose { LevelFilter::Debug } else { LevelFilter::Info };
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "localhost".to_owned() } else { host.trim().to_owned() };
    let logger = LineLogger { level, format, run_id, host, output };
    // The only possible failure is "already set": another logger is active, and records are not lost.
    let _ = CombinedLogger::init(vec![Box::new(logger)]);
}

/// Returns the number with its noun: `1 entry`, `2 entries`.
pub fn counted(count: impl TryInto<u64>, thing: &str) -> String {
    let count = count.try_into().unwrap_or(u64::MAX);
    match (count, thing.strip_suffix('y')) {
        (1, _) => format!("1 {thing}"),
        (_, Some(stem)) => format!("{count} {stem}ies"),
        (_, None) => format!("{count} {thing}s"),
    }
}

/// Escapes control characters, line separators and bidirectional controls in `text`, so that the result stays on one
/// line and a terminal shows its characters in order.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            c if is_deceptive(c) => {
                let _ = write!(line, "\\u{{{:x}}}", u32::from(c));
            }
            c => line.push(c),
        }
    }
    line
}

/// Returns whether a character ends a line, controls a terminal, or changes the display order of a line.
fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
        || matches!(c, '\u{200E}' | '\u{200F}' | '\u{061C}')
}

struct LineLogger {
    output: LogOutput,
    level: LevelFilter,
    format: LogFormat,
    run_id: String,
    host: String,
}

impl Log for LineLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Dependencies log only warnings and errors.
        let ours = metadata.target().starts_with(env!("CARGO_PKG_NAME"));
        metadata.level() <= self.level && (ours || metadata.level() <= Level::Warn)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = match self.format {
            LogFormat::Pretty => pretty(record).into_bytes(),
            LogFormat::Json => self.json(record),
        };
        line.push(b'\n');
        // A closed pipe (EPIPE) or a full disk at the log's destination must not stop the server.
        let _ = match &self.output {
            LogOutput::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(&line).and_then(|()| out.flush())
            }
            LogOutput::Stderr => io::stderr().lock().write_all(&line),
            LogOutput::Other(take) => {
                take(&line);
                Ok(())
            }
        };
    }

    fn flush(&self) {
        let _ = io::stdout().lock().flush();
    }
}

impl SharedLogger for LineLogger {
    fn level(&self) -> LevelFilter {
        self.level
    }

    fn config(&self) -> Option<&Config> {
        None
    }

    fn as_log(self: Box<Self>) -> Box<dyn Log> {
        self
    }
}

fn pretty(record: &Record<'_>) -> String {
    let text = one_line(&record.args().to_string());
    if record.target() == BOOT {
        return text;
    }
    let level = match record.level() {
        Level::Error => "ERROR ",
        Level::Warn => "WARN ",
        Level::Info => "",
        Level::Debug | Level::Trace => "DEBUG ",
    };
    format!("{} {level}{text}", clock::now_rfc3339_ms())
}

impl LineLogger {
    fn json(&self, record: &Record<'_>) -> Vec<u8> {
        let (severity, number) = match record.level() {
            Level::Error => ("ERROR", 17),
            Level::Warn => ("WARN", 13),
            Level::Info => ("INFO", 9),
            Level::Debug | Level::Trace => ("DEBUG", 5),
        };
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let mut attributes = LogAttributes(vec![
            ("run.id".to_owned(), self.run_id.clone().into()),
            ("process.pid".to_owned(), std::process::id().into()),
        ]);
        // `LogAttributes` never fails.
        let _ = record.key_values().visit(&mut attributes);
        let line = JsonLine {
            time_unix_nano: nanos.to_string(),
            severity_text: severity,
            severity_number: number,
            body: record.args().to_string(),
            attributes,
            resource: Resource {
                name: env!("CARGO_PKG_NAME"),
                version: env!("CARGO_PKG_VERSION"),
                instance: &self.run_id,
                host: &self.host,
            },
        };
        let mut bytes = Vec::with_capacity(512);
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, EscapingFormatter);
        match line.serialize(&mut serializer) {
            Ok(()) => bytes,
            Err(_) => b"{}".to_vec(),
        }
    }
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonLine<'a> {
    time_unix_nano: String,
    severity_text: &'static str,
    severity_number: u8,
    body: String,
    attributes: LogAttributes,
    resource: Resource<'a>,
}

#[derive(serde::Serialize)]
struct Resource<'a> {
    #[serde(rename = "service.name")]
    name: &'static str,
    #[serde(rename = "service.version")]
    version: &'static str,
    #[serde(rename = "service.instance.id")]
    instance: &'a str,
    #[serde(rename = "host.name")]
    host: &'a str,
}

/// The attributes of a record, in the order given; a map would sort them.
struct LogAttributes(Vec<(String, Value)>);

impl Serialize for LogAttributes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'kvs> VisitSource<'kvs> for LogAttributes {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        let mut typed = TypedValue(Value::Null);
        value.visit(&mut typed)?;
        self.0.push((key.as_str().to_owned(), typed.0));
        Ok(())
    }
}

/// The value of a key-value pair with its original type.
struct TypedValue(Value);

impl<'v> VisitValue<'v> for TypedValue {
    fn visit_any(&mut self, value: kv::Value<'_>) -> Result<(), kv::Error> {
        self.0 = value.to_string().into();
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.0 = Value::Null;
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }
}

/// Formats compact JSON and also escapes the characters that JSON allows but a terminal interprets.
struct EscapingFormatter;

impl Formatter for EscapingFormatter {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut plain = 0;
        for (at, c) in fragment.char_indices().filter(|(_, c)| is_deceptive(*c)) {
            writer.write_all(&fragment.as_bytes()[plain..at])?;
            // All these characters are in the Basic Multilingual Plane, so one escape is enough.
            write!(writer, "\\u{:04x}", u32::from(c))?;
            plain = at + c.len_utf8();
        }
        writer.write_all(&fragment.as_bytes()[plain..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(level: Level, text: &str, kvs: &[(&str, kv::Value<'_>)], check: impl FnOnce(&Record<'_>)) {
        let args = format_args!("{text}");
        check(&Record::builder().level(level).target("berth::x").args(args).key_values(&kvs).build());
    }

    fn stdout() -> LineLogger {
        let output = LogOutput::Stdout;
        LineLogger {
            output,
            level: LevelFilter::Info,
            format: LogFormat::Json,
            run_id: "run-1".into(),
            host: "box".into(),
        }
    }

    #[test]
    fn deceptive_characters_are_spelled_out() {
        for (text, want) in [
            ("GET /a 200 3ms", "GET /a 200 3ms"),
            ("a\nERROR forged", "a\\nERROR forged"),
            ("a\r\tb", "a\\r\\tb"),
            ("\x1b[31mred", "\\u{1b}[31mred"),
            ("nul\0", "nul\\u{0}"),
            ("\x7f\u{9b}\u{85}", "\\u{7f}\\u{9b}\\u{85}"),
            ("\u{2028}\u{2029}\u{202e}\u{2066}\u{2069}", "\\u{2028}\\u{2029}\\u{202e}\\u{2066}\\u{2069}"),
            ("Größe 日本 🦀 C:\\x", "Größe 日本 🦀 C:\\x"),
        ] {
            assert_eq!(one_line(text), want);
        }
    }

    #[test]
    fn pretty_shows_the_level_unless_it_is_info() {
        for (level, want) in [
            (Level::Info, "a\\nb"),
            (Level::Warn, "WARN a\\nb"),
            (Level::Error, "ERROR a\\nb"),
            (Level::Debug, "DEBUG a\\nb"),
        ] {
            record(level, "a\nb", &[], |record| {
                let line = pretty(record);
                let (time, text) = line.split_once(' ').unwrap();
                assert_eq!(text, want);
                assert!(chrono::DateTime::parse_from_rfc3339(time).is_ok() && time.ends_with('Z'), "{line}");
            });
        }
    }

    #[test]
    fn boot_lines_are_bare() {
        let args = format_args!("OpenWork server listening on http://127.0.0.1:1");
        let record = Record::builder().level(Level::Info).target(BOOT).args(args).build();
        assert_eq!(pretty(&record), "OpenWork server listening on http://127.0.0.1:1");
        assert!(stdout().enabled(record.metadata()));
    }

    #[test]
    fn json_keeps_types_and_stays_on_one_line() {
        let text = "a\nb\x1b\x7f\u{9b}\u{2028}\u{202e}ß";
        let kvs = [
            ("status", kv::Value::from(503u16)),
            ("durationMs", kv::Value::from(-1i64)),
            ("ratio", kv::Value::from(0.5f64)),
            ("ok", kv::Value::from(false)),
            ("path", kv::Value::from("/x\u{2029}y")),
        ];
        record(Level::Error, text, &kvs, |record| {
            let line = String::from_utf8(stdout().json(record)).unwrap();
            assert!(!line.chars().any(is_deceptive), "{line:?}");
            assert!(line.contains("ß"));
            assert!(line.starts_with("{\"timeUnixNano\":\""), "{line}");
            let value: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(value["body"], text);
            assert_eq!(value["severityText"], "ERROR");
            assert_eq!(value["severityNumber"], 17);
            let attributes = &value["attributes"];
            assert_eq!(attributes["run.id"], "run-1");
            assert_eq!(attributes["process.pid"], std::process::id());
            assert_eq!(attributes["status"], 503);
            assert_eq!(attributes["durationMs"], -1);
            assert_eq!(attributes["ratio"], 0.5);
            assert_eq!(attributes["ok"], false);
            assert_eq!(attributes["path"], "/x\u{2029}y");
            assert_eq!(value["resource"]["service.name"], "berth");
            assert_eq!(value["resource"]["host.name"], "box");
        });
    }

    #[test]
    fn dependencies_log_only_warnings_and_errors() {
        let enabled =
            |level, target| stdout().enabled(&Metadata::builder().level(level).target(target).build());
        assert!(enabled(Level::Info, "berth::server"));
        assert!(!enabled(Level::Debug, "berth::server"));
        assert!(!enabled(Level::Info, "tiny_http"));
        assert!(enabled(Level::Warn, "tiny_http"));
    }
}
