//! The directory tree of one revision, across its catalogs.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use crate::catalog::{Catalog, Nested, Row};
use crate::entry::{Entry, EntryKind, FileContent, Mount};
use crate::error::{Error, Result};
use crate::hash::{ContentHash, ObjectId};
use crate::object;
use crate::path::RepoPath;
use crate::storage::ReadStore;

/// Nested catalogs that stay open for the next look-up.
const OPEN_CATALOGS: usize = 16;

/// A revision's tree; catalogs are fetched as they are needed.
#[derive(Debug, Clone)]
pub struct Tree {
    store: Arc<dyn ReadStore>,
    scratch: PathBuf,
    root: ContentHash,
    /// Most bytes of a catalog, uncompressed.
    catalog_limit: u64,
    /// Catalogs that stay open for the next look-up.
    open_max: usize,
    /// Most recently used first.
    open: Vec<(ContentHash, RepoPath, Rc<Catalog>)>,
}

/// A directory of a tree, ready to be listed; whoever goes down a tree from one to the next looks up each catalog once.
#[derive(Debug, Clone)]
pub struct Directory {
    path: RepoPath,
    /// The catalog that has its entries.
    catalog: Rc<Catalog>,
}

impl Directory {
    /// Where it is.
    pub fn path(&self) -> &RepoPath {
        &self.path
    }

    /// Its entries, sorted by name.
    pub fn list(&self) -> Result<Vec<Row>> {
        self.catalog.list(&self.path)
    }

    /// The entry of this name.
    pub fn find(&self, name: &[u8]) -> Result<Option<Row>> {
        self.catalog.find(&self.path.child(name)?)
    }
}

impl Tree {
    /// The tree below a root catalog; `scratch` is a directory for inflated catalogs.
    pub fn new(store: Arc<dyn ReadStore>, root: ContentHash, scratch: &Path) -> Self {
        Self {
            store,
            scratch: scratch.to_owned(),
            root,
            catalog_limit: u64::MAX,
            open_max: OPEN_CATALOGS,
            open: Vec::new(),
        }
    }

    /// Refuses catalogs of more than `limit` bytes, uncompressed, as `Malformed`.
    #[must_use]
    pub fn with_catalog_limit(self, limit: u64) -> Self {
        Self { catalog_limit: limit, ..self }
    }

    /// Keeps so many catalogs open: few are enough for whoever goes through a tree from one directory to the next.
    #[must_use]
    pub fn with_open_catalogs(self, open_max: usize) -> Self {
        Self { open_max, ..self }
    }

    /// The hash of the root catalog.
    pub fn root(&self) -> ContentHash {
        self.root
    }

    /// The storage that the tree is in.
    pub fn store(&self) -> &dyn ReadStore {
        &*self.store
    }

    /// The root catalog.
    pub fn root_catalog(&mut self) -> Result<Rc<Catalog>> {
        self.catalog(self.root, &RepoPath::root())
    }

    /// Opens a catalog of the tree, or takes one that is open.
    ///
    /// # Errors
    /// Also `Malformed` if the catalog is for another place in the tree.
    pub(crate) fn catalog(&mut self, hash: ContentHash, mount: &RepoPath) -> Result<Rc<Catalog>> {
        let entry = match self.open.iter().position(|(open, at, _)| *open == hash && at == mount) {
            Some(index) => self.open.remove(index),
            None => {
                let catalog = Catalog::fetch_limited(&*self.store, hash, &self.scratch, self.catalog_limit)?;
                let root = catalog.root()?;
                if root != *mount && catalog.has_place() {
                    let what = format!("catalog {}", self.store.describe(&ObjectId::catalog(hash).into()));
                    return Err(Error::malformed(what, format!("it is for {root}, not for {mount}")));
                }
                (hash, mount.clone(), Rc::new(catalog))
            }
        };
        let catalog = Rc::clone(&entry.2);
        self.open.insert(0, entry);
        self.open.truncate(self.open_max);
        Ok(catalog)
    }

    /// The catalog that has the entries of directory `path`, or where they would be, with its hash.
    pub(crate) fn catalog_of(&mut self, path: &RepoPath) -> Result<(ContentHash, Rc<Catalog>)> {
        let mut hash = self.root;
        let mut catalog = self.root_catalog()?;
        let mut below = path.ancestors();
        below.push(path.clone());
        for directory in below.iter().skip(1) {
            if let Some(nested) = catalog.nested_at(directory)? {
                hash = nested.hash;
                catalog = self.catalog(hash, directory)?;
            }
        }
        Ok((hash, catalog))
    }

    /// The directory at `path`, which must be one.
    pub fn directory(&mut self, path: &RepoPath) -> Result<Directory> {
        Ok(Directory { path: path.clone(), catalog: self.catalog_of(path)?.1 })
    }

    /// The directory that a row of `parent` stands for.
    pub fn child_directory(&mut self, parent: &Directory, row: &Row) -> Result<Directory> {
        self.directory_in(parent, &row.name, &row.entry)
    }

