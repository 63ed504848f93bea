//! Trees that change shape: deletions, replacements, base directories of every kind.

use super::support::{Repo, Tar};

#[track_caller]
fn below(repo: &Repo, directory: &str) -> Vec<String> {
    let prefix = format!("{directory}/");
    repo.paths().iter().filter_map(|path| path.strip_prefix(&prefix)).map(str::to_owned).collect()
}

#[test]
fn what_is_not_there_can_be_deleted_and_the_root_cannot() {
    let repo = Repo::with_content();
    let before = repo.manifest();
    for path in ["missing", "missing/below", "dir/file/below", "link/file", "nested/sub/missing"] {
        let run = repo.run(&["--delete", path]).expect(0, &[]);
        assert!(run.out.contains("unchanged"), "{run:?}");
    }
    assert!(repo.manifest() == before);
    for path in ["/", "", ".", "//"] {
        repo.fails(&["--delete", path], 1, &["root"]);
    }
    repo.fails(&["--delete", "a/../b"], 2, &["a/../b"]);
    repo.fails(&["--delete", ".cvmfs"], 1, &["/.cvmfs"]);
    repo.fails(&["--delete", ".cvmfs/snapshots"], 1, &["/.cvmfs"]);
    let empty = repo.archive(&Tar::new().end());
    repo.fails(&["--tar", &empty, "--base-dir", "a/../b"], 2, &["a/../b"]);
    repo.fails(&["--tar", &empty, "--base-dir", ".cvmfs/x"], 1, &["/.cvmfs"]);
}

#[test]
fn names_with_colons_and_newlines_can_be_deleted() {
    let repo = Repo::new();
    repo.accepts(&Tar::new().file("a:b", b"").file("c\nd/e", b"").file("stays", b"").end(), &[]);
    repo.run(&["--delete", "a:b", "--delete", "c\nd"]).expect(0, &[]);
    repo.check();
    assert_eq!(repo.paths(), ["stays"]);
}

#[test]
fn nested_catalogs_can_be_deleted_and_replaced() {
    for (archive, arguments, expected) in [
        (Tar::new(), &["--delete", "nested"][..], vec![]),
        (Tar::new().file("nested", b"x"), &[], vec!["nested"]),
        (Tar::new().symlink("nested", "x"), &[], vec!["nested"]),
        (Tar::new().link("nested", "dir/file"), &[], vec!["nested"]),
        (Tar::new().file("nested/new", b""), &["--delete", "nested"], vec!["nested", "nested/new"]),
        (Tar::new(), &["--delete", "nested/.cvmfscatalog"], vec!["nested", "nested/sub", "nested/sub/deep"]),
        (Tar::new().file("nested/.cvmfscatalog", b""), &["--delete", "nested"], vec!["nested", "nested/.cvmfscatalog"]),
        (
            Tar::new().file("nested/sub/.cvmfscatalog", b""),
            &["--delete", "nested/.cvmfscatalog"],
            vec!["nested", "nested/sub", "nested/sub/.cvmfscatalog", "nested/sub/deep"],
        ),
    ] {
        let repo = Repo::with_content();
        repo.accepts(&archive.end(), arguments);
        let found: Vec<String> = repo.paths().into_iter().filter(|path| path.starts_with("nested")).collect();
        assert_eq!(found, expected, "{arguments:?}");
        // There and back again.
        repo.accepts(
            &Tar::new().file("nested/.cvmfscatalog", b"").file("nested/sub/x", b"").end(),
            &["--delete", "nested"],
        );
        assert_eq!(below(&repo, "nested"), [".cvmfscatalog", "sub", "sub/x"]);
    }
}

#[test]
fn everything_can_be_deleted() {
    let repo = Repo::with_content();
    let tops = ["dir", "link", "nested", "group"];
    let arguments: Vec<&str> = tops.iter().flat_map(|top| ["--delete", top]).collect();
    repo.run(&arguments).expect(0, &[]);
    repo.check();
    assert_eq!(repo.paths(), Vec::<String>::new());
    repo.accepts(&Tar::new().file("dir/file", b"again").end(), &[]);
    assert_eq!(repo.paths(), ["dir", "dir/file"]);
}

