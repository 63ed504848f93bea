//! What is known of the repositories that are served: for metrics, pages and `repositories.json`.
//!
//! | what | from where | how often |
//! | --- | --- | --- |
//! | configuration | `etc/cvmfs/repositories.d` | at the start and on reload |
//! | revision, whitelist, status | small files of the storage | when somebody asks, at most every two seconds |
//! | sizes, past | root catalogs and tags | once a revision |
//! | revision of the source | its manifest | when somebody asks, at most every five minutes |
//!
//! Nothing happens while nobody asks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::fetch::HttpStore;
use cvmfs_core::hash::ContentHash;
use cvmfs_core::history::Tag;
use cvmfs_core::manifest::{Manifest, SignedManifest};
use cvmfs_core::path::RepositoryName;
use cvmfs_core::repository::Repository;
use cvmfs_core::server::{RepositoryConfig, ServerRoot, load_master_keys};
use cvmfs_core::status;
use cvmfs_core::storage::{NamedFile, ReadStore as _, StoragePlace};
use cvmfs_core::trust::whitelist::SignedWhitelist;
use serde_json::{Map, Value};

use super::connection::Shared;
use super::librarian::Shelf;
use super::repositories::{Configured, Repositories, Storage};
use super::seconds_between;
use crate::replica::Replica;

/// How long files of a storage are not read again.
const STATE_KEPT: Duration = Duration::from_secs(2);

/// How long a source is not asked again.
const SOURCE_KEPT: Duration = Duration::from_mins(5);

/// How long a page waits for sources that are being asked.
const SOURCE_PATIENCE: Duration = Duration::from_millis(1500);

/// How long a page waits for catalogs that are being opened.
const PAST_PATIENCE: Duration = Duration::from_secs(3);

/// Revisions whose root catalogs are opened to learn how large they are.
const PAST_MAX: usize = 24;

/// Root catalogs above this many bytes, uncompressed, are not opened for that.
const PAST_CATALOG_MAX: u64 = 64 << 20;

/// Runs of snapshots that are shown.
const RUNS_MAX: usize = 200;

/// The configuration files of the server.
#[derive(Debug, Default)]
pub(super) struct Configuration {
    /// Those that publish here, by name.
    pub(super) publishers: BTreeMap<String, RepositoryConfig>,
    /// Replicas by alias.
    pub(super) replicas: BTreeMap<String, Arc<Source>>,
}

/// A replica and its source.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) replica: Replica,
    store: Mutex<Option<Arc<HttpStore>>>,
    seen: Mutex<Option<Seen>>,
}

/// The last look at the source of a replica.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    asked: Instant,
    /// The revision there with its date, or what went wrong; `None` while it is being asked.
    pub(super) answer: Option<std::result::Result<(u64, Option<UnixSeconds>), String>>,
}

/// What is known of one repository.
#[derive(Debug, Clone)]
pub(super) struct RepositoryState {
    /// Its name in addresses.
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) storage: Storage,
    /// `None` before the first revision.
    pub(super) manifest: Option<Manifest>,
    pub(super) whitelist_expires: Option<UnixSeconds>,
    pub(super) trust: Trust,
    pub(super) last_snapshot: Option<UnixSeconds>,
    pub(super) last_gc: Option<UnixSeconds>,
    pub(super) last_check: Option<UnixSeconds>,
    /// `failed` after a check that found something.
    pub(super) check_status: Option<String>,
    pub(super) is_snapshotting: bool,
    /// Runs of snapshots, the oldest first.
    pub(super) runs: Vec<Run>,
}

/// What a repository is on this server.
#[derive(Debug, Clone)]
pub(super) enum Role {
    /// It is published here.
    Publisher,
    /// It is replicated from elsewhere.
    Replica(Arc<Source>),
    /// There is a storage, and no configuration.
    Storage,
}

/// Whether the signatures of a repository are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trust {
    /// They were verified with its master key.
    Verified,
    /// There is no master key here.
    NotChecked,
    /// Clients refuse it, for this reason.
    Broken(String),
}

