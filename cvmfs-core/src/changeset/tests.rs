use super::*;
use crate::change::{Change, Content, Metadata};
use crate::compression::Compression;
use crate::entry::{Chunk, FileContent, FileObjects, Mtime};
use crate::hash::Algorithm;
use crate::xattr::Xattrs;

fn path(text: &str) -> RepoPath {
    text.parse().unwrap()
}

fn metadata() -> Metadata {
    Metadata {
        permissions: 0o755,
        uid: 1,
        gid: 2,
        mtime: Mtime { seconds: -3, nanoseconds: Some(4) },
        xattrs: Xattrs::new(),
    }
}

fn put(at: &str, content: Content) -> Change {
    Change::Put { path: path(at), metadata: metadata(), content }
}

fn file(content: &[u8]) -> Content {
    let objects = FileObjects::Whole(Algorithm::Sha1.hash(content));
    Content::Stored(FileContent { size: 1, compression: Compression::Zlib, objects, external: false, direct_io: false })
}

fn ensure(at: &str) -> Change {
    Change::Ensure { path: path(at), metadata: metadata() }
}

fn remove(at: &str) -> Change {
    Change::Remove { path: path(at) }
}

fn link(at: &str, target: &str) -> Change {
    Change::Link { path: path(at), target: path(target) }
}

fn set() -> (tempfile::TempDir, ChangeSet) {
    let directory = tempfile::tempdir().unwrap();
    let set = ChangeSet::create(&directory.path().join("set"), Algorithm::Sha1.hash(b"base")).unwrap();
    (directory, set)
}

/// Paths with a letter for what becomes of them and `!` for cleared ones, in tree order.
fn outline(set: &ChangeSet) -> Vec<String> {
    let mut lines = Vec::new();
    set.for_each(|pending| {
        let letter = match &pending.op {
            Op::Keep => 'k',
            Op::Ensure(_) => 'e',
            Op::Put(entry) if entry.is_directory() => 'd',
            Op::Put(_) => 'f',
            Op::LinkToExisting(_) => 'l',
            Op::Remove => 'r',
        };
        lines.push(format!("{letter}{} {}", if pending.cleared { "!" } else { "" }, pending.path));
        Ok(())
    })
    .unwrap();
    lines
}

#[test]
fn only_the_net_effect_is_kept() {
    for (changes, expected) in [
        (vec![put("a", file(b"1")), put("a", file(b"2"))], vec!["f /a"]),
        (vec![ensure("a"), put("a/b", file(b"")), put("a", file(b""))], vec!["f /a"]),
        (vec![put("a", file(b"")), put("a", Content::Directory), put("a/b", file(b""))], vec!["d! /a", "f /a/b"]),
        (vec![remove("a"), ensure("a"), put("a/b", file(b""))], vec!["d! /a", "f /a/b"]),
        (vec![remove("a"), ensure("a"), ensure("a/b")], vec!["d! /a", "d /a/b"]),
        (vec![Change::Clear { path: path("a") }, ensure("a")], vec!["e! /a"]),
        (vec![Change::Clear { path: path("a") }, Change::Clear { path: path("a/b") }], vec!["k! /a"]),
        (vec![put("a", Content::Directory), put("a/b", file(b"")), remove("a")], vec!["r /a"]),
        (vec![put("a", Content::Directory), Change::Clear { path: path("a") }], vec!["d! /a"]),
        (vec![put("a", Content::Directory), ensure("a")], vec!["d /a"]),
        (vec![put("in/repo", file(b"")), put("in", file(b""))], vec!["f /in"]),
        (vec![ensure("a"), put("a", Content::Directory)], vec!["d /a"]),
        (vec![Change::Clear { path: path("a") }, put("a/b", file(b""))], vec!["k! /a", "f /a/b"]),
    ] {
        let (_directory, mut set) = set();
        for change in changes.clone() {
            set.record(change).unwrap();
        }
        assert_eq!(outline(&set), expected, "{changes:?}");
    }
}

/// What is left of layers, the lowest first.
fn outline_of_layers(layers: &[&[Change]]) -> Vec<String> {
    let (_directory, mut set) = set();
    for (number, layer) in layers.iter().enumerate() {
        let origin = Origin { source: format!("layer {number}").into(), offset: Some(512) };
        set.set_origin(Some(&origin)).unwrap();
        layer.iter().for_each(|change| set.record(change.clone()).unwrap());
    }
    outline(&set)
}

#[test]
fn whiteouts_hide_what_other_layers_have_wherever_they_stand_in_their_own() {
    let white_out = |at: &str| Change::Whiteout { path: path(at) };
    let opaque = |at: &str| Change::Opaque { path: path(at) };
    let directory = |at: &str| put(at, Content::Directory);
    let below = [directory("d"), put("d/old", file(b"")), directory("d/e"), put("d/e/old", file(b""))];
    for (layer, expected) in [
        (vec![white_out("d")], vec!["r /d"]),
        (vec![white_out("d/old")], vec!["d /d", "d /d/e", "f /d/e/old", "r /d/old"]),
        (vec![opaque("d")], vec!["d! /d"]),
        (vec![opaque("d"), put("d/new", file(b""))], vec!["d! /d", "f /d/new"]),
        (vec![put("d/new", file(b"")), opaque("d")], vec!["d! /d", "f /d/new"]),
        (vec![put("d/e/new", file(b"")), opaque("d")], vec!["d! /d", "d /d/e", "f /d/e/new"]),
        (vec![put("d/old", file(b"")), opaque("d"), white_out("d/old")], vec!["d! /d", "f /d/old"]),
        (vec![put("d/new", file(b"")), white_out("d")], vec!["d! /d", "f /d/new"]),
        (vec![white_out("d"), directory("d"), put("d/new", file(b""))], vec!["d! /d", "f /d/new"]),
        (vec![put("d", file(b"")), white_out("d")], vec!["f /d"]),
        (vec![opaque("")], vec!["k! /"]),
        (vec![white_out("x")], vec!["d /d", "d /d/e", "f /d/e/old", "f /d/old", "r /x"]),
    ] {
        assert_eq!(outline_of_layers(&[&below, &layer]), expected, "{layer:?}");
    }
}

