//! Writing the catalogs of a repository anew: one change of all rows becomes one revision.
//!
//! ```text
//! head ─► every catalog, children before parents, in parallel ─► lock ─► head? ─► root catalog published
//!                                                                          └─ another one: what is new there, again
//! ```
//!
//! The work is done without the lock. What a catalog became is kept by its hash, so the pass under the lock opens only
//! catalogs that others published meanwhile. A catalog in which nothing changes keeps its hash.
//!
//! Source: `cvmfs/swissknife_migrate.cc`.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::finish::Storer;
use super::totals::Totals;
use super::{NewRoot, Options, PublishLock, Publisher, check_tag};
use crate::catalog::{Catalog, Counters, Finish, Legacy, Migrated, Nested, RootEntry, WritableCatalog};
use crate::entry::{Entry, Mtime};
use crate::error::{Error, Result};
use crate::hash::ContentHash;
use crate::idmap::IdMap;
use crate::parallel;
use crate::path::RepoPath;
use crate::progress::{Cancel, Progress, Unit};
use crate::repository::Repository;
use crate::storage::ReadStore;
use crate::xattr::Xattrs;

/// What is changed in every catalog.
#[derive(Debug, Clone)]
pub enum Rewrite {
    /// Brings catalogs of older schemas to the newest one.
    Migrate {
        /// Owner and group of entries in catalogs that are too old to know any.
        owner: (u32, u32),
    },
    /// Maps owners and groups.
    Owners {
        /// What becomes of owners.
        users: IdMap,
        /// What becomes of groups.
        groups: IdMap,
    },
    /// Makes files of their own of all names of hard links.
    SeparateHardLinks,
    /// Forgets the objects of whole files for those that have chunks.
    DropBulkHashes,
    /// Counts again, in the catalogs at some places and those above.
    Recount(BTreeSet<RepoPath>),
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rewritten {
    /// Whether there is a new revision.
    pub changed: bool,
    /// The revision of the head.
    pub revision: u64,
    /// The root catalog of the head.
    pub root_hash: String,
    /// The tag that was set.
    pub tag: Option<String>,
    /// Catalogs that were looked at.
    pub catalogs: u64,
    /// Those of them that were written anew, also because one below them was.
    pub catalogs_written: u64,
    /// Their stored bytes.
    pub catalog_bytes: u64,
    /// Entries that changed; of catalogs that were migrated, all.
    pub entries: u64,
    /// What the operator should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Rewrite {
    /// Whether anything can change in the catalog at `mount` or below.
    fn concerns(&self, mount: &RepoPath) -> bool {
        match self {
            Self::Recount(places) => places.iter().any(|place| place.starts_with(mount)),
            _ => true,
        }
    }
}

impl Publisher {
    /// Writes the catalogs of the newest revision anew and publishes the result, or finds that nothing would change.
    ///
    /// Memory grows with catalogs, not with entries; on disk are as many catalogs as there are threads, twice.
    ///
    /// # Errors
    /// `Conflict` if a transaction is open, a branch is checked out, or the lock is taken for too long; `Unsupported` for
    /// a catalog that has to be migrated first. In every case the head is either the old revision or the new one.
    pub fn rewrite(
        &self,
        what: &Rewrite,
        options: &Options,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Rewritten> {
        self.for_operation().rewrite_once(what, options, progress, cancel)
    }

    fn rewrite_once(
        &self,
        what: &Rewrite,
        options: &Options,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Rewritten> {
        self.refuse_rewrite(what)?;
        let work = Work::new(self, what, options, progress, cancel)?;

        // 1. Without the lock; the change set tells collectors of garbage that somebody is at work.
        let _begun = self.begin(options.now)?;
        let head = self.head(options.now)?;
        check_tag(&head, head.manifest().root_catalog, options)?;
        work.walk(&head)?;

        // 2. With it, what others published meanwhile, and the revision.
        let _lock = PublishLock::acquire(&self.config.spool, options.patience, cancel)?;
        self.refuse_rewrite(what)?;
        self.rebasing(|| {
            let head = self.head(options.now)?;
            check_tag(&head, head.manifest().root_catalog, options)?;
            let done = work.walk(&head)?;
            self.publish_rewritten(&head, &done, options, work.warnings())
        })
    }

    fn publish_rewritten(
        &self,
        head: &Repository,
        done: &Done,
        options: &Options,
        warnings: Vec<String>,
    ) -> Result<Rewritten> {
        let manifest = head.manifest();
        let outcome = |revision, root: ContentHash, tag| Rewritten {
            changed: done.written.is_some(),
            revision,
            root_hash: root.to_string(),
            tag,
            catalogs: done.tally.catalogs,
            catalogs_written: done.tally.written,
            catalog_bytes: done.tally.bytes,
            entries: done.tally.entries,
            warnings,
        };
        let Some(written) = &done.written else {
            let tag = self.tag_head(head, options)?;
            return Ok(outcome(manifest.revision, manifest.root_catalog, tag));
        };
        let size = written.nested.size.unwrap_or_default();
        let root = NewRoot { hash: written.nested.hash, size, revision: manifest.revision + 1, modified: options.now };
        let mut tag = None;
        self.publish_root(Some(manifest), &root, options.now, manifest.metainfo_object(), |history| {
            tag = self.edit_tags(history, &root, options)?;
            Ok(())
        })?;
        Ok(outcome(root.revision, root.hash, tag))
    }

    fn refuse_rewrite(&self, what: &Rewrite) -> Result<()> {
        self.refuse_checkout("its catalogs cannot be written anew now")?;
        match self.transaction()? {
            // Counters are nobody's change.
            Some(_) if matches!(what, Rewrite::Recount(_)) => Ok(()),
            Some(about) => Err(Error::conflict(
                format!("repository {}", self.config.name),
                format!("a transaction of {} is open; publish or abort it first", about.opened_by),
            )),
            None => Ok(()),
        }
    }
}

/// What a catalog became, with all below it.
#[derive(Debug, Clone)]
struct Done {
    /// `None` if it stays.
    written: Option<Written>,
    /// Bytes of its database now.
    size: u64,
    /// Counters of the tree from it down.
    total: Counters,
    tally: Tally,
}

/// A catalog that was written anew.
#[derive(Debug, Clone)]
struct Written {
    nested: Nested,
    /// What the mountpoint above has to say, if the catalog did not know before.
    root: Option<RootEntry>,
}

/// Sums over a tree.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    catalogs: u64,
    written: u64,
    bytes: u64,
    entries: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.catalogs += other.catalogs;
        self.written += other.written;
        self.bytes += other.bytes;
        self.entries += other.entries;
    }
}

/// A catalog whose nested catalogs are not all done.
struct Node {
    nested: Nested,
    parent: Option<Arc<Self>>,
    /// Nested catalogs to come.
    waiting: AtomicUsize,
    below: Mutex<Below>,
}

/// What the catalogs below one came to.
#[derive(Default)]
struct Below {
    total: Counters,
    tally: Tally,
    written: Vec<Written>,
    /// Catalogs that stay, and that are registered without their size.
    sized: Vec<Nested>,
}

enum Job {
    /// A catalog whose nested catalogs are not known yet.
    Enter(Arc<Node>),
    /// One whose nested catalogs are done.
    Leave(Arc<Node>),
}

/// The work on the catalogs of one or more heads.
struct Work<'a> {
    what: &'a Rewrite,
    options: &'a Options,
    store: Arc<dyn ReadStore>,
    scratch: PathBuf,
    storer: Storer,
    pool: rayon::ThreadPool,
    legacy: Option<Legacy>,
    totals: Mutex<Totals>,
    /// By hash and, for root catalogs, the revision that they are to become.
    done: Mutex<HashMap<(ContentHash, Option<u64>), Done>>,
    warnings: Mutex<Vec<String>>,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

impl<'a> Work<'a> {
    fn new(
        publisher: &Publisher,
        what: &'a Rewrite,
        options: &'a Options,
        progress: &'a dyn Progress,
        cancel: &'a Cancel,
    ) -> Result<Self> {
        let legacy = match what {
            Rewrite::Migrate { owner } => Some(Legacy {
                owner: *owner,
                marker: Entry {
                    kind: publisher.store_empty_file(options.effort)?,
                    permissions: 0o644,
                    uid: owner.0,
                    gid: owner.1,
                    mtime: Mtime::seconds(options.now.0),
                    xattrs: Xattrs::new(),
                    hidden: false,
                },
            }),
            _ => None,
        };
        Ok(Self {
            what,
            options,
            store: publisher.read_store(),
            scratch: publisher.scratch()?,
            storer: Storer::new(Arc::clone(&publisher.store), publisher.config.algorithm, options.effort),
            pool: parallel::pool(options.threads)?,
            legacy,
            totals: Mutex::new(Totals::open(&publisher.config.spool)),
            done: Mutex::default(),
            warnings: Mutex::default(),
            progress,
            cancel,
        })
    }

