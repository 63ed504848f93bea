//! A limit on what is received.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How far behind the limit receiving may be without that being made up for.
const CREDIT: Duration = Duration::from_millis(100);

/// The longest wait for one piece, whatever the limit.
const COST_MAX: Duration = Duration::from_hours(1);

/// Bytes a second that all who have a copy may receive together; by default without limit.
#[derive(Debug, Clone, Default)]
pub struct Bandwidth(Option<Arc<Limit>>);

#[derive(Debug)]
struct Limit {
    bytes_per_second: u64,
    /// When everything received so far was due.
    due: Mutex<Option<Instant>>,
}

impl Bandwidth {
    /// At most so many bytes a second, at least 1.
    pub fn limited(bytes_per_second: u64) -> Self {
        Self(Some(Arc::new(Limit { bytes_per_second: bytes_per_second.max(1), due: Mutex::new(None) })))
    }

    /// Counts received bytes, and waits until more may be received. Whoever sends waits, too, once the system has no
    /// more room for what it sent.
    pub(super) async fn take(&self, bytes: u64) {
        let Some(limit) = &self.0 else { return };
        let now = Instant::now();
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(limit.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        let due = {
            let mut due = limit.due.lock().unwrap_or_else(PoisonError::into_inner);
            let next = due.unwrap_or(now).max(now.checked_sub(CREDIT).unwrap_or(now)) + cost.min(COST_MAX);
            *due = Some(next);
            next
        };
        tokio::time::sleep_until(due).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_receive_what_is_allowed() {
        let bandwidth = Bandwidth::limited(1_000_000);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let started = Instant::now();
        runtime.block_on(async {
            let each = || async {
                for _ in 0..10 {
                    bandwidth.take(10_000).await;
                }
            };
            tokio::join!(each(), each(), each());
            Bandwidth::default().take(u64::MAX).await;
        });
        let elapsed = started.elapsed();
        assert!((Duration::from_millis(280)..Duration::from_secs(30)).contains(&elapsed), "{elapsed:?}");
    }
}
