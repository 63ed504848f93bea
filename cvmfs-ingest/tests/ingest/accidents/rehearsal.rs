//! `--dry-run` says what a run would do, and does nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::support::{Repo, Tar};

/// All files below a directory with their content.
fn snapshot(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(directory) = todo.pop() {
        for path in super::support::files(&directory) {
            if path.is_dir() {
                todo.push(path);
            } else {
                found.insert(path.clone(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn a_dry_run_shows_the_changes_and_makes_none() {
    let repo = Repo::with_content();
    let tar = Tar::new()
        .file("dir/file", b"other")
        .file("dir/new", b"new")
        .entry(b'0', "dir/sub/deep", "", b"deep", |header| header[100..107].copy_from_slice(b"0000600"))
        .link("group/four", "group/one")
        .file("nested/sub/more", b"x");
    let (storage, spool) = (snapshot(&repo.storage()), snapshot(&repo.spool()));
    let arguments = &["--delete", "link", "--delete", "nested/sub/deep", "--tag", "wanted"];
    let dry = [&arguments[..], &["--dry-run"]].concat();

    let text = repo.ingest(&tar.clone().end(), &dry).expect(0, &[]).out;
    let lines: Vec<&str> = text.lines().collect();
    for line in ["+ /dir/new", "- /link", "- /nested/sub/deep", "+ /nested/sub/more", "+ /group/four"] {
        assert!(lines.contains(&line), "{line}: {text}");
    }
    let starts = |start: &str| lines.iter().any(|line| line.starts_with(start));
    assert!(starts("M /dir/file  size 7 -> 5"), "{text}");
    assert!(starts("M /dir/sub/deep  mode 0644 -> 0600"), "{text}");
    assert!(starts("M /group/one  links 3 -> 4"), "{text}");
    assert!(lines.last().unwrap().starts_with("would be: 3 added, 2 removed, "), "{text}");
    assert!(!lines.iter().any(|line| line.contains("/nested/.cvmfscatalog")), "{text}");

    let json = repo.ingest(&tar.clone().end(), &[&dry[..], &["--json"]].concat()).expect(0, &[]).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["dry_run"], true);
    assert_eq!(json["changes"].as_array().unwrap().len(), lines.len() - 1);
    assert_eq!(json["outcome"]["tag"], "wanted");

    assert!(storage == snapshot(&repo.storage()), "the storage changed");
    assert!(spool == snapshot(&repo.spool()), "the spool directory changed");
    repo.accepts(&tar.clone().end(), arguments);
    assert_eq!(repo.ingest(&tar.end(), &[&arguments[2..4], &["--dry-run"]].concat()).out, "nothing would change\n");
}

#[test]
fn a_dry_run_fails_as_the_run_would() {
    let repo = Repo::with_content();
    let tar = Tar::new().link("l", "nothing").end();
    repo.refuses(&tar, &["--dry-run"], 1, &["byte 0:", "/nothing"]);
    let bad = Tar::new().file("a", b"x").file("../b", b"x").end();
    repo.refuses(&bad, &["-n"], 1, &["byte 1024"]);
}
