//! What change sets that others made need of the storage.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::row::digests_of_chunks;
use super::{BASE, NEEDS};
use crate::database::bytes;
use crate::error::{Error, IoContext as _, Result};
use crate::hash::{ContentHash, DIGEST_SIZE};

/// How long somebody may be opening or closing the file.
const PATIENCE: Duration = Duration::from_millis(100);

/// The extension of a layer's change set.
pub const FINISHED: &str = "changes";
/// Its extension while the layer is being fetched.
pub const PARTIAL: &str = "partial";

/// What a change set needs, as a look from outside shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Needs {
    /// These root catalogs, and the objects that were visited.
    Roots(Vec<ContentHash>),
    /// It is being written, or about to be.
    InUse,
}

/// Reads which root catalogs a change set was made from, and visits the digests of the objects that it puts.
///
/// # Errors
/// `Database` if the file cannot be read, although nobody uses it.
pub(crate) fn needs(path: &Path, visit: &mut dyn FnMut(&[u8; DIGEST_SIZE]) -> Result<()>) -> Result<Needs> {
    let mut visited = Ok(());
    let mut read = || -> rusqlite::Result<Vec<String>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(PATIENCE)?;
        let mut rows = connection.prepare("SELECT hash, chunks FROM changes")?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let whole = <&[u8; DIGEST_SIZE]>::try_from(bytes(row, 0)?).ok();
            visited = whole.into_iter().chain(digests_of_chunks(bytes(row, 1)?)).try_for_each(&mut *visit);
            if visited.is_err() {
                break;
            }
        }
        let roots = "SELECT value FROM properties WHERE key = ?1 UNION SELECT substr(key, length(?2) + 1) FROM properties \
                     WHERE substr(key, 1, length(?2)) = ?2";
        connection.prepare(roots)?.query_map([BASE, NEEDS], |row| row.get(0))?.collect()
    };
    let roots = match read() {
        Err(error) if is_busy(&error) => return Ok(Needs::InUse),
        roots => roots.map_err(|error| Error::database(path.display().to_string(), error))?,
    };
    visited?;
    roots.iter().map(|root| root.parse()).collect::<Result<_>>().map(Needs::Roots)
}

/// Whether somebody is writing a change set.
pub(crate) fn is_in_use(path: &Path) -> bool {
    let look = || -> rusqlite::Result<()> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(PATIENCE)?;
        connection.query_row("SELECT count(*) FROM properties", [], |_| Ok(()))
    };
    look().is_err_and(|error| is_busy(&error))
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Files below a spool directory that are change sets, or become some; that of the open transaction is not among them.
pub(crate) fn change_sets(spool: &Path) -> Result<Vec<PathBuf>> {
    let mut files = files_in(&journals(spool))?;
    files.retain(|file| !is_beside_database(file));
    let layers = files_in(&layers(spool))?;
    let is_change_set = |file: &PathBuf| file.extension().is_some_and(|kind| kind == FINISHED || kind == PARTIAL);
    files.extend(layers.into_iter().filter(is_change_set));
    Ok(files)
}

/// Where change sets are that are being made.
pub(crate) fn journals(spool: &Path) -> PathBuf {
    spool.join("changes")
}

/// Where change sets of image layers wait until an image needs them.
pub fn layers(spool: &Path) -> PathBuf {
    spool.join("layers")
}

/// The regular files in a directory, at any depth; none if it does not exist.
fn files_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut todo) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = todo.pop() {
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.at(&directory)?,
        };
        for entry in entries {
            let entry = entry.at(&directory)?;
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => todo.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    Ok(files)
}

/// What SQLite keeps beside a database.
fn is_beside_database(file: &Path) -> bool {
    let name = file.to_string_lossy();
    ["-wal", "-shm", "-journal"].iter().any(|suffix| name.ends_with(suffix))
}
