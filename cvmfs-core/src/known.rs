//! The known-content index: what objects plain bytes became before.
//!
//! Nightly builds and image layers repeat most of their bytes. A piece (a whole file or a chunk) that is known costs a
//! BLAKE3 pass instead of deflate, hash and store. The index is a cache: it can be deleted at any time, several
//! processes share it, and a hit counts only if the object is still in the storage and whole.
//!
//! It also makes runs resumable: a run that was killed is simply repeated, and what it stored is known.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, TransactionBehavior};

use crate::compression::{Compression, Policy};
use crate::error::{DatabaseContext as _, Result};
use crate::hash::{Algorithm, ContentHash, DIGEST_SIZE, ObjectId, ObjectKind};
use crate::lock::FileLock;
use crate::progress::Cancel;

/// Version of the file; a file of another version is replaced.
const VERSION: i64 = 2;
/// New pieces that are kept in memory before they are written.
const BATCH: usize = 1024;
/// Plain bytes of new pieces after which they are written.
const BATCH_BYTES: u64 = 16 << 20;
/// Look-ups in one transaction: to begin one takes longer than to look, but meanwhile the log of other writers grows.
const LOOKUPS: u32 = 1000;
/// How long another process may keep the file before this one goes on without writing to it.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long others may take to open the file before us.
const PATIENCE_TO_OPEN: Duration = Duration::from_secs(10);
/// Pieces that are remembered by default; about 90 bytes of disk each.
pub const DEFAULT_CAPACITY: u64 = 20_000_000;

/// The name of plain bytes: a BLAKE3 hash of them and of how they are to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PieceKey([u8; 32]);

impl PieceKey {
    /// Names a piece that is to become an object of this kind, algorithm and compression.
    pub fn of(plain: &[u8], kind: ObjectKind, algorithm: Algorithm, policy: Policy) -> Self {
        let mut hasher = PieceHasher::default();
        hasher.update(plain);
        hasher.key(kind, algorithm, policy)
    }
}

/// Names a piece that comes in parts.
#[derive(Debug, Clone, Default)]
pub struct PieceHasher(blake3::Hasher);

impl PieceHasher {
    /// Adds the next plain bytes.
    pub fn update(&mut self, plain: &[u8]) {
        self.0.update(plain);
    }

    /// The name of all bytes so far; see [`PieceKey::of`].
    pub fn key(&self, kind: ObjectKind, algorithm: Algorithm, policy: Policy) -> PieceKey {
        let mut hasher = self.0.clone();
        // The length keeps the suffix from being mistaken for content.
        hasher.update(&hasher.count().to_le_bytes());
        hasher.update(kind.suffix().as_bytes());
        hasher.update(&[algorithm as u8, policy as u8]);
        PieceKey(*hasher.finalize().as_bytes())
    }
}

/// What a piece became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownObject {
    /// The object.
    pub id: ObjectId,
    /// Its stored bytes, to see whether it is whole.
    pub stored_size: u64,
    /// How they are stored.
    pub compression: Compression,
}

/// An index in a file of its own.
#[derive(Debug)]
pub struct KnownContent {
    state: Mutex<State>,
    capacity: u64,
    path: PathBuf,
}

#[derive(Debug)]
struct State {
    connection: Connection,
    /// Pieces that are not written yet, in the order in which writing them is fastest.
    fresh: BTreeMap<PieceKey, KnownObject>,
    fresh_bytes: u64,
    /// Look-ups that the open transaction is still good for; 0 if none is open.
    lookups_left: u32,
}

impl State {
    /// Ends the transaction for reading, if one is open.
    fn end(&mut self) -> rusqlite::Result<()> {
        if self.lookups_left > 0 {
            self.lookups_left = 0;
            self.connection.prepare_cached("COMMIT")?.execute([])?;
        }
        Ok(())
    }

    fn find(&mut self, key: &PieceKey, kind: ObjectKind, algorithm: Algorithm) -> Option<KnownObject> {
        if let Some(object) = self.fresh.get(key) {
            return Some(*object);
        }
        // A cache that cannot be read knows nothing.
        let (digest, size, plain) = self.look_up(key).ok().flatten()?;
        let id = ObjectId::new(ContentHash::new(algorithm, digest), kind);
        let compression = if plain { Compression::None } else { Compression::Zlib };
        Some(KnownObject { id, stored_size: size.cast_unsigned(), compression })
    }

