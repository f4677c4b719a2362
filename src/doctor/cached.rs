//! Caches the doctor's report. Only one examination runs at a time; all callers share its report.
//!
//! Lock: `last`, held during an examination, for about a second.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::base::thread::lock;
use crate::doctor::{self, Check, DoctorReport, Subject};

/// Time for which a report is reused.
const PROBE_FRESH: Duration = Duration::from_secs(10);

/// The doctor, with its last report.
pub struct Doctor {
    subject: Subject,
    last: Mutex<Option<(Instant, Arc<DoctorReport>)>>,
}

impl Doctor {
    /// Creates a doctor that has no report yet.
    pub fn new(subject: Subject) -> Doctor {
        Doctor { subject, last: Mutex::default() }
    }

    /// Returns the last report if it is younger than [`PROBE_FRESH`]; otherwise examines the host, which takes
    /// about a second.
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

    /// Returns the results of the checks that take no time, for the start of the server.
    pub fn at_start(&self) -> Vec<Check> {
        super::at_start(&self.subject)
    }
}
