//! Opening files without being led astray, and sending them.
//!
//! A path cannot leave the repository, whatever is planted there: below the storage directory no symbolic link is
//! followed.
//!
//! A small file is read at once. A large one is sent in blocks: `sendfile` hands them from the system's memory to the
//! socket, or, where hyper or TLS own the socket and take bytes only, they are read. While one is on its way to the
//! client at most one more is read, so a slow client costs two blocks and no thread. The file stays open meanwhile;
//! if its name is given to another file, this one is sent to its end.
//!
//! Disks may take long, so waiting for them is left to threads made for it. What the system has in memory is
//! taken on the spot instead ([`Disk::CachedOnly`]): a thread for each would cost more than the reading.

use std::fs::File;
use std::io::{self, IoSliceMut, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::net::SendFlags;
use tokio::task::JoinHandle;

use super::direct::Writable;
use super::respond::Facts;
use super::route::{Kind, Resource, object_path};

/// Files up to this many bytes are read in one go; most objects are smaller.
pub(super) const SMALL_FILE_MAX: u64 = 64 * 1024;

/// Bytes of a large file read and handed to the connection at a time.
const BLOCK_SIZE: u64 = 256 * 1024;

/// Bytes of a large file handed over by `sendfile` before looking whether what follows is in memory.
const SENDFILE_SIZE: u64 = 1 << 20;

/// Whether an operation may wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disk {
    /// It may; for threads that do nothing else.
    Wait,
    /// Only what is in memory counts. Whatever else happens is an error, and says nothing about the file: then
    /// the operation has to be repeated with [`Disk::Wait`].
    CachedOnly,
}

/// Opens a directory, for the opening of files in it.
///
/// The operator has chosen it, so links on the way are followed.
pub(super) fn open_directory(path: &Path, disk: Disk) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(match disk {
        Disk::Wait => rustix::fs::openat(CWD, path, flags, Mode::empty()),
        Disk::CachedOnly => rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED),
    }?)
}

/// Opens `resource` below `directory`.
///
/// # Errors
/// `NotFound` also for everything that is there but not to be served: links, directories, devices, and a second
/// name that does not lead to its object.
pub(super) fn open(directory: &OwnedFd, resource: &Resource, disk: Disk) -> io::Result<(File, Facts)> {
    let opened = match (disk, resource.kind) {
        (Disk::CachedOnly, _) => open_cached(directory, &resource.path),
        (Disk::Wait, Kind::Alternative(id)) => open_alternative(directory, &resource.path, &object_path(id)),
        (Disk::Wait, Kind::Object(_) | Kind::Named | Kind::Info | Kind::Statistics) => {
            open_beneath(directory, &resource.path)
        }
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

/// How files are opened. Without NONBLOCK, opening a pipe would wait for somebody to write into it.
const FILE_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Opens name by name, each relative to the directory before it.
///
/// `openat2` does it in one call, but older enterprise kernels and container profiles lack it.
fn open_beneath(directory: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let Some((parents, name)) = path.rsplit_once('/') else {
        return rustix::fs::openat(directory, path, FILE_FLAGS, Mode::empty());
    };
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at: Option<OwnedFd> = None;
    for parent in parents.split('/') {
        at = Some(rustix::fs::openat(at.as_ref().unwrap_or(directory), parent, step, Mode::empty())?);
    }
    rustix::fs::openat(at.as_ref().unwrap_or(directory), name, FILE_FLAGS, Mode::empty())
}

/// Opens a file that the system has the whole path of in memory.
fn open_cached(directory: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::CACHED;
    rustix::fs::openat2(directory, path, FILE_FLAGS, Mode::empty(), resolve)
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
pub(super) fn read_part(file: &File, start: u64, end: u64, disk: Disk) -> io::Result<Bytes> {
    match disk {
        Disk::Wait => read_block(file, start, end),
        Disk::CachedOnly => {
            let part = read_cached(file, start, end)?;
            if part.len() as u64 == end - start { Ok(part) } else { Err(io::ErrorKind::WouldBlock.into()) }
        }
    }
}

fn read_block(mut file: &File, start: u64, end: u64) -> io::Result<Bytes> {
    let length = end - start;
    let mut block = Vec::with_capacity(usize::try_from(length).map_err(io::Error::other)?);
    file.seek(SeekFrom::Start(start))?;
    file.take(length).read_to_end(&mut block)?;
    if block.len() as u64 == length { Ok(block.into()) } else { Err(became_shorter()) }
}

/// Reads as many of the bytes from `start` up to `end` as are in memory, at least one unless none are asked for.
fn read_cached(file: &File, start: u64, end: u64) -> io::Result<Bytes> {
    if start == end {
        return Ok(Bytes::new());
    }
    let mut block = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
    let count = rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut block)], start, ReadWriteFlags::NOWAIT)?;
    block.truncate(count);
    if count > 0 { Ok(block.into()) } else { Err(became_shorter()) }
}

