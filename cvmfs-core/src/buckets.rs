//! Records in 256 files by their first byte: any number of them in little memory.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;

use crate::error::{Error, IoContext as _, Result};

/// Bytes that one thread gathers for one file before it writes them.
const GATHERED: usize = 8 * 1024;
/// Bytes that are read from a file at a time.
const BLOCK: usize = 4 << 20;

/// The files of records of one size, in a directory that goes away with the value.
#[derive(Debug)]
pub(crate) struct Buckets<const SIZE: usize> {
    directory: TempDir,
    files: Vec<Mutex<Option<File>>>,
    /// What writers that have ended left unwritten, for the next ones.
    idle: Mutex<Vec<Vec<Vec<u8>>>>,
    /// Records that writers took, and records that were written.
    taken: AtomicU64,
    written: AtomicU64,
}

impl<const SIZE: usize> Buckets<SIZE> {
    pub(crate) fn create(scratch: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("buckets-").tempdir_in(scratch).at(scratch)?;
        Ok(Self {
            directory,
            files: (0..=u8::MAX).map(|_| Mutex::new(None)).collect(),
            idle: Mutex::default(),
            taken: AtomicU64::default(),
            written: AtomicU64::default(),
        })
    }

    /// Gathers records of one thread.
    pub(crate) fn writer(&self) -> Writer<'_, SIZE> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Writer { buckets: self, gathered: idle.unwrap_or_else(|| vec![Vec::new(); 256]), taken: 0 }
    }

    /// Writes what ended writers left.
    fn settle(&self) -> Result<()> {
        // Whoever reads meanwhile waits: what one thread takes from here and has not written yet, no other would see.
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        for gathered in &mut *idle {
            for (first, records) in (0..=u8::MAX).zip(gathered).filter(|(_, records)| !records.is_empty()) {
                self.append(first, records)?;
                records.clear();
            }
        }
        Ok(())
    }

    fn path(&self, first: u8) -> PathBuf {
        self.directory.path().join(format!("{first:02x}"))
    }

    fn append(&self, first: u8, records: &[u8]) -> Result<()> {
        let path = self.path(first);
        let mut file = self.files[usize::from(first)].lock().unwrap_or_else(PoisonError::into_inner);
        let file = match &mut *file {
            Some(file) => file,
            none => none.insert(OpenOptions::new().append(true).create(true).open(&path).at(&path)?),
        };
        file.write_all(records).at(&path)?;
        self.written.fetch_add((records.len() / SIZE) as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Makes sure that all records of ended writers are written.
    ///
    /// # Errors
    /// `Malformed` if some are lost, which must not be found out by what was not entered.
    pub(crate) fn complete(&self) -> Result<()> {
        self.settle()?;
        let (taken, written) = (self.taken.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed));
        if taken == written {
            return Ok(());
        }
        let what = self.directory.path().display().to_string();
        Err(Error::malformed(what, format!("{written} of {taken} records were written")))
    }

    /// Calls `visit` with the records that begin with a byte, some at a time: those of all writers that have ended.
    pub(crate) fn read(&self, first: u8, visit: &mut dyn FnMut(&[[u8; SIZE]]) -> Result<()>) -> Result<()> {
        self.settle()?;
        if self.files[usize::from(first)].lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Ok(());
        }
        let path = self.path(first);
        let mut file = File::open(&path).at(&path)?;
        let length = usize::try_from(file.metadata().at(&path)?.len()).map_or(BLOCK, |length| length.min(BLOCK));
        let mut block = vec![0; length / SIZE * SIZE];
        loop {
            let mut filled = 0;
            while filled < block.len() {
                match file.read(&mut block[filled..]).at(&path)? {
                    0 => break,
                    size => filled += size,
                }
            }
            if filled == 0 {
                return Ok(());
            }
            visit(block[..filled].as_chunks().0)?;
        }
    }

    /// The records that begin with a byte, sorted; of those that are the same in their first `key` bytes, the smallest.
    pub(crate) fn sorted(&self, first: u8, key: usize) -> Result<Vec<[u8; SIZE]>> {
        let mut records: Vec<[u8; SIZE]> = Vec::new();
        let mut unsorted = 0;
        let tidy = |records: &mut Vec<[u8; SIZE]>| {
            records.sort_unstable();
            records.dedup_by(|one, other| one[..key] == other[..key]);
        };
        self.read(first, &mut |block| {
            records.extend_from_slice(block);
            unsorted += block.len();
            // An object is there as often as catalogs have it: not much more than what remains is in memory.
            if unsorted > records.len() / 2 {
                tidy(&mut records);
                unsorted = 0;
            }
            Ok(())
        })?;
        tidy(&mut records);
        Ok(records)
    }
}

