//! Commit: a change set becomes the next revision of a repository.
//!
//! ```text
//! lock ─► head ─► conflicts? ─► links, markers ─► apply to catalogs ─► store catalogs ─► publish the root
//!                                               (children before parents)   (tags, reflog, manifest last)
//! ```
//!
//! The lock is held from here on only: reading, compressing and storing of file data is done by then. A change set is
//! applied to the head of the moment; what another publisher changed since its maker looked is a conflict only where
//! both touch the same path.

mod activity;
mod apply;
mod balance;
mod entries;
mod finish;
mod journal;
mod lock;
mod metainfo;
mod past;
mod prepare;
mod rehearsal;
mod revision;
mod rewrite;
mod statistics;
mod totals;
mod transaction;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::changeset::{self, ChangeSet};
use crate::clock::UnixSeconds;
use crate::compression::{Compression, Compressor, Effort};
use crate::entry::{EntryKind, FileContent, FileObjects};
use crate::error::{Error, IoContext as _, Result};
use crate::hash::{ContentHash, ObjectId, ObjectKind};
use crate::history::{History, TagName};
use crate::known::{self, KnownContent};
use crate::path::RepositoryName;
use crate::progress::{Cancel, Progress, Unit};
use crate::repository::{Repository, Selector};
use crate::server::{PublisherKeys, RepositoryConfig, ServerRoot};
use crate::storage::{ReadStore, WriteStore, remove_old_files};
use crate::tree::Tree;

pub use activity::Activity;
pub use entries::{Entries, Tally};
pub use journal::OpenChangeSet;
pub use lock::PublishLock;
pub(crate) use lock::refuse_foreign_transaction;
pub use metainfo::Replace;
pub use past::{Checkout, RolledBack, rollback_target};
pub use rehearsal::Rehearsal;
pub use revision::{NewRoot, store_stock};
pub use rewrite::{Rewrite, Rewritten};
pub use transaction::{About, Transaction};

/// Age in seconds from which files of a run that left no other trace are taken for abandoned: two days.
const ABANDONED_SECONDS: i64 = 2 * 86_400;

/// How often something is applied to a new head because other machines publish at the same time.
const MAX_REBASES: u32 = 50;

/// Everything that changing one repository takes.
#[derive(Debug, Clone)]
pub struct Publisher {
    /// The repository's configuration.
    pub config: RepositoryConfig,
    /// Its keys.
    pub keys: PublisherKeys,
    /// Its storage.
    pub store: Arc<dyn WriteStore>,
}

/// Choices for a commit.
#[derive(Debug, Clone)]
pub struct Options {
    /// The time of the revision.
    pub now: UnixSeconds,
    /// When the work on it began.
    pub started: Instant,
    /// A name for the revision.
    pub tag: Option<TagName>,
    /// Description of that tag.
    pub message: String,
    /// The number of the revision, larger than that of the head; `None` for the next.
    pub revision: Option<u64>,
    /// How hard catalogs are compressed.
    pub effort: Effort,
    /// Threads that store catalogs; 0 for one a core.
    pub threads: usize,
    /// How long to wait for another publisher.
    pub patience: Duration,
}

impl Options {
    /// A commit at `now` without tag.
    pub fn new(now: UnixSeconds) -> Self {
        Self {
            now,
            started: Instant::now(),
            tag: None,
            message: String::new(),
            revision: None,
            effort: Effort::default(),
            threads: 0,
            patience: Duration::from_mins(10),
        }
    }
}

