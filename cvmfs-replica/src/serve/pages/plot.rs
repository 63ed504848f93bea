//! Plots as inline SVG: how revisions and bytes grew.

use std::fmt::Write as _;

use cvmfs_core::clock::UnixSeconds;
use maud::{Markup, html};

use super::short_bytes;
use crate::serve::state::{Point, Run};

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
    time: f64,
    value: f64,
}

/// Draws the past of a repository: bytes as an area, revisions as a line of steps.
///
/// Without two revisions at different times there is nothing to see, and no plot.
pub(super) fn past(points: &[Point], runs: &[Run], now: UnixSeconds) -> Markup {
    let mut revisions: Vec<Sample> =
        points.iter().map(|point| Sample { time: point.time.0 as f64, value: point.revision as f64 }).collect();
    // Of a source without tags, the snapshots tell the past.
    if revisions.len() < 2 {
        let seen = runs.iter().filter_map(|run| Some(Sample { time: run.start.0 as f64, value: run.revision? as f64 }));
        revisions.extend(seen);
    }
    let mut bytes: Vec<Sample> = points
        .iter()
        .filter_map(|point| Some(Sample { time: point.time.0 as f64, value: point.content?.bytes as f64 }))
        .collect();
    for samples in [&mut revisions, &mut bytes] {
        samples.sort_by(|one, other| one.time.total_cmp(&other.time));
    }
    let Some(first) = revisions.first().map(|sample| sample.time) else { return html! {} };
    let last = (now.0 as f64).max(revisions.last().map_or(first, |sample| sample.time));
    if revisions.len() < 2 || last - first < 1.0 {
        return html! {};
    }
    let scale = Scale { first, last };
    let label = format!(
        "Revisions {} to {}, {} at last",
        revisions[0].value,
        revisions[revisions.len() - 1].value,
        bytes.last().map_or_else(|| "of unknown size".to_owned(), |sample| short_bytes(sample.value as u64))
    );
    let date = |time: f64| UnixSeconds(time as i64).iso()[..10].to_owned();
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
                circle class="dot" cx=(scale.x(sample.time)) cy=(scale.y(sample.value, top_of(&revisions))) r="2.5" {}
            }
            text class="key" x=(LEFT) y="13" {
                tspan class="key-steps" { "■" } " revision " (revisions[revisions.len() - 1].value)
            }
            @if let Some(newest) = bytes.last() {
                text class="key end" x=(WIDTH - RIGHT) y="13" {
                    (short_bytes(newest.value as u64)) " " tspan class="key-area" { "■" }
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

fn top_of(samples: &[Sample]) -> f64 {
    samples.iter().map(|sample| sample.value).fold(1.0, f64::max)
}

/// The span of time of a plot.
struct Scale {
    first: f64,
    last: f64,
}

impl Scale {
    fn x(&self, time: f64) -> f64 {
        round(LEFT + (time - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT))
    }

    fn y(&self, value: f64, top: f64) -> f64 {
        round(HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - TOP))
    }

    /// A value holds until the next one, and the last one until now.
    fn steps(&self, samples: &[Sample]) -> String {
        let top = top_of(samples);
        let mut path = String::new();
        for (index, sample) in samples.iter().enumerate() {
            let (x, y) = (self.x(sample.time), self.y(sample.value, top));
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
        let scale = Scale { first: 0.0, last: 100.0 };
        let samples = [Sample { time: 0.0, value: 1.0 }, Sample { time: 50.0, value: 2.0 }];
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
