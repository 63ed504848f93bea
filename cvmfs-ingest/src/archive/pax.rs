//! PAX records: the `length key=value` lines of extended headers.
//!
//! A record of a local header applies to the next entry and wins over a global one, which applies to all later
//! entries. An empty value takes back what the global header says, so that the entry's own header counts.
//!
//! Source: POSIX.1-2017 `pax`, "pax Extended Header".

use std::collections::BTreeMap;

use super::Timestamp;
use super::sparse::{MAX_REGIONS, Region};

/// Longest content of one extended header in bytes. The largest legitimate records are extended attributes, of
/// 64 KiB each on Linux, and the maps of sparse files.
pub(super) const MAX_HEADER_SIZE: u64 = 8 << 20;
/// Memory for the records that are valid at one time, in bytes.
const MAX_MEMORY: usize = 16 << 20;
/// What one record costs besides its bytes, roughly.
const RECORD_OVERHEAD: usize = 128;

const SPARSE_OFFSET: &[u8] = b"GNU.sparse.offset";
const SPARSE_LENGTH: &[u8] = b"GNU.sparse.numbytes";

/// Records of one or several headers; later ones replace earlier ones.
#[derive(Debug, Default)]
pub(super) struct Records {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Sparse format 0.0 has repeated keys whose order matters.
    sparse_regions: Vec<Region>,
    sparse_offset: Option<u64>,
    memory: usize,
}

impl Records {
    /// Adds the content of an extended header.
    ///
    /// # Errors
    /// The reason, if it does not follow the format or is too much.
    pub(super) fn add(&mut self, mut content: &[u8]) -> Result<(), String> {
        while !content.is_empty() {
            let (key, value, rest) = split_record(content).ok_or("malformed PAX record")?;
            self.insert(key, value)?;
            content = rest;
        }
        Ok(())
    }

    fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        match key {
            SPARSE_OFFSET => {
                if self.sparse_offset.replace(decimal(key, value)?).is_some() {
                    return Err("sparse map with two offsets in a row".to_owned());
                }
            }
            SPARSE_LENGTH => {
                let offset = self.sparse_offset.take().ok_or("sparse map with a length before its offset")?;
                if self.sparse_regions.len() == MAX_REGIONS {
                    return Err(format!("sparse map with more than {MAX_REGIONS} regions"));
                }
                self.sparse_regions.push(Region { offset, length: decimal(key, value)? });
            }
            _ => {
                self.memory += key.len() + value.len() + RECORD_OVERHEAD;
                if let Some(replaced) = self.values.insert(key.to_vec(), value.to_vec()) {
                    self.memory -= key.len() + replaced.len() + RECORD_OVERHEAD;
                }
                if self.memory > MAX_MEMORY {
                    return Err(format!("PAX records of more than {MAX_MEMORY} bytes"));
                }
            }
        }
        Ok(())
    }
}

/// Takes one record off: a decimal length that counts everything up to the line break, a space, key, `=`, value.
fn split_record(content: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    // No number up to `usize::MAX` has more digits.
    let space = content.iter().take(20).position(|&byte| byte == b' ')?;
    let length = usize::try_from(parse_decimal(&content[..space])?).ok()?;
    let (record, rest) = content.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=').filter(|&at| at > 0)?;
    Some((&record[..equals], &record[equals + 1..], rest))
}

/// The records that are valid for one entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a> {
    pub(super) global: &'a Records,
    pub(super) local: &'a Records,
}

impl<'a> Attributes<'a> {
    /// The value of a key; `None` if there is none or it was taken back.
    pub(super) fn get(&self, key: &[u8]) -> Option<&'a [u8]> {
        let value = self.local.values.get(key).or_else(|| self.global.values.get(key))?;
        (!value.is_empty()).then_some(value)
    }

    /// A value that is part of a path and cannot hold a NUL.
    pub(super) fn text(&self, key: &[u8]) -> Result<Option<&'a [u8]>, String> {
        let value = self.get(key);
        if value.is_some_and(|value| value.contains(&0)) {
            return Err(format!("PAX record {} holds a NUL byte", key.escape_ascii()));
        }
        Ok(value)
    }

    /// A value that is a number.
    pub(super) fn number(&self, key: &[u8]) -> Result<Option<u64>, String> {
        self.get(key).map(|value| decimal(key, value)).transpose()
    }

    /// A value that is a time.
    pub(super) fn time(&self, key: &[u8]) -> Result<Option<Timestamp>, String> {
        let parse = |value| parse_time(value).ok_or_else(|| unusable(key, value));
        self.get(key).map(parse).transpose()
    }

    /// All records whose keys begin with `prefix`, as rest of the key and value. Global ones come first; empty
    /// values are included.
    pub(super) fn with_prefix(self, prefix: &'static [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        [self.global, self.local].into_iter().flat_map(move |records| {
            let range = records.values.range(prefix.to_vec()..);
            range.map_while(move |(key, value)| Some((key.strip_prefix(prefix)?, &value[..])))
        })
    }

    /// The map of a sparse file in format 0.0.
    ///
    /// # Errors
    /// The reason, if its last region has no length.
    pub(super) fn sparse_regions(&self) -> Result<&'a [Region], String> {
        match self.local.sparse_offset {
            None => Ok(&self.local.sparse_regions),
            Some(_) => Err("sparse map ends with an offset".to_owned()),
        }
    }

    /// The value of a key in the local header. Sparse records describe one file; in a global header they would
    /// make no sense.
    pub(super) fn local(&self, key: &[u8]) -> Option<&'a [u8]> {
        self.local.values.get(key).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    /// A number in the local header.
    pub(super) fn local_number(&self, key: &[u8]) -> Result<Option<u64>, String> {
        self.local(key).map(|value| decimal(key, value)).transpose()
    }
}

