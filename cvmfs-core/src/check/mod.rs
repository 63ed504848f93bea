//! Checks of a whole repository: what is wrong with it, as data.
//!
//! ```text
//! documents ─► root ─► catalogs, in parallel ─► rows ─► findings
//!                                 │
//!                                 └─► objects that entries need, in 256 files ─► each looked at once ─► findings
//! ```
//!
//! 1. Whitelist, certificate, manifest, meta info, tag database and tags, reflog.
//! 2. Every catalog of the revision: its hash, its place and size, what mountpoints and references to nested catalogs say of
//!    it, each row, and its counters against a recount.
//! 3. Every object that entries need: that it exists, whether its size can be right, and on request its hash.
//! 4. Counters of subtrees against the sum over the catalogs below.
//!
//! What cannot be read is a finding; the rest is looked at all the same. Only what says nothing of the repository, such as a
//! full disk, ends a check. Catalogs that an earlier check found fine can be left out.
//!
//! Source: `cvmfs/swissknife_check.cc`.

mod documents;
mod findings;
mod objects;
mod proven;
mod repair;
mod rows;

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use self::documents::{Documents, found};
use self::findings::Findings;
use self::objects::{Look, Needs, encode};
use self::proven::{Fine, Proven};
use self::rows::{Fingerprint, Inspected, catalog_place};
use crate::catalog::{Catalog, Counters, Nested, StoredCounters};
use crate::clock::UnixSeconds;
use crate::error::{Error, IoContext as _, Result};
use crate::gc;
use crate::hash::{ContentHash, ObjectId};
use crate::manifest::Manifest;
use crate::parallel;
use crate::path::{RepoPath, RepositoryName};
use crate::progress::{Cancel, Progress, Unit};
use crate::status;
use crate::storage::{NamedFile, ReadStore, WriteStore};
use crate::tree::Tree;
use crate::trust::keys::PublicKey;

pub use findings::{Finding, Kind};
pub use repair::{Means, Mended, Recount, repair};

/// How long a check waits for a collection of garbage, unless somebody says otherwise.
const PATIENCE: Duration = Duration::from_mins(10);

/// What is checked.
pub struct Subject<'a> {
    /// The storage.
    pub store: Arc<dyn WriteStore>,
    /// Directory for working files, with the checksum of the reflog.
    pub spool: &'a Path,
    /// The repository.
    pub name: &'a RepositoryName,
    /// Verify the whitelist.
    pub master_keys: &'a [PublicKey],
    /// A replica has a reflog of its own, and may lack revisions with tags.
    pub is_replica: bool,
    /// Whether the nested catalog at a path must be in the storage.
    pub has_catalog: &'a (dyn Fn(&RepoPath) -> bool + Sync),
}

impl std::fmt::Debug for Subject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Subject({})", self.name)
    }
}

impl Subject<'_> {
    fn read_store(&self) -> Arc<dyn ReadStore> {
        Arc::clone(&self.store) as Arc<dyn ReadStore>
    }
}

/// Choices for a check.
#[derive(Debug, Clone)]
pub struct Options {
    /// The time of the check.
    pub now: UnixSeconds,
    /// When it began.
    pub started: Instant,
    /// The tag of the revision; `None` for the newest one.
    pub tag: Option<String>,
    /// Only the catalog that has this path, and those below the path.
    pub path: RepoPath,
    /// Whether the bytes of all objects are read.
    pub data: bool,
    /// Whether catalogs that an earlier check found fine are left out, with all below them.
    pub incremental: bool,
    /// Threads; 0 for one a core.
    pub threads: usize,
    /// How long to wait for a collection of garbage.
    pub patience: Duration,
}

impl Options {
    /// A check at `now` of the whole newest revision, without the bytes of objects.
    pub fn new(now: UnixSeconds) -> Self {
        let (path, started) = (RepoPath::root(), Instant::now());
        Self { now, started, tag: None, path, data: false, incremental: false, threads: 0, patience: PATIENCE }
    }
}

