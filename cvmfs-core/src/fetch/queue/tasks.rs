//! Tasks that fetch: what each takes next, in bundles or singly, and how many of them there are.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::sink::Arrival;
use super::{Arrived, Shared, State, Verified};
use crate::error::{Error, Result};
use crate::fetch::bundle::BundleOffer;
use crate::hash::ObjectId;
use crate::storage::ReadStore as _;

/// How often cancellation is looked for, and the number of requests in flight reconsidered.
const TICK: Duration = Duration::from_millis(50);
/// Bundles on their way at the same time.
const BUNDLES_MAX: usize = 16;
/// A bundle takes this part of what waits, so that several can be on their way.
const BUNDLES_FROM_WAITING: usize = 4;
/// A bundle of fewer objects waits a moment for more.
const GATHERED_MIN: usize = 64;
const GATHER_TIME: Duration = Duration::from_millis(2);

/// What a fetch task is to do.
enum Next {
    Fetch(ObjectId, u32),
    Bundle(usize, Arc<BundleOffer>, Vec<(ObjectId, u32)>),
    /// Nothing but to say why.
    Fail(ObjectId, String),
}

impl Shared {
    /// Finds somebody for an object that waits: a task that has nothing to do, or another one.
    pub(super) fn recruit(self: &Arc<Self>, state: &mut State) {
        let may_bundle = state.bundles < BUNDLES_MAX;
        if state.singly.is_empty() && (state.waiting.is_empty() || !may_bundle) {
            return;
        }
        if state.idle > 0 {
            self.work.notify_one();
        } else if state.tasks < state.limit.current() {
            state.tasks += 1;
            let shared = Arc::clone(self);
            self.runtime.spawn(async move { shared.fetch_all().await });
        }
    }

