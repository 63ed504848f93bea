//! The reflog: every root-level object that was ever added to *this* storage and is not collected yet.
//!
//! It is a plain SQLite file whose hash is kept apart, in a checksum file and in the manifest: a reflog that matches
//! neither is not believed.
//!
//! Source: `cvmfs/reflog.cc`, `cvmfs/reflog_sql.cc`.

use std::path::Path;

use crate::clock::UnixSeconds;
use crate::database::Database;
use crate::error::{Error, Result};
use crate::hash::{ContentHash, ObjectId, ObjectKind};
use crate::path::RepositoryName;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Algorithm;

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
        assert!(Reflog::open(&bytes, &"other.org".parse().unwrap(), scratch.path()).is_err());
        assert!(Reflog::open(b"junk", &name, scratch.path()).is_err());
    }
}
