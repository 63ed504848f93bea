//! The page at `/`: one card a repository.

use std::sync::Arc;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::Result;
use cvmfs_core::trust::whitelist::LOW_DAYS;
use maud::{Markup, html};
use serde_json::{Map, Value};

use super::{ago, bytes, duration, encode, grouped, layout, plot, short_bytes};
use crate::serve::connection::Shared;
use crate::serve::health::{Health, Problem, problems};
use crate::serve::state::{Past, RepositoryState, Role, States, newest};

/// Makes the page.
pub(super) async fn page(shared: &Arc<Shared>) -> Result<Markup> {
    shared.states.look_at_sources().await;
    let states = shared.states.all(shared).await?;
    let now = crate::serve::unix_now();
    let pasts = States::pasts(shared, &states).await;
    let records = shared.records();
    let card = |state: &RepositoryState| card(state, pasts.get(&state.name), &problems(state, &records, now), now);
    let cards: Vec<Markup> = states.iter().map(card).collect();
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

fn card(state: &RepositoryState, past: Option<&Past>, problems: &[Problem], now: UnixSeconds) -> Markup {
    let (health, word) = health(state, problems);
    let content = past.and_then(|past| newest(past));
    html! {
        section class="card" id=(state.name) {
            div class="head" {
                h2 {
                    @if state.manifest.is_some() {
                        a href={ "/browse/" (encode(state.name.as_bytes())) "/" } { (state.name) }
                    } @else { (state.name) }
                }
                span class={ "state " (class(health)) } { (word) }
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
                @if let Some(last_check) = state.last_check { (fact("Last check", &ago(last_check, now))) }
                @if let Some(days) = state.whitelist_days(now) { (fact("Whitelist", &whitelist(days))) }
            }
            @if let Some(past) = past { (plot::past(past, &state.runs, now)) }
            // How long the whitelist is valid is told above.
            @for problem in problems.iter().filter(|problem| !problem.word.starts_with("expire")) {
                p class="problem" { (capitalized(&problem.text)) }
            }
        }
    }
}

/// The one word that matters most.
fn health(state: &RepositoryState, problems: &[Problem]) -> (Health, &'static str) {
    let is_replica = matches!(state.role, Role::Replica(_));
    let worst = problems.first().map(|problem| (problem.health, problem.word));
    match worst {
        Some((Health::Bad, word)) => return (Health::Bad, word),
        _ if state.manifest.is_none() => {
            return (Health::Attention, if state.is_snapshotting { "filling" } else { "empty" });
        }
        Some(attention) => return attention,
        None => {}
    }
    match state.lag() {
        Some(lag) if lag.revisions > 0 => {
            (Health::Attention, if state.is_snapshotting { "updating" } else { "behind" })
        }
        _ if is_replica && state.is_snapshotting => (Health::Good, "updating"),
        _ => (Health::Good, "up to date"),
    }
}

fn class(health: Health) -> &'static str {
    match health {
        Health::Good => "good",
        Health::Attention => "attention",
        Health::Bad => "bad",
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
    } else if days < f64::from(LOW_DAYS) {
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

/// The sentence as it begins a paragraph.
fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
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
