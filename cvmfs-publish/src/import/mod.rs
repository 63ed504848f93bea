//! Taking over a storage that exists, in place.
//!
//! ```text
//! storage ─► manifest, certificate, whitelist ─► examine: what is there, what is believed, what is missing
//! keys    ─┘                                        │ nothing was changed
//! directories, keys, checksum of the reflog ◄───────┘
//!        └─► whitelist and key, if asked ─► configuration: from then on the repository is known to the tools
//! ```
//!
//! Nothing of the content is touched. The documents are replaced only if that is asked for, and in an order in which clients
//! accept what they find at every moment. Interrupted, the same call goes on.
//!
//! Source: `cvmfs/server/cvmfs_server_import.sh`.

mod keys;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use cvmfs_core::catalog::WritableCatalog;
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::PublishLock;
use cvmfs_core::compression::Compression;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::info;
use cvmfs_core::manifest::{DEFAULT_TTL, Manifest, SignedManifest};
use cvmfs_core::object;
use cvmfs_core::path::{RepoPath, RepositoryName};
use cvmfs_core::progress::Cancel;
use cvmfs_core::reflog::StoredReflog;
use cvmfs_core::repository::SMALL_OBJECT_MAX;
use cvmfs_core::server::{RepositoryConfig, ServerRoot, SystemUser};
use cvmfs_core::storage::{NamedFile, PruneStore, ReadStore, StoragePlace, WriteStore};
use cvmfs_core::trust::keys::{Certificate, PrivateKey};
use cvmfs_core::trust::whitelist::{DEFAULT_DAYS, SignedWhitelist, Whitelist};
use serde::Serialize;

use self::keys::Keys;
use crate::configuration;
use crate::mkfs::{REPLICABLE, as_text};
use crate::resign::{self, MasterKey};

/// Choices for taking over a storage.
#[derive(Debug, Clone)]
pub struct Options {
    /// The time.
    pub now: UnixSeconds,
    /// Directory of the storage; `None` for the usual place.
    pub storage: Option<PathBuf>,
    /// A storage that is defined as `CVMFS_UPSTREAM_STORAGE` does it; goes before the two others.
    pub upstream: Option<StoragePlace>,
    /// File with `CVMFS_S3_*` variables, for a repository in a bucket.
    pub s3: Option<PathBuf>,
    /// URL under which clients of this server find the storage; with a bucket its URL without the name of the repository.
    pub url: Option<String>,
    /// Directory with the keys: `.pub` or `.masterkey`, and `.key` with `.crt` to publish; `None` for that of the server.
    pub keys: Option<PathBuf>,
    /// Name of the system user who owns the repository; `None` for whoever owns the storage.
    pub owner: Option<String>,
    /// Give the storage to that user.
    pub chown: bool,
    /// Sign the whitelist again, with the master key, or take the signed `.whitelist` from the directory of keys.
    pub recreate_whitelist: bool,
    /// Make a new key and certificate, and sign whitelist and manifest anew.
    pub new_keys: bool,
    /// Days that a new whitelist is valid.
    pub whitelist_days: u32,
    /// Allow Stratum 1 servers to replicate.
    pub replicable: bool,
    /// Compression of file content from now on.
    pub compression: Compression,
    /// How long to wait for another publisher.
    pub patience: Duration,
}

impl Options {
    /// For the storage and the keys at their usual places.
    pub fn new(now: UnixSeconds) -> Self {
        Self {
            now,
            storage: None,
            upstream: None,
            s3: None,
            url: None,
            keys: None,
            owner: None,
            chown: false,
            recreate_whitelist: false,
            new_keys: false,
            whitelist_days: DEFAULT_DAYS,
            replicable: false,
            compression: Compression::default(),
            patience: Duration::from_mins(1),
        }
    }

    fn signs_whitelist(&self) -> bool {
        self.recreate_whitelist || self.new_keys
    }
}

/// What was taken over, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The repository.
    pub name: String,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// The newest revision.
    pub revision: u64,
    /// Its root catalog.
    pub root_hash: String,
    /// The storage.
    #[serde(serialize_with = "as_text")]
    pub storage: StoragePlace,
    /// The system user who owns the repository.
    pub owner: String,
    /// Whether there are keys to publish with; if not, it can be read, verified and replicated.
    pub can_publish: bool,
    /// Whether the key to publish with is new.
    pub new_keys: bool,
    /// Until when the whitelist is valid; `None` if a dry run cannot know.
    pub whitelist_expires: Option<String>,
    /// Whether it was signed again.
    pub whitelist_recreated: bool,
    /// What the operator should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Finds out what an import would do, and whether it would be refused.
