//! Making a repository.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cvmfs_core::catalog::{Counters, Finish, Row, WritableCatalog};
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::{self, NewRoot, PublishLock, Publisher};
use cvmfs_core::compression::Compression;
use cvmfs_core::entry::{Entry, Mtime};
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::hash::{Algorithm, ContentHash, ObjectKind};
use cvmfs_core::path::{RepoPath, RepositoryName};
use cvmfs_core::progress::Cancel;
use cvmfs_core::server::{PublisherKeys, RepositoryConfig, ServerRoot};
use cvmfs_core::storage::{LocalStore, NamedFile, WriteStore};
use cvmfs_core::trust::keys::{Certificate, PrivateKey};
use cvmfs_core::trust::whitelist::{DEFAULT_DAYS, Whitelist};
use serde::Serialize;

/// Layout of configuration and spool area that the reference's tools of today use.
const CREATOR_VERSION: u32 = 143;

/// Choices for a new repository.
#[derive(Debug, Clone)]
pub struct Options {
    /// The time of the first revision.
    pub now: UnixSeconds,
    /// Hash algorithm.
    pub algorithm: Algorithm,
    /// Compression of file content.
    pub compression: Compression,
    /// Whether old revisions may be collected.
    pub garbage_collectable: bool,
    /// Seconds that a client may wait before it asks for a new revision; `None` for the default of 240.
    pub ttl: Option<u32>,
    /// Whether clients should treat the content as short-lived in their caches.
    pub volatile: bool,
    /// Whether publishing names each revision by its time.
    pub auto_tag: bool,
    /// Whether catalogs are split automatically.
    pub auto_catalogs: bool,
    /// Whether Stratum 1 servers may replicate.
    pub replicable: bool,
    /// Name of the system user who owns the repository; recorded in the configuration.
    pub owner: String,
    /// Owner and group of the root directory.
    pub owner_ids: (u32, u32),
    /// URL under which clients of this server find the storage; `None` for `http://localhost/cvmfs/<fqrn>`.
    pub url: Option<String>,
    /// Directory with existing keys of the repository to use: `.masterkey`, `.pub`, `.key`, `.crt`.
    ///
    /// Without a master key there must be a signed `.whitelist`.
    pub keys: Option<PathBuf>,
    /// Days that the whitelist is valid.
    pub whitelist_days: u32,
}

impl Options {
    /// The defaults for a repository made at `now`.
    pub fn new(now: UnixSeconds) -> Self {
        Self {
            now,
            algorithm: Algorithm::default(),
            compression: Compression::default(),
            garbage_collectable: false,
            ttl: None,
            volatile: false,
            auto_tag: true,
            auto_catalogs: false,
            replicable: true,
            owner: "root".into(),
            owner_ids: (0, 0),
            url: None,
            keys: None,
            whitelist_days: DEFAULT_DAYS,
        }
    }
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The repository.
    pub name: String,
    /// Its first revision.
    pub revision: u64,
    /// The root catalog of that.
    pub root_hash: String,
    /// Directory of the storage.
    pub storage: PathBuf,
    /// Public master key, to be given to clients.
    pub public_key: PathBuf,
    /// Master key, to be kept safe.
    pub master_key: Option<PathBuf>,
    /// Until when the whitelist is valid.
    pub whitelist_expires: String,
}

