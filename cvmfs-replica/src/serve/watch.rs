//! What the server looks at by itself: manifests that others replaced, for those who listen, and whitelists that expire.
//!
//! A publisher is another process, and need not know of this one. While somebody listens to a repository, its manifest is
//! looked at every second, which is one `stat`, or every ten seconds in a bucket; without listeners nothing is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::Shared;
use super::health::problems;
use super::unix_now;

/// How often manifests are looked at while somebody listens.
const MANIFESTS_EVERY: Duration = Duration::from_secs(1);
/// Of so many looks one goes to buckets as well.
const BUCKETS_EVERY: u64 = 10;
/// How often the log tells of whitelists that are about to expire, or have.
const WHITELISTS_EVERY: Duration = Duration::from_hours(12);

/// Looks again and again; never ends.
pub(super) async fn keep_looking(shared: &Arc<Shared>) {
    let (mut looked, mut looks) = (None::<Instant>, 0_u64);
    let mut turn = tokio::time::interval(MANIFESTS_EVERY);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        turn.tick().await;
        if let Some(notices) = shared.options.notices.clone().filter(|notices| notices.is_watching()) {
            looks += 1;
            let with_buckets = looks.is_multiple_of(BUCKETS_EVERY);
            let look = tokio::task::spawn_blocking(move || notices.look_at_manifests(with_buckets, unix_now()));
            if let Err(failure) = look.await {
                tracing::error!(%failure, "cannot look at manifests");
            }
        }
        if looked.is_none_or(|looked| looked.elapsed() >= WHITELISTS_EVERY) {
            looked = Some(Instant::now());
            warn_of_whitelists(shared).await;
        }
    }
}

async fn warn_of_whitelists(shared: &Arc<Shared>) {
    let states = match shared.states.all(shared).await {
        Ok(states) => states,
        Err(error) => return tracing::warn!(%error, "cannot look at the repositories"),
    };
    for state in states.iter() {
        for problem in problems(state, &[], unix_now()).iter().filter(|problem| problem.word.starts_with("expire")) {
            tracing::warn!(name = state.name, "{}", problem.text);
        }
    }
}