    fn warnings(&self) -> Vec<String> {
        lock(&self.warnings).clone()
    }

    /// Writes the catalogs of a head anew, as far as they are not known from another one.
    fn walk(&self, head: &Repository) -> Result<Done> {
        self.progress.phase("catalogs", Unit::Catalogs, None);
        let manifest = head.manifest();
        let nested = Nested { path: RepoPath::root(), hash: manifest.root_catalog, size: None };
        let revision = manifest.revision + 1;
        let root = node(nested, None);
        let result = Mutex::new(None);
        parallel::work_off(&self.pool, [Job::Enter(root)], |job, more| {
            self.cancel.check()?;
            let (node, done) = match job {
                Job::Enter(node) => match self.enter(&node, revision, more)? {
                    Some(done) => (node, done),
                    None => return Ok(()),
                },
                Job::Leave(node) => {
                    let catalog = Catalog::fetch(&*self.store, node.nested.hash, &self.scratch)?;
                    let done = self.leave(&node, &catalog, revision)?;
                    (node, done)
                }
            };
            lock(&self.done).insert(key(&node, revision), done.clone());
            self.progress.advance(1);
            match &node.parent {
                None => *lock(&result) = Some(done),
                Some(parent) => {
                    parent.take_over(&node.nested, done);
                    if parent.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
                        more.push(Job::Leave(Arc::clone(parent)));
                    }
                }
            }
            Ok(())
        })?;
        let done = result.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.ok_or_else(|| Error::malformed("root catalog", "the walk did not come back to it"))
    }

