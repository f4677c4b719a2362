//! Types and functions that every layer shares: the error type, validated names, the clock, limits, threads, the log.
//! **Invariant:** nothing in this room depends on HTTP, child processes or another room.

pub mod clock;
pub mod error;
pub mod fair_semaphore;
pub mod hex;
pub mod ids;
pub mod input_bytes;
pub mod json_keys;
pub mod limits;
pub mod logging;
pub mod object;
pub mod pool;
pub mod redact;
mod redact_text;
pub mod repeat_limiter;
pub mod service_manager;
pub mod shares;
pub mod size;
mod start_pacing;
pub mod thread;
pub mod truncate;
pub mod unknown_fields;

pub use error::{At, Code, Error, Result};
