//! Taking over the storage of a Stratum 1 that exists, in place.

use cvmfs_core::error::{Error, Result};
use cvmfs_core::hash::Algorithm;
use cvmfs_core::manifest::SignedManifest;
use cvmfs_core::reflog::StoredReflog;
use cvmfs_core::server::ServerRoot;
use cvmfs_core::storage::{LocalStore, NamedFile, ReadStore as _};
use cvmfs_core::trust::whitelist::SignedWhitelist;

use super::add::configure;
use super::{AddOptions, Replica, load_keys};
use crate::snapshot::source::stored_certificate;

/// Choices for taking over a storage.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Source, keys, name and storage of the replica. The name or the storage must be given.
    pub replica: AddOptions,
}

/// Configures a replica for a storage with a revision in it.
///
/// The storage stays as it is. Its manifest must be signed for the keys; the whitelist may have expired, as the next
/// snapshot brings a new one. That all objects are there is what the next snapshot makes sure of.
///
/// # Errors
/// `NotFound` if there is no storage with a manifest; `Untrusted`; `Conflict` if the name is taken.
pub fn import(root: &ServerRoot, options: &ImportOptions) -> Result<Replica> {
    let options = &options.replica;
    let storage = match (&options.storage, &options.alias) {
        (Some(storage), _) => storage.clone(),
        (None, Some(alias)) => root.storage_dir(alias),
        (None, None) => return Err(Error::invalid("import", "name the replica or the directory of its storage")),
    };
    let store = LocalStore::open(&storage)?;
    let manifest = SignedManifest::parse(&store.read(&NamedFile::Manifest.into())?)?;
    let name = manifest.unverified().name.clone();

    let whitelist = SignedWhitelist::parse(&store.read(&NamedFile::Whitelist.into())?)?;
    let keys = load_keys(&options.public_keys)?;
    // Any time before its end is fine.
    let whitelist = whitelist.verify(&name, &keys, whitelist.unverified().issued)?;
    let certificate = stored_certificate(&store, &manifest)?;
    whitelist.check_certificate(&certificate)?;
    let algorithm = manifest.verify(&name, &certificate)?.root_catalog.algorithm();

    let replica = configure(root, &name, &AddOptions { storage: Some(storage), ..options.clone() })?;
    adopt_reflog(&replica, &store, algorithm)?;
    Ok(replica)
}

/// The checksum of the reflog was in a spool directory that is not here.
fn adopt_reflog(replica: &Replica, store: &LocalStore, algorithm: Algorithm) -> Result<()> {
    let reflog = StoredReflog { store, spool: &replica.spool, name: &replica.name };
    if !reflog.has_checksum() {
        reflog.adopt(algorithm)?;
    }
    Ok(())
}
