//! What overlay file systems write into their upper directory beside the data.
//!
//! | sign | by | means |
//! | --- | --- | --- |
//! | character device 0/0 | kernel, fuse-overlayfs | a whiteout: the name is removed |
//! | attribute `overlay.whiteout` on an empty file | kernel since 6.7 | the same |
//! | file `.wh.<name>`, symbolic link to `(overlay-whiteout)` | fuse-overlayfs, aufs, old kernels | the same |
//! | attribute `overlay.opaque` or `fuseoverlayfs.opaque` = `y`; file `.wh..wh..opq` | all | the directory below is hidden |
//! | attribute `overlay.metacopy` | kernel | the data is still that of the file below |
//! | attribute `overlay.redirect` | kernel | what is below has another path |
//! | attribute `overlay.overlay.*` | kernel since 6.7 | an attribute `overlay.*` of the user |
//! | attribute `override_stat` | fuse-overlayfs, containers/storage | owner, permissions, and device numbers |
//!
//! Kernel attributes begin with `trusted.`, or with `user.` if the overlay was mounted with `userxattr`.
//!
//! Source: Linux `Documentation/filesystems/overlayfs.rst`, `fs/overlayfs/overlayfs.h`; fuse-overlayfs `main.c`,
//! `utils.c`; `cvmfs/sync_union_overlayfs.cc`.

use cvmfs_core::entry::{Special, device_number};

use super::listing::{Found, Kind};

/// Name prefix of whiteout files.
const WHITEOUT: &[u8] = b".wh.";
/// Name prefix of aufs' own files, the marker of opaque directories among them.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// Name of the file that makes its directory opaque.
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// Target of symbolic links that are whiteouts.
const WHITEOUT_TARGET: &[u8] = b"(overlay-whiteout)";

/// Prefixes of attributes of the kernel's overlay.
const KERNEL: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// Prefixes of attributes of fuse-overlayfs.
const FUSE: [&[u8]; 3] = [b"user.fuseoverlayfs.", b"trusted.fuseoverlayfs.", b"security.fuseoverlayfs."];
/// Prefix of attributes that stand for others which an unprivileged user cannot set.
const OVERRIDE: &[u8] = b"user.containers.override_";

/// An entry of an upper directory.
#[derive(Debug)]
pub(super) enum Upper {
    /// This name is removed.
    Whiteout(Vec<u8>),
    /// The directory that this is in is opaque.
    OpaqueMarker,
    /// The overlay's own business.
    Ignored,
    /// An entry, and what the overlay says about it.
    Entry(Found, Signs),
}

/// What the overlay says about an entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Signs {
    /// What is below the directory is hidden.
    pub(super) opaque: bool,
    /// The file has no data of its own.
    pub(super) metacopy: bool,
    /// The path of what is below: absolute from the top, or a name in the same directory.
    pub(super) redirect: Option<Vec<u8>>,
}

