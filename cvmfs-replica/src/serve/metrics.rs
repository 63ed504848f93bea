//! What the server counts, and how monitoring reads it: the text format of Prometheus at `/metrics`.
//!
//! Counting is an addition in memory that all threads share. What is known of repositories is looked up when somebody
//! asks ([`super::state`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::Result;
use cvmfs_core::exposition::Exposition;
use cvmfs_core::schedule::Record;
use hyper::StatusCode;

use super::connection::Shared;
use super::route::{Kind, Target};
use super::state::{RepositoryState, Role, Trust, newest};
use super::{as_float, seconds_between};

/// Kinds of requests, as the label `kind` has them.
const KINDS: [&str; 10] =
    ["object", "named", "info", "statistics", "api", "page", "download", "metrics", "health", "none"];

/// Status codes that are counted each; the last one stands for all others.
const STATUSES: [u16; 15] = [200, 206, 301, 304, 400, 404, 405, 413, 414, 416, 429, 500, 502, 503, 0];

/// Counters since the start.
#[derive(Debug)]
pub(super) struct Metrics {
    started: SystemTime,
    requests: AtomicU64,
    bytes: AtomicU64,
    connections: AtomicU64,
    open: AtomicU64,
    responses: [[AtomicU64; STATUSES.len()]; KINDS.len()],
    /// Objects that were fetched because they were missing.
    pub(super) pulled: AtomicU64,
    /// Bytes of those.
    pub(super) pulled_bytes: AtomicU64,
    /// Missing objects that could not be fetched.
    pub(super) pull_failures: AtomicU64,
}

/// A place in the table of responses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Label(usize);

impl Default for Metrics {
    fn default() -> Self {
        Self {
            started: SystemTime::now(),
            requests: AtomicU64::default(),
            bytes: AtomicU64::default(),
            connections: AtomicU64::default(),
            open: AtomicU64::default(),
            responses: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::default())),
            pulled: AtomicU64::default(),
            pulled_bytes: AtomicU64::default(),
            pull_failures: AtomicU64::default(),
        }
    }
}

impl Label {
    /// The kind of a request for `target`.
    pub(super) fn of(target: Option<&Target>) -> Self {
        use super::route::Page;
        let name = match target {
            Some(Target::File(resource)) => match resource.kind {
                Kind::Object(_) | Kind::Alternative(_) => "object",
                Kind::Named => "named",
                Kind::Info => "info",
                Kind::Statistics => "statistics",
            },
            Some(Target::Api(_)) => "api",
            Some(Target::Page(Page::Download(_))) => "download",
            Some(Target::Page(_)) => "page",
            Some(Target::Metrics) => "metrics",
            Some(Target::Health(_)) => "health",
            None => "none",
        };
        Self(KINDS.iter().position(|kind| *kind == name).unwrap_or(KINDS.len() - 1))
    }
}

impl Metrics {
    /// Counts a request.
    pub(super) fn begin_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a response.
    pub(super) fn count(&self, label: Label, status: StatusCode) {
        let status = STATUSES.iter().position(|known| *known == status.as_u16()).unwrap_or(STATUSES.len() - 1);
        self.responses[label.0][status].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes of bodies.
    pub(super) fn add_bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a connection, open for as long as the value lives.
    pub(super) fn open_connection(&self) -> OpenConnection<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenConnection(self)
    }

    /// Requests so far.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of bodies so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How long the server has been running.
    pub(super) fn uptime(&self) -> Duration {
        self.started.elapsed().unwrap_or_default()
    }
}

/// A connection that counts as open.
#[derive(Debug)]
pub(super) struct OpenConnection<'a>(&'a Metrics);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Writes all that is known, in the text format of Prometheus.
pub(super) async fn render(shared: &Arc<Shared>) -> Result<String> {
    shared.states.look_at_sources().await;
    let states = shared.states.all(shared).await?;
    let mut page = Exposition::default();
    let metrics = &shared.metrics;
    page.family("cvmfs_replica_build_info", "gauge", "The version of the server.");
    page.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    page.family("cvmfs_replica_uptime_seconds", "gauge", "Seconds since the server started.");
    page.sample(&[], metrics.uptime().as_secs_f64());
    page.family("cvmfs_replica_responses_total", "counter", "Responses by kind of request and status code.");
    for (kind, row) in KINDS.iter().zip(&metrics.responses) {
        for (status, count) in STATUSES.iter().zip(row) {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                let status = if *status == 0 { "other".to_owned() } else { status.to_string() };
                page.sample(&[("kind", kind), ("status", &status)], as_float(count));
            }
        }
    }
    for (name, kind, help, value) in [
        ("cvmfs_replica_sent_bytes_total", "counter", "Bytes of response bodies.", &metrics.bytes),
        ("cvmfs_replica_connections_total", "counter", "Connections accepted.", &metrics.connections),
        ("cvmfs_replica_connections_open", "gauge", "Connections open now.", &metrics.open),
        ("cvmfs_replica_pulled_objects_total", "counter", "Missing objects fetched for clients.", &metrics.pulled),
        ("cvmfs_replica_pulled_bytes_total", "counter", "Bytes of those.", &metrics.pulled_bytes),
        (
            "cvmfs_replica_pull_failures_total",
            "counter",
            "Missing objects that could not be fetched.",
            &metrics.pull_failures,
        ),
    ] {
        page.family(name, kind, help);
        page.sample(&[], as_float(value.load(Ordering::Relaxed)));
    }
    repositories(&mut page, shared, &states, super::unix_now());
    jobs(&mut page, &shared.records());
    Ok(page.into_text())
}

