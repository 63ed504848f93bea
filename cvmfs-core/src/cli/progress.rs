//! Progress on standard error: a bar on a terminal, lines elsewhere.

use std::io::{self, IsTerminal as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::{human_bytes, say};
use crate::progress::{Progress, Unit};

/// How often a report is printed where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Whoever shows progress here.
pub(super) fn on_standard_error() -> Box<dyn Progress> {
    if io::stderr().is_terminal() {
        return Box::new(Bar(ProgressBar::hidden()));
    }
    let now = Instant::now();
    let state = PlainState { name: "", unit: Unit::Bytes, done: 0, total: None, since: now, last: now };
    Box::new(Plain(Mutex::new(state)))
}

/// A bar with rate and remaining time, on a terminal.
#[derive(Debug)]
struct Bar(ProgressBar);

impl Progress for Bar {
    fn phase(&self, name: &'static str, unit: Unit, total: Option<u64>) {
        let template = match (unit, total) {
            (Unit::Bytes, Some(_)) => "{msg:10} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
            (Unit::Bytes, None) => "{msg:10} {spinner} {bytes} {bytes_per_sec} {elapsed}",
            (_, Some(_)) => "{msg:10} [{bar:30}] {pos}/{len} {per_sec} {eta} left",
            (_, None) => "{msg:10} {spinner} {pos} {elapsed}",
        };
        self.0.reset();
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
        match total {
            Some(total) => self.0.set_length(total),
            None => self.0.unset_length(),
        }
        self.0.set_message(name);
        self.0.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        self.0.enable_steady_tick(Duration::from_millis(200));
    }

    fn advance(&self, amount: u64) {
        self.0.inc(amount);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A line now and then, where there is no terminal.
#[derive(Debug)]
struct Plain(Mutex<PlainState>);

#[derive(Debug)]
struct PlainState {
    name: &'static str,
    unit: Unit,
    done: u64,
    total: Option<u64>,
    since: Instant,
    last: Instant,
}

impl Progress for Plain {
    fn phase(&self, name: &'static str, unit: Unit, total: Option<u64>) {
        let now = Instant::now();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            PlainState { name, unit, done: 0, total, since: now, last: now };
    }

    fn advance(&self, amount: u64) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.done += amount;
        if state.last.elapsed() < PLAIN_INTERVAL {
            return;
        }
        state.last = Instant::now();
        let show = |number: u64| match state.unit {
            Unit::Bytes => human_bytes(number),
            Unit::Catalogs => format!("{number} catalogs"),
            Unit::Entries => format!("{number} entries"),
            Unit::Objects => format!("{number} objects"),
        };
        let of = state.total.map_or_else(String::new, |total| format!(" of {}", show(total)));
        let rate = show(state.done / state.since.elapsed().as_secs().max(1));
        say(&format!("{}: {}{of}, {rate}/s", state.name, show(state.done)));
    }
}
