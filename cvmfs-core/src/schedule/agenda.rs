//! What is to be done when: which jobs may go on together, and requests that come during a job make one more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Kind;
use crate::path::RepositoryName;

/// A job of a repository.
pub(super) type Job = (RepositoryName, Kind);

/// The wait after the first failure in a row; it doubles with each.
const RETRY_FIRST: Duration = Duration::from_mins(5);

/// The jobs with the time of their next run.
#[derive(Debug, Default)]
pub(super) struct Agenda(BTreeMap<Job, Entry>);

#[derive(Debug)]
struct Entry {
    every: Duration,
    due: Instant,
    running: bool,
    /// Somebody asked while it was running: what the run found may be older than what was asked for.
    again: bool,
    /// Failures since the last success.
    failures: u32,
    /// It is not to be done any more.
    gone: bool,
}

impl Agenda {
    /// These are the jobs now, each with its interval. New ones are due after `first`.
    pub(super) fn set(&mut self, jobs: &BTreeMap<Job, Duration>, now: Instant, first: &dyn Fn(&Job) -> Duration) {
        for (job, &every) in jobs {
            let new = || Entry { every, due: now + first(job), running: false, again: false, failures: 0, gone: false };
            let entry = self.0.entry(job.clone()).or_insert_with(new);
            if entry.every != every {
                (entry.every, entry.due) = (every, entry.due.min(now + every));
            }
        }
        for (job, entry) in &mut self.0 {
            entry.gone = !jobs.contains_key(job);
        }
        self.forget();
    }

    /// Asks for a run as soon as possible; false if there is no such job.
    pub(super) fn request(&mut self, job: &Job, now: Instant) -> bool {
        let Some(entry) = self.0.get_mut(job) else { return false };
        if entry.running {
            entry.again = true;
        } else {
            entry.due = entry.due.min(now);
        }
        true
    }

    /// Begins the job of a kind that is due for the longest time, of those that may go on beside what is running.
    pub(super) fn begin(&mut self, kind: Kind, now: Instant) -> Option<RepositoryName> {
        let running: BTreeSet<&Job> = self.0.iter().filter(|(_, entry)| entry.running).map(|(job, _)| job).collect();
        let is_free = |name: &RepositoryName| !running.iter().any(|(busy, with)| busy == name && kind.excludes(*with));
        let due = self.0.iter().filter(|((name, of), entry)| *of == kind && entry.due <= now && is_free(name));
        let job = due.min_by_key(|(_, entry)| entry.due)?.0.clone();
        self.0.get_mut(&job)?.running = true;
        Some(job.0)
    }

    /// Ends a job. The next one follows at once if it was asked for meanwhile, after a failure sooner than otherwise, and
    /// else after the interval; `spread` is how much of that.
    pub(super) fn end(&mut self, job: &Job, now: Instant, is_done: bool, spread: f64) {
        if let Some(entry) = self.0.get_mut(job) {
            entry.failures = if is_done { 0 } else { entry.failures.saturating_add(1) };
            let usual = entry.every.mul_f64(spread);
            let pause = match entry.failures.checked_sub(1) {
                Some(more) => usual.min(RETRY_FIRST.saturating_mul(1 << more.min(16)).mul_f64(spread)),
                None => usual,
            };
            entry.due = if entry.again { now } else { now + pause };
            (entry.running, entry.again) = (false, false);
        }
        self.forget();
    }

    /// When the next job of a kind is due.
    pub(super) fn next_due(&self, kind: Kind) -> Option<Instant> {
        let waiting = self.0.iter().filter(|((_, of), entry)| *of == kind && !entry.running);
        waiting.map(|(_, entry)| entry.due).min()
    }

    /// Whether there is such a job.
    pub(super) fn has(&self, job: &Job) -> bool {
        self.0.contains_key(job)
    }

