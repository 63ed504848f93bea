//! When to try again: growing waits with jitter, and waits that a server asks for.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Waits between repetitions of a request.
///
/// The limit doubles with every repetition up to a maximum; the wait is between half the limit and the limit, so
/// that many requests that failed together do not come back together.
#[derive(Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    // A keyed hash of a counter is random enough to spread requests, and needs no further dependency.
    random: RandomState,
    drawn: AtomicU64,
}

impl Backoff {
    /// The first wait is at most `initial`, no wait is longer than `max`.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, random: RandomState::new(), drawn: AtomicU64::new(0) }
    }

    /// The wait before repetition number `repetition`, counted from 0.
    pub fn delay(&self, repetition: u32) -> Duration {
        let factor = 1_u32.checked_shl(repetition).unwrap_or(u32::MAX);
        let limit = self.initial.saturating_mul(factor).min(self.max);
        let half = limit / 2;
        let spread = u64::try_from(limit.saturating_sub(half).as_nanos()).unwrap_or(u64::MAX);
        let draw = self.random.hash_one(self.drawn.fetch_add(1, Ordering::Relaxed));
        half.saturating_add(Duration::from_nanos(draw % spread.saturating_add(1)))
    }
}

/// Reads the value of a `Retry-After` header, at most `max`.
///
/// A date cannot be used without a clock; the server does ask for patience, so it counts as `max`.
pub fn parse_retry_after(value: &[u8], max: Duration) -> Duration {
    str::from_utf8(value)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .map_or(max, |seconds| Duration::from_secs(seconds).min(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn waits_double_up_to_the_maximum() {
        let backoff = Backoff::new(ms(100), ms(1000));
        for (repetition, limit) in
            [(0, 100), (1, 200), (2, 400), (3, 800), (4, 1000), (31, 1000), (32, 1000), (99, 1000)]
        {
            for _ in 0..50 {
                let delay = backoff.delay(repetition);
                assert!((ms(limit / 2)..=ms(limit)).contains(&delay), "{repetition}: {delay:?}");
            }
        }
    }

    #[test]
    fn waits_differ() {
        let backoff = Backoff::new(ms(100), ms(100));
        let first = backoff.delay(0);
        assert!((0..50).any(|_| backoff.delay(0) != first));
    }

    #[test]
    fn no_wait_can_be_asked_for() {
        assert_eq!(Backoff::new(Duration::ZERO, Duration::ZERO).delay(3), Duration::ZERO);
    }

    #[test]
    fn retry_after_is_capped() {
        for (value, expected) in [
            (&b"0"[..], ms(0)),
            (b" 2 ", ms(2000)),
            (b"60", ms(60_000)),
            (b"61", ms(60_000)),
            (b"99999999999999999999999", ms(60_000)),
            (b"-1", ms(60_000)),
            (b"Wed, 21 Oct 2015 07:28:00 GMT", ms(60_000)),
            (b"\xff", ms(60_000)),
        ] {
            assert_eq!(parse_retry_after(value, ms(60_000)), expected, "{value:?}");
        }
    }
}
