//! The reflog: every root-level object that was ever added to *this* storage and is not collected yet.
//!
//! It is a plain SQLite file whose hash is kept apart, in a checksum file and in the manifest: a reflog that matches
//! neither is not believed.
//!
//! Source: `cvmfs/reflog.cc`, `cvmfs/reflog_sql.cc`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::clock::UnixSeconds;
use crate::database::Database;
use crate::durable;
use crate::error::{Error, IoContext as _, Result};
use crate::hash::{Algorithm, ContentHash, ObjectId, ObjectKind};
use crate::manifest::SignedManifest;
use crate::path::RepositoryName;
use crate::storage::{NamedFile, WriteStore};

/// How often a change of the reflog is tried while other machines change it.
const MAX_RACES: usize = 10;

const TABLES: &str = "
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE refs (hash TEXT, type INTEGER, timestamp INTEGER, CONSTRAINT pk_refs PRIMARY KEY (hash));
INSERT INTO properties (key, value) VALUES ('schema', '1.0'), ('schema_revision', '0');
";

/// Object kinds in the order of their number in the `type` column.
const TYPES: [ObjectKind; 4] =
    [ObjectKind::Catalog, ObjectKind::Certificate, ObjectKind::History, ObjectKind::Metainfo];

/// A reflog, opened for editing.
#[derive(Debug)]
pub struct Reflog {
    database: Database,
}

impl Reflog {
    /// Creates an empty reflog.
    pub fn create(name: &RepositoryName, scratch: &Path) -> Result<Self> {
        let database = Database::create(scratch, "new reflog", TABLES)?;
        database.set_property("fqrn", name)?;
        Ok(Self { database })
    }

    /// Opens the stored file, whose hash the caller has checked.
    ///
    /// # Errors
    /// `Malformed` if it is no reflog of this repository.
    pub fn open(bytes: &[u8], name: &RepositoryName, scratch: &Path) -> Result<Self> {
        let database = Database::from_bytes(scratch, format!("reflog of {name}"), bytes)?;
        let property = |key| Ok::<_, Error>(database.property(key)?.unwrap_or_default());
        if (property("schema")?.as_str(), property("schema_revision")?.as_str()) != ("1.0", "0") {
            return Err(Error::malformed(database.what(), "unknown schema"));
        }
        if property("fqrn")? != name.as_str() {
            return Err(Error::malformed(database.what(), "it belongs to another repository"));
        }
        Ok(Self { database })
    }

    /// Adds an object, or refreshes its time.
    ///
    /// # Errors
    /// `InvalidInput` for a kind that is not root-level.
    pub fn add(&mut self, id: &ObjectId, now: UnixSeconds) -> Result<()> {
        let kind = TYPES
            .iter()
            .position(|kind| *kind == id.kind)
            .and_then(|kind| i64::try_from(kind).ok())
            .ok_or_else(|| Error::invalid(id.to_string(), "only root-level objects go into the reflog"))?;
        let sql = "INSERT OR REPLACE INTO refs (hash, type, timestamp) VALUES (?1, ?2, ?3)";
        self.database.execute(sql, (id.hash.to_string(), kind, now.0))?;
        Ok(())
    }

    /// Removes objects; fine if they are not there.
    pub fn remove(&mut self, objects: &[ObjectId]) -> Result<()> {
        for id in objects {
            self.database.execute("DELETE FROM refs WHERE hash = ?1", [id.hash.to_string()])?;
        }
        Ok(())
    }

    /// All objects with the time of their last addition, the oldest first.
    pub fn entries(&self) -> Result<Vec<(ObjectId, UnixSeconds)>> {
        let sql = "SELECT hash, type, timestamp FROM refs ORDER BY timestamp, hash";
        let rows = self
            .database
            .query(sql, [], |row| Ok((row.get::<_, String>(0)?, row.get::<_, u8>(1)?, row.get::<_, i64>(2)?)))?;
        let interpret = |(hash, kind, timestamp): (String, u8, i64)| {
            let hash: ContentHash = hash.parse()?;
            let kind = TYPES
                .get(usize::from(kind))
                .ok_or_else(|| Error::malformed(self.database.what(), format!("unknown type {kind}")))?;
            Ok((ObjectId::new(hash, *kind), UnixSeconds(timestamp)))
        };
        rows.into_iter().map(interpret).collect()
    }

    /// The finished file.
    pub fn into_bytes(self) -> Result<Vec<u8>> {
        self.database.into_bytes()
    }
}

/// The reflog in a storage, with its checksum in the spool directory.
///
/// The intended checksum is noted beside that of the reflog in place, so that a crash between the two writes leaves
/// a reflog that matches one of them. The reflog in place may be that of a run that died there: its checksum is
/// noted, too, before the note that it matches is replaced.
#[derive(Debug, Clone, Copy)]
pub struct StoredReflog<'a> {
    /// Where the reflog is.
    pub store: &'a dyn WriteStore,
    /// Where its checksum is, and working files.
    pub spool: &'a Path,
    /// The repository.
    pub name: &'a RepositoryName,
}