///
/// # Errors
/// Those of [`import`].
pub fn rehearse(root: &ServerRoot, name: &RepositoryName, options: &Options) -> Result<Outcome> {
    let found = Found::examine(root, name, options)?;
    let expires = found.whitelist.as_ref().filter(|_| !options.signs_whitelist());
    let expires = expires.map(|whitelist| whitelist.unverified().expires.to_string());
    Ok(found.outcome(options, expires, true))
}

/// Takes over a storage.
///
/// # Errors
/// `Conflict` if the repository is configured already, other keys are in the way, or the storage has another owner;
/// `NotFound` for a missing storage, manifest or key that is needed; `Untrusted`, `Expired`, `Malformed` and
/// `HashMismatch` for documents that clients would not accept.
pub fn import(root: &ServerRoot, name: &RepositoryName, options: &Options, cancel: &Cancel) -> Result<Outcome> {
    Found::examine(root, name, options)?;
    let spool = root.spool_dir(name);
    fs::create_dir_all(&spool).at(&spool)?;
    let lock = PublishLock::acquire(&spool, Duration::ZERO, cancel)?;
    // Two may have had the same idea.
    let mut found = Found::examine(root, name, options)?;

    // 1. Directories and keys. What is copied without its empty directories gets them.
    if let StoragePlace::Local(directory) = &found.config.storage
        && (found.keys.can_publish() || options.signs_whitelist())
    {
        found.config.storage.create()?;
        if options.chown {
            give(directory, &found.owner)?;
        }
    }
    found.keys.install(root, name)?;

    // 2. The checksum of the reflog was in a spool directory that is not here.
    let algorithm = found.config.algorithm;
    let store = Arc::clone(&found.store) as Arc<dyn WriteStore>;
    let reflog = StoredReflog { store: &*store, spool: &spool, name };
    let has_reflog = match reflog.adopt(algorithm) {
        Ok(has_reflog) => has_reflog,
        Err(error) => {
            found.warnings.push(format!("the reflog cannot be used: {error}; `cvmfs-publish check --repair` mends it"));
            true
        }
    };
    if !has_reflog {
        found.warnings.push("there is no reflog; `cvmfs-publish check --repair` puts one together".into());
    }

    // 3. Documents.
    drop(lock);
    let expires = found.sign(root, options, cancel)?;
    if options.replicable {
        store.write(NamedFile::MasterReplica, REPLICABLE)?;
    }

    // 4. From here on the repository is known.
    if is_privileged() && found.owner.uid != 0 {
        give(&spool, &found.owner)?;
        let keys = ["pub", "key", "crt"].map(|extension| root.key_file(name, extension));
        keys.iter().filter(|file| file.exists()).try_for_each(|file| give(file, &found.owner))?;
    }
    configuration::write(root, &found.config, &found.url)?;
    found.warnings.extend(info::refresh_warnings(root));
    Ok(found.outcome(options, Some(expires.to_string()), false))
}

/// What is there, looked at without changing anything.
struct Found {
    config: RepositoryConfig,
    url: String,
    store: Arc<dyn PruneStore>,
    owner: SystemUser,
    keys: Keys,
    manifest: Manifest,
    /// The certificate that signed the manifest.
    certificate: Certificate,
    /// The whitelist in place, if the master key signed it, however long ago.
    whitelist: Option<SignedWhitelist>,
    warnings: Vec<String>,
}