/// Makes a repository with an empty first revision.
///
/// 1. nothing of it may exist;
/// 2. directories and keys;
/// 3. whitelist;
/// 4. the first revision: root catalog, tags, meta info, reflog, manifest;
/// 5. configuration files: from then on the repository is known to the tools.
///
/// # Errors
/// `Conflict` if configuration, storage or keys of that name exist. After any other failure what was made stays, for
/// inspection, and has to be removed before the next try.
pub fn mkfs(root: &ServerRoot, name: &RepositoryName, options: &Options) -> Result<Outcome> {
    let config = RepositoryConfig {
        algorithm: options.algorithm,
        compression: options.compression,
        garbage_collectable: options.garbage_collectable,
        auto_tag: options.auto_tag,
        ttl: options.ttl,
        owner: options.owner.clone(),
        ..RepositoryConfig::new(root, name)
    };
    refuse_existing(root, &config)?;
    fs::create_dir_all(&config.spool).at(&config.spool)?;
    let _lock = PublishLock::acquire(&config.spool, std::time::Duration::ZERO, &Cancel::new())?;
    refuse_existing(root, &config)?;
    let store = Arc::new(LocalStore::create(&config.storage)?);

    let (keys, master_key) = match &options.keys {
        Some(directory) => import_keys(root, name, directory)?,
        None => create_keys(root, name)?,
    };
    let whitelist_expires = write_whitelist(&*store, root, name, options, &keys, master_key.as_ref())?;

    let publisher = Publisher { config, keys, store };
    let (uid, gid) = options.owner_ids;
    let first = Entry::directory(0o755, uid, gid, Mtime::seconds(options.now.0));
    let manifest = publish_first_revision(&publisher, options, first)?;
    if options.replicable {
        let note = b"This file marks the repository as replicatable to stratum 1 servers\n";
        publisher.store.write(NamedFile::MasterReplica, note)?;
    }

    write_configuration(root, &publisher.config, options)?;
    Ok(Outcome {
        name: name.to_string(),
        revision: manifest.revision,
        root_hash: manifest.root_catalog.to_string(),
        storage: publisher.config.storage,
        public_key: root.key_file(name, "pub"),
        master_key: master_key.map(|_| root.key_file(name, "masterkey")),
        whitelist_expires: whitelist_expires.to_string(),
    })
}

fn refuse_existing(root: &ServerRoot, config: &RepositoryConfig) -> Result<()> {
    let mut traces = vec![root.config_dir(&config.name)];
    traces.extend(["masterkey", "pub", "key", "crt"].map(|extension| root.key_file(&config.name, extension)));
    traces.extend(
        [NamedFile::Manifest, NamedFile::Whitelist, NamedFile::Reflog].map(|file| config.storage.join(file.name())),
    );
    match traces.iter().find(|trace| trace.exists()) {
        Some(trace) => {
            Err(Error::conflict(format!("repository {}", config.name), format!("{} exists", trace.display())))
        }
        None => Ok(()),
    }
}

/// Makes master key, repository key and certificate.
fn create_keys(root: &ServerRoot, name: &RepositoryName) -> Result<(PublisherKeys, Option<PrivateKey>)> {
    let (master, key) = (PrivateKey::generate()?, PrivateKey::generate()?);
    let certificate = Certificate::create(name, &key)?;
    let public = master.public()?;
    write_key(root, name, "masterkey", 0o400, &master.to_pem()?)?;
    write_key(root, name, "pub", 0o444, &public.to_pem()?)?;
    write_key(root, name, "key", 0o400, &key.to_pem()?)?;
    write_key(root, name, "crt", 0o444, certificate.pem())?;
    Ok((PublisherKeys { key, certificate, master: vec![public] }, Some(master)))
}

/// Copies keys that exist; the public key may be derived from the master key, which may be kept elsewhere.
fn import_keys(root: &ServerRoot, name: &RepositoryName, from: &Path) -> Result<(PublisherKeys, Option<PrivateKey>)> {
    let file = |extension| from.join(format!("{name}.{extension}"));
    let read = |extension| fs::read(file(extension)).at(file(extension));
    let master = match fs::read(file("masterkey")) {
        Ok(pem) => Some(PrivateKey::from_pem(&file("masterkey").display().to_string(), &pem)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io(file("masterkey"), error)),
    };
    if let Some(master) = &master {
        write_key(root, name, "masterkey", 0o400, &master.to_pem()?)?;
    }
    let public = match &master {
        Some(master) => master.public()?.to_pem()?,
        None => read("pub")?,
    };
    write_key(root, name, "pub", 0o444, &public)?;
    write_key(root, name, "key", 0o400, &read("key")?)?;
    write_key(root, name, "crt", 0o444, &read("crt")?)?;
    Ok((PublisherKeys::load(root, name)?, master))
}

