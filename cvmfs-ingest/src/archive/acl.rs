//! Access control lists: from the text in archives to the attribute that Linux keeps.
//!
//! Text: entries `tag:qualifier:permissions` with commas or line breaks between, as `user:joe:rw-`. star and libarchive
//! add the number as a fourth field (`user:joe:rw-:1000`); GNU tar writes the number in place of names that its system
//! does not know, else only the name. Since names mean nothing elsewhere, those are resolved only if they are the
//! names of the entry's own owner and group, whose numbers the archive has.
//!
//! Binary: version 2 as `u32`, then for each entry tag `u16`, permissions `u16`, id `u32`, all little endian, ascending
//! by tag and id.
//!
//! Source: `acl_to_text(3)`; Linux `include/uapi/linux/posix_acl_xattr.h`; `posix_acl_valid` in `fs/posix_acl.c`.

const VERSION: u32 = 2;
/// The id of entries that have no qualifier.
const NO_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The list of one file, or the list that a directory's new files inherit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AclKind {
    Access,
    Default,
}

/// Names whose numbers are known; empty where there is none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owners<'a> {
    pub(super) user: (&'a [u8], u64),
    pub(super) group: (&'a [u8], u64),
}

/// An encoded list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Acl {
    /// The permission bits that go with the list: those of the group are the mask, if there is one.
    pub(super) permissions: u16,
    /// The value of the attribute; `None` if the list says no more than the permission bits.
    pub(super) binary: Option<Vec<u8>>,
}

/// Encodes a list; `None` if it is empty.
///
/// # Errors
/// The reason, if it names users or groups without their numbers, or is not a complete list.
pub(super) fn encode(text: &[u8], kind: AclKind, owners: Owners<'_>) -> Result<Option<Acl>, String> {
    let mut entries = Vec::new();
    for line in text.split(|byte| matches!(byte, b',' | b'\n')) {
        // Comments tell effective permissions.
        let line = line.split(|&byte| byte == b'#').next().unwrap_or_default().trim_ascii();
        if !line.is_empty() {
            entries.push(parse_entry(line, owners)?);
        }
    }
    if entries.is_empty() {
        return Ok(None);
    }
    entries.sort_by_key(|entry| (entry.tag, entry.id));
    let permissions = permissions(&entries)?;
    let says_more = kind == AclKind::Default || entries.len() > 3;
    let binary = says_more.then(|| {
        let mut binary = VERSION.to_le_bytes().to_vec();
        for entry in entries {
            binary.extend(entry.tag.to_le_bytes());
            binary.extend(entry.permissions.to_le_bytes());
            binary.extend(entry.id.to_le_bytes());
        }
        binary
    });
    Ok(Some(Acl { permissions, binary }))
}

struct AclEntry {
    tag: u16,
    permissions: u16,
    id: u32,
}

fn parse_entry(line: &[u8], owners: Owners<'_>) -> Result<AclEntry, String> {
    let malformed = || format!("entry `{}` is malformed", line.escape_ascii());
    let mut fields = line.split(|&byte| byte == b':').map(<[u8]>::trim_ascii);
    let mut field = || fields.next().ok_or_else(malformed);
    let name = field()?;
    let qualifier = field()?;
    let (tag, qualifier, permissions) = match (name, qualifier) {
        (b"user" | b"u", b"") => (USER_OBJ, None, field()?),
        (b"user" | b"u", _) => (USER, Some(qualifier), field()?),
        (b"group" | b"g", b"") => (GROUP_OBJ, None, field()?),
        (b"group" | b"g", _) => (GROUP, Some(qualifier), field()?),
        (b"mask" | b"m", b"") => (MASK, None, field()?),
        (b"other" | b"o", b"") => (OTHER, None, field()?),
        // Solaris leaves out the qualifier that these never have.
        (b"mask" | b"m", permissions) => (MASK, None, permissions),
        (b"other" | b"o", permissions) => (OTHER, None, permissions),
        _ => return Err(malformed()),
    };
    let id = match (qualifier, fields.next()) {
        (None, _) => NO_ID,
        (Some(_), Some(number)) => parse_id(number).ok_or_else(malformed)?,
        (Some(name), None) => {
            let (known, number) = if tag == USER { owners.user } else { owners.group };
            let own = u32::try_from(number).ok().filter(|_| name == known);
            let id = parse_id(name).or(own);
            id.ok_or_else(|| format!("the number of `{}` is unknown", name.escape_ascii()))?
        }
    };
    let permissions = parse_permissions(permissions).ok_or_else(malformed)?;
    Ok(AclEntry { tag, permissions, id })
}

