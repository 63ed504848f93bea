//! What deserves attention, in one order for pages, monitors and the log.
//!
//! `/healthz` says that the server answers: a balancer must not take all repositories away because one of them has a
//! problem. `/healthz/<name>` speaks of that one, with the status code.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::schedule::{Kind, Record};
use cvmfs_core::trust::whitelist::LOW_DAYS;
use hyper::{Method, Response, StatusCode};

use super::answer::{ResponseBody, error, text};
use super::connection::Shared;
use super::respond;
use super::state::{RepositoryState, Trust};

/// How long an answer waits for storages.
const PATIENCE: Duration = Duration::from_secs(2);

/// How a repository is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Health {
    /// All is well.
    Good,
    /// Somebody should look at it, and clients do not notice yet.
    Attention,
    /// Clients refuse it, or get something wrong.
    Bad,
}

/// Something that deserves attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) health: Health,
    /// The one word of it.
    pub(super) word: &'static str,
    /// A sentence, without full stop.
    pub(super) text: String,
}

/// What deserves attention about a repository, the worst first. `records` are those of its jobs.
pub(super) fn problems(state: &RepositoryState, records: &[Record], now: UnixSeconds) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |health, word, text: String| problems.push(Problem { health, word, text });
    let days = state.whitelist_days(now);
    match (days, &state.trust) {
        (Some(days), _) if days < 0.0 => {
            add(Health::Bad, "expired", format!("the whitelist expired {} ago", duration_text(-days)));
        }
        (_, Trust::Broken(reason)) => add(Health::Bad, "broken", reason.clone()),
        _ => {}
    }
    if state.check_status.as_deref() == Some("failed") {
        add(Health::Bad, "damaged", "the last check found something wrong".to_owned());
    }
    // Snapshots have a history, whoever makes them.
    let failed_snapshot = state.runs.last().and_then(|run| run.error.as_deref());
    if let Some(error) = failed_snapshot {
        add(Health::Attention, "failing", format!("the last snapshot failed: {error}"));
    }
    for record in records.iter().filter(|record| record.name.as_str() == state.name) {
        let is_told = record.kind == Kind::Snapshot && failed_snapshot.is_some();
        if let Some(error) = record.error.as_deref().filter(|_| !is_told) {
            add(Health::Attention, "failing", format!("{} failed: {error}", record.kind.name()));
        }
    }
    if let Some(days) = days.filter(|days| (0.0..f64::from(LOW_DAYS)).contains(days)) {
        add(Health::Attention, "expires soon", format!("the whitelist expires in {}", duration_text(days)));
    }
    problems
}

/// Days, or hours if there are few.
fn duration_text(days: f64) -> String {
    if days < 2.0 { format!("{:.0} hours", (days * 24.0).floor()) } else { format!("{:.0} days", days.floor()) }
}

/// Answers whether the server, or one of its repositories, is well.
pub(super) async fn answer(
    repository: Option<&str>,
    method: &Method,
    shared: &Arc<Shared>,
    now: SystemTime,
) -> Response<ResponseBody> {
    let states = tokio::time::timeout(PATIENCE, shared.states.all(shared)).await;
    let states = match states {
        Ok(Ok(states)) => states,
        Ok(Err(error)) => return report(StatusCode::OK, &format!("ok\n{error}\n"), method, now),
        Err(_timeout) => return report(StatusCode::OK, "ok\nthe storages do not answer\n", method, now),
    };
    let (records, unix_now) = (shared.records(), super::unix_seconds(now));
    let mut meant = states.iter().filter(|state| repository.is_none_or(|name| state.name == name)).peekable();
    if repository.is_some() && meant.peek().is_none() {
        return error(StatusCode::NOT_FOUND, method, now);
    }
    let found: Vec<(&str, Problem)> = meant
        .flat_map(|state| problems(state, &records, unix_now).into_iter().map(|problem| (&state.name[..], problem)))
        .collect();
    let lines: String =
        found.iter().map(|(name, problem)| format!("{name}: {}: {}\n", problem.word, problem.text)).collect();
    let is_bad = repository.is_some() && found.iter().any(|(_, problem)| problem.health == Health::Bad);
    match (is_bad, lines.is_empty()) {
        (true, _) => report(StatusCode::SERVICE_UNAVAILABLE, &lines, method, now),
        (_, true) => report(StatusCode::OK, "ok", method, now),
        (_, false) => report(StatusCode::OK, &format!("ok\n{lines}"), method, now),
    }
}

fn report(status: StatusCode, body: &str, method: &Method, now: SystemTime) -> Response<ResponseBody> {
    text(body.to_owned(), |length, now| respond::health_head(status, length, now), method, now)
}
