//! Sparse files: where their stored bytes belong, and the zeros in between.
//!
//! | encoding | map |
//! | --- | --- |
//! | old GNU, type `S` | in the header and in blocks that follow it |
//! | PAX 0.0 | repeated records `GNU.sparse.offset` and `GNU.sparse.numbytes` |
//! | PAX 0.1 | one record `GNU.sparse.map` |
//! | PAX 1.0 | decimal lines at the beginning of the stored bytes, padded to a block |
//!
//! Source: the GNU tar manual, "Storing Sparse Files"; GNU tar `src/sparse.c`.

use std::io::Read;

use super::header::{sparse_extension, unsigned};
use super::pax::{Attributes, parse_decimal};
use super::stream::{BLOCK_SIZE, Stream};
use super::{ArchiveError, Result};

/// Regions of one file; each costs 16 bytes of memory. A file with a hole in every other block of 4 KiB reaches this
/// at 8 GB.
pub(super) const MAX_REGIONS: usize = 1 << 20;

/// Bytes of a sparse file that are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// What comes next in a sparse file; lengths are not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    Hole(u64),
    Stored(u64),
    End,
}

/// A place in a sparse file, with the map to go on from there.
#[derive(Debug)]
pub(super) struct SparseFile {
    /// Invariant: ascending, without overlap or empty regions, within `size`.
    regions: Vec<Region>,
    size: u64,
    /// First region that does not end before `position`.
    current: usize,
    position: u64,
}

impl SparseFile {
    /// Makes a file of `size` bytes, of which the archive stores `stored`, from its map.
    ///
    /// # Errors
    /// The reason, if the map is not ascending or does not fit the sizes.
    pub(super) fn new(mut regions: Vec<Region>, size: u64, stored: u64) -> Result<Self, String> {
        // Writers mark the end of the file with an empty region, which may stand behind a region that ends there.
        regions.retain(|region| region.length > 0);
        let mut end = 0_u64;
        let mut total = 0;
        for region in &regions {
            if region.offset < end {
                return Err(format!("sparse map is not ascending at offset {}", region.offset));
            }
            end = region
                .offset
                .checked_add(region.length)
                .filter(|&end| end <= size)
                .ok_or_else(|| format!("sparse map exceeds the file's {size} bytes"))?;
            // Cannot overflow: regions do not overlap and end within `size`.
            total += region.length;
        }
        if total != stored {
            return Err(format!("sparse map describes {total} bytes, but {stored} are stored"));
        }
        Ok(Self { regions, size, current: 0, position: 0 })
    }

    /// Size with all holes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// What stands at the current position.
    pub(super) fn run(&self) -> Run {
        match self.regions.get(self.current) {
            Some(region) if self.position < region.offset => Run::Hole(region.offset - self.position),
            Some(region) => Run::Stored(region.offset + region.length - self.position),
            None if self.position < self.size => Run::Hole(self.size - self.position),
            None => Run::End,
        }
    }

    /// Goes on by at most the length of the current run.
    pub(super) fn advance(&mut self, count: u64) {
        self.position += count;
        if self.regions.get(self.current).is_some_and(|region| self.position >= region.offset + region.length) {
            self.current += 1;
        }
    }
}

/// Reads the map of an old GNU sparse file, whose header was just read. `stored` is what the header's size says.
pub(super) fn from_gnu_header<R: Read>(
    header: &tar::GnuHeader,
    stored: u64,
    at: u64,
    stream: &mut Stream<R>,
) -> Result<SparseFile> {
    let malformed = |reason| ArchiveError::malformed(at, reason);
    let mut regions = Vec::new();
    push_regions(&mut regions, &header.sparse).map_err(malformed)?;
    let mut is_extended = header.isextended[0] != 0;
    while is_extended {
        let extension = sparse_extension(&stream.expect_block("the map of a sparse file")?);
        push_regions(&mut regions, &extension.sparse).map_err(malformed)?;
        is_extended = extension.isextended[0] != 0;
    }
    let size = unsigned("real size", &header.realsize).map_err(malformed)?;
    SparseFile::new(regions, size, stored).map_err(malformed)
}

/// Adds the slots of one block; the first empty one ends them.
fn push_regions(regions: &mut Vec<Region>, slots: &[tar::GnuSparseHeader]) -> Result<(), String> {
    for slot in slots.iter().take_while(|slot| slot.numbytes[0] != 0) {
        push_region(
            regions,
            Region {
                offset: unsigned("sparse offset", &slot.offset)?,
                length: unsigned("sparse length", &slot.numbytes)?,
            },
        )?;
    }
    Ok(())
}

