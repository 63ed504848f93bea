//! Configuring a replica, as the reference's `add-replica` does.
//!
//! Source: `cvmfs/server/cvmfs_server_add_replica.sh`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::fetch::{HttpStore, Url};
use cvmfs_core::manifest::SignedManifest;
use cvmfs_core::path::RepositoryName;
use cvmfs_core::server::ServerRoot;
use cvmfs_core::storage::{MemoryStore, NamedFile, ReadStore as _, StoragePlace};

use super::{Replica, Transfer, USUAL_WORKERS, load_keys, tell_server};
use crate::snapshot::source::check_source;

/// Layout of configuration and spool area that the reference's tools of today use.
const CREATOR_VERSION: u32 = 143;

/// Choices for a new replica.
#[derive(Debug, Clone)]
pub struct AddOptions {
    /// The time.
    pub now: UnixSeconds,
    /// Where to replicate from, the best first; at least one.
    pub sources: Vec<Url>,
    /// Files with master keys, and directories of such files.
    pub public_keys: Vec<PathBuf>,
    /// Its name on this server; `None` for the name of the repository.
    pub alias: Option<RepositoryName>,
    /// URL under which this server's own tools find it; `None` for `http://localhost/cvmfs/<alias>`. With a bucket the URL
    /// of that, without the name of the replica.
    pub url: Option<String>,
    /// File with `CVMFS_S3_*` variables, for a replica in a bucket.
    pub s3: Option<PathBuf>,
    /// Directory of the storage; `None` for the usual place.
    pub storage: Option<PathBuf>,
    /// Name of the system user who owns it.
    pub owner: String,
    /// Its group.
    pub group: String,
    /// Store nothing, pass requests on to the source.
    pub pass_through: bool,
    /// Whether the reference's tools collect garbage after snapshots.
    pub auto_gc: bool,
    /// The way to the sources, in the syntax of `CVMFS_HTTP_PROXY`.
    pub proxy: Option<String>,
    /// File of certificates that are trusted for `https` besides those of the system.
    pub ca_bundle: Option<PathBuf>,
    /// More lines for `replica.conf`: variables and values.
    pub settings: Vec<(String, String)>,
}

impl AddOptions {
    /// The defaults for a replica of these sources.
    pub fn new(now: UnixSeconds, sources: Vec<Url>, public_keys: Vec<PathBuf>) -> Self {
        Self {
            now,
            sources,
            public_keys,
            alias: None,
            url: None,
            s3: None,
            storage: None,
            owner: "root".into(),
            group: String::new(),
            pass_through: false,
            auto_gc: false,
            proxy: None,
            ca_bundle: None,
            settings: Vec::new(),
        }
    }
}

/// Configures a replica.
///
/// 1. the source must be open for replication, and its documents must verify with the given keys;
/// 2. nothing of that name may be configured;
/// 3. directories of storage and spool area;
/// 4. configuration files: from then on the replica is known to the tools.
///
/// # Errors
/// Those of the source and of the bucket; `Untrusted` for the wrong keys; `Conflict` if the name is taken.
pub fn add(root: &ServerRoot, options: &AddOptions) -> Result<Replica> {
    let proxies = options.proxy.as_deref().unwrap_or_default().parse()?;
    let transfer = Transfer { proxies, ca_bundle: options.ca_bundle.clone(), ..Transfer::default() };
    let source = HttpStore::new(options.sources.clone(), transfer.http_options(std::env::temp_dir()))?;
    let manifest = SignedManifest::parse(&source.read(&NamedFile::Manifest.into())?)?;
    let name = manifest.unverified().name.clone();
    if !options.pass_through {
        let keys = load_keys(&options.public_keys)?;
        check_source(&source, options.sources.len(), &MemoryStore::new(), &name, &keys, options.now)?;
    }
    configure(root, &name, options)
}

/// Makes directories and configuration files of a replica.
pub(super) fn configure(root: &ServerRoot, name: &RepositoryName, options: &AddOptions) -> Result<Replica> {
    let alias = options.alias.as_ref().unwrap_or(name);
    let config = root.config_dir(alias);
    if config.exists() {
        let reason = format!("{} exists; choose another name for the replica with --name", config.display());
        return Err(Error::conflict(format!("repository {alias}"), reason));
    }
    let spool = root.spool_dir(alias);
    let (storage, url) = place(root, alias, options)?;
    storage.create()?;
    fs::create_dir_all(&spool).at(&spool)?;
    match &storage {
        StoragePlace::Local(directory) => link_temporary_directory(directory, &spool)?,
        StoragePlace::S3 { temporary, .. } => fs::create_dir_all(temporary).at(temporary)?,
    }

    fs::create_dir_all(&config).at(&config)?;
    let write = |file: &str, text: &str| {
        let path = config.join(file);
        fs::write(&path, text).at(&path)
    };
    write("replica.conf", &replica_conf(options)?)?;
    // The server's file comes last: it is what makes the replica known.
    write("server.conf", &server_conf(name, &storage, &url, &spool, options))?;
    tell_server(root);
    Replica::load(root, alias)
}

