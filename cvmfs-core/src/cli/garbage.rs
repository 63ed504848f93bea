//! Commands that collect garbage.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::{GlobalArgs, OUTPUT, human_bytes};
use crate::clock::{UnixSeconds, parse_duration};
use crate::error::{Error, Result};
use crate::gc::{self, DeletionLog};
use crate::progress::Progress;

/// Arguments of the collection of garbage.
#[derive(Debug, Clone, clap::Args)]
pub struct GarbageArgs {
    /// Keep so many revisions before the newest one
    #[arg(short = 'r', long, value_name = "NUMBER", conflicts_with = "keep_since")]
    keep_revisions: Option<u64>,
    /// Keep revisions since then: `2024-10-27`, `2024-10-27T03:46:40Z`, `2 weeks ago` [default: 3 days ago]
    #[arg(short = 't', long, value_name = "TIME")]
    keep_since: Option<String>,
    /// Show what would go, and remove nothing
    #[arg(short = 'd', long, short_alias = 'n')]
    pub dry_run: bool,
    /// Print the objects that go, one a line
    #[arg(short, long)]
    list: bool,
    /// Add the objects that go to a file
    #[arg(short = 'L', long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Leave alone what was stored or used in this time
    #[arg(long, value_name = "TIME", default_value = "1 day", value_parser = parse_duration)]
    grace_period: Duration,
    /// Threads [default: one a core]
    #[arg(long, value_name = "NUMBER", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Accepted for scripts that have it: nothing is ever asked
    #[arg(short, long, hide = true)]
    force: bool,
}

impl GarbageArgs {
    /// The choices for a run.
    pub fn options(&self, now: UnixSeconds) -> Result<gc::Options> {
        let since = self.keep_since.as_deref().map(|text| now.parse_since(text)).transpose()?;
        let mut options = gc::Options::new(now);
        if self.keep_revisions.is_some() || since.is_some() {
            options.keep = gc::Keep { revisions: self.keep_revisions, since };
        }
        options.grace = self.grace_period;
        options.threads = self.threads;
        Ok(options)
    }

    /// Collects, with the list of what goes where it is wanted. `default_log` is the file if none is named.
    pub fn run(
        &self,
        global: &GlobalArgs,
        now: UnixSeconds,
        default_log: Option<&Path>,
        collect: impl FnOnce(gc::Report<'_>, &dyn Progress) -> Result<gc::Outcome>,
    ) -> Result<gc::Outcome> {
        let outcome = DeletionLog::around(self.log.as_deref().or(default_log), now, |log| {
            collect(
                &|objects| {
                    log(objects)?;
                    if self.list && !global.json {
                        let lines: String = objects.iter().map(|id| format!("{id}\n")).collect();
                        io::stdout().lock().write_all(lines.as_bytes()).map_err(|error| Error::io(OUTPUT, error))?;
                    }
                    Ok(())
                },
                &*global.progress(),
            )
        })?;
        global.warn(&outcome.warnings);
        Ok(outcome)
    }
}

/// A collection of garbage for people, without line end.
pub fn garbage_summary(outcome: &gc::Outcome) -> String {
    let gc::Outcome { condemned, young, .. } = outcome;
    let verb = if outcome.dry_run { "would be removed" } else { "removed" };
    let mut text = format!(
        "{} objects ({}) {verb}, {} catalogs among them; {} revisions go, {} stay with {} objects",
        condemned.objects,
        human_bytes(condemned.bytes),
        outcome.condemned_catalogs,
        outcome.revisions_condemned,
        outcome.revisions_kept,
        outcome.objects_kept
    );
    if young.objects > 0 {
        let (objects, bytes) = (young.objects, human_bytes(young.bytes));
        text.push_str(&format!("; {objects} objects ({bytes}) that nothing needs are too young to go"));
    }
    format!("{text}; {:.1} s", outcome.seconds)
}
