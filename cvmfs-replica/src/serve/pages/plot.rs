//! Plots as inline SVG: how revisions and bytes grew.

use std::fmt::Write as _;

use cvmfs_core::clock::UnixSeconds;
use maud::{Markup, html};

use super::short_bytes;
use crate::serve::state::{Point, Run};
use crate::serve::{as_float, seconds_between};

/// Size of a plot and of its margins, in units of its own; the style sheet scales it.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 150.0;
const LEFT: f64 = 8.0;
const RIGHT: f64 = 8.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 20.0;

/// One value at one time.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    time: UnixSeconds,
    value: u64,
}

/// Draws the past of a repository: bytes as an area, revisions as a line of steps.
///
/// Without two revisions at different times there is nothing to see, and no plot.
pub(super) fn past(points: &[Point], runs: &[Run], now: UnixSeconds) -> Markup {
    let mut revisions: Vec<Sample> =
        points.iter().map(|point| Sample { time: point.time, value: point.revision }).collect();
    // Of a source without tags, the snapshots tell the past.
    if revisions.len() < 2 {
        revisions.extend(runs.iter().filter_map(|run| Some(Sample { time: run.start, value: run.revision? })));
    }
    let mut bytes: Vec<Sample> =
        points.iter().filter_map(|point| Some(Sample { time: point.time, value: point.content?.bytes })).collect();
    for samples in [&mut revisions, &mut bytes] {
        samples.sort_by_key(|sample| sample.time);
    }
    let (Some(oldest), Some(newest)) = (revisions.first().copied(), revisions.last().copied()) else {
        return html! {};
    };
    let (first, last) = (oldest.time, now.max(newest.time));
    if revisions.len() < 2 || first == last {
        return html! {};
    }
    let scale = Scale { first, last };
    let label = format!(
        "Revisions {} to {}, {} at last",
        oldest.value,
        newest.value,
        bytes.last().map_or_else(|| "of unknown size".to_owned(), |sample| short_bytes(sample.value))
    );
    let date = |time: UnixSeconds| time.iso().split('T').next().unwrap_or_default().to_owned();
    html! {
        svg class="plot" viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(label) {
            title { (label) }
            line class="axis" x1=(LEFT) y1=(HEIGHT - BOTTOM) x2=(WIDTH - RIGHT) y2=(HEIGHT - BOTTOM) {}
            @if bytes.len() > 1 {
                path class="area" d=(scale.area(&bytes)) {}
                path class="edge" d=(scale.steps(&bytes)) {}
            }
            path class="steps" d=(scale.steps(&revisions)) {}
            @for sample in dots(&revisions) {
                circle class="dot" cx=(scale.x(sample.time)) cy=(Scale::y(sample.value, top_of(&revisions))) r="2.5" {}
            }
            text class="key" x=(LEFT) y="13" {
                tspan class="key-steps" { "■" } " revision " (newest.value)
            }
            @if let Some(newest) = bytes.last() {
                text class="key end" x=(WIDTH - RIGHT) y="13" {
                    (short_bytes(newest.value)) " " tspan class="key-area" { "■" }
                }
            }
            text class="label" x=(LEFT) y=(HEIGHT - 5.0) { (date(first)) }
            text class="label end" x=(WIDTH - RIGHT) y=(HEIGHT - 5.0) { (date(last)) }
        }
    }
}

/// Samples with a dot, unless they are so many that the dots would be all there is.
fn dots(samples: &[Sample]) -> &[Sample] {
    if samples.len() > 40 { &samples[samples.len() - 1..] } else { samples }
}

fn top_of(samples: &[Sample]) -> u64 {
    samples.iter().map(|sample| sample.value).max().unwrap_or(0).max(1)
}

/// The span of time of a plot.
struct Scale {
    first: UnixSeconds,
    last: UnixSeconds,
}

impl Scale {
    fn x(&self, time: UnixSeconds) -> f64 {
        let part = seconds_between(self.first, time) / seconds_between(self.first, self.last);
        round(LEFT + part * (WIDTH - LEFT - RIGHT))
    }

    fn y(value: u64, top: u64) -> f64 {
        round(HEIGHT - BOTTOM - as_float(value) / as_float(top) * (HEIGHT - BOTTOM - TOP))
    }

    /// A value holds until the next one, and the last one until now.
    fn steps(&self, samples: &[Sample]) -> String {
        let top = top_of(samples);
        let mut path = String::new();
        for (index, sample) in samples.iter().enumerate() {
            let (x, y) = (self.x(sample.time), Self::y(sample.value, top));
            let _ = if index == 0 { write!(path, "M{x} {y}") } else { write!(path, "H{x}V{y}") };
        }
        let _ = write!(path, "H{}", WIDTH - RIGHT);
        path
    }

    fn area(&self, samples: &[Sample]) -> String {
        let base = HEIGHT - BOTTOM;
        let start = samples.first().map_or(LEFT, |sample| self.x(sample.time));
        format!("{}V{base}H{start}Z", self.steps(samples))
    }
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_hold_until_the_next() {
        let scale = Scale { first: UnixSeconds(0), last: UnixSeconds(100) };
        let samples = [Sample { time: UnixSeconds(0), value: 1 }, Sample { time: UnixSeconds(50), value: 2 }];
        assert_eq!(scale.steps(&samples), "M8 76H240V22H472");
        assert_eq!(scale.area(&samples), "M8 76H240V22H472V130H8Z");
    }

    #[test]
    fn one_revision_is_no_plot() {
        let point = |seconds, revision| Point { time: UnixSeconds(seconds), revision, content: None };
        let now = UnixSeconds(1_000_000);
        assert_eq!(past(&[], &[], now).into_string(), "");
        assert_eq!(past(&[point(5, 1)], &[], now).into_string(), "");
        let drawn = past(&[point(5, 1), point(86_405, 7)], &[], now).into_string();
        assert!(
            drawn.contains("revision 7") && drawn.contains("1970-01-01") && drawn.contains("1970-01-12"),
            "{drawn}"
        );
    }
}