fn parse_id(digits: &[u8]) -> Option<u32> {
    let id = u32::try_from(super::pax::parse_decimal(digits)?).ok()?;
    (id != NO_ID).then_some(id)
}

fn parse_permissions(text: &[u8]) -> Option<u16> {
    text.iter().try_fold(0, |bits, letter| match letter {
        b'r' => Some(bits | 4),
        b'w' => Some(bits | 2),
        b'x' => Some(bits | 1),
        b'-' => Some(bits),
        _ => None,
    })
}

/// Returns the permission bits of a sorted list, if it is one that the kernel accepts: with one entry each for owner,
/// group and others, a mask if there is more, and nobody twice.
fn permissions(entries: &[AclEntry]) -> Result<u16, String> {
    if entries.windows(2).any(|pair| (pair[0].tag, pair[0].id) == (pair[1].tag, pair[1].id)) {
        return Err("two entries are for the same".to_owned());
    }
    let find = |tag| entries.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions);
    let (Some(owner), Some(group), Some(other)) = (find(USER_OBJ), find(GROUP_OBJ), find(OTHER)) else {
        return Err("owner, group or others are missing".to_owned());
    };
    let mask = find(MASK);
    if mask.is_none() && (find(USER).is_some() || find(GROUP).is_some()) {
        return Err("the mask is missing".to_owned());
    }
    Ok(owner << 6 | mask.unwrap_or(group) << 3 | other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `getfattr -n system.posix_acl_access` prints after `setfacl -m u:1234:rw` on a file of mode 0644.
    const BINARY: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x06\0\xd2\x04\0\0\x04\0\x04\0\xff\xff\xff\xff\
        \x10\0\x06\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";

    fn expected() -> Acl {
        Acl { permissions: 0o664, binary: Some(BINARY.to_vec()) }
    }

    const NOBODY: Owners<'_> = Owners { user: (b"", 0), group: (b"", 0) };

    #[test]
    fn encodes_what_the_writers_write() {
        for text in [
            "user::rw-,user:1234:rw-,group::r--,mask::rw-,other::r--",
            "user::rw-,user:joe:rw-:1234,group::r--,mask::rw-,other::r--",
            "user::rw-\nuser:1234:rw-\ngroup::r--\nmask::rw-\nother::r--\n",
            "u::rw,u:1234:rw,g::r,m:rw,o:r",
            "other:r--, mask:rw-, group::r--, user:1234:rw-\t#effective:rw-, user::rw-",
        ] {
            assert_eq!(encode(text.as_bytes(), AclKind::Access, NOBODY), Ok(Some(expected())), "{text}");
        }
    }

    #[test]
    fn names_of_the_owners_are_known() {
        let text = b"user::rw-,user:joe:rw-,group::r--,mask::rw-,other::r--";
        let owners = Owners { user: (b"joe", 1234), group: (b"team", 5) };
        assert_eq!(encode(text, AclKind::Access, owners), Ok(Some(expected())));
        let other_way_round = Owners { user: (b"team", 5), group: (b"joe", 1234) };
        assert!(encode(text, AclKind::Access, other_way_round).is_err());
        let too_large = Owners { user: (b"joe", 1 << 32), ..owners };
        assert!(encode(text, AclKind::Access, too_large).is_err());
    }

    #[test]
    fn a_list_without_more_than_the_mode_is_left_out() {
        let text = b"user::rw-,group::r--,other::---";
        assert_eq!(encode(text, AclKind::Access, NOBODY), Ok(Some(Acl { permissions: 0o640, binary: None })));
        assert_eq!(encode(b" \n", AclKind::Default, NOBODY), Ok(None));
        let default = encode(text, AclKind::Default, NOBODY).unwrap().unwrap();
        assert_eq!(default.binary.map(|binary| binary.len()), Some(4 + 3 * 8));
    }

    #[test]
    fn refuses_incomplete_and_unresolvable_lists() {
        for text in [
            "user::rw-,user:joe:rw-,group::r--,mask::rw-,other::r--",
            "user::rw-,user:1234:rw-,group::r--,other::r--",
            "user::rw-,group::r--",
            "user::rw-,user::r--,group::r--,other::r--",
            "user::rw-,user:1:r,user:1:w,group::r--,mask::r,other::r--",
            "user::rwz,group::r--,other::r--",
            "owner::rw-,group::r--,other::r--",
            "user::rw-,group::r--,other::r--,user:4294967295:r,mask::r",
            "user::rw-,group::r--,other::r--,user:99999999999999999999:r,mask::r",
            "user",
            "user:",
            "user::",
        ] {
            assert!(encode(text.as_bytes(), AclKind::Access, NOBODY).is_err(), "{text}");
        }
    }
}
