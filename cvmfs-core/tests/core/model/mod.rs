//! A repository in memory, random changes of it, and a model of its tree: a map from path to entry.

#![allow(clippy::unwrap_used, dead_code, reason = "helpers of tests, not all of which use all of them")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use cvmfs_core::catalog::{Counters, Finish, Row, WritableCatalog};
use cvmfs_core::change::{Change, Content, Metadata};
use cvmfs_core::changeset::ChangeSet;
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::{self, NewRoot, Publisher};
use cvmfs_core::compression::{Compression, Compressor, Effort};
use cvmfs_core::entry::{Chunk, Entry, EntryKind, FileContent, FileObjects, Hardlinks, Mount, Mtime, Special};
use cvmfs_core::error::Result;
use cvmfs_core::hash::{Algorithm, ContentHash, ObjectId, ObjectKind};
use cvmfs_core::path::{RepoPath, RepositoryName};
use cvmfs_core::progress::{Cancel, Silent};
use cvmfs_core::repository::Selector;
use cvmfs_core::server::{PublisherKeys, RepositoryConfig, ServerRoot};
use cvmfs_core::storage::{LocalStore, MemoryStore, NamedFile, ReadStore as _, WriteStore as _};
use cvmfs_core::trust::keys::{Certificate, PrivateKey};
use cvmfs_core::trust::whitelist::Whitelist;
use cvmfs_core::xattr::Xattrs;
use proptest::prelude::*;

pub(crate) const NAME: &str = "model.example.org";
pub(crate) const MARKER: &str = ".cvmfscatalog";
pub(crate) const AUTO_MARKER: &str = ".cvmfsautocatalog";
pub(crate) const VERIFIER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/verifier/verify.py");
pub(crate) const NOW: UnixSeconds = UnixSeconds(1_800_000_000);

pub(crate) fn path(text: &str) -> RepoPath {
    text.parse().unwrap()
}

/// A repository in a temporary directory.
pub(crate) struct Repo {
    pub(crate) directory: tempfile::TempDir,
    /// What the publisher writes to: in memory, because a durable commit takes its time.
    pub(crate) store: MemoryStore,
    pub(crate) publisher: Publisher,
}

impl Repo {
    pub(crate) fn new(configure: impl FnOnce(&mut RepositoryConfig)) -> Self {
        static KEYS: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
        let generate = || PrivateKey::generate().unwrap().to_pem().unwrap();
        let (master, key) = KEYS.get_or_init(|| (generate(), generate()));
        let (master, key) =
            (PrivateKey::from_pem("master", master).unwrap(), PrivateKey::from_pem("key", key).unwrap());
        let directory = tempfile::tempdir().unwrap();
        let name: RepositoryName = NAME.parse().unwrap();
        let mut config = RepositoryConfig::new(&ServerRoot::new(directory.path()).unwrap(), &name);
        configure(&mut config);
        std::fs::create_dir_all(&config.spool).unwrap();
        let store = MemoryStore::new();
        let certificate = Certificate::create(&name, &key).unwrap();
        let fingerprints = vec![certificate.fingerprint(Algorithm::Sha1)];
        let whitelist = Whitelist { issued: NOW, expires: NOW.plus_days(9), name, fingerprints };
        store.write(NamedFile::Whitelist, &whitelist.sign(Algorithm::Sha1, &master).unwrap().to_bytes()).unwrap();
        store.write(NamedFile::MasterReplica, b"yes\n").unwrap();
        std::fs::write(directory.path().join("pub"), master.public().unwrap().to_pem().unwrap()).unwrap();
        let master = vec![master.public().unwrap()];
        let publisher =
            Publisher { config, keys: PublisherKeys { key, certificate, master }, store: Arc::new(store.clone()) };
        let repo = Self { directory, store, publisher };
        repo.publish_first();
        repo
    }

    fn publish_first(&self) {
        let publisher = &self.publisher;
        let root = self.store_tree(&[]);
        let info = commit::store_stock(&*publisher.store, Algorithm::Sha1, ObjectKind::Metainfo, b"{}").unwrap();
        publisher
            .publish_root(None, &root, NOW, Some(info), |history| {
                history.advance_trunk(&root.tag(String::new(), String::new()))
            })
            .unwrap();
    }