/// A column of the table of repositories.
type Column = (&'static str, &'static str, fn(&RepositoryState, UnixSeconds) -> Option<f64>);

const COLUMNS: [Column; 14] = [
    ("revision", "The newest revision that is served.", |state, _| Some(as_float(state.manifest.as_ref()?.revision))),
    ("published_timestamp_seconds", "When that was published.", |state, _| {
        Some(seconds(state.manifest.as_ref()?.timestamp?))
    }),
    ("age_seconds", "How long ago that was published.", |state, now| {
        Some(seconds_between(state.manifest.as_ref()?.timestamp?, now))
    }),
    ("lag_revisions", "How many revisions the source is ahead.", |state, _| Some(as_float(state.lag()?.revisions))),
    ("lag_seconds", "How much newer the revision of the source is.", |state, _| {
        Some(as_float(state.lag()?.seconds.unwrap_or(0)))
    }),
    ("last_snapshot_timestamp_seconds", "When a snapshot ended well.", |state, _| Some(seconds(state.last_snapshot?))),
    ("last_gc_timestamp_seconds", "When garbage was collected.", |state, _| Some(seconds(state.last_gc?))),
    ("last_check_timestamp_seconds", "When it was checked.", |state, _| Some(seconds(state.last_check?))),
    ("check_failed", "Whether the last check found something wrong.", |state, _| {
        Some(f64::from(u8::from(state.check_status.as_ref()? == "failed")))
    }),
    ("snapshot_running", "Whether a snapshot is running.", |state, _| match state.role {
        Role::Replica(_) => Some(f64::from(u8::from(state.is_snapshotting))),
        Role::Publisher | Role::Storage => None,
    }),
    ("snapshot_failures", "Snapshots that failed since the last one that ended well.", |state, _| match state.role {
        Role::Replica(_) => Some(as_float(state.failures() as u64)),
        Role::Publisher | Role::Storage => None,
    }),
    ("whitelist_expiry_timestamp_seconds", "When clients refuse the whitelist.", |state, _| {
        Some(seconds(state.whitelist_expires?))
    }),
    ("whitelist_days_left", "Days until clients refuse the whitelist.", |state, now| state.whitelist_days(now)),
    ("trusted", "Whether manifest and whitelist are rightly signed.", |state, _| match state.trust {
        Trust::Verified => Some(1.0),
        Trust::Broken(_) => Some(0.0),
        Trust::NotChecked => None,
    }),
];

fn repositories(page: &mut Exposition, shared: &Shared, states: &[RepositoryState], now: UnixSeconds) {
    for (name, help, value) in COLUMNS {
        page.family(&format!("cvmfs_repository_{name}"), "gauge", help);
        for state in states {
            if let Some(value) = value(state, now) {
                page.sample(&[("repository", &state.name)], value);
            }
        }
    }
    for (name, help, index) in [("bytes", "Bytes of all files.", 0), ("entries", "Entries of all types.", 1)] {
        page.family(&format!("cvmfs_repository_{name}"), "gauge", help);
        for state in states {
            // Only what pages have looked up: monitoring opens no catalog.
            if let Some(content) = shared.states.known_past(state).and_then(|past| newest(&past)) {
                let value = if index == 0 { content.bytes } else { content.entries };
                page.sample(&[("repository", &state.name)], as_float(value));
            }
        }
    }
}

/// A family of metrics about jobs, each with its samples.
type JobFamily = (&'static str, &'static str, &'static str, fn(&Record) -> Option<f64>);

const JOB_FAMILIES: [JobFamily; 7] = [
    ("running", "gauge", "Whether the job is running.", |record| {
        Some(f64::from(u8::from(record.running_since.is_some())))
    }),
    ("last_end_timestamp_seconds", "gauge", "When a run ended.", |record| record.last_end.map(seconds)),
    ("last_success_timestamp_seconds", "gauge", "When a run ended well.", |record| record.last_success.map(seconds)),
    ("last_duration_seconds", "gauge", "How long the last run took.", |record| record.last_end.map(|_| record.seconds)),
    ("failures_in_a_row", "gauge", "Runs that failed since the last one that ended well.", |record| {
        Some(as_float(record.failures_in_a_row))
    }),
    ("objects_total", "counter", "Objects that were fetched, removed or looked at.", |record| {
        Some(as_float(record.done.objects))
    }),
    ("bytes_total", "counter", "Bytes of those; of checks, those that were read.", |record| {
        Some(as_float(record.done.bytes))
    }),
];

fn jobs(page: &mut Exposition, records: &[Record]) {
    page.family("cvmfs_job_runs_total", "counter", "Runs of jobs since the server started.");
    for record in records {
        for (result, runs) in [("succeeded", record.successes), ("failed", record.failures)] {
            let labels = [("repository", record.name.as_str()), ("job", record.kind.name()), ("result", result)];
            page.sample(&labels, as_float(runs));
        }
    }
    for (name, kind, help, value) in JOB_FAMILIES {
        page.family(&format!("cvmfs_job_{name}"), kind, help);
        for record in records {
            if let Some(value) = value(record) {
                page.sample(&[("repository", record.name.as_str()), ("job", record.kind.name())], value);
            }
        }
    }
}

/// Seconds since 1970.
fn seconds(time: UnixSeconds) -> f64 {
    seconds_between(UnixSeconds(0), time)
}
