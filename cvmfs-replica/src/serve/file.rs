//! Opening files without being led astray, and sending them.
//!
//! A path is opened name by name, each relative to the directory before it and none through a symbolic link, so
//! it cannot leave the repository whatever is planted there. (`openat2` would do it in one call, but older
//! enterprise kernels and container profiles lack it.)
//!
//! A small file is read at once, by the thread that opened it. A large one is sent in blocks: while one is on its
//! way to the client the next is read, and no more, so a slow client costs two blocks and no thread. The file
//! stays open meanwhile; if its name is given to another file, this one is sent to its end. `sendfile` would save
//! a copy, but hyper owns the socket and takes bytes only.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::task::JoinHandle;

use super::respond::Facts;
use super::route::{Kind, Resource, object_path};

/// Files up to this many bytes are read in one go; most objects are smaller.
pub(super) const SMALL_FILE_MAX: u64 = 64 * 1024;

/// Bytes of a large file read and handed to the connection at a time.
const BLOCK_SIZE: u64 = 256 * 1024;

/// Opens `resource` below `directory`.
///
/// # Errors
/// `NotFound` also for everything that is there but not to be served: links, directories, devices, and a second
/// name that does not lead to its object.
pub(super) fn open(directory: &OwnedFd, resource: &Resource) -> io::Result<(File, Facts)> {
    let opened = match resource.kind {
        Kind::Alternative(id) => open_alternative(directory, &resource.path, &object_path(id)),
        Kind::Object(_) | Kind::Named | Kind::Info | Kind::Statistics => open_beneath(directory, &resource.path),
    };
    let file = match opened {
        Ok(file) => File::from(file),
        // Something is there, but not of the kind that the path asks for. (A socket gives ENXIO.)
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Err(io::ErrorKind::NotFound.into()),
        Err(error) => return Err(error.into()),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let facts = Facts { size: metadata.len(), modified: metadata.modified()?, inode: metadata.ino() };
    Ok((file, facts))
}

fn open_beneath(directory: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    // Without NONBLOCK, opening a pipe would wait for somebody to write into it.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let Some((parents, name)) = path.rsplit_once('/') else {
        return rustix::fs::openat(directory, path, flags, Mode::empty());
    };
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at: Option<OwnedFd> = None;
    for parent in parents.split('/') {
        at = Some(rustix::fs::openat(at.as_ref().unwrap_or(directory), parent, step, Mode::empty())?);
    }
    rustix::fs::openat(at.as_ref().unwrap_or(directory), name, flags, Mode::empty())
}

/// Opens an object by its second name: a link to the object (or a copy of it, as left by tools that follow links).
fn open_alternative(directory: &OwnedFd, name: &str, object: &str) -> Result<OwnedFd, Errno> {
    match open_beneath(directory, name) {
        Err(Errno::LOOP) => {}
        opened => return opened,
    }
    let target = rustix::fs::readlinkat(directory.as_fd(), name, Vec::new())?;
    if target.as_bytes() != object.as_bytes() {
        tracing::warn!(name, ?target, "link does not lead to its object");
        return Err(Errno::NOENT);
    }
    open_beneath(directory, object)
}

/// Reads the bytes from `start` up to `end`.
///
/// # Errors
/// `UnexpectedEof` if the file ends before.
pub(super) fn read_part(mut file: &File, start: u64, end: u64) -> io::Result<Bytes> {
    if start > 0 {
        file.seek(SeekFrom::Start(start))?;
    }
    read_block(file, end - start)
}

/// Reads the next `length` bytes, at most [`BLOCK_SIZE`].
fn read_block(file: &File, length: u64) -> io::Result<Bytes> {
    let mut block = Vec::with_capacity(usize::try_from(length).map_err(io::Error::other)?);
    file.take(length).read_to_end(&mut block)?;
    if block.len() as u64 != length {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "file became shorter while it was sent"));
    }
    Ok(block.into())
}

/// The rest of a large file, read block by block as the client takes it.
#[derive(Debug)]
pub(super) struct FileBody {
    next: Next,
    /// Bytes not handed out yet.
    remaining: u64,
}

#[derive(Debug)]
enum Next {
    Block(Bytes, File),
    Reading(JoinHandle<io::Result<(Bytes, File)>>),
    Nothing,
}

impl FileBody {
    /// Begins to send the bytes from `start` up to `end`, by reading the first block.
    pub(super) fn open(mut file: File, start: u64, end: u64) -> io::Result<Self> {
        if start > 0 {
            file.seek(SeekFrom::Start(start))?;
        }
        let remaining = end - start;
        let block = read_block(&file, remaining.min(BLOCK_SIZE))?;
        Ok(Self { next: Next::Block(block, file), remaining })
    }

