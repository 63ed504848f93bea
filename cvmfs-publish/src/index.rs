//! The known-content index of a repository: what is in it, and how it is filled from what is published.

use std::collections::HashSet;
use std::fs;
use std::io::Read as _;
use std::time::Instant;

use cvmfs_core::compression::{Compression, Policy};
use cvmfs_core::entry::{EntryKind, FileContent, FileObjects};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::hash::{ObjectId, ObjectKind};
use cvmfs_core::known::{KnownContent, KnownObject, PieceHasher};
use cvmfs_core::object::{self, read_error};
use cvmfs_core::path::RepoPath;
use cvmfs_core::progress::{Cancel, Progress, Unit};
use cvmfs_core::storage::{Key, ReadStore};
use cvmfs_core::tree::Tree;
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};
use serde::Serialize;

/// Objects that are read before the walk through the catalogs goes on.
const BATCH: usize = 4096;
/// Objects of which it is remembered that they were read, in at most 40 bytes each; of more, some are read twice.
const MOST_SEEN: usize = 2_000_000;
/// Unreadable objects that are named; the others are counted.
const MOST_NAMED: usize = 100;

/// What `index` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The file.
    pub file: String,
    /// Pieces (whole files or chunks) that are recognised.
    pub pieces: u64,
    /// Size of the file.
    pub bytes: u64,
}

/// Describes an index.
pub fn summary(known: &KnownContent) -> Result<Summary> {
    let file = known.path();
    let bytes = fs::metadata(file).map_err(|error| Error::io(file, error))?.len();
    Ok(Summary { file: file.display().to_string(), pieces: known.len()?, bytes })
}

/// What filling an index found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rebuilt {
    /// Objects that are recognised from now on.
    pub objects: u64,
    /// Their plain bytes.
    pub bytes: u64,
    /// Objects that could not be read or are damaged.
    pub unreadable: u64,
    /// The first of these, each with the reason and a file that needs it.
    pub problems: Vec<String>,
    /// Wall time.
    pub seconds: f64,
}

/// Fills an index with all content of a revision, whoever stored it.
///
/// Each file object and each chunk is read once and verified, by `threads` threads (0 for one a core). What the index
/// knows already stays. An object that cannot be read is left out and reported: that is no reason to do without the
/// others.
///
/// # Errors
/// Those of the catalogs.
pub fn rebuild(
    known: &KnownContent,
    tree: &mut Tree,
    store: &dyn ReadStore,
    threads: usize,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Rebuilt> {
    let start = Instant::now();
    let total = tree.root_catalog()?.statistics()?.total().file_size;
    progress.phase("index", Unit::Bytes, Some(total));
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| Error::invalid("threads", error.to_string()))?;
    let mut rebuilt = Rebuilt { objects: 0, bytes: 0, unreadable: 0, problems: Vec::new(), seconds: 0.0 };
    let mut seen = HashSet::new();
    let mut batch = Vec::new();
    let mut read = |batch: &mut Vec<Stored>| {
        let read = |object: Stored| (object.add_to(known, store, progress), object);
        let results: Vec<_> = pool.install(|| std::mem::take(batch).into_par_iter().map(read).collect());
        for (result, object) in results {
            rebuilt.count(result, &object);
        }
    };
    tree.walk(&RepoPath::root(), &mut |path, row| {
        cancel.check()?;
        if let EntryKind::File(file) = &row.entry.kind
            && !file.external
        {
            for object in Stored::of(path, file) {
                if seen.len() >= MOST_SEEN {
                    seen.clear();
                }
                // Part of a digest will do: taking two objects for one leaves out one of them.
                let digest = object.id.hash.digest();
                if seen.insert((object.id.kind, u64::from_le_bytes(std::array::from_fn(|index| digest[index])))) {
                    batch.push(object);
                }
            }
            if batch.len() >= BATCH {
                read(&mut batch);
            }
        }
        Ok(())
    })?;
    read(&mut batch);
    known.flush();
    rebuilt.seconds = start.elapsed().as_secs_f64();
    Ok(rebuilt)
}

impl Rebuilt {
    fn count(&mut self, result: Result<()>, object: &Stored) {
        match result {
            Ok(()) => {
                self.objects += 1;
                self.bytes += object.size;
            }
            Err(error) => {
                self.unreadable += 1;
                if self.problems.len() < MOST_NAMED {
                    self.problems.push(format!("{}: {error}", object.path));
                }
            }
        }
    }
}

/// An object as a catalog describes it.
struct Stored {
    id: ObjectId,
    compression: Compression,
    /// Plain bytes.
    size: u64,
    /// A file that needs it.
    path: RepoPath,
}

impl Stored {
    /// All objects of a file.
    fn of(path: &RepoPath, file: &FileContent) -> Vec<Self> {
        let mut parts = file.parts();
        if let FileObjects::Chunked { bulk: Some(hash), .. } = file.objects {
            parts.push((ObjectId::new(hash, ObjectKind::File), file.size));
        }
        let stored = |(id, size)| Self { id, compression: file.compression, size, path: path.clone() };
        parts.into_iter().map(stored).collect()
    }

    fn add_to(&self, known: &KnownContent, store: &dyn ReadStore, progress: &dyn Progress) -> Result<()> {
        let Self { id, compression, size, .. } = *self;
        let key = Key::Object(id);
        let mut reader = object::open(store, &id, compression)?;
        let mut hasher = PieceHasher::default();
        let mut block = vec![0; 64 * 1024];
        let mut found = 0;
        loop {
            let length = reader.read(&mut block).map_err(|error| read_error(&store.describe(&key), error))?;
            if length == 0 {
                break;
            }
            hasher.update(&block[..length]);
            found += length as u64;
            progress.advance(length as u64);
        }
        if found != size {
            let reason = format!("it has {found} plain bytes, but {size} in the catalog");
            return Err(Error::malformed(store.describe(&key), reason));
        }
        let stored_size = store.size(&key)?.ok_or_else(|| Error::not_found(store.describe(&key)))?;
        let object = KnownObject { id, stored_size, compression };
        let algorithm = id.hash.algorithm();
        known.remember(hasher.key(id.kind, algorithm, compression.into()), object, size);
        // Bytes that shrank would be stored the same way if it had been left open. Of those that are stored as they
        // are, that is not known.
        if id.kind == ObjectKind::File && compression == Compression::Zlib && stored_size < size {
            known.remember(hasher.key(id.kind, algorithm, Policy::Auto), object, 0);
        }
        Ok(())
    }
}
