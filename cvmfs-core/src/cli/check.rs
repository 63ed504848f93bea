//! Commands that check.

use serde::Serialize;

use crate::check;
use crate::cli::{GlobalArgs, human_bytes};
use crate::clock::UnixSeconds;
use crate::error::{Error, Result};
use crate::path::{RepoPath, RepositoryName};
use crate::progress::Cancel;
use crate::status;

/// Arguments of checks.
#[derive(Debug, Clone, clap::Args)]
pub struct CheckArgs {
    /// The revision with this tag [default: the newest one]
    #[arg(long, short = 't', value_name = "NAME")]
    tag: Option<String>,
    /// Only the catalog that has this path, and those below the path
    #[arg(long, short = 's', value_name = "PATH", default_value = "/", hide_default_value = true)]
    path: RepoPath,
    /// Read every object, and compare its bytes with its name
    #[arg(long, short = 'i')]
    data: bool,
    /// Leave out catalogs that an earlier check found fine, with all below them
    #[arg(long)]
    incremental: bool,
    /// Threads [default: one a core]
    #[arg(long, value_name = "NUMBER", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Mend what can be mended
    #[arg(long, conflicts_with_all = ["tag", "path"])]
    pub repair: bool,
    /// Another copy of the repository, which objects are mended from; several servers separated by `;`
    #[arg(long, value_name = "URL", requires = "repair")]
    pub from: Option<String>,
}

impl CheckArgs {
    /// Checks, and mends if that is asked for.
    pub fn run(
        &self,
        global: &GlobalArgs,
        subject: &check::Subject<'_>,
        means: &check::Means<'_>,
        now: UnixSeconds,
        cancel: &Cancel,
    ) -> Result<Checked> {
        let (options, progress) = (self.options(now), global.progress());
        let (report, mended) = if self.repair {
            let (report, mended) = check::repair(subject, &options, means, &*progress, cancel)?;
            (report, Some(mended))
        } else {
            (check::check(subject, &options, &*progress, cancel)?, None)
        };
        status::set_check(&*subject.store, now, report.is_clean())?;
        Ok(Checked { report, mended })
    }

    /// The choices for a check.
    fn options(&self, now: UnixSeconds) -> check::Options {
        check::Options {
            tag: self.tag.clone(),
            path: self.path.clone(),
            data: self.data,
            incremental: self.incremental,
            threads: self.threads,
            ..check::Options::new(now)
        }
    }
}

/// What came of a check.
#[derive(Debug, Clone, Serialize)]
pub struct Checked {
    /// What is wrong, or still is.
    #[serde(flatten)]
    pub report: check::Report,
    /// What was mended, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mended: Option<check::Mended>,
}

impl Checked {
    /// The result for people: a line for each finding, and one for all.
    pub fn summary(&self) -> String {
        let mut text = check_summary(&self.report);
        if let Some(mended) = &self.mended {
            text.extend(mended.failures.iter().map(|failure| format!("not mended: {failure}\n")));
            let (objects, bytes) = (mended.objects, human_bytes(mended.bytes));
            text.push_str(&format!("mended: {objects} objects ({bytes})"));
            text.push_str(if mended.reflog { ", the reflog" } else { "" });
            text.push_str(if mended.counters { ", counters" } else { "" });
            text.push('\n');
        }
        text
    }
}

fn check_summary(report: &check::Report) -> String {
    let mut text: String = report.findings.iter().map(|finding| format!("{finding}\n")).collect();
    let shown = report.findings.len() as u64;
    if report.count > shown {
        text.push_str(&format!("and {} more\n", report.count - shown));
    }
    let verdict = match report.count {
        0 => "nothing is wrong".to_owned(),
        1 => "1 thing is wrong".to_owned(),
        count => format!("{count} things are wrong"),
    };
    text.push_str(&format!("{verdict}: {} catalogs", report.catalogs));
    if report.catalogs_known > 0 {
        text.push_str(&format!(" (and {} trees that were fine before)", report.catalogs_known));
    }
    text.push_str(&format!(", {} entries, {} objects", report.entries, report.objects));
    if report.bytes_read > 0 {
        text.push_str(&format!(", {} read", human_bytes(report.bytes_read)));
    }
    format!("{text}; {:.1} s\n", report.seconds)
}

/// The error that a check ends with if something is wrong.
///
/// # Errors
/// `Malformed`, whose exit code is 3.
pub fn check_verdict(name: &RepositoryName, report: &check::Report) -> Result<()> {
    if report.is_clean() {
        return Ok(());
    }
    Err(Error::malformed(
        format!("repository {name}"),
        format!("the check found {} things that are wrong", report.count),
    ))
}
