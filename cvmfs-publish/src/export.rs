//! A subtree of a revision as a tar archive.
//!
//! The archive is in the PAX format of POSIX.1-2001: names, times to the nanosecond, large numbers and extended
//! attributes (`SCHILY.xattr.`) are kept as they are. Names of one file become hard links. Same revision, same bytes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, Read, Write};
use std::mem;

use cvmfs_core::catalog::Row;
use cvmfs_core::entry::{EntryKind, Mtime, Special, device_parts};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::object::read_error;
use cvmfs_core::path::{RepoPath, display};
use cvmfs_core::progress::Cancel;
use cvmfs_core::tree::{Contents, Tree};
use serde::Serialize;

/// Largest owner in a plain header: seven octal digits.
const PLAIN_ID_MAX: u64 = 0o7_777_777;
/// Largest size and time in a plain header: eleven octal digits.
const PLAIN_NUMBER_MAX: u64 = 0o77_777_777_777;

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Exported {
    /// Entries written, hard links included.
    pub entries: u64,
    /// Those of them that are further names of a file.
    pub hard_links: u64,
    /// Plain bytes of files.
    pub bytes: u64,
    /// What could not be kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Writes what is at a path, and everything below it, with names relative to that path.
///
/// Sockets have no place in tar archives and are left out with a warning.
///
/// # Errors
/// `Unsupported` for external files, whose content is not in the repository. Content is verified as it is written: an
/// archive that was begun when an error came breaks off in the middle of an entry, for all who read it to see.
pub fn export(tree: &mut Tree, top: &RepoPath, out: &mut dyn Write, cancel: &Cancel) -> Result<Exported> {
    let contents = tree.contents();
    let mut archive = Archive {
        top: top.clone(),
        builder: tar::Builder::new(out),
        first_names: Vec::new(),
        exported: Exported::default(),
    };
    let walked = tree.walk_into(top, &mut |path, row| {
        cancel.check()?;
        // The reference's directory of snapshots is no part of the tree.
        let is_shown = !row.entry.hidden || path == top;
        if is_shown {
            archive.append(&contents, path, row)?;
        }
        Ok(is_shown)
    });
    if let Err(error) = walked {
        // Dropped, it would write the end of an archive.
        mem::forget(archive.builder);
        return Err(error);
    }
    archive.builder.into_inner().and_then(Write::flush).map_err(not_written)?;
    Ok(archive.exported)
}

/// An archive that is being written.
struct Archive<'a> {
    top: RepoPath,
    builder: tar::Builder<&'a mut dyn Write>,
    /// For the directories on the way down: the first names of files with several, by group.
    first_names: Vec<(RepoPath, BTreeMap<u32, Vec<u8>>)>,
    exported: Exported,
}

