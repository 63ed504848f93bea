//! One 512-byte header: which dialect it is, and what its fields say.
//!
//! The layout comes from the `tar` crate. Its number parsers do not: they accept numbers that overflow, and know no
//! negative ones.
//!
//! Source: POSIX.1-2017 `pax`, "ustar Interchange Format"; GNU tar `src/tar.h` and `from_header` in `src/list.c`.

use super::stream::{BLOCK_SIZE, Block};

/// Where the checksum stands; it counts as spaces in its own sum.
const CHECKSUM: std::ops::Range<usize> = 148..156;
/// `magic` and `version` as one field.
const MAGIC: std::ops::Range<usize> = 257..265;
const USTAR_MAGIC: &[u8; 8] = b"ustar\x0000";
const GNU_MAGIC: &[u8; 8] = b"ustar  \0";

/// The dialects of headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Before POSIX: no names of owners, no devices, no prefix.
    V7,
    /// POSIX, also with PAX records around it.
    Ustar,
    /// GNU tar's own, with sparse files and times where POSIX has the prefix.
    Gnu,
}

/// A header with a correct checksum.
#[derive(Debug)]
pub(super) struct Header {
    raw: tar::Header,
    dialect: Dialect,
}

impl Header {
    /// # Errors
    /// The reason, if this is no header or a damaged one.
    pub(super) fn parse(block: &Block) -> Result<Self, String> {
        if !has_valid_checksum(block) {
            return Err("checksum of the header is wrong".to_owned());
        }
        let mut block = *block;
        let dialect = match &block[MAGIC] {
            magic if magic == GNU_MAGIC => Dialect::Gnu,
            // As in libarchive: some writers leave the version blank, or end the magic with a space.
            magic if magic.starts_with(b"ustar") => {
                block[MAGIC].copy_from_slice(USTAR_MAGIC);
                Dialect::Ustar
            }
            _ => Dialect::V7,
        };
        Ok(Self { raw: tar::Header::from_byte_slice(&block).clone(), dialect })
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.dialect
    }

    pub(super) fn typeflag(&self) -> u8 {
        self.raw.as_old().linkflag[0]
    }

    /// The name, behind the prefix if there is one.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.raw.as_old().name);
        match self.raw.as_ustar().map(|ustar| text(&ustar.prefix)) {
            Some(prefix) if !prefix.is_empty() => [prefix, b"/", name].concat(),
            _ => name.to_vec(),
        }
    }

    pub(super) fn link_target(&self) -> &[u8] {
        text(&self.raw.as_old().linkname)
    }

    pub(super) fn size(&self) -> Result<u64, String> {
        unsigned("size", &self.raw.as_old().size)
    }

    /// The permission bits. Some writers add those of the file's type.
    pub(super) fn mode(&self) -> Result<u16, String> {
        let [.., high, low] = unsigned("mode", &self.raw.as_old().mode)?.to_be_bytes();
        Ok(u16::from_be_bytes([high & 0o17, low]))
    }

    pub(super) fn uid(&self) -> Result<u64, String> {
        unsigned("uid", &self.raw.as_old().uid)
    }

    pub(super) fn gid(&self) -> Result<u64, String> {
        unsigned("gid", &self.raw.as_old().gid)
    }

    pub(super) fn mtime(&self) -> Result<i64, String> {
        let field = &self.raw.as_old().mtime;
        number(field).and_then(|value| i64::try_from(value).ok()).ok_or_else(|| not_a_number("mtime", field))
    }

    pub(super) fn uname(&self) -> &[u8] {
        match (self.raw.as_ustar(), self.raw.as_gnu()) {
            (Some(ustar), _) => text(&ustar.uname),
            (_, Some(gnu)) => text(&gnu.uname),
            _ => b"",
        }
    }

    pub(super) fn gname(&self) -> &[u8] {
        match (self.raw.as_ustar(), self.raw.as_gnu()) {
            (Some(ustar), _) => text(&ustar.gname),
            (_, Some(gnu)) => text(&gnu.gname),
            _ => b"",
        }
    }

    /// Major and minor number; zeros in v7, which has no devices.
    pub(super) fn device(&self) -> Result<(u32, u32), String> {
        let (major, minor) = match (self.raw.as_ustar(), self.raw.as_gnu()) {
            (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
            (_, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
            _ => return Ok((0, 0)),
        };
        let part = |name, field: &[u8; 8]| {
            u32::try_from(unsigned(name, field)?).map_err(|_| format!("{name} number does not fit into 32 bits"))
        };
        Ok((part("major", major)?, part("minor", minor)?))
    }

    /// The header as GNU tar's, if it is one.
    pub(super) fn as_gnu(&self) -> Option<&tar::GnuHeader> {
        self.raw.as_gnu()
    }
}

/// Whether a block carries its own checksum, as every header does.
pub(super) fn has_valid_checksum(block: &Block) -> bool {
    let mut counted = *block;
    counted[CHECKSUM].fill(b' ');
    let unsigned_sum: i32 = counted.iter().map(|&byte| i32::from(byte)).sum();
    // Old Sun and BSD systems added the bytes as signed characters.
    let signed_sum: i32 = counted.iter().map(|byte| i32::from(byte.cast_signed())).sum();
    number(&block[CHECKSUM]).is_some_and(|stored| stored == unsigned_sum.into() || stored == signed_sum.into())
}

/// Whether a block is a part of the end marker.
pub(super) fn is_zero(block: &Block) -> bool {
    block == &[0; BLOCK_SIZE]
}

/// Views a block as what follows the header of an old GNU sparse file.
pub(super) fn sparse_extension(block: &Block) -> tar::GnuExtSparseHeader {
    let mut extension = tar::GnuExtSparseHeader::new();
    extension.as_mut_bytes().copy_from_slice(block);
    extension
}

/// Reads a field that must not be negative; blank is zero.
pub(super) fn unsigned(name: &str, field: &[u8]) -> Result<u64, String> {
    number(field).and_then(|value| u64::try_from(value).ok()).ok_or_else(|| not_a_number(name, field))
}

fn not_a_number(name: &str, field: &[u8]) -> String {
    format!("{name} field holds no usable number: {}", field.escape_ascii())
}

/// Reads a number in either of the two notations; blank is zero.
fn number(field: &[u8]) -> Option<i128> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
}