    fn forget(&mut self) {
        self.0.retain(|_, entry| entry.running || !entry.gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);
    const HOUR: Duration = Duration::from_hours(1);

    fn job(name: &str, kind: Kind) -> Job {
        (name.parse().unwrap(), kind)
    }

    fn set(agenda: &mut Agenda, jobs: &[Job], now: Instant) {
        let jobs = jobs.iter().map(|job| (job.clone(), HOUR)).collect();
        agenda.set(&jobs, now, &|_| Duration::ZERO);
    }

    fn begin(agenda: &mut Agenda, kind: Kind, now: Instant) -> Option<String> {
        agenda.begin(kind, now).map(|name| name.to_string())
    }

    #[test]
    fn each_repository_has_its_turn_and_never_two() {
        let (a, b) = (job("a.x", Kind::Snapshot), job("b.x", Kind::Snapshot));
        let (start, mut agenda) = (Instant::now(), Agenda::default());
        set(&mut agenda, &[a.clone(), b.clone()], start);
        assert_eq!(begin(&mut agenda, Kind::Snapshot, start).unwrap(), "a.x");
        assert_eq!(begin(&mut agenda, Kind::Snapshot, start).unwrap(), "b.x");
        assert_eq!(begin(&mut agenda, Kind::Snapshot, start + HOUR), None);
        agenda.end(&b, start, true, 1.0);
        agenda.end(&a, start + MINUTE, true, 1.0);
        assert_eq!(agenda.next_due(Kind::Snapshot), Some(start + HOUR));
        assert_eq!(agenda.next_due(Kind::Gc), None);
        assert_eq!(begin(&mut agenda, Kind::Snapshot, start + 59 * MINUTE), None);
        assert_eq!(begin(&mut agenda, Kind::Snapshot, start + 2 * HOUR).unwrap(), "b.x");
        assert_eq!(begin(&mut agenda, Kind::Snapshot, start + 2 * HOUR).unwrap(), "a.x");
    }

    #[test]
    fn what_removes_is_alone_on_a_repository() {
        let (start, mut agenda) = (Instant::now(), Agenda::default());
        let jobs: Vec<Job> = ["a.x", "b.x"].iter().flat_map(|name| Kind::ALL.map(|kind| job(name, kind))).collect();
        set(&mut agenda, &jobs, start);
        assert_eq!(begin(&mut agenda, Kind::Check, start).unwrap(), "a.x");
        assert_eq!(begin(&mut agenda, Kind::Gc, start).unwrap(), "b.x");
        // Neither snapshots nor signing wait for a check of days, but for a collection they do.
        for kind in [Kind::Snapshot, Kind::Resign] {
            assert_eq!(begin(&mut agenda, kind, start).unwrap(), "a.x");
            assert_eq!(begin(&mut agenda, kind, start), None);
        }
        assert_eq!(begin(&mut agenda, Kind::Check, start), None);
        for kind in [Kind::Check, Kind::Snapshot] {
            agenda.end(&job("a.x", kind), start, true, 1.0);
            assert_eq!(begin(&mut agenda, Kind::Gc, start), None);
        }
        agenda.end(&job("a.x", Kind::Resign), start, true, 1.0);
        assert_eq!(begin(&mut agenda, Kind::Gc, start).unwrap(), "a.x");
        agenda.end(&job("b.x", Kind::Gc), start, true, 1.0);
        assert_eq!(begin(&mut agenda, Kind::Check, start).unwrap(), "b.x");
    }

    #[test]
    fn requests_during_a_run_make_one_more() {
        let a = job("a.x", Kind::Snapshot);
        let (start, mut agenda) = (Instant::now(), Agenda::default());
        assert!(!agenda.request(&a, start));
        set(&mut agenda, std::slice::from_ref(&a), start);
        agenda.begin(Kind::Snapshot, start).unwrap();
        for _ in 0..5 {
            assert!(agenda.request(&a, start));
            assert_eq!(agenda.begin(Kind::Snapshot, start), None);
        }
        agenda.end(&a, start, true, 1.0);
        assert!(agenda.begin(Kind::Snapshot, start).is_some());
        agenda.end(&a, start, true, 1.0);
        assert_eq!(agenda.begin(Kind::Snapshot, start), None);
        // One that comes before its time does not make it later.
        assert!(agenda.request(&a, start));
        assert!(agenda.request(&a, start + 2 * MINUTE));
        assert!(agenda.begin(Kind::Snapshot, start).is_some());
    }

    #[test]
    fn jobs_come_and_go() {
        let (a, b) = (job("a.x", Kind::Check), job("b.x", Kind::Check));
        let (start, mut agenda) = (Instant::now(), Agenda::default());
        set(&mut agenda, &[a.clone(), b.clone()], start);
        agenda.begin(Kind::Check, start).unwrap();
        set(&mut agenda, std::slice::from_ref(&b), start);
        assert!(agenda.has(&a));
        assert_eq!(begin(&mut agenda, Kind::Check, start).unwrap(), "b.x");
        agenda.end(&a, start, true, 1.0);
        assert!(!agenda.has(&a));
        assert_eq!(agenda.begin(Kind::Check, start), None);
        set(&mut agenda, &[a, b], start);
        assert_eq!(begin(&mut agenda, Kind::Check, start).unwrap(), "a.x");
    }

    #[test]
    fn a_failure_is_repeated_soon_and_then_less_and_less() {
        let a = job("a.x", Kind::Gc);
        let (start, mut agenda) = (Instant::now(), Agenda::default());
        set(&mut agenda, std::slice::from_ref(&a), start);
        for minutes in [5, 10, 20, 40, 60, 60] {
            agenda.begin(Kind::Gc, start + HOUR).unwrap();
            agenda.end(&a, start, false, 1.0);
            assert_eq!(agenda.next_due(Kind::Gc), Some(start + minutes * MINUTE));
        }
        agenda.begin(Kind::Gc, start + HOUR).unwrap();
        agenda.end(&a, start, true, 0.75);
        assert_eq!(agenda.next_due(Kind::Gc), Some(start + 45 * MINUTE));
        agenda.begin(Kind::Gc, start + HOUR).unwrap();
        agenda.end(&a, start, false, 1.0);
        assert_eq!(agenda.next_due(Kind::Gc), Some(start + 5 * MINUTE));
    }
}