impl Found {
    fn examine(root: &ServerRoot, name: &RepositoryName, options: &Options) -> Result<Self> {
        // 1. Nothing of that name may be configured.
        if let Some(file) = [root.server_conf(name), root.removed_conf(name)].iter().find(|file| file.exists()) {
            return Err(Error::conflict(format!("repository {name}"), format!("{} exists", file.display())));
        }
        let (storage, s3, url) = (options.storage.as_deref(), options.s3.as_deref(), options.url.as_deref());
        let (storage, url) = match &options.upstream {
            Some(StoragePlace::S3 { .. }) if url.is_none() => {
                return Err(Error::invalid("URL of the bucket", "clients cannot find it without"));
            }
            Some(place) => (place.clone(), configuration::place(root, name, None, None, url)?.1),
            None => configuration::place(root, name, storage, s3, url)?,
        };
        if let Some(other) = root.other_with_storage(name, &storage)? {
            return Err(Error::conflict(storage.to_string(), format!("it is the storage of {other} on this server")));
        }
        let owner = owner_of(&storage, options)?;
        let store = storage.open()?;

        // 2. The manifest is one of this repository, and signed with its certificate.
        let signed = SignedManifest::parse(&store.read(&NamedFile::Manifest.into())?)?;
        if signed.unverified().name != *name {
            let reason = format!("it is the storage of {}", signed.unverified().name);
            return Err(Error::invalid(storage.to_string(), reason));
        }
        let certificate = object::read_small(&*store, &signed.certificate_object(), SMALL_OBJECT_MAX)?;
        let certificate = Certificate::from_pem("certificate of the manifest", certificate)?;
        let manifest = signed.verify(name, &certificate)?.clone();

        // 3. The whitelist lists that certificate, or will.
        let keys = Keys::load(root, name, options)?;
        let mut warnings = Vec::new();
        let whitelist = check_whitelist(&*store, name, &keys, &certificate, options, &mut warnings)?;

        let config = RepositoryConfig {
            algorithm: manifest.root_catalog.algorithm(),
            compression: options.compression,
            garbage_collectable: manifest.garbage_collectable,
            shortcuts: manifest.shortcuts,
            ttl: Some(manifest.ttl).filter(|ttl| *ttl != DEFAULT_TTL),
            owner: owner.name.clone(),
            storage,
            ..RepositoryConfig::new(root, name)
        };
        let scratch = std::env::temp_dir();
        if let Err(error) = WritableCatalog::fetch(&*store, manifest.root_catalog, RepoPath::root(), &scratch) {
            warnings.push(match error {
                Error::Unsupported { what } => {
                    format!("{what}: nothing can be published before the catalogs are migrated")
                }
                error => format!("the newest revision cannot be read: {error}; `cvmfs-publish check` tells more"),
            });
        }
        Ok(Self { config, url, store, owner, keys, manifest, certificate, whitelist, warnings })
    }

    /// Signs what is to be signed; returns when the whitelist expires.
    fn sign(&self, root: &ServerRoot, options: &Options, cancel: &Cancel) -> Result<UnixSeconds> {
        let store = Arc::clone(&self.store) as Arc<dyn WriteStore>;
        if !options.signs_whitelist() {
            let whitelist = self.whitelist.as_ref().ok_or_else(|| Error::not_found("a whitelist"))?;
            return Ok(whitelist.unverified().expires);
        }
        match (&self.keys.master_key, &self.keys.whitelist) {
            (Some(master_key), _) if options.new_keys => {
                let resign = resign::Options {
                    now: options.now,
                    days: options.whitelist_days,
                    // Those of a list that nobody vouches for are not taken over.
                    keep_others: self.whitelist.is_some(),
                    also: vec![self.certificate.clone()],
                };
                let (config, master_key) = (self.config.clone(), MasterKey::File(master_key.clone()));
                resign::exchange_key(root, config, store, &master_key, &resign, options.patience, cancel)?;
                Ok(options.now.plus_days(options.whitelist_days))
            }
            (Some(master_key), _) => self.sign_whitelist(&*store, master_key, options),
            (None, Some(whitelist)) => {
                store.write(NamedFile::Whitelist, &whitelist.to_bytes())?;
                Ok(whitelist.unverified().expires)
            }
            (None, None) => Err(no_master_key(&self.config.name)),
        }
    }

    /// Signs a whitelist that lists what the present one does, and the certificates of the manifest and of the keys.
    fn sign_whitelist(
        &self,
        store: &dyn WriteStore,
        master_key: &PrivateKey,
        options: &Options,
    ) -> Result<UnixSeconds> {
        let RepositoryConfig { name, algorithm, .. } = &self.config;
        let ours = self.keys.pair.iter().map(|(_, certificate)| certificate);
        let certificates = ours.chain([&self.certificate]).map(|certificate| certificate.fingerprint(*algorithm));
        let others = self.whitelist.iter().flat_map(|whitelist| whitelist.unverified().fingerprints.clone());
        let mut fingerprints = Vec::new();
        for fingerprint in certificates.chain(others) {
            if !fingerprints.contains(&fingerprint) {
                fingerprints.push(fingerprint);
            }
        }
        let (issued, expires) = (options.now, options.now.plus_days(options.whitelist_days));
        let signed = Whitelist { issued, expires, name: name.clone(), fingerprints }.sign(*algorithm, master_key)?;
        signed.verify(name, slice::from_ref(&self.keys.public), options.now)?;
        store.write(NamedFile::Whitelist, &signed.to_bytes())?;
        Ok(expires)
    }

