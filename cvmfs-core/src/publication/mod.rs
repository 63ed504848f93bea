//! A publication: a source of changes becomes one revision, or part of an open transaction. These steps are the same for
//! every input.
//!
//! ```text
//! begin or join ─► look at it ─► run a source into the change set ─► commit or keep ─► Outcome
//!                (if limits are enforced)
//! ```

mod survey;

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::change::ChangeSource;
use crate::changeset::ChangeSet;
use crate::clock::UnixSeconds;
use crate::commit::{self, About, OpenChangeSet, Publisher, Rehearsal, Transaction};
use crate::error::Result;
use crate::path::RepoPath;
use crate::pipeline;
use crate::progress::{Cancel, Progress, Unit};
use crate::repository::Selector;
use crate::server::RepositoryConfig;
use crate::tree::Tree;

/// Choices that do not depend on the source.
#[derive(Debug, Clone)]
pub struct Options {
    /// How content is stored.
    pub pipeline: pipeline::Options,
    /// Whether content that was stored before is recognised instead of compressed again.
    pub use_index: bool,
    /// Directories that become nested catalogs unless they are.
    pub catalogs: Vec<RepoPath>,
    /// Where the changes go.
    pub destination: Destination,
    /// How the revision is made.
    pub commit: commit::Options,
    /// Plain bytes to come, for the progress bar, if known.
    pub total_bytes: Option<u64>,
}

/// Where changes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Destination {
    /// A revision of their own.
    #[default]
    Revision,
    /// The open transaction.
    Transaction,
}

impl Options {
    /// What the repository's configuration asks for.
    pub fn new(config: &RepositoryConfig, now: UnixSeconds) -> Self {
        Self {
            pipeline: pipeline::Options {
                algorithm: config.algorithm,
                compression: config.compression.into(),
                chunking: config.chunking,
                external: config.external,
                file_size_limit: if config.nesting.enforce_limits { config.nesting.file_size_limit } else { u64::MAX },
                ..pipeline::Options::default()
            },
            use_index: true,
            catalogs: Vec::new(),
            destination: Destination::default(),
            commit: commit::Options::new(now),
            total_bytes: None,
        }
    }
}

/// What became of changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Finished {
    /// A revision, or nothing if the head has all of them.
    Revision(commit::Outcome),
    /// A part of the open transaction.
    Transaction {
        /// The transaction.
        transaction: About,
    },
}

impl Finished {
    /// The revision; `None` if the changes went to the open transaction.
    pub fn revision(&self) -> Option<&commit::Outcome> {
        match self {
            Self::Revision(commit) => Some(commit),
            Self::Transaction { .. } => None,
        }
    }
}

/// What became of a source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// What its changes became.
    #[serde(flatten)]
    pub finished: Finished,
    /// What was read and stored.
    pub content: pipeline::Outcome,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// Wall time.
    pub seconds: Seconds,
    /// Plain megabytes (10^6) read a second.
    pub megabytes_per_second: f64,
}

/// Wall time by phase.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Seconds {
    /// Reading, compressing, hashing and storing content.
    pub content: f64,
    /// Catalogs and the new revision.
    pub commit: f64,
    /// Both.
    pub total: f64,
}

/// Changes on their way to their destination, with the tree that they apply to.
///
/// Whoever makes changes without a source records them in [`changes`](Self::changes).
#[derive(Debug)]
pub struct Draft<'a> {
    publisher: &'a Publisher,
    target: Target<'a>,
    /// Holds the tree of a transaction that has changes.
    rehearsal: Option<Rehearsal>,
    now: UnixSeconds,
}

#[derive(Debug)]
enum Target<'a> {
    Revision(OpenChangeSet),
    Transaction(Transaction<'a>),
}

impl<'a> Draft<'a> {
    /// Begins changes for the head, or joins the open transaction.
    ///
    /// # Errors
    /// Those of [`Publisher::begin`] or [`Publisher::join_transaction`].
    pub fn begin(
        publisher: &'a Publisher,
        destination: Destination,
        now: UnixSeconds,
        patience: Duration,
        cancel: &Cancel,
    ) -> Result<Self> {
        let mut rehearsal = None;
        let target = match destination {
            Destination::Revision => Target::Revision(publisher.begin(now)?),
            Destination::Transaction => {
                let mut transaction = publisher.join_transaction(patience, cancel)?;
                if !transaction.changes().is_empty()? {
                    rehearsal = Some(transaction.rehearse(now)?);
                }
                Target::Transaction(transaction)
            }
        };
        Ok(Self { publisher, target, rehearsal, now })
    }

