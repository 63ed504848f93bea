//! Files of a directory, or of a tar archive, by name.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use cvmfs_core::error::{Error, IoContext as _, Result};

/// How many links one may lead to another.
const LINKS_MAX: usize = 16;
/// The most members that are noted; far more than any image has layers.
const MEMBERS_MAX: usize = 1 << 20;
/// Bytes that tell whether a file is compressed.
const MAGIC_SIZE: usize = 6;

/// Where files are read from. Names are relative, with single slashes.
#[derive(Debug)]
pub(super) enum Files {
    /// A directory.
    Directory(PathBuf),
    /// A tar archive.
    Archive(Archive),
}

/// A tar archive whose members are known.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    members: HashMap<PathBuf, Member>,
}

/// What a name of an archive stands for.
#[derive(Debug, Clone)]
enum Member {
    /// Bytes of the archive.
    File { offset: u64, size: u64 },
    /// Another name.
    Link(PathBuf),
}

impl Files {
    /// Takes a directory.
    pub(super) fn directory(path: &Path) -> Result<Self> {
        if !path.metadata().at(path)?.is_dir() {
            return Err(Error::invalid(path.display().to_string(), "not a directory"));
        }
        Ok(Self::Directory(path.to_owned()))
    }

    /// Opens an archive, and notes where its members are. Content is not read.
    ///
    /// # Errors
    /// `InvalidInput` if it is compressed: members are read in place. `Malformed` if it is damaged.
    pub(super) fn archive(path: &Path) -> Result<Self> {
        let file = File::open(path).at(path)?;
        let what = || path.display().to_string();
        let mut start = [0; MAGIC_SIZE];
        let count = file.read_at(&mut start, 0).at(path)?;
        if matches!(
            &start[..count],
            [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [0xfd, b'7', b'z', b'X', b'Z', 0]
        ) {
            return Err(Error::invalid(what(), "compressed as a whole; decompress it first"));
        }
        let malformed = |error: io::Error| Error::malformed(what(), error.to_string());
        let mut members = HashMap::new();
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek().map_err(malformed)? {
            let entry = entry.map_err(malformed)?;
            let name = normal(&entry.path().map_err(malformed)?);
            let target = entry.link_name().map_err(malformed)?;
            let member = match (entry.header().entry_type(), target) {
                (tar::EntryType::Regular | tar::EntryType::Continuous, _) => {
                    Some(Member::File { offset: entry.raw_file_position(), size: entry.size() })
                }
                (tar::EntryType::Link, Some(target)) => Some(Member::Link(normal(&target))),
                (tar::EntryType::Symlink, Some(target)) => {
                    let directory = name.parent().unwrap_or(Path::new(""));
                    Some(Member::Link(normal(&directory.join(target))))
                }
                _ => None,
            };
            if let Some(member) = member {
                // As when unpacking, the last of several wins.
                members.insert(name, member);
            }
            if members.len() > MEMBERS_MAX {
                return Err(Error::malformed(what(), format!("more than {MEMBERS_MAX} members")));
            }
        }
        Ok(Self::Archive(Archive { path: path.to_owned(), file: Arc::new(file), members }))
    }

    /// The place, for messages.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Archive(Archive { path, .. }) => path,
        }
    }

    /// Names a file, for messages.
    pub(super) fn describe(&self, name: &str) -> String {
        match self {
            Self::Directory(path) => path.join(name).display().to_string(),
            Self::Archive(archive) => format!("{} in {}", name, archive.path.display()),
        }
    }

    /// Opens a file, and tells its size.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub(super) fn open(&self, name: &str) -> Result<(Box<dyn Read + Send>, u64)> {
        match self {
            Self::Directory(path) => {
                let path = path.join(name);
                let file = match File::open(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        return Err(Error::not_found(self.describe(name)));
                    }
                    file => file.at(&path)?,
                };
                let size = file.metadata().at(&path)?.len();
                Ok((Box::new(file), size))
            }
            Self::Archive(archive) => {
                let (offset, size) = archive.find(name).ok_or_else(|| Error::not_found(self.describe(name)))?;
                Ok((Box::new(Section { file: Arc::clone(&archive.file), offset, left: size }), size))
            }
        }
    }

    /// Reads a file of at most `size_max` bytes.
    ///
    /// # Errors
    /// `NotFound` if there is none, `Malformed` if it is larger.
    pub(super) fn read(&self, name: &str, size_max: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(name)?.0.take(size_max + 1).read_to_end(&mut bytes).at(self.path())?;
        if bytes.len() as u64 > size_max {
            return Err(Error::malformed(self.describe(name), format!("larger than {size_max} bytes")));
        }
        Ok(bytes)
    }
}

impl Archive {
    /// Where the bytes of a file are, and how many; links are followed.
    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = normal(Path::new(name));
        for _ in 0..LINKS_MAX {
            match self.members.get(&name)? {
                Member::File { offset, size } => return Some((*offset, *size)),
                Member::Link(target) => name.clone_from(target),
            }
        }
        None
    }
}

/// Takes `.`, `..` and a leading slash out of a path; what would lead out of the archive stays in it.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    normal
}

/// Some bytes of a file that others read as well.
#[derive(Debug)]
struct Section {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        match self.file.read_at(&mut buffer[..wanted], self.offset)? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within a member")),
            count => {
                self.offset += count as u64;
                self.left -= count as u64;
                Ok(count)
            }
        }
    }
}
