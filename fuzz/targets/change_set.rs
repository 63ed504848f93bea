//! Changes in any order: the change set keeps their net effect, as a plain map does.
#![no_main]

use std::collections::BTreeMap;

use cvmfs_core::change::{Change, Content, Metadata, Origin};
use cvmfs_core::changeset::{ChangeSet, Op};
use cvmfs_core::compression::Compression;
use cvmfs_core::entry::{Chunk, FileContent, FileObjects, Mtime, Special};
use cvmfs_core::hash::{Algorithm, ContentHash};
use cvmfs_core::path::RepoPath;
use cvmfs_core::xattr::Xattrs;
use cvmfs_fuzz::{Input, scratch};
use libfuzzer_sys::fuzz_target;

/// A path of at most four components out of few, so that changes meet each other.
fn path(input: &mut Input<'_>) -> RepoPath {
    const NAMES: [&[u8]; 8] = [b"a", b"b", b"a\x01", b"\xff", b"a.", b"long name", b"A", b"\n"];
    let byte = input.byte();
    let second = input.byte();
    let mut path = RepoPath::root();
    for index in [byte & 7, byte >> 3 & 7, second & 7, second >> 3 & 7].into_iter().take(usize::from(byte >> 6) + 1) {
        path = path.child(NAMES[usize::from(index)]).expect("a name");
    }
    path
}

fn metadata(input: &mut Input<'_>) -> Metadata {
    let mut xattrs = Xattrs::new();
    if input.byte() % 4 == 0 {
        let _ = xattrs.set(input.bytes(), input.bytes());
    }
    let nanoseconds = (input.byte() % 2 == 0).then(|| input.small_number() % 1_000_000_000);
    Metadata {
        permissions: input.small_number() & 0o7777,
        uid: input.small_number(),
        gid: input.small_number(),
        mtime: Mtime { seconds: input.number(), nanoseconds },
        xattrs,
    }
}

fn hash(input: &mut Input<'_>) -> ContentHash {
    ContentHash::new(Algorithm::Sha1, [input.byte().max(1); 20])
}

fn file(input: &mut Input<'_>) -> FileContent {
    let compression = if input.byte() % 2 == 0 { Compression::Zlib } else { Compression::None };
    let count = input.byte() % 4;
    let (mut size, mut chunks) = (0_u64, Vec::new());
    for _ in 0..count {
        let chunk = Chunk { offset: size, size: u64::from(input.small_number()), hash: hash(input) };
        size += chunk.size;
        chunks.push(chunk);
    }
    let objects = if chunks.is_empty() {
        size = input.number().unsigned_abs() >> 1;
        FileObjects::Whole(hash(input))
    } else {
        FileObjects::Chunked { chunks, bulk: (input.byte() % 2 == 0).then(|| hash(input)) }
    };
    FileContent { size, compression, objects, external: input.byte() % 8 == 0, direct_io: input.byte() % 8 == 0 }
}

fn content(input: &mut Input<'_>) -> Content {
    match input.byte() % 6 {
        0 | 1 => Content::Directory,
        2 => {
            let target = input.bytes();
            Content::Symlink { target: if target.is_empty() { b"x".to_vec() } else { target.to_vec() } }
        }
        3 => Content::Special(match input.byte() % 4 {
            0 => Special::Fifo,
            1 => Special::Socket,
            2 => Special::CharacterDevice(u64::from(input.small_number())),
            _ => Special::BlockDevice(u64::from(input.small_number())),
        }),
        _ => Content::Stored(file(input)),
    }
}

fn change(input: &mut Input<'_>) -> Change {
    match input.byte() % 10 {
        8 => Change::Whiteout { path: path(input) },
        9 => Change::Opaque { path: path(input) },
        0 => Change::Remove { path: path(input) },
        1 => Change::Clear { path: path(input) },
        2 => Change::Link { path: path(input), target: path(input) },
        3 => Change::Ensure { path: path(input), metadata: metadata(input) },
        _ => Change::Put { path: path(input), metadata: metadata(input), content: content(input) },
    }
}

