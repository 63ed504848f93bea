//! Digests of manifests, configurations and layers.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use cvmfs_core::error::{Error, Result};
use openssl::sha::Sha256;

/// A SHA-256, `sha256:` and 64 hex digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(openssl::sha::sha256(bytes))
    }

    /// The 64 hex digits without prefix: what directories are called.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    /// # Errors
    /// `Unsupported` for another algorithm, `InvalidInput` for anything else than lower-case hex digits.
    fn from_str(text: &str) -> Result<Self> {
        let (algorithm, hex) = text.split_once(':').ok_or_else(|| Error::invalid(text, "not a digest"))?;
        if algorithm != "sha256" {
            return Err(Error::Unsupported { what: format!("the digest {text:?}: its algorithm") });
        }
        let wrong = || Error::invalid(text, "not 64 lower-case hex digits behind sha256:");
        if hex.len() != 64 || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let pair = str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(digest))
    }
}

/// A reader that hashes and counts what passes, and gives the sum to `done` when its input ends.
pub struct Summed<R, F> {
    input: R,
    hasher: Sha256,
    size: u64,
    done: Option<F>,
}

impl<R: Read, F: FnOnce(Digest, u64) -> io::Result<()>> Summed<R, F> {
    /// `done` gets digest and size of all bytes, once; its error is the reader's.
    pub fn new(input: R, done: F) -> Self {
        Self { input, hasher: Sha256::new(), size: 0, done: Some(done) }
    }
}

impl<R, F> fmt::Debug for Summed<R, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Summed({} bytes)", self.size)
    }
}

impl<R: Read, F: FnOnce(Digest, u64) -> io::Result<()>> Read for Summed<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let count = self.input.read(buffer)?;
        if count > 0 {
            self.hasher.update(&buffer[..count]);
            self.size += count as u64;
        } else if let Some(done) = self.done.take() {
            done(Digest(std::mem::take(&mut self.hasher).finish()), self.size)?;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-2, appendix B.1.
    const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn text_and_bytes_agree() {
        assert_eq!(Digest::of(b"abc").to_string(), ABC);
        assert_eq!(ABC.parse::<Digest>().unwrap(), Digest::of(b"abc"));
        for wrong in ["", "abc", "sha256:", &ABC.to_uppercase(), &ABC[..70], "sha512:00", &format!("{ABC}0")] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_sum_is_told_once_at_the_end() {
        let mut sums = Vec::new();
        let mut reader = Summed::new(&b"abc"[..], |digest, size| {
            sums.push((digest.to_string(), size));
            Ok(())
        });
        io::copy(&mut reader, &mut io::sink()).unwrap();
        assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0);
        assert_eq!(sums, [(ABC.to_owned(), 3)]);
    }
}