/// Gathers records and writes them to their files.
pub(crate) struct Writer<'a, const SIZE: usize> {
    buckets: &'a Buckets<SIZE>,
    gathered: Vec<Vec<u8>>,
    taken: u64,
}

impl<const SIZE: usize> Writer<'_, SIZE> {
    pub(crate) fn add(&mut self, record: &[u8; SIZE]) -> Result<()> {
        self.taken += 1;
        let first = record[0];
        let gathered = &mut self.gathered[usize::from(first)];
        gathered.extend_from_slice(record);
        if gathered.len() >= GATHERED {
            self.buckets.append(first, gathered)?;
            gathered.clear();
        }
        Ok(())
    }
}

impl<const SIZE: usize> Drop for Writer<'_, SIZE> {
    fn drop(&mut self) {
        let gathered = std::mem::take(&mut self.gathered);
        self.buckets.taken.fetch_add(self.taken, Ordering::Relaxed);
        self.buckets.idle.lock().unwrap_or_else(PoisonError::into_inner).push(gathered);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::hash::Algorithm;

    #[test]
    fn records_come_back_sorted_and_once() {
        let scratch = tempfile::tempdir().unwrap();
        let buckets = Buckets::<20>::create(scratch.path()).unwrap();
        let record = |n: u32| *Algorithm::Sha1.hash(&(n % 3000).to_le_bytes()).digest();
        let mut writer = buckets.writer();
        (0..5000).try_for_each(|n| writer.add(&record(n))).unwrap();
        drop(writer);
        let expected: Vec<_> = (0..3000).map(record).collect::<BTreeSet<_>>().into_iter().collect();
        let found: Vec<_> = (0..=u8::MAX).flat_map(|first| buckets.sorted(first, 20).unwrap()).collect();
        assert_eq!(found, expected);
    }

    /// Every reader sees what all ended writers wrote, also if all of them begin at the same time.
    #[test]
    fn many_readers_at_once_see_everything() {
        let scratch = tempfile::tempdir().unwrap();
        for _ in 0..20 {
            let buckets = Buckets::<3>::create(scratch.path()).unwrap();
            let mut writers: Vec<_> = (0..4).map(|_| buckets.writer()).collect();
            for (number, writer) in (0..4).zip(&mut writers) {
                (0..=255).try_for_each(|first| writer.add(&[first, number, 0])).unwrap();
            }
            assert_eq!(buckets.sorted(7, 3).unwrap().len(), 0);
            drop(writers);
            std::thread::scope(|scope| {
                for start in [0_u8, 64, 128, 192] {
                    let buckets = &buckets;
                    scope.spawn(move || {
                        for first in start..=start + 63 {
                            assert_eq!(buckets.sorted(first, 3).unwrap().len(), 4, "{first}");
                        }
                    });
                }
            });
            buckets.complete().unwrap();
        }
    }

    #[test]
    fn the_smallest_of_the_same_key_stands_for_all() {
        let scratch = tempfile::tempdir().unwrap();
        let buckets = Buckets::<2>::create(scratch.path()).unwrap();
        let mut writer = buckets.writer();
        [[7, 3], [7, 1], [7, 2], [8, 5]].iter().try_for_each(|record| writer.add(record)).unwrap();
        drop(writer);
        assert_eq!((buckets.sorted(7, 1).unwrap(), buckets.sorted(8, 1).unwrap()), (vec![[7, 1]], vec![[8, 5]]));
        assert_eq!(buckets.sorted(9, 1).unwrap(), Vec::<[u8; 2]>::new());
    }
}
