//! Commands that make a revision out of an input.

use crate::cli::{GlobalArgs, cancel_on_signals, human_bytes};
use crate::clock::UnixSeconds;
use crate::commit::{self, Publisher};
use crate::compression::{Effort, Engine, Policy};
use crate::error::Result;
use crate::history::TagName;
use crate::progress::{Cancel, Progress};
use crate::publication::{Destination, Finished, Options, Outcome};

/// Arguments of all commands that make a revision out of an input.
#[derive(Debug, Clone, clap::Args)]
pub struct PublicationArgs {
    /// Name the new revision
    #[arg(long, value_name = "NAME")]
    pub tag: Option<TagName>,
    /// Description of that name
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true, requires = "tag")]
    pub message: String,
    /// Show what would change, and change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Add the changes to the open transaction instead of publishing them
    #[arg(long, conflicts_with_all = ["dry_run", "tag"])]
    pub transaction: bool,
    /// Compress everything, also what is known to be stored already
    #[arg(long)]
    pub no_index: bool,
    /// Threads that compress and hash [default: one a core]
    #[arg(long, value_name = "NUMBER", default_value_t = 0, hide_default_value = true)]
    pub threads: usize,
    /// How new files are stored: `zlib`, `none`, or `auto`, which leaves what does not shrink as it is [default: as the
    /// repository is configured]
    #[arg(long, value_name = "KIND")]
    pub compression: Option<Policy>,
    /// Program that compresses: `libdeflate` or `zlib-rs`
    #[arg(long, value_name = "NAME", default_value_t = Engine::default())]
    pub engine: Engine,
    /// Effort of compression, 1 (fast) to 9 (small)
    #[arg(long, value_name = "LEVEL", default_value_t = Effort::default().level, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub level: u8,
}

impl PublicationArgs {
    /// Takes the arguments over.
    pub fn apply(&self, options: &mut Options) {
        options.pipeline.compression = self.compression.unwrap_or(options.pipeline.compression);
        options.pipeline.effort = Effort { engine: self.engine, level: self.level };
        options.pipeline.threads = self.threads;
        options.use_index = !self.no_index;
        self.apply_to_commit(&mut options.commit);
        options.destination = if self.transaction { Destination::Transaction } else { Destination::Revision };
    }

    /// Takes over what a commit without new content needs.
    pub fn apply_to_commit(&self, options: &mut commit::Options) {
        options.effort = Effort { engine: self.engine, level: self.level };
        options.threads = self.threads;
        options.tag.clone_from(&self.tag);
        options.message.clone_from(&self.message);
    }

    /// Publishes, or rehearses that, and prints what came of it.
    pub fn run(
        &self,
        global: &GlobalArgs,
        publisher: &Publisher,
        now: UnixSeconds,
        publish: impl FnOnce(&Publisher, &dyn Progress, &Cancel) -> Result<Outcome>,
    ) -> Result<()> {
        let cancel = cancel_on_signals()?;
        if self.dry_run {
            let rehearsal = publisher.rehearsal(now)?;
            let outcome = publish(&rehearsal, &*global.progress(), &cancel)?;
            global.warn(&outcome.warnings);
            return global.print_rehearsal(&rehearsal, now, &outcome);
        }
        let before = (!self.transaction).then(|| publisher.head(now)).transpose()?;
        let before = before.map(|head| head.manifest().revision);
        let outcome = global.publish(publisher, before, |progress| {
            let outcome = publish(publisher, progress, &cancel)?;
            let revision = outcome.finished.revision().map(|commit| commit.revision);
            Ok((outcome, revision))
        })?;
        global.warn(&outcome.warnings);
        global.print(&outcome, &summary(&outcome))
    }
}

/// A publication for people.
fn summary(outcome: &Outcome) -> String {
    let Outcome { finished, content, seconds, megabytes_per_second, .. } = outcome;
    let read = format!(
        "{} files, {} directories, {} symlinks, {} hard links, {} special files; {} read at {megabytes_per_second:.0} MB/s\n\
         {} objects stored ({}), {} were there\n",
        content.files,
        content.directories,
        content.symlinks,
        content.hardlinks,
        content.specials,
        human_bytes(content.bytes_read),
        content.objects_new,
        human_bytes(content.bytes_stored),
        content.objects_reused,
    );
    format!("{read}{}; {:.1} s\n", finished_summary(finished), seconds.total)
}

/// What became of changes, for people, without line end.
pub fn finished_summary(finished: &Finished) -> String {
    finished.revision().map_or_else(|| "added to the open transaction".into(), revision_summary)
}

/// A commit for people, without line end.
pub fn revision_summary(commit: &commit::Outcome) -> String {
    if !commit.changed {
        return format!("unchanged: revision {} has all of it already", commit.revision);
    }
    let tag = commit.tag.as_ref().map_or_else(String::new, |tag| format!(", tag {tag}"));
    let entries = commit.entries;
    format!(
        "revision {}{tag}: {} entries added, {} changed, {} removed; root catalog {}",
        commit.revision, entries.added, entries.changed, entries.removed, commit.root_hash
    )
}
