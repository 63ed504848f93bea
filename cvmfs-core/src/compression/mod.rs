//! The two forms of stored bytes: zlib streams and plain.
//!
//! Whole objects deflate with libdeflate (feature `libdeflate`, on by default) or zlib-rs; inflating and streams
//! use zlib-rs, streams on all threads. Any zlib stream is valid to readers. Two objects are different: see [`stock_zlib`].
//!
//! Source: `cvmfs/compression/`.

mod deflating;
mod inflating;
mod noise;

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::str::FromStr;

use zlib_rs::{Deflate, DeflateFlush, Status};

use crate::error::{Error, Result};
pub use deflating::CompressingWriter;
pub use inflating::InflatingReader;

/// log2 of the window of a zlib stream; the largest, as the reference writes.
const WINDOW_BITS: u8 = 15;

/// Bytes that one step of a stream reads or writes.
const BLOCK_SIZE: usize = 64 * 1024;

/// How the bytes of a file are stored; recorded in each file's flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// A zlib stream.
    #[default]
    Zlib,
    /// As they are.
    None,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zlib => "zlib",
            Self::None => "none",
        })
    }
}

impl FromStr for Compression {
    type Err = Error;

    /// Accepts the names of configuration files; `default` is zlib.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "default" | "zlib" => Ok(Self::Zlib),
            "none" => Ok(Self::None),
            _ => Err(Error::invalid("compression algorithm", format!("{text:?} is none of default, zlib, none"))),
        }
    }
}

/// How new files are to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// As zlib streams.
    #[default]
    Zlib,
    /// As they are.
    None,
    /// As zlib streams, but as they are if that is not longer.
    ///
    /// All objects of a file are stored the same way, so a file that is not held in memory whole is judged by samples
    /// of its beginning.
    Auto,
}

impl From<Compression> for Policy {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::Zlib => Self::Zlib,
            Compression::None => Self::None,
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zlib => "zlib",
            Self::None => "none",
            Self::Auto => "auto",
        })
    }
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "zlib" => Ok(Self::Zlib),
            "none" => Ok(Self::None),
            "auto" => Ok(Self::Auto),
            _ => Err(Error::invalid("compression", format!("{text:?} is none of zlib, none, auto"))),
        }
    }
}

impl Policy {
    /// Decides for a file that begins with these bytes; the more of them, the better.
    pub fn judge(self, engine: Engine, start: &[u8]) -> Compression {
        match self {
            Self::Zlib => Compression::Zlib,
            Self::Auto if shrinks(engine, start) => Compression::Zlib,
            Self::Auto | Self::None => Compression::None,
        }
    }
}

/// Number and size of the samples by which bytes are judged.
const SAMPLES: usize = 4;
const SAMPLE_SIZE: usize = 64 * 1024;

/// Deflating what looks like noise is worth it if a sample shrinks by one part of so many.
const WORTH_DEFLATING: usize = 64;

/// Whether samples that are spread over the bytes become shorter. The fastest level sees that as well as any other.
fn shrinks(engine: Engine, bytes: &[u8]) -> bool {
    let mut compressor = Compressor::new(Effort { engine, level: 1 });
    let samples = bytes.chunks((bytes.len() / SAMPLES).max(SAMPLE_SIZE));
    let samples = samples.map(|part| &part[..part.len().min(SAMPLE_SIZE)]);
    let (plain, stored) = samples
        .fold((0, 0), |(plain, stored), sample| (plain + sample.len(), stored + compressor.compress(sample).len()));
    stored < plain
}

/// The program that writes zlib streams; all of them are read by every client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// libdeflate: faster and smaller, for bytes that are whole in memory.
    #[cfg(feature = "libdeflate")]
    #[cfg_attr(feature = "libdeflate", default)]
    Libdeflate,
    /// zlib-rs.
    #[cfg_attr(not(feature = "libdeflate"), default)]
    ZlibRs,
}

impl Engine {
    /// All engines of this build.
    pub const ALL: &[Self] = &[
        #[cfg(feature = "libdeflate")]
        Self::Libdeflate,
        Self::ZlibRs,
    ];

