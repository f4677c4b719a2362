//! An exec: a command whose response contains the first and last bytes of its output. The response is encoded
//! while it is sent, because escaping can make output six times as long.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::disk_budget::DiskBudget;
use super::live::Live;
use super::output_buffer::OutputBuffer;
use super::request::{LaunchPlan, OutputEncoding};
use super::run::Run;
use crate::base::{Code, Error, Result};
use crate::proc::{Exit, Launcher, Process, ProcessOutcome, Sink};

/// The result of an exec, which becomes the response of `/exec`.
#[derive(Debug)]
pub struct ExecResult {
    /// Exit code; -1 after a signal or a timeout.
    pub exit_code: i32,
    /// The first and last bytes of stdout.
    pub stdout: OutputBuffer,
    /// The first and last bytes of stderr.
    pub stderr: OutputBuffer,
    /// Whether the command was killed at its deadline.
    pub timed_out: bool,
    /// The signal that killed the command.
    pub signal: Option<i32>,
    /// Whether the OOM killer killed a process of the command; `None` if the host cannot report that.
    pub oom_killed: Option<bool>,
    /// Whether the response also contains the unmodified output as base64.
    pub base64: bool,
}

impl ExecResult {
    /// Returns whether the JSON of the response is short.
    pub fn is_small(&self) -> bool {
        self.stdout.is_small() && self.stderr.is_small()
    }

    /// Writes the response as JSON: `stdout` and `stderr` as text, with replacement characters for invalid bytes.
    ///
    /// # Errors
    /// Errors of `out` and errors of reading stored output.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "{{\"exit_code\":{}", self.exit_code)?;
        for (name, held) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            write!(out, ",\"{name}\":\"")?;
            write_text(held, out)?;
            out.write_all(b"\"")?;
        }
        write!(
            out,
            ",\"timed_out\":{},\"truncated\":{}",
            self.timed_out,
            self.stdout.is_cut() || self.stderr.is_cut()
        )?;
        match self.signal {
            Some(signal) => write!(out, ",\"signal\":{signal}")?,
            None => out.write_all(b",\"signal\":null")?,
        }
        match self.oom_killed {
            Some(killed) => write!(out, ",\"oom_killed\":{killed}")?,
            None => out.write_all(b",\"oom_killed\":null")?,
        }
        write!(out, ",\"stdout_bytes\":{},\"stderr_bytes\":{}", self.stdout.total(), self.stderr.total())?;
        if self.base64 {
            for (name, held) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
                write!(out, ",\"{name}_base64\":\"")?;
                write_base64(held, out)?;
                out.write_all(b"\"")?;
            }
        }
        out.write_all(b"}")
    }

    /// Returns the length of the response's JSON.
    ///
    /// # Errors
    /// When stored output cannot be read.
    pub fn length(&self) -> io::Result<u64> {
        let mut count = ByteCounter(0);
        self.write(&mut count)?;
        Ok(count.0)
    }
}

struct ByteCounter(u64);

