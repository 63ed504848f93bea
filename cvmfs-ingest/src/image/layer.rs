//! One layer of an image: from its blob into a change set of its own.
//!
//! ```text
//! blob ─ sum ─ decompress ─ sum ─ tar ─► pipeline ─► change set in <spool>/layers ─ flush ─► finished
//!        digest of the blob        diff id
//! ```
//!
//! A finished layer survives its process: whoever needs it next finds it, and fetches nothing. Its rows are the layer's
//! net effect; what it removes from layers below is a row like any other. The content of its files is in the repository's
//! storage, where nothing refers to it until an image is published.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use cvmfs_core::change::ChangeSource as _;
use cvmfs_core::changeset::{self, ChangeSet, FINISHED, PARTIAL};
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::{Error, IoContext as _, Result, remove_if_there};
use cvmfs_core::hash::Algorithm;
use cvmfs_core::idmap::IdMap;
use cvmfs_core::lock::FileLock;
use cvmfs_core::path::RepoPath;
use cvmfs_core::pipeline;
use cvmfs_core::progress::{Cancel, Progress};
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};
use serde::{Deserialize, Serialize};

use super::Layer;
use super::digest::{Digest, Summed};
use super::source::ImageStore;
use crate::archive;
use crate::source::{Input, Options, Ownership, TarSource};

/// The directory of a layer's change set that stands for the layer's root.
pub(super) const TOP: &str = "layerfs";
/// How long another process may take for a layer that this one wants as well.
const PATIENCE: Duration = Duration::from_hours(2);

/// What is known of a layer once it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The SHA-256 of the uncompressed archive, as text.
    pub diff_id: String,
    /// Bytes of the uncompressed archive.
    pub size: u64,
}

/// Fetches layers into a repository's storage.
#[derive(Debug)]
pub struct Layers<'a> {
    publisher: &'a Publisher,
    directory: PathBuf,
    pipeline: pipeline::Options,
}

impl<'a> Layers<'a> {
    /// The layers of a publisher, in its spool directory.
    pub fn new(publisher: &'a Publisher, pipeline: pipeline::Options) -> Result<Self> {
        let directory = changeset::layers(&publisher.config.spool);
        fs::create_dir_all(&directory).at(&directory)?;
        Ok(Self { publisher, directory, pipeline })
    }