/// Tells what an entry is; an overlay's own attributes are taken out.
///
/// # Errors
/// The reason why it cannot be understood.
pub(super) fn interpret(mut found: Found) -> Result<Upper, String> {
    if found.name == OPAQUE_MARKER {
        return Ok(Upper::OpaqueMarker);
    }
    if found.name.starts_with(WHITEOUT_META) {
        return Ok(Upper::Ignored);
    }
    if let Some(name) = found.name.strip_prefix(WHITEOUT) {
        return match name {
            b"" | b"." | b".." => Err("a whiteout without name".into()),
            name => Ok(Upper::Whiteout(name.to_vec())),
        };
    }
    let is_whiteout = match found.status.kind {
        Kind::Special(Special::CharacterDevice(0)) => true,
        Kind::Symlink => found.target == WHITEOUT_TARGET,
        _ => false,
    };
    if is_whiteout {
        return Ok(Upper::Whiteout(found.name));
    }
    let mut signs = Signs::default();
    let mut kept: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (key, value) in std::mem::take(&mut found.xattrs) {
        let kernel = KERNEL.iter().find_map(|prefix| Some((prefix, key.strip_prefix(*prefix)?)));
        let fuse = FUSE.iter().find_map(|prefix| key.strip_prefix(*prefix));
        match (kernel, fuse, key.strip_prefix(OVERRIDE)) {
            (Some((_, b"opaque")), ..) => signs.opaque |= value == b"y",
            (Some((_, b"metacopy")), ..) => signs.metacopy = true,
            (Some((_, b"redirect")), ..) => signs.redirect = Some(value),
            (Some((_, b"whiteout")), ..) if found.status.kind == Kind::File && found.status.size == 0 => {
                return Ok(Upper::Whiteout(found.name));
            }
            (Some((prefix, name)), ..) => {
                kept.extend(name.strip_prefix(b"overlay.").map(|name| ([prefix, name].concat(), value)));
            }
            (_, Some(b"opaque"), _) => signs.opaque |= value == b"y",
            (_, Some(b"override_stat"), _) | (.., Some(b"stat")) => override_status(&mut found, &value)?,
            (_, Some(_), _) => {}
            (.., Some(name)) => kept.push((name.to_vec(), value)),
            (None, None, None) => kept.push((key, value)),
        }
    }
    kept.sort();
    found.xattrs = kept;
    Ok(Upper::Entry(found, signs))
}

/// Takes owner, permissions and type from `uid:gid:mode` or `uid:gid:mode:type`.
fn override_status(found: &mut Found, value: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(value);
    let text = text.trim_end_matches('\0');
    let malformed = || format!("the attribute override_stat has the value {text:?}");
    let mut fields = text.split(':');
    let mut field = || fields.next().ok_or_else(malformed);
    let id = |text: &str| text.parse::<u32>().map_err(|_| malformed());
    let (uid, gid) = (id(field()?)?, id(field()?)?);
    let mode = u32::from_str_radix(field()?, 8).map_err(|_| malformed())?;
    let status = &mut found.status;
    (status.uid, status.gid, status.permissions) = (uid, gid, mode & 0o7777);
    let Some(kind) = fields.next() else { return Ok(()) };
    let device = |numbers: &str| {
        let (major, minor) = numbers.split_once('-').ok_or_else(malformed)?;
        Ok::<_, String>(device_number(id(major)?, id(minor)?))
    };
    let kind = match kind.split_once('-') {
        Some(("block", numbers)) => Kind::Special(Special::BlockDevice(device(numbers)?)),
        Some(("char", numbers)) => Kind::Special(Special::CharacterDevice(device(numbers)?)),
        None if kind == "pipe" => Kind::Special(Special::Fifo),
        None if kind == "socket" => Kind::Special(Special::Socket),
        None if kind == "file" && status.kind == Kind::File => Kind::File,
        None if kind == "dir" && status.kind == Kind::Directory => Kind::Directory,
        None if kind == "symlink" && status.kind == Kind::Symlink => Kind::Symlink,
        _ => return Err(malformed()),
    };
    if matches!(kind, Kind::Special(_)) && status.kind != Kind::File {
        return Err(malformed());
    }
    status.kind = kind;
    Ok(())
}

#[cfg(test)]
mod tests {
    use cvmfs_core::entry::Mtime;

    use super::super::listing::Status;
    use super::*;