fn push_region(regions: &mut Vec<Region>, region: Region) -> Result<(), String> {
    if regions.len() == MAX_REGIONS {
        return Err(format!("sparse map with more than {MAX_REGIONS} regions"));
    }
    regions.push(region);
    Ok(())
}

/// Reads the map of a sparse file that PAX records describe; `None` if they do not describe one.
///
/// `stored` counts the entry's bytes in the archive; those that hold the map are read and taken off.
pub(super) fn from_records<R: Read>(
    records: &Attributes<'_>,
    stored: &mut u64,
    at: u64,
    stream: &mut Stream<R>,
) -> Result<Option<SparseFile>> {
    let malformed = |reason| ArchiveError::malformed(at, reason);
    let number = |key| records.local_number(key).map_err(malformed);
    let missing = |key: &str| malformed(format!("sparse file without {key}"));

    let version = (number(b"GNU.sparse.major")?, number(b"GNU.sparse.minor")?);
    let (regions, size) = match version {
        (Some(1), Some(0)) => {
            let size = number(b"GNU.sparse.realsize")?.ok_or_else(|| missing("GNU.sparse.realsize"))?;
            (read_leading_map(stored, at, stream)?, size)
        }
        (None, None) | (Some(0), Some(0 | 1)) => {
            let Some(size) = number(b"GNU.sparse.size")? else {
                return if version.0.is_some() { Err(missing("GNU.sparse.size")) } else { Ok(None) };
            };
            let regions = match records.local(b"GNU.sparse.map") {
                Some(map) => parse_map(map).map_err(malformed)?,
                None => records.sparse_regions().map_err(malformed)?.to_vec(),
            };
            if number(b"GNU.sparse.numblocks")?.is_some_and(|count| count != regions.len() as u64) {
                return Err(malformed("sparse map does not have as many regions as it says".to_owned()));
            }
            (regions, size)
        }
        _ => return Err(ArchiveError::unsupported(at, "this version of the sparse format")),
    };
    SparseFile::new(regions, size, *stored).map(Some).map_err(malformed)
}

/// Parses the map of format 0.1: offsets and lengths in turn, with commas between.
fn parse_map(map: &[u8]) -> Result<Vec<Region>, String> {
    let mut numbers = map.split(|&byte| byte == b',').map(parse_decimal);
    let mut regions = Vec::new();
    while let Some(offset) = numbers.next() {
        let (Some(offset), Some(Some(length))) = (offset, numbers.next()) else {
            return Err("sparse map is no list of pairs of numbers".to_owned());
        };
        push_region(&mut regions, Region { offset, length })?;
    }
    Ok(regions)
}

/// Reads the map of format 1.0: the number of regions, then offset and length of each, a line for each number.
fn read_leading_map<R: Read>(stored: &mut u64, at: u64, stream: &mut Stream<R>) -> Result<Vec<Region>> {
    let malformed = |reason: String| ArchiveError::malformed(at, reason);
    let mut lines = Lines { stored, at, stream, block: [0; BLOCK_SIZE], next: BLOCK_SIZE };
    let count = lines.number()?;
    if count > MAX_REGIONS as u64 {
        return Err(malformed(format!("sparse map with more than {MAX_REGIONS} regions")));
    }
    let mut regions = Vec::new();
    for _ in 0..count {
        regions.push(Region { offset: lines.number()?, length: lines.number()? });
    }
    Ok(regions)
}

