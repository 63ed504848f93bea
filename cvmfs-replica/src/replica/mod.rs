//! Replicas of this server: their configuration, as the reference writes it, and how they come and go.
//!
//! ```text
//! etc/cvmfs/server.local                              for all repositories, optional
//! etc/cvmfs/repositories.d/<alias>/server.conf        what and where
//! etc/cvmfs/repositories.d/<alias>/replica.conf       how to fetch; makes it a replica
//! ```
//!
//! The *alias* names configuration, storage and URL; it is the name of the repository unless somebody chose another one.

mod add;
mod import;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::fetch::queue::QueueOptions;
use cvmfs_core::fetch::{Bandwidth, HttpOptions, ProxyChain, Url, parse_servers};
use cvmfs_core::info;
use cvmfs_core::lock::FileLock;
use cvmfs_core::path::RepositoryName;
use cvmfs_core::progress::{Cancel, Silent};
use cvmfs_core::server::{AutoGc, ServerRoot, Variables};
use cvmfs_core::statistics::StatisticsFile;
use cvmfs_core::storage::{NamedFile, PruneStore, ReadStore, StoragePlace};
use cvmfs_core::trust::keys::PublicKey;

use crate::select::Selection;

pub use add::{AddOptions, add};
pub use import::{ImportOptions, import};

/// Parallel downloads that the reference's tools write into every configuration.
const USUAL_WORKERS: usize = 16;
/// Most requests in flight if the configuration does not say.
const MAX_REQUESTS: usize = 512;

/// The checked configuration of a replica.
#[derive(Debug, Clone)]
pub struct Replica {
    /// Its name on this server.
    pub alias: RepositoryName,
    /// `CVMFS_REPOSITORY_NAME`: the repository.
    pub name: RepositoryName,
    /// `CVMFS_UPSTREAM_STORAGE`: the storage.
    pub storage: StoragePlace,
    /// Directory for working files.
    pub spool: PathBuf,
    /// `CVMFS_USER`: the system user who owns it.
    pub owner: String,
    /// `CVMFS_STRATUM0` and `CVMFS_REPLICA_FALLBACKS`: where to replicate from, the best first.
    pub sources: Vec<Url>,
    /// `CVMFS_STRATUM1`: where this server's own tools find it.
    pub url: String,
    /// `CVMFS_SNAPSHOT_GROUP`.
    pub group: String,
    /// Not `CVMFS_REPLICA_ACTIVE=no`: whether it is among all replicas when none is named.
    pub is_active: bool,
    /// `CVMFS_PASSTHROUGH`: nothing is stored, requests are passed on to the source.
    pub is_pass_through: bool,
    /// `CVMFS_REPLICA_PULL_THROUGH`: what clients ask for and is missing is fetched while they wait.
    pub pull_through: bool,
    /// `CVMFS_PUBLIC_KEY`: files with master keys, and directories of such files.
    pub public_keys: Vec<PathBuf>,
    /// How to fetch.
    pub transfer: Transfer,
    /// Collection of garbage on its own; if the source collects, its timespan is also the age to which former revisions
    /// are replicated.
    pub auto_gc: AutoGc,
    /// `CVMFS_REPLICA_SUBSCRIBE`: the server that tells of new revisions, such as `http://s0.example.org/api/v1`.
    pub subscription: Option<Url>,
    /// `CVMFS_GC_DELETION_LOG`: the file with a list of collected objects.
    pub deletion_log: Option<PathBuf>,
    /// The database with one row a collection of garbage.
    pub statistics: StatisticsFile,
    /// What of the repository is replicated.
    pub selection: Selection,
}

