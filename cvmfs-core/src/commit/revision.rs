//! The last steps of every change: tags, reflog, signature, and the swap of the manifest.

use super::Publisher;
use super::finish::{StoredCatalog, store_database};
use crate::clock::UnixSeconds;
use crate::compression::{self, Compressor, Effort};
use crate::error::{Error, Result};
use crate::hash::{Algorithm, ContentHash, ObjectId, ObjectKind};
use crate::history::{History, Tag};
use crate::manifest::{DEFAULT_TTL, Manifest, SignedManifest};
use crate::notice;
use crate::reflog::StoredReflog;
use crate::storage::{NamedFile, WriteStore};

/// A root catalog in the storage that is, or is about to become, the head.
#[derive(Debug, Clone)]
pub struct NewRoot {
    /// Its hash.
    pub hash: ContentHash,
    /// Bytes of its database, uncompressed.
    pub size: u64,
    /// Its revision.
    pub revision: u64,
    /// When it was written.
    pub modified: UnixSeconds,
}

impl NewRoot {
    pub(super) fn of(catalog: &StoredCatalog, now: UnixSeconds) -> Self {
        let StoredCatalog { nested, size, revision, .. } = catalog;
        Self { hash: nested.hash, size: *size, revision: *revision, modified: now }
    }

    /// The tag that names this root.
    pub fn tag(&self, name: String, description: String) -> Tag {
        let Self { hash, size, revision, modified } = *self;
        Tag { name, root: hash, revision, timestamp: modified, description, root_size: size, branch: String::new() }
    }
}

impl Publisher {
    /// Makes a stored root catalog the head of the repository.
    ///
    /// 1. tags: `edit_tags` may change them; the new history object is stored;
    /// 2. certificate and meta info are stored;
    /// 3. everything so far is made durable;
    /// 4. reflog and its checksum;
    /// 5. the manifest is signed and replaced, and the notification server is told.
    ///
    /// `head` is the manifest that the new one replaces; `None` for the first. A root that is the head already only
    /// gets its tags edited.
    ///
    /// # Errors
    /// `Superseded` if another machine replaced `head`; what was stored so far stays, and harms nobody.
    pub fn publish_root(
        &self,
        head: Option<&Manifest>,
        root: &NewRoot,
        now: UnixSeconds,
        metainfo: Option<ObjectId>,
        edit_tags: impl FnOnce(&mut History) -> Result<()>,
    ) -> Result<Manifest> {
        let mut history = self.open_history(head)?;
        edit_tags(&mut history)?;
        self.publish_history(head, root, now, metainfo, history)
    }

    /// The steps of [`publish_root`](Self::publish_root) after the tags were edited.
    pub(super) fn publish_history(
        &self,
        head: Option<&Manifest>,
        root: &NewRoot,
        now: UnixSeconds,
        metainfo: Option<ObjectId>,
        history: History,
    ) -> Result<Manifest> {
        let algorithm = root.hash.algorithm();
        let history = self.store_history(head, algorithm, history)?;
        let certificate = store_stock(&*self.store, algorithm, ObjectKind::Certificate, self.keys.certificate.pem())?;
        let mut named = vec![ObjectId::catalog(root.hash), certificate, ObjectId::new(history, ObjectKind::History)];
        named.extend(metainfo);
        if self.config.shortcuts {
            named.iter().try_for_each(|id| self.store.put_shortcut(id))?;
        }
        self.store.flush()?;

        let reflog_checksum = self.add_to_reflog(head, algorithm, now, &named)?;

        let manifest = Manifest {
            root_catalog: root.hash,
            root_catalog_size: Some(root.size),
            ttl: self.config.ttl.or(head.map(|head| head.ttl)).unwrap_or(DEFAULT_TTL),
            revision: root.revision,
            garbage_collectable: self.config.garbage_collectable,
            shortcuts: self.config.shortcuts,
            name: self.config.name.clone(),
            certificate: certificate.hash,
            history: Some(history),
            timestamp: Some(now),
            metainfo: metainfo.map(|id| id.hash),
            reflog_checksum: Some(reflog_checksum),
        };
        let signed = manifest.sign(&self.keys.key)?;
        let is_head = |current: Option<&[u8]>| match (current, head) {
            (Some(current), Some(head)) => {
                SignedManifest::parse(current).is_ok_and(|current| current.unverified() == head)
            }
            (current, head) => current.is_none() && head.is_none(),
        };
        if !self.store.write_if(NamedFile::Manifest, signed.bytes(), &is_head)? {
            return Err(Error::Superseded { what: self.store.describe(&NamedFile::Manifest.into()) });
        }
        if let Some(server) = &self.config.notification_server
            && let Err(error) = notice::send(server, &self.config.name, signed.bytes(), now)
        {
            // The revision is out, whoever hears of it.
            tracing::warn!(%error, "nobody is told of the new revision");
        }
        Ok(manifest)
    }

    /// The tag database of a head for changes, or a new one.
    pub(super) fn open_history(&self, head: Option<&Manifest>) -> Result<History> {
        let scratch = self.scratch()?;
        match head.and_then(|head| head.history) {
            Some(hash) => History::fetch_writable(&*self.read_store(), hash, &self.config.name, &scratch),
            None => History::create(&self.config.name, &scratch),
        }
    }

    fn store_history(&self, head: Option<&Manifest>, algorithm: Algorithm, history: History) -> Result<ContentHash> {
        let previous = head.and_then(|head| head.history);
        let file = history.finish(previous.unwrap_or(ContentHash::null(algorithm)))?;
        let effort = Effort::default();
        let mut compressor = Compressor::new(effort);
        Ok(store_database(&*self.store, &file, ObjectKind::History, algorithm, &mut compressor, effort.level)?.hash)
    }

    /// Adds objects to the reflog and returns its new checksum.
    pub(super) fn add_to_reflog(
        &self,
        head: Option<&Manifest>,
        algorithm: Algorithm,
        now: UnixSeconds,
        objects: &[ObjectId],
    ) -> Result<ContentHash> {
        self.reflog().add(head.and_then(|head| head.reflog_checksum), algorithm, now, objects)
    }

    /// The reflog in the storage.
    pub(super) fn reflog(&self) -> StoredReflog<'_> {
        StoredReflog { store: &*self.store, spool: &self.config.spool, name: &self.config.name }
    }
}

/// Stores an object that must have exactly the bytes of stock zlib.
pub fn store_stock(store: &dyn WriteStore, algorithm: Algorithm, kind: ObjectKind, plain: &[u8]) -> Result<ObjectId> {
    let stored = compression::stock_zlib(plain);
    let id = ObjectId::of(algorithm, kind, &stored);
    store.put(&id, &stored)?;
    Ok(id)
}
