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

mod apply;
mod finish;
mod lock;
mod prepare;
mod revision;
mod totals;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::changeset::ChangeSet;
use crate::clock::UnixSeconds;
use crate::compression::{Compression, Compressor, Effort};
use crate::entry::{EntryKind, FileContent, FileObjects};
use crate::error::{Error, IoContext as _, Result};
use crate::hash::{ContentHash, ObjectId, ObjectKind};
use crate::history::{History, TagName};
use crate::path::{RepoPath, RepositoryName};
use crate::progress::{Cancel, Progress, Unit};
use crate::repository::{Repository, Selector};
use crate::server::{PublisherKeys, RepositoryConfig, ServerRoot};
use crate::storage::{LocalStore, ReadStore, WriteStore};
use crate::tree::Tree;

pub use apply::Entries;
pub use lock::PublishLock;
pub use revision::{NewRoot, store_stock};

/// Everything that changing one repository takes.
#[derive(Debug)]
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
    /// Directories that become nested catalogs unless they are.
    pub catalogs: Vec<RepoPath>,
    /// A name for the revision.
    pub tag: Option<TagName>,
    /// Description of that tag.
    pub message: String,
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
            catalogs: Vec::new(),
            tag: None,
            message: String::new(),
            effort: Effort::default(),
            threads: 0,
            patience: Duration::from_secs(600),
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
    pub warnings: Vec<String>,
}

impl Publisher {
    /// Opens a configured repository for changes.
    pub fn open(root: &ServerRoot, name: &RepositoryName) -> Result<Self> {
        let config = RepositoryConfig::load(root, name)?;
        let store = Arc::new(LocalStore::open(&config.storage)?);
        Ok(Self { keys: PublisherKeys::load(root, name)?, config, store })
    }

    /// The storage for reading.
    pub fn read_store(&self) -> Arc<dyn ReadStore> {
        Arc::clone(&self.store) as Arc<dyn ReadStore>
    }

    /// A directory for databases under construction.
    pub fn scratch(&self) -> Result<PathBuf> {
        let directory = self.config.spool.join("tmp");
        fs::create_dir_all(&directory).at(&directory)?;
        Ok(directory)
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
        // 1. From here on nobody else changes the head.
        let _lock = PublishLock::acquire(&self.config.spool, options.patience, cancel)?;
        let head = self.head(options.now)?;
        let mut tree = head.tree(&Selector::Head)?;
        let scratch = self.scratch()?;
        progress.phase("commit", Unit::Catalogs, None);

        // 2. What the head lacks of what the change set was made for.
        if head.manifest().root_catalog != changes.base()? {
            let mut base = Tree::new(self.read_store(), changes.base()?, &scratch);
            prepare::check_conflicts(changes, &mut base, &mut tree)
                .map_err(|error| explain_missing_base(error, changes))?;
        }
        prepare::resolve_links(changes, &mut tree)?;
        let empty_file = self.store_empty_file(options.effort)?;
        prepare::add_markers(changes, &mut tree, &options.catalogs, &empty_file, options.now)?;
        self.check_tag(&head, options)?;

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
            empty_file: &empty_file,
        };
        let applied = apply::apply(context, head.manifest().root_catalog)?;
        cancel.check()?;

        // 4. The revision.
        let Some(root) = &applied.root else {
            return Ok(outcome(false, head.manifest().revision, head.manifest().root_catalog, None, &applied));
        };
        let root = NewRoot { hash: root.nested.hash, size: root.size, revision: root.revision, now: options.now };
        let mut tag = None;
        let manifest =
            self.publish_root(Some(head.manifest()), &root, head.manifest().metainfo_object(), |history| {
                tag = self.edit_tags(history, &root, options)?;
                Ok(())
            })?;
        Ok(outcome(true, manifest.revision, manifest.root_catalog, tag, &applied))
    }

    /// A tag that exists must be noticed before anything is written.
    fn check_tag(&self, head: &Repository, options: &Options) -> Result<()> {
        match &options.tag {
            Some(tag) if head.tags()?.iter().any(|existing| existing.name == tag.as_str()) => {
                Err(Error::conflict(format!("tag {tag}"), "it exists already"))
            }
            _ => Ok(()),
        }
    }

    /// Moves `trunk`, drops automatic tags that are too old, and names the revision.
    fn edit_tags(&self, history: &mut History, root: &NewRoot, options: &Options) -> Result<Option<String>> {
        if let Some(days) = self.config.auto_tag_days {
            let oldest = options.now.0 - i64::from(days) * 86_400;
            for tag in history.tags()? {
                let is_automatic = tag.name.parse::<TagName>().is_ok_and(|name| name.is_automatic());
                if is_automatic && tag.timestamp.0 < oldest {
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
            Compression::Zlib => Compressor::new(effort).compress(b""),
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
        Error::NotFound { what } => {
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
