//! Timestamps in the format of each API: RFC 3339 UTC with nanoseconds for `/api`, Unix milliseconds for the routes of
//! OpenWork.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};

/// Returns the current time as RFC 3339, UTC, nanoseconds, `Z`: the format that sandboxed.sh's clients parse.
pub fn now_rfc3339() -> String {
    rfc3339(Utc::now())
}

/// Returns the current time as RFC 3339, UTC, milliseconds, for log lines.
pub fn now_rfc3339_ms() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Formats a time as [`now_rfc3339`] does.
pub fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// Formats milliseconds since 1970 for people, to the second.
pub fn rfc3339_from_ms(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(DateTime::<Utc>::from_timestamp_millis);
    time.map_or_else(|| "the end of time".to_owned(), |time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// Returns the current time in milliseconds since 1970.
pub fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Formats a file's time as the `debug` route of a workspace shows it: `YYYY-MM-DD HH:MM:SS UTC`.
pub fn debug_time(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Appends the current time in HTTP's format (RFC 9110, 5.6.7) to `out`. Each thread caches the text of its latest
/// second.
pub fn push_http_date(out: &mut String) {
    thread_local!(static LAST: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) });
    let now = Utc::now();
    LAST.with_borrow_mut(|(second, text)| {
        if *second != now.timestamp() {
            *second = now.timestamp();
            *text = now.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        }
        out.push_str(text);
    });
}