/// How a replica fetches.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// Most requests in flight. `CVMFS_NUM_WORKERS`, unless that is what every configuration says.
    pub max_requests: usize,
    /// `CVMFS_HTTP_TIMEOUT`: how long a connection may take, and a transfer may be too slow.
    pub timeout: Duration,
    /// The wait before what may pass is tried again; it grows from one time to the next.
    pub pause: Duration,
    /// `CVMFS_HTTP_RETRIES`: how often what may pass is tried again.
    pub retries: u32,
    /// `CVMFS_HTTP_PROXY`.
    pub proxies: ProxyChain,
    /// `CVMFS_REPLICA_BANDWIDTH`: most bytes a second.
    pub bytes_per_second: Option<u64>,
    /// `X509_CERT_BUNDLE`: certificates that are trusted for `https` besides those of the system.
    pub ca_bundle: Option<PathBuf>,
}

impl Default for Transfer {
    fn default() -> Self {
        Self {
            max_requests: MAX_REQUESTS,
            timeout: Duration::from_secs(10),
            pause: Duration::from_millis(500),
            retries: 3,
            proxies: ProxyChain::default(),
            bytes_per_second: None,
            ca_bundle: None,
        }
    }
}

impl Replica {
    /// Reads the configuration files.
    ///
    /// # Errors
    /// `NotFound` if there is no replica of that name; `InvalidInput` naming file and variable; `Unsupported` for a
    /// storage of another kind.
    pub fn load(root: &ServerRoot, alias: &RepositoryName) -> Result<Self> {
        let directory = root.config_dir(alias);
        let local = root.path().join("etc/cvmfs/server.local");
        let mut variables = if local.is_file() { Variables::load(&local)? } else { Variables::default() };
        variables.extend(Variables::load(&directory.join("server.conf"))?);
        let file = directory.join("replica.conf");
        if !file.is_file() {
            return Err(Error::not_found(format!(
                "a replica {alias} (it is a stratum0: {} is missing)",
                file.display()
            )));
        }
        variables.extend(Variables::load(&file)?);

        let storage = variables.storage()?.unwrap_or_else(|| StoragePlace::Local(root.storage_dir(alias)));
        let spool = variables.get("CVMFS_SPOOL_DIR").map_or_else(|| root.spool_dir(alias), PathBuf::from);
        let mut sources = parse_servers(variables.get("CVMFS_STRATUM0").unwrap_or_default())?;
        sources.extend(parse_servers(variables.get("CVMFS_REPLICA_FALLBACKS").unwrap_or_default())?);
        let text = |key| variables.get(key).unwrap_or_default().to_owned();
        let keys = text("CVMFS_PUBLIC_KEY");
        let name = variables.parse("CVMFS_REPOSITORY_NAME")?.unwrap_or_else(|| alias.clone());
        Ok(Self {
            statistics: StatisticsFile::configured(&variables, &spool, &name)?,
            name,
            alias: alias.clone(),
            storage,
            spool,
            owner: variables.get("CVMFS_USER").unwrap_or("root").to_owned(),
            sources,
            url: text("CVMFS_STRATUM1"),
            group: text("CVMFS_SNAPSHOT_GROUP"),
            is_active: variables.get("CVMFS_REPLICA_ACTIVE") != Some("no"),
            is_pass_through: variables.flag("CVMFS_PASSTHROUGH", false),
            pull_through: variables.flag("CVMFS_REPLICA_PULL_THROUGH", false),
            public_keys: keys.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect(),
            transfer: Transfer::of(&variables)?,
            auto_gc: AutoGc::of(&variables)?,
            subscription: parse_servers(variables.get("CVMFS_REPLICA_SUBSCRIBE").unwrap_or_default())?
                .into_iter()
                .next(),
            deletion_log: variables.get("CVMFS_GC_DELETION_LOG").map(PathBuf::from),
            selection: Selection::of(&variables)?,
        })
    }

    /// The aliases of all replicas of a server, sorted.
    pub fn aliases(root: &ServerRoot) -> Result<Vec<RepositoryName>> {
        let is_replica = |alias: &RepositoryName| root.config_dir(alias).join("replica.conf").is_file();
        Ok(root.repositories()?.into_iter().filter(is_replica).collect())
    }

