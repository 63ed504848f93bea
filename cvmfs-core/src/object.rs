//! Objects on their way in, named by what is written, and on their way out, every byte verified.

use std::fmt;
use std::io::{self, Read, Write};

use crate::compression::{self, Compression, InflatingReader};
use crate::error::{Error, Result};
use crate::hash::{Algorithm, Hasher, ObjectId, ObjectKind};
use crate::storage::{Key, Put, ReadStore, StagedObject, WriteStore};

/// Writes the stored bytes of an object whose name is known when it ends.
#[derive(Debug)]
pub struct ObjectWriter {
    staged: Box<dyn StagedObject>,
    hasher: Hasher,
    size: u64,
}

/// An object in a store.
#[derive(Debug, Clone, Copy)]
pub struct StoredObject {
    /// Its name.
    pub id: ObjectId,
    /// Stored bytes.
    pub stored_size: u64,
    /// Whether it is new.
    pub put: Put,
}

impl ObjectWriter {
    /// Begins an object.
    pub fn new(store: &dyn WriteStore, algorithm: Algorithm) -> Result<Self> {
        Ok(Self { staged: store.stage()?, hasher: Hasher::new(algorithm), size: 0 })
    }

    /// Ends and names the object.
    pub fn finish(self, kind: ObjectKind) -> Result<StoredObject> {
        let id = ObjectId::new(self.hasher.finish(), kind);
        let put = self.staged.finish(&id)?;
        Ok(StoredObject { id, stored_size: self.size, put })
    }
}

impl Write for ObjectWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.staged.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.staged.flush()
    }
}

/// A reader that passes stored bytes through and fails at their end if their hash is not the expected one.
pub struct VerifyingReader<R: Read> {
    source: R,
    hasher: Option<Hasher>,
    id: ObjectId,
    place: String,
}

impl<R: Read> fmt::Debug for VerifyingReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingReader({})", self.id)
    }
}

impl<R: Read> VerifyingReader<R> {
    /// Reads `source`, which must be the stored bytes of `id`; `place` names it in errors.
    pub fn new(source: R, id: ObjectId, place: String) -> Self {
        Self { source, hasher: Some(Hasher::new(id.hash.algorithm())), id, place }
    }
}

impl<R: Read> Read for VerifyingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let size = self.source.read(buffer)?;
        if size > 0 {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&buffer[..size]);
            }
        } else if !buffer.is_empty()
            && let Some(hasher) = self.hasher.take()
        {
            let actual = hasher.finish();
            if actual != self.id.hash {
                let mismatch = Error::HashMismatch {
                    what: self.place.clone(),
                    expected: self.id.hash.to_string(),
                    actual: actual.to_string(),
                };
                return Err(io::Error::new(io::ErrorKind::InvalidData, mismatch));
            }
        }
        Ok(size)
    }
}

/// Opens an object for reading its plain bytes.
///
/// The reader fails at the end if hash or compression are wrong: what was read before is then worthless.
pub fn open(store: &dyn ReadStore, id: &ObjectId, compression: Compression) -> Result<Box<dyn Read + Send>> {
    let key = Key::Object(*id);
    let stored =
        VerifyingReader::new(store.open(&key).map_err(Error::of_referenced_object)?, *id, store.describe(&key));
    Ok(match compression {
        Compression::Zlib => Box::new(InflatingReader::new(stored)),
        Compression::None => Box::new(stored),
    })
}

/// Reads a small zlib-compressed object (certificate, meta info) whole, at most `limit` plain bytes.
pub fn read_small(store: &dyn ReadStore, id: &ObjectId, limit: u64) -> Result<Vec<u8>> {
    let key = Key::Object(*id);
    let stored = store.read(&key).map_err(Error::of_referenced_object)?;
    let actual = id.hash.algorithm().hash(&stored);
    if actual != id.hash {
        return Err(Error::HashMismatch {
            what: store.describe(&key),
            expected: id.hash.to_string(),
            actual: actual.to_string(),
        });
    }
    compression::inflate(&store.describe(&key), &stored, limit)
}

/// Recovers our error from one that travelled through [`Read`].
///
/// `what` names the object if the error is not ours.
pub fn read_error(what: &str, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::InvalidData {
        match error.downcast::<Error>() {
            Ok(ours) => ours,
            Err(other) => Error::malformed(what, other.to_string()),
        }
    } else {
        Error::io(what, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::{Compressor, Effort};
    use crate::storage::MemoryStore;

    fn read_all(store: &MemoryStore, id: &ObjectId, compression: Compression) -> Result<Vec<u8>> {
        let mut plain = Vec::new();
        open(store, id, compression)?.read_to_end(&mut plain).map_err(|error| read_error("object", error))?;
        Ok(plain)
    }

    #[test]
    fn reads_only_what_the_name_promises() {
        let store = MemoryStore::new();
        let stored = Compressor::new(Effort::default()).compress(b"content").to_vec();
        let zlib = ObjectId::of(Algorithm::Rmd160, ObjectKind::File, &stored);
        store.put(&zlib, &stored).unwrap();
        let plain = ObjectId::of(Algorithm::Sha1, ObjectKind::File, b"content");
        store.put(&plain, b"content").unwrap();
        assert_eq!(read_all(&store, &zlib, Compression::Zlib).unwrap(), b"content");
        assert_eq!(read_all(&store, &plain, Compression::None).unwrap(), b"content");

        store.put(&plain, b"cOntent").unwrap();
        assert!(matches!(read_all(&store, &plain, Compression::None), Err(Error::HashMismatch { .. })));
        let other = Compressor::new(Effort::default()).compress(b"other").to_vec();
        store.put(&zlib, &other).unwrap();
        assert!(matches!(read_all(&store, &zlib, Compression::Zlib), Err(Error::HashMismatch { .. })));
        store.put(&zlib, &stored[..stored.len() - 1]).unwrap();
        assert!(matches!(read_all(&store, &zlib, Compression::Zlib), Err(Error::HashMismatch { .. })));
    }
}