    /// Stores a tree of one catalog with these rows, which no manifest names.
    pub(crate) fn store_tree(&self, rows: &[Row]) -> NewRoot {
        let publisher = &self.publisher;
        let mut catalog = WritableCatalog::create(RepoPath::root(), &publisher.scratch().unwrap()).unwrap();
        catalog.add(&Row::new(&RepoPath::root(), Entry::directory(0o755, 0, 0, Mtime::seconds(NOW.0)))).unwrap();
        for row in rows {
            catalog.add(row).unwrap();
        }
        let previous = ContentHash::null(Algorithm::Sha1);
        let finish = Finish { now: NOW, previous, subtree: Counters::default(), revision: None };
        let finished = catalog.finish(&finish).unwrap();
        let plain = std::fs::read(&finished.file).unwrap();
        let id = commit::store_stock(&*publisher.store, Algorithm::Sha1, ObjectKind::Catalog, &plain).unwrap();
        NewRoot { hash: id.hash, size: plain.len() as u64, revision: finished.revision, modified: NOW }
    }

    pub(crate) fn commit(&self, changes: &[Change]) -> commit::Outcome {
        self.commit_onto(self.root(), changes).unwrap()
    }

    /// Commits changes whose maker looked at an earlier root catalog.
    pub(crate) fn commit_onto(&self, base: ContentHash, changes: &[Change]) -> Result<commit::Outcome> {
        let file = self.directory.path().join("changes");
        let _ = std::fs::remove_file(&file);
        let mut set = ChangeSet::create(&file, base).unwrap();
        for change in changes {
            set.record(change.clone()).unwrap();
        }
        let options = commit::Options { threads: 1, ..commit::Options::new(NOW) };
        self.publisher.commit(&mut set, &options, &Silent, &Cancel::new())
    }

    /// The root catalog of the head.
    pub(crate) fn root(&self) -> ContentHash {
        self.publisher.head(NOW).unwrap().manifest().root_catalog
    }

    pub(crate) fn put(&self, plain: &[u8], kind: ObjectKind) -> ContentHash {
        let stored = Compressor::new(Effort::default()).compress(plain).to_vec();
        let id = ObjectId::of(Algorithm::Sha1, kind, &stored);
        self.publisher.store.put(&id, &stored).unwrap();
        id.hash
    }

    pub(crate) fn file(size: u64, objects: FileObjects) -> Content {
        let compression = Compression::Zlib;
        Content::Stored(FileContent { size, compression, objects, external: false, direct_io: false })
    }

    /// Content of a few kinds: small files, one in chunks, a link, a FIFO, a device.
    pub(crate) fn content(&self, variant: u8) -> Content {
        match variant {
            0 => self.text(""),
            1 => self.text("one"),
            2 => self.text("other"),
            3 => {
                let piece = |offset, text: &str| Chunk {
                    offset,
                    size: text.len() as u64,
                    hash: self.put(text.as_bytes(), ObjectKind::Chunk),
                };
                let chunks = vec![piece(0, "first"), piece(5, "second")];
                Self::file(11, FileObjects::Chunked { chunks, bulk: None })
            }
            4 => Content::Symlink { target: b"a/b".to_vec() },
            5 => Content::Special(Special::Fifo),
            _ => Content::Special(Special::BlockDevice(0x1_0007)),
        }
    }

    pub(crate) fn text(&self, text: &str) -> Content {
        let hash = self.put(text.as_bytes(), ObjectKind::File);
        Self::file(text.len() as u64, FileObjects::Whole(hash))
    }

    pub(crate) fn tree(&self) -> BTreeMap<RepoPath, Row> {
        let mut tree = self.publisher.head(NOW).unwrap().tree(&Selector::Head).unwrap();
        let mut rows = BTreeMap::new();
        tree.walk(&RepoPath::root(), &mut |path, row| {
            rows.insert(path.clone(), row.clone());
            Ok(())
        })
        .unwrap();
        rows
    }

    /// Recounts everything without our code.
    pub(crate) fn verify(&self) {
        assert_eq!(self.findings(), "");
    }

    /// What the verifier complains about.
    pub(crate) fn findings(&self) -> String {
        let storage = self.publisher.config.storage.directory().unwrap();
        LocalStore::create(storage).unwrap();
        for key in self.store.keys() {
            std::fs::write(storage.join(key.to_string()), self.store.read(&key).unwrap()).unwrap();
        }
        let at = |place: &str| self.directory.path().join(place);
        let output = Command::new("python3")
            .args([VERIFIER, "check", "--all-tags", "--quiet", "--fqrn", NAME, "--now", &NOW.0.to_string(), "--store"])
            .arg(storage)
            .arg("--pub")
            .arg(at("pub"))
            .arg("--reflog-checksum")
            .arg(self.publisher.config.spool.join("reflog.chksum"))
            .output()
            .expect("python3 is installed");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(matches!(output.status.code(), Some(0 | 3)), "{}", text(&output.stderr));
        text(&output.stdout)
    }
}

/// What a path is in the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) entry: Entry,
    /// Names of one file have the same number; 0 for directories.
    pub(crate) file: u64,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    pub(crate) nodes: BTreeMap<RepoPath, Node>,
    pub(crate) files: u64,
}