    /// All replicas of a server, by alias.
    pub fn all(root: &ServerRoot) -> Result<Vec<Self>> {
        Self::aliases(root)?.iter().map(|alias| Self::load(root, alias)).collect()
    }

    /// Those whose configuration can be read, by alias: one that cannot must not keep a service from the others.
    ///
    /// # Errors
    /// `Io` if the configuration cannot be listed.
    pub fn all_readable(root: &ServerRoot) -> Result<Vec<Self>> {
        Ok(Self::aliases(root)?.iter().filter_map(|alias| Self::load(root, alias).ok()).collect())
    }

    /// The master keys that whitelists may be signed with.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub fn master_keys(&self) -> Result<Vec<PublicKey>> {
        load_keys(&self.public_keys)
    }

    /// A directory for databases in use.
    pub fn scratch(&self) -> Result<PathBuf> {
        let directory = self.spool.join("tmp");
        fs::create_dir_all(&directory).at(&directory)?;
        Ok(directory)
    }

    /// What requests to the sources have in common.
    pub fn http_options(&self) -> Result<HttpOptions> {
        Ok(self.transfer.http_options(self.scratch()?))
    }

    /// Takes the right to change the replica, waiting at most `patience`.
    ///
    /// # Errors
    /// `Conflict` if another process keeps it.
    pub fn lock(&self, patience: Duration, cancel: &Cancel) -> Result<FileLock> {
        fs::create_dir_all(&self.spool).at(&self.spool)?;
        let path = self.spool.join("is_updating.lock");
        FileLock::acquire(&path, patience, cancel)?.ok_or_else(|| {
            Error::conflict(format!("replica {}", self.alias), "a snapshot or garbage collection of it is running")
        })
    }

    /// When a snapshot of it ended well for the last time, 1970 if it does not say; `None` if that never happened.
    pub fn last_snapshot(&self) -> Result<Option<UnixSeconds>> {
        let read = |store: Arc<dyn PruneStore>| store.read(&NamedFile::LastSnapshot.into());
        match self.storage.open().and_then(read) {
            Err(error) if error.is_not_found() => Ok(None),
            text => {
                let date = UnixSeconds::parse_date_command(String::from_utf8_lossy(&text?).trim());
                Ok(Some(date.unwrap_or(UnixSeconds(0))))
            }
        }
    }

    /// Whether a snapshot of it ever ended well.
    pub fn is_complete(&self) -> Result<bool> {
        match self.storage.open() {
            Err(error) if error.is_not_found() => Ok(false),
            store => is_complete(&*store?),
        }
    }

    /// The manifest of the revision that it has, as it was signed; `None` before the first snapshot ended.
    pub fn manifest(&self) -> Result<Option<Vec<u8>>> {
        match self.storage.open() {
            Err(error) if error.is_not_found() => Ok(None),
            store => stored_manifest(&*store?),
        }
    }
}

/// Whether a snapshot into a storage ever ended well.
pub(crate) fn is_complete(store: &dyn ReadStore) -> Result<bool> {
    Ok(store.size(&NamedFile::LastSnapshot.into())?.is_some())
}

/// What is in the place of the manifest.
pub(crate) fn stored_manifest(store: &dyn ReadStore) -> Result<Option<Vec<u8>>> {
    match store.read(&NamedFile::Manifest.into()) {
        Err(error) if error.is_not_found() => Ok(None),
        bytes => bytes.map(Some),
    }
}

impl Transfer {
    /// What requests have in common; large objects wait in `scratch`.
    pub(crate) fn http_options(&self, scratch: PathBuf) -> HttpOptions {
        HttpOptions {
            proxies: self.proxies.clone(),
            connect_timeout: self.timeout,
            low_speed_time: self.timeout,
            retries: self.retries,
            backoff_initial: self.pause,
            bandwidth: self.bytes_per_second.map_or_else(Bandwidth::default, Bandwidth::limited),
            // As the reference's replication does.
            backoff_max: 4 * self.pause,
            // What is newest at the source counts, not what a cache on the way remembers.
            fresh_named_files: true,
            temporary_directory: Some(scratch),
            ca_bundle: self.ca_bundle.clone(),
            user_agent: concat!("cvmfs-replica/", env!("CARGO_PKG_VERSION")).to_owned(),
            ..HttpOptions::default()
        }
    }

