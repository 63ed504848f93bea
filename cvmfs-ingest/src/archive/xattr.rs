//! Extended attributes, in the PAX records that the writers use for them.
//!
//! | record | writer | value |
//! | --- | --- | --- |
//! | `SCHILY.xattr.`*name* | star, GNU tar, libarchive, Go | bytes; GNU tar writes `=` and `%` in names as `%3D`, `%25` |
//! | `LIBARCHIVE.xattr.`*name* | libarchive | base64 without padding; the name is URL-encoded |
//! | `RHT.security.selinux` | GNU tar | the label |
//! | `SCHILY.acl.access`, `.default` | star, GNU tar, libarchive | text, see [`super::acl`] |

use std::collections::BTreeMap;

use super::acl::{self, AclKind, Owners};
use super::pax::Attributes;

/// Values by full name.
type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What the records say about an entry's attributes.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) xattrs: Xattrs,
    /// The permission bits of the access control list. They replace those of the header, as setting the list does in
    /// a file system: a header by GNU tar has the mask in place of the group's bits, but one by libarchive has not.
    pub(super) permissions: Option<u16>,
    /// What had to be left out.
    pub(super) warnings: Vec<String>,
}

/// Collects the extended attributes of an entry.
///
/// # Errors
/// The reason, if a record does not follow its format.
pub(super) fn collect(records: &Attributes<'_>, owners: Owners<'_>) -> Result<Collected, String> {
    let Collected { mut xattrs, mut permissions, mut warnings } = Collected::default();
    // The plain form of an attribute comes last, since it is the one that is exact.
    for (key, name, kind) in [
        (&b"SCHILY.acl.access"[..], "system.posix_acl_access", AclKind::Access),
        (b"SCHILY.acl.default", "system.posix_acl_default", AclKind::Default),
    ] {
        match records.get(key).map(|text| acl::encode(text, kind, owners)) {
            Some(Ok(Some(acl))) => {
                if kind == AclKind::Access {
                    permissions = Some(acl.permissions);
                }
                xattrs.extend(acl.binary.map(|binary| (name.into(), binary)));
            }
            Some(Ok(None)) | None => {}
            Some(Err(reason)) => warnings.push(format!("left out the access control list {name}: {reason}")),
        }
    }
    if records.get(b"SCHILY.acl.ace").is_some() {
        warnings.push("left out an NFSv4 access control list".to_owned());
    }
    if let Some(label) = records.get(b"RHT.security.selinux") {
        xattrs.insert(b"security.selinux".into(), label.to_vec());
    }
    for (name, value) in records.with_prefix(b"LIBARCHIVE.xattr.") {
        let malformed = || format!("PAX record LIBARCHIVE.xattr.{} is not encoded properly", name.escape_ascii());
        let value = decode_base64(value).ok_or_else(malformed)?;
        xattrs.insert(decode_url(name).ok_or_else(malformed)?, value);
    }
    for (name, value) in records.with_prefix(b"SCHILY.xattr.") {
        xattrs.insert(decode_schily_name(name), value.to_vec());
    }
    match xattrs.keys().find(|name| name.is_empty() || name.contains(&0)) {
        Some(name) => Err(format!("extended attribute with the name `{}`", name.escape_ascii())),
        None => Ok(Collected { xattrs, permissions, warnings }),
    }
}

/// Takes back the two escapes that GNU tar makes. Other percent signs stand for themselves: star makes no escapes.
fn decode_schily_name(name: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, tail) = match tail {
            [b'2', b'5', tail @ ..] if first == b'%' => (b'%', tail),
            [b'3', b'D', tail @ ..] if first == b'%' => (b'=', tail),
            _ => (first, tail),
        };
        decoded.push(byte);
        rest = tail;
    }
    decoded
}

fn decode_url(name: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let mut decoded = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(&byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => u8::try_from(digit(bytes.next()?)? << 4 | digit(bytes.next()?)?).ok()?,
            _ => byte,
        });
    }
    Some(decoded)
}