impl Write for ByteCounter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes output as the content of a JSON string; an extra line marks omitted bytes.
fn write_text(held: &OutputBuffer, out: &mut dyn Write) -> io::Result<()> {
    for behind_gap in [false, true] {
        if behind_gap && held.is_cut() {
            write!(out, "\\n[... {} bytes omitted ...]\\n", held.omitted())?;
        }
        // A piece may end inside a character; keep the character's first bytes until the next piece.
        let mut begun = Vec::with_capacity(4);
        held.read(behind_gap, &mut |piece| {
            let mut piece = piece;
            while !begun.is_empty() && !piece.is_empty() {
                begun.push(piece[0]);
                piece = &piece[1..];
                match std::str::from_utf8(&begun) {
                    Ok(text) => write_escaped(text, out)?,
                    Err(error) if error.error_len().is_none() => continue,
                    // The last byte may be the start of another character.
                    Err(_) => {
                        let last = begun.pop();
                        out.write_all("\u{fffd}".as_bytes())?;
                        begun.clear();
                        match last {
                            Some(byte) if byte.is_ascii() => {
                                write_escaped(char::from(byte).encode_utf8(&mut [0; 4]), out)?;
                            }
                            Some(0xc2..=0xf4) => begun.extend(last),
                            _ => out.write_all("\u{fffd}".as_bytes())?,
                        }
                        continue;
                    }
                }
                begun.clear();
            }
            while let Err(error) = std::str::from_utf8(piece) {
                let (valid, rest) = piece.split_at(error.valid_up_to());
                // The error reports that these bytes are valid.
                write_escaped(std::str::from_utf8(valid).unwrap_or_default(), out)?;
                let Some(length) = error.error_len() else {
                    begun.extend_from_slice(rest);
                    return Ok(());
                };
                out.write_all("\u{fffd}".as_bytes())?;
                piece = &rest[length..];
            }
            write_escaped(std::str::from_utf8(piece).unwrap_or_default(), out)
        })?;
        if !begun.is_empty() {
            out.write_all("\u{fffd}".as_bytes())?;
        }
    }
    Ok(())
}

/// Writes text as the content of a JSON string (RFC 8259, section 7). Escapes are copied in blocks and not
/// formatted one by one, because a command can write megabytes of NUL bytes.
fn write_escaped(text: &str, out: &mut dyn Write) -> io::Result<()> {
    const LONGEST: usize = 6;
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = text.as_bytes();
    let mut escaped = [0; 4096];
    let mut at = 0;
    while at < bytes.len() {
        let plain = bytes[at..].iter().position(|byte| matches!(byte, 0..=31 | b'"' | b'\\'));
        let plain = plain.unwrap_or(bytes.len() - at);
        out.write_all(&bytes[at..at + plain])?;
        at += plain;
        let mut length = 0;
        // Write arrays of constant size, which take one instruction; a short slice would call memcpy(3), which is
        // slow in musl.
        while let Some(piece) = escaped[length..].first_chunk_mut::<LONGEST>() {
            let Some(byte) = bytes.get(at).copied() else { break };
            let short = match byte {
                b'"' | b'\\' => byte,
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                8 => b'b',
                12 => b'f',
                0..=31 => b'u',
                _ => break,
            };
            // After a short escape, the next escape overwrites the digits, or they are not written.
            let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
            *piece = [b'\\', short, b'0', b'0', high, low];
            length += if short == b'u' { LONGEST } else { 2 };
            at += 1;
        }
        out.write_all(&escaped[..length])?;
    }
    Ok(())
}

fn write_base64(held: &OutputBuffer, out: &mut dyn Write) -> io::Result<()> {
    let mut left: Vec<u8> = Vec::new();
    for behind_gap in [false, true] {
        held.read(behind_gap, &mut |piece| {
            left.extend_from_slice(piece);
            let whole = left.len() / 3 * 3;
            out.write_all(BASE64_STANDARD.encode(&left[..whole]).as_bytes())?;
            left.drain(..whole);
            Ok(())
        })?;
    }
    out.write_all(BASE64_STANDARD.encode(&left).as_bytes())
}

/// The response of an exec and its ended process; `None` if the command did not start.
pub type FinishedExec = (ExecResult, Option<Box<dyn Process>>);

