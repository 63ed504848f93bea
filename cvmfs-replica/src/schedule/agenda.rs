//! What is to be done when: never two runs on one replica, and requests that come during a run make one more.

use std::collections::BTreeMap;
use std::time::Instant;

use cvmfs_core::path::RepositoryName;

/// The replicas with the time of their next run.
#[derive(Debug, Default)]
pub(super) struct Agenda(BTreeMap<RepositoryName, Entry>);

#[derive(Debug)]
struct Entry {
    due: Instant,
    running: bool,
    /// Somebody asked while it was running: what the run found may be older than what was asked for.
    again: bool,
    /// It is no replica any more.
    gone: bool,
}

impl Agenda {
    /// These are the replicas now; new ones are due at once.
    pub(super) fn set(&mut self, replicas: &[RepositoryName], now: Instant) {
        for (alias, entry) in &mut self.0 {
            entry.gone = !replicas.contains(alias);
        }
        self.0.retain(|_, entry| entry.running || !entry.gone);
        for alias in replicas {
            let new = || Entry { due: now, running: false, again: false, gone: false };
            self.0.entry(alias.clone()).or_insert_with(new);
        }
    }

    /// Asks for a run as soon as possible; false if there is no such replica.
    pub(super) fn request(&mut self, alias: &RepositoryName, now: Instant) -> bool {
        let Some(entry) = self.0.get_mut(alias) else { return false };
        if entry.running {
            entry.again = true;
        } else {
            entry.due = entry.due.min(now);
        }
        true
    }

    /// Begins the run that is due for the longest time.
    pub(super) fn begin(&mut self, now: Instant) -> Option<RepositoryName> {
        let due = self.0.iter_mut().filter(|(_, entry)| !entry.running && entry.due <= now);
        let (alias, entry) = due.min_by_key(|(_, entry)| entry.due)?;
        entry.running = true;
        Some(alias.clone())
    }

    /// Ends a run; the next one is at `next`, unless one was asked for meanwhile.
    pub(super) fn end(&mut self, alias: &RepositoryName, now: Instant, next: Instant) {
        if let Some(entry) = self.0.get_mut(alias) {
            entry.due = if entry.again { now } else { next };
            (entry.running, entry.again) = (false, false);
        }
        self.0.retain(|_, entry| entry.running || !entry.gone);
    }

    /// When the next run is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.0.values().filter(|entry| !entry.running).map(|entry| entry.due).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn names(names: &[&str]) -> Vec<RepositoryName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn each_replica_has_its_turn_and_never_two() {
        let all = names(&["a.x", "b.x"]);
        let [a, b] = &all[..] else { unreachable!() };
        let start = Instant::now();
        let mut agenda = Agenda::default();
        agenda.set(&all, start);
        assert_eq!(agenda.begin(start).as_ref(), Some(a));
        assert_eq!(agenda.begin(start).as_ref(), Some(b));
        assert_eq!(agenda.begin(start + MINUTE), None);
        agenda.end(b, start, start + MINUTE);
        agenda.end(a, start, start + 2 * MINUTE);
        assert_eq!(agenda.next_due(), Some(start + MINUTE));
        assert_eq!(agenda.begin(start), None);
        assert_eq!(agenda.begin(start + 3 * MINUTE).as_ref(), Some(b));
        assert_eq!(agenda.begin(start + 3 * MINUTE).as_ref(), Some(a));
    }

    #[test]
    fn requests_during_a_run_make_one_more() {
        let all = names(&["a.x"]);
        let start = Instant::now();
        let mut agenda = Agenda::default();
        assert!(!agenda.request(&all[0], start));
        agenda.set(&all, start);
        agenda.begin(start).unwrap();
        for _ in 0..5 {
            assert!(agenda.request(&all[0], start));
            assert_eq!(agenda.begin(start), None);
        }
        agenda.end(&all[0], start, start + MINUTE);
        assert!(agenda.begin(start).is_some());
        agenda.end(&all[0], start, start + MINUTE);
        assert_eq!(agenda.begin(start), None);
        // One that comes before its time does not make it later.
        assert!(agenda.request(&all[0], start));
        assert!(agenda.request(&all[0], start + 2 * MINUTE));
        assert!(agenda.begin(start).is_some());
    }

    #[test]
    fn replicas_come_and_go() {
        let all = names(&["a.x", "b.x"]);
        let start = Instant::now();
        let mut agenda = Agenda::default();
        agenda.set(&all, start);
        agenda.begin(start).unwrap();
        agenda.set(&all[1..], start);
        assert_eq!(agenda.begin(start).as_ref(), Some(&all[1]));
        agenda.end(&all[0], start, start);
        assert_eq!(agenda.begin(start), None);
        agenda.set(&all, start);
        assert_eq!(agenda.begin(start).as_ref(), Some(&all[0]));
    }
}