/// Decodes base64; the padding may be missing.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let padding = text.iter().rev().take_while(|&&byte| byte == b'=').count();
    let digits = &text[..text.len() - padding];
    if padding > 2 || digits.len() % 4 == 1 {
        return None;
    }
    let mut decoded = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.chunks(4) {
        let mut bits = 0_u32;
        for &digit in group {
            bits = bits << 6 | base64_digit(digit)?;
        }
        let bytes = (bits << (6 * (4 - group.len()))).to_be_bytes();
        decoded.extend_from_slice(&bytes[1..group.len()]);
    }
    Some(decoded)
}

fn base64_digit(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
}

#[cfg(test)]
mod tests {
    use super::super::pax::Records;
    use super::*;

    #[test]
    fn base64_with_and_without_padding() {
        for (text, expected) in [
            (&b""[..], Some(&b""[..])),
            (b"Zg", Some(b"f")),
            (b"Zg==", Some(b"f")),
            (b"Zm8", Some(b"fo")),
            (b"Zm8=", Some(b"fo")),
            (b"Zm9v", Some(b"foo")),
            (b"Zm9vYmE", Some(b"fooba")),
            (b"+/8A", Some(b"\xfb\xff\0")),
            (b"Z", None),
            (b"Zm9vY", None),
            (b"Zm 9v", None),
            (b"Z===", None),
            (b"=Zg=", None),
        ] {
            assert_eq!(decode_base64(text).as_deref(), expected, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn names_are_decoded_as_their_writers_encode_them() {
        assert_eq!(decode_schily_name(b"user.a%3Db%25%41%2"), b"user.a=b%%41%2");
        assert_eq!(decode_url(b"user.a%3db%25%FF").as_deref(), Some(&b"user.a=b%\xff"[..]));
        for name in [&b"%"[..], b"%1", b"%zz", b"a%2"] {
            assert_eq!(decode_url(name), None);
        }
    }

    fn attributes(records: &[(&str, &[u8])]) -> Result<Collected, String> {
        let mut local = Records::default();
        for (key, value) in records {
            let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
            let digits = (1..10).find(|digits| (body.len() + digits).to_string().len() == *digits).unwrap();
            local.add(&[(body.len() + digits).to_string().as_bytes(), &body].concat()).unwrap();
        }
        let records = Attributes { global: &Records::default(), local: &local };
        collect(&records, Owners { user: (b"", 0), group: (b"", 0) })
    }

    #[test]
    fn the_plain_form_wins_and_may_be_empty() {
        let Collected { xattrs, warnings, .. } = attributes(&[
            ("SCHILY.xattr.user.a", b"plain\0\n"),
            ("LIBARCHIVE.xattr.user.a", b"Zm9v"),
            ("LIBARCHIVE.xattr.user.b", b"Zm9v"),
            ("SCHILY.xattr.user.empty", b""),
            ("RHT.security.selinux", b"label"),
        ])
        .unwrap();
        let expected: [(&[u8], &[u8]); 4] =
            [(b"security.selinux", b"label"), (b"user.a", b"plain\0\n"), (b"user.b", b"foo"), (b"user.empty", b"")];
        assert!(xattrs.iter().map(|(name, value)| (&name[..], &value[..])).eq(expected), "{xattrs:?}");
        assert_eq!(warnings, [""; 0]);
    }

    #[test]
    fn what_cannot_be_converted_is_a_warning() {
        let Collected { xattrs, warnings, .. } = attributes(&[
            ("SCHILY.acl.access", b"user::rw-,user:joe:r--,group::r--,mask::r--,other::---"),
            ("SCHILY.acl.ace", b"owner@:rw::allow"),
        ])
        .unwrap();
        assert!(xattrs.is_empty());
        assert_eq!(
            warnings,
            [
                "left out the access control list system.posix_acl_access: the number of `joe` is unknown",
                "left out an NFSv4 access control list"
            ]
        );
    }

    #[test]
    fn damaged_records_are_errors() {
        assert!(attributes(&[("LIBARCHIVE.xattr.user.a", b"!")]).is_err());
        assert!(attributes(&[("LIBARCHIVE.xattr.%", b"Zg")]).is_err());
        assert!(attributes(&[("SCHILY.xattr.", b"value")]).is_err());
        assert!(attributes(&[("LIBARCHIVE.xattr.a%00", b"Zg")]).is_err());
    }
}
