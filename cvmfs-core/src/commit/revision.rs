//! The last steps of every change: tags, reflog, signature, and the swap of the manifest.

use std::fs;
use std::path::{Path, PathBuf};

use super::Publisher;
use super::finish::{StoredCatalog, store_database};
use crate::clock::UnixSeconds;
use crate::compression::{self, Compressor, Effort};
use crate::error::{Error, IoContext as _, Result};
use crate::hash::{Algorithm, ContentHash, ObjectId, ObjectKind};
use crate::history::{History, Tag};
use crate::manifest::{DEFAULT_TTL, Manifest};
use crate::notice;
use crate::reflog::Reflog;
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
        self.store.write(NamedFile::Manifest, signed.bytes())?;
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
    ///
    /// The intended checksum is noted beside that of the reflog in place, so that a crash between the two writes leaves
    /// a reflog that matches one of them. The reflog in place may be that of a run that died there: its checksum is
    /// noted, too, before the note that it matches is replaced.
    pub(super) fn add_to_reflog(
        &self,
        head: Option<&Manifest>,
        algorithm: Algorithm,
        now: UnixSeconds,
        objects: &[ObjectId],
    ) -> Result<ContentHash> {
        let (mut reflog, in_place) = self.open_reflog(head)?;
        for id in objects {
            reflog.add(id, now)?;
        }
        let bytes = reflog.into_bytes()?;
        let checksum = algorithm.hash(&bytes);
        let (current, intended) = self.checksum_files();
        if let Some(in_place) = in_place.filter(|in_place| read_checksum(&current) != Some(*in_place)) {
            write_checksum(&current, in_place)?;
        }
        write_checksum(&intended, checksum)?;
        self.store.write(NamedFile::Reflog, &bytes)?;
        fs::rename(&intended, &current).at(&current)?;
        Ok(checksum)
    }

    /// Opens the reflog if it is the one that we or the reference wrote last, and tells its checksum; makes one if there
    /// is none and should be none.
    ///
    /// # Errors
    /// `HashMismatch` if it matches no checksum, `NotFound` if it should be there and is not.
    fn open_reflog(&self, head: Option<&Manifest>) -> Result<(Reflog, Option<ContentHash>)> {
        let (current, intended) = self.checksum_files();
        let mut accepted: Vec<ContentHash> =
            [current, intended].iter().filter_map(|file| read_checksum(file)).collect();
        accepted.extend(head.and_then(|head| head.reflog_checksum));
        let key = NamedFile::Reflog.into();
        match self.store.read(&key) {
            Ok(bytes) => {
                let matches = |checksum: &&ContentHash| checksum.algorithm().hash(&bytes) == **checksum;
                if let Some(checksum) = accepted.iter().find(matches) {
                    return Ok((Reflog::open(&bytes, &self.config.name, &self.scratch()?)?, Some(*checksum)));
                }
                let expected = accepted.first().map_or_else(|| "a checksum file".into(), ToString::to_string);
                let actual = accepted.first().map_or(Algorithm::Sha1, ContentHash::algorithm).hash(&bytes).to_string();
                Err(Error::HashMismatch { what: format!("reflog {}", self.store.describe(&key)), expected, actual })
            }
            // A repository from before reflogs, or a new one.
            Err(error) if error.is_not_found() && accepted.is_empty() => {
                Ok((Reflog::create(&self.config.name, &self.scratch()?)?, None))
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn checksum_files(&self) -> (PathBuf, PathBuf) {
        (self.config.spool.join("reflog.chksum"), self.config.spool.join("reflog.chksum.new"))
    }
}

/// Replaces the file as a whole: half a checksum would be no checksum.
fn write_checksum(file: &Path, checksum: ContentHash) -> Result<()> {
    let half = file.with_extension("half");
    fs::write(&half, checksum.to_string()).at(&half)?;
    fs::rename(&half, file).at(file)
}

fn read_checksum(file: &Path) -> Option<ContentHash> {
    fs::read_to_string(file).ok()?.lines().next()?.trim().parse().ok()
}

/// Stores an object that must have exactly the bytes of stock zlib.
pub fn store_stock(store: &dyn WriteStore, algorithm: Algorithm, kind: ObjectKind, plain: &[u8]) -> Result<ObjectId> {
    let stored = compression::stock_zlib(plain);
    let id = ObjectId::of(algorithm, kind, &stored);
    store.put(&id, &stored)?;
    Ok(id)
}