    fn outcome(self, options: &Options, whitelist_expires: Option<String>, dry_run: bool) -> Outcome {
        Outcome {
            name: self.config.name.to_string(),
            dry_run,
            revision: self.manifest.revision,
            root_hash: self.manifest.root_catalog.to_string(),
            storage: self.config.storage,
            owner: self.owner.name,
            can_publish: self.keys.pair.is_some() || options.new_keys,
            new_keys: options.new_keys,
            whitelist_expires,
            whitelist_recreated: options.signs_whitelist(),
            warnings: self.warnings,
        }
    }
}

/// Checks the whitelist in place, and returns it if the master key signed it.
///
/// # Errors
/// If clients would not accept it, unless it is to be replaced by one that they do.
fn check_whitelist(
    store: &dyn ReadStore,
    name: &RepositoryName,
    keys: &Keys,
    certificate: &Certificate,
    options: &Options,
    warnings: &mut Vec<String>,
) -> Result<Option<SignedWhitelist>> {
    let master = slice::from_ref(&keys.public);
    let read = store.read(&NamedFile::Whitelist.into()).and_then(|bytes| SignedWhitelist::parse(&bytes));
    if !options.signs_whitelist() {
        let signed = read?;
        let whitelist = signed.verify(name, master, options.now)?;
        whitelist.check_certificate(certificate)?;
        if let Some((_, ours)) = &keys.pair {
            whitelist.check_certificate(ours)?;
        }
        return Ok(Some(signed));
    }
    match (&keys.master_key, &keys.whitelist) {
        (Some(_), _) => {}
        (None, Some(whitelist)) if !options.new_keys => {
            let whitelist = whitelist.verify(name, master, options.now)?;
            whitelist.check_certificate(certificate)?;
            if let Some((_, ours)) = &keys.pair {
                whitelist.check_certificate(ours)?;
            }
        }
        (None, _) => return Err(no_master_key(name)),
    }
    let verified = read.and_then(|signed| {
        signed.verify_signature(name, master)?.check_certificate(certificate)?;
        Ok(signed)
    });
    match verified {
        Ok(signed) => Ok(Some(signed)),
        Err(error @ (Error::Unavailable { .. } | Error::Refused { .. } | Error::Io { .. })) => Err(error),
        Err(error) => {
            let fingerprint = certificate.fingerprint(cvmfs_core::hash::Algorithm::Sha1);
            warnings.push(format!(
                "the revision is believed as it is, signed by certificate {fingerprint}, which no whitelist vouches for: {error}"
            ));
            Ok(None)
        }
    }
}

fn no_master_key(name: &RepositoryName) -> Error {
    Error::not_found(format!("{name}.masterkey in the directory of keys, to sign the whitelist with,"))
}

/// Who will own the repository.
///
/// # Errors
/// `Conflict` if a storage directory belongs to somebody else and is not to be given away.
fn owner_of(storage: &StoragePlace, options: &Options) -> Result<SystemUser> {
    let StoragePlace::Local(directory) = storage else {
        return options.owner.as_deref().map_or_else(SystemUser::current, SystemUser::named);
    };
    let data = directory.join("data");
    let metadata = match fs::metadata(&data) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::not_found(format!("repository storage {}", directory.display())));
        }
        metadata => metadata.at(&data)?,
    };
    let present = SystemUser::of(metadata.uid(), metadata.gid())?;
    let Some(name) = &options.owner else { return Ok(present) };
    let owner = SystemUser::named(name)?;
    if owner.uid == present.uid || options.chown {
        return Ok(owner);
    }
    let reason = format!("it belongs to {}; --chown gives it to {}", present.name, owner.name);
    Err(Error::conflict(format!("storage {}", directory.display()), reason))
}

fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
}

/// Gives a file or a directory with all that is in it to a user; links are not followed below the first.
fn give(top: &Path, owner: &SystemUser) -> Result<()> {
    let mut todo = vec![fs::canonicalize(top).at(top)?];
    while let Some(path) = todo.pop() {
        let metadata = fs::symlink_metadata(&path).at(&path)?;
        if (metadata.uid(), metadata.gid()) != (owner.uid, owner.gid) {
            lchown(&path, Some(owner.uid), Some(owner.gid)).at(&path)?;
        }
        if metadata.is_dir() {
            for entry in fs::read_dir(&path).at(&path)? {
                todo.push(entry.at(&path)?.path());
            }
        }
    }
    Ok(())
}