/// A step; paths are strings for readable failures.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    File(String, u8),
    Directory(String, u32),
    Link(String, String),
    Ensure(String),
    Remove(String),
    Clear(String),
    Mark(String),
    Unmark(String),
    LinkMarker(String, String),
}

pub(crate) fn metadata(permissions: u32) -> Metadata {
    let mut xattrs = Xattrs::new();
    if permissions == 0o711 {
        xattrs.set(b"user.key", b"value").unwrap();
    }
    Metadata { permissions, uid: 7, gid: 8, mtime: Mtime { seconds: 9, nanoseconds: Some(10) }, xattrs }
}

pub(crate) fn marker(directory: &str) -> String {
    format!("{directory}/{MARKER}")
}

impl Model {
    pub(crate) fn is_directory(&self, path: &RepoPath) -> bool {
        path.is_root() || self.nodes.get(path).is_some_and(|node| node.entry.is_directory())
    }

    pub(crate) fn remove_tree(&mut self, top: &RepoPath) {
        self.nodes.retain(|path, _| !path.starts_with(top));
    }

    /// Makes the directories above a path; `None` if something else is in the way.
    fn ensure_above(&mut self, path: &RepoPath, changes: &mut Vec<Change>) -> Option<()> {
        let above = path.ancestors();
        if above.iter().any(|path| !self.is_directory(path) && self.nodes.contains_key(path)) {
            return None;
        }
        for path in above.into_iter().skip(1) {
            self.ensure(path, changes);
        }
        Some(())
    }

    fn ensure(&mut self, path: RepoPath, changes: &mut Vec<Change>) {
        let metadata = metadata(0o700);
        changes.push(Change::Ensure { path: path.clone(), metadata: metadata.clone() });
        let entry = metadata.into_entry(EntryKind::Directory(Mount::Plain));
        self.nodes.entry(path).or_insert(Node { entry, file: 0 });
    }

    fn put_file(&mut self, path: &RepoPath, entry: Entry, file: Option<u64>) {
        self.remove_tree(path);
        self.files += 1;
        let file = file.unwrap_or(self.files);
        self.nodes.insert(path.clone(), Node { entry, file });
    }

    /// Takes a step and says what changes it is; nothing if it makes no sense.
    pub(crate) fn step(&mut self, repo: &Repo, step: &Step) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut trial = self.clone();
        if trial.try_step(repo, step, &mut changes).is_none() {
            return Vec::new();
        }
        *self = trial;
        changes
    }

    fn try_step(&mut self, repo: &Repo, step: &Step, changes: &mut Vec<Change>) -> Option<()> {
        match step {
            Step::File(at, variant) => {
                let at = path(at);
                self.ensure_above(&at, changes)?;
                let (metadata, content) = (metadata(0o644), repo.content(*variant));
                changes.push(Change::Put { path: at.clone(), metadata: metadata.clone(), content: content.clone() });
                let kind = match content {
                    Content::Stored(file) => EntryKind::File(file),
                    Content::Symlink { target } => EntryKind::Symlink { target },
                    Content::Special(special) => EntryKind::Special(special),
                    Content::Directory | Content::Read { .. } => unreachable!(),
                };
                self.put_file(&at, metadata.into_entry(kind), None);
            }
            Step::Directory(at, permissions) => {
                let at = path(at);
                self.ensure_above(&at, changes)?;
                let (metadata, content) = (metadata(*permissions), Content::Directory);
                changes.push(Change::Put { path: at.clone(), metadata: metadata.clone(), content });
                if !self.is_directory(&at) {
                    self.remove_tree(&at);
                }
                let entry = metadata.into_entry(EntryKind::Directory(Mount::Plain));
                self.nodes.insert(at, Node { entry, file: 0 });
            }
            Step::Link(at, target) => {
                let (at, target) = (path(at), path(target));
                let node = self.nodes.get(&target).filter(|node| !node.entry.is_directory() && at != target)?.clone();
                self.ensure_above(&at, changes)?;
                changes.push(Change::Link { path: at.clone(), target });
                self.put_file(&at, node.entry, Some(node.file));
            }
            Step::Ensure(at) => {
                let at = path(at);
                self.ensure_above(&at, changes)?;
                if !self.is_directory(&at) && self.nodes.contains_key(&at) {
                    return None;
                }
                self.ensure(at, changes);
            }
            Step::Remove(at) => {
                let at = path(at);
                // Below a file that is put nothing can be meant.
                let above = at.ancestors();
                if above.iter().any(|path| !self.is_directory(path) && self.nodes.contains_key(path)) {
                    return None;
                }
                self.remove_tree(&at);
                changes.push(Change::Remove { path: at });
            }
            Step::Clear(at) => {
                let at = path(at);
                if !self.is_directory(&at) && self.nodes.contains_key(&at) {
                    return None;
                }
                self.nodes.retain(|path, _| *path == at || !path.starts_with(&at));
                changes.push(Change::Clear { path: at });
            }
            Step::Mark(directory) => self.try_step(repo, &Step::File(marker(directory), 0), changes)?,
            Step::Unmark(directory) => self.try_step(repo, &Step::Remove(marker(directory)), changes)?,
            Step::LinkMarker(directory, other) => {
                self.try_step(repo, &Step::Link(marker(directory), marker(other)), changes)?;
            }
        }
        Some(())
    }

    /// What catalogs can keep: names in different directories are different files from now on.
    pub(crate) fn settle(&mut self) {
        let mut numbers = BTreeMap::new();
        for (path, node) in &mut self.nodes {
            if node.file != 0 {
                let next = numbers.len() as u64 + 1;
                node.file = *numbers.entry((node.file, path.parent())).or_insert(next);
            }
        }
        self.files = numbers.len() as u64 + 1;
    }

    /// The tree that is expected: entries, link counts, and the names that are one file.
    pub(crate) fn view(&self) -> View {
        let mut view = View::default();
        for (path, node) in &self.nodes {
            let mut entry = node.entry.clone();
            let links = if entry.is_directory() {
                if self.nodes.contains_key(&path.child(MARKER.as_bytes()).unwrap()) {
                    entry.kind = EntryKind::Directory(Mount::Mountpoint);
                }
                let below = |(other, node): (&RepoPath, &Node)| {
                    other.parent().as_ref() == Some(path) && node.entry.is_directory()
                };
                2 + self.nodes.iter().filter(|pair| below(*pair)).count()
            } else {
                let same = |(other, node): (&RepoPath, &Node)| {
                    node.file == self.nodes[path].file && other.parent() == path.parent()
                };
                let names: BTreeSet<RepoPath> =
                    self.nodes.iter().filter(|pair| same(*pair)).map(|(path, _)| path.clone()).collect();
                let count = names.len();
                if count > 1 {
                    view.groups.insert(names);
                }
                count
            };
            view.entries.insert(path.clone(), (entry, u32::try_from(links).unwrap()));
        }
        view
    }
}

