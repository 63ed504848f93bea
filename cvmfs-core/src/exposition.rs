//! The text format in which Prometheus reads what a service counts.
//!
//! Source: "Text-based format" in "Exposition formats" of Prometheus' documentation.

use std::fmt::Write as _;

/// A page of metrics: families, and the samples of each.
///
/// ```
/// # use cvmfs_core::exposition::Exposition;
/// let mut page = Exposition::default();
/// page.family("fetched_total", "counter", "Objects fetched.");
/// page.sample(&[("kind", "catalog")], 3.0);
/// assert!(page.into_text().ends_with("\nfetched_total{kind=\"catalog\"} 3\n"));
/// ```
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    /// The name of the family at hand.
    name: String,
    /// What is added to it.
    suffix: &'static str,
}

impl Exposition {
    /// Begins a family of a kind: `counter`, `gauge` or `histogram`.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        name.clone_into(&mut self.name);
        self.suffix = "";
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Begins a part of a histogram: `_bucket`, `_sum` or `_count`.
    pub fn part(&mut self, suffix: &'static str) {
        self.suffix = suffix;
    }

    /// Adds a sample to the family.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{}{}{labels} {value}", self.name, self.suffix);
    }

    /// The page.
    pub fn into_text(self) -> String {
        self.text
    }
}