/// Runs a command to its end on this thread. Drop the process only after the response was sent: its cleanup may
/// wait for the kernel.
///
/// # Errors
/// When the command could not be started; no part of it has run. `Cancelled` when another caller ended it.
pub fn run(
    launcher: &dyn Launcher,
    run: &Run,
    plan: LaunchPlan,
    output_limit: usize,
    encoding: Option<OutputEncoding>,
    budget: &Arc<DiskBudget>,
) -> Result<FinishedExec> {
    let (begun, timeout) = (Instant::now(), plan.timeout);
    let held = || OutputBuffer::new(output_limit, budget.clone());
    let base64 = encoding == Some(OutputEncoding::Base64);
    let live = match Live::start(launcher, run, plan) {
        // The timeout expired before the command started.
        Err(error) if error.code() == Code::ContainerSilent && begun.elapsed() >= timeout => {
            let result = ExecResult {
                exit_code: -1,
                stdout: held(),
                stderr: held(),
                timed_out: true,
                signal: None,
                oom_killed: None,
                base64,
            };
            return Ok((result, None));
        }
        live => live?,
    };
    let sink = |at: usize| CountingSink { held: held(), count: &run.counts[at] };
    let (mut out, mut err) = (sink(0), sink(1));
    let (ended, process) = live.watch(run, &mut out, &mut err);
    let ended = ended?;
    if ended == ProcessOutcome::Cancelled {
        return Err(Error::new(
            Code::Cancelled,
            "The command was ended: by a request, because its workspace is being rebuilt or deleted, or because the server stops",
        ));
    }
    let (stdout, stderr) = (out.held, err.held);
    let exit = match ended {
        ProcessOutcome::Exited(exit) => Some(exit),
        ProcessOutcome::TimedOut | ProcessOutcome::Cancelled => None,
    };
    let result = ExecResult {
        exit_code: exit.map_or(-1, Exit::code),
        stdout,
        stderr,
        timed_out: ended == ProcessOutcome::TimedOut,
        signal: exit.and_then(Exit::signal),
        oom_killed: process.oom_killed(),
        base64,
    };
    Ok((result, Some(process)))
}

/// A sink that keeps output and lets other threads read the number of bytes.
struct CountingSink<'a> {
    held: OutputBuffer,
    count: &'a AtomicU64,
}

impl Sink for CountingSink<'_> {
    fn take(&mut self, bytes: &[u8]) {
        self.count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.held.take(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(cap: usize, output: &[u8], chunk: usize) -> serde_json::Value {
        let budget = Arc::new(DiskBudget::new(std::env::temp_dir(), u64::MAX));
        let (mut stdout, stderr) = (OutputBuffer::new(cap, budget.clone()), OutputBuffer::new(cap, budget));
        output.chunks(chunk).for_each(|chunk| stdout.take(chunk));
        let result = ExecResult {
            exit_code: 0,
            stdout,
            stderr,
            timed_out: false,
            signal: None,
            oom_killed: Some(false),
            base64: true,
        };
        let mut json = Vec::new();
        result.write(&mut json).unwrap();
        assert_eq!(result.length().unwrap(), json.len() as u64);
        serde_json::from_slice(&json).unwrap()
    }

    #[test]
    fn piecewise_encoding_equals_whole_encoding() {
        let mut odd: Vec<u8> = (0..=255).collect();
        odd.extend_from_slice("aé€𝄞\u{7f}\"\\".as_bytes());
        odd.extend_from_slice(
            b"\xe2\x82a\xf0\x9d\x84\xf0\x9d\x84\x9e\xc2\xc2\xa9\xed\xa0\x80\xf4\x90\x80\x80\xe2\x82",
        );
        for (output, cap) in [(odd.clone(), 10_000), (odd.repeat(800), 10 << 20)] {
            let response = answer(cap, &output, 4096);
            assert!(response["stdout"] == *String::from_utf8_lossy(&output));
            assert!(response["stdout_base64"] == *BASE64_STANDARD.encode(&output));
            assert_eq!((&response["stderr"], &response["truncated"]), (&"".into(), &false.into()));
        }
        let response = answer(10, b"0123456789abcdefg", 3);
        assert_eq!(response["stdout"], "01234\n[... 7 bytes omitted ...]\ncdefg");
        assert_eq!((&response["truncated"], &response["stdout_bytes"]), (&true.into(), &17.into()));
    }
}