    /// Looks after the others until everything ends.
    pub(super) async fn watch_over(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(TICK);
        let mut stop = self.stop.subscribe();
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                _ = ticks.tick() => {}
            }
            if self.cancel.check().is_err() {
                return self.stop();
            }
            let now = Instant::now();
            let mut state = self.state();
            while state.resting.front().is_some_and(|(when, ..)| *when <= now) {
                let (_, id, rounds) = state.resting.pop_front().expect("it was there");
                state.waiting.push_back((id, rounds));
            }
            let busy = !state.waiting.is_empty() || !state.singly.is_empty();
            state.limit.tick(now, self.source.pushback(), busy);
            let open = state.waiting.len() + state.singly.len();
            for _ in 0..open.min(state.limit.current()) {
                self.recruit(&mut state);
            }
        }
    }

    /// Fetches one object after the other, until there are more tasks than needed.
    async fn fetch_all(self: Arc<Self>) {
        let mut stop = self.stop.subscribe();
        let work = async {
            while let Some(next) = self.next_waiting().await {
                match next {
                    Next::Fetch(id, rounds) => self.fetch_one(id, rounds).await,
                    Next::Bundle(server, offer, objects) => self.fetch_bundle(server, &offer, objects).await,
                    Next::Fail(id, reason) => {
                        let what = self.source.describe(&id.into());
                        self.finish([(id, Err(Error::Unavailable { what, reason }))]);
                    }
                }
            }
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            () = work => {}
        }
    }

    /// Waits for something to fetch; `None` if this task is one too many.
    async fn next_waiting(self: &Arc<Self>) -> Option<Next> {
        let mut gathered = false;
        loop {
            let offer = self.source.bundle_offer();
            let gather = {
                let mut state = self.state();
                if state.tasks > state.limit.current() {
                    state.tasks -= 1;
                    // It may have been woken for an object.
                    self.recruit(&mut state);
                    return None;
                }
                let gather = offer.is_some() && !gathered && (1..GATHERED_MIN).contains(&state.waiting.len());
                if !gather || !state.singly.is_empty() {
                    if let Some(next) = self.take_next(&mut state, offer) {
                        return Some(next);
                    }
                    state.idle += 1;
                }
                gather
            };
            if gather {
                gathered = true;
                tokio::time::sleep(GATHER_TIME).await;
                continue;
            }
            self.work.notified().await;
            self.state().idle -= 1;
        }
    }

    fn take_next(self: &Arc<Self>, state: &mut State, offer: Option<(usize, Arc<BundleOffer>)>) -> Option<Next> {
        let single = match (state.singly.pop_front(), offer) {
            (Some(single), _) => Some(single),
            (None, Some((server, offer))) if state.waiting.len() > 1 && state.gone.is_none() => {
                if state.bundles >= BUNDLES_MAX {
                    return None;
                }
                state.bundles += 1;
                let count = (state.waiting.len() / BUNDLES_FROM_WAITING).max(GATHERED_MIN).min(offer.max_objects);
                let objects = state.waiting.drain(..count.min(state.waiting.len())).collect();
                self.make_room(state, count);
                self.recruit(state);
                return Some(Next::Bundle(server, offer, objects));
            }
            (None, _) => state.waiting.pop_front(),
        };
        let (id, rounds) = single?;
        self.make_room(state, 1);
        self.recruit(state);
        let reason = state.gone.clone();
        Some(reason.map_or(Next::Fetch(id, rounds), |reason| Next::Fail(id, reason)))
    }

    /// Tells callers that `count` objects less wait. Not for every object: callers fill the queue at once.
    fn make_room(&self, state: &State, count: usize) {
        let (now, half) = (state.waiting.len(), self.options.max_waiting / 2);
        if state.waiting_callers > 0 && now <= half && now + count > half {
            self.room.notify_all();
        }
    }

    /// Fetches objects in one request and hands them to writers; those that do not come are left to be fetched singly.
    async fn fetch_bundle(self: &Arc<Self>, server: usize, offer: &BundleOffer, objects: Vec<(ObjectId, u32)>) {
        let rounds: HashMap<_, _> = objects.into_iter().collect();
        let ids: Vec<_> = rounds.keys().copied().collect();
        let mut missing: HashSet<_> = rounds.keys().copied().collect();
        if let Some(mut bundle) = self.source.fetch_bundle(server, offer, &ids).await {
            let mut arrived = Vec::new();
            loop {
                let more = bundle.next(&mut arrived).await;
                for (id, stored) in arrived.drain(..) {
                    let size = stored.len() as u64;
                    self.note_answer(&id, 0, &Ok(size));
                    self.hand_over(Verified { id, size, arrived: Arrived::whole(stored, &self.memory) }).await;
                }
                match more {
                    Ok(true) => {}
                    Ok(false) => break self.source.bundle_arrived(server),
                    Err(failure) => break self.source.bundle_failed(server, &failure),
                }
            }
            missing = bundle.into_missing();
        }
        let mut state = self.state();
        state.bundles -= 1;
        state.singly.extend(missing.into_iter().map(|id| (id, rounds.get(&id).copied().unwrap_or_default())));
        self.recruit(&mut state);
    }

    /// Fetches an object and hands it to a writer.
    async fn fetch_one(&self, id: ObjectId, rounds: u32) {
        let mut arrival = Arrival::new(self.destination.as_ref(), &self.memory, self.options.memory_per_object);
        let result = self.source.fetch_object(&id, &mut arrival).await;
        if !self.note_answer(&id, rounds, &result) {
            return;
        }
        match result {
            Ok(size) => self.hand_over(Verified { id, size, arrived: arrival.into_arrived() }).await,
            Err(error) => self.finish([(id, Err(error))]),
        }
    }

    /// Remembers how the source is doing; false if the object waits for another round.
    fn note_answer(&self, id: &ObjectId, rounds: u32, result: &Result<u64>) -> bool {
        let mut state = self.state();
        match result {
            Ok(size) => {
                state.failures = 0;
                state.limit.completed(*size);
                true
            }
            Err(error) if error.is_retryable() => {
                state.failures = state.failures.saturating_add(1);
                if state.failures >= self.options.give_up_after && state.gone.is_none() {
                    tracing::warn!(%error, "the source does not answer any more");
                    state.gone =
                        Some(format!("not asked for: the source does not answer; the last failure was: {error}"));
                    let resting: Vec<_> = state.resting.drain(..).map(|(_, id, rounds)| (id, rounds)).collect();
                    state.waiting.extend(resting);
                }
                let again = rounds < self.options.rounds && state.gone.is_none();
                if again {
                    state.resting.push_back((Instant::now() + self.options.round_pause, *id, rounds + 1));
                }
                !again
            }
            Err(_) => {
                state.failures = 0;
                true
            }
        }
    }

    async fn hand_over(&self, verified: Verified) {
        // The semaphore is never closed. The writer gives the permit back.
        if let Ok(permit) = self.backlog.acquire().await {
            permit.forget();
        }
        let mut backlog = self.backlog();
        if backlog.ended {
            return;
        }
        backlog.objects.push_back(verified);
        let wake = backlog.sleeping_writers > 0;
        drop(backlog);
        if wake {
            self.to_write.notify_one();
        }
    }
}