    /// The tree that the changes apply to.
    pub fn tree(&self) -> Result<Tree> {
        match (&self.rehearsal, &self.target) {
            (Some(rehearsal), _) => rehearsal.head(self.now)?.tree(&Selector::Head),
            (None, Target::Revision(changes)) => self.tree_at_base(changes),
            (None, Target::Transaction(transaction)) => self.tree_at_base(transaction.changes()),
        }
    }

    fn tree_at_base(&self, changes: &ChangeSet) -> Result<Tree> {
        Ok(Tree::new(self.publisher.read_store(), changes.base()?, &self.publisher.scratch()?))
    }

    /// The change set.
    pub fn changes(&mut self) -> &mut ChangeSet {
        match &mut self.target {
            Target::Revision(changes) => changes,
            Target::Transaction(transaction) => transaction.changes_mut(),
        }
    }

    /// Commits changes that were recorded without a source, or keeps them in the transaction. `tree` is what they were
    /// made for. If limits are enforced, they are checked first: nothing is stored for changes that exceed them.
    pub fn finish_edits(
        mut self,
        tree: &Tree,
        options: &commit::Options,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Finished> {
        if self.publisher.config.nesting.enforce_limits {
            survey::check(&mut self, options.threads, cancel)?;
        }
        self.finish(Some(tree), options, progress, cancel)
    }

    /// Commits, or keeps the changes in the transaction.
    fn finish(
        self,
        tree: Option<&Tree>,
        options: &commit::Options,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Finished> {
        match self.target {
            Target::Revision(mut changes) => {
                self.publisher.commit_after(tree, &mut changes, options, progress, cancel).map(Finished::Revision)
            }
            Target::Transaction(transaction) => {
                let about = transaction.about().clone();
                transaction.keep()?;
                Ok(Finished::Transaction { transaction: about })
            }
        }
    }
}

/// Publishes one source as one revision, or adds it to the open transaction.
///
/// 1. the head is verified: nothing is compressed for a repository that cannot be published;
/// 2. the source is opened; it may look at the tree that its changes apply to;
/// 3. if limits are enforced, the changes are made without content and without effect, to see what they exceed;
/// 4. content is stored, changes are recorded;
/// 5. the change set is committed or kept.
///
/// # Errors
/// After any error repository and transaction are as they were, but for objects that nothing refers to yet.
pub fn publish<S: ChangeSource>(
    publisher: &Publisher,
    open_source: impl FnOnce(Tree) -> Result<S>,
    options: &Options,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Outcome> {
    let start = Instant::now();
    let Options { destination, commit: commit_options, .. } = options;
    let publisher = &publisher.for_operation();
    let mut draft = Draft::begin(publisher, *destination, commit_options.now, commit_options.patience, cancel)?;
    let mut source = open_source(draft.tree()?)?;
    if publisher.config.nesting.enforce_limits {
        survey::survey(&mut draft, &source, options, cancel)?;
    }

    progress.phase("content", Unit::Bytes, options.total_bytes);
    let known = if options.use_index { publisher.known_content_if_usable() } else { None };
    let (store, changes) = (&*publisher.store, draft.changes());
    let content = pipeline::run(&mut source, store, changes, known.as_ref(), &options.pipeline, progress, cancel)?;
    drop(known);
    options.catalogs.iter().try_for_each(|path| changes.want_catalog(path))?;
    let mut warnings = source.take_warnings();
    drop(source);
    let stored = Instant::now();

    let mut finished = draft.finish(None, commit_options, progress, cancel)?;
    if let Finished::Revision(commit) = &mut finished {
        warnings.append(&mut commit.warnings);
    }
    let seconds = Seconds {
        content: (stored - start).as_secs_f64(),
        commit: stored.elapsed().as_secs_f64(),
        total: start.elapsed().as_secs_f64(),
    };
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let megabytes_per_second = content.bytes_read as f64 / 1e6 / seconds.total.max(1e-9);
    Ok(Outcome { finished, content, warnings, seconds, megabytes_per_second })
}