fn became_shorter() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "file became shorter while it was sent")
}

/// A part of a large file, read block by block as the client takes it.
#[derive(Debug)]
pub(super) struct FileBody {
    file: Arc<File>,
    /// Offset of what is handed out next.
    at: u64,
    end: u64,
    /// What is known to be in memory up to here.
    looked_until: u64,
    next: Next,
}

/// Where the next block comes from.
#[derive(Debug)]
enum Next {
    /// Memory, for as long as it has everything.
    Cached,
    /// A thread that reads ahead.
    Reading(JoinHandle<io::Result<Bytes>>),
    /// Nowhere, after an error.
    Failed,
}

impl FileBody {
    /// Will send the bytes from `start` up to `end`.
    pub(super) fn new(file: File, start: u64, end: u64) -> Self {
        Self { file: Arc::new(file), at: start, end, looked_until: start, next: Next::Cached }
    }

    /// Bytes still to come.
    pub(super) fn remaining(&self) -> u64 {
        self.end - self.at
    }

    /// Waits for the next block; `None` at the end and after an error.
    pub(super) fn poll_block(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.remaining() == 0 {
            return Poll::Ready(None);
        }
        if matches!(self.next, Next::Cached) {
            if let Ok(block) = read_cached(&self.file, self.at, self.block_end(self.at)) {
                self.at += block.len() as u64;
                return Poll::Ready(Some(Ok(block)));
            }
            // What is not in memory now will hardly be a block later: leave the rest to threads.
            self.next = self.read_ahead(self.at);
        }
        let Next::Reading(reading) = &mut self.next else {
            return Poll::Ready(None);
        };
        let read = ready!(Pin::new(reading).poll(context)).map_err(io::Error::other).flatten();
        match &read {
            Ok(block) => {
                self.at += block.len() as u64;
                self.next = self.read_ahead(self.at);
            }
            Err(error) => {
                tracing::error!(%error, "cannot read on");
                self.next = Next::Failed;
            }
        }
        Poll::Ready(Some(read))
    }

    /// Sends more of the file to a socket and returns how much that was; `None` at the end.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file became shorter, and those of the socket.
    pub(super) async fn send_some(&mut self, socket: &Writable<'_>) -> io::Result<Option<usize>> {
        if self.remaining() == 0 {
            return Ok(None);
        }
        let end = self.end.min(self.at + SENDFILE_SIZE);
        if self.at >= self.looked_until && matches!(self.next, Next::Cached) {
            // `sendfile` waits for the disk, and the thread that calls it has other clients.
            if self.is_cached(self.at) && self.is_cached(end - 1) {
                self.looked_until = end;
            } else {
                self.next = self.read_ahead(self.at);
            }
        }
        if matches!(self.next, Next::Cached) {
            let count = usize::try_from(self.looked_until - self.at).map_err(io::Error::other)?;
            let mut offset = self.at;
            let file = &self.file;
            let sent = socket.with(|stream| Ok(rustix::fs::sendfile(stream, file, Some(&mut offset), count)?)).await?;
            if sent == 0 {
                return Err(became_shorter());
            }
            self.at += sent as u64;
            return Ok(Some(sent));
        }
        let block = std::future::poll_fn(|context| self.poll_block(context)).await.ok_or_else(became_shorter)??;
        socket.all(&block, SendFlags::empty()).await?;
        Ok(Some(block.len()))
    }