#[test]
fn rows_and_errors_tell_where_they_come_from() {
    let (directory, mut set) = set();
    let origin = |source: &Arc<str>, offset| Origin { source: Arc::clone(source), offset: Some(offset) };
    let (first, second): (Arc<str>, Arc<str>) = ("a.tar".into(), "a.tar".into());
    for (source, offset, at) in [(&first, 512, "a"), (&first, 1024, "b"), (&second, 512, "c")] {
        set.set_origin(Some(&origin(source, offset))).unwrap();
        set.record(put(at, Content::Directory)).unwrap();
    }
    let error = set.record(link("x", "c")).unwrap_err().to_string();
    assert_eq!(error, "a.tar: entry at byte 512: /x: hard link to the directory /c");
    set.set_origin(None).unwrap();
    set.record(put("d", Content::Directory)).unwrap();
    set.close().unwrap();
    let set = ChangeSet::open(&directory.path().join("set")).unwrap();
    let found = |at: &str| set.get(&path(at)).unwrap().unwrap().origin;
    assert_eq!(found("b"), Some(origin(&first, 1024)));
    assert_eq!(found("c"), Some(origin(&second, 512)));
    assert_eq!(found("d"), None);
}

#[test]
fn rows_come_in_tree_order_also_over_many_pages() {
    let (_directory, mut set) = set();
    let mut expected = Vec::new();
    for number in (0..1500).rev() {
        set.record(put(&format!("d{number:04}"), Content::Directory)).unwrap();
        set.record(put(&format!("d{number:04}/f"), file(b""))).unwrap();
    }
    for number in 0..1500 {
        expected.extend([format!("d /d{number:04}"), format!("f /d{number:04}/f")]);
    }
    assert_eq!(outline(&set), expected);
    let (_directory, mut set) = self::set();
    for at in ["a-b", "a", "a!"] {
        set.record(put(at, Content::Directory)).unwrap();
    }
    set.record(put("a/b", file(b""))).unwrap();
    assert_eq!(outline(&set), ["d /a", "f /a/b", "d /a!", "d /a-b"]);
}

#[test]
fn everything_about_an_entry_reads_back_after_reopening() {
    let (directory, mut set) = set();
    let hash = |text: &[u8]| Algorithm::Shake128.hash(text);
    let chunks = vec![Chunk { offset: 0, size: 7, hash: hash(b"1") }, Chunk { offset: 7, size: 3, hash: hash(b"2") }];
    let objects = FileObjects::Chunked { chunks, bulk: None };
    let chunked = FileContent { size: 10, compression: Compression::None, objects, external: true, direct_io: false };
    let mut changes = vec![
        put("chunked", Content::Stored(chunked)),
        put("device", Content::Special(crate::entry::Special::BlockDevice(0x1234_5678_9abc))),
        put("link", Content::Symlink { target: b"\xff\n".to_vec() }),
    ];
    if let Change::Put { metadata, .. } = &mut changes[0] {
        metadata.xattrs.set(b"user.a", b"1").unwrap();
    }
    for change in changes.clone() {
        set.record(change).unwrap();
    }
    set.close().unwrap();
    let set = ChangeSet::open(&directory.path().join("set")).unwrap();
    assert_eq!(set.base().unwrap(), Algorithm::Sha1.hash(b"base"));
    for change in changes {
        let Change::Put { path, metadata, content } = change else { unreachable!() };
        let expected = metadata.into_entry(content.into_kind().unwrap());
        assert_eq!(set.get(&path).unwrap().unwrap().op, Op::Put(expected));
    }
}

#[test]
fn hard_links_share_what_they_name_at_that_moment() {
    let (_directory, mut set) = set();
    set.record(put("a", file(b"first"))).unwrap();
    set.record(link("b", "a")).unwrap();
    set.record(link("c", "b")).unwrap();
    set.record(put("a", file(b"second"))).unwrap();
    set.record(link("d", "a")).unwrap();
    let get = |at: &str| set.get(&path(at)).unwrap().unwrap();
    assert_eq!(get("b").op, get("c").op);
    assert_eq!(get("b").inode, get("c").inode);
    assert_eq!(get("a").op, get("d").op);
    assert_eq!(get("a").inode, get("d").inode);
    assert_ne!(get("a").inode, get("b").inode);
    assert_ne!(get("a").op, get("b").op);
}

#[test]
fn impossible_links_and_places_are_refused() {
    let (_directory, mut set) = set();
    for change in [put("d", Content::Directory), put("f", file(b"")), remove("gone"), put("empty", Content::Directory)]
    {
        set.record(change).unwrap();
    }
    set.record(Change::Clear { path: path("empty") }).unwrap();
    for change in [
        link("x", "d"),
        link("x", "gone"),
        link("x", "gone/below"),
        link("x", "empty/below"),
        link("x", "f/below"),
        link("f", "f"),
        put("f/below", file(b"")),
        ensure("f"),
        remove(""),
    ] {
        assert!(matches!(set.record(change.clone()), Err(Error::InvalidInput { .. })), "{change:?}");
    }
    set.record(link("x", "in/the/repository")).unwrap();
    assert_eq!(set.get(&path("x")).unwrap().unwrap().op, Op::LinkToExisting(path("in/the/repository")));
}