    fn found(name: &str, kind: Kind, xattrs: &[(&str, &str)]) -> Found {
        let status = Status {
            kind,
            permissions: 0o600,
            uid: 1,
            gid: 2,
            size: 0,
            mtime: Mtime::seconds(0),
            changed: (0, 0),
            links: 1,
            inode: (0, 0),
        };
        let xattrs = xattrs.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec())).collect();
        let target = if kind == Kind::Symlink { b"(overlay-whiteout)".to_vec() } else { Vec::new() };
        Found { name: name.into(), status, xattrs, target }
    }

    #[test]
    fn all_kinds_of_whiteouts() {
        for (entry, expected) in [
            (found("a", Kind::Special(Special::CharacterDevice(0)), &[]), "a"),
            (found(".wh.a", Kind::File, &[]), "a"),
            (found("a", Kind::Symlink, &[]), "a"),
            (found("a", Kind::File, &[("trusted.overlay.whiteout", "")]), "a"),
            (found("a", Kind::File, &[("user.overlay.whiteout", "y")]), "a"),
        ] {
            let Ok(Upper::Whiteout(name)) = interpret(entry.clone()) else { panic!("{entry:?}") };
            assert_eq!(name, expected.as_bytes());
        }
        assert!(matches!(interpret(found(".wh..wh..opq", Kind::File, &[])), Ok(Upper::OpaqueMarker)));
        assert!(matches!(interpret(found(".wh..wh.plnk", Kind::Directory, &[])), Ok(Upper::Ignored)));
        assert!(interpret(found(".wh.", Kind::File, &[])).is_err());
        let zero = found("null", Kind::Special(Special::CharacterDevice(0x103)), &[]);
        assert!(matches!(interpret(zero), Ok(Upper::Entry(..))));
    }

    #[test]
    fn private_attributes_are_taken_out_and_understood() {
        let opaque = Signs { opaque: true, ..Signs::default() };
        for (attributes, signs, kept) in [
            (&[("trusted.overlay.opaque", "y")][..], opaque.clone(), &[][..]),
            (&[("user.overlay.opaque", "y")], opaque.clone(), &[]),
            (&[("user.fuseoverlayfs.opaque", "y"), ("user.a", "1")], opaque, &[("user.a", "1")]),
            // Says that there are whiteouts in it.
            (&[("trusted.overlay.opaque", "x")], Signs::default(), &[]),
            (&[("trusted.overlay.origin", "?"), ("trusted.overlay.impure", "y")], Signs::default(), &[]),
            (&[("trusted.overlay.nlink", "U+1"), ("user.fuseoverlayfs.origin", "x")], Signs::default(), &[]),
            (&[("trusted.overlay.overlay.opaque", "y")], Signs::default(), &[("trusted.overlay.opaque", "y")]),
            (
                &[("user.containers.override_security.capability", "c")],
                Signs::default(),
                &[("security.capability", "c")],
            ),
            (
                &[("trusted.overlay.metacopy", ""), ("trusted.overlay.redirect", "/x/y")],
                Signs { metacopy: true, redirect: Some(b"/x/y".to_vec()), opaque: false },
                &[],
            ),
        ] {
            let kind = if signs.metacopy { Kind::File } else { Kind::Directory };
            let Ok(Upper::Entry(entry, found_signs)) = interpret(found("d", kind, attributes)) else {
                panic!("{attributes:?}")
            };
            assert_eq!(found_signs, signs, "{attributes:?}");
            assert_eq!(entry.xattrs, found("d", kind, kept).xattrs, "{attributes:?}");
        }
    }

    #[test]
    fn overridden_owners_permissions_and_types() {
        let char_device = Kind::Special(Special::CharacterDevice(0x103));
        for (value, before, expected) in [
            ("10:20:4755", Kind::File, Some((10, 20, 0o4755, Kind::File))),
            ("0:0:0755:dir", Kind::Directory, Some((0, 0, 0o755, Kind::Directory))),
            ("0:5:644:char-1-3", Kind::File, Some((0, 5, 0o644, char_device))),
            ("0:5:644:pipe", Kind::File, Some((0, 5, 0o644, Kind::Special(Special::Fifo)))),
            ("0:5:644:symlink", Kind::File, None),
            ("0:5:644:char-1", Kind::File, None),
            ("0:5", Kind::File, None),
            ("a:5:644", Kind::File, None),
            ("0:5:999", Kind::File, None),
        ] {
            for key in ["user.containers.override_stat", "user.fuseoverlayfs.override_stat"] {
                let taken = match interpret(found("f", before, &[(key, value)])) {
                    Ok(Upper::Entry(Found { status, xattrs, .. }, _)) => {
                        assert!(xattrs.is_empty());
                        Some((status.uid, status.gid, status.permissions, status.kind))
                    }
                    _ => None,
                };
                assert_eq!(taken, expected, "{value}");
            }
        }
    }
}