/// What a check came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The root catalog of the revision; `None` if that could not be found out.
    pub root_hash: Option<String>,
    /// Catalogs that were looked at.
    pub catalogs: u64,
    /// Catalogs that were left out with all below them, because an earlier check found them fine.
    pub catalogs_known: u64,
    /// Entries of the former.
    pub entries: u64,
    /// Different objects that were looked at.
    pub objects: u64,
    /// Bytes of these that were read.
    pub bytes_read: u64,
    /// How many things are wrong.
    pub count: u64,
    /// What; of each kind the first hundred.
    pub findings: Vec<Finding>,
    /// How long it took.
    pub seconds: f64,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.count == 0
    }
}

/// Checks a repository; see the [module](self). No garbage is collected meanwhile.
///
/// # Errors
/// `NotFound` if there is no such tag or path; `Conflict` if garbage is collected for too long. What is wrong with the
/// repository is no error.
pub fn check(subject: &Subject<'_>, options: &Options, progress: &dyn Progress, cancel: &Cancel) -> Result<Report> {
    let _lock = gc::hold_off(subject.spool, options.patience, cancel)?;
    look(subject, options, progress, cancel).map(|looked| looked.report)
}

/// Checks a repository on its own, while others work on it, and notes the result in its status.
///
/// What is found while the newest revision changes may be what somebody was just doing, so then it is looked for again.
///
/// # Errors
/// Those of [`check`]; nothing is noted then.
pub fn watch(subject: &Subject<'_>, options: &Options, progress: &dyn Progress, cancel: &Cancel) -> Result<Report> {
    let manifest = || subject.store.read(&NamedFile::Manifest.into()).ok();
    let before = manifest();
    let mut report = check(subject, options, progress, cancel)?;
    if !report.is_clean() && manifest() != before {
        report = check(subject, options, progress, cancel)?;
    }
    if let Some(first) = report.findings.first() {
        tracing::warn!(name = %subject.name, count = report.count, %first, "the check found something wrong");
    }
    status::set_check(&*subject.store, options.now, report.is_clean())?;
    Ok(report)
}

/// A report, and what of it can be mended.
struct Looked {
    report: Report,
    manifest: Option<Manifest>,
    /// Objects that another copy of the repository may have.
    lost: BTreeSet<ObjectId>,
    /// Catalogs with wrong counters, by place.
    miscounted: BTreeSet<RepoPath>,
}

fn look(subject: &Subject<'_>, options: &Options, progress: &dyn Progress, cancel: &Cancel) -> Result<Looked> {
    let scratch = subject.spool.join("tmp");
    fs::create_dir_all(&scratch).at(&scratch)?;
    let findings = Findings::default();
    let mut report = Report {
        root_hash: None,
        catalogs: 0,
        catalogs_known: 0,
        entries: 0,
        objects: 0,
        bytes_read: 0,
        count: 0,
        findings: Vec::new(),
        seconds: 0.0,
    };

    // 1. Documents, and what they say the root is.
    let documents = documents::inspect(subject, options.now, &scratch, &findings)?;
    let manifest = documents.as_ref().map(|documents| documents.manifest.clone());
    if let Some(documents) = documents {
        let top = top(subject, &documents, options, &scratch, &findings)?;
        if let Some((top, is_head)) = top {
            report.root_hash = Some(top.hash.to_string());
            let pool = parallel::pool(options.threads)?;
            let needs = Needs::create(&scratch)?;
            let proven = Proven::open(subject.spool, options.data)?;
            let walk = Walk {
                subject,
                options,
                store: subject.read_store(),
                scratch: scratch.clone(),
                findings: &findings,
                needs: &needs,
                proven: &proven,
                nodes: Mutex::default(),
                revision: is_head.then_some(documents.manifest.revision),
                progress,
                cancel,
            };

            // 2. Catalogs and their rows.
            progress.phase("catalogs", Unit::Entries, None);
            let job = Job { nested: top, mountpoint: None, parent: None };
            parallel::work_off(&pool, [job], |job, more| walk.visit(&job, more))?;

            // 3. Objects.
            progress.phase("objects", Unit::Objects, None);
            let before = findings.count();
            let look = Look {
                store: &walk.store,
                pool: &pool,
                is_thorough: options.data,
                findings: &findings,
                blame: &|catalog, id| walk.blame(catalog, id),
            };
            let looked = look.at(&needs, progress, cancel)?;
            let are_objects_fine = findings.count() == before;

            // 4. Counters of subtrees; what is fine is remembered.
            walk.finish(are_objects_fine)?;
            let nodes = walk.nodes();
            report.catalogs = nodes.iter().filter(|node| node.fine.is_none()).count() as u64;
            report.catalogs_known = nodes.len() as u64 - report.catalogs;
            report.entries = nodes.iter().filter(|node| node.fine.is_none()).map(|node| node.own.entries()).sum();
            (report.objects, report.bytes_read) = (looked.objects, looked.bytes);
        }
    }
    let (lost, miscounted) = findings.take_noted();
    (report.findings, report.count) = findings.finish();
    report.seconds = options.started.elapsed().as_secs_f64();
    Ok(Looked { report, manifest, lost, miscounted })
}

