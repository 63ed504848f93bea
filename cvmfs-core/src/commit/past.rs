//! Changing the history: tags edited, an old revision published again, a branch grown beside the trunk.
//!
//! All of it is a new tag database below a newly signed manifest, under the lock, as for every commit: killed at any
//! instant, the old history or the new one is there.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::finish::store_database;
use super::{NewRoot, Options, PublishLock, Publisher};
use crate::catalog::{Catalog, Finish, WritableCatalog};
use crate::clock::UnixSeconds;
use crate::compression::Compressor;
use crate::durable;
use crate::error::{Error, Result, remove_if_there};
use crate::hash::{ContentHash, ObjectId, ObjectKind};
use crate::history::{Branch, History, Tag};
use crate::path::RepoPath;
use crate::progress::Cancel;
use crate::repository::{Repository, Revision, Selector};
use crate::tree::Tree;

/// What the operator checked out: commits go on from there, as a branch. Absent, they go on from the newest revision.
///
/// The file is the reference's: its `publish` goes on from it, too.
///
/// Source: `cvmfs/server/cvmfs_server_checkout.sh`, `cvmfs/publish/repository_util.cc`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Checkout {
    /// The tag.
    pub tag: String,
    /// Its root catalog.
    pub root_hash: String,
    /// The branch that the next commit goes to.
    pub branch: String,
    /// The branch of the tag; empty for the trunk.
    pub previous_branch: String,
}

impl Checkout {
    /// The root catalog that commits go on from.
    pub fn root(&self) -> Result<ContentHash> {
        self.root_hash.parse()
    }

    /// What is checked out according to a spool directory; `None` for the trunk.
    ///
    /// # Errors
    /// `Malformed` if the file that says it cannot be understood.
    pub fn read(spool: &Path) -> Result<Option<Self>> {
        let file = file_in(spool);
        match fs::read_to_string(&file) {
            Ok(text) => match Self::parse(&text) {
                Some(checkout) => Ok(Some(checkout)),
                None => Err(Error::malformed(file.display().to_string(), "expected: tag, root hash, branch")),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(file, error)),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.lines().next()?.split_whitespace().collect();
        let [tag, root_hash, branch, previous_branch] = match words[..] {
            [tag, root_hash, branch] => [tag, root_hash, branch, ""],
            [tag, root_hash, branch, previous_branch] => [tag, root_hash, branch, previous_branch],
            _ => return None,
        }
        .map(str::to_owned);
        root_hash.parse::<ContentHash>().ok()?;
        Some(Self { tag, root_hash, branch, previous_branch })
    }
}

/// What became of a rollback.
#[derive(Debug, Clone)]
pub struct RolledBack {
    /// The revision that was the newest.
    pub before: Revision,
    /// The revision that was published again.
    pub target: Revision,
    /// The newest revision now.
    pub revision: u64,
    /// Its root catalog.
    pub root: ContentHash,
    /// Tags that went, because they named revisions after the target.
    pub removed: Vec<Tag>,
}

impl From<Revision> for NewRoot {
    fn from(revision: Revision) -> Self {
        let Revision { root, size, number, modified } = revision;
        Self { hash: root, size, revision: number, modified }
    }
}

impl Publisher {
    /// Edits the tags of the repository; the tree stays.
    ///
    /// `edit` is called under the lock, and returns `None` if nothing is to be written. It is called again if another
    /// machine was faster.
    ///
    /// # Errors
    /// Those of `edit`, and `Conflict` if the lock is taken for too long or a branch is checked out.
    pub fn edit_history<T>(
        &self,
        now: UnixSeconds,
        patience: Duration,
        cancel: &Cancel,
        mut edit: impl FnMut(&Repository, &mut History) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let _lock = PublishLock::acquire(&self.config.spool, patience, cancel)?;
        self.refuse_checkout("its tags cannot be changed now")?;
        let publisher = self.for_operation();
        self.rebasing(|| {
            let head = publisher.head(now)?;
            let manifest = head.manifest();
            let mut history = publisher.open_history(Some(manifest))?;
            let edited = edit(&head, &mut history)?;
            if edited.is_some() {
                let root = NewRoot::from(head.revision(&Selector::Head)?);
                publisher.publish_history(Some(manifest), &root, now, manifest.metainfo_object(), history)?;
            }
            Ok(edited)
        })
    }