    /// The name in arguments.
    pub const fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "libdeflate")]
            Self::Libdeflate => "libdeflate",
            Self::ZlibRs => "zlib-rs",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Engine {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|engine| engine.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|engine| engine.name()).collect();
            Error::invalid(
                "compression engine",
                format!("{text:?} is not in this build, which has {}", names.join(", ")),
            )
        })
    }
}

/// Engine and effort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Who deflates.
    pub engine: Engine,
    /// 1 (fast) to 9 (small).
    pub level: u8,
}

impl Default for Effort {
    /// Level 6 of the faster engine.
    fn default() -> Self {
        Self { engine: Engine::default(), level: 6 }
    }
}

/// Deflates whole buffers, keeping its working memory and its output between calls.
///
/// Noise (what was compressed or encrypted before) is not worth the search for repetitions, which takes as long there as
/// anywhere and finds nothing: it becomes a zlib stream of stored blocks.
pub struct Compressor {
    effort: Effort,
    state: State,
    /// Two others, as soon as they are needed: the fastest, and one that only stores.
    for_noise: Option<(State, State)>,
    stored: Vec<u8>,
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compressor")
    }
}

impl Compressor {
    /// Prepares a compressor; levels outside 1 to 9 are taken as the nearest.
    pub fn new(effort: Effort) -> Self {
        let effort = Effort { level: effort.level.clamp(1, 9), ..effort };
        Self { effort, state: State::new(effort), for_noise: None, stored: Vec::new() }
    }

    /// Returns `plain` as one zlib stream.
    pub fn compress(&mut self, plain: &[u8]) -> &[u8] {
        let level = |level| State::new(Effort { level, ..self.effort });
        let state = if noise::looks_like_noise(plain) {
            let (fastest, storing) = self.for_noise.get_or_insert_with(|| (level(1), level(0)));
            let sample = noise::sample(plain);
            let size = fastest.compress(sample, &mut self.stored);
            if size >= sample.len() - sample.len() / WORTH_DEFLATING { storing } else { &mut self.state }
        } else {
            &mut self.state
        };
        let size = state.compress(plain, &mut self.stored);
        &self.stored[..size]
    }
}

/// The working memory of an engine.
enum State {
    #[cfg(feature = "libdeflate")]
    Libdeflate(libdeflater::Compressor),
    ZlibRs(Box<Deflate>),
}

impl State {
    /// Level 0 only stores.
    fn new(Effort { engine, level }: Effort) -> Self {
        let level = i32::from(level);
        match engine {
            #[cfg(feature = "libdeflate")]
            Engine::Libdeflate => Self::Libdeflate(libdeflater::Compressor::new(
                libdeflater::CompressionLvl::new(level).unwrap_or_default(),
            )),
            Engine::ZlibRs => Self::ZlibRs(Box::new(Deflate::new(level, true, WINDOW_BITS))),
        }
    }

    /// Writes `plain` to the beginning of a buffer, as one zlib stream, and returns its length.
    fn compress(&mut self, plain: &[u8], stored: &mut Vec<u8>) -> usize {
        match self {
            #[cfg(feature = "libdeflate")]
            Self::Libdeflate(compressor) => {
                let stored = room(stored, compressor.zlib_compress_bound(plain.len()));
                compressor.zlib_compress(plain, stored).expect("the output has the size that the compressor asked for")
            }
            Self::ZlibRs(deflate) => {
                deflate.reset();
                let stored = room(stored, zlib_rs::compress_bound(plain.len()));
                let status = deflate.compress(plain, stored, DeflateFlush::Finish);
                assert!(matches!(status, Ok(Status::StreamEnd)), "the output has the size bound of the format");
                difference(deflate.total_out(), 0)
            }
        }
    }
}

/// The first `size` bytes of a buffer that only ever grows.
fn room(buffer: &mut Vec<u8>, size: usize) -> &mut [u8] {
    if buffer.len() < size {
        // Not resized: new zeros come from the system when they are touched, and most never are.
        *buffer = vec![0; size];
    }
    &mut buffer[..size]
}

