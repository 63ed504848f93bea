//! A repository opened for reading: everything verified from the master key down.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::UnixSeconds;
use crate::error::{Error, Result};
use crate::hash::ContentHash;
use crate::history::{Branch, History, Tag, TagName};
use crate::manifest::{Manifest, SignedManifest};
use crate::object;
use crate::path::RepositoryName;
use crate::storage::{NamedFile, ReadStore};
use crate::tree::Tree;
use crate::trust::keys::{Certificate, PublicKey};
use crate::trust::whitelist::{SignedWhitelist, Whitelist};

/// Largest certificate or meta info object that is read, in plain bytes.
pub const SMALL_OBJECT_MAX: u64 = 1 << 20;

/// A revision to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The newest.
    Head,
    /// A named one.
    Tag(String),
    /// One by its number, which must have a tag or be the newest.
    Revision(u64),
    /// One by the hash of its root catalog.
    Root(ContentHash),
}

/// What a root catalog says about its revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revision {
    /// The root catalog.
    pub root: ContentHash,
    /// Bytes of its database, uncompressed.
    pub size: u64,
    /// Its number.
    pub number: u64,
    /// When it was written.
    pub modified: UnixSeconds,
}

/// The verified state of a repository at the moment of opening it.
#[derive(Debug)]
pub struct Repository {
    store: Arc<dyn ReadStore>,
    scratch: PathBuf,
    signed: SignedManifest,
    manifest: Manifest,
    whitelist: Whitelist,
    certificate: Certificate,
}

impl Repository {
    /// Fetches and verifies whitelist, manifest and certificate.
    ///
    /// 1. whitelist: name, master key, expiry at `now`;
    /// 2. manifest: format, hash;
    /// 3. certificate: object hash, listed in the whitelist;
    /// 4. manifest: name, signature with the certificate's key.
    ///
    /// # Errors
    /// `Untrusted`, `Expired`, `HashMismatch`, `Malformed`, and those of the store.
    pub fn open(
        store: Arc<dyn ReadStore>,
        name: &RepositoryName,
        master_keys: &[PublicKey],
        now: UnixSeconds,
        scratch: &Path,
    ) -> Result<Self> {
        let whitelist = SignedWhitelist::parse(&store.read(&NamedFile::Whitelist.into())?)?;
        let whitelist = whitelist.verify(name, master_keys, now)?.clone();
        let signed = SignedManifest::parse(&store.read(&NamedFile::Manifest.into())?)?;
        let certificate = object::read_small(&*store, &signed.certificate_object(), SMALL_OBJECT_MAX)?;
        let certificate = Certificate::from_pem("certificate of the manifest", certificate)?;
        whitelist.check_certificate(&certificate)?;
        let manifest = signed.verify(name, &certificate)?.clone();
        Ok(Self { store, scratch: scratch.to_owned(), signed, manifest, whitelist, certificate })
    }

    /// The verified manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest as it was signed.
    pub fn signed_manifest(&self) -> &SignedManifest {
        &self.signed
    }

    /// The verified whitelist.
    pub fn whitelist(&self) -> &Whitelist {
        &self.whitelist
    }

    /// The verified certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The descriptive JSON, if there is one.
    pub fn metainfo(&self) -> Result<Option<Vec<u8>>> {
        let read = |id| object::read_small(&*self.store, &id, SMALL_OBJECT_MAX);
        self.manifest.metainfo_object().map(read).transpose()
    }

    /// All tags, the newest revision first.
    pub fn tags(&self) -> Result<Vec<Tag>> {
        match self.manifest.history {
            Some(hash) => History::fetch(&*self.store, hash, &self.scratch)?.tags(),
            None => Ok(Vec::new()),
        }
    }

    /// All branches, the trunk included.
    pub fn branches(&self) -> Result<Vec<Branch>> {
        match self.manifest.history {
            Some(hash) => History::fetch(&*self.store, hash, &self.scratch)?.branches(),
            None => Ok(Vec::new()),
        }
    }

    /// The tree of a revision.
    ///
    /// # Errors
    /// `NotFound` if there is no such tag, or no tag for that revision.
    pub fn tree(&self, selector: &Selector) -> Result<Tree> {
        let tagged = |found: &dyn Fn(&Tag) -> bool, what: String| {
            let tag = self.tags()?.into_iter().find(|tag| found(tag));
            tag.map(|tag| tag.root).ok_or(Error::NotFound { what })
        };
        let root = match selector {
            Selector::Head => self.manifest.root_catalog,
            Selector::Revision(number) if *number == self.manifest.revision => self.manifest.root_catalog,
            Selector::Revision(number) => {
                tagged(&|tag| tag.revision == *number, format!("a tag for revision {number}"))?
            }
            Selector::Tag(name) => tagged(&|tag| tag.name == *name, format!("tag {name:?}"))?,
            Selector::Root(hash) => *hash,
        };
        Ok(Tree::new(Arc::clone(&self.store), root, &self.scratch))
    }

    /// Makes sense of how people name a revision: `trunk` or another tag, a number, or the hash of a root catalog, in
    /// this order.
    ///
    /// # Errors
    /// `NotFound` for none of them.
    pub fn selector(&self, text: &str) -> Result<Selector> {
        if text == TagName::trunk().as_str() {
            return Ok(Selector::Head);
        }
        if self.tags()?.iter().any(|tag| tag.name == text) {
            return Ok(Selector::Tag(text.into()));
        }
        match (text.parse(), text.parse()) {
            (Ok(number), _) => Ok(Selector::Revision(number)),
            (_, Ok(hash)) => Ok(Selector::Root(hash)),
            _ => Err(Error::not_found(format!("tag {text:?}"))),
        }
    }

    /// Reads what the root catalog of a revision says.
    ///
    /// # Errors
    /// Those of [`tree`](Self::tree); `Malformed` for the hash of a nested catalog.
    pub fn revision(&self, selector: &Selector) -> Result<Revision> {
        let mut tree = self.tree(selector)?;
        let catalog = tree.root_catalog()?;
        Ok(Revision {
            root: tree.root(),
            size: catalog.file_size()?,
            number: catalog.revision()?,
            modified: catalog.last_modified()?,
        })
    }
}