    /// Whether the byte at `offset` is in memory.
    fn is_cached(&self, offset: u64) -> bool {
        let mut byte = [0];
        let read = rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT);
        read == Ok(1)
    }

    fn block_end(&self, start: u64) -> u64 {
        self.end.min(start + BLOCK_SIZE)
    }

    fn read_ahead(&self, start: u64) -> Next {
        if start == self.end {
            return Next::Cached;
        }
        let (file, end) = (Arc::clone(&self.file), self.block_end(start));
        Next::Reading(tokio::task::spawn_blocking(move || read_block(&file, start, end)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::serve::route::{Target, route};

    const ID: &str = "ff049c626904064d641feca0e9936e5b211807c6";

    fn text_of(root: &Path, path: &str) -> Result<String, io::ErrorKind> {
        let directory = OwnedFd::from(File::open(root).unwrap());
        let Some(Target::File(resource)) = route(&format!("/cvmfs/a/{path}")) else { panic!("{path} is no file") };
        if open(&directory, &resource, Disk::Wait).is_err() {
            assert!(open(&directory, &resource, Disk::CachedOnly).is_err(), "{path}");
        }
        let (file, facts) = open(&directory, &resource, Disk::Wait).map_err(|error| error.kind())?;
        let text = String::from_utf8(read_part(&file, 0, facts.size, Disk::Wait).unwrap().into()).unwrap();
        // What can be had from memory is the same.
        if let Ok((file, cached)) = open(&directory, &resource, Disk::CachedOnly) {
            assert_eq!(cached, facts);
            if let Ok(bytes) = read_part(&file, 0, facts.size, Disk::CachedOnly) {
                assert_eq!(bytes, text);
            }
        }
        Ok(text)
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
        rustix::fs::mknodat(CWD, root.path().join(".cvmfsreflog"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.path().join(".cvmfswhitelist")).unwrap();
        for name in [".cvmfspublished", ".cvmfsreflog", ".cvmfswhitelist"] {
            assert_eq!(text_of(root.path(), name), Err(io::ErrorKind::NotFound), "{name}");
        }
    }

    /// Sends a part of a file with each of the two ways to read.
    fn bodies(path: &Path, start: u64, end: u64) -> [FileBody; 2] {
        let open = || FileBody::new(File::open(path).unwrap(), start, end);
        let cached = open();
        let mut threaded = open();
        threaded.next = threaded.read_ahead(start);
        [cached, threaded]
    }

    #[tokio::test]
    async fn a_large_file_arrives_in_blocks() {
        let size = 2 * BLOCK_SIZE + 1;
        let content: Vec<u8> = (0..=250).cycle().take(usize::try_from(size).unwrap()).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &content).unwrap();
        for (start, blocks) in [(0, 3), (1, 2), (size - 1, 1)] {
            for mut body in bodies(file.path(), start, size) {
                let mut received = Vec::new();
                let mut count = 0;
                while let Some(block) = std::future::poll_fn(|context| body.poll_block(context)).await {
                    received.extend_from_slice(&block.unwrap());
                    count += 1;
                }
                assert_eq!((received.as_slice(), count), (&content[usize::try_from(start).unwrap()..], blocks));
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_shrinks_is_an_error_not_a_short_answer() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), vec![1; 1000]).unwrap();
        let file = File::open(path.path()).unwrap();
        assert_eq!(read_part(&file, 0, 1001, Disk::Wait).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(read_part(&file, 0, 1001, Disk::CachedOnly).is_err());
        path.as_file().set_len(BLOCK_SIZE).unwrap();
        for mut body in bodies(path.path(), 0, 3 * BLOCK_SIZE) {
            let mut next = async || std::future::poll_fn(|context| body.poll_block(context)).await;
            assert!(next().await.unwrap().is_ok());
            assert_eq!(next().await.unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            assert!(next().await.is_none());
        }
    }
}
