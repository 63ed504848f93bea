//! Bytes as a tar archive: it comes to an end, is the same however it is read, and its changes are canonical.
#![no_main]

use std::collections::HashMap;
use std::io::Cursor;

use cvmfs_core::change::{Change, ChangeSource as _, Content};
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::idmap::IdMap;
use cvmfs_core::path::RepoPath;
use cvmfs_ingest::archive::{Archive, Entry, EntryKind};
use cvmfs_ingest::source::{Input, Options, Ownership, TarSource};
use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 512;
/// Bytes of content that are looked at; sparse files claim to be as large as they like.
const ENOUGH: usize = 1 << 20;

/// Gives what could be a header the right checksum: a changed one would not be looked at.
fn repaired(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    for block in bytes.chunks_exact_mut(BLOCK).filter(|block| block[257..].starts_with(b"ustar")) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

/// Reads what there is, in pieces of a size.
fn read(data: &[u8], piece: usize) -> (Vec<(Entry, Vec<u8>)>, Option<String>) {
    let mut archive = Archive::new(data);
    let mut entries = Vec::new();
    let mut budget = ENOUGH;
    let mut buffer = vec![0; piece];
    loop {
        let entry = match archive.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => {
                assert!(matches!(archive.next(), Ok(None)), "the end is the end");
                return (entries, None);
            }
            Err(error) => {
                assert!(archive.next().is_err() && archive.read(&mut buffer).is_err(), "it goes on after an error");
                return (entries, Some(error.to_string()));
            }
        };
        let mut content = Vec::new();
        while budget > 0 {
            let wanted = piece.min(budget);
            match archive.read(&mut buffer[..wanted]) {
                Ok(0) => break,
                Ok(count) => {
                    budget -= count;
                    content.extend_from_slice(&buffer[..count]);
                }
                Err(error) => return (entries, Some(error.to_string())),
            }
        }
        if let EntryKind::File { size } = entry.kind {
            assert!(budget == 0 || content.len() as u64 == size, "{} of {size} bytes", content.len());
        } else {
            assert!(content.is_empty());
        }
        entries.push((entry, content));
    }
}

fn check_entries(data: &[u8], entries: &[(Entry, Vec<u8>)]) {
    let mut last = None;
    for (entry, _) in entries {
        assert_eq!(entry.offset % BLOCK as u64, 0);
        assert!(entry.offset < data.len() as u64 && last < Some(entry.offset));
        last = Some(entry.offset);
        assert!(!entry.path.contains(&0) && entry.mode <= 0o7777);
        assert!(!entry.path.is_empty() || entry.kind == EntryKind::Directory);
        assert!(entry.mtime.nanoseconds.is_none_or(|nanoseconds| nanoseconds < 1_000_000_000));
        assert!(entry.xattrs.keys().all(|key| !key.is_empty() && !key.contains(&0)));
        match &entry.kind {
            EntryKind::Symlink { target } | EntryKind::HardLink { target } => {
                assert!(!target.is_empty() && !target.contains(&0));
            }
            EntryKind::File { size } => assert!(i64::try_from(*size).is_ok()),
            _ => {}
        }
    }
}

/// The changes, as the pipeline sees them.
fn check_changes(data: &[u8], whiteouts: bool) {
    let base: RepoPath = "base/dir".parse().expect("a path");
    let options = Options {
        base_dir: base.clone(),
        delete: Vec::new(),
        catalog: false,
        ownership: Ownership { uid: IdMap::default(), gid: IdMap::default(), implied: (0, 0) },
        whiteouts,
        size_limit: 1 << 40,
        xattrs: true,
        mtime_nanoseconds: true,
        now: UnixSeconds(0),
    };
    let input = Input::stream("fuzz.tar", Cursor::new(data.to_vec()));
    let mut source = TarSource::new(vec![input], options).expect("good options");
    // Whether a path is a directory.
    let mut tree = HashMap::from([(RepoPath::root(), true)]);
    loop {
        let change = match source.next() {
            Ok(Some(change)) => change,
            Ok(None) => return,
            Err(error) => {
                assert!(error.to_string().contains("fuzz.tar"), "{error} does not name the archive");
                return;
            }
        };
        let path = change.path().clone();
        assert_eq!(RepoPath::from_bytes(path.as_bytes()).expect("canonical"), path);
        assert!(path.starts_with(&base) || base.starts_with(&path), "{path} is not below the base directory");
        let is_hidden = matches!(change, Change::Whiteout { .. } | Change::Opaque { .. });
        let parent = path.parent().unwrap_or_default();
        assert!(is_hidden || tree.get(&parent) == Some(&true), "{path} has no parent");
        let is_directory = match &change {
            Change::Put { content, metadata, .. } => {
                assert!(metadata.permissions <= 0o7777);
                assert!(path != base || *content == Content::Directory);
                *content == Content::Directory
            }
            Change::Link { target, .. } => {
                assert!(target.starts_with(&base) && *target != path && tree.get(target) != Some(&true));
                false
            }
            Change::Ensure { .. } => true,
            Change::Whiteout { .. } | Change::Opaque { .. } if whiteouts => continue,
            _ => panic!("nothing asks for {change:?}"),
        };
        if !is_directory && tree.get(&path) == Some(&true) {
            tree.retain(|other, _| !other.starts_with(&path));
        }
        tree.insert(path, is_directory);
    }
}

fn check(data: &[u8]) {
    let (entries, error) = read(data, 64 * 1024);
    check_entries(data, &entries);
    assert_eq!(read(data, 509), (entries, error));
    check_changes(data, false);
    check_changes(data, true);
}

fuzz_target!(|data: &[u8]| {
    check(data);
    let repaired = repaired(data);
    if repaired != data {
        check(&repaired);
    }
});