/// Forgets what earlier checks found of all catalogs but these.
pub(crate) fn forget_all_but(spool: &Path, kept: &HashSet<ContentHash>) -> Result<()> {
    if spool.join("checked.db").exists() { Proven::open(spool, false)?.retain(kept) } else { Ok(()) }
}

/// The topmost catalog to look at, and whether it is the root of the newest revision.
fn top(
    subject: &Subject<'_>,
    documents: &Documents,
    options: &Options,
    scratch: &Path,
    findings: &Findings,
) -> Result<Option<(Nested, bool)>> {
    let Documents { manifest, tags } = documents;
    let (hash, size) = match &options.tag {
        None => (manifest.root_catalog, manifest.root_catalog_size),
        Some(name) => {
            let tag = tags.iter().find(|tag| tag.name == *name);
            let tag = tag.ok_or_else(|| Error::not_found(format!("tag {name:?}")))?;
            (tag.root, Some(tag.root_size))
        }
    };
    let size = size.filter(|&size| size > 0);
    if options.path.is_root() {
        return Ok(Some((Nested { path: RepoPath::root(), hash, size }, hash == manifest.root_catalog)));
    }
    let mut tree = Tree::new(subject.read_store(), hash, scratch);
    let Some(row) = found(tree.find(&options.path), Kind::CatalogDamaged, "/", findings)? else { return Ok(None) };
    if row.is_none() {
        return Err(Error::not_found(options.path.to_string()));
    }
    let (hash, catalog) = tree.catalog_of(&options.path)?;
    Ok(Some((Nested { path: catalog.root()?, hash, size: None }, hash == manifest.root_catalog)))
}

/// A catalog to look at.
struct Job {
    nested: Nested,
    /// What the mountpoint says; `None` for the topmost catalog.
    mountpoint: Option<Fingerprint>,
    /// Number of the catalog above.
    parent: Option<u32>,
}

/// All that a catalog has.
struct Read {
    inspected: Inspected,
    nested: Vec<Nested>,
    binds: Vec<Nested>,
    stored: Option<StoredCounters>,
}

/// A catalog that was looked at, or is known.
struct Node {
    hash: ContentHash,
    path: RepoPath,
    size: u64,
    children: Vec<u32>,
    /// Whether all catalogs below were to be looked at.
    has_all_children: bool,
    own: Counters,
    stored: Option<StoredCounters>,
    root: Option<Fingerprint>,
    /// Whether nothing is wrong with the catalog itself.
    is_fine: bool,
    /// What an earlier check found of it.
    fine: Option<Fine>,
}

struct Walk<'a> {
    subject: &'a Subject<'a>,
    options: &'a Options,
    store: Arc<dyn ReadStore>,
    scratch: PathBuf,
    findings: &'a Findings,
    needs: &'a Needs,
    proven: &'a Proven,
    nodes: Mutex<Vec<Node>>,
    /// The revision that the root catalog must have.
    revision: Option<u64>,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