    /// Signs the manifest again: the same revision, with the key and certificate that the repository has now.
    ///
    /// # Errors
    /// `Untrusted` if the whitelist lists one of the two certificates not; `Conflict` if the lock is taken for too long.
    pub fn sign_again(&self, now: UnixSeconds, patience: Duration, cancel: &Cancel) -> Result<()> {
        let _lock = PublishLock::acquire(&self.config.spool, patience, cancel)?;
        let publisher = self.for_operation();
        self.rebasing(|| {
            let head = publisher.head(now)?;
            let manifest = head.manifest();
            let root = NewRoot::from(head.revision(&Selector::Head)?);
            publisher.publish_root(Some(manifest), &root, now, manifest.metainfo_object(), |_| Ok(())).map(drop)
        })
    }

    /// Publishes the tree of an older revision as the newest one.
    ///
    /// `name` is the tag that was meant, if it was one; it moves to the new revision. Tags of revisions in between go.
    ///
    /// # Errors
    /// `InvalidInput` if the target is the newest revision, newer, or on a branch; `Conflict` as for
    /// [`edit_history`](Self::edit_history).
    pub fn roll_back(&self, selector: &Selector, options: &Options, cancel: &Cancel) -> Result<RolledBack> {
        let _lock = PublishLock::acquire(&self.config.spool, options.patience, cancel)?;
        self.refuse_checkout("it cannot be rolled back now")?;
        let publisher = self.for_operation();
        self.rebasing(|| publisher.roll_back_once(selector, options))
    }

    fn roll_back_once(&self, selector: &Selector, options: &Options) -> Result<RolledBack> {
        let head = self.head(options.now)?;
        let (before, target) = (head.revision(&Selector::Head)?, rollback_target(&head, selector)?);
        let root = self.publish_again(target.root, before, options)?;
        let name = match selector {
            Selector::Tag(name) => Some(&name[..]),
            _ => None,
        };
        let mut removed = Vec::new();
        let metainfo = head.manifest().metainfo_object();
        self.publish_root(Some(head.manifest()), &root, options.now, metainfo, |history| {
            removed = history.roll_back(target.number, name, &root.tag(String::new(), String::new()))?;
            history.prune_branches()
        })?;
        Ok(RolledBack { before, target, revision: root.revision, root: root.hash, removed })
    }

    /// Stores a copy of a root catalog that is the successor of `head`.
    fn publish_again(&self, target: ContentHash, head: Revision, options: &Options) -> Result<NewRoot> {
        let (store, scratch) = (self.read_store(), self.scratch()?);
        let subtree = Catalog::fetch(&*store, target, &scratch)?.statistics()?.subtree;
        let catalog = WritableCatalog::fetch(&*store, target, RepoPath::root(), &scratch)?;
        let revision = head.number + 1;
        let finish = Finish { now: options.now, previous: head.root, subtree, revision: Some(revision) };
        let finished = catalog.finish(&finish)?;
        let mut compressor = Compressor::new(options.effort);
        let algorithm = self.config.algorithm;
        let level = options.effort.level;
        let stored =
            store_database(&*self.store, &finished.file, ObjectKind::Catalog, algorithm, &mut compressor, level)?;
        Ok(NewRoot { hash: stored.hash, size: stored.size, revision, modified: options.now })
    }

    /// What is checked out; `None` for the trunk.
    ///
    /// # Errors
    /// `Malformed` if the file that says it cannot be understood.
    pub fn checkout(&self) -> Result<Option<Checkout>> {
        Checkout::read(&self.config.spool)
    }

    /// The tree that commits go on from: what is checked out, or the head.
    ///
    /// # Errors
    /// `Conflict` if the branch that is checked out has a newer revision than that, as after a crash between
    /// publishing it and going back to the trunk.
    pub(super) fn base(&self, head: &Repository) -> Result<(Tree, Option<Checkout>)> {
        let Some(checkout) = self.checkout()? else { return Ok((head.tree(&Selector::Head)?, None)) };
        let root = checkout.root()?;
        let of_branch = head.tags()?.into_iter().filter(|tag| tag.branch == checkout.branch);
        if let Some(newest) = of_branch.max_by_key(|tag| tag.revision).filter(|newest| newest.root != root) {
            let reason = format!("it is at {} now, not at {}; check it out again", newest.name, checkout.tag);
            return Err(Error::conflict(format!("branch {}", checkout.branch), reason));
        }
        Ok((head.tree(&Selector::Root(root))?, Some(checkout)))
    }

