//! Which objects the entries of a catalog need: what replication and collection of garbage ask.

use super::Catalog;
use super::schema::Shape;
use crate::compression::Compression;
use crate::database::bytes;
use crate::entry::{RawKind, flag};
use crate::error::{DatabaseContext as _, Error, Result};
use crate::hash::{ContentHash, ObjectId, ObjectKind};

/// An object that an entry of a catalog needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NeededObject {
    /// Its name.
    pub id: ObjectId,
    /// How it is stored.
    pub compression: Compression,
}

impl Catalog {
    /// Visits the objects of all files, one row after the other: in no particular order, and an object as often as there
    /// are entries with it. Bytes on external servers and nested catalogs are left out.
    ///
    /// With a `base`, entries are left out whose objects are the same at the same path there.
    ///
    /// Source: `SqlAllChunks` in `cvmfs/catalog_sql.cc`.
    pub fn objects(&self, base: Option<&Self>, visit: &mut dyn FnMut(NeededObject) -> Result<()>) -> Result<()> {
        let Some(base) = base else { return self.visit_objects(None, visit) };
        let path = base.database.path().display().to_string();
        self.database.execute("ATTACH DATABASE ?1 AS base", [path])?;
        let visited = self.visit_objects(Some(&base.shape), visit);
        let detached = self.database.batch("DETACH DATABASE base");
        visited.and(detached)
    }

    fn visit_objects(&self, base: Option<&Shape>, visit: &mut dyn FnMut(NeededObject) -> Result<()>) -> Result<()> {
        let own = "length(new.hash) > 0 AND new.flags & ?1 = 0";
        let files = match base {
            None => format!("SELECT new.hash, new.flags FROM main.catalog AS new WHERE {own}"),
            Some(_) => format!(
                "SELECT new.hash, new.flags FROM main.catalog AS new LEFT JOIN base.catalog AS old \
                 ON old.md5path_1 = new.md5path_1 AND old.md5path_2 = new.md5path_2 \
                 WHERE {own} AND (old.hash IS NOT new.hash OR old.flags IS NOT new.flags)"
            ),
        };
        self.visit_rows(&files, ObjectKind::File, visit)?;
        if !self.shape.chunks {
            return Ok(());
        }
        let chunks = "SELECT chunk.hash, new.flags FROM main.chunks AS chunk JOIN main.catalog AS new \
                      ON new.md5path_1 = chunk.md5path_1 AND new.md5path_2 = chunk.md5path_2";
        let own = "new.flags & ?1 = 0";
        let chunks = match base.filter(|shape| shape.chunks) {
            None => format!("{chunks} WHERE {own}"),
            Some(_) => format!(
                "{chunks} LEFT JOIN base.chunks AS old ON old.md5path_1 = chunk.md5path_1 \
                 AND old.md5path_2 = chunk.md5path_2 AND old.offset = chunk.offset AND old.size = chunk.size \
                 LEFT JOIN base.catalog AS file ON file.md5path_1 = old.md5path_1 AND file.md5path_2 = old.md5path_2 \
                 WHERE {own} AND (old.hash IS NOT chunk.hash OR file.flags IS NOT new.flags)"
            ),
        };
        self.visit_rows(&chunks, ObjectKind::Chunk, visit)
    }

