//! The envelope of manifest and whitelist: text, separator, hash of the text, signature of the hash.
//!
//! ```text
//! lines of text, each ending in \n
//! --\n
//! hash over the text, as text\n
//! signature bytes up to the end
//! ```
//!
//! Source: `cvmfs/crypto/signature.cc`.

use crate::error::{Error, Result};
use crate::hash::{Algorithm, ContentHash};

const SEPARATOR: &[u8] = b"\n--\n";

/// A text with its signature, unchecked but for the hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    text: Vec<u8>,
    hash: ContentHash,
    signature: Vec<u8>,
}

impl Letter {
    /// Takes a signed document apart and checks that the hash is that of the text.
    ///
    /// `what` names the document in errors.
    ///
    /// # Errors
    /// `Malformed` without separator or hash line; `HashMismatch` if the text was changed.
    pub fn parse(what: &str, bytes: &[u8]) -> Result<Self> {
        let separator = bytes
            .windows(SEPARATOR.len())
            .position(|window| window == SEPARATOR)
            .ok_or_else(|| Error::malformed(what, "no line `--` before the signature"))?;
        let text = bytes[..=separator].to_vec();
        let rest = &bytes[separator + SEPARATOR.len()..];
        let end = rest
            .iter()
            .position(|&byte| byte == b'\n')
            .ok_or_else(|| Error::malformed(what, "no hash line before the signature"))?;
        let hash: ContentHash = std::str::from_utf8(&rest[..end])
            .map_err(|_| Error::malformed(what, "the hash line is not text"))?
            .parse()
            .map_err(|_| Error::malformed(what, "the line after `--` is not a content hash"))?;
        let actual = hash.algorithm().hash(&text);
        if actual != hash {
            return Err(Error::HashMismatch {
                what: what.into(),
                expected: hash.to_string(),
                actual: actual.to_string(),
            });
        }
        Ok(Self { text, hash, signature: rest[end + 1..].to_vec() })
    }

    /// Signs a text, which must end in a newline: `sign` gets the hash as text.
    pub fn sign(text: Vec<u8>, algorithm: Algorithm, sign: impl FnOnce(&[u8]) -> Result<Vec<u8>>) -> Result<Self> {
        debug_assert_eq!(text.last(), Some(&b'\n'), "the separator follows a whole line");
        let hash = algorithm.hash(&text);
        let signature = sign(hash.to_string().as_bytes())?;
        Ok(Self { text, hash, signature })
    }

    /// The signed text.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// The hash of the text as text: what is signed.
    pub fn hash_text(&self) -> String {
        self.hash.to_string()
    }

    /// The signature.
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// The whole document.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.text, &b"--\n"[..], self.hash.to_string().as_bytes(), b"\n", &self.signature].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_signed() {
        let letter = Letter::sign(b"C1\nD2\n".to_vec(), Algorithm::Rmd160, |hash| Ok(hash[..4].to_vec())).unwrap();
        let bytes = letter.to_bytes();
        assert_eq!(Letter::parse("test", &bytes).unwrap(), letter);
        assert_eq!(letter.signature(), &letter.hash_text().as_bytes()[..4]);
    }

    #[test]
    fn notices_a_changed_text_and_missing_parts() {
        let bytes = Letter::sign(b"C1\n".to_vec(), Algorithm::Sha1, |_| Ok(vec![0; 8])).unwrap().to_bytes();
        let mut changed = bytes.clone();
        changed[1] = b'2';
        assert!(matches!(Letter::parse("test", &changed), Err(Error::HashMismatch { .. })));
        for length in 0..bytes.len() - 8 {
            assert!(Letter::parse("test", &bytes[..length]).is_err(), "cut to {length}");
        }
    }
}