/// Decimal lines in blocks; what is left of the last block is padding.
struct Lines<'a, R> {
    stored: &'a mut u64,
    at: u64,
    stream: &'a mut Stream<R>,
    block: [u8; BLOCK_SIZE],
    /// Index of the next byte in `block`.
    next: usize,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> Result<u64> {
        // No number up to `u64::MAX` has more digits.
        let mut digits = [0; 20];
        let mut length = 0;
        loop {
            match (self.byte()?, digits.get_mut(length)) {
                (b'\n', _) => break,
                (digit, Some(place)) => *place = digit,
                (_, None) => return Err(self.no_number()),
            }
            length += 1;
        }
        parse_decimal(&digits[..length]).ok_or_else(|| self.no_number())
    }

    fn no_number(&self) -> ArchiveError {
        ArchiveError::malformed(self.at, "sparse map holds something that is no number")
    }

    fn byte(&mut self) -> Result<u8> {
        if self.next == BLOCK_SIZE {
            *self.stored = self
                .stored
                .checked_sub(BLOCK_SIZE as u64)
                .ok_or_else(|| ArchiveError::malformed(self.at, "sparse map is longer than what is stored"))?;
            self.block = self.stream.expect_block("the map of a sparse file")?;
            self.next = 0;
        }
        self.next += 1;
        Ok(self.block[self.next - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regions(pairs: &[(u64, u64)]) -> Vec<Region> {
        pairs.iter().map(|&(offset, length)| Region { offset, length }).collect()
    }

    fn runs(mut file: SparseFile) -> Vec<Run> {
        let mut runs = Vec::new();
        loop {
            match file.run() {
                Run::End => return runs,
                run @ (Run::Hole(length) | Run::Stored(length)) => {
                    runs.push(run);
                    // In two steps, as a reader with a small buffer does.
                    file.advance(length / 2);
                    file.advance(length - length / 2);
                }
            }
        }
    }

    #[test]
    fn a_file_is_holes_and_stored_runs_in_turn() {
        use Run::{Hole, Stored};
        for (pairs, size, stored, expected) in [
            (&[][..], 0, 0, &[][..]),
            (&[], 10, 0, &[Hole(10)]),
            (&[(0, 10)], 10, 10, &[Stored(10)]),
            (&[(0, 4), (10, 0)], 10, 4, &[Stored(4), Hole(6)]),
            (&[(2, 3), (5, 1), (8, 2), (10, 0)], 10, 6, &[Hole(2), Stored(3), Stored(1), Hole(2), Stored(2)]),
            (&[(u64::MAX - 1, 1)], u64::MAX, 1, &[Hole(u64::MAX - 1), Stored(1)]),
        ] {
            assert_eq!(runs(SparseFile::new(regions(pairs), size, stored).unwrap()), expected);
        }
    }

    #[test]
    fn maps_that_do_not_fit_are_refused() {
        for (pairs, size, stored) in [
            (&[(0, 11)][..], 10, 11),
            (&[(5, 2), (4, 1)], 10, 3),
            (&[(0, 5), (4, 1)], 10, 6),
            (&[(0, 5)], 10, 4),
            (&[(0, 5)], 10, 6),
            (&[(u64::MAX, 2)], u64::MAX, 2),
            (&[], 10, 1),
        ] {
            assert!(SparseFile::new(regions(pairs), size, stored).is_err(), "{pairs:?}");
        }
    }

    #[test]
    fn map_of_format_0_1() {
        assert_eq!(parse_map(b"0,512,1024,0"), Ok(regions(&[(0, 512), (1024, 0)])));
        for map in [&b""[..], b"0", b"0,", b"0,1,2", b"0,1,", b"a,b", b"0,-1", b"0,99999999999999999999999"] {
            assert!(parse_map(map).is_err(), "{}", map.escape_ascii());
        }
    }

    fn leading_map(text: &str, mut stored: u64) -> Result<(Vec<Region>, u64)> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(bytes.len().next_multiple_of(BLOCK_SIZE), 0);
        let mut stream = Stream::new(&bytes[..], u64::MAX);
        Ok((read_leading_map(&mut stored, 0, &mut stream)?, stored))
    }

    #[test]
    fn map_of_format_1_0() {
        assert_eq!(leading_map("2\n0\n512\n1024\n0\n", 1024).unwrap(), (regions(&[(0, 512), (1024, 0)]), 512));
        let many: Vec<_> = (0..200).map(|i| format!("{}\n1\n", i * 10)).collect();
        let (regions, left) = leading_map(&format!("200\n{}", many.concat()), 2000).unwrap();
        assert_eq!((regions.len(), regions[199].offset, left), (200, 1990, 2000 - 3 * 512));
        for (text, stored) in [
            ("2\n0\n512\n1024\n0\n", 511),
            ("1\n0\n", 512),
            ("1\n\n1\n", 512),
            ("-1\n", 512),
            ("x\n", 512),
            ("18446744073709551616\n", 512),
            ("1048577\n", 512),
            ("000000000000000000001\n0\n1\n", 512),
        ] {
            assert!(leading_map(text, stored).is_err(), "{text:?}");
        }
        assert!(matches!(leading_map("2\n1\n1\n", 5000), Err(ArchiveError::Malformed { .. })));
    }
}