/// Where the replica is stored, and the URL under which this server's own tools find it.
fn place(root: &ServerRoot, alias: &RepositoryName, options: &AddOptions) -> Result<(StoragePlace, String)> {
    let Some(file) = &options.s3 else {
        let storage = options.storage.clone().unwrap_or_else(|| root.storage_dir(alias));
        let storage = std::path::absolute(&storage).at(&storage)?;
        let url = options.url.clone().unwrap_or_else(|| format!("http://localhost/cvmfs/{alias}"));
        return Ok((StoragePlace::Local(storage), url));
    };
    if options.pass_through || options.storage.is_some() {
        return Err(Error::invalid("replica in a bucket", "it has no directory, and stores what it serves"));
    }
    let Some(url) = &options.url else {
        return Err(Error::invalid("URL of the bucket", "this server's tools cannot find the replica without"));
    };
    let (storage, url) = StoragePlace::in_bucket(file, root.spool_dir(alias).join("tmp"), alias, url)?;
    // Nothing is replicated into what somebody else has there.
    let manifest = storage.open()?.read(&NamedFile::Manifest.into());
    match manifest {
        Err(error) if error.is_not_found() => Ok((storage, url)),
        Err(error) => Err(error),
        Ok(_) => Err(Error::conflict(format!("repository {alias}"), format!("{storage} has a manifest already"))),
    }
}

/// The reference's tools expect temporary files of a local storage beside the objects.
fn link_temporary_directory(storage: &Path, spool: &Path) -> Result<()> {
    let link = spool.join("tmp");
    match symlink(storage.join("data/txn"), &link) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        result => result.at(&link),
    }
}

fn server_conf(name: &RepositoryName, storage: &StoragePlace, url: &str, spool: &Path, options: &AddOptions) -> String {
    let (storage, spool) = (storage.definition(), spool.display());
    let AddOptions { owner, group, .. } = options;
    let mut sources = options.sources.iter().map(|source| source.as_str().trim_end_matches('/'));
    let first = sources.next().unwrap_or_default();
    let mut text = format!(
        "# Created by cvmfs-replica.
CVMFS_CREATOR_VERSION={CREATOR_VERSION}
CVMFS_REPOSITORY_NAME={name}
CVMFS_REPOSITORY_TYPE=stratum1
CVMFS_USER={owner}
CVMFS_SPOOL_DIR={spool}
CVMFS_STRATUM0={first}
CVMFS_STRATUM1={url}
CVMFS_UPSTREAM_STORAGE={storage}
CVMFS_SNAPSHOT_GROUP={group}
"
    );
    let others = sources.collect::<Vec<_>>().join(";");
    if !others.is_empty() {
        text.push_str(&format!("CVMFS_REPLICA_FALLBACKS='{others}'\n"));
    }
    if options.auto_gc {
        text.push_str("CVMFS_AUTO_GC=true\n");
    }
    text
}

fn replica_conf(options: &AddOptions) -> Result<String> {
    let absolute = |path: &PathBuf| std::path::absolute(path).at(path).map(|path| path.display().to_string());
    let mut text = "# Created by cvmfs-replica.\n".to_owned();
    if options.pass_through {
        text.push_str("CVMFS_PASSTHROUGH=true\n");
    } else {
        let keys = options.public_keys.iter().map(absolute).collect::<Result<Vec<_>>>()?.join(":");
        text.push_str(&format!(
            "CVMFS_NUM_WORKERS={USUAL_WORKERS}\nCVMFS_PUBLIC_KEY={keys}\nCVMFS_HTTP_TIMEOUT=10\nCVMFS_HTTP_RETRIES=3\n"
        ));
    }
    let ca_bundle = options.ca_bundle.as_ref().map(absolute).transpose()?;
    let ca_bundle = ca_bundle.iter().map(|path| ("X509_CERT_BUNDLE", &path[..]));
    let proxy = options.proxy.iter().map(|proxy| ("CVMFS_HTTP_PROXY", &proxy[..]));
    let settings = options.settings.iter().map(|(key, value)| (&key[..], &value[..]));
    for (key, value) in proxy.chain(ca_bundle).chain(settings) {
        if value.contains(['\'', '\n']) {
            return Err(Error::invalid(key, "quotes and line ends cannot be kept in a configuration file"));
        }
        text.push_str(&format!("{key}='{value}'\n"));
    }
    Ok(text)
}
