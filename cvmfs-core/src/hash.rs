//! Content hashes and object ids: how everything in a repository is named.
//!
//! An object is named by the hash of its *stored* bytes plus a letter for its kind. Three algorithms are in
//! use, all with 20 digest bytes; the text form tells them apart by a tag, so its length decides the algorithm:
//! 40 characters SHA-1, 47 RIPEMD-160 (`-rmd160`), 49 SHAKE-128 (`-shake128`).
//!
//! Source: `cvmfs/crypto/hash.h`.

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use sha1::Digest as _;
use shake::digest::{ExtendableOutput as _, Update as _, XofReader as _};

use crate::error::{Error, Result};

/// Bytes of a content digest, whatever the algorithm.
pub const DIGEST_SIZE: usize = 20;

/// A content hash algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Algorithm {
    /// SHA-1, the reference's default.
    #[default]
    Sha1,
    /// RIPEMD-160.
    Rmd160,
    /// SHAKE-128 squeezed to 160 bits.
    Shake128,
}

impl Algorithm {
    /// All algorithms, in the order of their number in catalog flags.
    pub const ALL: [Self; 3] = [Self::Sha1, Self::Rmd160, Self::Shake128];

    /// The name in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Rmd160 => "rmd160",
            Self::Shake128 => "shake128",
        }
    }

    /// What follows the hex digits in the text form.
    fn tag(self) -> &'static str {
        match self {
            Self::Sha1 => "",
            Self::Rmd160 => "-rmd160",
            Self::Shake128 => "-shake128",
        }
    }

    /// Hashes `bytes` in one call.
    pub fn hash(self, bytes: &[u8]) -> ContentHash {
        let mut hasher = Hasher::new(self);
        hasher.update(bytes);
        hasher.finish()
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == text)
            .ok_or_else(|| Error::invalid("hash algorithm", format!("{text:?} is none of sha1, rmd160, shake128")))
    }
}

/// A hasher that takes its bytes in pieces.
#[derive(Debug, Clone)]
pub struct Hasher(State);

#[derive(Debug, Clone)]
enum State {
    Sha1(sha1::Sha1),
    Rmd160(ripemd::Ripemd160),
    Shake128(shake::Shake128),
}

impl Hasher {
    /// Starts a hash.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha1 => State::Sha1(sha1::Sha1::default()),
            Algorithm::Rmd160 => State::Rmd160(ripemd::Ripemd160::default()),
            Algorithm::Shake128 => State::Shake128(shake::Shake128::default()),
        })
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha1(state) => sha1::Digest::update(state, bytes),
            State::Rmd160(state) => ripemd::Digest::update(state, bytes),
            State::Shake128(state) => state.update(bytes),
        }
    }

    /// Ends the hash.
    pub fn finish(self) -> ContentHash {
        match self.0 {
            State::Sha1(state) => ContentHash::new(Algorithm::Sha1, state.finalize().into()),
            State::Rmd160(state) => ContentHash::new(Algorithm::Rmd160, state.finalize().into()),
            State::Shake128(state) => {
                let mut digest = [0; DIGEST_SIZE];
                state.finalize_xof().read(&mut digest);
                ContentHash::new(Algorithm::Shake128, digest)
            }
        }
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The hash of some bytes, with the algorithm that made it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash {
    algorithm: Algorithm,
    digest: [u8; DIGEST_SIZE],
}

impl ContentHash {
    /// Puts a digest and its algorithm together.
    pub const fn new(algorithm: Algorithm, digest: [u8; DIGEST_SIZE]) -> Self {
        Self { algorithm, digest }
    }

    /// The all-zero hash, which stands for "none" in `previous_revision` of a first revision.
    pub const fn null(algorithm: Algorithm) -> Self {
        Self::new(algorithm, [0; DIGEST_SIZE])
    }

    /// Takes the raw digest of a catalog row.
    ///
    /// # Errors
    /// `Malformed` unless there are exactly 20 bytes.
    pub fn from_digest(algorithm: Algorithm, digest: &[u8]) -> Result<Self> {
        let digest = digest
            .try_into()
            .map_err(|_| Error::malformed("content hash", format!("{} digest bytes instead of 20", digest.len())))?;
        Ok(Self { algorithm, digest })
    }

    /// The algorithm that made the hash.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw digest.
    pub const fn digest(&self) -> &[u8; DIGEST_SIZE] {
        &self.digest
    }

    /// Whether this is the "none" hash.
    pub fn is_null(&self) -> bool {
        self.digest == [0; DIGEST_SIZE]
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.digest)?;
        f.write_str(self.algorithm.tag())
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

impl FromStr for ContentHash {
    type Err = Error;

    /// Parses the text form; lower-case hex only.
    fn from_str(text: &str) -> Result<Self> {
        let malformed =
            || Error::malformed(format!("content hash {text:?}"), "not 40 hex digits and a known algorithm tag");
        let (hex, tag) = text.split_at_checked(2 * DIGEST_SIZE).ok_or_else(malformed)?;
        let algorithm = Algorithm::ALL.into_iter().find(|a| a.tag() == tag).ok_or_else(malformed)?;
        let mut digest = [0; DIGEST_SIZE];
        for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = hex_digit(pair[0]).ok_or_else(malformed)? << 4 | hex_digit(pair[1]).ok_or_else(malformed)?;
        }
        Ok(Self { algorithm, digest })
    }
}

/// What an object holds; decides the letter behind its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// A whole file.
    File,
    /// A piece of a chunked file.
    Chunk,
    /// A file catalog.
    Catalog,
    /// A tag database.
    History,
    /// The certificate of a repository key.
    Certificate,
    /// The repository's descriptive JSON.
    Metainfo,
    /// A micro catalog: reserved by the format, never written.
    MicroCatalog,
}