    /// The same, for an entry of that name.
    pub fn directory_in(&mut self, parent: &Directory, name: &[u8], entry: &Entry) -> Result<Directory> {
        let path = parent.path.child(name)?;
        let catalog = match entry.kind {
            EntryKind::Directory(Mount::Mountpoint) => {
                let nested = parent.catalog.nested_at(&path)?.ok_or_else(|| {
                    Error::malformed(format!("catalog entry {path}"), "a mountpoint without nested catalog")
                })?;
                self.catalog(nested.hash, &path)?
            }
            _ => Rc::clone(&parent.catalog),
        };
        Ok(Directory { path, catalog })
    }

    /// Finds an entry; the root row for a directory with a catalog of its own.
    pub fn find(&mut self, path: &RepoPath) -> Result<Option<Row>> {
        self.catalog_of(path)?.1.find(path)
    }

    /// Finds an entry that must be there.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn get(&mut self, path: &RepoPath) -> Result<Row> {
        self.find(path)?.ok_or_else(|| Error::not_found(path.to_string()))
    }

    /// Lists a directory, sorted by name.
    pub fn list(&mut self, directory: &RepoPath) -> Result<Vec<Row>> {
        self.catalog_of(directory)?.1.list(directory)
    }

    /// Calls `visit` for an entry and everything below it, a directory before its content.
    ///
    /// Bind mountpoints are visited, but not followed.
    pub fn walk(&mut self, top: &RepoPath, visit: &mut dyn FnMut(&RepoPath, &Row) -> Result<()>) -> Result<()> {
        self.walk_into(top, &mut |path, row| visit(path, row).map(|()| true))
    }

    /// The same, into directories only for which `visit` returns `true`.
    pub fn walk_into(&mut self, top: &RepoPath, visit: &mut dyn FnMut(&RepoPath, &Row) -> Result<bool>) -> Result<()> {
        let row = self.get(top)?;
        // A list instead of recursion: trees are deeper than stacks.
        let mut todo = Vec::new();
        if visit(top, &row)? && row.entry.is_directory() {
            todo.push((top.clone(), VecDeque::from(self.list(top)?)));
        }
        while let Some((directory, rows)) = todo.last_mut() {
            let Some(row) = rows.pop_front() else {
                todo.pop();
                continue;
            };
            let path = directory.child(&row.name)?;
            let goes_on = visit(&path, &row)?;
            if goes_on && matches!(row.entry.kind, EntryKind::Directory(mount) if mount != Mount::Bind) {
                let rows = VecDeque::from(self.list(&path)?);
                todo.push((path, rows));
            }
        }
        Ok(())
    }

    /// Calls `visit` with each catalog of the tree and how many are above it: a catalog before those below it, those in
    /// path order.
    pub fn walk_catalogs(&mut self, visit: &mut dyn FnMut(usize, &Nested, &Catalog) -> Result<()>) -> Result<()> {
        let mut todo = vec![(0, Nested { path: RepoPath::root(), hash: self.root, size: None })];
        while let Some((depth, nested)) = todo.pop() {
            let catalog = self.catalog(nested.hash, &nested.path)?;
            visit(depth, &nested, &catalog)?;
            let mut below = catalog.nested()?;
            below.sort_by(|one, other| other.path.cmp(&one.path));
            todo.extend(below.into_iter().map(|nested| (depth + 1, nested)));
        }
        Ok(())
    }

    /// Opens the content of a regular file; see [`Contents::open`].
    pub fn open_file(&self, path: &RepoPath, file: &FileContent) -> Result<Box<dyn Read + Send>> {
        self.contents().open(path, file)
    }

    /// Access to the content of files without the tree, for use while it is walked.
    pub fn contents(&self) -> Contents {
        Contents(Arc::clone(&self.store))
    }
}

/// The content of a repository's files.
#[derive(Debug, Clone)]
pub struct Contents(Arc<dyn ReadStore>);

impl Contents {
    /// Opens the content of a regular file; everything is verified as it is read.
    ///
    /// # Errors
    /// `Unsupported` for external files. Reading fails if an object is missing, damaged or of the wrong size.
    pub fn open(&self, path: &RepoPath, file: &FileContent) -> Result<Box<dyn Read + Send>> {
        if file.external {
            return Err(Error::Unsupported { what: format!("{path}: reading an external file") });
        }
        Ok(Box::new(FileReader {
            store: Arc::clone(&self.0),
            path: path.clone(),
            compression: file.compression,
            parts: file.parts().into(),
            current: None,
        }))
    }
}

/// Reads the objects of a file one after the other.
struct FileReader {
    store: Arc<dyn ReadStore>,
    path: RepoPath,
    compression: crate::compression::Compression,
    parts: VecDeque<(ObjectId, u64)>,
    /// The open object with the bytes that it must still give.
    current: Option<(Box<dyn Read + Send>, u64)>,
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some((reader, left)) = &mut self.current {
                let size = reader.read(buffer)?;
                let wrong_size = || {
                    let reason = "an object has another size than the catalog says";
                    io::Error::new(io::ErrorKind::InvalidData, Error::malformed(self.path.to_string(), reason))
                };
                *left = left.checked_sub(size as u64).ok_or_else(wrong_size)?;
                if size > 0 {
                    return Ok(size);
                }
                if *left > 0 {
                    return Err(wrong_size());
                }
            }
            let Some((id, size)) = self.parts.pop_front() else { return Ok(0) };
            let reader = object::open(&*self.store, &id, self.compression)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.current = Some((reader, size));
        }
    }
}
