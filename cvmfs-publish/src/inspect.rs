//! Looking at a repository: everything that is shown was verified.

use std::fmt;
use std::io::{self, Read as _, Write};
use std::sync::Arc;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::entry::{EntryKind, FileObjects};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::listing::Listed;
use cvmfs_core::object::read_error;
use cvmfs_core::path::{RepoPath, RepositoryName};
use cvmfs_core::repository::{Repository, Revision, Selector};
use cvmfs_core::storage::ReadStore;
use cvmfs_core::tree::Tree;
use cvmfs_core::trust::keys::PublicKey;
use serde::Serialize;

/// What `info` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Info {
    /// The repository.
    pub name: String,
    /// The newest revision.
    pub revision: u64,
    /// Its root catalog.
    pub root_hash: String,
    /// When it was signed.
    pub published: Option<String>,
    /// Seconds that a client may wait before it asks for a new revision.
    pub ttl: u32,
    /// Whether old revisions may be collected.
    pub garbage_collectable: bool,
    /// Until when the whitelist is valid.
    pub whitelist_expires: String,
    /// Whole days until then.
    pub whitelist_days_left: i64,
    /// Fingerprint of the certificate that signed the revision.
    pub certificate: String,
    /// Number of tags.
    pub tags: usize,
    /// Entries of the whole tree.
    pub entries: u64,
    /// Catalogs of the whole tree.
    pub catalogs: u64,
    /// Plain bytes of all files.
    pub file_bytes: u64,
}

/// Opens a repository for looking at it.
pub fn open(
    store: Arc<dyn ReadStore>,
    name: &RepositoryName,
    keys: &[PublicKey],
    now: UnixSeconds,
) -> Result<Repository> {
    Repository::open(store, name, keys, now, &std::env::temp_dir())
}

/// Describes the newest revision.
pub fn info(repository: &Repository, now: UnixSeconds) -> Result<Info> {
    let manifest = repository.manifest();
    let mut tree = repository.tree(&Selector::Head)?;
    let total = tree.root_catalog()?.statistics()?.total();
    let expires = repository.whitelist().expires;
    Ok(Info {
        name: manifest.name.to_string(),
        revision: manifest.revision,
        root_hash: manifest.root_catalog.to_string(),
        published: manifest.timestamp.map(|time| time.to_string()),
        ttl: manifest.ttl,
        garbage_collectable: manifest.garbage_collectable,
        whitelist_expires: expires.to_string(),
        whitelist_days_left: (expires.0 - now.0).div_euclid(86_400),
        certificate: repository.certificate().fingerprint(manifest.root_catalog.algorithm()).to_string(),
        tags: repository.tags()?.len(),
        // Each nested root stands in its parent, too.
        entries: total.entries() - total.nested,
        catalogs: 1 + total.nested,
        file_bytes: total.file_size,
    })
}

/// A revision in a few words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RevisionInfo {
    /// Its number.
    pub revision: u64,
    /// Its root catalog.
    pub root_hash: String,
    /// When that was written.
    pub time: String,
}

impl fmt::Display for RevisionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "revision {} of {}", self.revision, self.time)
    }
}

/// Describes one revision.
pub fn revision(repository: &Repository, selector: &Selector) -> Result<RevisionInfo> {
    let Revision { root, number, modified, .. } = repository.revision(selector)?;
    Ok(RevisionInfo { revision: number, root_hash: root.to_string(), time: modified.to_string() })
}

/// Lists a directory, or one other entry; with `recursive` everything below it, too.
pub fn list(tree: &mut Tree, path: &RepoPath, recursive: bool) -> Result<Vec<Listed>> {
    let row = tree.get(path)?;
    let mut listed = Vec::new();
    if recursive {
        tree.walk(path, &mut |path, row| {
            listed.push(Listed::new(path, row.hardlinks.count, &row.entry));
            Ok(())
        })?;
    } else if row.entry.is_directory() {
        for row in tree.list(path)? {
            listed.push(Listed::new(&path.child(&row.name)?, row.hardlinks.count, &row.entry));
        }
    } else {
        listed.push(Listed::new(path, row.hardlinks.count, &row.entry));
    }
    Ok(listed)
}

/// Writes the content of a regular file.
///
/// # Errors
/// `InvalidInput` for something else than a file. Bytes are verified as they come, the hash of an object at its end:
/// what was written before an error is worthless.
pub fn cat(tree: &mut Tree, path: &RepoPath, out: &mut dyn Write) -> Result<u64> {
    let row = tree.get(path)?;
    let EntryKind::File(file) = &row.entry.kind else {
        return Err(Error::invalid(path.to_string(), "not a regular file"));
    };
    let mut reader = tree.open_file(path, file)?;
    let mut block = vec![0; 64 * 1024];
    let mut written = 0;
    loop {
        let size = reader.read(&mut block).map_err(|error| read_error(&path.to_string(), error))?;
        if size == 0 {
            return Ok(written);
        }
        out.write_all(&block[..size]).map_err(|error| Error::io(cvmfs_core::cli::OUTPUT, error))?;
        written += size as u64;
    }
}

/// What reading a whole tree found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ReadBack {
    /// Entries visited.
    pub entries: u64,
    /// Regular files read.
    pub files: u64,
    /// Plain bytes read.
    pub bytes: u64,
    /// Objects read.
    pub objects: u64,
}

/// Reads every file of a tree through the verifying reader and forgets it.
pub fn read_back(tree: &mut Tree, top: &RepoPath) -> Result<ReadBack> {
    let mut files = Vec::new();
    let mut found = ReadBack::default();
    tree.walk(top, &mut |path, row| {
        found.entries += 1;
        if let EntryKind::File(file) = &row.entry.kind
            && !file.external
        {
            files.push((path.clone(), file.clone()));
        }
        Ok(())
    })?;
    for (path, file) in files {
        found.files += 1;
        found.objects += match &file.objects {
            FileObjects::Whole(_) => 1,
            FileObjects::Chunked { chunks, .. } => chunks.len() as u64,
        };
        let mut reader = tree.open_file(&path, &file)?;
        found.bytes += io::copy(&mut reader, &mut io::sink()).map_err(|error| read_error(&path.to_string(), error))?;
    }
    Ok(found)
}
