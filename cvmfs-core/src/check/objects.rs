//! The objects that entries need: each is looked at once, however many entries have it.

use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::ThreadPool;

use super::findings::{Findings, Kind};
use super::rows::Need;
use crate::buckets::Buckets;
use crate::error::{Error, IoContext as _, Result};
use crate::gc::records::{decode_id, encode_id};
use crate::hash::{ContentHash, DIGEST_SIZE, Hasher, ObjectId};
use crate::parallel::work_off;
use crate::progress::{Cancel, Progress};
use crate::storage::{Key, ReadStore};

/// Bytes of the record of a need: what is needed, and the number of a catalog that needs it.
pub(super) const RECORD: usize = KEY + 4;
/// Bytes of that without the catalog: name, compression, plain size.
const KEY: usize = DIGEST_SIZE + 2 + 1 + 8;

/// Objects that are looked at in one go.
const BATCH: usize = 1000;
/// Bytes of an object that are read at a time.
const BLOCK: usize = 128 * 1024;

/// What entries need.
pub(super) type Needs = Buckets<RECORD>;

/// What looking at objects came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Looked {
    pub(super) objects: u64,
    pub(super) bytes: u64,
}

/// How to look at objects.
pub(super) struct Look<'a> {
    pub(super) store: &'a Arc<dyn ReadStore>,
    pub(super) pool: &'a ThreadPool,
    /// Whether bytes must have their hash.
    pub(super) is_thorough: bool,
    pub(super) findings: &'a Findings,
    /// Says, for the number of a catalog and an object, where it is needed.
    pub(super) blame: &'a (dyn Fn(u32, &ObjectId) -> String + Sync),
}

