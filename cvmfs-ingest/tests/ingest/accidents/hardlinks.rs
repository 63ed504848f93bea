//! Names of one file, inside and across directories, archives and revisions.

use super::support::{Repo, Tar, noise};

/// Link counts and sizes of paths.
#[track_caller]
fn expect(repo: &Repo, expected: &[(&str, u32)]) {
    let list = repo.list();
    for (path, links) in expected {
        assert_eq!(list.get(*path).map(|line| line.links), Some(*links), "{path}");
    }
}

#[test]
fn links_count_the_names_in_their_directory() {
    let repo = Repo::new();
    let tar = Tar::new()
        .file("a/one", b"x")
        .link("a/two", "a/one")
        .link("b/three", "a/two")
        .link("b/four", "b/three")
        .link("c/five", "a/one")
        .link("/a/six", "./a//one");
    repo.accepts(&tar.end(), &["--base-dir", "base"]);
    expect(
        &repo,
        &[
            ("base/a/one", 3),
            ("base/a/two", 3),
            ("base/a/six", 3),
            ("base/b/three", 2),
            ("base/b/four", 2),
            ("base/c/five", 1),
        ],
    );
}

/// GNU tar given the same file twice writes a link to itself.
#[test]
fn a_link_of_a_file_to_itself_changes_nothing() {
    let repo = Repo::new();
    repo.accepts(&Tar::new().file("one", b"x").link("one", "./one").end(), &[]);
    expect(&repo, &[("one", 1)]);
    assert_eq!(repo.list()["one"].size, 1);
}

#[test]
fn links_to_chunked_files_symlinks_and_devices_work() {
    let repo = Repo::new();
    let content = noise(12 << 20, 1);
    let tar = Tar::new()
        .file("big", &content)
        .link("same", "big")
        .link("d/other", "big")
        .symlink("s", "big")
        .link("t", "s")
        .entry(b'6', "fifo", "", b"", |_| ())
        .link("fifo2", "fifo");
    repo.accepts(&tar.end(), &[]);
    expect(&repo, &[("big", 2), ("same", 2), ("d/other", 1), ("s", 2), ("t", 2), ("fifo", 2), ("fifo2", 2)]);
    let list = repo.list();
    assert!(["same", "d/other"].iter().all(|path| list[*path].sha256 == list["big"].sha256));
    // One of the names goes, another is replaced.
    repo.accepts(&Tar::new().file("same", b"small").end(), &["--delete", "d/other", "--delete", "t"]);
    expect(&repo, &[("big", 1), ("same", 1), ("s", 1)]);
    assert_eq!(repo.list()["big"].size, 12 << 20);
}

#[test]
fn links_to_what_the_repository_has_join_its_group() {
    let repo = Repo::with_content();
    expect(&repo, &[("group/one", 3), ("group/two", 3), ("group/three", 3)]);
    let tar = Tar::new().link("group/four", "group/two").link("dir/copy", "group/one").link("dir/again", "dir/copy");
    repo.accepts(&tar.end(), &[]);
    expect(
        &repo,
        &[("group/one", 4), ("group/two", 4), ("group/three", 4), ("group/four", 4), ("dir/copy", 2), ("dir/again", 2)],
    );
    repo.accepts(&Tar::new().link("dir/more", "dir/file").end(), &[]);
    expect(&repo, &[("dir/file", 2), ("dir/more", 2)]);
    // Different names of one group, in one archive.
    repo.accepts(&Tar::new().link("group/p", "group/one").link("group/q", "group/two").end(), &[]);
    expect(&repo, &[("group/one", 6), ("group/two", 6), ("group/p", 6), ("group/q", 6)]);
    repo.accepts(&Tar::new().link("x/p", "group/one").link("x/q", "group/two").end(), &[]);
    expect(&repo, &[("x/p", 2), ("x/q", 2)]);
}

#[test]
fn members_that_are_replaced_or_removed_leave_their_group() {
    let repo = Repo::with_content();
    repo.accepts(&Tar::new().file("group/two", b"linked").end(), &[]);
    expect(&repo, &[("group/one", 2), ("group/two", 1), ("group/three", 2)]);
    repo.accepts(&Tar::new().symlink("group/three", "one").end(), &[]);
    expect(&repo, &[("group/one", 1), ("group/two", 1), ("group/three", 1)]);

    let repo = Repo::with_content();
    repo.accepts(&Tar::new().end(), &["--delete", "group/one"]);
    expect(&repo, &[("group/two", 2), ("group/three", 2)]);
    repo.accepts(&Tar::new().dir("group/two").end(), &[]);
    expect(&repo, &[("group/two", 2), ("group/three", 1)]);
}