    /// Bytes still to come.
    pub(super) fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Waits for the next block and has the one after it read.
    ///
    /// After an error or the end there is nothing more.
    pub(super) fn poll_block(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Next::Reading(reading) = &mut self.next {
            let read = ready!(Pin::new(reading).poll(context)).map_err(io::Error::other).flatten();
            self.next = match read {
                Ok((block, file)) => Next::Block(block, file),
                Err(error) => {
                    self.next = Next::Nothing;
                    return Poll::Ready(Some(Err(error)));
                }
            };
        }
        let Next::Block(block, file) = std::mem::replace(&mut self.next, Next::Nothing) else {
            return Poll::Ready(None);
        };
        self.remaining -= block.len() as u64;
        if self.remaining > 0 {
            let length = self.remaining.min(BLOCK_SIZE);
            let reading = tokio::task::spawn_blocking(move || Ok((read_block(&file, length)?, file)));
            self.next = Next::Reading(reading);
        }
        Poll::Ready(Some(Ok(block)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;
    use crate::serve::route::{Target, route};

    const ID: &str = "ff049c626904064d641feca0e9936e5b211807c6";

    fn text_of(root: &Path, path: &str) -> Result<String, io::ErrorKind> {
        let directory = OwnedFd::from(File::open(root).unwrap());
        let Some(Target::File(resource)) = route(&format!("/cvmfs/a/{path}")) else { panic!("{path} is no file") };
        let (file, facts) = open(&directory, &resource).map_err(|error| error.kind())?;
        Ok(String::from_utf8(read_part(&file, 0, facts.size).unwrap().into()).unwrap())
    }

    #[test]
    fn no_link_is_followed_but_a_second_name_to_its_object() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        let object = format!("data/ff/{}", &ID[2..]);
        let missing = Err(io::ErrorKind::NotFound);
        std::fs::create_dir_all(outside.path().join("ff")).unwrap();
        std::fs::write(outside.path().join("ff").join(&ID[2..]), "secret").unwrap();
        symlink(outside.path(), root.path().join("data")).unwrap();
        assert_eq!(text_of(root.path(), &object), missing, "directory is a link");

        std::fs::remove_file(root.path().join("data")).unwrap();
        std::fs::create_dir_all(root.path().join("data/ff")).unwrap();
        let secret = outside.path().join("ff").join(&ID[2..]);
        symlink(&secret, root.path().join(&object)).unwrap();
        assert_eq!(text_of(root.path(), &object), missing, "object is a link");

        std::fs::remove_file(root.path().join(&object)).unwrap();
        std::fs::write(root.path().join(&object), "object").unwrap();
        assert_eq!(text_of(root.path(), &object), Ok("object".to_owned()));

        let name = format!(".cvmfsalt-{ID}");
        assert_eq!(text_of(root.path(), &name), missing);
        for (target, expected) in [
            (Path::new(&object), Ok("object".to_owned())),
            (&secret, missing.clone()),
            (Path::new("data/ff/../ff"), missing.clone()),
            (Path::new(".cvmfspublished"), missing.clone()),
        ] {
            symlink(target, root.path().join(&name)).unwrap();
            assert_eq!(text_of(root.path(), &name), expected, "{}", target.display());
            std::fs::remove_file(root.path().join(&name)).unwrap();
        }
        std::fs::write(root.path().join(&name), "copy").unwrap();
        assert_eq!(text_of(root.path(), &name), Ok("copy".to_owned()));
    }

    #[test]
    fn only_regular_files_are_served() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(".cvmfspublished")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.path().join(".cvmfsreflog"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.path().join(".cvmfswhitelist")).unwrap();
        for name in [".cvmfspublished", ".cvmfsreflog", ".cvmfswhitelist"] {
            assert_eq!(text_of(root.path(), name), Err(io::ErrorKind::NotFound), "{name}");
        }
    }

    #[tokio::test]
    async fn a_large_file_arrives_in_blocks() {
        let size = 2 * BLOCK_SIZE + 1;
        let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), &content).unwrap();
        for (start, blocks) in [(0, 3), (1, 2), (size - 1, 1)] {
            let mut body = FileBody::open(File::open(path.path()).unwrap(), start, size).unwrap();
            let mut received = Vec::new();
            let mut count = 0;
            while let Some(block) = std::future::poll_fn(|context| body.poll_block(context)).await {
                received.extend_from_slice(&block.unwrap());
                count += 1;
            }
            assert_eq!((received.as_slice(), count), (&content[usize::try_from(start).unwrap()..], blocks));
        }
    }

    #[tokio::test]
    async fn a_file_that_shrinks_is_an_error_not_a_short_answer() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), vec![1; 1000]).unwrap();
        let file = File::open(path.path()).unwrap();
        assert_eq!(read_part(&file, 0, 1001).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        path.as_file().set_len(3 * BLOCK_SIZE).unwrap();
        let mut body = FileBody::open(File::open(path.path()).unwrap(), 0, 3 * BLOCK_SIZE).unwrap();
        path.as_file().set_len(BLOCK_SIZE).unwrap();
        let mut next = async || std::future::poll_fn(|context| body.poll_block(context)).await;
        assert!(next().await.unwrap().is_ok());
        assert_eq!(next().await.unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(next().await.is_none());
    }
}