impl StoredReflog<'_> {
    /// Adds objects and returns the new checksum.
    ///
    /// A reflog with the checksum `expected` is believed as well as one that the spool directory knows.
    ///
    /// # Errors
    /// `HashMismatch` if the reflog matches no checksum, `NotFound` if it should be there and is not.
    pub fn add(
        &self,
        expected: Option<ContentHash>,
        algorithm: Algorithm,
        now: UnixSeconds,
        objects: &[ObjectId],
    ) -> Result<ContentHash> {
        self.repeat(|| {
            let (mut reflog, in_place) = self.open(expected)?;
            for id in objects {
                reflog.add(id, now)?;
            }
            self.replace_if_same(reflog, in_place, algorithm)
        })
    }

    /// Reads a reflog that must be there.
    ///
    /// # Errors
    /// Those of [`add`](Self::add), and `NotFound` if there is none.
    pub fn read(&self, expected: Option<ContentHash>) -> Result<Reflog> {
        match self.open(expected)? {
            (reflog, Some(_)) => Ok(reflog),
            (_, None) => Err(Error::not_found(self.store.describe(&NamedFile::Reflog.into()))),
        }
    }

    /// Removes objects and returns the new checksum, of the same algorithm as the one before.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn remove(&self, expected: Option<ContentHash>, objects: &[ObjectId]) -> Result<ContentHash> {
        self.repeat(|| {
            let (mut reflog, in_place) = self.open(expected)?;
            let before = in_place.ok_or_else(|| Error::not_found(self.store.describe(&NamedFile::Reflog.into())))?;
            reflog.remove(objects)?;
            self.replace_if_same(reflog, in_place, before.algorithm())
        })
    }

    /// Makes a reflog of these objects anew, whatever is in its place, and returns its checksum.
    pub fn rebuild(&self, algorithm: Algorithm, objects: &[(ObjectId, UnixSeconds)]) -> Result<ContentHash> {
        let mut reflog = Reflog::create(self.name, &self.scratch()?)?;
        for (id, time) in objects {
            reflog.add(id, *time)?;
        }
        self.replace(reflog, None, algorithm, &|_| true)
    }

    /// Puts a reflog in the place of the one with the checksum `in_place`.
    fn replace(
        &self,
        reflog: Reflog,
        in_place: Option<ContentHash>,
        algorithm: Algorithm,
        is_in_place: &(dyn Fn(Option<&[u8]>) -> bool + Sync),
    ) -> Result<ContentHash> {
        let bytes = reflog.into_bytes()?;
        let checksum = algorithm.hash(&bytes);
        let (current, intended) = self.checksum_files();
        if let Some(in_place) = in_place.filter(|in_place| read_checksum(&current) != Some(*in_place)) {
            write_checksum(&current, in_place)?;
        }
        write_checksum(&intended, checksum)?;
        if !self.store.write_if(NamedFile::Reflog, &bytes, is_in_place)? {
            return Err(Error::Superseded { what: self.store.describe(&NamedFile::Reflog.into()) });
        }
        fs::rename(&intended, &current).at(&current)?;
        Ok(checksum)
    }

    /// The same, unless another machine replaced it meanwhile.
    fn replace_if_same(
        &self,
        reflog: Reflog,
        in_place: Option<ContentHash>,
        algorithm: Algorithm,
    ) -> Result<ContentHash> {
        self.replace(reflog, in_place, algorithm, &|current| match (current, in_place) {
            (Some(bytes), Some(checksum)) => checksum.algorithm().hash(bytes) == checksum,
            (current, in_place) => current.is_none() && in_place.is_none(),
        })
    }

    /// Whether a checksum of the reflog is noted.
    pub fn has_checksum(&self) -> bool {
        read_checksum(&self.checksum_files().0).is_some()
    }

    /// Notes the checksum of a reflog whose own note is lost; `false` if there is no reflog.
    pub fn adopt(&self, algorithm: Algorithm) -> Result<bool> {
        let bytes = match self.store.read(&NamedFile::Reflog.into()) {
            Err(error) if error.is_not_found() => return Ok(false),
            result => result?,
        };
        Reflog::open(&bytes, self.name, &self.scratch()?)?;
        write_checksum(&self.checksum_files().0, algorithm.hash(&bytes))?;
        Ok(true)
    }

    /// Opens the reflog if it is the one that we or the reference wrote last, and tells its checksum; makes one if there
    /// is none and should be none.
    fn open(&self, expected: Option<ContentHash>) -> Result<(Reflog, Option<ContentHash>)> {
        let (current, intended) = self.checksum_files();
        let mut accepted: Vec<ContentHash> =
            [current, intended].iter().filter_map(|file| read_checksum(file)).collect();
        accepted.extend(expected);
        let key = NamedFile::Reflog.into();
        match self.store.read(&key) {
            Ok(bytes) => {
                let matches = |checksum: &&ContentHash| checksum.algorithm().hash(&bytes) == **checksum;
                if let Some(checksum) = accepted.iter().find(matches) {
                    return Ok((Reflog::open(&bytes, self.name, &self.scratch()?)?, Some(*checksum)));
                }
                let checksum = accepted.first().map_or(Algorithm::Sha1, ContentHash::algorithm).hash(&bytes);
                if self.store.is_shared() && self.is_of_another_machine(&bytes)? {
                    return Ok((Reflog::open(&bytes, self.name, &self.scratch()?)?, Some(checksum)));
                }
                let expected = accepted.first().map_or_else(|| "a checksum file".into(), ToString::to_string);
                let actual = checksum.to_string();
                Err(Error::HashMismatch { what: format!("reflog {}", self.store.describe(&key)), expected, actual })
            }
            // A repository from before reflogs, or a new one.
            Err(error) if error.is_not_found() && accepted.is_empty() => {
                Ok((Reflog::create(self.name, &self.scratch()?)?, None))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a reflog that no checksum of ours matches may be that of another machine whose manifest is not there yet, or
    /// will never be: it lists what the manifest in place names.
    fn is_of_another_machine(&self, bytes: &[u8]) -> Result<bool> {
        let manifest = SignedManifest::parse(&self.store.read(&NamedFile::Manifest.into())?)?;
        let manifest = manifest.unverified();
        let Ok(reflog) = Reflog::open(bytes, self.name, &self.scratch()?) else { return Ok(false) };
        let listed: Vec<ObjectId> = reflog.entries()?.into_iter().map(|(id, _)| id).collect();
        let named = [Some(ObjectId::catalog(manifest.root_catalog)), manifest.history_object()];
        Ok(named.iter().flatten().all(|id| listed.contains(id)))
    }

    /// Does something again if another machine was faster.
    fn repeat(&self, work: impl Fn() -> Result<ContentHash>) -> Result<ContentHash> {
        for _ in 1..MAX_RACES {
            match work() {
                Err(Error::Superseded { .. }) => {}
                // It was replaced between our looks at reflog and manifest, or it is damaged.
                Err(Error::HashMismatch { .. }) if self.store.is_shared() => {}
                result => return result,
            }
        }
        work()
    }

    /// The noted checksum of the reflog in place, and that of one that is about to replace it.
    pub(crate) fn checksum_files(&self) -> (PathBuf, PathBuf) {
        (self.spool.join("reflog.chksum"), self.spool.join("reflog.chksum.new"))
    }

    fn scratch(&self) -> Result<PathBuf> {
        let directory = self.spool.join("tmp");
        fs::create_dir_all(&directory).at(&directory)?;
        Ok(directory)
    }
}

/// Replaces the file as a whole: half a checksum would be no checksum. It is durable before the reflog that it is of.
fn write_checksum(file: &Path, checksum: ContentHash) -> Result<()> {
    durable::replace(file, checksum.to_string().as_bytes())
}

fn read_checksum(file: &Path) -> Option<ContentHash> {
    fs::read_to_string(file).ok()?.lines().next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_was_added() {
        let scratch = tempfile::tempdir().unwrap();
        let name: RepositoryName = "example.org".parse().unwrap();
        let mut reflog = Reflog::create(&name, scratch.path()).unwrap();
        let id = |number: u8, kind| ObjectId::new(Algorithm::Shake128.hash(&[number]), kind);
        reflog.add(&id(1, ObjectKind::Catalog), UnixSeconds(5)).unwrap();
        reflog.add(&id(2, ObjectKind::History), UnixSeconds(6)).unwrap();
        reflog.add(&id(1, ObjectKind::Catalog), UnixSeconds(7)).unwrap();
        assert!(reflog.add(&id(3, ObjectKind::File), UnixSeconds(8)).is_err());
        let bytes = reflog.into_bytes().unwrap();

        let reflog = Reflog::open(&bytes, &name, scratch.path()).unwrap();
        let expected = [(id(2, ObjectKind::History), UnixSeconds(6)), (id(1, ObjectKind::Catalog), UnixSeconds(7))];
        assert_eq!(reflog.entries().unwrap(), expected);
        let mut shorter = Reflog::open(&bytes, &name, scratch.path()).unwrap();
        shorter.remove(&[id(2, ObjectKind::History), id(9, ObjectKind::History)]).unwrap();
        assert_eq!(shorter.entries().unwrap(), expected[1..]);
        assert!(Reflog::open(&bytes, &"other.org".parse().unwrap(), scratch.path()).is_err());
        assert!(Reflog::open(b"junk", &name, scratch.path()).is_err());
    }
}