impl Archive<'_> {
    fn append(&mut self, contents: &Contents, path: &RepoPath, row: &Row) -> Result<()> {
        let entry = &row.entry;
        let name = self.name(path, entry.is_directory());
        let mut member = Member::new(entry);
        member.set_path(&name);
        for (key, value) in entry.xattrs.iter() {
            match std::str::from_utf8(key) {
                // An equals sign would end the key: as GNU tar writes it.
                Ok(key) => {
                    let key = key.replace('%', "%25").replace('=', "%3D");
                    member.records.push((format!("SCHILY.xattr.{key}"), value.to_vec()));
                }
                Err(_) => self.warn(path, &format!("without attribute {}, whose name is not UTF-8", display(key))),
            }
        }
        if let Some(first) = self.first_name(path, row, &name) {
            self.exported.hard_links += 1;
            member.set_link(tar::EntryType::Link, &first);
            return self.write(path, member, &mut io::empty());
        }
        match &entry.kind {
            EntryKind::Directory(_) => member.header.set_entry_type(tar::EntryType::Directory),
            EntryKind::Symlink { target } => member.set_link(tar::EntryType::Symlink, target),
            EntryKind::Special(special) => {
                if let Err(reason) = member.set_special(*special) {
                    self.warn(path, reason);
                    return Ok(());
                }
            }
            EntryKind::File(file) => {
                member.header.set_entry_type(tar::EntryType::Regular);
                member.set_number("size", file.size, PLAIN_NUMBER_MAX, tar::Header::set_size);
                self.exported.bytes += file.size;
                let mut content = Verified { content: contents.open(path, file)?, held: None };
                return self.write(path, member, &mut content);
            }
        }
        self.write(path, member, &mut io::empty())
    }

    /// The name in the archive.
    fn name(&self, path: &RepoPath, is_directory: bool) -> Vec<u8> {
        let names: Vec<&[u8]> = path.components().skip(self.top.components().count()).collect();
        let mut name = match names.is_empty() {
            false => names.join(&b'/'),
            true if is_directory => b".".to_vec(),
            true => path.name().to_vec(),
        };
        if is_directory {
            name.push(b'/');
        }
        name
    }

    /// The archive's name of a file that is in the archive by another name of the same directory.
    fn first_name(&mut self, path: &RepoPath, row: &Row, name: &[u8]) -> Option<Vec<u8>> {
        if row.hardlinks.group == 0 || row.entry.is_directory() {
            return None;
        }
        let directory = path.parent().filter(|_| *path != self.top)?;
        self.first_names.retain(|(open, _)| directory.starts_with(open));
        if self.first_names.last().is_none_or(|(open, _)| *open != directory) {
            self.first_names.push((directory, BTreeMap::new()));
        }
        let (_, groups) = self.first_names.last_mut()?;
        match groups.entry(row.hardlinks.group) {
            Entry::Occupied(first) => Some(first.get().clone()),
            Entry::Vacant(place) => {
                place.insert(name.to_vec());
                None
            }
        }
    }

    fn warn(&mut self, path: &RepoPath, what: &str) {
        self.exported.warnings.push(format!("{path}: {what}"));
    }

    fn write(&mut self, path: &RepoPath, mut member: Member, content: &mut dyn Read) -> Result<()> {
        self.exported.entries += 1;
        member.header.set_cksum();
        let records = member.records.iter().map(|(key, value)| (&key[..], &value[..]));
        self.builder.append_pax_extensions(records).map_err(not_written)?;
        // What a failed check of content says is inside of the error.
        let of_content = |error: &io::Error| error.kind() == io::ErrorKind::InvalidData;
        self.builder
            .append(&member.header, content)
            .map_err(|error| if of_content(&error) { read_error(&path.to_string(), error) } else { not_written(error) })
    }
}

/// Content whose last byte comes when all of it is verified: what is wrong never makes a whole entry.
struct Verified<R> {
    content: R,
    held: Option<u8>,
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let size = self.content.read(buffer)?;
        match (size, self.held) {
            (0, None) => Ok(0),
            (0, Some(last)) => {
                self.held = None;
                buffer[0] = last;
                Ok(1)
            }
            (1, None) => {
                self.held = Some(buffer[0]);
                self.read(buffer)
            }
            (_, None) => {
                self.held = Some(buffer[size - 1]);
                Ok(size - 1)
            }
            (_, Some(first)) => {
                self.held = Some(buffer[size - 1]);
                buffer.copy_within(..size - 1, 1);
                buffer[0] = first;
                Ok(size)
            }
        }
    }
}

/// The header of an entry, with the records for what does not fit into it.
struct Member {
    header: tar::Header,
    records: Vec<(String, Vec<u8>)>,
}

impl Member {
    fn new(entry: &cvmfs_core::entry::Entry) -> Self {
        let mut member = Self { header: tar::Header::new_ustar(), records: Vec::new() };
        member.header.set_mode(entry.permissions);
        member.header.set_size(0);
        member.set_number("uid", entry.uid.into(), PLAIN_ID_MAX, tar::Header::set_uid);
        member.set_number("gid", entry.gid.into(), PLAIN_ID_MAX, tar::Header::set_gid);
        let Mtime { seconds, nanoseconds } = entry.mtime;
        let plain = u64::try_from(seconds).ok().filter(|seconds| *seconds <= PLAIN_NUMBER_MAX);
        member.header.set_mtime(plain.unwrap_or(0));
        if plain.is_none() || nanoseconds.is_some_and(|nanoseconds| nanoseconds > 0) {
            member.records.push(("mtime".into(), decimal(seconds, nanoseconds.unwrap_or(0)).into_bytes()));
        }
        member
    }