    /// Looks which catalogs are below one; works on it if there are none.
    fn enter(&self, node: &Arc<Node>, revision: u64, more: &mut Vec<Job>) -> Result<Option<Done>> {
        if let Some(done) = lock(&self.done).get(&key(node, revision)) {
            return Ok(Some(done.clone()));
        }
        let catalog = Catalog::fetch(&*self.store, node.nested.hash, &self.scratch)?;
        let mut concerned = Vec::new();
        for nested in catalog.nested()? {
            let Nested { path, hash, .. } = &nested;
            let mount = &node.nested.path;
            let wrong = |reason: String| Err(Error::malformed(format!("catalog of {mount}"), reason));
            if path == mount || !path.starts_with(mount) {
                return wrong(format!("a nested catalog at {path} cannot be below it"));
            } else if hash.is_null() {
                return wrong(format!("nested catalog {path} has no hash, so nothing leads to it"));
            } else if self.what.concerns(path) {
                concerned.push(nested);
            } else {
                let total = lock(&self.totals).of(&*self.store, *hash, &self.scratch)?;
                lock(&node.below).total += total;
            }
        }
        if concerned.is_empty() {
            return self.leave(node, &catalog, revision).map(Some);
        }
        node.waiting.store(concerned.len(), Ordering::Release);
        more.extend(concerned.into_iter().map(|nested| Job::Enter(self::node(nested, Some(Arc::clone(node))))));
        Ok(None)
    }