    fn look_up(&mut self, key: &PieceKey) -> rusqlite::Result<Option<([u8; DIGEST_SIZE], i64, bool)>> {
        if self.lookups_left == 0 {
            self.connection.prepare_cached("BEGIN")?.execute([])?;
            self.lookups_left = LOOKUPS;
        }
        let sql = "SELECT digest, size, plain FROM known WHERE piece = ?1";
        let columns = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        let found = self.connection.prepare_cached(sql)?.query_row([&key.0[..]], columns).optional();
        match self.lookups_left {
            1 => self.end()?,
            left => self.lookups_left = left - 1,
        }
        found
    }
}

impl KnownContent {
    /// Opens the index in a file, which is made if it does not exist and replaced if it is damaged.
    pub fn open(path: &Path, capacity: u64) -> Result<Self> {
        let connection = connect_alone(path)?;
        let state = State { connection, fresh: BTreeMap::new(), fresh_bytes: 0, lookups_left: 0 };
        Ok(Self { state: Mutex::new(state), capacity, path: path.to_owned() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a piece became, if that is known. Whether the object is still there is the caller's to check.
    pub fn find(&self, key: &PieceKey, kind: ObjectKind, algorithm: Algorithm) -> Option<KnownObject> {
        self.state().find(key, kind, algorithm)
    }

    /// The same for several pieces at once.
    pub fn find_all(&self, pieces: &[(PieceKey, ObjectKind)], algorithm: Algorithm) -> Vec<Option<KnownObject>> {
        let mut state = self.state();
        pieces.iter().map(|(key, kind)| state.find(key, *kind, algorithm)).collect()
    }

    /// Remembers what a piece of so many plain bytes became.
    pub fn remember(&self, key: PieceKey, object: KnownObject, plain_size: u64) {
        let mut state = self.state();
        state.fresh.insert(key, object);
        state.fresh_bytes += plain_size;
        if state.fresh.len() >= BATCH || state.fresh_bytes >= BATCH_BYTES {
            self.write(&mut state);
        }
    }

    /// Writes what is remembered; failing to only costs time later.
    pub fn flush(&self) {
        self.write(&mut self.state());
    }

    fn write(&self, state: &mut State) {
        let mut write = || -> rusqlite::Result<()> {
            state.end()?;
            let State { connection, fresh, .. } = &mut *state;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let sql = "INSERT OR REPLACE INTO known (piece, digest, size, plain) VALUES (?1, ?2, ?3, ?4)";
                let mut insert = transaction.prepare_cached(sql)?;
                for (key, object) in &*fresh {
                    let (digest, size) = (object.id.hash.digest(), object.stored_size.cast_signed());
                    insert.execute((&key.0[..], &digest[..], size, object.compression == Compression::None))?;
                }
                // Row numbers grow, so the smallest are the oldest.
                let oldest = "DELETE FROM known WHERE rowid <= (SELECT max(rowid) FROM known) - ?1";
                transaction.prepare_cached(oldest)?.execute([self.capacity.cast_signed()])?;
            }
            transaction.commit()
        };
        match write() {
            Ok(()) => {
                state.fresh.clear();
                state.fresh_bytes = 0;
            }
            // Another process is writing: they stay in memory until next time, unless they get too many.
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "cannot write the known-content index");
                if state.fresh.len() > 25 * BATCH {
                    state.fresh.clear();
                }
            }
        }
    }

    /// The number of pieces that are remembered.
    pub fn len(&self) -> Result<u64> {
        let mut state = self.state();
        state.end().in_database(&self.path.display())?;
        let count = "SELECT count(*) FROM known";
        let written: i64 = state.connection.query_row(count, [], |row| row.get(0)).in_database(&self.path.display())?;
        Ok(written.cast_unsigned() + state.fresh.len() as u64)
    }

    /// The file of the index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Forgets everything.
    pub fn clear(&self) -> Result<()> {
        let mut state = self.state();
        state.fresh.clear();
        state.end().in_database(&self.path.display())?;
        state.connection.execute_batch("DELETE FROM known").in_database(&self.path.display())
    }
}

impl Drop for KnownContent {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Connects to the index while nobody else does: changing the mode of a database that is new is no place for two.
fn connect_alone(path: &Path) -> Result<Connection> {
    let mut name = path.to_owned().into_os_string();
    name.push(".lock");
    let _alone = FileLock::acquire(Path::new(&name), PATIENCE_TO_OPEN, &Cancel::new())?;
    match connect(path) {
        Err(error) if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) => {
            tracing::warn!(path = %path.display(), %error, "replacing the known-content index");
            remove(path);
            connect(path)
        }
        result => result,
    }
    .in_database(&path.display())
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let is_ours = |connection: &Connection| -> rusqlite::Result<bool> {
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        Ok(version == VERSION)
    };
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(PATIENCE)?;
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA cache_size = -16384;")?;
    if !is_ours(&connection)? {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(&format!(
            "DROP TABLE IF EXISTS known;
             CREATE TABLE known (id INTEGER PRIMARY KEY, piece BLOB UNIQUE, digest BLOB, size INTEGER, plain INTEGER);
             PRAGMA user_version = {VERSION};"
        ))?;
        transaction.commit()?;
    }
    Ok(connection)
}