#[test]
fn deleting_and_adding_is_one_revision() {
    let repo = Repo::with_content();
    let revision: u64 = repo.manifest_field('S').parse().unwrap();
    let tar = Tar::new().file("new", b"x").end();
    repo.accepts(&tar, &["--delete", "dir", "--base-dir", "dir/sub"]);
    assert_eq!(below(&repo, "dir"), ["sub", "sub/new"]);
    assert_eq!(repo.manifest_field('S'), (revision + 1).to_string());
}

#[test]
fn what_was_deleted_may_be_below_what_comes_in_its_place() {
    for (deleted, tar) in [
        ("dir/file", Tar::new().file("dir", b"a file now")),
        ("dir/sub/deep", Tar::new().symlink("dir", "link")),
        ("dir/not there", Tar::new().link("dir", "link")),
        ("nested/sub", Tar::new().file("nested", b"a file now")),
    ] {
        let repo = Repo::with_content();
        repo.accepts(&tar.end(), &["--delete", deleted]);
        let top = deleted.split('/').next().unwrap();
        assert_ne!(repo.list()[top].kind, "d");
        assert_eq!(below(&repo, top), Vec::<String>::new());
    }
    // The same in an image layer.
    for hidden in ["dir/sub/.wh..wh..opq", "dir/sub/.wh.deep", "dir/not/there/.wh..wh..opq"] {
        let repo = Repo::with_content();
        repo.accepts(&Tar::new().file(hidden, b"").file("dir", b"a file now").end(), &["--whiteouts", "oci"]);
        assert_eq!(repo.list()["dir"].kind, "f", "{hidden}");
    }
}

/// What was removed is gone: a file is not in the way of a directory, and a new directory has not the old one's owner.
#[test]
fn what_was_deleted_does_not_shine_through() {
    let repo = Repo::with_content();
    repo.accepts(&Tar::new().file("new", b"x").end(), &["--delete", "dir/file", "--base-dir", "dir/file"]);
    assert_eq!(below(&repo, "dir/file"), ["new"]);

    let repo = Repo::with_content();
    repo.accepts(&Tar::new().file("dir/file/new", b"x").end(), &["--delete", "dir"]);
    assert_eq!(below(&repo, "dir"), ["file", "file/new"]);

    let repo = Repo::with_content();
    repo.accepts(&Tar::new().file("new", b"x").end(), &["--delete", "link", "--base-dir", "link/x"]);
    assert_eq!(below(&repo, "link"), ["x", "x/new"]);

    let repo = Repo::new();
    repo.accepts(&Tar::new().dir("d").dir("d/e").end(), &["--keep-owner"]);
    assert_eq!(repo.list()["d/e"].owner, "1000:2000");
    repo.accepts(&Tar::new().file("d/e/new", b"x").end(), &["--delete", "d", "--uid", "7", "--gid", "8"]);
    let list = repo.list();
    assert_eq!((&list["d"].owner[..], &list["d/e"].owner[..]), ("7:8", "7:8"));
}

#[test]
fn the_base_directory_may_be_a_nested_catalog() {
    let repo = Repo::with_content();
    repo.accepts(&Tar::new().file("new", b"x").end(), &["--base-dir", "nested"]);
    repo.accepts(&Tar::new().file("new", b"y").dir(".").end(), &["--base-dir", "nested", "--catalog"]);
    repo.accepts(&Tar::new().file("new", b"z").end(), &["--base-dir", "nested/sub", "--catalog"]);
    let expected = [".cvmfscatalog", "new", "sub", "sub/.cvmfscatalog", "sub/deep", "sub/new"];
    assert_eq!(below(&repo, "nested"), expected);
}

#[test]
fn a_base_directory_below_something_else_is_refused() {
    let repo = Repo::with_content();
    let path = repo.archive(&Tar::new().file("new", b"x").end());
    for (base, obstacle) in
        [("link", "/link"), ("link/x", "/link"), ("dir/file", "/dir/file"), ("dir/file/x/y", "/dir/file")]
    {
        for arguments in [&["--tar", &path, "--base-dir", base][..], &["--tar", &path, "--base-dir", base, "--catalog"]]
        {
            repo.fails(arguments, 1, &[obstacle, "directory"]);
        }
    }
}