/// What became of a commit.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Outcome {
    /// Whether there is a new revision; if not, the tree was as the changes want it.
    pub changed: bool,
    /// The revision of the head.
    pub revision: u64,
    /// The root catalog of the head.
    pub root_hash: String,
    /// The tag that was set.
    pub tag: Option<String>,
    /// Catalogs that were stored.
    pub catalogs: u64,
    /// Their stored bytes.
    pub catalog_bytes: u64,
    /// Entries added, changed and removed.
    pub entries: Entries,
    /// What the operator should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Publisher {
    /// Opens a configured repository for changes.
    pub fn open(root: &ServerRoot, name: &RepositoryName) -> Result<Self> {
        let config = RepositoryConfig::load(root, name)?;
        let store = config.storage.open()?;
        Ok(Self { keys: PublisherKeys::load(root, name)?, config, store })
    }

    /// The same publisher for one operation: what the storage could not take for others is not its business.
    ///
    /// Whoever keeps a publisher for long takes one of these for each change set, from the first object to the commit;
    /// those of [`publication`](crate::publication) and all that needs one call only are so by themselves.
    #[must_use]
    pub fn for_operation(&self) -> Self {
        Self { store: self.store.for_operation().unwrap_or_else(|| Arc::clone(&self.store)), ..self.clone() }
    }

    /// The storage for reading.
    pub fn read_store(&self) -> Arc<dyn ReadStore> {
        Arc::clone(&self.store) as Arc<dyn ReadStore>
    }

    /// A publisher on top of this one that changes nothing, to see what would happen.
    pub fn rehearsal(&self, now: UnixSeconds) -> Result<Rehearsal> {
        Rehearsal::of(self, now)
    }

    /// A directory for databases under construction.
    pub fn scratch(&self) -> Result<PathBuf> {
        let directory = self.config.spool.join("tmp");
        fs::create_dir_all(&directory).at(&directory)?;
        Ok(directory)
    }

    /// Creates an empty change set for the head (or for what is checked out) in a file that goes away with the value.
    ///
    /// # Errors
    /// Those of [`head`](Self::head): nothing is compressed for a repository that cannot be published.
    pub fn begin(&self, now: UnixSeconds) -> Result<OpenChangeSet> {
        let head = self.head(now)?;
        self.remove_abandoned(now)?;
        OpenChangeSet::create(&self.journals(), self.base(&head)?.0.root())
    }

    /// Opens the known-content index of the repository.
    pub fn known_content(&self) -> Result<KnownContent> {
        KnownContent::open(&self.config.spool.join("known-content.db"), known::DEFAULT_CAPACITY)
    }

    /// The same for who can do without it: `None` if it cannot be opened.
    pub fn known_content_if_usable(&self) -> Option<KnownContent> {
        let warn = |error: &_| tracing::warn!(%error, "going on without the known-content index");
        self.known_content().inspect_err(warn).ok()
    }

    /// Where change sets are that are being made.
    pub(crate) fn journals(&self) -> PathBuf {
        changeset::journals(&self.config.spool)
    }

    /// Removes what runs that were killed left behind, once it is old enough that nobody can be using it.
    fn remove_abandoned(&self, now: UnixSeconds) -> Result<()> {
        let before = UnixSeconds(now.0 - ABANDONED_SECONDS);
        let removed = self.store.remove_abandoned(before)?
            + remove_old_files(&self.journals(), before)?
            + remove_old_files(&changeset::layers(&self.config.spool), before)?
            + remove_old_files(&self.scratch()?, before)?;
        if removed > 0 {
            tracing::info!(removed, "removed files of runs that were killed");
        }
        Ok(())
    }

    /// Reads and verifies the head.
    ///
    /// # Errors
    /// Also `Untrusted` if our certificate is not on the whitelist: nobody would believe what we sign.
    pub fn head(&self, now: UnixSeconds) -> Result<Repository> {
        let repository =
            Repository::open(self.read_store(), &self.config.name, &self.keys.master, now, &self.scratch()?)?;
        repository.whitelist().check_certificate(&self.keys.certificate)?;
        Ok(repository)
    }

    /// Applies a change set to the head and publishes the result, or finds that nothing would change.
    ///
    /// # Errors
    /// `Conflict` if the lock is taken for too long or another commit touched the same paths; `InvalidInput` if a
    /// change makes no sense in the tree. In every case the head is either the old revision or the new one, complete.
    pub fn commit(
        &self,
        changes: &mut ChangeSet,
        options: &Options,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Outcome> {
        self.commit_after(None, changes, options, progress, cancel)
    }

    /// The same, after the tree that the changes are for was looked at: what was fetched of it is not fetched again.
    pub(crate) fn commit_after(
        &self,
        looked_at: Option<&Tree>,
        changes: &mut ChangeSet,
        options: &Options,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Outcome> {
        // 1. From here on nobody else on this machine changes the head.
        let _lock = PublishLock::acquire(&self.config.spool, options.patience, cancel)?;
        let once = |changes: &mut ChangeSet| self.commit_once(looked_at, changes, options, progress, cancel);
        if !self.store.is_shared() {
            return once(changes);
        }
        // What is prepared for one head is not for the next.
        self.rebasing(|| changes.undo_after(once))
    }

    /// Does something with the head, and again with the next one if another machine was faster.
    ///
    /// # Errors
    /// `Conflict` if that goes on for too long.
    fn rebasing<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        for _ in 0..MAX_REBASES {
            match work() {
                Err(Error::Superseded { what }) => tracing::info!(what, "another machine published; once more"),
                result => return result,
            }
        }
        let reason = "other machines publish so often that there is no getting in between; run again";
        Err(Error::conflict(format!("repository {}", self.config.name), reason))
    }

    fn commit_once(
        &self,
        looked_at: Option<&Tree>,
        changes: &mut ChangeSet,
        options: &Options,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Outcome> {
        let head = self.head(options.now)?;
        let (mut tree, checkout) = self.base(&head)?;
        let base = tree.root();
        if let Some(same) = looked_at.filter(|looked_at| looked_at.root() == base) {
            tree = same.clone();
        }
        let scratch = self.scratch()?;
        progress.phase("commit", Unit::Catalogs, None);

        // 2. What the head lacks of what the change set was made for.
        changes.set_origin(None)?;
        if base != changes.base()? {
            let mut base = Tree::new(self.read_store(), changes.base()?, &scratch);
            prepare::check_conflicts(changes, &mut base, &mut tree)
                .map_err(|error| explain_missing_base(error, changes))?;
        }
        for root in changes.needed_revisions()? {
            if self.store.size(&ObjectId::catalog(root).into())?.is_none() {
                let reason = format!("the revision of root catalog {root}, which it copies from, was collected");
                return Err(Error::conflict(format!("{changes:?}"), reason));
            }
        }
        prepare::resolve_links(changes, &mut tree)?;
        let empty_file = self.store_empty_file(options.effort)?;
        prepare::add_markers(changes, &mut tree, &empty_file, options.now)?;
        check_tag(&head, base, options)?;
        match &checkout {
            Some(checkout) => drop(past::branch_tag(checkout, options)?),
            None => check_revision(options, head.manifest().revision)?,
        }

        // 3. The tree: catalogs are stored as the pass leaves them.
        let finisher =
            finish::Finisher::new(Arc::clone(&self.store), self.config.algorithm, options.effort, options.threads)?;
        let mut totals = totals::Totals::open(&self.config.spool);
        let context = apply::Context {
            store: &*self.store,
            scratch: &scratch,
            finisher: &finisher,
            totals: &mut totals,
            changes,
            nesting: &self.config.nesting,
            algorithm: self.config.algorithm,
            now: options.now,
            ttl: self.config.ttl,
            revision: options.revision,
            empty_file: &empty_file,
        };
        let applied = apply::apply(context, &mut tree)?;
        cancel.check()?;

        // 4. The revision.
        if let Some(checkout) = &checkout {
            return self.commit_to_branch(&head, checkout, &applied, options);
        }
        let metainfo = head.manifest().metainfo_object();
        let Some(root) = &applied.root else {
            let tag = self.tag_head(&head, options)?;
            return Ok(outcome(false, head.manifest().revision, head.manifest().root_catalog, tag, &applied));
        };
        if root.revision <= head.manifest().revision {
            return Err(revision_taken(root.revision, head.manifest().revision));
        }
        let root = NewRoot::of(root, options.now);
        let mut tag = None;
        let manifest = self.publish_root(Some(head.manifest()), &root, options.now, metainfo, |history| {
            tag = self.edit_tags(history, &root, options)?;
            Ok(())
        })?;
        let mut outcome = outcome(true, manifest.revision, manifest.root_catalog, tag, &applied);
        let file = &self.config.statistics;
        let recorded = changes.stored().and_then(|stored| statistics::record(file, options, &outcome, stored));
        // The revision is out: nothing may fail any more.
        outcome.warnings.extend(recorded.err().map(|error| format!("no row in the statistics database: {error}")));
        outcome.warnings.extend(head.whitelist().warning(options.now));
        Ok(outcome)
    }

    /// The last step of a commit while a branch is checked out. A revision without change only gets another name.
    fn commit_to_branch(
        &self,
        head: &Repository,
        checkout: &Checkout,
        applied: &apply::Applied,
        options: &Options,
    ) -> Result<Outcome> {
        let root = match &applied.root {
            Some(root) => NewRoot::of(root, options.now),
            None => head.revision(&Selector::Root(checkout.root()?))?.into(),
        };
        let tag = self.publish_branch(head, checkout, &root, options)?;
        Ok(outcome(applied.root.is_some(), root.revision, root.hash, Some(tag), applied))
    }

    /// Gives the unchanged head the name that was asked for, unless it has it.
    fn tag_head(&self, head: &Repository, options: &Options) -> Result<Option<String>> {
        let Some(name) = options.tag.as_ref().map(ToString::to_string) else { return Ok(None) };
        if head.tags()?.iter().any(|tag| tag.name == name) {
            return Ok(Some(name));
        }
        let manifest = head.manifest();
        let root = NewRoot::from(head.revision(&Selector::Head)?);
        self.publish_root(Some(manifest), &root, options.now, manifest.metainfo_object(), |history| {
            history.add(&root.tag(name.clone(), options.message.clone()))
        })?;
        Ok(Some(name))
    }

    /// Moves `trunk`, drops automatic tags that are too old, and names the revision.
    fn edit_tags(&self, history: &mut History, root: &NewRoot, options: &Options) -> Result<Option<String>> {
        if let Some(days) = self.config.auto_tag_days {
            let oldest = options.now.0 - i64::from(days) * 86_400;
            for tag in history.tags()? {
                let is_automatic = tag.name.parse::<TagName>().is_ok_and(|name| name.is_automatic());
                if is_automatic && tag.branch.is_empty() && tag.timestamp.0 < oldest {
                    history.remove(&tag.name)?;
                }
            }
        }
        let name = match &options.tag {
            Some(tag) => Some(tag.to_string()),
            None if self.config.auto_tag => Some(free_automatic_name(history, options.now)?),
            None => None,
        };
        if let Some(name) = &name {
            history.add(&root.tag(name.clone(), options.message.clone()))?;
        }
        history.advance_trunk(&root.tag(String::new(), String::new()))?;
        Ok(name)
    }

    /// Stores the object of an empty file and returns what an entry for it says.
    fn store_empty_file(&self, effort: Effort) -> Result<EntryKind> {
        let stored = match self.config.compression {
            Compression::Zlib => Compressor::new(effort).compress(b"").to_vec(),
            Compression::None => Vec::new(),
        };
        let id = ObjectId::of(self.config.algorithm, ObjectKind::File, &stored);
        self.store.put(&id, &stored)?;
        Ok(EntryKind::File(FileContent {
            size: 0,
            compression: self.config.compression,
            objects: FileObjects::Whole(id.hash),
            external: false,
            direct_io: false,
        }))
    }
}

/// A tag that exists must be noticed before anything is written. One that names the base may: the tree may turn out to
/// be unchanged, and a repeated run is no error.
fn check_tag(head: &Repository, base: ContentHash, options: &Options) -> Result<()> {
    let Some(wanted) = &options.tag else { return Ok(()) };
    match head.tags()?.into_iter().find(|tag| tag.name == wanted.as_str()) {
        Some(tag) if tag.root != base => {
            Err(Error::conflict(format!("tag {wanted}"), format!("it exists already, for revision {}", tag.revision)))
        }
        _ => Ok(()),
    }
}

/// A number that is taken must be noticed before anything is written. That of the head may be asked for: the tree may
/// turn out to be unchanged, and a repeated run is no error.
fn check_revision(options: &Options, head: u64) -> Result<()> {
    match options.revision {
        Some(wanted) if wanted < head => Err(revision_taken(wanted, head)),
        _ => Ok(()),
    }
}

fn revision_taken(wanted: u64, head: u64) -> Error {
    Error::conflict(format!("revision {wanted}"), format!("the repository is at revision {head} already"))
}

fn free_automatic_name(history: &History, now: UnixSeconds) -> Result<String> {
    for number in 0.. {
        let name = TagName::automatic(now, number);
        if history.tag(name.as_str())?.is_none() {
            return Ok(name.to_string());
        }
    }
    unreachable!("one of the names is free")
}

/// A base that a garbage collection has removed cannot be compared with.
fn explain_missing_base(error: Error, changes: &ChangeSet) -> Error {
    match error {
        Error::MissingObject { what } => {
            let reason = format!("the revision that it was made for is gone ({what}); run again");
            Error::conflict(format!("{changes:?}"), reason)
        }
        other => other,
    }
}

fn outcome(changed: bool, revision: u64, root: ContentHash, tag: Option<String>, applied: &apply::Applied) -> Outcome {
    Outcome {
        changed,
        revision,
        root_hash: root.to_string(),
        tag,
        catalogs: applied.catalogs,
        catalog_bytes: applied.catalog_bytes,
        entries: applied.entries,
        warnings: applied.warnings.clone(),
    }
}