fn unusable(key: &[u8], value: &[u8]) -> String {
    let shown = &value[..value.len().min(64)];
    format!("PAX record {} holds no usable value: {}", key.escape_ascii(), shown.escape_ascii())
}

fn decimal(key: &[u8], value: &[u8]) -> Result<u64, String> {
    parse_decimal(value).ok_or_else(|| unusable(key, value))
}

/// Decimal digits and nothing else.
pub(super) fn parse_decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Seconds with sign and fraction, as one number: POSIX, GNU tar and Python agree. (libarchive means something else by
/// negative numbers with a fraction, namely that the fraction is to be added.) The parts of the result are rounded down, so that -0.25 is 0.75 after -1.
fn parse_time(value: &[u8]) -> Option<Timestamp> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let (whole, fraction) = match value.iter().position(|&byte| byte == b'.') {
        Some(dot) => (&value[..dot], Some(&value[dot + 1..])),
        None => (value, None),
    };
    let whole = i64::try_from(parse_decimal(whole)?).ok()?;
    let seconds = if negative { -whole } else { whole };
    let Some(fraction) = fraction else {
        return Some(Timestamp { seconds, nanoseconds: None });
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |index| fraction.get(index).map_or(0, |byte| u32::from(byte - b'0'));
    let nanoseconds = (0..9).fold(0, |value, index| value * 10 + digit(index));
    let beyond = fraction.iter().skip(9).any(|&byte| byte != b'0');
    let (seconds, nanoseconds) = match (negative, nanoseconds + u32::from(negative && beyond)) {
        (true, 1..) => (seconds.checked_sub(1)?, 1_000_000_000 - (nanoseconds + u32::from(beyond))),
        _ => (seconds, nanoseconds),
    };
    Some(Timestamp { seconds, nanoseconds: Some(nanoseconds) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(content: &[u8]) -> Records {
        let mut records = Records::default();
        records.add(content).unwrap();
        records
    }

    #[test]
    fn splits_records_by_their_length() {
        let records = records(b"11 path=ab\n17 c=with\nand = \n5 d=\n");
        let attributes = Attributes { global: &Records::default(), local: &records };
        assert_eq!(attributes.get(b"path"), Some(&b"ab"[..]));
        assert_eq!(attributes.get(b"c"), Some(&b"with\nand = "[..]));
        assert_eq!(attributes.get(b"d"), None);
        assert_eq!(attributes.with_prefix(b"d").collect::<Vec<_>>(), [(&b""[..], &b""[..])]);
    }

    #[test]
    fn refuses_what_is_no_record() {
        for content in [
            &b"path=ab\n"[..],
            b"11 path=ab",
            b"12 path=ab\n",
            b"10 path=ab\n",
            b"11 path=abX",
            b"7 =abc\n",
            b"9 pathab\n",
            b"0 path=ab\n",
            b"2 path=ab\n",
            b"-11 path=ab\n",
            b" 11 path=ab\n",
            b"99999999999999999999999 path=ab\n",
            b"18446744073709551615 path=ab\n",
            b"11 path=ab\n\0\0",
        ] {
            assert!(Records::default().add(content).is_err(), "{}", content.escape_ascii());
        }
    }

    #[test]
    fn local_records_win_and_empty_ones_take_back() {
        let global = records(b"9 gid=12\n9 uid=34\n7 a.1=\n8 a.2=x\n");
        let local = records(b"7 gid=\n9 uid=56\n8 a.2=y\n");
        let attributes = Attributes { global: &global, local: &local };
        assert_eq!(attributes.number(b"gid"), Ok(None));
        assert_eq!(attributes.number(b"uid"), Ok(Some(56)));
        let none = Records::default();
        assert_eq!(Attributes { global: &global, local: &none }.number(b"gid"), Ok(Some(12)));
        let listed: Vec<_> = attributes.with_prefix(b"a.").collect();
        assert_eq!(listed, [(&b"1"[..], &b""[..]), (b"2", b"x"), (b"2", b"y")]);
    }

    #[test]
    fn memory_is_limited_however_small_the_records() {
        let mut records = Records::default();
        let failed = (0..1_000_000).find(|i| records.add(format!("12 k{i:06}=\n").as_bytes()).is_err());
        assert!(failed.is_some_and(|i| i > 100_000));
        let mut replaced = Records::default();
        for _ in 0..200_000 {
            replaced.add(b"6 k=v\n").unwrap();
        }
    }

    #[test]
    fn times_are_rounded_down() {
        for (value, expected) in [
            (&b"0"[..], Some((0, None))),
            (b"1700000000", Some((1_700_000_000, None))),
            (b"1700000000.5", Some((1_700_000_000, Some(500_000_000)))),
            (b"1.", Some((1, Some(0)))),
            (b"1.0000000019", Some((1, Some(1)))),
            (b"-1", Some((-1, None))),
            (b"-1.0", Some((-1, Some(0)))),
            (b"-1.25", Some((-2, Some(750_000_000)))),
            (b"-0.0000000001", Some((-1, Some(999_999_999)))),
            (b"-0.9999999999", Some((-1, Some(0)))),
            (b"9223372036854775807.999999999", Some((i64::MAX, Some(999_999_999)))),
            (b"-9223372036854775807.5", Some((i64::MIN, Some(500_000_000)))),
            (b"9223372036854775808", None),
            (b"1e5", None),
            (b"+1", None),
            (b".5", None),
            (b"1.2.3", None),
            (b"1.-5", None),
            (b"--1", None),
        ] {
            let expected = expected.map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds });
            assert_eq!(parse_time(value), expected, "{}", value.escape_ascii());
        }
    }
}