impl Walk<'_> {
    fn nodes(&self) -> MutexGuard<'_, Vec<Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a catalog and returns its number.
    fn enter(&self, job: &Job, fine: Option<Fine>) -> u32 {
        let mut nodes = self.nodes();
        let number = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        if let Some(parent) = job.parent.and_then(|parent| nodes.get_mut(parent as usize)) {
            parent.children.push(number);
        }
        nodes.push(Node {
            hash: job.nested.hash,
            path: job.nested.path.clone(),
            size: 0,
            children: Vec::new(),
            has_all_children: true,
            own: Counters::default(),
            stored: None,
            root: None,
            is_fine: fine.is_some(),
            fine,
        });
        number
    }

    fn visit(&self, job: &Job, more: &mut Vec<Job>) -> Result<()> {
        self.cancel.check()?;
        let Nested { path, hash, .. } = &job.nested;
        let fine = if self.options.incremental { self.proven.find(*hash, path.as_bytes())? } else { None };
        let number = self.enter(job, fine);
        let local = Findings::default();
        if let Some(fine) = fine {
            compare_with_parent(job, fine.size, Some(fine.root), &local);
            self.findings.absorb(local.into_inner());
            return Ok(());
        }
        let place = catalog_place(path);
        let catalog = Catalog::fetch(&*self.store, *hash, &self.scratch);
        if catalog.is_err() {
            local.lose(ObjectId::catalog(*hash));
        }
        let catalog = match catalog {
            Err(error @ Error::MissingObject { .. }) => {
                found::<()>(Err(error), Kind::CatalogMissing, &place, &local)?;
                None
            }
            catalog => found(catalog, Kind::CatalogDamaged, &place, &local)?,
        };
        if let Some(catalog) = catalog {
            let inspected = self.inspect(number, job, &catalog, &local);
            if let Some(Read { inspected, nested, binds, stored }) =
                found(inspected, Kind::CatalogDamaged, &place, &local)?
            {
                let root = inspected.root;
                compare_with_parent(job, catalog.file_size()?, root, &local);
                let wanted = self.compare_registrations(path, &inspected.binds, &binds, &nested, &local);
                let has_all_children = wanted.len() == nested.len();
                for nested in wanted {
                    let mountpoint = inspected.mountpoints.get(&nested.path).copied();
                    if mountpoint.is_none() {
                        local.add(Kind::Nested, &nested.path, "it has a nested catalog, and is no mountpoint");
                    }
                    more.push(Job { nested, mountpoint, parent: Some(number) });
                }
                for path in inspected.mountpoints.keys() {
                    if !nested.iter().any(|nested| nested.path == *path) {
                        local.add(Kind::Nested, path, "it is a mountpoint, and has no nested catalog");
                    }
                }
                let own = Counters { nested: nested.len() as u64, ..inspected.counters };
                self.progress.advance(own.entries());
                for difference in stored.iter().flat_map(|stored| stored.own_differences(&own)) {
                    local.add(Kind::Counters, &place, difference);
                    local.miscount(path);
                }
                let size = catalog.file_size()?;
                let node = &mut self.nodes()[number as usize];
                (node.own, node.stored, node.root, node.size) = (own, stored, root, size);
                node.has_all_children = has_all_children;
            }
        }
        self.nodes()[number as usize].is_fine = local.count() == 0;
        self.findings.absorb(local.into_inner());
        Ok(())
    }

    /// Reads all that a catalog has.
    fn inspect(&self, number: u32, job: &Job, catalog: &Catalog, findings: &Findings) -> Result<Read> {
        let path = &job.nested.path;
        let root = catalog.root()?;
        if root != *path && catalog.has_place() {
            findings.add(Kind::CatalogPlace, catalog_place(path), format!("it is for {root}"));
        }
        if let Some(expected) = self.revision.filter(|_| job.parent.is_none() && catalog.has_place()) {
            let revision = catalog.revision()?;
            if revision != expected {
                let message = format!("it says revision {expected}, the root catalog {revision}");
                findings.add(Kind::Manifest, NamedFile::Manifest.name(), message);
            }
        }
        let mut writer = self.needs.writer();
        let inspected = rows::inspect(catalog, path, findings, &mut |need| writer.add(&encode(need, number)))?;
        drop(writer);
        let (nested, binds) = (catalog.nested()?, catalog.bind_mountpoints()?);
        Ok(Read { inspected, nested, binds, stored: catalog.stored_counters()? })
    }

    /// Compares what is registered with what rows say; returns the nested catalogs that are to be looked at.
    fn compare_registrations(
        &self,
        mount: &RepoPath,
        binds: &[RepoPath],
        registered: &[Nested],
        nested: &[Nested],
        findings: &Findings,
    ) -> Vec<Nested> {
        let registered: HashSet<&RepoPath> = registered.iter().map(|bind| &bind.path).collect();
        for path in binds {
            if !registered.contains(path) {
                findings.add(Kind::Nested, path, "it is a bind mountpoint, and nothing says of what");
            }
        }
        for path in registered.iter().filter(|path| !binds.contains(path)) {
            findings.add(Kind::Nested, path, "it is registered as a bind mountpoint, and is none");
        }
        let mut wanted = Vec::new();
        for nested in nested {
            if registered.contains(&nested.path) {
                findings.add(Kind::Nested, &nested.path, "it is registered as nested catalog and as bind mountpoint");
            }
            if nested.path == *mount || !nested.path.starts_with(mount) {
                let message = format!("a nested catalog at {} cannot be below it", nested.path);
                findings.add(Kind::Nested, catalog_place(mount), message);
            } else if nested.hash.is_null() {
                findings.add(Kind::Nested, &nested.path, "its nested catalog has no hash");
            } else if (self.subject.has_catalog)(&nested.path) && self.is_wanted(&nested.path) {
                wanted.push(nested.clone());
            }
        }
        wanted
    }

    /// Whether a nested catalog is in the part that is to be looked at.
    fn is_wanted(&self, path: &RepoPath) -> bool {
        path.starts_with(&self.options.path)
    }

    /// Where an object is needed, in words.
    fn blame(&self, catalog: u32, id: &ObjectId) -> String {
        let Some((hash, path)) = self.nodes().get(catalog as usize).map(|node| (node.hash, node.path.clone())) else {
            return "a catalog".to_owned();
        };
        let place = Catalog::fetch(&*self.store, hash, &self.scratch).and_then(|catalog| catalog.place_of(id));
        place.ok().flatten().unwrap_or_else(|| catalog_place(&path))
    }

    /// Compares counters of subtrees with their sums, and remembers trees that are fine.
    fn finish(&self, are_objects_fine: bool) -> Result<()> {
        let nodes = self.nodes();
        // Those below have larger numbers. What cannot be summed up is not compared.
        let mut totals: Vec<Option<Counters>> = vec![None; nodes.len()];
        let mut fine = vec![false; nodes.len()];
        for (number, node) in nodes.iter().enumerate().rev() {
            if let Some(known) = node.fine {
                (totals[number], fine[number]) = (Some(known.total), true);
                continue;
            }
            let children = || node.children.iter().map(|&child| child as usize);
            let below: Option<Counters> =
                if node.has_all_children { children().map(|child| totals[child]).sum() } else { None };
            let mut is_fine = node.is_fine && below.is_some();
            if let (Some(below), Some(stored)) = (below, &node.stored) {
                for difference in stored.subtree_differences(&below) {
                    self.findings.add(Kind::Counters, catalog_place(&node.path), difference);
                    self.findings.miscount(&node.path);
                    is_fine = false;
                }
            }
            // Without root entry nothing was counted.
            totals[number] = below.filter(|_| node.root.is_some()).map(|below| below + node.own);
            fine[number] = is_fine && node.root.is_some() && children().all(|child| fine[child]);
        }
        if !are_objects_fine {
            return Ok(());
        }
        let mut proven = Vec::new();
        for ((node, total), _) in nodes.iter().zip(&totals).zip(&fine).filter(|(_, is_fine)| **is_fine) {
            if let (None, Some(root), Some(total)) = (node.fine, node.root, *total) {
                proven.push((node.hash, node.path.as_bytes().to_vec(), Fine { size: node.size, root, total }));
            }
        }
        self.proven.insert(&proven)
    }
}

/// What refers to the catalog must know its size, and its root entry must be the mountpoint.
fn compare_with_parent(job: &Job, size: u64, root: Option<Fingerprint>, findings: &Findings) {
    let place = catalog_place(&job.nested.path);
    if let Some(expected) = job.nested.size.filter(|&expected| expected != size) {
        let who = if job.parent.is_some() { "the catalog above" } else { "the manifest or tag" };
        findings.add(Kind::CatalogSize, place, format!("it has {size} bytes, {who} says {expected}"));
    }
    if let (Some(mountpoint), Some(root)) = (job.mountpoint, root)
        && mountpoint != root
    {
        let message = "the mountpoint and the root entry of the nested catalog differ";
        findings.add(Kind::TransitionPoint, &job.nested.path, message);
    }
}