/// One run of a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Run {
    pub(super) start: UnixSeconds,
    pub(super) seconds: f64,
    pub(super) revision: Option<u64>,
    pub(super) bytes: u64,
    pub(super) error: Option<String>,
}

/// A revision and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) time: UnixSeconds,
    pub(super) revision: u64,
    /// `None` if its catalog was not looked into.
    pub(super) content: Option<Content>,
}

/// What a revision consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    /// Entries of all types.
    pub(super) entries: u64,
    /// Bytes of all files.
    pub(super) bytes: u64,
    /// Catalogs.
    pub(super) catalogs: u64,
}

/// The past of a repository: revisions with names and the newest, the oldest first.
pub(super) type Past = Arc<Vec<Point>>;

/// All repositories, and when they were looked at.
type Latest = (Instant, Arc<Vec<RepositoryState>>);

/// Everything that is known, each part for as long as it holds.
#[derive(Debug, Default)]
pub(super) struct States {
    configuration: RwLock<Arc<Configuration>>,
    latest: Arc<tokio::sync::Mutex<Option<Latest>>>,
    /// By storage; with the root catalog that it was made for.
    pasts: Mutex<HashMap<Storage, (ContentHash, Past)>>,
}

/// How far a replica is behind its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lag {
    pub(super) revisions: u64,
    /// Between the two revisions' dates, if both are known.
    pub(super) seconds: Option<u64>,
}

impl RepositoryState {
    /// How far it is behind its source; `None` if it has none, or none that answered.
    pub(super) fn lag(&self) -> Option<Lag> {
        let Role::Replica(source) = &self.role else { return None };
        let (revision, published) = source.seen()?.answer?.ok()?;
        let own = self.manifest.as_ref();
        let revisions = revision.saturating_sub(own.map_or(0, |own| own.revision));
        if revisions == 0 {
            return Some(Lag { revisions, seconds: Some(0) });
        }
        let seconds = published.zip(own.and_then(|own| own.timestamp)).map(|(there, here)| there.0 - here.0);
        Some(Lag { revisions, seconds: seconds.and_then(|seconds| u64::try_from(seconds).ok()) })
    }

    /// Days until clients refuse the whitelist; negative if they do.
    pub(super) fn whitelist_days(&self, now: UnixSeconds) -> Option<f64> {
        Some(seconds_between(now, self.whitelist_expires?) / 86_400.0)
    }

    /// Snapshots that failed since the last one that ended well.
    pub(super) fn failures(&self) -> usize {
        self.runs.iter().rev().take_while(|run| run.error.is_some()).count()
    }
}

impl Configuration {
    /// Reads the configuration below `root`. What cannot be read stays as it was, or is left out if it is new.
    pub(super) fn load(root: &Path, former: &Self) -> Self {
        let mut configuration = Self::default();
        let names = ServerRoot::new(root).and_then(|root| Ok((root.repositories()?, root)));
        let (names, root) = match names {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "cannot read the configuration");
                configuration.publishers.clone_from(&former.publishers);
                configuration.replicas.clone_from(&former.replicas);
                return configuration;
            }
        };
        for name in names {
            let is_replica = root.config_dir(&name).join("replica.conf").is_file();
            let loaded = if is_replica {
                Replica::load(&root, &name).map(|replica| {
                    configuration.replicas.insert(name.to_string(), Arc::new(Source::new(replica)));
                })
            } else {
                RepositoryConfig::load(&root, &name).map(|config| {
                    configuration.publishers.insert(name.to_string(), config);
                })
            };
            if let Err(error) = loaded {
                tracing::error!(%name, %error, "cannot read the configuration of a repository");
                let name = name.as_str();
                let kept = former.publishers.get_key_value(name).map(|(name, config)| (name.clone(), config.clone()));
                configuration.publishers.extend(kept);
                let kept = former.replicas.get_key_value(name);
                configuration.replicas.extend(kept.map(|(name, source)| (name.clone(), Arc::clone(source))));
            }
        }
        configuration
    }

    /// Whether anything is configured.
    pub(super) fn is_any(&self) -> bool {
        !self.publishers.is_empty() || !self.replicas.is_empty()
    }

    /// Where storages are, by name. A bucket that cannot be opened stays the one that it was.
    fn storages(&self, former: &BTreeMap<String, Configured>) -> BTreeMap<String, Configured> {
        let publishers = self.publishers.iter().map(|(name, config)| (name, &config.storage, true));
        let replicas = self.replicas.iter().map(|(name, source)| {
            let replica = &source.replica;
            (name, &replica.storage, !replica.pull_through)
        });
        let configured = |(name, place, needs_manifest): (&String, &StoragePlace, bool)| match Storage::try_from(place)
        {
            Ok(storage) => Some((name.clone(), Configured { storage, needs_manifest })),
            Err(error) => {
                tracing::error!(%name, %error, "cannot serve a repository from its bucket");
                former.get(name).map(|configured| (name.clone(), configured.clone()))
            }
        };
        publishers.chain(replicas).filter_map(configured).collect()
    }
}