/// A tree, comparable.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct View {
    pub(crate) entries: BTreeMap<RepoPath, (Entry, u32)>,
    pub(crate) groups: BTreeSet<BTreeSet<RepoPath>>,
}

pub(crate) fn view(tree: &BTreeMap<RepoPath, Row>) -> View {
    let mut groups: BTreeMap<_, BTreeSet<RepoPath>> = BTreeMap::new();
    let mut view = View::default();
    for (path, row) in tree.iter().filter(|(path, _)| !path.is_root()) {
        let Hardlinks { group, count } = row.hardlinks;
        view.entries.insert(path.clone(), (row.entry.clone(), count));
        if group != 0 {
            groups.entry((path.parent(), group)).or_default().insert(path.clone());
        }
    }
    view.groups = groups.into_values().collect();
    view
}

pub(crate) fn paths() -> impl Strategy<Value = String> {
    proptest::collection::vec("[abc]", 1..4).prop_map(|names| names.join("/"))
}

pub(crate) fn plain_steps() -> BoxedStrategy<Step> {
    prop_oneof![
        4 => (paths(), 0..7_u8).prop_map(|(at, variant)| Step::File(at, variant)),
        2 => (paths(), prop_oneof![Just(0o755), Just(0o711)]).prop_map(|(at, mode)| Step::Directory(at, mode)),
        1 => paths().prop_map(Step::Ensure),
        2 => paths().prop_map(Step::Remove),
        1 => prop_oneof![1 => Just(String::new()), 4 => paths()].prop_map(Step::Clear),
    ]
    .boxed()
}

pub(crate) fn steps() -> BoxedStrategy<Step> {
    prop_oneof![
        8 => plain_steps(),
        5 => (paths(), paths()).prop_map(|(at, target)| Step::Link(at, target)),
        3 => paths().prop_map(Step::Mark),
        1 => paths().prop_map(Step::Unmark),
        1 => (paths(), paths()).prop_map(|(at, other)| Step::LinkMarker(at, other)),
    ]
    .boxed()
}

pub(crate) fn commits(step: BoxedStrategy<Step>) -> impl Strategy<Value = Vec<Vec<Step>>> {
    proptest::collection::vec(proptest::collection::vec(step, 1..12), 1..6)
}

pub(crate) fn run_steps(repo: &Repo, model: &mut Model, steps: &[Step]) -> Vec<Change> {
    steps.iter().flat_map(|step| model.step(repo, step)).collect()
}