    fn visit_rows(&self, sql: &str, kind: ObjectKind, visit: &mut dyn FnMut(NeededObject) -> Result<()>) -> Result<()> {
        let what = &self.database.what();
        let mut statement = self.database.connection.prepare(sql).in_database(what)?;
        let mut rows = statement.query([flag::EXTERNAL]).in_database(what)?;
        while let Some(row) = rows.next().in_database(what)? {
            let flags: i64 = row.get(1).in_database(what)?;
            let digest = bytes(row, 0).in_database(what)?;
            let object = needed(kind, digest, flags).map_err(|error| Error::malformed(*what, error.to_string()))?;
            visit(object)?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "32 bits in a 64-bit column")]
fn needed(kind: ObjectKind, digest: &[u8], flags: i64) -> Result<NeededObject> {
    let flags = flags as u32;
    // The hash of a directory is reserved for micro catalogs.
    let kind = if kind == ObjectKind::File && flags & flag::DIRECTORY != 0 { ObjectKind::MicroCatalog } else { kind };
    let raw = RawKind { flags, mode: 0, size: 0, hash: digest, symlink: b"" };
    let hash = ContentHash::from_digest(raw.algorithm()?, digest)?;
    // A compression that we do not know does not keep an object from being copied.
    Ok(NeededObject { id: ObjectId::new(hash, kind), compression: raw.compression().unwrap_or(Compression::None) })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::*;
    use crate::catalog::{Counters, Finish, FinishedCatalog, Row, WritableCatalog};
    use crate::clock::UnixSeconds;
    use crate::entry::{Chunk, Entry, EntryKind, FileContent, FileObjects, Mtime};
    use crate::hash::Algorithm;
    use crate::path::RepoPath;

    fn file(path: &str, compression: Compression, external: bool, objects: FileObjects) -> Row {
        let content = FileContent { size: 2, compression, objects, external, direct_io: false };
        let entry = Entry { kind: EntryKind::File(content), ..Entry::directory(0o644, 0, 0, Mtime::seconds(1)) };
        Row::new(&path.parse().unwrap(), entry)
    }

    fn whole(seed: u8) -> FileObjects {
        FileObjects::Whole(Algorithm::Shake128.hash(&[seed]))
    }

    fn chunked(seeds: [u8; 2]) -> FileObjects {
        let chunk = |(offset, seed)| Chunk { offset, size: 1, hash: Algorithm::Sha1.hash(&[seed]) };
        FileObjects::Chunked { chunks: vec![chunk((0, seeds[0])), chunk((1, seeds[1]))], bulk: None }
    }

    fn catalog(scratch: &Path, files: &[Row]) -> FinishedCatalog {
        let mut catalog = WritableCatalog::create(RepoPath::root(), scratch).unwrap();
        catalog.add(&Row::new(&RepoPath::root(), Entry::directory(0o755, 0, 0, Mtime::seconds(1)))).unwrap();
        for file in files {
            catalog.add(file).unwrap();
        }
        let (now, previous) = (UnixSeconds(1), ContentHash::null(Algorithm::Sha1));
        catalog.finish(&Finish { now, previous, subtree: Counters::default(), revision: None }).unwrap()
    }

    fn names(catalog: &Catalog, base: Option<&Catalog>) -> HashSet<(String, Compression)> {
        let mut names = HashSet::new();
        let mut add = |object: NeededObject| {
            names.insert((object.id.to_string(), object.compression));
            Ok(())
        };
        catalog.objects(base, &mut add).unwrap();
        names
    }

    #[test]
    fn objects_have_the_kind_algorithm_and_compression_of_their_file() {
        use Compression::{None as Plain, Zlib};
        let scratch = tempfile::tempdir().unwrap();
        let sha1 = |seed: u8| format!("{}P", Algorithm::Sha1.hash(&[seed]));
        let shake = |seed: u8| Algorithm::Shake128.hash(&[seed]).to_string();
        let same = [file("/a", Zlib, false, whole(1)), file("/b", Plain, false, chunked([2, 3]))];
        let old = catalog(scratch.path(), &same);
        let old = Catalog::open(&old.file).unwrap();
        let expected = [(shake(1), Zlib), (sha1(2), Plain), (sha1(3), Plain)];
        assert_eq!(names(&old, None), expected.into());

        let changed = [
            file("/a", Zlib, false, whole(1)),
            file("/b", Plain, false, chunked([2, 4])),
            file("/c", Zlib, false, whole(2)),
            file("/d", Zlib, true, whole(5)),
            file("/e", Zlib, true, chunked([6, 7])),
        ];
        let new = catalog(scratch.path(), &changed);
        let new = Catalog::open(&new.file).unwrap();
        assert_eq!(names(&new, Some(&old)), [(sha1(4), Plain), (shake(2), Zlib)].into());
        // The base may be attached again.
        assert_eq!(names(&new, Some(&old)).len(), 2);
        assert_eq!(names(&new, Some(&new)), HashSet::new());
    }
}
