//! The content of files, verified while it streams.
//!
//! The objects of a file are read, inflated and hashed on a thread, one block ahead of what is sent: the last block of
//! an object leaves only when the object's hash is right. Of a file that is damaged the client gets a broken
//! connection, never all bytes. Whatever is downloaded is an attachment of unknown type, so no browser shows or runs
//! it as if it were a page of this server.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use cvmfs_core::entry::EntryKind;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::display;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Response, StatusCode};
use tokio::sync::mpsc::{Sender, channel};

use super::{browse, encode, protect};
use crate::serve::answer::ResponseBody;
use crate::serve::connection::Shared;
use crate::serve::respond::{self, Caching};
use crate::serve::route::Entry;

/// Bytes that are read at a time.
const BLOCK_SIZE: usize = 128 * 1024;

/// Blocks that wait for the client.
const BLOCKS_AHEAD: usize = 2;

/// How long a download may be kept, in seconds. A tag can be moved to another revision.
const MAX_AGE: u32 = 61;

/// Nothing at all, also if somebody has it shown.
const POLICY: &str = "default-src 'none'; sandbox";

/// Begins to send the file.
pub(super) async fn answer(
    entry: Entry,
    method: &Method,
    shared: &Arc<Shared>,
    now: SystemTime,
) -> Result<Response<ResponseBody>> {
    let (place, librarian) = browse::place(&entry.repository, shared).await?;
    let (tag, path) = (entry.tag, entry.path);
    let name = path.name().to_vec();
    let (size, reader) = librarian
        .ask(move |shelf| {
            let found = browse::find(shelf, &place, &tag)?;
            let tree = shelf.tree(&place.storage, found.root)?;
            let missing = || Error::not_found(format!("/{}", display(path.as_bytes())));
            let row = tree.find(&path)?.ok_or_else(missing)?;
            let EntryKind::File(file) = &row.entry.kind else { return Err(missing()) };
            Ok((file.size, tree.open_file(&path, file)?))
        })
        .await?;
    let caching = Caching::Seconds(MAX_AGE);
    let head = respond::content_head(StatusCode::OK, "application/octet-stream", Some(size), caching, now);
    let body = if *method == Method::HEAD {
        ResponseBody::bytes(Bytes::new())
    } else {
        let slot = Arc::clone(&shared.downloads).try_acquire_owned().map_err(|_| Error::Unavailable {
            what: "downloads".to_owned(),
            reason: "too many at the same time".to_owned(),
        })?;
        let (sender, blocks) = channel(BLOCKS_AHEAD);
        tokio::task::spawn_blocking(move || {
            send(reader, size, &sender);
            drop(slot);
        });
        ResponseBody::stream(blocks, Some(size))
    };
    let mut response = head.map(|()| body);
    protect(&mut response, POLICY);
    let disposition = HeaderValue::try_from(disposition(&name)).unwrap_or(HeaderValue::from_static("attachment"));
    response.headers_mut().insert(header::CONTENT_DISPOSITION, disposition);
    Ok(response)
}

/// Hands the blocks of a file over, each when the next one could be read; an error ends them.
fn send(mut reader: impl Read, size: u64, blocks: &Sender<io::Result<Bytes>>) {
    let mut waiting: Option<Bytes> = None;
    let mut sent = 0;
    loop {
        let next = match read_block(&mut reader) {
            Ok(next) => next,
            Err(error) => {
                tracing::error!(%error, "cannot read the content of a file");
                drop(blocks.blocking_send(Err(error)));
                return;
            }
        };
        let is_end = next.is_empty();
        if let Some(block) = waiting.replace(next) {
            sent += block.len() as u64;
            if blocks.blocking_send(Ok(block)).is_err() {
                return;
            }
        }
        if is_end {
            break;
        }
    }
    if sent != size {
        let error = io::Error::new(io::ErrorKind::InvalidData, "the file has another size than the catalog says");
        drop(blocks.blocking_send(Err(error)));
    }
}

/// Reads a full block, unless the end comes before.
fn read_block(reader: &mut impl Read) -> io::Result<Bytes> {
    let mut block = Vec::with_capacity(BLOCK_SIZE);
    reader.take(BLOCK_SIZE as u64).read_to_end(&mut block)?;
    Ok(block.into())
}

/// How the file is to be called: a plain form for old clients, and the exact bytes.
///
/// Source: RFC 6266, RFC 8187. Names that are no UTF-8 have no exact form there; their other bytes are replaced.
fn disposition(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let is_plain = |character: char| character.is_ascii_alphanumeric() || " .-_+=,@()[]{}~!#$&^".contains(character);
    let plain: String = text.chars().map(|character| if is_plain(character) { character } else { '_' }).collect();
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{}", encode(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_downloads_cannot_break_out_of_the_header() {
        for (name, expected) in [
            (&b"a.txt"[..], "attachment; filename=\"a.txt\"; filename*=UTF-8''a.txt"),
            (b"a\"b\r\nX: y", "attachment; filename=\"a_b__X_ y\"; filename*=UTF-8''a%22b%0D%0AX%3A%20y"),
            (b"\xc3\xa4\xff", "attachment; filename=\"__\"; filename*=UTF-8''%C3%A4%EF%BF%BD"),
        ] {
            assert_eq!(disposition(name), expected);
        }
    }

    /// Fails after some bytes, as verification does at the end of an object.
    struct Damaged(usize);

    impl Read for Damaged {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let count = buffer.len().min(self.0);
            self.0 -= count;
            Ok(count)
        }
    }

    #[test]
    fn the_last_block_waits_for_the_verdict() {
        for size in [1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE] {
            let (sender, mut blocks) = channel(10);
            send(Damaged(size), size as u64, &sender);
            drop(sender);
            let (mut received, mut failed) = (0, false);
            while let Some(block) = blocks.blocking_recv() {
                match block {
                    Ok(block) => received += block.len(),
                    Err(_) => failed = true,
                }
            }
            assert!(failed && received < size, "{size}: {received}");
        }
    }

    #[test]
    fn a_file_of_another_size_is_an_error() {
        for (promised, fails) in [(9, true), (10, false), (11, true)] {
            let (sender, mut blocks) = channel(10);
            send(&[0_u8; 10][..], promised, &sender);
            drop(sender);
            let mut failed = false;
            while let Some(block) = blocks.blocking_recv() {
                failed |= block.is_err();
            }
            assert_eq!(failed, fails, "{promised}");
        }
    }
}