    /// Opens a layer that was fetched before and is not in the repository yet.
    pub fn open(&self, layer: &Layer) -> Result<Option<(ChangeSet, Facts)>> {
        let path = self.path(&layer.blob.digest);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.at(&path)?,
        };
        // What is old goes; this is needed.
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        futimens(&file, &Timestamps { last_access: now, last_modification: now }).map_err(io::Error::from).at(&path)?;
        let changes = ChangeSet::open_read_only(&path)?;
        let about = changes.about()?.unwrap_or_default();
        let facts: Facts = serde_json::from_str(&about)
            .map_err(|error| Error::malformed(path.display().to_string(), error.to_string()))?;
        check_diff_id(layer, &facts)?;
        Ok(Some((changes, facts)))
    }

    /// Fetches a layer, unless that was done before, by whomever: then `None`. Returns what the operator
    /// should know about it.
    ///
    /// # Errors
    /// Nothing is kept but objects that nothing refers to.
    pub fn fetch(
        &self,
        store: &dyn ImageStore,
        layer: &Layer,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Option<Vec<String>>> {
        let path = self.path(&layer.blob.digest);
        let lock = path.with_extension("lock");
        let _lock = FileLock::acquire(&lock, PATIENCE, cancel)?.ok_or_else(|| {
            Error::conflict(lock.display().to_string(), "another process has been fetching it for long")
        })?;
        if path.try_exists().at(&path)? {
            return Ok(None);
        }
        let partial = path.with_extension(PARTIAL);
        remove_if_there(&partial)?;
        let result = self.read(store, layer, &partial, progress, cancel);
        if result.is_err() {
            remove_if_there(&partial)?;
        }
        let warnings = result?;
        fs::rename(&partial, &path).at(&path)?;
        File::open(&self.directory).and_then(|directory| directory.sync_all()).at(&self.directory)?;
        Ok(Some(warnings))
    }

    /// Forgets a layer that is in the repository now.
    pub fn forget(&self, layer: &Layer) -> Result<()> {
        remove_if_there(&self.path(&layer.blob.digest))
    }

    fn path(&self, blob: &Digest) -> PathBuf {
        self.directory.join(format!("{}.{FINISHED}", blob.hex()))
    }

    /// Reads a blob into a change set; both are as announced, and durable, if it succeeds. Returns warnings.
    fn read(
        &self,
        store: &dyn ImageStore,
        layer: &Layer,
        path: &Path,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Vec<String>> {
        let name = format!("{} layer {}", store.describe(), layer.blob.digest);
        let (blob_sum, note_blob) = sum();
        let (archive_sum, note_archive) = sum();
        let mut blob = Shared(Arc::new(Mutex::new(Summed::new(store.blob(&layer.blob)?, note_blob))));
        let mut changes = ChangeSet::create(path, Algorithm::default().hash(b""))?;
        let known = self.publisher.known_content_if_usable();
        let publisher = self.publisher.for_operation();
        let store = &*publisher.store;
        let options = source_options(self.publisher.config.mtime_nanoseconds)?;
        let stored = archive::decompress(Box::new(blob.clone()))
            .map_err(|error| Error::invalid(name.clone(), error.to_string()))
            .and_then(|(_, archive)| {
                let input = Input::stream(name.clone(), Summed::new(archive, note_archive));
                let mut source = TarSource::new(vec![input], options)?;
                pipeline::run(&mut source, store, &mut changes, known.as_ref(), &self.pipeline, progress, cancel)?;
                Ok(source.take_warnings())
            });
        if matches!(stored, Err(Error::InvalidInput { .. } | Error::Malformed { .. })) {
            // A blob that is not what it should be is why its archive cannot be read: the rest of it tells.
            io::copy(&mut blob, &mut io::sink()).map_err(|error| Error::io(&name, error))?;
        }
        if let Some((actual, size)) = blob_sum.get() {
            let expected = (layer.blob.digest, layer.blob.size);
            if (*actual, *size) != expected {
                let text = |(digest, size): (Digest, u64)| format!("{digest} of {size} bytes");
                let (expected, actual) = (text(expected), text((*actual, *size)));
                return Err(Error::HashMismatch { what: name, expected, actual });
            }
        }
        // In the layer, nobody knows of the directory that stands for its root here.
        let of_layer = |warning: String| warning.replace(&format!("/{TOP}/"), "/");
        let warnings = stored?.into_iter().map(of_layer).collect();
        let (Some(_), Some((diff_id, size))) = (blob_sum.get(), archive_sum.get()) else {
            return Err(Error::malformed(name, "something follows the end of the archive"));
        };
        let facts = Facts { diff_id: diff_id.to_string(), size: *size };
        check_diff_id(layer, &facts)?;
        let about = serde_json::to_string(&facts).map_err(|error| Error::invalid(name, error.to_string()))?;
        changes.set_about(&about)?;
        store.flush()?;
        changes.close_durably()?;
        Ok(warnings)
    }
}

/// A reader that can be read on when whoever had it is done with it.
#[derive(Debug)]
struct Shared<R>(Arc<Mutex<R>>);

impl<R> Clone for Shared<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R: Read> Read for Shared<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(buffer)
    }
}

/// Layers keep what they say: owners, attributes, times. What they do not say is the same for everybody.
fn source_options(mtime_nanoseconds: bool) -> Result<Options> {
    Ok(Options {
        base_dir: RepoPath::from_bytes(TOP.as_bytes())?,
        delete: Vec::new(),
        catalog: false,
        ownership: Ownership { uid: IdMap::default(), gid: IdMap::default(), implied: (0, 0) },
        whiteouts: true,
        size_limit: u64::MAX,
        xattrs: true,
        mtime_nanoseconds,
        now: UnixSeconds(0),
    })
}

fn check_diff_id(layer: &Layer, facts: &Facts) -> Result<()> {
    let expected = layer.diff_id.to_string();
    if facts.diff_id == expected {
        return Ok(());
    }
    let what = format!("layer {} uncompressed", layer.blob.digest);
    Err(Error::HashMismatch { what, expected, actual: facts.diff_id.clone() })
}

/// A place for digest and size of a stream, and what notes them there.
#[expect(clippy::type_complexity, reason = "a pair, used at once")]
fn sum() -> (Arc<OnceLock<(Digest, u64)>>, impl FnOnce(Digest, u64) -> io::Result<()> + Send + 'static) {
    let sum = Arc::new(OnceLock::new());
    let noted = Arc::clone(&sum);
    let note = move |digest, size| {
        // The reader says it once.
        let _ = noted.set((digest, size));
        Ok(())
    };
    (sum, note)
}
