//! The two forms that a layer's removals have in a repository.
//!
//! | | `aufs`, as in the layer's archive | `overlay`, as the kernel wants it |
//! | --- | --- | --- |
//! | `name` is removed | file `.wh.name` | character device 0:0 called `name` |
//! | a directory hides what is below it | file `.wh..wh..opq` in it | `trusted.overlay.opaque` and `user.overlay.opaque` |

use cvmfs_core::entry::{Entry, EntryKind, Mount, Mtime, Special};
use cvmfs_core::error::Result;
use cvmfs_core::xattr::Xattrs;

use super::rows::Says;

/// What the names of whiteouts begin with.
pub const PREFIX: &[u8] = b".wh.";
/// The name of the whiteout that hides all that layers below have in its directory.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// Attributes that make a directory opaque, for root and for other users, and their value.
const OPAQUE_ATTRIBUTES: [&[u8]; 2] = [b"trusted.overlay.opaque", b"user.overlay.opaque"];
const YES: &[u8] = b"y";
/// What attributes begin with that overlay mounts read, and nobody else.
const OVERLAY_ATTRIBUTES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// What a layer's directory is when the layer says nothing about it.
pub fn unnamed_directory() -> Entry {
    Entry {
        kind: EntryKind::Directory(Mount::Plain),
        permissions: 0o755,
        uid: 0,
        gid: 0,
        mtime: Mtime::seconds(0),
        xattrs: Xattrs::new(),
        hidden: false,
    }
}

/// The name of the file that removes `name`.
pub fn name_of(name: &[u8]) -> Vec<u8> {
    [PREFIX, name].concat()
}

/// The device that removes what is called like it.
pub fn device() -> Entry {
    Entry { kind: EntryKind::Special(Special::CharacterDevice(0)), permissions: 0, ..unnamed_directory() }
}

/// Makes a directory opaque.
pub fn make_opaque(directory: &mut Entry) -> Result<()> {
    OPAQUE_ATTRIBUTES.into_iter().try_for_each(|name| directory.xattrs.set(name, YES))
}

/// Reads an entry of an unpacked layer in either form: the name that it is about, what the layer says of it, and whether
/// it hides what is below. Names of one file share `group`. `None` for entries that say something of their directory.
pub fn decode(name: Vec<u8>, entry: Entry, group: Option<i64>) -> Option<(Vec<u8>, Says, bool)> {
    if let Some(rest) = name.strip_prefix(PREFIX) {
        return (!rest.starts_with(PREFIX)).then(|| (rest.to_vec(), Says::Gone, false));
    }
    let (says, clears) = decode_overlay(entry, group);
    Some((name, says, clears))
}

/// Reads an entry as the kernel does when it is part of an overlay mount; archives may have such entries as well.
/// Attributes that mean something for such mounts only are left out.
pub fn decode_overlay(mut entry: Entry, group: Option<i64>) -> (Says, bool) {
    if entry.kind == EntryKind::Special(Special::CharacterDevice(0)) {
        return (Says::Gone, false);
    }
    let is_overlay = |name: &[u8]| OVERLAY_ATTRIBUTES.iter().any(|prefix| name.starts_with(prefix));
    let is_opaque = OPAQUE_ATTRIBUTES.iter().any(|name| entry.xattrs.get(name) == Some(YES));
    if entry.xattrs.iter().any(|(name, _)| is_overlay(name)) {
        (entry.xattrs, _) = Xattrs::collect(entry.xattrs.iter().filter(|(name, _)| !is_overlay(name)));
    }
    let clears = is_opaque && entry.is_directory();
    (Says::Put(entry, group), clears)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(attributes: &[&[u8]]) -> Entry {
        let mut entry = unnamed_directory();
        for name in attributes {
            entry.xattrs.set(name, YES).unwrap();
        }
        entry
    }

    #[test]
    fn removals_in_both_forms() {
        let gone = |name: &[u8], entry| match decode(name.to_vec(), entry, None) {
            Some((name, Says::Gone, false)) => Some(String::from_utf8(name).unwrap()),
            _ => None,
        };
        let file = || Entry { kind: EntryKind::Symlink { target: b"x".to_vec() }, ..unnamed_directory() };
        assert_eq!(gone(b".wh.a", file()).unwrap(), "a");
        assert_eq!(gone(b"a", device()).unwrap(), "a");
        assert_eq!(gone(b"a", file()), None);
        // What AUFS keeps for itself removes nothing, and is no entry.
        for name in [OPAQUE, b".wh..wh.plnk", b".wh..wh.aufs"] {
            assert_eq!(decode(name.to_vec(), file(), None), None);
        }
        let real = Entry { kind: EntryKind::Special(Special::CharacterDevice(0x103)), ..device() };
        assert_eq!(gone(b"null", real), None);
    }

    #[test]
    fn opaque_directories_show_no_attributes_of_mounts() {
        for (attributes, opaque) in [
            (&[&b"trusted.overlay.opaque"[..]][..], true),
            (&[b"user.overlay.opaque"], true),
            (&[b"user.overlay.origin"], false),
            (&[], false),
        ] {
            let entry = with(&[attributes, &[b"user.mine"]].concat());
            assert_eq!(decode_overlay(entry, Some(3)), (Says::Put(with(&[b"user.mine"]), Some(3)), opaque));
        }
        let mut made = unnamed_directory();
        make_opaque(&mut made).unwrap();
        assert_eq!(made, with(&[b"trusted.overlay.opaque", b"user.overlay.opaque"]));
        // A file cannot hide what is below it otherwise than by being there.
        let file = Entry { kind: EntryKind::Symlink { target: b"x".to_vec() }, ..with(&[b"user.overlay.opaque"]) };
        assert!(!decode_overlay(file, None).1);
    }
}
