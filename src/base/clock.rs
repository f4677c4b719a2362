//! Times as each API wants them: RFC 3339 UTC with nanoseconds for `/api`, Unix milliseconds for the OpenWork routes.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};

/// Now, RFC 3339, UTC, nanoseconds, `Z`: the form that sandboxed.sh's clients parse.
pub fn now_rfc3339() -> String {
    rfc3339(Utc::now())
}

/// Now, RFC 3339, UTC, milliseconds: for log lines.
pub fn now_rfc3339_ms() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A time in the form of [`now_rfc3339`].
pub fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// A time in milliseconds since 1970, to the second, for people.
pub fn rfc3339_from_ms(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(DateTime::<Utc>::from_timestamp_millis);
    time.map_or_else(|| "the end of time".to_owned(), |time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// Now, in milliseconds since 1970.
pub fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A file time as `debug` shows it: `YYYY-MM-DD HH:MM:SS UTC`.
pub fn debug_time(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Now, as HTTP writes it (RFC 9110, 5.6.7), behind whatever `out` holds. Each thread keeps the last second's text.
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
