//! A repository that the reference server made: we read all of it at every tag as its client does, and continue on it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::sync::Arc;

use crate::support::fixture::{FQRN, NOW, fixture, unpacked};
use crate::support::{Listing, Site};
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::entry::{EntryKind, FileObjects, Special};
use cvmfs_core::path::RepoPath;
use cvmfs_core::repository::{Repository, Selector};
use cvmfs_core::storage::LocalStore;
use cvmfs_core::tree::Tree;
use cvmfs_core::trust::keys::PublicKey;

/// What the reference client showed at a tag.
fn expected(tag: &str) -> String {
    let text = fs::read_to_string(fixture(&format!("MANIFEST.{tag}.txt"))).expect("listing");
    text.split_once('\n').expect("a header").1.to_owned()
}

fn percent(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        if byte <= 0x20 || byte >= 0x7f || byte == b'%' || byte == b'\\' {
            write!(text, "%{byte:02x}").expect("string");
        } else {
            text.push(char::from(byte));
        }
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Major and minor number, composed as the C library does on Linux.
fn device_text(number: u64) -> String {
    let major = number >> 8 & 0xfff | number >> 32 & 0xffff_f000;
    let minor = number & 0xff | number >> 12 & 0xffff_ff00;
    format!("{major}:{minor}")
}

/// The default values of variables, which are what the client showed: none of them was set.
fn expand(target: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(target);
    match text.split_once("$(").and_then(|(before, rest)| Some((before, rest.split_once(')')?))) {
        Some((before, (variable, after))) => {
            let default = variable.split_once(":-").map_or("", |(_, default)| default);
            format!("{before}{default}{after}").into_bytes()
        }
        None => target.to_vec(),
    }
}

/// The listing that `tests/verifier/vlist.py` describes, made with our reader.
fn listing(tree: &mut Tree) -> String {
    let mut rows = BTreeMap::new();
    tree.walk(&RepoPath::root(), &mut |path, row| {
        rows.insert(path.as_bytes().to_vec(), (path.clone(), row.clone()));
        Ok(())
    })
    .expect("walk");
    let mut text = String::new();
    for (path, row) in rows.values() {
        let entry = &row.entry;
        assert!(!entry.hidden, "{path}: the fixture has no hidden entries");
        let (mut size, mut digest, mut target, mut device) = (0, "-".to_owned(), "-".to_owned(), None);
        let kind = match &entry.kind {
            EntryKind::Directory(_) => {
                size = 4096;
                'd'
            }
            EntryKind::File(file) => {
                let mut content = Vec::new();
                tree.open_file(path, file).map(|mut file| file.read_to_end(&mut content).expect("read")).expect("open");
                size = content.len();
                digest = hex(&openssl::sha::sha256(&content));
                'f'
            }
            EntryKind::Symlink { target: raw } => {
                let expanded = expand(raw);
                size = expanded.len();
                target = percent(&expanded);
                'l'
            }
            EntryKind::Special(Special::Fifo) => 'p',
            EntryKind::Special(Special::Socket) => 's',
            EntryKind::Special(Special::CharacterDevice(number)) => {
                device = Some(*number);
                'c'
            }
            EntryKind::Special(Special::BlockDevice(number)) => {
                device = Some(*number);
                'b'
            }
        };
        let shown = if path.is_root() { ".".to_owned() } else { percent(path.as_bytes()) };
        let device = device.map_or("-".to_owned(), device_text);
        let xattrs: Vec<String> =
            entry.xattrs.iter().map(|(key, value)| format!("{}={}", percent(key), hex(value))).collect();
        let xattrs = if xattrs.is_empty() { "-".to_owned() } else { xattrs.join(",") };
        writeln!(
            text,
            "{shown} {kind} {:04o} {size} {digest} {}.{:09} {} {target} {} {} {device} {xattrs}",
            entry.permissions,
            entry.mtime.seconds,
            entry.mtime.nanoseconds.unwrap_or(0),
            row.hardlinks.count,
            entry.uid,
            entry.gid,
        )
        .expect("string");
    }
    text
}

fn open(site: &Site) -> Repository {
    let key = fs::read(site.key_file("pub")).expect("key");
    let key = PublicKey::from_pem("public key", &key).expect("public key");
    let store = Arc::new(LocalStore::open(site.storage()).expect("storage"));
    let name = FQRN.parse().expect("name");
    Repository::open(store, &name, &[key], UnixSeconds(NOW), site.temp.path()).expect("repository")
}

#[track_caller]
fn assert_reads(repository: &Repository, selector: &Selector, expected: &str) {
    let found = listing(&mut repository.tree(selector).expect("tree"));
    Listing::parse(&found).assert_is(&Listing::parse(expected));
    assert!(found == expected, "{selector:?}: the order differs");
}

#[test]
fn we_read_every_tag_as_the_reference_client_does() {
    let site = unpacked();
    let repository = open(&site);
    for tag in ["v1", "v2", "v3", "v4"] {
        assert_reads(&repository, &Selector::Tag(tag.into()), &expected(tag));
    }
    assert_reads(&repository, &Selector::Head, &expected("v4"));
    // The listing covers what is worth reading.
    let mut chunked = 0;
    let mut tree = repository.tree(&Selector::Head).expect("tree");
    tree.walk(&RepoPath::root(), &mut |_, row| {
        chunked += u32::from(
            matches!(&row.entry.kind, EntryKind::File(file) if matches!(file.objects, FileObjects::Chunked { .. })),
        );
        Ok(())
    })
    .expect("walk");
    assert!(chunked > 0);
}

#[test]
fn our_ingest_continues_on_it() {
    let site = unpacked();
    let now = NOW.to_string();
    let before = site.list(&["--now", &now]);
    let source = site.path("source");
    fs::create_dir_all(source.join("deep/er")).expect("mkdir");
    for (file, content) in [("a", vec![1; 700_000]), ("deep/er/b", b"b".to_vec()), ("deep/.cvmfscatalog", vec![])] {
        fs::write(source.join(file), content).expect("write");
    }
    crate::support::pack(&source, &site.path("ours.tar"), &["a", "deep"]);

    // Into catalogs of theirs, made by marker and by their ingest; a file, a directory and a catalog of theirs go.
    let catalogs = before.directories_with(".cvmfscatalog");
    assert!(catalogs.contains(&"auto/a") && catalogs.contains(&"layers/one"), "{catalogs:?}");
    let arguments =
        ["--base-dir", "auto/a/ours", "--delete", "auto/a/f", "--delete", "auto/b", "--delete", "links", "--tag", "v5"];
    let outcome = site.ingest_tar("ours.tar", &arguments);
    assert_eq!((outcome["changed"].as_bool(), outcome["revision"].as_u64()), (Some(true), Some(6)), "{outcome}");
    site.ingest_tar("ours.tar", &["--base-dir", "layers/one/usr", "--delete", "layers/one/usr/bin/conf"]);
    site.check(&["--now", &now, "--no-strict", "--chunks", "262144,524288,1048576"]);

    let after = site.list(&["--now", &now]);
    let ours = crate::support::source_listing(&source);
    after.below("auto/a/ours").assert_is(&ours);
    let in_usr = |path: &str| matches!(path.strip_prefix("layers/one/usr/"), Some(rest) if ours.0.contains_key(rest));
    let below = after.below("layers/one/usr");
    for (path, line) in &ours.0 {
        assert_eq!(below.0.get(path), Some(line), "{path}");
    }
    // Everything else is as it was; where a sub-directory came or went, the directory counts it.
    let mut rest = after;
    rest.take(|path| path == "auto/a/ours" || path.starts_with("auto/a/ours/") || in_usr(path));
    let mut kept = before.clone();
    kept.take(|path| {
        ["auto/b", "links"].iter().any(|gone| path == *gone || path.starts_with(&format!("{gone}/")))
            || path == "auto/a/f"
            || path == "layers/one/usr/bin/conf"
    });
    let counts = |listing: &Listing, path: &str| listing.0[path].split(' ').nth(5).and_then(|n| n.parse::<u32>().ok());
    for (path, difference) in [(".", -1), ("auto", -1), ("auto/a", 1), ("layers/one/usr", 1)] {
        let old = counts(&kept, path).expect("a number");
        assert_eq!(counts(&rest, path), old.checked_add_signed(difference), "{path}");
        rest.take(|other| other == path);
        kept.take(|other| other == path);
    }
    rest.assert_is(&kept);

    let repository = open(&site);
    for tag in ["v1", "v2", "v3", "v4"] {
        assert_reads(&repository, &Selector::Tag(tag.into()), &expected(tag));
    }
}

/// Names of the files of the newest revision and what is in them, unpacked below `directory`.
fn unpack_files(repository: &Repository, directory: &std::path::Path) -> u64 {
    let mut tree = repository.tree(&Selector::Head).expect("tree");
    let mut files = Vec::new();
    tree.walk(&RepoPath::root(), &mut |path, row| {
        if let EntryKind::File(file) = &row.entry.kind {
            files.push((path.clone(), file.clone()));
        }
        Ok(())
    })
    .expect("walk");
    for (number, (path, file)) in files.iter().enumerate() {
        let mut content = Vec::new();
        tree.open_file(path, file).expect("open").read_to_end(&mut content).expect("read");
        fs::write(directory.join(format!("file{number}")), content).expect("write");
    }
    files.len() as u64
}

#[test]
fn contents_that_the_reference_published_are_recognised_after_a_rebuild_of_the_index() {
    let site = unpacked();
    let copies = tempfile::tempdir().expect("temporary directory");
    let copies = copies.path();
    let files = unpack_files(&open(&site), copies);
    crate::support::pack(copies, &site.path("copies.tar"), &["."]);
    assert_eq!(site.publish(&["--json", "index"]).json()["pieces"].as_u64(), Some(0));

    let unaware = site.ingest_tar("copies.tar", &["--base-dir", "before", "--no-index"]);
    assert!(unaware["content"]["objects_new"].as_u64() > Some(0), "another compressor gives the same: {unaware}");

    let site = unpacked();
    let rebuilt = site.publish(&["--json", "index", "--rebuild"]).json();
    assert_eq!(rebuilt["unreadable"].as_u64(), Some(0), "{rebuilt}");
    crate::support::pack(copies, &site.path("copies.tar"), &["."]);
    let outcome = site.ingest_tar("copies.tar", &["--base-dir", "copies"]);
    let content = &outcome["content"];
    assert_eq!((content["files"].as_u64(), content["objects_new"].as_u64()), (Some(files), Some(0)), "{outcome}");
}

#[test]
fn a_rebuild_reports_what_it_cannot_read_and_adds_the_rest() {
    let site = unpacked();
    let all = site.publish(&["--json", "index", "--rebuild"]).json();
    let pieces = site.publish(&["--json", "index"]).json()["pieces"].as_u64();
    let file = open(&site).tree(&Selector::Head).expect("tree").get(&"docs/readme.txt".parse().expect("path"));
    let EntryKind::File(file) = file.expect("entry").entry.kind else { panic!("not a file") };
    let object = site.storage().join(cvmfs_core::storage::Key::Object(file.parts()[0].0).to_string());
    let stored = fs::read(&object).expect("object");

    for damage in [true, false] {
        fs::remove_file(&object).expect("remove");
        if damage {
            fs::write(&object, &stored[..stored.len() - 1]).expect("write");
        }
        fs::remove_file(site.spool().join("known-content.db")).expect("remove");
        let done = site.publish(&["--json", "index", "--rebuild"]);
        let report: serde_json::Value = serde_json::from_str(&done.stdout).expect("JSON");
        assert_eq!(report["unreadable"].as_u64(), Some(1), "{report}");
        assert!(report["problems"][0].as_str().expect("text").contains("docs/readme.txt"), "{report}");
        assert_eq!(report["objects"].as_u64(), all["objects"].as_u64().map(|objects| objects - 1));
        assert!(done.fails(3).contains("1 objects cannot be read"));
        let left = site.publish(&["--json", "index"]).json()["pieces"].as_u64();
        assert!(left < pieces && left > Some(0), "{left:?} of {pieces:?}");
    }
}
