//! What this machine can do, kept for a moment: one examination at a time, however many ask.
//!
//! Lock: `last`, held while everything is tried out, for about a second.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::base::limits;
use crate::base::thread::lock;
use crate::doctor::{self, Check, DoctorReport, Subject};

/// Knows what to look at.
pub struct Doctor {
    subject: Subject,
    last: Mutex<Option<(Instant, Arc<DoctorReport>)>>,
}

impl Doctor {
    /// Looks at nothing yet.
    pub fn new(subject: Subject) -> Doctor {
        Doctor { subject, last: Mutex::default() }
    }

    /// The report of the last [`limits::PROBE_FRESH`], or else a new one; takes about a second then.
    pub fn report(&self) -> Arc<DoctorReport> {
        let mut last = lock(&self.last);
        if let Some((_, report)) = last.as_ref().filter(|(made, _)| made.elapsed() < limits::PROBE_FRESH) {
            return report.clone();
        }
        let report = Arc::new(doctor::examine(&self.subject));
        *last = Some((Instant::now(), report.clone()));
        report
    }

    /// Ends an examination that is under way.
    pub fn close(&self) {
        self.subject.cancel.cancel();
    }

    /// What costs nothing to look at, for the start of the server.
    pub fn at_start(&self) -> Vec<Check> {
        super::at_start(&self.subject)
    }
}
