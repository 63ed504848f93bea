//! Extended attributes as catalogs store them: one blob an entry.
//!
//! ```text
//! version 1: u8 1, u8 count, count x { u8 key length, u8  value length, key, value }   sorted by key
//! version 2: u8 2, u8 count, count x { u8 key length, u16 value length (little-endian), key, value }
//! ```
//!
//! Both are read. Version 1 is written, because a client older than 2.14 shows none of the attributes of a
//! version 2 blob; see [`Xattrs::split_oversized`].
//!
//! Source: `cvmfs/xattr.cc`.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Longest key and value of a version 1 blob in bytes, and most attributes of an entry.
const MAX: usize = u8::MAX as usize;

/// The extended attributes of one entry, sorted by key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Xattrs(BTreeMap<Vec<u8>, Vec<u8>>);

impl Xattrs {
    /// No attributes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there are no attributes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets one attribute.
    ///
    /// # Errors
    /// `InvalidInput` if the key is empty, longer than 255 bytes or has a NUL byte, or for a 256th attribute.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let invalid = |reason| Err(Error::invalid(format!("extended attribute {}", crate::path::display(key)), reason));
        if key.is_empty() || key.len() > MAX || key.contains(&0) {
            return invalid("the name must have 1 to 255 bytes, none of them NUL");
        }
        if self.0.len() == MAX && !self.0.contains_key(key) {
            return invalid("an entry cannot have more than 255 attributes");
        }
        self.0.insert(key.to_vec(), value.to_vec());
        Ok(())
    }

    /// Takes attributes of an input as far as a catalog can hold them; left out, with the reason, is what it cannot.
    pub fn collect<'a>(attributes: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> (Self, Vec<String>) {
        let (mut xattrs, mut left_out) = (Self::new(), Vec::new());
        for (key, value) in attributes {
            if let Err(error) = xattrs.set(key, value) {
                left_out.push(format!("left out: {error}"));
            }
        }
        for key in xattrs.split_oversized() {
            let key = crate::path::display(&key);
            left_out.push(format!("extended attribute {key} left out: its value is longer than 255 bytes"));
        }
        (xattrs, left_out)
    }

    /// The attributes in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(key, value)| (&key[..], &value[..]))
    }

    /// The value of one attribute.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.0.get(key).map(Vec::as_slice)
    }

    /// Takes out the attributes whose value does not fit into a version 1 blob and returns their keys.
    ///
    /// A caller reports them: they are left out, never cut.
    pub fn split_oversized(&mut self) -> Vec<Vec<u8>> {
        self.0.extract_if(.., |_, value| value.len() > MAX).map(|(key, _)| key).collect()
    }

    /// Encodes a version 1 blob; `None` if there are no attributes.
    ///
    /// # Errors
    /// `InvalidInput` if a value is longer than 255 bytes.
    pub fn encode(&self) -> Result<Option<Vec<u8>>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let length = |bytes: &[u8]| {
            u8::try_from(bytes.len()).map_err(|_| Error::invalid("extended attribute", "value longer than 255 bytes"))
        };
        let count = u8::try_from(self.0.len()).expect("`set` and `parse` admit at most 255 attributes");
        let mut blob = vec![1, count];
        for (key, value) in &self.0 {
            blob.extend([length(key)?, length(value)?]);
            blob.extend_from_slice(key);
            blob.extend_from_slice(value);
        }
        Ok(Some(blob))
    }

    /// Decodes a blob of either version.
    ///
    /// # Errors
    /// `Malformed` if it is cut short, has an unknown version, or an attribute with an impossible name. Bytes that are
    /// left over are ignored, as by clients.
    pub fn parse(blob: &[u8]) -> Result<Self> {
        let malformed = |reason: &str| Error::malformed("extended attribute blob", reason);
        let mut rest = blob;
        let mut take = |length: usize| {
            let (taken, left) = rest.split_at_checked(length).ok_or_else(|| malformed("cut short"))?;
            rest = left;
            Ok::<_, Error>(taken)
        };
        let [version @ (1 | 2), count] = *take(2)? else { return Err(malformed("unknown version")) };
        let mut attributes = BTreeMap::new();
        for _ in 0..count {
            let key_length = usize::from(take(1)?[0]);
            let value_length = match *take(usize::from(version))? {
                [length] => usize::from(length),
                [low, high] => usize::from(u16::from_le_bytes([low, high])),
                _ => unreachable!("the length field has `version` bytes, 1 or 2"),
            };
            let key = take(key_length)?.to_vec();
            if key.is_empty() || key.contains(&0) {
                return Err(malformed("attribute with an impossible name"));
            }
            let value = take(value_length)?.to_vec();
            attributes.insert(key, value);
        }
        Ok(Self(attributes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn encodes_the_published_example() {
        let mut xattrs = Xattrs::new();
        xattrs.set(b"user.a", b"1").unwrap();
        xattrs.set(b"security.capability", &hex("0100000200040000000000000000000000000000")).unwrap();
        let blob = hex("01 02 13 14 7365637572697479 2e6361706162696c697479 0100000200040000000000000000000000000000 \
             06 01 757365722e61 31");
        assert_eq!(xattrs.encode().unwrap().unwrap(), blob);
        assert_eq!(Xattrs::parse(&blob).unwrap(), xattrs);
        assert_eq!(Xattrs::new().encode().unwrap(), None);
    }

    #[test]
    fn takes_what_fits_and_tells_what_does_not() {
        let long = [0; 256];
        let (xattrs, left_out) = Xattrs::collect([(&b"user.a"[..], &b"1"[..]), (b"", b"2"), (b"user.b", &long)]);
        assert!(xattrs.iter().eq([(&b"user.a"[..], &b"1"[..])]));
        assert_eq!(left_out.len(), 2);
        assert!(left_out[1].contains("user.b"), "{left_out:?}");
    }

    #[test]
    fn reads_version_2() {
        let blob = [&hex("02 01 06 0401 757365722e62")[..], &[7; 260]].concat();
        let mut xattrs = Xattrs::parse(&blob).unwrap();
        assert_eq!(xattrs.get(b"user.b").unwrap(), [7; 260]);
        assert!(xattrs.encode().is_err());
        assert_eq!(xattrs.split_oversized(), [b"user.b"]);
        assert_eq!(xattrs.encode().unwrap(), None);
    }

    #[test]
    fn refuses_damage() {
        let blob = hex("01 01 06 01 757365722e61 31");
        assert!(Xattrs::parse(&blob).is_ok());
        for length in 0..blob.len() {
            assert!(Xattrs::parse(&blob[..length]).is_err(), "cut to {length}");
        }
        assert_eq!(Xattrs::parse(&[&blob[..], b"x"].concat()).unwrap(), Xattrs::parse(&blob).unwrap());
        assert!(Xattrs::parse(&hex("01 01 01 01 00 31")).is_err());
        assert!(Xattrs::parse(&hex("03 00")).is_err());
        assert!(Xattrs::parse(&hex("01 01 00 01 31")).is_err());
    }

    #[test]
    fn limits_are_those_of_the_format() {
        let mut xattrs = Xattrs::new();
        assert!(xattrs.set(b"", b"").is_err());
        assert!(xattrs.set(&[b'k'; 256], b"").is_err());
        assert!(xattrs.set(b"a\0", b"").is_err());
        for number in 0..255 {
            xattrs.set(format!("user.{number}").as_bytes(), &[0; 255]).unwrap();
        }
        assert!(xattrs.set(b"user.one-more", b"").is_err());
        assert!(xattrs.set(b"user.0", b"again").is_ok());
        assert_eq!(Xattrs::parse(&xattrs.encode().unwrap().unwrap()).unwrap(), xattrs);
    }
}