#[test]
fn two_groups_become_one_and_one_becomes_two() {
    let repo = Repo::new();
    let tar = Tar::new().file("d/a", b"1").link("d/b", "d/a").file("d/c", b"2").link("d/d", "d/c");
    repo.accepts(&tar.end(), &[]);
    expect(&repo, &[("d/a", 2), ("d/b", 2), ("d/c", 2), ("d/d", 2)]);
    repo.accepts(&Tar::new().link("d/c", "d/a").link("d/d", "d/a").end(), &[]);
    expect(&repo, &[("d/a", 4), ("d/b", 4), ("d/c", 4), ("d/d", 4)]);
    let list = repo.list();
    assert_eq!(list["d/a"].sha256, list["d/d"].sha256);
    let tar = Tar::new().file("d/a", b"3").link("d/b", "d/a").file("d/c", b"4").link("d/d", "d/c");
    repo.accepts(&tar.end(), &[]);
    expect(&repo, &[("d/a", 2), ("d/b", 2), ("d/c", 2), ("d/d", 2)]);
    // The same content does not make a group.
    let tar = Tar::new().file("d/a", b"5").link("d/b", "d/a").file("d/c", b"5").link("d/d", "d/c");
    repo.accepts(&tar.end(), &[]);
    expect(&repo, &[("d/a", 2), ("d/b", 2), ("d/c", 2), ("d/d", 2)]);
}

#[test]
fn links_over_several_archives_and_to_what_goes_work() {
    let repo = Repo::with_content();
    let (one, two) = (repo.root().join("one.tar"), repo.root().join("two.tar"));
    std::fs::write(&one, Tar::new().file("a", b"x").end()).unwrap();
    std::fs::write(&two, Tar::new().link("b", "a").end()).unwrap();
    let (one, two) = (one.to_str().unwrap(), two.to_str().unwrap());
    repo.run(&["--tar", one, "--tar", two, "--base-dir", "several"]).expect(0, &[]);
    expect(&repo, &[("several/a", 2), ("several/b", 2)]);
    // What is removed first cannot be linked to.
    let path = repo.archive(&Tar::new().link("l", "dir/file").end());
    repo.fails(&["--tar", &path, "--delete", "dir"], 1, &["/l", "/dir/file"]);
    repo.fails(&["--tar", &path, "--delete", "dir/file"], 1, &["/l", "/dir/file"]);
    // What a link took before its target was replaced stays.
    repo.accepts(&Tar::new().link("dir/kept", "dir/file").file("dir/file", b"something new").end(), &[]);
    let list = repo.list();
    assert_eq!(
        (list["dir/kept"].size, list["dir/kept"].links, list["dir/file"].size, list["dir/file"].links),
        (7, 1, 13, 1)
    );
}

#[test]
fn a_linked_marker_makes_a_catalog() {
    let repo = Repo::new();
    let tar = Tar::new()
        .file("a/.cvmfscatalog", b"")
        .link("b/.cvmfscatalog", "a/.cvmfscatalog")
        .file("b/sub/x", b"x")
        .link("b/sub/.cvmfscatalog", "b/.cvmfscatalog")
        .link("c/.cvmfscatalog", "a/.cvmfscatalog")
        .link("c/same", "c/.cvmfscatalog");
    repo.accepts(&tar.end(), &[]);
    expect(&repo, &[("a/.cvmfscatalog", 1), ("b/.cvmfscatalog", 1), ("c/.cvmfscatalog", 2), ("c/same", 2)]);
    // To a marker of the repository.
    repo.accepts(&Tar::new().dir("d").link("d/.cvmfscatalog", "a/.cvmfscatalog").end(), &[]);
    repo.accepts(&Tar::new().end(), &["--delete", "c/.cvmfscatalog"]);
    expect(&repo, &[("d/.cvmfscatalog", 1), ("c/same", 1)]);
}