fn write_key(root: &ServerRoot, name: &RepositoryName, extension: &str, mode: u32, content: &[u8]) -> Result<()> {
    let directory = root.keys_dir();
    fs::create_dir_all(&directory).at(&directory)?;
    let path = root.key_file(name, extension);
    // The mode is set on creation: a private key is never readable for others, not even for a moment.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).at(&path)?;
    file.write_all(content).and_then(|()| file.sync_all()).at(&path)
}

/// Signs a whitelist for the certificate, or takes the one that came with the keys, and returns its expiry.
fn write_whitelist(
    store: &dyn WriteStore,
    root: &ServerRoot,
    name: &RepositoryName,
    options: &Options,
    keys: &PublisherKeys,
    master_key: Option<&PrivateKey>,
) -> Result<UnixSeconds> {
    let bytes = match (master_key, &options.keys) {
        (Some(master_key), _) => {
            let whitelist = Whitelist {
                issued: options.now,
                expires: options.now.plus_days(options.whitelist_days),
                name: name.clone(),
                fingerprints: vec![keys.certificate.fingerprint(options.algorithm)],
            };
            whitelist.sign(options.algorithm, master_key)?.to_bytes()
        }
        (None, Some(directory)) => {
            let file = directory.join(format!("{name}.whitelist"));
            fs::read(&file).at(&file)?
        }
        (None, None) => return Err(Error::not_found(root.key_file(name, "masterkey").display().to_string())),
    };
    let signed = cvmfs_core::trust::whitelist::SignedWhitelist::parse(&bytes)?;
    let whitelist = signed.verify(name, &keys.master, options.now)?;
    whitelist.check_certificate(&keys.certificate)?;
    store.write(NamedFile::Whitelist, &bytes)?;
    Ok(whitelist.expires)
}

fn publish_first_revision(
    publisher: &Publisher,
    options: &Options,
    root_directory: Entry,
) -> Result<cvmfs_core::manifest::Manifest> {
    let mut catalog = WritableCatalog::create(RepoPath::root(), &publisher.scratch()?)?;
    catalog.add(&Row::new(&RepoPath::root(), root_directory))?;
    if options.volatile {
        catalog.set_property("volatile", &1)?;
    }
    if let Some(ttl) = options.ttl {
        catalog.set_property("TTL", &ttl)?;
    }
    let previous = ContentHash::null(options.algorithm);
    let finished =
        catalog.finish(&Finish { now: options.now, previous, subtree: Counters::default(), revision: None })?;
    let plain = fs::read(&finished.file).at(&finished.file)?;
    let catalog = commit::store_stock(&*publisher.store, options.algorithm, ObjectKind::Catalog, &plain)?;
    let metainfo = serde_json::json!({
        "administrator": "", "email": "", "organisation": "", "description": "", "url": "",
        "recommended-stratum0": "", "recommended-stratum1s": [], "custom": {},
    });
    let metainfo = format!("{metainfo:#}\n");
    let metainfo =
        commit::store_stock(&*publisher.store, options.algorithm, ObjectKind::Metainfo, metainfo.as_bytes())?;
    let root =
        NewRoot { hash: catalog.hash, size: plain.len() as u64, revision: finished.revision, modified: options.now };
    publisher.publish_root(None, &root, options.now, Some(metainfo), |history| {
        history.advance_trunk(&root.tag(String::new(), String::new()))
    })
}