    /// Works on a catalog after all below it.
    fn leave(&self, node: &Node, catalog: &Catalog, revision: u64) -> Result<Done> {
        let Below { total: subtree, mut tally, written, sized } = std::mem::take(&mut *lock(&node.below));
        let mount = &node.nested.path;
        tally.catalogs += 1;
        let stays = |catalog: &Catalog, tally| {
            let (size, total) = (catalog.file_size()?, catalog.statistics()?.own + subtree);
            Ok(Done { written: None, size, total, tally })
        };
        let mut root = None;
        let (mut catalog, entries) = match (self.what, &self.legacy) {
            (Rewrite::Migrate { .. }, Some(legacy)) if !catalog.is_newest()? => {
                let Migrated { catalog: new, warnings } = catalog.migrate(mount, legacy, &self.scratch)?;
                lock(&self.warnings).extend(warnings);
                if !catalog.has_link_counts() {
                    root = new.root_entry()?;
                }
                let entries = new.count_rows()?;
                (new, entries)
            }
            (Rewrite::Migrate { .. }, _) if written.is_empty() => return stays(catalog, tally),
            _ => {
                let mut new = WritableCatalog::copy_of(catalog, mount.clone(), &self.scratch)?;
                let entries = self.sweep(&mut new)?;
                if !new.is_changed() && written.is_empty() {
                    return stays(catalog, tally);
                }
                (new, entries)
            }
        };
        for Written { nested, root } in &written {
            catalog.set_nested(nested)?;
            if let Some(root) = root {
                catalog.follow_root(&nested.path, root)?;
            }
        }
        for nested in &sized {
            catalog.note_size(nested)?;
        }
        let revision = mount.is_root().then_some(revision);
        let finish = Finish { now: self.options.now, previous: node.nested.hash, subtree, revision };
        let stored = self.storer.store(mount.clone(), catalog.finish(&finish)?)?;
        lock(&self.totals).remember(stored.nested.hash, stored.total);
        tally.add(Tally { catalogs: 0, written: 1, bytes: stored.stored_size, entries });
        let written = Some(Written { nested: stored.nested, root });
        Ok(Done { written, size: stored.size, total: stored.total, tally })
    }

    /// Changes the rows of one catalog; returns how many.
    fn sweep(&self, catalog: &mut WritableCatalog) -> Result<u64> {
        match self.what {
            Rewrite::Migrate { .. } => Ok(0),
            Rewrite::Owners { users, groups } => catalog.map_owners(users, groups),
            Rewrite::SeparateHardLinks => catalog.separate_hard_links(),
            Rewrite::DropBulkHashes => catalog.drop_bulk_hashes(),
            Rewrite::Recount(_) => {
                catalog.touch();
                Ok(0)
            }
        }
    }
}

impl Node {
    fn take_over(&self, nested: &Nested, done: Done) {
        let mut below = lock(&self.below);
        if done.written.is_none() && nested.size.is_none() {
            below.sized.push(Nested { size: Some(done.size), ..nested.clone() });
        }
        below.total += done.total;
        below.tally.add(done.tally);
        below.written.extend(done.written);
    }
}

fn node(nested: Nested, parent: Option<Arc<Node>>) -> Arc<Node> {
    Arc::new(Node { nested, parent, waiting: AtomicUsize::new(0), below: Mutex::default() })
}

fn key(node: &Node, revision: u64) -> (ContentHash, Option<u64>) {
    (node.nested.hash, node.parent.is_none().then_some(revision))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
