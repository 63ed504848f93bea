//! Objects that are needed and objects that go, as records of files.

use crate::buckets::Buckets;
use crate::error::{Error, Result};
use crate::hash::{Algorithm, ContentHash, DIGEST_SIZE, ObjectId, ObjectKind};

/// A digest without its algorithm: as the reference, an object protects all of the same digest.
pub(super) type Digest = [u8; DIGEST_SIZE];

/// Digests of what is needed.
pub(super) type Reached = Buckets<DIGEST_SIZE>;

/// What goes.
pub(super) type CondemnedObjects = Buckets<{ Condemned::SIZE }>;

/// The digests that begin with a byte, sorted, each once.
pub(super) fn digests(reached: &Reached, first: u8) -> Result<Vec<Digest>> {
    reached.sorted(first, DIGEST_SIZE)
}

/// Calls `visit` with the condemned objects whose names begin with a byte, some at a time.
pub(super) fn visit_condemned(
    condemned: &CondemnedObjects,
    first: u8,
    visit: &mut dyn FnMut(&[Condemned]) -> Result<()>,
) -> Result<()> {
    condemned.read(first, &mut |records| visit(&records.iter().map(Condemned::decode).collect::<Result<Vec<_>>>()?))
}

/// An object that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condemned {
    pub(super) id: ObjectId,
    pub(super) stored_size: u64,
}

impl Condemned {
    const SIZE: usize = DIGEST_SIZE + 10;

    pub(super) fn encode(self) -> [u8; Self::SIZE] {
        let mut record = [0; Self::SIZE];
        record[..DIGEST_SIZE + 2].copy_from_slice(&encode_id(&self.id));
        record[DIGEST_SIZE + 2..].copy_from_slice(&self.stored_size.to_le_bytes());
        record
    }

    fn decode(record: &[u8; Self::SIZE]) -> Result<Self> {
        let damaged = || Error::malformed("list of objects", "impossible record");
        let (id, size) = record.split_first_chunk().ok_or_else(damaged)?;
        let size: [u8; 8] = size.try_into().map_err(|_| damaged())?;
        Ok(Self { id: decode_id(id)?, stored_size: u64::from_le_bytes(size) })
    }
}

/// The name of an object as bytes that begin with its digest.
pub(crate) fn encode_id(id: &ObjectId) -> [u8; DIGEST_SIZE + 2] {
    let number = |position: Option<usize>| position.and_then(|number| u8::try_from(number).ok()).unwrap_or(u8::MAX);
    let mut record = [0; DIGEST_SIZE + 2];
    record[..DIGEST_SIZE].copy_from_slice(id.hash.digest());
    record[DIGEST_SIZE] = number(Algorithm::ALL.iter().position(|algorithm| *algorithm == id.hash.algorithm()));
    record[DIGEST_SIZE + 1] = number(ObjectKind::ALL.iter().position(|kind| *kind == id.kind));
    record
}

/// Reads what [`encode_id`] made.
pub(crate) fn decode_id(record: &[u8; DIGEST_SIZE + 2]) -> Result<ObjectId> {
    let damaged = || Error::malformed("list of objects", "impossible record");
    let (digest, [algorithm, kind]) = record
        .split_first_chunk()
        .zip(record.last_chunk())
        .map(|((digest, _), rest)| (digest, rest))
        .ok_or_else(damaged)?;
    let algorithm = *Algorithm::ALL.get(usize::from(*algorithm)).ok_or_else(damaged)?;
    let kind = *ObjectKind::ALL.get(usize::from(*kind)).ok_or_else(damaged)?;
    Ok(ObjectId::new(ContentHash::new(algorithm, *digest), kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn condemned_objects_come_back_as_they_are() {
        for (size, algorithm) in (1..).zip(Algorithm::ALL) {
            for kind in ObjectKind::ALL {
                let object = Condemned { id: ObjectId::of(algorithm, kind, b"x"), stored_size: size << 40 };
                assert_eq!(Condemned::decode(&object.encode()).unwrap(), object);
            }
        }
    }
}
