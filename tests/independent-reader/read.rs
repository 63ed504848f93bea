//! A client by other authors reads a repository that we made and serve: every entry and every byte is that of the
//! source.
//!
//! It knows SHA-1 and zlib only, wants a tag for the newest revision, and names in UTF-8; it verifies little. What it
//! shows is that our repositories make sense to somebody who never saw our code, nor we theirs.

#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use cvmfs::common::FileLike;
use cvmfs::fetcher::Fetcher;
use cvmfs::repository::Repository;
use support::{NAME, Site, make_tree, pack};

/// Adds to the many files what this reader can tell apart.
fn make_source(source: &Path) {
    make_tree("many", source, &["300"]);
    let special = source.join("01/special");
    fs::create_dir(&special).expect("mkdir");
    fs::write(special.join("empty"), b"").expect("write");
    fs::write(special.join("Grüße 你好"), "name in UTF-8").expect("write");
    fs::write(special.join("a line\nbreak"), "line").expect("write");
    fs::write(special.join("program"), b"#!/bin/sh\n").expect("write");
    fs::set_permissions(special.join("program"), std::os::unix::fs::PermissionsExt::from_mode(0o4755)).expect("mode");
    std::os::unix::fs::symlink("../1/../large", special.join("symlink")).expect("symlink");
    fs::hard_link(special.join("program"), special.join("program too")).expect("link");
    fs::create_dir_all(source.join("08/in a catalog/deeper")).expect("mkdir");
    fs::copy(source.join("large"), source.join("08/in a catalog/deeper/large")).expect("copy");
}

fn read(file: &dyn FileLike) -> Vec<u8> {
    let mut content = Vec::new();
    let mut buffer = vec![0; 100_000];
    loop {
        match file.read_at(content.len() as u64, &mut buffer).expect("read") {
            0 => return content,
            size => content.extend_from_slice(&buffer[..size]),
        }
    }
}

/// Compares a directory with all below it; returns the number of entries and that of chunked files.
fn compare(repository: &Repository, fetcher: &Fetcher, source: &Path, path: &str) -> (usize, usize) {
    let mut expected: Vec<String> = fs::read_dir(source)
        .expect("list")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8"))
        .collect();
    expected.sort();
    let mut entries = repository.list_directory(path).unwrap_or_else(|error| panic!("{path}: {error:?}"));
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<&String> = entries.iter().map(|entry| &entry.name).collect();
    assert_eq!(names, expected.iter().collect::<Vec<_>>(), "{path}");
    let (mut count, mut chunked) = (entries.len(), 0);
    for listed in entries {
        let path = format!("{path}/{}", listed.name);
        let file = source.join(&listed.name);
        let metadata = fs::symlink_metadata(&file).expect("metadata");
        let entry = repository.lookup_with_chunks(&path).unwrap_or_else(|error| panic!("{path}: {error:?}"));
        for entry in [&listed, &entry] {
            assert_eq!(u32::from(entry.mode), metadata.mode(), "{path}");
            assert_eq!((entry.uid, entry.gid), (metadata.uid(), metadata.gid()), "{path}");
            assert_eq!(entry.mtime, metadata.mtime(), "{path}");
            assert_eq!(u64::from(entry.nlink()), metadata.nlink(), "{path}");
        }
        if metadata.is_dir() {
            let below = compare(repository, fetcher, &file, &path);
            (count, chunked) = (count + below.0, chunked + below.1);
        } else if metadata.is_symlink() {
            let target = fs::read_link(&file).expect("symlink");
            assert_eq!(entry.symlink.as_deref().map(Path::new), Some(target.as_path()), "{path}");
        } else {
            assert_eq!(u64::try_from(entry.size).ok(), Some(metadata.len()), "{path}");
            chunked += usize::from(entry.has_chunks());
            // Its threads that fetch ahead let others see files that they have not finished; so all are there before.
            for chunk in &entry.chunks {
                let hash = chunk.content_hash_string();
                fetcher.retrieve_file(&format!("data/{}/{}P", &hash[..2], &hash[2..])).expect("chunk");
            }
            let content = repository.get_file(&path).unwrap_or_else(|error| panic!("{path}: {error:?}"));
            assert!(read(&*content) == fs::read(&file).expect("source"), "{path}: other content");
        }
    }
    (count, chunked)
}

#[test]
fn another_client_reads_every_byte() {
    let site = Site::with_repository(&[]);
    make_source(&site.path("source"));
    pack(&site.path("source"), &site.path("source.tar"), &["."]);
    site.ingest_tar("source.tar", &["--base-dir", "first"]);
    // The second revision has nested catalogs from both, and lost some.
    site.ingest_tar("source.tar", &["--base-dir", "second", "--delete", "first/08", "--delete", "first/large"]);

    // It asks for these of a replica again and again for half a minute, unless they are there.
    for name in [".cvmfs_last_snapshot", ".cvmfs_is_snapshotting"] {
        fs::write(site.storage().join(name), "Sun Oct 27 03:46:40 UTC 2024\n").expect("write");
    }
    let server = site.serve();
    let cache = site.path("cache");
    fs::create_dir(&cache).expect("mkdir");
    let fetcher = || Fetcher::new(&server.repository(NAME), cache.to_str().expect("UTF-8"), true).expect("fetcher");
    let mut repository = Repository::new(fetcher()).expect("repository");
    let fetcher = fetcher();
    assert_eq!(repository.fqrn, NAME);
    assert_eq!(repository.get_revision_number().expect("revision"), 3);
    repository.retrieve_current_root_catalog().expect("root catalog");

    let (second, chunked) = compare(&repository, &fetcher, &site.path("source"), "/second");
    // 300 small files and the large one, their directories, markers, and what we added.
    assert!(second > 340 && chunked >= 2, "{second} entries, {chunked} chunked");
    fs::remove_dir_all(site.path("source/08")).expect("remove");
    fs::remove_file(site.path("source/large")).expect("remove");
    // A deletion leaves the time of the directory as the tarball had it.
    let (first, _) = compare(&repository, &fetcher, &site.path("source"), "/first");
    assert!(first < second, "{first} entries");

    // The revision before, by its tag.
    repository.set_current_tag(2).expect("tag of revision 2");
    repository.retrieve_current_root_catalog().expect("root catalog");
    let names: Vec<String> = repository.list_directory("").expect("root").into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["first"]);
}