impl Source {
    pub(super) fn new(replica: Replica) -> Self {
        Self { replica, store: Mutex::default(), seen: Mutex::default() }
    }

    /// The store that fetches from it; the same for all who ask.
    pub(super) fn store(&self) -> Result<Arc<HttpStore>> {
        let mut store = lock(&self.store);
        if let Some(store) = &*store {
            return Ok(Arc::clone(store));
        }
        let new = Arc::new(HttpStore::new(self.replica.sources.clone(), self.replica.http_options()?)?);
        Ok(Arc::clone(store.insert(new)))
    }

    /// The last look at it.
    pub(super) fn seen(&self) -> Option<Seen> {
        lock(&self.seen).clone()
    }

    /// Asks the source for its revision, unless that was done lately.
    async fn look(self: Arc<Self>) {
        let now = Instant::now();
        {
            let mut seen = lock(&self.seen);
            if seen.as_ref().is_some_and(|seen| now.duration_since(seen.asked) < SOURCE_KEPT) {
                return;
            }
            // While it is being asked, the last answer holds.
            let answer = seen.take().and_then(|seen| seen.answer);
            *seen = Some(Seen { asked: now, answer });
        }
        let source = Arc::clone(&self);
        let asked = tokio::task::spawn_blocking(move || {
            let bytes = source.store()?.read(&NamedFile::Manifest.into())?;
            let signed = SignedManifest::parse(&bytes)?;
            let manifest = signed.unverified();
            Ok::<_, Error>((manifest.revision, manifest.timestamp))
        });
        let answer = match asked.await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(failure) => Err(failure.to_string()),
        };
        *lock(&self.seen) = Some(Seen { asked: now, answer: Some(answer) });
    }
}

impl States {
    /// Reads the configuration of the server, at the start and again when it has changed.
    ///
    /// With `pull_through` all replicas fetch what clients miss.
    pub(super) fn reload(&self, repositories: &Repositories, pull_through: bool) {
        let former = self.configuration();
        let mut configuration = repositories.root().map(|root| Configuration::load(root, &former)).unwrap_or_default();
        // Others than the new ones have been through this.
        for source in configuration.replicas.values_mut().filter_map(Arc::get_mut) {
            source.replica.pull_through |= pull_through || source.replica.is_pass_through;
            if source.replica.storage.directory().is_err() && std::mem::take(&mut source.replica.pull_through) {
                tracing::warn!(name = %source.replica.alias, "what a replica in a bucket lacks is not fetched for clients");
            }
        }
        repositories.configure(|former| configuration.storages(former));
        *self.configuration.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(configuration);
        if let Ok(mut latest) = self.latest.try_lock() {
            *latest = None;
        }
    }