impl Look<'_> {
    /// Looks whether all objects are there, with sizes that can be right.
    pub(super) fn at(&self, needs: &Needs, progress: &dyn Progress, cancel: &Cancel) -> Result<Looked> {
        let total = Mutex::new(Looked::default());
        work_off(self.pool, 0..=u8::MAX, |first, _| {
            let mut looked = Looked::default();
            let mut block = if self.is_thorough { vec![0; BLOCK] } else { Vec::new() };
            let mut last = None;
            for records in needs.sorted(first, KEY)?.chunks(BATCH) {
                let needs = records.iter().map(decode).collect::<Result<Vec<_>>>()?;
                let ids: Vec<ObjectId> = needs.iter().map(|(need, _)| need.id).collect();
                for ((need, catalog), size) in needs.into_iter().zip(self.store.sizes(&ids)?) {
                    cancel.check()?;
                    let is_new = last != Some(need.id);
                    last = Some(need.id);
                    let blame = || (self.blame)(catalog, &need.id);
                    judge_size(need, size, is_new, self.findings, &blame);
                    let Some(size) = size.filter(|_| is_new) else { continue };
                    looked.objects += 1;
                    if self.is_thorough {
                        if hash(&**self.store, &need.id, &mut block)?.is_some_and(|hash| hash != need.id.hash) {
                            self.findings.add_with(Kind::ObjectDamaged, need.id, || {
                                format!("its bytes have another hash; needed by {}", blame())
                            });
                            self.findings.lose(need.id);
                        }
                        looked.bytes += size;
                    }
                    progress.advance(1);
                }
            }
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            total.objects += looked.objects;
            total.bytes += looked.bytes;
            Ok(())
        })?;
        Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Judges the stored size of an object, which is `None` if the object is not there.
fn judge_size(need: Need, size: Option<u64>, is_new: bool, findings: &Findings, blame: &dyn Fn() -> String) {
    let Some(size) = size else {
        if is_new {
            findings.add_with(Kind::ObjectMissing, need.id, || format!("needed by {}", blame()));
            findings.lose(need.id);
        }
        return;
    };
    let message = match need.is_compressed {
        _ if size == 0 && need.id.hash != need.id.hash.algorithm().hash(b"") => "it is empty".to_owned(),
        false if size != need.plain_size => format!("it has {size} bytes, and should have {}", need.plain_size),
        true if !can_be_stream(size, need.plain_size) => {
            format!("it has {size} bytes, which cannot be {} bytes compressed", need.plain_size)
        }
        _ => return,
    };
    findings.add_with(Kind::ObjectSize, need.id, || format!("{message}; needed by {}", blame()));
    findings.lose(need.id);
}

/// Whether a zlib stream of `stored` bytes can hold `plain` bytes. Every encoder is within these bounds: a thousandth of
/// the size at least, and stored blocks of no less than 4 KiB at most.
fn can_be_stream(stored: u64, plain: u64) -> bool {
    stored >= 8 && stored.saturating_mul(1032) >= plain && stored <= plain + (plain / 4096 + 1) * 5 + 64
}

/// The hash of an object's bytes, which go through `block`; `None` if it went meanwhile.
fn hash(store: &dyn ReadStore, id: &ObjectId, block: &mut [u8]) -> Result<Option<ContentHash>> {
    let key = Key::Object(*id);
    let mut reader = match store.open(&key) {
        Err(error) if error.is_not_found() => return Ok(None),
        reader => reader?,
    };
    let mut hasher = Hasher::new(id.hash.algorithm());
    loop {
        match reader.read(block) {
            Ok(0) => return Ok(Some(hasher.finish())),
            Ok(size) => hasher.update(&block[..size]),
            Err(error) => return Err(error).at(store.describe(&key)),
        }
    }
}

/// The record of something that a catalog needs.
pub(super) fn encode(need: Need, catalog: u32) -> [u8; RECORD] {
    const ID: usize = DIGEST_SIZE + 2;
    let mut record = [0; RECORD];
    record[..ID].copy_from_slice(&encode_id(&need.id));
    record[ID] = u8::from(need.is_compressed);
    record[ID + 1..KEY].copy_from_slice(&need.plain_size.to_le_bytes());
    record[KEY..].copy_from_slice(&catalog.to_le_bytes());
    record
}

fn decode(record: &[u8; RECORD]) -> Result<(Need, u32)> {
    let damaged = || Error::malformed("list of needed objects", "impossible record");
    let (id, rest) = record.split_first_chunk().ok_or_else(damaged)?;
    let ([is_compressed], rest) = rest.split_first_chunk().ok_or_else(damaged)?;
    let (plain_size, catalog) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
    let catalog: [u8; 4] = catalog.try_into().map_err(|_| damaged())?;
    let (id, plain_size) = (decode_id(id)?, u64::from_le_bytes(*plain_size));
    Ok((Need { id, plain_size, is_compressed: *is_compressed != 0 }, u32::from_le_bytes(catalog)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::{Compressor, Effort, stock_zlib};
    use crate::hash::{Algorithm, ObjectKind};

    #[test]
    fn records_keep_what_they_are_made_of() {
        for (number, algorithm) in (0..).zip(Algorithm::ALL) {
            for kind in ObjectKind::ALL {
                let id = ObjectId::of(algorithm, kind, b"x");
                let need = Need { id, plain_size: 1 << 40 | 7, is_compressed: kind == ObjectKind::File };
                assert_eq!(decode(&encode(need, number)).unwrap(), (need, number));
            }
        }
    }

    #[test]
    fn streams_of_all_encoders_are_possible_and_twice_as_much_of_noise_is_not() {
        let noise: Vec<u8> = (0..10_000_u32).flat_map(|n| *Algorithm::Sha1.hash(&n.to_le_bytes()).digest()).collect();
        for size in [0, 1, 7, 100, 5000, 70_000, 200_000] {
            for plain in [&noise[..size], &vec![0; size]] {
                for level in [1, 6, 9] {
                    let effort = Effort { level, ..Effort::default() };
                    let stored = Compressor::new(effort).compress(plain).len() as u64;
                    assert!(can_be_stream(stored, size as u64), "{stored} {size}");
                }
                assert!(can_be_stream(stock_zlib(plain).len() as u64, size as u64));
            }
            if size > 100 {
                assert!(!can_be_stream(2 * stock_zlib(&noise[..size]).len() as u64, size as u64), "{size}");
            }
        }
        assert!(!can_be_stream(0, 0) && !can_be_stream(8, 100_000));
    }
}
