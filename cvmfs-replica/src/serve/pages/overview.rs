//! The page at `/`: one card a repository.

use std::sync::Arc;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::Result;
use maud::{Markup, html};
use serde_json::{Map, Value};

use super::{ago, bytes, duration, encode, grouped, layout, plot, short_bytes};
use crate::serve::connection::Shared;
use crate::serve::state::{Past, RepositoryState, Role, States, Trust, newest};

/// Days of validity below which the whitelist deserves attention, and haste.
const WHITELIST_LOW: f64 = 7.0;

/// How a repository is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    Good,
    Attention,
    Bad,
}

impl Health {
    fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Attention => "attention",
            Self::Bad => "bad",
        }
    }
}

/// Makes the page.
pub(super) async fn page(shared: &Arc<Shared>) -> Result<Markup> {
    shared.states.look_at_sources().await;
    let states = shared.states.all(shared).await?;
    let now = crate::serve::unix_now();
    let pasts = States::pasts(shared, &states).await;
    let cards: Vec<Markup> = states.iter().map(|state| card(state, pasts.get(&state.name), now)).collect();
    let contact = contact(shared);
    let body = html! {
        header class="top" {
            h1 { "CernVM-FS repositories" }
            p class="contact" {
                @for (index, part) in contact.iter().enumerate() { @if index > 0 { " · " } (part) }
            }
        }
        main {
            @if cards.is_empty() {
                p class="empty" { "There is no repository on this server yet." }
            }
            div class="cards" { @for card in &cards { (card) } }
            p class="server" {
                "Up for " (duration(shared.metrics.uptime().as_secs())) ", "
                (grouped(shared.metrics.requests()))
                @if shared.metrics.requests() == 1 { " request, " } @else { " requests, " }
                (short_bytes(shared.metrics.bytes())) " sent. "
                a href="/metrics" { "Metrics" } " · "
                a href="/cvmfs/info/v1/repositories.json" { "repositories.json" }
            }
        }
    };
    Ok(layout("CernVM-FS repositories", &body))
}

fn card(state: &RepositoryState, past: Option<&Past>, now: UnixSeconds) -> Markup {
    let (health, word) = health(state, now);
    let content = past.and_then(|past| newest(past));
    html! {
        section class="card" id=(state.name) {
            div class="head" {
                h2 {
                    @if state.manifest.is_some() {
                        a href={ "/browse/" (encode(state.name.as_bytes())) "/" } { (state.name) }
                    } @else { (state.name) }
                }
                span class={ "state " (health.class()) } { (word) }
            }
            p class="role" { (role(state)) }
            dl {
                @if let Some(manifest) = &state.manifest {
                    (fact("Revision", &html! { strong { (grouped(manifest.revision)) } }))
                    @if let Some(published) = manifest.timestamp {
                        (fact("Published", &ago(published, now)))
                    }
                }
                @if let Role::Replica(_) = state.role { (fact("Behind", &lag(state))) }
                @if let Some(content) = content {
                    (fact("Size", &bytes(content.bytes)))
                    (fact("Entries", &html! { (grouped(content.entries)) }))
                }
                @if let Role::Replica(_) = state.role { (fact("Last snapshot", &snapshot(state, now))) }
                @if let Some(last_gc) = state.last_gc { (fact("Last gc", &ago(last_gc, now))) }
                @if let Some(days) = state.whitelist_days(now) { (fact("Whitelist", &whitelist(days))) }
            }
            @if let Some(past) = past { (plot::past(past, &state.runs, now)) }
            @if let Trust::Broken(reason) = &state.trust { p class="problem" { (reason) } }
            @if let Some(error) = failure(state) { p class="problem" { "The last snapshot failed: " (error) } }
        }
    }
}

/// The one word that matters most.
fn health(state: &RepositoryState, now: UnixSeconds) -> (Health, &'static str) {
    let is_replica = matches!(state.role, Role::Replica(_));
    match state.whitelist_days(now) {
        Some(days) if days < 0.0 => return (Health::Bad, "expired"),
        _ if matches!(state.trust, Trust::Broken(_)) => return (Health::Bad, "broken"),
        _ => {}
    }
    if state.check_status.as_deref() == Some("failed") {
        return (Health::Bad, "damaged");
    }
    if state.manifest.is_none() {
        return if state.is_snapshotting { (Health::Attention, "filling") } else { (Health::Attention, "empty") };
    }
    if failure(state).is_some() {
        return (Health::Attention, "failing");
    }
    if state.whitelist_days(now).is_some_and(|days| days < WHITELIST_LOW) {
        return (Health::Attention, "expires soon");
    }
    match state.lag() {
        Some(lag) if lag.revisions > 0 => {
            (Health::Attention, if state.is_snapshotting { "updating" } else { "behind" })
        }
        _ if is_replica && state.is_snapshotting => (Health::Good, "updating"),
        _ => (Health::Good, "up to date"),
    }
}

fn role(state: &RepositoryState) -> Markup {
    html! {
        @match &state.role {
            Role::Publisher => "Stratum 0: published here",
            Role::Storage => "Storage",
            Role::Replica(source) => {
                "Replica of "
                @match source.replica.sources.first() {
                    Some(source) => span class="source" { (source.host_str().unwrap_or("a server")) },
                    None => "nothing",
                }
                @if source.replica.name != source.replica.alias { " (" (source.replica.name) ")" }
            }
        }
    }
}

fn lag(state: &RepositoryState) -> Markup {
    let seen = match &state.role {
        Role::Replica(source) => source.seen().and_then(|seen| seen.answer),
        Role::Publisher | Role::Storage => None,
    };
    html! {
        @match (seen, state.lag()) {
            (Some(Err(error)), _) => span class="attention" title=(error) { "source does not answer" },
            (_, Some(lag)) if lag.revisions == 0 => "nothing",
            (_, Some(lag)) => span class="attention" {
                (grouped(lag.revisions)) @if lag.revisions == 1 { " revision" } @else { " revisions" }
                @if let Some(seconds) = lag.seconds { small { (duration(seconds)) } }
            },
            _ => "–",
        }
    }
}

fn snapshot(state: &RepositoryState, now: UnixSeconds) -> Markup {
    html! {
        @match state.last_snapshot {
            Some(time) => (ago(time, now)),
            None => "never",
        }
        @if state.is_snapshotting { ", one is running" }
    }
}

fn whitelist(days: f64) -> Markup {
    let class = if days < 0.0 {
        "bad"
    } else if days < WHITELIST_LOW {
        "attention"
    } else {
        ""
    };
    let number = days.floor().abs();
    html! {
        span class=(class) {
            @if days < 0.0 { "expired " (number) " days ago" } @else { (number) " days left" }
        }
    }
}

/// What the newest snapshot failed with.
fn failure(state: &RepositoryState) -> Option<&str> {
    state.runs.last()?.error.as_deref()
}

fn fact(name: &str, value: &Markup) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

/// Who runs the server, as `meta.json` has it.
fn contact(shared: &Shared) -> Vec<String> {
    let Some(root) = shared.repositories.root() else { return Vec::new() };
    let text = std::fs::read(root.join("srv/cvmfs/info/v1/meta.json")).unwrap_or_default();
    let meta: Map<String, Value> = serde_json::from_slice(&text).unwrap_or_default();
    let value = |key| meta.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    ["organisation", "administrator", "email"].into_iter().filter_map(value).collect()
}