    /// How many objects are fetched at a time.
    pub(crate) fn queue_options(&self) -> QueueOptions {
        QueueOptions { max_in_flight: self.max_requests, round_pause: 4 * self.pause, ..QueueOptions::default() }
    }

    fn of(variables: &Variables) -> Result<Self> {
        let default = Self::default();
        let workers = variables.parse("CVMFS_NUM_WORKERS")?.filter(|&workers| workers != USUAL_WORKERS && workers > 0);
        let timeout = variables.parse("CVMFS_HTTP_TIMEOUT")?.map_or(default.timeout, Duration::from_secs);
        let bandwidth = variables.get("CVMFS_REPLICA_BANDWIDTH").map(cvmfs_core::cli::parse_bytes).transpose()?;
        Ok(Self {
            max_requests: workers.unwrap_or(default.max_requests),
            timeout,
            pause: default.pause,
            retries: variables.parse("CVMFS_HTTP_RETRIES")?.unwrap_or(default.retries),
            proxies: variables.get("CVMFS_HTTP_PROXY").unwrap_or_default().parse()?,
            bytes_per_second: bandwidth,
            ca_bundle: variables.get("X509_CERT_BUNDLE").filter(|path| !path.is_empty()).map(PathBuf::from),
        })
    }
}

/// Loads master keys from files and from the `*.pub` files of directories.
///
/// # Errors
/// `NotFound` if there is no key at all.
pub fn load_keys(paths: &[PathBuf]) -> Result<Vec<PublicKey>> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let entries = fs::read_dir(path).at(path)?.map(|entry| entry.at(path).map(|entry| entry.path()));
            let mut keys = entries.collect::<Result<Vec<_>>>()?;
            keys.retain(|file| file.extension().is_some_and(|extension| extension == "pub"));
            keys.sort();
            files.extend(keys);
        } else {
            files.push(path.clone());
        }
    }
    if files.is_empty() {
        let places: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        return Err(Error::not_found(format!("a public key in {:?}", places.join(":"))));
    }
    let load = |file: &PathBuf| {
        let pem = fs::read(file).at(file)?;
        PublicKey::from_pem(&file.display().to_string(), &pem)
    };
    files.iter().map(load).collect()
}

/// Removes a replica: configuration, working files, and its storage unless that is to be kept.
///
/// # Errors
/// `Conflict` while something changes it.
pub fn remove(root: &ServerRoot, alias: &RepositoryName, keep_storage: bool, cancel: &Cancel) -> Result<Replica> {
    let replica = Replica::load(root, alias)?;
    let lock = replica.lock(Duration::ZERO, cancel)?;
    // A bucket may refuse, and then somebody must know of it.
    let is_in_bucket = replica.storage.directory().is_err();
    if is_in_bucket && !keep_storage {
        remove_storage(&replica.storage, cancel)?;
    }
    // The configuration goes before directories: what is left of a removal that was interrupted is known to nobody.
    remove_tree(&root.config_dir(alias))?;
    if !is_in_bucket && !keep_storage {
        remove_storage(&replica.storage, cancel)?;
    }
    remove_tree(&replica.spool)?;
    drop(lock);
    tell_server(root);
    Ok(replica)
}

/// Brings the list of repositories up to date that other web servers serve.
fn tell_server(root: &ServerRoot) {
    for warning in info::refresh_warnings(root) {
        tracing::warn!("{warning}");
    }
}

fn remove_storage(storage: &StoragePlace, cancel: &Cancel) -> Result<()> {
    for path in storage.remove(&Silent, cancel)?.left {
        tracing::warn!(path = %path.display(), "not of a repository, and left");
    }
    Ok(())
}

