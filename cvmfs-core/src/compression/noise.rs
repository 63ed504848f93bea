//! Bytes that are not worth the search for repetitions, because they were compressed or encrypted before.

use super::SAMPLE_SIZE;

/// Bytes of a spot by which it is judged whether bytes look like noise, and at most between one and the next.
const SPOT_SIZE: usize = 256;
pub(super) const SPOT_DISTANCE: usize = 16 * 1024;
/// Pieces below this are deflated faster than they are judged.
pub(super) const NOISE_MIN: usize = 4 * SPOT_SIZE;
/// Sum of the squares of how often each byte value is in a spot: some 511 ± 23 for noise, twice as much for 64 values
/// with equal chances, and thousands for text and programs.
const FLAT: u32 = 640;

/// Whether all values of bytes are about equally frequent, wherever one looks. Tells most bytes that are no noise by the
/// first spot, so that it costs them next to nothing.
pub(super) fn looks_like_noise(bytes: &[u8]) -> bool {
    let is_flat = |part: &[u8]| {
        part.first_chunk::<SPOT_SIZE>().is_none_or(|spot| {
            let mut counts = [0_u32; 256];
            for &byte in spot {
                counts[usize::from(byte)] += 1;
            }
            counts.iter().map(|count| count * count).sum::<u32>() <= FLAT
        })
    };
    bytes.len() >= NOISE_MIN && bytes.chunks(SPOT_DISTANCE.min(bytes.len() / 4)).all(is_flat)
}

/// A part of what looks like noise, to look for repetitions in: from its middle, because headers are at the beginning.
pub(super) fn sample(bytes: &[u8]) -> &[u8] {
    let size = (bytes.len() / 4).min(SAMPLE_SIZE / 2);
    let start = (bytes.len() - size) / 2;
    &bytes[start..start + size]
}
