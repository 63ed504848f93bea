//! What a source says it has: manifest, whitelist and certificate, fetched and verified.

use std::io::Write as _;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::fetch::HttpStore;
use cvmfs_core::hash::ObjectId;
use cvmfs_core::manifest::{Manifest, SignedManifest};
use cvmfs_core::object;
use cvmfs_core::path::RepositoryName;
use cvmfs_core::storage::{Key, NamedFile, ReadStore, WriteStore};
use cvmfs_core::trust::keys::{Certificate, PublicKey};
use cvmfs_core::trust::whitelist::SignedWhitelist;

/// Largest certificate that we inflate, in bytes.
const CERTIFICATE_MAX: u64 = 1 << 20;

/// The verified documents of a source.
#[derive(Debug)]
pub(crate) struct Documents {
    pub(crate) manifest: Manifest,
    /// As it was signed.
    pub(crate) manifest_bytes: Vec<u8>,
    pub(crate) whitelist_bytes: Vec<u8>,
    /// The stored bytes of the certificate's object.
    pub(crate) certificate_bytes: Vec<u8>,
    /// Whether that was in the storage.
    pub(crate) has_certificate: bool,
}

/// Who may sign, and what for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trust<'a> {
    pub(crate) name: &'a RepositoryName,
    pub(crate) keys: &'a [PublicKey],
    pub(crate) now: UnixSeconds,
}

impl Documents {
    /// Fetches and verifies the documents. The manifest may be at hand already; a certificate in `storage` is not fetched
    /// again.
    ///
    /// Keys may change between two requests, and then the parts do not fit: everything is fetched once more. After that
    /// the next source is asked.
    ///
    /// # Errors
    /// Those of the first source, if no source has documents that verify.
    pub(crate) fn fetch(
        source: &HttpStore,
        servers: usize,
        storage: &dyn ReadStore,
        manifest: Option<Vec<u8>>,
        trust: Trust<'_>,
        accept: impl Fn(&Manifest) -> Result<()>,
    ) -> Result<Self> {
        let (mut manifest, mut first_error) = (manifest, None);
        for attempt in 0..2 * servers {
            let fetched = Self::fetch_once(source, storage, manifest.take(), trust).and_then(|documents| {
                accept(&documents.manifest)?;
                Ok(documents)
            });
            match fetched {
                Ok(documents) => return Ok(documents),
                Err(error @ (Error::Io { .. } | Error::Cancelled | Error::Unavailable { .. })) => {
                    return Err(first_error.unwrap_or(error));
                }
                Err(error) => {
                    tracing::warn!(%error, "the documents of a source are not accepted");
                    first_error.get_or_insert(error);
                }
            }
            if attempt % 2 == 1 {
                source.switch_server();
            }
        }
        Err(first_error.unwrap_or_else(|| Error::invalid("list of sources", "is empty")))
    }

    fn fetch_once(
        source: &HttpStore,
        storage: &dyn ReadStore,
        manifest: Option<Vec<u8>>,
        trust: Trust<'_>,
    ) -> Result<Self> {
        let Trust { name, keys, now } = trust;
        let place = |file: NamedFile| source.describe(&file.into());
        let manifest_bytes = match manifest {
            Some(bytes) => bytes,
            None => source.read(&NamedFile::Manifest.into())?,
        };
        let signed = SignedManifest::parse(&manifest_bytes).map_err(|error| at(&place(NamedFile::Manifest), error))?;
        let whitelist_bytes = source.read(&NamedFile::Whitelist.into())?;
        let whitelist = SignedWhitelist::parse(&whitelist_bytes)
            .and_then(|signed| signed.verify(name, keys, now).cloned())
            .map_err(|error| at(&place(NamedFile::Whitelist), error))?;
        let id = signed.certificate_object();
        let stored = storage.read(&id.into()).ok().filter(|bytes| id.hash.algorithm().hash(bytes) == id.hash);
        let has_certificate = stored.is_some();
        let certificate_bytes = stored.map_or_else(|| source.read(&id.into()), Ok)?;
        let pem = cvmfs_core::compression::inflate(&source.describe(&id.into()), &certificate_bytes, CERTIFICATE_MAX)?;
        let certificate = Certificate::from_pem(&source.describe(&id.into()), pem)?;
        let manifest = whitelist
            .check_certificate(&certificate)
            .and_then(|()| signed.verify(name, &certificate).cloned())
            .map_err(|error| at(&place(NamedFile::Manifest), error))?;
        Ok(Self { manifest, manifest_bytes, whitelist_bytes, certificate_bytes, has_certificate })
    }
}

/// Brings an object that may be large into a store, and returns its stored size.
pub(crate) fn copy(source: &HttpStore, store: &dyn WriteStore, id: &ObjectId) -> Result<u64> {
    let key = Key::Object(*id);
    // This hands out no byte before all of them are verified.
    let mut content = source.open(&key)?;
    let mut staged = store.stage()?;
    let size = std::io::copy(&mut content, &mut staged).at(store.describe(&key))?;
    staged.flush().at(store.describe(&key))?;
    staged.finish(id)?;
    Ok(size)
}

/// Fails unless the source is open for replication and has documents that verify.
pub(crate) fn check_source(
    source: &HttpStore,
    servers: usize,
    storage: &dyn ReadStore,
    name: &RepositoryName,
    keys: &[PublicKey],
    now: UnixSeconds,
) -> Result<()> {
    check_open(source)?;
    Documents::fetch(source, servers, storage, None, Trust { name, keys, now }, |_| Ok(())).map(drop)
}

/// Fails unless the source wants to be replicated.
pub(crate) fn check_open(source: &HttpStore) -> Result<()> {
    let key = Key::Named(NamedFile::MasterReplica);
    match source.size(&key) {
        // Some servers do not tell the size of what is there.
        Ok(Some(_)) | Err(Error::Malformed { .. }) => Ok(()),
        Err(error) => Err(error),
        Ok(None) => {
            let reason = "the source is not open for replication: it has no such file";
            Err(Error::Refused { what: source.describe(&key), reason: reason.into() })
        }
    }
}

/// Reads the certificate of a manifest from the storage of the replica.
pub(crate) fn stored_certificate(store: &dyn ReadStore, manifest: &SignedManifest) -> Result<Certificate> {
    let pem = object::read_small(store, &manifest.certificate_object(), CERTIFICATE_MAX)?;
    Certificate::from_pem("certificate of the manifest", pem)
}

/// Names the URL of a document in an error about what it says.
fn at(url: &str, error: Error) -> Error {
    let named = |what: String| format!("{url}: {what}");
    match error {
        Error::Untrusted { what, reason } => Error::Untrusted { what: named(what), reason },
        Error::Expired { what, expiry } => Error::Expired { what: named(what), expiry },
        Error::Malformed { what, reason } => Error::Malformed { what: named(what), reason },
        Error::HashMismatch { what, expected, actual } => Error::HashMismatch { what: named(what), expected, actual },
        other => other,
    }
}