fn remove_tree(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.at(directory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(server: &str, replica: &str) -> (tempfile::TempDir, Result<Replica>) {
        let directory = tempfile::tempdir().unwrap();
        let root = ServerRoot::new(directory.path()).unwrap();
        let alias: RepositoryName = "mirror.example.org".parse().unwrap();
        let config = root.config_dir(&alias);
        fs::create_dir_all(&config).unwrap();
        fs::write(config.join("server.conf"), server).unwrap();
        fs::write(config.join("replica.conf"), replica).unwrap();
        (directory, Replica::load(&root, &alias))
    }

    /// The files that the reference's `add-replica` writes, and what people add.
    #[test]
    fn reads_the_variables_of_the_reference() {
        let server = "CVMFS_REPOSITORY_NAME=software.example.org\nCVMFS_REPOSITORY_TYPE=stratum1\nCVMFS_USER=cvmfs\n\
                      CVMFS_SPOOL_DIR=/spool/x\nCVMFS_STRATUM0=http://s0/cvmfs/software.example.org\n\
                      CVMFS_STRATUM1=http://localhost/cvmfs/mirror.example.org\n\
                      CVMFS_UPSTREAM_STORAGE=local,/srv/x/data/txn,/srv/x\nCVMFS_SNAPSHOT_GROUP=\n";
        let usual = "CVMFS_NUM_WORKERS=16\nCVMFS_PUBLIC_KEY=/keys/a.pub:/keys/dir\nCVMFS_HTTP_TIMEOUT=7\nCVMFS_HTTP_RETRIES=2\n";
        let (_directory, replica) = configured(server, usual);
        let replica = replica.unwrap();
        assert_eq!(replica.name.as_str(), "software.example.org");
        assert_eq!((replica.storage, replica.spool), (StoragePlace::Local("/srv/x".into()), "/spool/x".into()));
        assert_eq!(replica.public_keys, [PathBuf::from("/keys/a.pub"), "/keys/dir".into()]);
        assert_eq!((replica.owner.as_str(), replica.group.as_str(), replica.auto_gc.timespan_days), ("cvmfs", "", 3));
        assert!(replica.is_active && !replica.is_pass_through);
        let Transfer { max_requests, timeout, retries, .. } = replica.transfer;
        assert_eq!((max_requests, timeout, retries), (512, Duration::from_secs(7), 2));

        let more = "CVMFS_NUM_WORKERS=4\nCVMFS_REPLICA_ACTIVE=no\nCVMFS_REPLICA_FALLBACKS='http://b/;http://c/'\n\
                    CVMFS_HTTP_PROXY=http://squid:3128\nCVMFS_REPLICA_BANDWIDTH=2M\nCVMFS_AUTO_GC_TIMESPAN='2 weeks ago'\n";
        let (_directory, replica) = configured(server, more);
        let replica = replica.unwrap();
        let hosts: Vec<_> = replica.sources.iter().filter_map(Url::host_str).collect();
        assert_eq!(hosts, ["s0", "b", "c"]);
        assert_eq!((replica.is_active, replica.auto_gc.timespan_days), (false, 14));
        assert_eq!((replica.transfer.max_requests, replica.transfer.bytes_per_second), (4, Some(2 << 20)));
        assert_eq!(format!("{:?}", replica.transfer.proxies), "[[http://squid:3128/]]");
    }

    #[test]
    fn impossible_configurations_are_refused() {
        for (server, replica) in [
            ("CVMFS_UPSTREAM_STORAGE=gw,/tmp,http://gateway", ""),
            ("", "CVMFS_HTTP_TIMEOUT=soon"),
            ("CVMFS_STRATUM0=ftp://s0/", ""),
            ("", "CVMFS_REPLICA_BANDWIDTH=fast"),
        ] {
            assert!(configured(server, replica).1.is_err(), "{server}{replica}");
        }
    }
}