/// Compresses exactly as stock zlib at level 6 does, byte for byte.
///
/// Upstream: a Stratum 1 of the reference inflates certificate and meta info and compresses them again with stock
/// zlib, but stores the result under the old name. With any other encoder's bytes under that name every one of its
/// clients fails. Everything else may come from any encoder.
pub fn stock_zlib(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(plain).and_then(|()| encoder.finish()).expect("writing to memory cannot fail")
}

/// Inflates a small stream whole.
///
/// # Errors
/// `Malformed` if it is no zlib stream or larger than `limit` when inflated.
pub fn inflate(what: &str, stored: &[u8], limit: u64) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    let mut reader = InflatingReader::new(stored).take(limit + 1);
    reader.read_to_end(&mut plain).map_err(|error| Error::malformed(what, error.to_string()))?;
    if plain.len() as u64 > limit {
        return Err(Error::malformed(what, format!("larger than {limit} bytes when inflated")));
    }
    Ok(plain)
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[expect(clippy::cast_possible_truncation, reason = "one step moves at most the length of a buffer")]
fn difference(after: u64, before: u64) -> usize {
    (after - before) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Algorithm;

    /// Bytes that compress somewhat: a linear congruential generator masked to few values.
    fn sample(size: usize) -> Vec<u8> {
        let mut state = 1_u32;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()[3] & 0x1f
        })
        .take(size)
        .collect()
    }

    #[test]
    fn every_engine_and_level_reads_back() {
        for &engine in Engine::ALL {
            for level in [1, 6, 9] {
                let mut compressor = Compressor::new(Effort { engine, level });
                for size in [0, 1, 1000, BLOCK_SIZE, 3 * BLOCK_SIZE + 17] {
                    let plain = sample(size);
                    let stored = compressor.compress(&plain);
                    assert_eq!(inflate("sample", stored, u64::MAX - 1).unwrap(), plain, "{engine:?} {level} {size}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_shrink_is_judged_so() {
        let noise: Vec<u8> = (0..8).flat_map(|seed| Algorithm::Sha1.hash(&[seed]).digest().to_vec()).collect();
        for &engine in Engine::ALL {
            for (expected, bytes) in [
                (Compression::Zlib, &sample(1_000_000)[..]),
                (Compression::Zlib, &[0; 100]),
                (Compression::None, &noise),
                (Compression::None, b""),
            ] {
                assert_eq!(Policy::Auto.judge(engine, bytes), expected, "{engine}: {} bytes", bytes.len());
                assert_eq!(Policy::Zlib.judge(engine, bytes), Compression::Zlib);
                assert_eq!(Policy::None.judge(engine, bytes), Compression::None);
            }
        }
    }

    /// Bytes that no compressor shrinks (xorshift, top bytes).
    fn noise(size: usize) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[7]
        })
        .take(size)
        .collect()
    }

    #[test]
    fn noise_is_stored_as_it_is() {
        for &engine in Engine::ALL {
            let mut compressor = Compressor::new(Effort { engine, level: 6 });
            for size in [noise::NOISE_MIN, 5000, noise::SPOT_DISTANCE + 1, 1_000_000] {
                let mut plain = noise(size);
                // Who searches finds this, and makes the smallest one smaller.
                plain.copy_within(..350, 650);
                let stored = compressor.compress(&plain);
                // The header of a zlib stream has two bytes, that of a stored block five.
                assert_eq!(stored[7..1000], plain[..993], "{engine}, {size}");
                assert!((size..size + size / 1000 + 20).contains(&stored.len()), "{engine}, {size}: {}", stored.len());
                assert_eq!(inflate("noise", stored, 1 << 20).unwrap(), plain, "{engine}, {size}");
            }
        }
    }

    #[test]
    fn what_looks_like_noise_and_is_none_is_deflated() {
        let repeated = noise(1000).repeat(200);
        // A byte of sixteen says nothing: one part of 64 at least.
        let mut sparse = noise(200_000);
        sparse.iter_mut().step_by(16).for_each(|byte| *byte = 7);
        let (text, noise) = (sample(100_000), noise(100_000));
        let cases = [
            (repeated, 10_000),
            (sparse, 199_000),
            ([&text[..], &noise].concat(), 180_000),
            ([&noise[..], &text].concat(), 180_000),
            ([&noise[..], &text, &noise].concat(), 280_000),
        ];
        for &engine in Engine::ALL {
            let mut compressor = Compressor::new(Effort { engine, level: 6 });
            for (number, (plain, most)) in cases.iter().enumerate() {
                let stored = compressor.compress(plain);
                assert!(stored.len() < *most, "{engine}, case {number}: {}", stored.len());
                assert_eq!(inflate("noise", stored, 1 << 20).unwrap(), *plain, "{engine}, case {number}");
            }
        }
    }

    #[test]
    fn names_of_policies_and_engines_read_back() {
        for policy in [Policy::Zlib, Policy::None, Policy::Auto] {
            assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
        }
        for &engine in Engine::ALL {
            assert_eq!(engine.to_string().parse::<Engine>().unwrap(), engine);
        }
        assert!("gzip".parse::<Policy>().is_err());
        assert!("zlib".parse::<Engine>().is_err());
    }

    #[test]
    fn a_stream_reads_back_and_is_the_same_on_any_number_of_threads() {
        let block = 256 * 1024;
        for size in [0, 1, 300_000, block, 2 * block, 6 * block, 6 * block + 1, 2_000_000] {
            let plain = sample(size);
            let streams = [1, 2, 3, 7].map(|threads| {
                let mut writer = CompressingWriter::new(Vec::new(), 6, threads).unwrap();
                for piece in plain.chunks(10_000) {
                    writer.write_all(piece).unwrap();
                }
                writer.finish().unwrap()
            });
            assert_eq!(inflate("sample", &streams[0], u64::MAX - 1).unwrap(), plain, "{size}");
            assert!(streams.iter().all(|stream| *stream == streams[0]), "{size}");
        }
    }

    #[test]
    fn blocks_of_a_stream_refer_to_what_is_before_them() {
        // Repetitions at a distance that no block of its own would see before it is at its end.
        let plain = noise(30_000).repeat(70);
        let mut writer = CompressingWriter::new(Vec::new(), 6, 2).unwrap();
        writer.write_all(&plain).unwrap();
        let stored = writer.finish().unwrap();
        assert!(stored.len() < 60_000, "{}", stored.len());
        assert_eq!(inflate("noise", &stored, 1 << 22).unwrap(), plain);
    }

    /// The expected hash is Python's: `sha1(zlib.compress(bytes(i * i % 251 for i in range(100000)), 6))`.
    #[test]
    fn stock_zlib_matches_the_reference_implementation() {
        let hello = stock_zlib(b"hello world\n");
        assert_eq!(Algorithm::Sha1.hash(&hello).to_string(), "ff049c626904064d641feca0e9936e5b211807c6");
        let plain: Vec<u8> = (0..100_000_u64).map(|i| u8::try_from(i * i % 251).unwrap()).collect();
        assert_eq!(Algorithm::Sha1.hash(&stock_zlib(&plain)).to_string(), "89a08b59e9331c1f42435b3276350f85ea13ae98");
        assert_eq!(
            Algorithm::Sha1.hash(&stock_zlib(&sample(300_000))).to_string(),
            "862c3dddc364e867aa1e2bba596e2fab53920503"
        );
    }

    #[test]
    fn damage_is_noticed() {
        let plain = sample(2000);
        let stored = Compressor::new(Effort::default()).compress(&plain).to_vec();
        for size in 0..stored.len() {
            assert!(inflate("cut", &stored[..size], 1 << 20).is_err(), "cut to {size}");
        }
        let mut flipped = stored.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(inflate("checksum", &flipped, 1 << 20).is_err());
        let longer = [&stored[..], b"x"].concat();
        assert!(inflate("trailing", &longer, 1 << 20).is_err());
        assert!(inflate("limit", &stored, 1999).is_err());
        assert_eq!(inflate("limit", &stored, 2000).unwrap(), plain);
    }
}