impl ObjectKind {
    /// All kinds.
    pub const ALL: [Self; 7] =
        [Self::File, Self::Chunk, Self::Catalog, Self::History, Self::Certificate, Self::Metainfo, Self::MicroCatalog];

    /// The suffix letter, empty for whole files.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::File => "",
            Self::Chunk => "P",
            Self::Catalog => "C",
            Self::History => "H",
            Self::Certificate => "X",
            Self::Metainfo => "M",
            Self::MicroCatalog => "L",
        }
    }

    /// The word for messages.
    pub const fn noun(self) -> &'static str {
        match self {
            Self::File => "file object",
            Self::Chunk => "chunk",
            Self::Catalog => "catalog",
            Self::History => "history",
            Self::Certificate => "certificate",
            Self::Metainfo => "meta info",
            Self::MicroCatalog => "micro catalog",
        }
    }
}

/// The full name of an object: hash and kind.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// Hash of the stored bytes.
    pub hash: ContentHash,
    /// What the object holds.
    pub kind: ObjectKind,
}

impl ObjectId {
    /// Names an object.
    pub const fn new(hash: ContentHash, kind: ObjectKind) -> Self {
        Self { hash, kind }
    }

    /// A catalog's object.
    pub const fn catalog(hash: ContentHash) -> Self {
        Self::new(hash, ObjectKind::Catalog)
    }

    /// Names `stored` bytes.
    pub fn of(algorithm: Algorithm, kind: ObjectKind, stored: &[u8]) -> Self {
        Self::new(algorithm.hash(stored), kind)
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.hash, self.kind.suffix())
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectId({self})")
    }
}

impl FromStr for ObjectId {
    type Err = Error;

    /// Parses the text form with its suffix letter, if any.
    fn from_str(text: &str) -> Result<Self> {
        for kind in ObjectKind::ALL {
            if let Some(hash) = text.strip_suffix(kind.suffix()).and_then(|hash| hash.parse().ok()) {
                return Ok(Self::new(hash, kind));
            }
        }
        Err(Error::malformed(format!("object id {text:?}"), "not a content hash with an optional suffix letter"))
    }
}

/// Writes bytes as lower-case hex.
pub(crate) fn write_hex(f: &mut impl fmt::Write, bytes: &[u8]) -> fmt::Result {
    let digit = |value: u8| b"0123456789abcdef"[usize::from(value)];
    for part in bytes.chunks(DIGEST_SIZE) {
        let mut text = [0; 2 * DIGEST_SIZE];
        for (pair, byte) in text.chunks_exact_mut(2).zip(part) {
            pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
        }
        f.write_str(std::str::from_utf8(&text[..2 * part.len()]).map_err(|_| fmt::Error)?)?;
    }
    Ok(())
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `hello world\n` as stock zlib stores it; hashes from the format description, made with openssl.
    const STORED: [u8; 20] = [
        0x78, 0x9c, 0xcb, 0x48, 0xcd, 0xc9, 0xc9, 0x57, 0x28, 0xcf, 0x2f, 0xca, 0x49, 0xe1, 0x02, 0x00, 0x1e, 0x72,
        0x04, 0x67,
    ];

    #[test]
    fn hashes_match_the_published_vectors() {
        for (algorithm, bytes, expected) in [
            (Algorithm::Sha1, &STORED[..], "ff049c626904064d641feca0e9936e5b211807c6"),
            (Algorithm::Rmd160, &STORED[..], "100b60cb4cda089e58ccc0544cf55f7f3a543a87-rmd160"),
            (Algorithm::Shake128, &STORED[..], "ff338ab3cdd35a16eaf746dbbf97ca8b715f478a-shake128"),
            (Algorithm::Sha1, &[][..], "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
        ] {
            let hash = algorithm.hash(bytes);
            assert_eq!(hash.to_string(), expected);
            assert_eq!(expected.parse::<ContentHash>().unwrap(), hash);
        }
    }

    #[test]
    fn a_suffix_letter_names_the_kind_of_object() {
        for (text, kind) in [
            ("ff049c626904064d641feca0e9936e5b211807c6", ObjectKind::File),
            ("ff049c626904064d641feca0e9936e5b211807c6P", ObjectKind::Chunk),
            ("ff338ab3cdd35a16eaf746dbbf97ca8b715f478a-shake128C", ObjectKind::Catalog),
            ("100b60cb4cda089e58ccc0544cf55f7f3a543a87-rmd160H", ObjectKind::History),
        ] {
            let id: ObjectId = text.parse().unwrap();
            assert_eq!(id.kind, kind);
            assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn refuses_what_is_not_a_hash() {
        for text in [
            "",
            "ff049c626904064d641feca0e9936e5b211807c",
            "ff049c626904064d641feca0e9936e5b211807c66",
            "FF049c626904064d641feca0e9936e5b211807c6",
            "ff049c626904064d641feca0e9936e5b211807c6-sha1",
            "zz049c626904064d641feca0e9936e5b211807c6",
            "ff049c626904064d641feca0e9936e5b211807c\u{e9}",
        ] {
            assert!(text.parse::<ContentHash>().is_err(), "{text}");
        }
        assert!("ff049c626904064d641feca0e9936e5b211807c6Z".parse::<ObjectId>().is_err());
    }
}
