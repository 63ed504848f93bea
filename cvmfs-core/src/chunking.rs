//! Where large files are cut: content-defined boundaries, from bytes alone.
//!
//! The boundaries are those of the reference, so equal files get equal chunks whoever publishes them.
//!
//! Source: `cvmfs/ingestion/chunk_detector.cc`.

use crate::error::{Error, Result};

/// Bytes that influence a boundary: older ones are shifted out of the 32-bit sum.
const WINDOW: u64 = 32;

/// The middle of the sums that mark a boundary.
const MAGIC: i32 = i32::MAX;

/// Chunk sizes in plain bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSizes {
    min: u64,
    average: u64,
    max: u64,
}

impl Default for ChunkSizes {
    /// 4, 8 and 16 MiB.
    fn default() -> Self {
        Self { min: 4 << 20, average: 8 << 20, max: 16 << 20 }
    }
}

impl ChunkSizes {
    /// Checks sizes: `32 <= min < average < max < 4 GiB`.
    ///
    /// # Errors
    /// `InvalidInput` otherwise.
    pub fn new(min: u64, average: u64, max: u64) -> Result<Self> {
        if WINDOW <= min && min < average && average < max && u32::try_from(max).is_ok() {
            Ok(Self { min, average, max })
        } else {
            Err(Error::invalid(
                format!("chunk sizes {min}, {average}, {max}"),
                "must be ascending, at least 32 bytes and less than 4 GiB",
            ))
        }
    }

    /// Files up to this size are never cut.
    pub fn min(&self) -> u64 {
        self.min
    }

    /// No chunk is longer than this.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Starts looking for the boundaries of a file.
    pub fn cutter(self) -> Cutter {
        Cutter { sizes: self, threshold: threshold(self.average), position: 0, sum: 0 }
    }
}

/// Finds boundaries in a file that is fed in pieces of any size.
#[derive(Debug, Clone)]
pub struct Cutter {
    sizes: ChunkSizes,
    threshold: i32,
    /// Bytes of the current chunk that were fed.
    position: u64,
    sum: u32,
}

impl Cutter {
    /// Takes the next bytes up to and excluding the next boundary.
    ///
    /// Returns how many bytes still belong to the current chunk if a boundary follows them (the rest of `bytes` must
    /// be fed again, it begins the next chunk), and `None` if all of `bytes` do and no boundary was found.
    pub fn next_cut(&mut self, bytes: &[u8]) -> Option<usize> {
        // Bytes before the window of the first possible boundary cannot matter.
        let blind = to_usize((self.sizes.min - WINDOW).saturating_sub(self.position), bytes.len());
        // Those in the window only warm the sum up.
        let warm = blind + to_usize(self.sizes.min.saturating_sub(self.position + blind as u64), bytes.len() - blind);
        let mut sum = self.sum;
        for &byte in &bytes[blind..warm] {
            sum = (sum << 1) ^ u32::from(byte);
        }
        // At the maximum a boundary comes whatever the content.
        let room = to_usize(self.sizes.max - self.position - warm as u64, bytes.len() - warm);
        let tested = &bytes[warm..warm + room];
        for (index, &byte) in tested.iter().enumerate() {
            sum = (sum << 1) ^ u32::from(byte);
            if is_cut(sum, self.threshold) {
                return Some(self.cut(warm + index));
            }
        }
        self.position += (warm + room) as u64;
        self.sum = sum;
        if self.position == self.sizes.max && warm + room < bytes.len() {
            return Some(self.cut(warm + room));
        }
        None
    }

    fn cut(&mut self, at: usize) -> usize {
        self.position = 0;
        self.sum = 0;
        at
    }
}

/// Half the width of the band of sums that mark a boundary.
fn threshold(average: u64) -> i32 {
    i32::try_from(u64::from(u32::MAX) / average).unwrap_or(i32::MAX)
}

/// Upstream: 32-bit wrap-around arithmetic, including that the absolute value of the smallest number is negative,
/// which makes the sum `0xFFFFFFFF` a boundary.
#[expect(clippy::cast_possible_wrap, reason = "the reference compares the bits as a signed number")]
fn is_cut(sum: u32, threshold: i32) -> bool {
    (sum as i32).wrapping_sub(MAGIC).wrapping_abs() < threshold
}

/// The smaller of a count of bytes and a buffer's length.
fn to_usize(count: u64, length: usize) -> usize {
    usize::try_from(count).map_or(length, |count| count.min(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test data of the format description: top bytes of a linear congruential generator.
    fn sample() -> Vec<u8> {
        let mut state = 1_u32;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .take(65_536)
        .collect()
    }

    fn cuts(sizes: ChunkSizes, data: &[u8], piece: usize) -> Vec<usize> {
        let mut cutter = sizes.cutter();
        let (mut cuts, mut done) = (Vec::new(), 0);
        while done < data.len() {
            let end = (done + piece).min(data.len());
            match cutter.next_cut(&data[done..end]) {
                Some(length) => {
                    done += length;
                    cuts.push(done);
                }
                None => done = end,
            }
        }
        cuts
    }

    #[test]
    fn boundaries_match_the_published_vectors_whatever_the_piece_size() {
        let data = sample();
        assert_eq!(data[..8], [0x3c, 0x5e, 0x81, 0xb4, 0x0c, 0x5e, 0xc6, 0x8e]);
        let small = ChunkSizes::new(1024, 2048, 4096).unwrap();
        let large = ChunkSizes::new(4096, 8192, 16384).unwrap();
        for piece in [1, 7, 31, 32, 33, 1000, 1024, 4096, 5000, 65_536] {
            assert_eq!(
                cuts(small, &data, piece),
                [
                    1860, 5956, 7356, 9493, 10651, 12772, 14161, 15354, 16885, 17952, 19473, 20563, 21766, 22964,
                    24210, 26136, 27408, 30121, 31211, 34552, 37038, 39105, 43201, 47247, 48441, 49614, 50777, 54059,
                    55643, 58964, 60915, 62454, 63689, 65006
                ],
                "pieces of {piece}"
            );
            assert_eq!(cuts(large, &data, piece), [6177, 17952, 23571, 30121, 35285, 39763, 47876, 59614]);
        }
    }

    #[test]
    fn the_condition_wraps_around() {
        let threshold = threshold(8 << 20);
        assert_eq!(threshold, 511);
        for (sum, expected) in [
            (0x7FFF_FE01, true),
            (0x8000_01FD, true),
            (0xFFFF_FFFF, true),
            (0x7FFF_FE00, false),
            (0x8000_01FE, false),
            (0xFFFF_FFFE, false),
            (0, false),
        ] {
            assert_eq!(is_cut(sum, threshold), expected, "{sum:#x}");
        }
    }

    #[test]
    fn the_maximum_cuts_only_if_bytes_follow() {
        let sizes = ChunkSizes::new(32, 64, 128).unwrap();
        // Zeros never meet the condition.
        assert_eq!(cuts(sizes, &[0; 128], 128), Vec::<usize>::new());
        assert_eq!(cuts(sizes, &[0; 129], 129), [128]);
        assert_eq!(cuts(sizes, &[0; 129], 128), [128]);
        assert_eq!(cuts(sizes, &[0; 300], 50), [128, 256]);
    }

    #[test]
    fn nonsense_sizes_are_refused() {
        for (min, average, max) in [(31, 64, 128), (64, 64, 128), (32, 128, 128), (32, 64, 1 << 33)] {
            assert!(ChunkSizes::new(min, average, max).is_err());
        }
    }
}
