//! Limits on files and catalogs that are to be enforced: nothing is stored for what exceeds them.

use super::support::{Repo, Tar, files, finish};

/// A repository whose catalogs may have 1000 entries, and files 1 MiB.
fn limited() -> Repo {
    let repo = Repo::new();
    repo.configure(
        "CVMFS_ROOT_KCATALOG_LIMIT=1\nCVMFS_NESTED_KCATALOG_LIMIT=1\nCVMFS_FILE_MBYTE_LIMIT=1\nCVMFS_ENFORCE_LIMITS=true\n",
    );
    repo
}

/// Adds a directory with so many files, each of other content.
fn directory(tar: Tar, name: &str, entries: usize) -> Tar {
    (0..entries).fold(tar.dir(name), |tar, number| {
        tar.file(&format!("{name}/f{number}"), format!("{name} {number}").as_bytes())
    })
}

fn objects(repo: &Repo) -> usize {
    files(&repo.storage().join("data")).iter().map(|directory| files(directory).len()).sum()
}

#[track_caller]
fn stores_nothing(repo: &Repo, archive: &[u8], arguments: &[&str], fragments: &[&str]) {
    let (before, objects_before) = (repo.manifest(), objects(repo));
    repo.ingest(archive, arguments).expect(1, fragments);
    assert_eq!(objects(repo), objects_before);
    assert!(repo.manifest() == before, "there is a new revision");
}

#[test]
fn a_catalog_that_would_be_too_large_is_refused_before_anything_is_stored() {
    let repo = limited();
    // Each fits, both do not; a marker makes a catalog of one, though it comes last.
    let both = || directory(directory(Tar::new(), "a", 498), "b", 499);
    stores_nothing(&repo, &both().file("c", b"c").end(), &[], &["1001 entries", "1000", "CVMFS_ROOT_KCATALOG_LIMIT"]);
    let marked = both().file("c", b"c").file("b/.cvmfscatalog", b"").end();
    repo.accepts(&marked, &["--dry-run"]);
    repo.accepts(&marked, &[]);
    let nested = directory(Tar::new(), "b", 1000).end();
    stores_nothing(&repo, &nested, &[], &["/b", "1002 entries", "CVMFS_NESTED_KCATALOG_LIMIT"]);
    // What goes makes room.
    repo.accepts(&directory(Tar::new(), "d", 997).end(), &["--delete", "a", "--delete", "c"]);
}

#[test]
fn the_rules_for_nested_catalogs_count() {
    let repo = limited();
    let tar = || directory(directory(Tar::new(), "a", 600), "b", 600);
    stores_nothing(&repo, &tar().file(".cvmfsdirtab", b"/c\n").end(), &[], &["CVMFS_ROOT_KCATALOG_LIMIT"]);
    repo.accepts(&tar().file(".cvmfsdirtab", b"/b\n").end(), &[]);
}

#[test]
fn a_stream_is_refused_as_soon_as_a_directory_is_too_large() {
    let repo = limited();
    let ingest = |archive: &[u8]| finish(repo.start(&["--tar", "-", "--base-dir", "x"]), archive);
    // It is not read to its end, where it is cut off. (Some thousand entries may be under way.)
    let mut cut = (0..21_000).fold(Tar::new(), |tar, number| tar.file(&format!("a/f{number}"), b"content")).end();
    cut.truncate(cut.len() - 2000);
    ingest(&cut).expect(1, &["/x/a/f999", "1000", "CVMFS_ROOT_KCATALOG_LIMIT"]);
    // Entries that come again are no more entries.
    ingest(&directory(directory(Tar::new(), "a", 900), "a", 900).end()).expect(0, &[]);
    let both = directory(directory(Tar::new(), "a", 600), "b", 600);
    ingest(&both.end()).expect(1, &["the catalog at", "CVMFS_ROOT_KCATALOG_LIMIT"]);
    repo.check();
}

#[test]
fn a_file_that_is_too_large_is_refused_before_anything_is_stored() {
    let repo = limited();
    let tar = || Tar::new().file("small", b"small").file("large", &vec![1; (1 << 20) + 1]);
    stores_nothing(&repo, &tar().end(), &[], &["layer.tar", "byte 1024", "/large", "CVMFS_FILE_MBYTE_LIMIT"]);
    finish(repo.start(&["--tar", "-"]), &tar().end()).expect(1, &["/large", "CVMFS_FILE_MBYTE_LIMIT"]);
    // Zero is no limit.
    repo.configure("CVMFS_FILE_MBYTE_LIMIT=0\nCVMFS_ROOT_KCATALOG_LIMIT=0\n");
    repo.accepts(&directory(tar(), "a", 1500).end(), &[]);
}