    fn set_path(&mut self, name: &[u8]) {
        let place = &mut self.header.as_old_mut().name;
        if !fill(place, name) {
            self.records.push(("path".into(), name.to_vec()));
        }
    }

    fn set_link(&mut self, kind: tar::EntryType, target: &[u8]) {
        self.header.set_entry_type(kind);
        let place = &mut self.header.as_old_mut().linkname;
        if !fill(place, target) {
            self.records.push(("linkpath".into(), target.to_vec()));
        }
    }

    fn set_number(&mut self, key: &str, number: u64, largest: u64, set: impl FnOnce(&mut tar::Header, u64)) {
        set(&mut self.header, number.min(largest));
        if number > largest {
            self.records.push((key.into(), number.to_string().into_bytes()));
        }
    }

    fn set_special(&mut self, special: Special) -> Result<(), &'static str> {
        let (kind, device) = match special {
            Special::Fifo => (tar::EntryType::Fifo, None),
            Special::CharacterDevice(device) => (tar::EntryType::Char, Some(device)),
            Special::BlockDevice(device) => (tar::EntryType::Block, Some(device)),
            Special::Socket => return Err("left out, because archives cannot have sockets"),
        };
        self.header.set_entry_type(kind);
        let Some((major, minor)) = device.map(device_parts) else { return Ok(()) };
        if u64::from(major.max(minor)) > PLAIN_ID_MAX {
            return Err("left out, because archives cannot have a device with that number");
        }
        let set = self.header.set_device_major(major).and_then(|()| self.header.set_device_minor(minor));
        set.map_err(|_| "left out, because archives cannot have devices")
    }
}

/// Copies a name into its place in a header, as much of it as fits; `false` if that is not all.
fn fill(place: &mut [u8], name: &[u8]) -> bool {
    let size = name.len().min(place.len());
    place[..size].copy_from_slice(&name[..size]);
    size == name.len()
}

/// Seconds with their fraction, as a decimal number.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    // A time before 1970 counts back from the next second: -1 s and 0.75 s make -0.25 s.
    let (sign, seconds, nanoseconds) = match (seconds < 0, nanoseconds) {
        (false, _) => ("", seconds.unsigned_abs(), nanoseconds),
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        (true, _) => ("-", seconds.unsigned_abs() - 1, 1_000_000_000 - nanoseconds),
    };
    if nanoseconds == 0 { format!("{sign}{seconds}") } else { format!("{sign}{seconds}.{nanoseconds:09}") }
}

fn not_written(error: io::Error) -> Error {
    Error::io(cvmfs_core::cli::OUTPUT, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Wrong;
    impl Read for Wrong {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("wrong"))
        }
    }

    #[test]
    fn all_of_the_content_passes_and_nothing_whole_that_is_wrong() {
        let bytes: Vec<u8> = (0..=255).collect();
        for length in [0, 1, 2, 255] {
            for step in [1, 2, 7, 300] {
                let mut content = Verified { content: &bytes[..length], held: None };
                let (mut read, mut buffer) = (Vec::new(), vec![0; step]);
                while let size @ 1.. = content.read(&mut buffer).unwrap() {
                    read.extend_from_slice(&buffer[..size]);
                }
                assert_eq!(read, bytes[..length], "{length} by {step}");
            }
        }
        let mut read = Vec::new();
        let mut content = Verified { content: b"abc".chain(Wrong), held: None };
        assert!(content.read_to_end(&mut read).is_err());
        assert_eq!(read, b"ab");
    }

    #[test]
    fn times_are_written_as_decimal_numbers() {
        for (seconds, nanoseconds, expected) in [
            (0, 0, "0"),
            (1_730_000_800, 5, "1730000800.000000005"),
            (-1, 0, "-1"),
            (-1, 750_000_000, "-0.250000000"),
            (-2, 1, "-1.999999999"),
        ] {
            assert_eq!(decimal(seconds, nanoseconds), expected);
        }
    }
}
