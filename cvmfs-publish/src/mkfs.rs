//! Making a repository.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use cvmfs_core::catalog::{Counters, Finish, Row, WritableCatalog};
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::{self, NewRoot, PublishLock, Publisher};
use cvmfs_core::compression::Compression;
use cvmfs_core::entry::{Entry, Mtime};
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::hash::{Algorithm, ContentHash, ObjectKind};
use cvmfs_core::info;
use cvmfs_core::path::{RepoPath, RepositoryName};
use cvmfs_core::progress::Cancel;
use cvmfs_core::server::{AutomaticNesting, NestingConfig, PublisherKeys, RepositoryConfig, ServerRoot};
use cvmfs_core::storage::{NamedFile, ReadStore, StoragePlace, WriteStore};
use cvmfs_core::trust::keys::{Certificate, PrivateKey};
use cvmfs_core::trust::whitelist::{DEFAULT_DAYS, Whitelist};
use serde::Serialize;

use crate::configuration;

/// What the reference writes into the file that allows replication.
pub(crate) const REPLICABLE: &[u8] = b"This file marks the repository as replicatable to stratum 1 servers\n";

/// What every storage of a repository has.
const STORED: [NamedFile; 3] = [NamedFile::Manifest, NamedFile::Whitelist, NamedFile::Reflog];

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
    /// URL under which clients of this server find the storage; `None` for `http://localhost/cvmfs/<fqrn>`. With a bucket
    /// it is the URL of that, without the name of the repository, and must be given.
    pub url: Option<String>,
    /// File with `CVMFS_S3_*` variables, for a repository in a bucket.
    pub s3: Option<PathBuf>,
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
            s3: None,
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
    /// The storage.
    #[serde(serialize_with = "as_text")]
    pub storage: StoragePlace,
    /// Public master key, to be given to clients.
    pub public_key: PathBuf,
    /// Master key, to be kept safe.
    pub master_key: Option<PathBuf>,
    /// Until when the whitelist is valid.
    pub whitelist_expires: String,
    /// What the operator should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
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
    let (storage, url) = configuration::place(root, name, None, options.s3.as_deref(), options.url.as_deref())?;
    let automatic = options.auto_catalogs.then(AutomaticNesting::default);
    let config = RepositoryConfig {
        storage,
        algorithm: options.algorithm,
        compression: options.compression,
        garbage_collectable: options.garbage_collectable,
        auto_tag: options.auto_tag,
        ttl: options.ttl,
        owner: options.owner.clone(),
        nesting: NestingConfig { automatic, ..NestingConfig::default() },
        ..RepositoryConfig::new(root, name)
    };
    refuse_existing(root, &config)?;
    fs::create_dir_all(&config.spool).at(&config.spool)?;
    let _lock = PublishLock::acquire(&config.spool, std::time::Duration::ZERO, &Cancel::new())?;
    refuse_existing(root, &config)?;
    let store = config.storage.create()?;
    refuse_stored(&config, &*store)?;

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
        publisher.store.write(NamedFile::MasterReplica, REPLICABLE)?;
    }

    configuration::write(root, &publisher.config, &url)?;
    Ok(Outcome {
        warnings: info::refresh_warnings(root),
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
    if let StoragePlace::Local(storage) = &config.storage {
        traces.extend(STORED.map(|file| storage.join(file.name())));
    }
    match traces.iter().find(|trace| trace.exists()) {
        Some(trace) => {
            Err(Error::conflict(format!("repository {}", config.name), format!("{} exists", trace.display())))
        }
        None => Ok(()),
    }
}

/// What is in a bucket cannot be seen without asking.
fn refuse_stored(config: &RepositoryConfig, store: &dyn ReadStore) -> Result<()> {
    for file in STORED {
        if store.size(&file.into())?.is_some() {
            let reason = format!("{} exists", store.describe(&file.into()));
            return Err(Error::conflict(format!("repository {}", config.name), reason));
        }
    }
    Ok(())
}

pub(crate) fn as_text<S: serde::Serializer>(
    place: &StoragePlace,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(place)
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

/// Writes a key that is not there yet. It appears as a whole: half a key would be in the way of the next attempt.
pub(crate) fn write_key(
    root: &ServerRoot,
    name: &RepositoryName,
    extension: &str,
    mode: u32,
    content: &[u8],
) -> Result<()> {
    let directory = root.keys_dir();
    fs::create_dir_all(&directory).at(&directory)?;
    let path = root.key_file(name, extension);
    // The mode is set on creation: a private key is never readable for others, not even for a moment.
    let permissions = fs::Permissions::from_mode(mode);
    let new = tempfile::Builder::new().prefix(".new-").permissions(permissions).tempfile_in(&directory);
    let mut new = new.at(&directory)?;
    new.write_all(content).and_then(|()| new.as_file().sync_all()).at(&path)?;
    new.persist_noclobber(&path).map(drop).map_err(|error| Error::io(&path, error.error))
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
    // Somebody else may be making the same repository on another machine.
    if !store.write_if(NamedFile::Whitelist, &bytes, &|current| current.is_none())? {
        let reason = format!("{} exists", store.describe(&NamedFile::Whitelist.into()));
        return Err(Error::conflict(format!("repository {name}"), reason));
    }
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
    let metainfo = info::repository_template();
    let metainfo =
        commit::store_stock(&*publisher.store, options.algorithm, ObjectKind::Metainfo, metainfo.as_bytes())?;
    let root =
        NewRoot { hash: catalog.hash, size: plain.len() as u64, revision: finished.revision, modified: options.now };
    publisher.publish_root(None, &root, options.now, Some(metainfo), |history| {
        history.advance_trunk(&root.tag(String::new(), String::new()))
    })
}
