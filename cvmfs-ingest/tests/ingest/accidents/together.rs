//! Several at once.

use std::collections::BTreeMap;
use std::process::Stdio;

use super::support::{Repo, Run, Tar, finish, noise};

#[test]
fn commits_on_the_same_path_are_a_conflict() {
    let repo = Repo::with_content();
    let tar = |content: &[u8]| Tar::new().file("x/same", content).end();
    let first = repo.start(&["--tar", "-"]);
    repo.ingest(&tar(b"the other one's"), &[]).expect(0, &[]);
    let before = repo.manifest();
    finish(first, &tar(b"mine")).expect(4, &["/x/same", "another commit"]);
    assert!(repo.manifest() == before);
    repo.works();
    // The second try is based on what the other one did.
    repo.accepts(&tar(b"mine"), &[]);
    assert_eq!(repo.list()["x/same"].size, 4);
}

#[test]
fn conflicts_of_every_kind_are_noticed() {
    let file = |name: &str, content: &[u8]| Tar::new().file(name, content).end();
    let empty = || Tar::new().end();
    type Case<'a> = (Vec<u8>, &'a [&'a str], Vec<u8>, &'a [&'a str]);
    let cases: Vec<Case<'_>> = vec![
        // What goes in the first must not take with it what the second brought.
        (empty(), &["--delete", "dir"], file("dir/sub/new", b"x"), &[]),
        (empty(), &["--delete", "nested"], file("nested/sub/new", b"x"), &[]),
        (empty(), &["--delete", "dir"], file("dir/file", b"changed"), &[]),
        (file("dir", b"a file now"), &[], file("dir/new", b"x"), &[]),
        (file("dir/file", b"mine"), &[], empty(), &["--delete", "dir/file"]),
        (file("dir/new", b"mine"), &[], empty(), &["--delete", "dir"]),
        (file("dir/file", b"mine"), &[], file("dir/file", b"theirs"), &[]),
    ];
    for (number, (mine, my_arguments, theirs, their_arguments)) in cases.into_iter().enumerate() {
        let repo = Repo::with_content();
        let first = repo.start(&[&["--tar", "-"], my_arguments].concat());
        repo.ingest(&theirs, their_arguments).expect(0, &[]);
        let before = repo.manifest();
        let run = finish(first, &mine);
        assert_eq!(run.code, Some(4), "case {number}: {run:?}");
        assert!(repo.manifest() == before, "case {number}");
        repo.works();
    }
}

#[test]
fn commits_on_different_paths_both_arrive() {
    let repo = Repo::with_content();
    let first = repo.start(&["--tar", "-", "--base-dir", "dir/mine", "--catalog", "--delete", "link"]);
    let theirs = Tar::new().file("a", b"theirs").link("l", "a").end();
    repo.ingest(&theirs, &["--base-dir", "dir/theirs"]).expect(0, &[]);
    finish(first, &Tar::new().file("b", b"mine").end()).expect(0, &[]);
    repo.check();
    let paths = repo.paths();
    for path in ["dir/mine/b", "dir/theirs/a", "dir/theirs/l", "dir/file", "dir/sub/deep"] {
        assert!(paths.contains(&path.to_owned()), "{path}");
    }
    assert!(!paths.contains(&"link".to_owned()));
}

#[test]
fn publishers_who_agree_do_not_conflict() {
    let repo = Repo::with_content();
    let tar = Tar::new().dir("x").file("x/same", b"same").end();
    let first = repo.start(&["--tar", "-", "--delete", "link"]);
    repo.ingest(&tar, &["--delete", "link"]).expect(0, &[]);
    let before = repo.manifest();
    let run = finish(first, &tar).expect(0, &[]);
    assert!(run.out.contains("unchanged"), "{run:?}");
    assert!(repo.manifest() == before);
}

#[test]
fn four_processes_at_once_all_arrive() {
    let repo = Repo::with_content();
    let mut expected = BTreeMap::new();
    for round in 0..2_u64 {
        let mut children = Vec::new();
        for number in 0..4_u64 {
            // Some content is the same in all of them.
            let mut tar = Tar::new().file("shared", &noise(200_000, round));
            expected.insert(format!("at/{number}/{round}/shared"), 200_000);
            for file in 0..50 {
                tar = tar.file(&format!("d{}/f{file}", file % 3), &noise(3000, number * 1000 + file));
                expected.insert(format!("at/{number}/{round}/d{}/f{file}", file % 3), 3000);
            }
            let base = format!("at/{number}/{round}");
            let path = repo.root().join(format!("{number}.tar"));
            std::fs::write(&path, tar.end()).unwrap();
            let child = repo
                .command(&["--tar", path.to_str().unwrap(), "--base-dir", &base])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            children.push(child);
        }
        for child in children {
            Run::from(child.wait_with_output().unwrap()).expect(0, &[]);
        }
    }
    repo.check();
    let list = repo.list();
    for (path, size) in expected {
        assert_eq!(list.get(&path).map(|line| line.size), Some(size), "{path}");
    }
    assert_eq!(repo.manifest_field('S'), "10");
}

/// Containers that share a storage have the same process ids.
#[test]
fn processes_of_the_same_number_do_not_meet() {
    let repo = Repo::with_content();
    let mut children = Vec::new();
    for number in 0..2_u64 {
        let mut tar = Tar::new();
        for file in 0..200 {
            tar = tar.file(&format!("f{file}"), &noise(20_000, number * 1000 + file));
        }
        let path = repo.root().join(format!("{number}.tar"));
        std::fs::write(&path, tar.end()).unwrap();
        let base = format!("at/{number}");
        let ingest = repo.command(&["--tar", path.to_str().unwrap(), "--base-dir", &base]);
        let mut command = std::process::Command::new("unshare");
        command.args(["--pid", "--fork"]).arg(ingest.get_program()).args(ingest.get_args());
        children.push(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    }
    for child in children {
        let run = Run::from(child.wait_with_output().unwrap());
        if run.err.contains("unshare") {
            eprintln!("skipped: no right to make process id namespaces");
            return;
        }
        run.expect(0, &[]);
    }
    repo.check();
    assert_eq!(repo.paths().iter().filter(|path| path.starts_with("at/")).count(), 402);
}