    /// Checks something out, or goes back to the trunk.
    ///
    /// # Errors
    /// `Conflict` if the lock is taken for too long.
    pub fn set_checkout(&self, checkout: Option<&Checkout>, patience: Duration, cancel: &Cancel) -> Result<()> {
        let _lock = PublishLock::acquire(&self.config.spool, patience, cancel)?;
        let Some(Checkout { tag, root_hash, branch, previous_branch }) = checkout else {
            return self.end_checkout();
        };
        let line = [tag, root_hash, branch, previous_branch].map(String::as_str).join(" ");
        durable::replace(&self.checkout_file(), format!("{}\n", line.trim_end()).as_bytes())
    }

    /// Publishes a root as the newest revision of the branch that is checked out, and goes back to the trunk, as the
    /// reference does. Returns the name of the revision.
    ///
    /// # Errors
    /// `InvalidInput` without a tag: nothing else would lead to the revision.
    pub(super) fn publish_branch(
        &self,
        head: &Repository,
        checkout: &Checkout,
        root: &NewRoot,
        options: &Options,
    ) -> Result<String> {
        let name = branch_tag(checkout, options)?;
        let manifest = head.manifest();
        self.store.flush()?;
        self.add_to_reflog(Some(manifest), root.hash.algorithm(), options.now, &[ObjectId::catalog(root.hash)])?;
        let trunk = NewRoot::from(head.revision(&Selector::Head)?);
        self.publish_root(Some(manifest), &trunk, options.now, manifest.metainfo_object(), |history| {
            let Checkout { branch, previous_branch, .. } = checkout.clone();
            let parent = Some(previous_branch).filter(|_| !branch.is_empty());
            history.add_branch(&Branch { name: branch.clone(), parent, initial_revision: root.revision })?;
            history.add(&Tag { branch, ..root.tag(name.clone(), options.message.clone()) })
        })?;
        self.end_checkout()?;
        Ok(name)
    }

    fn end_checkout(&self) -> Result<()> {
        remove_if_there(&self.checkout_file())?;
        durable::sync_directory(&self.config.spool)
    }

    fn checkout_file(&self) -> PathBuf {
        file_in(&self.config.spool)
    }

    pub(super) fn refuse_checkout(&self, consequence: &str) -> Result<()> {
        match self.checkout()? {
            Some(Checkout { tag, branch, .. }) => Err(Error::conflict(
                format!("repository {}", self.config.name),
                format!("{tag} is checked out as branch {branch}: {consequence}; go back with `checkout --trunk`"),
            )),
            None => Ok(()),
        }
    }
}

fn file_in(spool: &Path) -> PathBuf {
    spool.join("checkout")
}

/// The name of the next revision of a branch.
pub(super) fn branch_tag(checkout: &Checkout, options: &Options) -> Result<String> {
    let missing = || Error::invalid(format!("branch {}", checkout.branch), "its next revision needs a tag (--tag)");
    options.tag.as_ref().map(ToString::to_string).ok_or_else(missing)
}

/// The revision to go back to.
///
/// # Errors
/// `InvalidInput` if the tree of that revision cannot become the newest one.
pub fn rollback_target(head: &Repository, selector: &Selector) -> Result<Revision> {
    let target = head.revision(selector)?;
    let invalid = |reason: &str| Err(Error::invalid(format!("revision {}", target.number), reason));
    let tags = head.tags()?;
    let names = tags.iter().filter(|tag| match selector {
        Selector::Tag(name) => tag.name == *name,
        _ => tag.root == target.root,
    });
    let branches: Vec<&str> = names.map(|tag| &tag.branch[..]).collect();
    if !branches.is_empty() && branches.iter().all(|branch| !branch.is_empty()) {
        return invalid("it is on a branch; only revisions of the trunk can be rolled back to");
    }
    if target.root == head.manifest().root_catalog {
        return invalid("it is the newest one");
    }
    if target.number >= head.manifest().revision {
        return invalid("it is not older than the newest one");
    }
    Ok(target)
}