/// Octal digits, perhaps after blanks, ended by a blank or the end of the field. What follows the blank is ignored:
/// old writers left scraps there.
fn octal(field: &[u8]) -> Option<i128> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    let digits = field[start..].split(is_blank).next().unwrap_or_default();
    digits.iter().try_fold(0_i128, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i128::from(digit - b'0')),
        _ => None,
    })
}

/// Two's complement, big endian, with the top bit of the first byte as marker and the next one as sign.
fn base256(field: &[u8]) -> Option<i128> {
    let (&first, rest) = field.split_first()?;
    let negative = first & 0x40 != 0;
    let top = if negative { i128::from(first) - 0x100 } else { i128::from(first & 0x3f) };
    rest.iter().try_fold(top, |value, &byte| value.checked_mul(0x100)?.checked_add(i128::from(byte)))
}

/// A text field up to its first NUL; a field that is full has none.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_both_notations() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"77777777", Some(0o7777_7777)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"", Some(0)),
            (b"644\0junk", Some(0o644)),
            (b"\x00000644\0", Some(0o644)),
            (b"0000648\0", None),
            (b"-000001\0", None),
            (b"0x00001\0", None),
            (b"\x80\0\0\0\0\0\0\x01", Some(1)),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff", Some((1 << 62) - 1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\xc0\0\0\0\0\0\0\0", Some(-(1 << 62))),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", Some(1 << 63)),
        ] {
            assert_eq!(number(field), expected, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        assert_eq!(unsigned("size", b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"), Ok(u64::MAX));
        assert!(unsigned("size", b"\x80\0\0\x01\0\0\0\0\0\0\0\0").unwrap_err().starts_with("size field"));
        assert!(unsigned("size", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").is_err());
        assert_eq!(number(&[0xbf; 40]), None);
    }

    /// A header as the format describes it, written without the code under test.
    fn sample(magic: &[u8], signed: bool) -> Block {
        let mut block = [0; BLOCK_SIZE];
        block[..5].copy_from_slice(b"n\xe4me!");
        block[100..108].copy_from_slice(b"0000644\0");
        block[124..136].copy_from_slice(b"00000000017\0");
        block[136..148].copy_from_slice(b"00000000001\0");
        block[148..156].copy_from_slice(b"        ");
        block[156] = b'0';
        block[157..160].copy_from_slice(b"to\0");
        block[257..265].copy_from_slice(magic);
        block[265..269].copy_from_slice(b"user");
        block[329..337].copy_from_slice(b"0000010\0");
        block[337..345].copy_from_slice(b"0000377\0");
        block[345..348].copy_from_slice(b"pre");
        let value = |byte: u8| if signed && byte > 127 { i64::from(byte) - 256 } else { i64::from(byte) };
        let sum: i64 = block.iter().map(|&byte| value(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    #[test]
    fn tells_the_dialects_apart() {
        for (magic, dialect, path, uname, device) in [
            (&b"ustar\x0000"[..], Dialect::Ustar, &b"pre/n\xe4me!"[..], &b"user"[..], (8, 255)),
            (b"ustar 00", Dialect::Ustar, b"pre/n\xe4me!", b"user", (8, 255)),
            (b"ustar\0  ", Dialect::Ustar, b"pre/n\xe4me!", b"user", (8, 255)),
            (b"ustar  \0", Dialect::Gnu, b"n\xe4me!", b"user", (8, 255)),
            (b"\0\0\0\0\0\0\0\0", Dialect::V7, b"n\xe4me!", b"", (0, 0)),
        ] {
            for signed in [false, true] {
                let header = Header::parse(&sample(magic, signed)).unwrap();
                assert_eq!(header.dialect(), dialect);
                assert_eq!(header.path(), path);
                assert_eq!(header.uname(), uname);
                assert_eq!(header.device(), Ok(device));
                assert_eq!((header.size(), header.mtime(), header.mode()), (Ok(15), Ok(1), Ok(0o644)));
                assert_eq!((header.typeflag(), header.link_target()), (b'0', &b"to"[..]));
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let block = sample(USTAR_MAGIC, false);
        for bit in 0..BLOCK_SIZE * 8 {
            let mut block = block;
            block[bit / 8] ^= 1 << (bit % 8);
            // Bits of the blanks around the checksum itself do not change its value.
            assert!(!has_valid_checksum(&block) || CHECKSUM.contains(&(bit / 8)), "bit {bit}");
        }
        assert!(!has_valid_checksum(&[0; BLOCK_SIZE]));
        assert!(!has_valid_checksum(&[b'a'; BLOCK_SIZE]));
    }
}