#[test]
fn files_and_directories_of_the_repository_replace_each_other() {
    let repo = Repo::with_content();
    repo.accepts(&Tar::new().file("dir", b"file now").dir("link").file("link/x", b"").end(), &[]);
    let list = repo.list();
    assert_eq!((&list["dir"].kind[..], &list["link"].kind[..]), ("f", "d"));
    assert_eq!(below(&repo, "dir"), Vec::<String>::new());
    repo.accepts(&Tar::new().dir("dir").file("dir/y", b"").symlink("link", "dir").end(), &[]);
    assert_eq!((below(&repo, "dir"), below(&repo, "link")), (vec!["y".to_owned()], vec![]));
    // A directory in the place of a file that was in the place of a directory, or of what was removed, starts empty.
    repo.accepts(&Tar::new().file("nested/sub", b"").dir("nested/sub").file("nested/sub/new", b"").end(), &[]);
    assert_eq!(below(&repo, "nested/sub"), ["new"]);
    repo.accepts(&Tar::new().dir("group").file("group/new", b"").end(), &["--delete", "group"]);
    assert_eq!(below(&repo, "group"), ["new"]);
    // A directory over a directory keeps what is in it.
    repo.accepts(&Tar::new().dir("nested").dir("group").end(), &[]);
    assert_eq!(below(&repo, "nested"), [".cvmfscatalog", "sub", "sub/new"]);
    assert_eq!(below(&repo, "group"), ["new"]);
}

#[test]
fn automatic_catalogs_come_and_go() {
    let repo = Repo::new();
    repo.configure("CVMFS_AUTOCATALOGS=true\nCVMFS_AUTOCATALOGS_MIN_WEIGHT=10\nCVMFS_AUTOCATALOGS_MAX_WEIGHT=50\n");
    let mut tar = Tar::new();
    for directory in 0..12 {
        for file in 0..15 {
            tar = tar.file(&format!("top/d{directory}/f{file}"), b"x");
        }
    }
    let tar = tar.end();
    repo.accepts(&tar, &[]);
    let markers = |repo: &Repo| repo.paths().iter().filter(|path| path.ends_with(".cvmfsautocatalog")).count();
    assert!(markers(&repo) >= 9, "{}", markers(&repo));
    let before = repo.manifest();
    assert!(repo.accepts(&tar, &[]).out.contains("unchanged"));
    assert!(repo.manifest() == before);
    let gone: Vec<String> = (0..12).flat_map(|d| (0..14).map(move |f| format!("top/d{d}/f{f}"))).collect();
    let arguments: Vec<&str> = gone.iter().flat_map(|path| ["--delete", path]).collect();
    repo.run(&arguments).expect(0, &[]);
    repo.check();
    assert_eq!(markers(&repo), 0);
    assert_eq!(below(&repo, "top").len(), 24);
}

#[test]
fn the_rules_of_the_repository_hold_for_archives() {
    let repo = Repo::with_content();
    repo.accepts(&Tar::new().file(".cvmfsdirtab", b"/dir/*\n/soft/*/*\n! *tmp\n").end(), &[]);
    assert!(repo.paths().contains(&"dir/sub/.cvmfscatalog".to_owned()));
    repo.accepts(&Tar::new().file("soft/a/1/x", b"").file("soft/a/tmp/x", b"").file("soft/b/2/x", b"").end(), &[]);
    let markers: Vec<String> =
        below(&repo, "soft").into_iter().filter(|path| path.ends_with(".cvmfscatalog")).collect();
    assert_eq!(markers, ["a/1/.cvmfscatalog", "b/2/.cvmfscatalog"]);
    let path = repo.archive(&Tar::new().file(".cvmfsdirtab", b"relative\n").end());
    repo.fails(&["--tar", &path], 1, &[".cvmfsdirtab", "line 1", "slash"]);
}
