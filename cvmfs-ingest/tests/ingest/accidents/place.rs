//! Storage that is full, limited or read-only.

use std::process::{Command, Stdio};

use super::support::{Mount, Repo, Run, Tar, noise};

#[test]
fn a_full_storage_loses_nothing() {
    let repo = Repo::unmade();
    let Some(mount) = Mount::tmpfs(&repo.root().join("srv"), "3m") else { return };
    repo.mkfs();
    repo.accepts(&Tar::new().file("dir/file", b"content").end(), &[]);
    let path = repo.archive(&Tar::new().file("a", &noise(1 << 20, 1)).file("b", &noise(5 << 20, 2)).end());
    let before = repo.manifest();
    repo.run(&["--tar", &path]).expect(1, &["No space left", "data/txn", "nothing is lost"]);
    assert!(repo.manifest() == before);
    repo.check();
    mount.remount("size=16m");
    repo.run(&["--tar", &path]).expect(0, &[]);
    repo.works();
}

/// The disk becomes full at every point of the run: in the content, in the catalogs, in the tags, in the reflog.
#[test]
fn a_storage_that_becomes_full_anywhere_loses_nothing() {
    let repo = Repo::unmade();
    let Some(mount) = Mount::tmpfs(&repo.root().join("srv"), "4m") else { return };
    repo.mkfs();
    repo.accepts(&Tar::new().file("dir/file", b"content").end(), &[]);
    let storage = repo.storage();
    let mut failed = 0;
    for pages in 0..40 {
        let before = repo.manifest();
        let ballast = repo.root().join("srv/ballast");
        let path = repo.archive(&Tar::new().file(&format!("n{pages}"), &noise(9000, pages)).end());
        // All that is left of the disk are some pages.
        let free = free_bytes(&repo);
        std::fs::write(&ballast, vec![0; usize::try_from(free.saturating_sub(pages * 4096)).unwrap()]).unwrap();
        let run = repo.run(&["--tar", &path]);
        std::fs::remove_file(&ballast).unwrap();
        assert!(!run.err.contains("panicked"), "{run:?}");
        match run.code {
            Some(0) => break,
            Some(1) => {}
            _ => panic!("{run:?}"),
        }
        failed += 1;
        assert!(repo.manifest() == before, "{pages}: {run:?}");
        assert!(run.err.contains("space") || run.err.contains("full"), "{run:?}");
        assert_eq!(repo.leftovers(), Vec::<std::path::PathBuf>::new());
        assert!(storage.exists());
    }
    assert!(failed >= 5, "{failed}");
    mount.remount("size=32m");
    repo.works();
}

fn free_bytes(repo: &Repo) -> u64 {
    let output = Command::new("df").args(["--output=avail", "-B1"]).arg(repo.root().join("srv")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().last().unwrap().trim().parse().unwrap()
}

#[test]
fn a_full_spool_loses_nothing() {
    let repo = Repo::unmade();
    let Some(mount) = Mount::tmpfs(&repo.root().join("var"), "300k") else { return };
    repo.mkfs();
    repo.accepts(&Tar::new().file("dir/file", b"content").end(), &[]);
    let mut tar = Tar::new();
    for number in 0..5000 {
        tar = tar.file(&format!("many/{number}"), b"x");
    }
    let before = repo.manifest();
    let run = repo.ingest(&tar.end(), &[]).expect(1, &["full"]);
    assert!(run.err.contains("change") || run.err.contains("catalog"), "{run:?}");
    assert!(repo.manifest() == before);
    mount.remount("size=16m");
    repo.works();
}

#[test]
fn a_limit_on_file_sizes_loses_nothing() {
    let repo = Repo::with_content();
    let path = repo.archive(&Tar::new().file("a", &noise(3 << 20, 1)).end());
    let before = repo.manifest();
    for (signal, code) in [("trap '' XFSZ;", Some(1)), ("", None)] {
        // 512-byte blocks.
        let script = format!("{signal} ulimit -f 2000; exec \"$@\"");
        let run: Run = Command::new("sh")
            .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_cvmfs-ingest"), "--tar", &path, "--root"])
            .arg(repo.root())
            .stdin(Stdio::null())
            .output()
            .unwrap()
            .into();
        assert_eq!(run.code, code, "{run:?}");
        assert!(code.is_none() || run.err.contains("File too large"), "{run:?}");
        assert!(repo.manifest() == before);
        repo.verify();
    }
    // Who is killed cannot clean up.
    for file in repo.leftovers() {
        std::fs::remove_file(file).unwrap();
    }
    repo.works();
}

#[test]
fn a_read_only_storage_is_refused() {
    let repo = Repo::unmade();
    let Some(mount) = Mount::tmpfs(&repo.root().join("srv"), "8m") else { return };
    repo.mkfs();
    repo.accepts(&Tar::new().file("dir/file", b"content").end(), &[]);
    let before = repo.manifest();
    let path = repo.archive(&Tar::new().file("new", b"new").end());
    mount.remount("ro");
    let run = repo.run(&["--tar", &path]).expect(1, &["Read-only file system"]);
    assert!(run.err.contains("data/"), "{run:?}");
    assert!(repo.manifest() == before);
    mount.remount("rw");
    repo.works();
}
