//! Grafts: files whose content is not read, because the file `.cvmfsgraft-<name>` beside `<name>` says what it is.
//!
//! ```text
//! # comment
//! size=1048576
//! checksum=0123456789012345678901234567890123456789
//! compression=none                      zlib or none; zlib if not given
//! chunk_offsets=0,524288                optional; with as many
//! chunk_checksums=<hash>,<hash>
//! ```
//!
//! Permissions, owner and time are those of `<name>`. Whether the content is on an external data server is not for the
//! graft to say, but for the publication.
//!
//! Source: `SyncItem::CheckGraft` in `cvmfs/sync_item.cc`.

use cvmfs_core::compression::Compression;
use cvmfs_core::entry::{Chunk, FileContent, FileObjects};
use cvmfs_core::hash::ContentHash;

/// What names of graft files begin with.
pub(super) const PREFIX: &[u8] = b".cvmfsgraft-";
/// Largest graft file that is read, in bytes: some hundred thousand chunks.
pub(super) const MAX_SIZE: u64 = 16 << 20;

/// Parses a graft file.
///
/// # Errors
/// The reason why it cannot be.
pub(super) fn parse(text: &str, external: bool) -> Result<FileContent, String> {
    let (mut size, mut checksum, mut compression) = (None, None, Compression::Zlib);
    let (mut offsets, mut hashes) = (Vec::new(), Vec::new());
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (key, value) = line.split_once('=').ok_or_else(|| format!("the line {line:?} is not `key=value`"))?;
        let (key, value) = (key.trim(), value.trim());
        let invalid = || format!("{value:?} is no value for {key}");
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| invalid());
        let hash = |text: &str| text.trim().parse::<ContentHash>().map_err(|_| invalid());
        match key {
            "size" => size = Some(number(value)?),
            "checksum" => checksum = Some(hash(value)?),
            "compression" => {
                compression = value.parse().map_err(|_| invalid())?;
            }
            "chunk_offsets" => offsets = value.split(',').map(number).collect::<Result<Vec<_>, _>>()?,
            "chunk_checksums" => hashes = value.split(',').map(hash).collect::<Result<Vec<_>, _>>()?,
            _ => {}
        }
    }
    let size = size.ok_or("it has no size")?;
    let checksum = checksum.ok_or("it has no checksum")?;
    let objects = if offsets.is_empty() && hashes.is_empty() {
        if checksum.is_null() {
            return Err("its checksum is zero, and it has no chunks".into());
        }
        FileObjects::Whole(checksum)
    } else {
        FileObjects::Chunked {
            chunks: chunks(size, checksum, &offsets, &hashes)?,
            bulk: Some(checksum).filter(|hash| !hash.is_null()),
        }
    };
    Ok(FileContent { size, compression, objects, external, direct_io: false })
}

fn chunks(size: u64, checksum: ContentHash, offsets: &[u64], hashes: &[ContentHash]) -> Result<Vec<Chunk>, String> {
    if offsets.len() != hashes.len() {
        return Err(format!("it has {} chunk_offsets, but {} chunk_checksums", offsets.len(), hashes.len()));
    }
    if offsets.first() != Some(&0) {
        return Err("the first of chunk_offsets is not 0".into());
    }
    if hashes.iter().any(|hash| hash.algorithm() != checksum.algorithm()) {
        return Err("its checksums are of several algorithms".into());
    }
    let ends = offsets.iter().skip(1).chain([&size]);
    let piece = |((&offset, &end), &hash): ((&u64, &u64), &ContentHash)| {
        let size = end.checked_sub(offset).filter(|size| *size > 0);
        let size = size.ok_or("chunk_offsets do not ascend, or exceed the size")?;
        Ok(Chunk { offset, size, hash })
    };
    offsets.iter().zip(ends).zip(hashes).map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0123456789012345678901234567890123456789";
    const OTHER: &str = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
    const ZERO: &str = "0000000000000000000000000000000000000000";

    #[test]
    fn a_whole_file() {
        let text = format!("# a comment\n\n size = 12 \nchecksum={HASH}\nunknown=x\n");
        let file = parse(&text, true).unwrap();
        let objects = FileObjects::Whole(HASH.parse().unwrap());
        let expected =
            FileContent { size: 12, compression: Compression::Zlib, objects, external: true, direct_io: false };
        assert_eq!(file, expected);
        assert_eq!(parse(&format!("{text}compression=none"), false).unwrap().compression, Compression::None);
    }

    #[test]
    fn chunks_end_where_the_next_begins() {
        let text = format!("size=10\nchecksum={ZERO}\nchunk_offsets=0,4\nchunk_checksums={HASH},{OTHER}");
        let FileObjects::Chunked { chunks, bulk } = parse(&text, false).unwrap().objects else { panic!() };
        let extents: Vec<_> = chunks.iter().map(|chunk| (chunk.offset, chunk.size, chunk.hash.to_string())).collect();
        assert_eq!(extents, [(0, 4, HASH.to_owned()), (4, 6, OTHER.to_owned())]);
        assert_eq!(bulk, None);
    }

    #[test]
    fn what_the_reference_refuses_is_refused() {
        let base = format!("size=10\nchecksum={HASH}\n");
        assert!(parse(&base, false).is_ok());
        for text in [
            "size=10".to_owned(),
            format!("checksum={HASH}"),
            format!("size=x\nchecksum={HASH}"),
            "size=10\nchecksum=0123".to_owned(),
            format!("size=10\nchecksum={ZERO}"),
            "size".to_owned(),
            format!("{base}compression=lz4"),
            format!("{base}chunk_offsets=0"),
            format!("{base}chunk_offsets=1\nchunk_checksums={HASH}"),
            format!("{base}chunk_offsets=0,10\nchunk_checksums={HASH},{HASH}"),
            format!("{base}chunk_offsets=0,4,4\nchunk_checksums={HASH},{HASH},{HASH}"),
            format!("{base}chunk_offsets=0,4\nchunk_checksums={HASH}"),
            format!("{base}chunk_offsets=0,4\nchunk_checksums={HASH},{HASH}-rmd160"),
        ] {
            assert!(parse(&text, false).is_err(), "{text}");
        }
    }
}
