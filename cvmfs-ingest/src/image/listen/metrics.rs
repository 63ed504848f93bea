//! What the service counts, and how monitoring reads it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::exposition::Exposition;

use super::queue::Lengths;
use super::worker::Done;

/// Upper bounds of the classes of durations, in seconds.
const CLASSES: [f64; 8] = [0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, f64::INFINITY];

/// Counters since the start.
#[derive(Debug, Default)]
pub(super) struct Metrics(Mutex<Counters>);

#[derive(Debug, Default)]
struct Counters {
    notifications: BTreeMap<&'static str, u64>,
    rejected: BTreeMap<&'static str, u64>,
    hints: u64,
    results: BTreeMap<&'static str, u64>,
    /// Durations by class, each with those of all classes before.
    classes: [u64; CLASSES.len()],
    seconds: f64,
    layers: u64,
    bytes: u64,
    last_success: Option<UnixSeconds>,
}

/// Why a notification, or a part of one, is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rejection {
    /// Its sender does not know the secret.
    Unauthorized,
    /// It is no notification.
    Malformed,
    /// It is too large.
    TooLarge,
    /// It takes too long to come.
    TooSlow,
    /// The queue is full, or cannot be written.
    NotQueued,
    /// It names what cannot be an image.
    BadName,
    /// It names an image that nobody asked for.
    NotAllowed,
}

impl Rejection {
    fn name(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::TooSlow => "too_slow",
            Self::NotQueued => "not_queued",
            Self::BadName => "bad_name",
            Self::NotAllowed => "not_allowed",
        }
    }
}

impl Metrics {
    fn counters(&self) -> MutexGuard<'_, Counters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a notification with its hints that are welcome.
    pub(super) fn notification(&self, form: &'static str, hints: usize) {
        let mut counters = self.counters();
        *counters.notifications.entry(form).or_default() += 1;
        counters.hints += hints as u64;
    }

    pub(super) fn reject(&self, reason: Rejection, times: usize) {
        if times > 0 {
            *self.counters().rejected.entry(reason.name()).or_default() += times as u64;
        }
    }

    /// Counts what became of an entry of the queue.
    pub(super) fn attempt(&self, result: &'static str, took: Duration, done: Option<&Done>, now: UnixSeconds) {
        let mut counters = self.counters();
        *counters.results.entry(result).or_default() += 1;
        let seconds = took.as_secs_f64();
        counters.seconds += seconds;
        for (count, bound) in counters.classes.iter_mut().zip(CLASSES) {
            *count += u64::from(seconds <= bound);
        }
        if done.is_some() {
            counters.last_success = Some(now);
        }
        if let Some(Done::Published { layers, bytes, .. }) = done {
            counters.layers += *layers as u64;
            counters.bytes += bytes;
        }
    }

    /// Writes all that is known, in the text format of Prometheus.
    pub(super) fn render(&self, lengths: Lengths, listeners: usize) -> String {
        let counters = self.counters();
        let mut page = Exposition::default();
        page.family("cvmfs_ingest_build_info", "gauge", "The version of the service.");
        page.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        page.family("cvmfs_ingest_queue_length", "gauge", "Entries of the queue.");
        let Lengths { waiting, running, failed, ignored } = lengths;
        for (state, length) in [("waiting", waiting), ("running", running), ("failed", failed), ("ignored", ignored)] {
            page.sample(&[("state", state)], as_float(length as u64));
        }
        for (name, label, help, counts) in [
            ("notifications_total", "form", "Notifications taken, by form.", &counters.notifications),
            ("rejected_total", "reason", "Notifications and images that were not taken.", &counters.rejected),
            ("attempts_total", "result", "What became of entries of the queue, each time.", &counters.results),
        ] {
            page.family(&format!("cvmfs_ingest_{name}"), "counter", help);
            for (value, count) in counts {
                page.sample(&[(label, value)], as_float(*count));
            }
        }
        page.family("cvmfs_ingest_attempt_seconds", "histogram", "How long entries of the queue took, each time.");
        page.part("_bucket");
        for (bound, count) in CLASSES.iter().zip(counters.classes) {
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
            page.sample(&[("le", &bound)], as_float(count));
        }
        page.part("_sum");
        page.sample(&[], counters.seconds);
        page.part("_count");
        page.sample(&[], as_float(counters.classes[CLASSES.len() - 1]));
        for (name, help, value) in [
            ("hints_total", "Images that notifications named and that are allowed.", counters.hints),
            ("fetched_layers_total", "Layers fetched.", counters.layers),
            ("fetched_bytes_total", "Bytes of those.", counters.bytes),
        ] {
            page.family(&format!("cvmfs_ingest_{name}"), "counter", help);
            page.sample(&[], as_float(value));
        }
        page.family("cvmfs_ingest_event_listeners", "gauge", "Clients that listen to events.");
        page.sample(&[], as_float(listeners as u64));
        if let Some(UnixSeconds(time)) = counters.last_success {
            page.family("cvmfs_ingest_last_success_timestamp_seconds", "gauge", "When something ended well.");
            page.sample(&[], as_float(time.unsigned_abs()));
        }
        page.into_text()
    }
}

/// A number for a plot or gauge.
#[expect(clippy::cast_precision_loss, reason = "nobody reads more than 15 digits there")]
fn as_float(number: u64) -> f64 {
    number as f64
}
