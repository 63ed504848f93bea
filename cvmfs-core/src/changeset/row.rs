//! Rows of a change set: the order of paths, and entries as columns.

use crate::database::bytes;
use crate::entry::{Chunk, Entry, Mtime, RawKind};
use crate::error::{DatabaseContext as _, Result};
use crate::hash::{ContentHash, DIGEST_SIZE};
use crate::path::RepoPath;
use crate::xattr::Xattrs;

/// The path with NUL for slash: no name contains NUL, and it sorts before everything else.
pub(super) fn key(path: &RepoPath) -> Vec<u8> {
    path.as_bytes().iter().map(|&byte| if byte == b'/' { 0 } else { byte }).collect()
}

pub(super) fn path_of(key: &[u8]) -> Result<RepoPath> {
    let path: Vec<u8> = key.iter().map(|&byte| if byte == 0 { b'/' } else { byte }).collect();
    RepoPath::from_bytes(&path)
}

/// The range of keys of a path and what is below it: from the first, up to but without the second.
pub(super) fn subtree(path: &RepoPath) -> (Vec<u8>, Vec<u8>) {
    let from = key(path);
    let mut to = from.clone();
    to.push(1);
    // No name is longer than 255 bytes.
    let to = if path.is_root() { vec![0xff; 256] } else { to };
    (from, to)
}

pub(super) fn read_entry(row: &rusqlite::Row<'_>) -> Result<Entry> {
    let context = "change set";
    let number = |index| row.get::<_, u32>(index).in_database(&context);
    let column = |index| bytes(row, index).in_database(&context);
    let mode = number(5)?;
    let size = row.get::<_, i64>(10).in_database(&context)?.cast_unsigned();
    let raw = RawKind { flags: number(11)?, mode, size, hash: column(12)?, symlink: column(13)? };
    let chunks = decode_chunks(column(15)?, raw.algorithm()?)?;
    let xattrs = match column(14)? {
        [] => Xattrs::new(),
        blob => Xattrs::parse(blob)?,
    };
    Ok(Entry {
        kind: raw.interpret(chunks)?,
        permissions: mode & 0o7777,
        uid: number(6)?,
        gid: number(7)?,
        mtime: Mtime { seconds: row.get(8).in_database(&context)?, nanoseconds: row.get(9).in_database(&context)? },
        xattrs,
        hidden: false,
    })
}

/// Size of an encoded chunk: size in 8 bytes, digest in 20; offsets follow from the sizes.
const CHUNK_BYTES: usize = 28;

pub(super) fn encode_chunks(chunks: &[Chunk]) -> Vec<u8> {
    chunks.iter().flat_map(|chunk| chunk.size.to_le_bytes().into_iter().chain(*chunk.hash.digest())).collect()
}

fn decode_chunks(encoded: &[u8], algorithm: crate::hash::Algorithm) -> Result<Vec<Chunk>> {
    let mut offset = 0;
    let decode = |piece: &[u8]| {
        let (size, digest) = piece.split_at(8);
        let size = u64::from_le_bytes(std::array::from_fn(|index| size[index]));
        let chunk = Chunk { offset, size, hash: ContentHash::from_digest(algorithm, digest)? };
        offset += size;
        Ok(chunk)
    };
    encoded.chunks_exact(CHUNK_BYTES).map(decode).collect()
}

/// The digests of encoded chunks.
pub(super) fn digests_of_chunks(encoded: &[u8]) -> impl Iterator<Item = &[u8; DIGEST_SIZE]> {
    encoded.chunks_exact(CHUNK_BYTES).filter_map(|piece| piece.last_chunk())
}