fn remove(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.to_owned().into_os_string();
        file.push(suffix);
        // Absent is as good as removed; anything else shows when the file is opened again.
        let _ = fs::remove_file(file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &[u8]) -> PieceKey {
        PieceKey::of(text, ObjectKind::File, Algorithm::Sha1, Policy::Zlib)
    }

    fn object(text: &[u8]) -> KnownObject {
        let id = ObjectId::of(Algorithm::Sha1, ObjectKind::File, text);
        let compression = if text == b"plain" { Compression::None } else { Compression::Zlib };
        KnownObject { id, stored_size: 5, compression }
    }

    fn find(index: &KnownContent, text: &[u8]) -> Option<KnownObject> {
        index.find(&key(text), ObjectKind::File, Algorithm::Sha1)
    }

    #[test]
    fn what_was_remembered_is_found_also_by_the_next_and_by_another_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("known.db");
        let index = KnownContent::open(&path, 10).unwrap();
        index.remember(key(b"a"), object(b"1"), 1);
        assert_eq!(find(&index, b"a"), Some(object(b"1")));
        assert_eq!(find(&index, b"b"), None);
        index.flush();
        let other = KnownContent::open(&path, 10).unwrap();
        assert_eq!(find(&other, b"a"), Some(object(b"1")));
        other.remember(key(b"b"), object(b"plain"), 1);
        drop(other);
        assert_eq!(find(&index, b"b"), Some(object(b"plain")));
        assert_eq!(index.len().unwrap(), 2);
        index.clear().unwrap();
        assert!(index.is_empty().unwrap());
    }

    #[test]
    fn an_index_is_made_once_by_whoever_is_first() {
        let directory = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let path = directory.path().join(format!("{round}.db"));
            let made: Vec<Connection> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| connect_alone(&path))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
            });
            assert_eq!(made.len(), 4);
        }
    }

    #[test]
    fn how_bytes_are_stored_is_part_of_their_name() {
        let keys = [
            key(b"a"),
            PieceKey::of(b"a", ObjectKind::Chunk, Algorithm::Sha1, Policy::Zlib),
            PieceKey::of(b"a", ObjectKind::File, Algorithm::Rmd160, Policy::Zlib),
            PieceKey::of(b"a", ObjectKind::File, Algorithm::Sha1, Policy::None),
            PieceKey::of(b"a", ObjectKind::File, Algorithm::Sha1, Policy::Auto),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[index + 1..].contains(key));
        }
    }

    #[test]
    fn the_oldest_pieces_go_when_there_are_too_many() {
        let directory = tempfile::tempdir().unwrap();
        let index = KnownContent::open(&directory.path().join("known.db"), 100).unwrap();
        for number in 0..1000_u32 {
            index.remember(key(&number.to_le_bytes()), object(b"1"), 1);
            // What is written together is of the same age.
            if number % 50 == 49 {
                index.flush();
            }
        }
        assert_eq!(index.len().unwrap(), 100);
        assert_eq!(find(&index, &0_u32.to_le_bytes()), None);
        assert!(find(&index, &999_u32.to_le_bytes()).is_some());
    }

    /// Far more look-ups than one transaction has, with writes of both between them.
    #[test]
    fn what_another_process_adds_is_found_in_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("known.db");
        let (index, other) = (KnownContent::open(&path, 10_000).unwrap(), KnownContent::open(&path, 10_000).unwrap());
        for number in 0..5 * LOOKUPS {
            let text = number.to_le_bytes();
            assert_eq!(find(&index, &text), None);
            if number % 700 == 0 {
                index.remember(key(&text), object(b"1"), 1);
                index.flush();
                other.remember(key(&(number + 1_000_000).to_le_bytes()), object(b"2"), 1);
                other.flush();
            }
        }
        other.remember(key(b"late"), object(b"3"), 1);
        other.flush();
        assert_eq!((0..=LOOKUPS).find_map(|_| find(&index, b"late")), Some(object(b"3")));
        assert_eq!((index.len().unwrap(), other.len().unwrap()), (17, 17));
    }

    #[test]
    fn a_damaged_or_foreign_file_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("known.db");
        fs::write(&path, "no database at all, but long enough to look at").unwrap();
        let index = KnownContent::open(&path, 10).unwrap();
        index.remember(key(b"a"), object(b"1"), 1);
        drop(index);
        assert!(find(&KnownContent::open(&path, 10).unwrap(), b"a").is_some());
    }
}