fuzz_target!(|data: &[u8]| {
    let file = scratch().join("changes");
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(scratch().join(format!("changes{suffix}")));
    }
    let base = ContentHash::null(Algorithm::Sha1);
    let mut changes = ChangeSet::create(&file, base).expect("a new file");
    // What is certain about paths that were touched: the last entry put there, if nothing else came.
    let mut model: BTreeMap<RepoPath, Option<Change>> = BTreeMap::new();
    let mut log = Vec::new();
    let mut input = Input(data);
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        if input.byte() % 16 == 0 {
            let origin = Origin { source: "another archive".into(), offset: Some(u64::from(input.byte())) };
            changes.set_origin(Some(&origin)).expect("room for it");
        }
        let change = change(&mut input);
        let path = change.path().clone();
        // As sources do; what is in nobody's way exists in the repository.
        let needs_directory = matches!(change, Change::Put { .. } | Change::Link { .. } | Change::Ensure { .. });
        let ensure = |path: RepoPath| Change::Ensure { path, metadata: metadata(&mut Input(&[])) };
        if needs_directory && path.ancestors().into_iter().map(ensure).any(|ensure| changes.record(ensure).is_err()) {
            continue;
        }
        if changes.record(change.clone()).is_err() {
            continue;
        }
        log.push(change.clone());
        let replaces = match &change {
            Change::Put { content, .. } => *content != Content::Directory,
            Change::Remove { .. } | Change::Link { .. } => true,
            Change::Clear { .. } => {
                model.retain(|other, _| !other.starts_with(&path) || *other == path);
                continue;
            }
            // What earlier sources put goes, what this one put stays.
            Change::Whiteout { .. } | Change::Opaque { .. } => {
                model.retain(|other, _| !other.starts_with(&path));
                continue;
            }
            Change::Ensure { .. } => {
                model.entry(path).or_insert(None);
                continue;
            }
        };
        if replaces {
            model.retain(|other, _| !other.starts_with(&path));
        }
        let known = matches!(change, Change::Put { .. }).then_some(change);
        model.insert(path, known);
    }
    changes.close().expect("room for it");

    let changes = ChangeSet::open(&file).expect("our own file");
    assert_eq!(changes.base().expect("a hash"), base);
    let mut rows = Vec::new();
    changes
        .for_each(|pending| {
            rows.push(pending);
            Ok(())
        })
        .expect("readable rows");
    assert!(rows.is_sorted_by(|one, two| one.path < two.path), "not in tree order");
    let by_path: BTreeMap<_, _> = rows.iter().map(|pending| (pending.path.clone(), pending)).collect();
    for (path, known) in &model {
        let pending = by_path.get(path).unwrap_or_else(|| panic!("{path} is lost after {log:#?}"));
        assert_eq!(changes.get(path).expect("readable").as_ref(), Some(*pending));
        let Some(Change::Put { metadata, content, .. }) = known else { continue };
        let Op::Put(entry) = &pending.op else { panic!("{path}: {pending:?}") };
        let mut expected = changes_entry(metadata, content);
        expected.hidden = entry.hidden;
        assert_eq!(*entry, expected, "{path}");
    }
    // Nothing is put below what is not a directory. What was to be removed or
    // cleared there before may still say so.
    for pending in rows.iter().filter(|pending| !matches!(pending.op, Op::Remove | Op::Keep)) {
        for ancestor in pending.path.ancestors() {
            let is_file = match by_path.get(&ancestor).map(|pending| &pending.op) {
                Some(Op::Put(entry)) => !entry.is_directory(),
                Some(Op::LinkToExisting(_)) => true,
                _ => false,
            };
            assert!(!is_file, "{} is below a file after {log:#?}", pending.path);
        }
    }
});

fn changes_entry(metadata: &Metadata, content: &Content) -> cvmfs_core::entry::Entry {
    use cvmfs_core::entry::{EntryKind, Mount};
    let kind = match content.clone() {
        Content::Directory => EntryKind::Directory(Mount::Plain),
        Content::Stored(file) => EntryKind::File(file),
        Content::Symlink { target } => EntryKind::Symlink { target },
        Content::Special(special) => EntryKind::Special(special),
        Content::Read { .. } => unreachable!("never made"),
    };
    metadata.clone().into_entry(kind)
}
