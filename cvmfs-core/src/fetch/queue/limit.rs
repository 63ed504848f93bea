//! How many requests to have in flight: as many as pay, as few as the source asks for.
//!
//! The number doubles as long as that makes the throughput rise. Then it stays, but for a look from time to time
//! whether a few more would pay. When the source says that it is overloaded, or does not answer in time, it is halved.

use std::time::{Duration, Instant};

use super::QueueOptions;

/// Over how long throughput is measured, at least.
const WINDOW: Duration = Duration::from_millis(100);
/// Over how long throughput is measured at most, however little is finished.
const WINDOW_MAX: Duration = Duration::from_secs(2);
/// What a request costs beside its bytes, in bytes.
const REQUEST_COST: u64 = 8192;
/// To how many percent twice the requests must raise the throughput to be worth it.
const DOUBLING_GAIN: u64 = 115;
/// To how many percent a quarter more requests must raise it.
const PROBE_GAIN: u64 = 105;
/// How many windows pass before more requests are tried again.
const PROBE_EVERY: u32 = 20;

/// Decides how many requests may be in flight.
#[derive(Debug)]
pub(super) struct Limit {
    min: usize,
    max: usize,
    current: usize,
    phase: Phase,
    /// The beginning of the window, and what was finished in it.
    since: Instant,
    finished: u64,
    work: u64,
    /// How often the source has pushed back.
    pushback: u64,
}

/// What the window at hand is to show.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// What twice the requests bring, compared to this throughput.
    Doubling(u64),
    /// Nothing; the next look comes after some windows.
    Steady(u32),
    /// The throughput to compare with.
    Reference,
    /// What some more requests bring, compared to the throughput with so many.
    Probing(u64, usize),
}

impl Limit {
    pub(super) fn new(options: &QueueOptions, pushback: u64, now: Instant) -> Self {
        let max = options.max_in_flight.max(1);
        let min = options.min_in_flight.clamp(1, max);
        let current = options.initial_in_flight.clamp(min, max);
        Self { min, max, current, phase: Phase::Doubling(0), since: now, finished: 0, work: 0, pushback }
    }

    pub(super) fn current(&self) -> usize {
        self.current
    }

    /// An object of so many bytes has arrived.
    pub(super) fn completed(&mut self, bytes: u64) {
        self.finished += 1;
        self.work += bytes + REQUEST_COST;
    }

    /// Reconsiders; `pushback` counts how often the source was overloaded so far, and `busy` says whether there is more
    /// to fetch than may be in flight.
    pub(super) fn tick(&mut self, now: Instant, pushback: u64, busy: bool) {
        if pushback != self.pushback {
            self.pushback = pushback;
            self.set(self.current / 2);
            self.phase = Phase::Steady(PROBE_EVERY);
            self.begin_window(now);
            return;
        }
        let length = now.saturating_duration_since(self.since);
        if !busy {
            // The throughput is that of who asks.
            self.begin_window(now);
            return;
        }
        if length < WINDOW || (self.finished < self.current as u64 && length < WINDOW_MAX) {
            return;
        }
        let milliseconds = u64::try_from(length.as_millis()).unwrap_or(u64::MAX).max(1);
        let throughput = self.work.saturating_mul(1000) / milliseconds;
        let is_above = |before: u64, percent: u64| throughput > before.saturating_mul(percent) / 100;
        self.phase = match self.phase {
            Phase::Doubling(before) if is_above(before, DOUBLING_GAIN) => {
                let next =
                    if self.current < self.max { Phase::Doubling(throughput) } else { Phase::Steady(PROBE_EVERY) };
                self.set(self.current * 2);
                next
            }
            Phase::Doubling(_) => {
                self.set(self.current / 2);
                Phase::Steady(PROBE_EVERY)
            }
            Phase::Steady(0) if self.current < self.max => Phase::Reference,
            Phase::Steady(left) => Phase::Steady(left.saturating_sub(1)),
            Phase::Reference => {
                let before = self.current;
                self.set(self.current + self.current.div_ceil(4));
                Phase::Probing(throughput, before)
            }
            Phase::Probing(before, _) if is_above(before, PROBE_GAIN) => Phase::Reference,
            Phase::Probing(_, requests) => {
                self.set(requests);
                Phase::Steady(PROBE_EVERY)
            }
        };
        self.begin_window(now);
    }

    fn set(&mut self, requests: usize) {
        self.current = requests.clamp(self.min, self.max);
    }

    fn begin_window(&mut self, now: Instant) {
        (self.since, self.finished, self.work) = (now, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source with a round trip of `latency` milliseconds that answers at most `capacity` requests a second.
    fn run(latency: u64, capacity: u64, milliseconds: u64) -> (Limit, Vec<usize>) {
        let start = Instant::now();
        let mut limit = Limit::new(&QueueOptions::default(), 0, start);
        let mut seen = Vec::new();
        let mut thousandths = 0;
        for at in (50..=milliseconds).step_by(50) {
            thousandths += (limit.current() as u64 * 1000 / latency).min(capacity) * 50;
            for _ in 0..thousandths / 1000 {
                limit.completed(100);
            }
            thousandths %= 1000;
            limit.tick(start + Duration::from_millis(at), 0, true);
            seen.push(limit.current());
        }
        (limit, seen)
    }

    #[test]
    fn more_requests_are_sent_as_long_as_that_pays() {
        // 20 ms: 10,000 requests a second need 200 in flight.
        let (_, seen) = run(20, 10_000, 600);
        assert!(seen.last().is_some_and(|&last| (200..=256).contains(&last)), "{seen:?}");
        // On the loopback device the number does not matter.
        let (_, seen) = run(1, 10_000, 3000);
        assert!(seen.iter().all(|&limit| limit <= 64) && seen.last() == Some(&32), "{seen:?}");
        // Across an ocean all that is allowed is not enough.
        let (_, seen) = run(300, 10_000, 3000);
        assert_eq!(seen.last(), Some(&512), "{seen:?}");
    }

    #[test]
    fn a_source_that_becomes_faster_is_noticed() {
        let (mut limit, _) = run(20, 2000, 1000);
        let slow = limit.current();
        assert!(slow <= 64);
        let mut now = limit.since;
        for _ in 0..600 {
            now += Duration::from_millis(50);
            for _ in 0..limit.current() * 5 / 2 {
                limit.completed(100);
            }
            limit.tick(now, 0, true);
        }
        assert!(limit.current() > 4 * slow, "{limit:?}");
    }

    #[test]
    fn pushback_halves_the_number_down_to_the_minimum() {
        let (mut limit, _) = run(300, 10_000, 3000);
        let now = limit.since;
        let seen: Vec<_> = [1, 1, 2, 5, 6, 7, 8, 9, 10]
            .map(|pushback| {
                limit.tick(now, pushback, true);
                limit.current()
            })
            .into();
        assert_eq!(seen, [256, 256, 128, 64, 32, 16, 8, 8, 8]);
    }

    #[test]
    fn nothing_changes_while_there_is_little_to_fetch() {
        let start = Instant::now();
        let mut limit = Limit::new(&QueueOptions::default(), 0, start);
        for window in 1..100 {
            limit.completed(1);
            limit.tick(start + WINDOW * window, 0, false);
            assert_eq!(limit.current(), 32);
        }
    }
}
