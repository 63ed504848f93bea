//! Runs that were killed: the next one goes on where they were, and clears up after them in time.

use std::fs::{self, File, FileTimes};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::support::{Repo, Run, Tar, files, noise, wait_until};

/// Files of the archive, more than the known-content index keeps in memory.
const FILES: u64 = 2400;
const FILE_SIZE: usize = 2048;
/// Pieces that a run has noted by the time that it has stored half of them.
const NOTED: u64 = 1024;
/// Small files that go to a worker together: so many may have been read and not stored.
const TOGETHER: u64 = 128;

fn archive() -> Vec<u8> {
    (0..FILES).fold(Tar::new(), |tar, number| tar.file(&format!("d/{number}"), &noise(FILE_SIZE, number))).end()
}

/// Data objects of the repository.
fn objects(repo: &Repo) -> u64 {
    let places = files(&repo.storage().join("data"));
    let names = places.iter().filter(|place| !place.ends_with("txn")).flat_map(|place| files(place));
    names.filter(|name| name.to_str().unwrap().ends_with(|last: char| last.is_ascii_hexdigit())).count() as u64
}

/// Kills an ingest after it has stored so many of the archive's files.
fn kill_after(repo: &Repo, archive: &[u8], stored: u64) {
    let before = objects(repo);
    let mut child = repo.start(&["--tar", "-"]);
    let length = usize::try_from(stored).unwrap() * (FILE_SIZE + 512);
    child.stdin.as_mut().unwrap().write_all(&archive[..length]).unwrap();
    wait_until(|| objects(repo) + TOGETHER >= before + stored);
    child.kill().unwrap();
    let run: Run = child.wait_with_output().unwrap().into();
    assert_eq!(run.code, None, "{run:?}");
}

fn number(run: &Run, key: &str) -> u64 {
    let (_, rest) = run.out.split_once(&format!("\"{key}\":")).unwrap_or_else(|| panic!("no {key} in {run:?}"));
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// Objects of another compression level have other names: what the second run compresses would be new.
#[test]
fn what_a_killed_run_stored_is_not_compressed_again() {
    let repo = Repo::with_content();
    let archive = text_archive();
    let manifest = repo.manifest();
    let half = FILES / 2;
    kill_after(&repo, &archive, half);
    assert!(repo.manifest() == manifest);

    let path = repo.archive(&archive);
    let run = repo.run(&["--json", "--tar", &path, "--level", "1"]).expect(0, &[]);
    let (new, reused) = (number(&run, "objects_new"), number(&run, "objects_reused"));
    assert_eq!(new + reused, FILES);
    assert!(reused >= NOTED && reused <= half, "{reused} of the {half} files that were stored are known");
    repo.verify();
    let list = repo.list();
    assert_eq!(list.keys().filter(|path| path.starts_with("d/")).count() as u64, FILES);

    // Without the index everything is compressed: the measure above is one.
    let again = repo.run(&["--json", "--tar", &path, "--base-dir", "again", "--level", "9", "--no-index"]);
    assert_eq!(number(&again, "objects_new"), FILES, "{again:?}");
}

/// Files that each level of compression stores in other bytes.
fn text_archive() -> Vec<u8> {
    let content = |number: u64| {
        let words = noise(FILE_SIZE / 4, number);
        let text: String = words.iter().map(|byte| format!("{:4}", byte % 32)).collect();
        assert_eq!(text.len(), FILE_SIZE);
        text
    };
    (0..FILES).fold(Tar::new(), |tar, number| tar.file(&format!("d/{number}"), content(number).as_bytes())).end()
}

/// Makes files look as if they were last written some time ago.
fn age(paths: &[PathBuf], hours: u64) {
    let time = SystemTime::now() - Duration::from_secs(hours * 3600);
    for path in paths {
        File::options().write(true).open(path).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
    }
}

fn regular_files(directory: &Path) -> Vec<PathBuf> {
    files(directory).into_iter().filter(|path| fs::symlink_metadata(path).unwrap().is_file()).collect()
}

/// Two days: whoever is slower than that is not alive.
#[test]
fn what_a_killed_run_left_is_removed_after_two_days_and_not_before() {
    let repo = Repo::with_content();
    kill_after(&repo, &archive(), 10);
    let journal = regular_files(&repo.spool().join("changes"));
    assert!(!journal.is_empty(), "a killed run leaves its journal");
    // A run that is killed at another moment leaves these.
    let halves = [repo.storage().join("data/txn/half"), repo.spool().join("tmp/cvmfs-db-half")];
    for half in &halves {
        fs::create_dir_all(half.parent().unwrap()).unwrap();
        fs::write(half, "half").unwrap();
    }
    // And perhaps an object that was being written.
    let left: Vec<PathBuf> = repo.leftovers().into_iter().filter(|path| path.is_file()).collect();
    assert!(journal.iter().chain(&halves).all(|path| left.contains(path)), "{left:?}");
    let run = |name: &str| repo.ingest(&Tar::new().file(name, b"x").end(), &[]).expect(0, &[]);

    age(&left, 47);
    run("young");
    assert!(left.iter().all(|path| path.exists()), "somebody may still be using them");
    age(&left, 49);
    run("old");
    assert!(left.iter().all(|path| !path.exists()), "they pile up: {left:?}");
    repo.check();
}

/// The index is a cache: whatever is in its place costs time and no more.
#[test]
fn without_its_index_a_run_goes_on() {
    let repo = Repo::with_content();
    let index = repo.spool().join("known-content.db");
    for name in ["known-content.db", "known-content.db-wal", "known-content.db-shm"] {
        let _ = fs::remove_file(repo.spool().join(name));
    }
    fs::create_dir_all(index.join("no database")).unwrap();
    repo.ingest(&Tar::new().file("new", b"content").end(), &[]).expect(0, &["without the known-content index"]);
    assert!(repo.list().contains_key("new"));
    repo.verify();
}