/// Writes `server.conf` and `client.conf` as the reference's tools do and read them.
fn write_configuration(root: &ServerRoot, config: &RepositoryConfig, options: &Options) -> Result<()> {
    let RepositoryConfig { name, storage, spool, algorithm, .. } = config;
    let (storage, spool) = (storage.display(), spool.display());
    let compression = match config.compression {
        Compression::Zlib => "default",
        Compression::None => "none",
    };
    let url = options.url.clone().unwrap_or_else(|| format!("http://localhost/cvmfs/{name}"));
    let owner = &options.owner;
    let (auto_tag, collectable, auto_catalogs) = (options.auto_tag, options.garbage_collectable, options.auto_catalogs);
    let mut server = format!(
        "# Created by cvmfs-publish.
CVMFS_CREATOR_VERSION={CREATOR_VERSION}
CVMFS_REPOSITORY_NAME={name}
CVMFS_REPOSITORY_TYPE=stratum0
CVMFS_USER={owner}
CVMFS_UNION_DIR=/cvmfs/{name}
CVMFS_SPOOL_DIR={spool}
CVMFS_STRATUM0={url}
CVMFS_UPSTREAM_STORAGE=local,{storage}/data/txn,{storage}
CVMFS_USE_FILE_CHUNKING=true
CVMFS_MIN_CHUNK_SIZE=4194304
CVMFS_AVG_CHUNK_SIZE=8388608
CVMFS_MAX_CHUNK_SIZE=16777216
CVMFS_UNION_FS_TYPE=overlayfs
CVMFS_HASH_ALGORITHM={algorithm}
CVMFS_COMPRESSION_ALGORITHM={compression}
CVMFS_EXTERNAL_DATA=false
CVMFS_AUTO_TAG={auto_tag}
CVMFS_AUTO_TAG_TIMESPAN=\"\"
CVMFS_GARBAGE_COLLECTION={collectable}
CVMFS_AUTO_REPAIR_MOUNTPOINT=true
CVMFS_AUTOCATALOGS={auto_catalogs}
CVMFS_ASYNC_SCRATCH_CLEANUP=true
CVMFS_PRINT_STATISTICS=false
CVMFS_UPLOAD_STATS_DB=false
CVMFS_UPLOAD_STATS_PLOTS=false
CVMFS_IGNORE_XDIR_HARDLINKS=true
CVMFS_INCLUDE_XATTRS=true
CVMFS_ENABLE_MTIME_NS=true
"
    );
    if let Some(ttl) = options.ttl {
        server.push_str(&format!("CVMFS_REPOSITORY_TTL={ttl}\n"));
    }
    let public_key = root.key_file(name, "pub");
    let client = format!(
        "# Created by cvmfs-publish.
CVMFS_CACHE_BASE={spool}/cache
CVMFS_RELOAD_SOCKETS={spool}/cache
CVMFS_QUOTA_LIMIT=4000
CVMFS_MOUNT_DIR=/cvmfs
CVMFS_SERVER_URL={url}
CVMFS_HTTP_PROXY=DIRECT
CVMFS_PUBLIC_KEY={public_key}
CVMFS_CHECK_PERMISSIONS=yes
CVMFS_IGNORE_SIGNATURE=no
CVMFS_AUTO_UPDATE=no
CVMFS_NFS_SOURCE=no
CVMFS_MAGIC_XATTRS_VISIBILITY=never
CVMFS_FOLLOW_REDIRECTS=yes
CVMFS_SERVER_CACHE_MODE=yes
CVMFS_NFILES=65536
CVMFS_TALK_SOCKET={spool}/cvmfs_io
CVMFS_TALK_OWNER={owner}
CVMFS_USE_SSL_SYSTEM_CA=true
",
        public_key = public_key.display()
    );
    let directory = root.config_dir(name);
    fs::create_dir_all(&directory).at(&directory)?;
    let write = |file: &str, text: &str| {
        let path = directory.join(file);
        fs::write(&path, text).at(&path)
    };
    // The server's file comes last: it is what makes the repository known.
    write("client.conf", &client)?;
    write("server.conf", &server)
}
