//! Caches the doctor's report: one examination at a time, for all callers.
//!
//! Lock: `last`, held during an examination, about a second.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::base::thread::lock;
use crate::doctor::{self, Check, DoctorReport, Subject};

/// How long a doctor report is reused.
const PROBE_FRESH: Duration = Duration::from_secs(10);

/// A doctor with a cached report.
pub struct Doctor {
    subject: Subject,
    last: Mutex<Option<(Instant, Arc<DoctorReport>)>>,
}

impl Doctor {
    /// Creates a doctor without a report.
    pub fn new(subject: Subject) -> Doctor {
        Doctor { subject, last: Mutex::default() }
    }

    /// Returns the report if it is younger than [`PROBE_FRESH`], otherwise a new one, which takes about a
    /// second.
    pub fn report(&self) -> Arc<DoctorReport> {
        let mut last = lock(&self.last);
        if let Some((_, report)) = last.as_ref().filter(|(made, _)| made.elapsed() < PROBE_FRESH) {
            return report.clone();
        }
        let report = Arc::new(doctor::examine(&self.subject));
        *last = Some((Instant::now(), report.clone()));
        report
    }

    /// Cancels a running examination.
    pub fn close(&self) {
        self.subject.cancel.cancel();
    }

    /// Returns the checks that cost nothing, for the start of the server.
    pub fn at_start(&self) -> Vec<Check> {
        super::at_start(&self.subject)
    }
}
