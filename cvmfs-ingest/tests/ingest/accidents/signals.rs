//! Processes that are stopped from outside.

use std::io::Write as _;
use std::process::{Child, Command};

use super::support::{Repo, Run, Tar, noise};

fn kill(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn a_signal_in_the_middle_loses_nothing() {
    let repo = Repo::with_content();
    let tar = Tar::new().file("a", &noise(100_000, 1)).file("b", &noise(100_000, 2)).end();
    for signal in ["-TERM", "-INT", "-KILL"] {
        let before = repo.manifest();
        let mut child = repo.start(&["--tar", "-", "--delete", "dir"]);
        child.stdin.as_mut().unwrap().write_all(&tar[..150_000]).unwrap();
        kill(&child, signal);
        let run: Run = child.wait_with_output().unwrap().into();
        assert_ne!(run.code, Some(0), "{run:?}");
        assert!(repo.manifest() == before);
        repo.verify();
        if signal != "-KILL" {
            assert!(run.err.contains("nothing was published"), "{run:?}");
            assert_eq!(repo.leftovers(), Vec::<std::path::PathBuf>::new());
        }
        // A later run works beside what is left; who is killed cannot clean up.
        repo.ingest(&Tar::new().file(&format!("after{signal}"), b"x").end(), &[]).expect(0, &[]);
        repo.verify();
    }
}

/// Zeros for hours, from a few bytes.
#[test]
fn a_signal_ends_the_longest_file() {
    let repo = Repo::with_content();
    let before = repo.manifest();
    let sparse = Tar::new()
        .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"1000000000000000")])
        .file("holes", &[&b"1\n0\n1\n"[..], &[0; 506], b"x"].concat())
        .end();
    for chunking in ["true", "false"] {
        repo.configure(&format!("CVMFS_USE_FILE_CHUNKING={chunking}\n"));
        let mut child = repo.start(&["--tar", "-"]);
        child.stdin.take().unwrap().write_all(&sparse).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(500));
        kill(&child, "-TERM");
        let run: Run = child.wait_with_output().unwrap().into();
        assert!(run.code != Some(0) && run.err.contains("nothing was published"), "{run:?}");
        assert!(repo.manifest() == before);
    }
    repo.verify();
}

#[test]
fn output_that_nobody_reads_is_no_failure() {
    let repo = Repo::with_content();
    let path = repo.archive(&Tar::new().file("a", b"x").end());
    let script =
        format!("{} --root \"$1\" --tar \"$2\" | true; exit ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_cvmfs-ingest"));
    let mut command = Command::new("bash");
    command.args(["-c", &script, "bash"]).arg(repo.root()).arg(&path);
    assert_eq!(command.status().unwrap().code(), Some(0));
    assert!(repo.paths().contains(&"a".to_owned()));
    repo.check();
}