    /// The configuration of the server.
    pub(super) fn configuration(&self) -> Arc<Configuration> {
        Arc::clone(&self.configuration.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The source of a replica that fetches what clients miss.
    pub(super) fn source_to_pull_from(&self, name: &str) -> Option<Arc<Source>> {
        let configuration = self.configuration();
        configuration.replicas.get(name).filter(|source| source.replica.pull_through).map(Arc::clone)
    }

    /// The storage of a repository: that of the replica of it, or the one that is served under its name.
    pub(super) fn storage_of(&self, repository: &RepositoryName, shared: &Shared) -> Option<Storage> {
        let configuration = self.configuration();
        let replica = configuration.replicas.values().find(|source| source.replica.name == *repository);
        shared.repositories.storage(replica.map_or(repository, |source| &source.replica.alias).as_str())
    }

    /// Looks at all repositories that are served or configured, sorted by name.
    pub(super) async fn all(&self, shared: &Arc<Shared>) -> Result<Arc<Vec<RepositoryState>>> {
        let mut latest = Arc::clone(&self.latest).lock_owned().await;
        if let Some((looked, states)) = &*latest
            && looked.elapsed() < STATE_KEPT
        {
            return Ok(Arc::clone(states));
        }
        let configuration = self.configuration();
        let collecting = Arc::clone(shared);
        // A thread that a storage keeps goes on when nobody waits for it any more. It keeps the lock, or each who asks
        // would have one more.
        let looking = tokio::task::spawn_blocking(move || {
            let states = Arc::new(collect(&collecting, &configuration)?);
            *latest = Some((Instant::now(), Arc::clone(&states)));
            Ok(states)
        });
        looking.await.map_err(|failure| Error::invalid("state", failure.to_string()))?
    }

    /// Looks at one repository.
    ///
    /// # Errors
    /// `NotFound`.
    pub(super) async fn one(&self, name: &str, shared: &Arc<Shared>) -> Result<RepositoryState> {
        let states = self.all(shared).await?;
        let found = states.iter().find(|state| state.name == name);
        found.cloned().ok_or_else(|| Error::not_found(format!("repository {name}")))
    }

    /// Asks the sources of replicas that were not asked lately, and waits a moment for their answers.
    pub(super) async fn look_at_sources(&self) {
        let mut asked = tokio::task::JoinSet::new();
        for source in self.configuration().replicas.values() {
            asked.spawn(Arc::clone(source).look());
        }
        let all = async { while asked.join_next().await.is_some() {} };
        if tokio::time::timeout(SOURCE_PATIENCE, all).await.is_err() {
            // They go on; a later page has the answers.
            asked.detach_all();
        }
    }

    /// The past of a repository, if it was looked up for this revision.
    pub(super) fn known_past(&self, state: &RepositoryState) -> Option<Past> {
        let root = state.manifest.as_ref()?.root_catalog;
        let pasts = lock(&self.pasts);
        pasts.get(&state.storage).filter(|(of, _)| *of == root).map(|(_, past)| Arc::clone(past))
    }

    /// The pasts of repositories, by name. Each is looked up once a revision; what takes long is there for a later page.
    pub(super) async fn pasts(shared: &Arc<Shared>, states: &[RepositoryState]) -> HashMap<String, Past> {
        let mut asked = tokio::task::JoinSet::new();
        for state in states.iter().filter(|state| shared.states.known_past(state).is_none()) {
            asked.spawn(look_back(Arc::clone(shared), state.clone()));
        }
        let all = async { while asked.join_next().await.is_some() {} };
        if tokio::time::timeout(PAST_PATIENCE, all).await.is_err() {
            asked.detach_all();
        }
        let known = |state: &RepositoryState| Some((state.name.clone(), shared.states.known_past(state)?));
        states.iter().filter_map(known).collect()
    }
}

/// Looks up the past of a repository, to be known from then on.
async fn look_back(shared: Arc<Shared>, state: RepositoryState) {
    let (Some(librarian), Some(manifest)) = (&shared.librarian, state.manifest) else { return };
    let (root, storage) = (manifest.root_catalog, state.storage);
    let place = storage.clone();
    let found = librarian.ask(move |shelf| past(shelf, &place, &manifest)).await;
    match found {
        Ok(past) => drop(lock(&shared.states.pasts).insert(storage, (root, Arc::new(past)))),
        Err(error) => tracing::debug!(name = state.name, %error, "cannot look into a repository"),
    }
}

/// What the newest of the points consists of.
pub(super) fn newest(past: &[Point]) -> Option<Content> {
    past.last().and_then(|point| point.content)
}

fn collect(shared: &Shared, configuration: &Configuration) -> Result<Vec<RepositoryState>> {
    let mut names: BTreeSet<String> = shared.repositories.names()?.into_iter().collect();
    names.extend(configuration.replicas.keys().cloned());
    let state = |name: String| {
        let role = match configuration.replicas.get(&name) {
            Some(source) => Role::Replica(Arc::clone(source)),
            None if configuration.publishers.contains_key(&name) => Role::Publisher,
            None => Role::Storage,
        };
        let storage = shared.repositories.storage(&name).unwrap_or(Storage::Directory(PathBuf::new()));
        observe(name, role, storage, shared)
    };
    Ok(names.into_iter().map(state).collect())
}

/// Reads the small files of a storage; what is missing or damaged is simply not known.
fn observe(name: String, role: Role, storage: Storage, shared: &Shared) -> RepositoryState {
    let store = storage.open().ok();
    let read = |file: NamedFile| store.as_ref()?.read(&file.into()).ok();
    let manifest = read(NamedFile::Manifest).and_then(|bytes| SignedManifest::parse(&bytes).ok());
    let whitelist = read(NamedFile::Whitelist).and_then(|bytes| SignedWhitelist::parse(&bytes).ok());
    let values: Map<String, Value> =
        read(NamedFile::Status).and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let value = |key: &str| values.get(key).and_then(Value::as_str);
    let last_snapshot = read(NamedFile::LastSnapshot).and_then(|bytes| String::from_utf8(bytes).ok());
    let date = |text: &str| UnixSeconds::parse_date_command(text.trim());
    let runs = match &role {
        Role::Replica(source) => runs(&source.replica.spool),
        Role::Publisher | Role::Storage => Vec::new(),
    };
    let mut state = RepositoryState {
        name,
        role,
        manifest: manifest.map(|signed| signed.unverified().clone()),
        whitelist_expires: whitelist.map(|whitelist| whitelist.unverified().expires),
        trust: Trust::NotChecked,
        last_snapshot: value("last_snapshot").or(last_snapshot.as_deref()).and_then(date),
        last_gc: value(status::LAST_GC).and_then(date),
        last_check: value(status::LAST_CHECK).and_then(date),
        check_status: value(status::CHECK_STATUS).map(str::to_owned),
        is_snapshotting: read(NamedFile::IsSnapshotting).is_some(),
        runs,
        storage,
    };
    state.trust = trust(&state, shared);
    state
}

/// Verifies manifest and whitelist, if there is a key.
fn trust(state: &RepositoryState, shared: &Shared) -> Trust {
    let Some(manifest) = &state.manifest else { return Trust::NotChecked };
    let keys = match (&state.role, shared.repositories.root()) {
        (Role::Replica(source), _) => source.replica.master_keys(),
        (_, Some(root)) => match (ServerRoot::new(root), state.name.parse::<RepositoryName>()) {
            (Ok(root), Ok(name)) => load_master_keys(&root, &name),
            _ => return Trust::NotChecked,
        },
        (_, None) => return Trust::NotChecked,
    };
    let Ok(keys) = keys else { return Trust::NotChecked };
    let name = match &state.role {
        Role::Replica(source) => source.replica.name.clone(),
        Role::Publisher | Role::Storage => manifest.name.clone(),
    };
    let opened = state
        .storage
        .open()
        .and_then(|store| Repository::open(store, &name, &keys, super::unix_now(), &std::env::temp_dir()));
    opened.map_or_else(|error| Trust::Broken(error.to_string()), |_| Trust::Verified)
}

/// Reads the history of snapshots in the spool directory of a replica.
fn runs(spool: &Path) -> Vec<Run> {
    let text = std::fs::read_to_string(spool.join("snapshots.jsonl")).unwrap_or_default();
    let skipped = text.lines().count().saturating_sub(RUNS_MAX);
    let run = |line: &str| {
        let value: Value = serde_json::from_str(line).ok()?;
        Some(Run {
            start: UnixSeconds(value.get("start")?.as_i64()?),
            seconds: value.get("seconds").and_then(Value::as_f64).unwrap_or_default(),
            revision: value.get("revision").and_then(Value::as_u64),
            bytes: value.pointer("/counts/bytes").or(value.get("bytes")).and_then(Value::as_u64).unwrap_or_default(),
            error: value.get("error").and_then(Value::as_str).map(str::to_owned),
        })
    };
    text.lines().skip(skipped).filter_map(run).collect()
}

fn past(shelf: &mut Shelf, storage: &Storage, manifest: &Manifest) -> Result<Vec<Point>> {
    let mut revisions: BTreeMap<u64, (UnixSeconds, ContentHash, u64)> = BTreeMap::new();
    let tags = shelf.tags(storage, manifest).unwrap_or_default();
    for Tag { revision, timestamp, root, root_size, .. } in tags.iter().filter(|tag| tag.branch.is_empty()) {
        revisions.insert(*revision, (*timestamp, *root, *root_size));
    }
    let published = match manifest.timestamp {
        Some(published) => published,
        None => shelf.tree(storage, manifest.root_catalog)?.root_catalog()?.last_modified()?,
    };
    revisions.insert(manifest.revision, (published, manifest.root_catalog, 0));
    // All of them have a place in the plot; only some are looked into, the newest and others at equal distances.
    let step = revisions.len().div_ceil(PAST_MAX).max(1);
    let mut points = Vec::new();
    for (index, (revision, (time, root, size))) in revisions.into_iter().rev().enumerate() {
        let is_looked_into = index % step == 0 && size <= PAST_CATALOG_MAX;
        // A revision that was collected since is no reason to show none.
        let content = if is_looked_into { content(shelf, storage, root).ok() } else { None };
        points.push(Point { time, revision, content });
    }
    points.reverse();
    Ok(points)
}

fn content(shelf: &mut Shelf, storage: &Storage, root: ContentHash) -> Result<Content> {
    let catalog = shelf.tree(storage, root)?.root_catalog()?;
    let total = catalog.statistics()?.total();
    Ok(Content { entries: total.entries(), bytes: total.file_size, catalogs: total.nested + 1 })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is kept here is replaced as a whole, so it is whole after a panic, too.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_typo_does_not_take_a_repository_off() {
        let root = tempfile::tempdir().unwrap();
        let directory = |name: &str| root.path().join("etc/cvmfs/repositories.d").join(name);
        let replica = "replica.example.org";
        let publisher = "publisher.example.org";
        for name in [replica, publisher] {
            fs::create_dir_all(directory(name)).unwrap();
            fs::write(directory(name).join("server.conf"), format!("CVMFS_REPOSITORY_NAME={name}\n")).unwrap();
        }
        fs::write(directory(replica).join("replica.conf"), "CVMFS_HTTP_TIMEOUT=7\n").unwrap();
        let good = Configuration::load(root.path(), &Configuration::default());
        assert_eq!((good.publishers.len(), good.replicas.len()), (1, 1));
        fs::write(directory(replica).join("replica.conf"), "CVMFS_HTTP_TIMEOUT=soon\n").unwrap();
        fs::write(directory(publisher).join("server.conf"), "CVMFS_REPOSITORY_NAME=a/b\n").unwrap();
        let kept = Configuration::load(root.path(), &good);
        assert!(Arc::ptr_eq(&kept.replicas[replica], &good.replicas[replica]));
        assert!(kept.publishers.contains_key(publisher));
        // What is gone is gone.
        fs::remove_dir_all(directory(replica)).unwrap();
        assert!(Configuration::load(root.path(), &kept).replicas.is_empty());
    }
}
