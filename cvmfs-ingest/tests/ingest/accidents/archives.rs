//! Archives that are damaged, impossible, or only look so.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::support::{Mount, Repo, Run, Tar, compressed, finish, noise};

#[test]
fn a_truncated_archive_is_refused() {
    let repo = Repo::with_content();
    let tar = Tar::new().file("first", b"1").file("new/second", &noise(3000, 1));
    let second = 1024;
    let whole = tar.end();
    for (length, fragments) in [
        (second + 100, ["byte 1124", "header"]),
        (second + 512 + 1000, ["second", "byte 2536"]),
        (second + 512 + 3000, ["second", "byte 4536"]),
    ] {
        repo.refuses(&whole[..length], &["--base-dir", "x"], 3, &fragments);
    }
}

#[test]
fn truncated_compressed_archives_are_refused() {
    let repo = Repo::with_content();
    let whole = Tar::new().file("first", b"1").file("new/second", &noise(3_000_000, 2)).end();
    for (name, bytes) in compressed(&whole) {
        for length in [bytes.len() / 2, bytes.len() - 1] {
            let place = if length == bytes.len() / 2 { "new/second" } else { "byte" };
            repo.refuses(&bytes[..length], &[], 3, &[name, "byte", place]);
        }
    }
}

#[test]
fn flipped_bits_of_compressed_archives_are_noticed() {
    let repo = Repo::with_content();
    let whole = Tar::new().file("new/file", &noise(300_000, 3)).end();
    for (_, mut bytes) in compressed(&whole) {
        let at = bytes.len() / 2;
        bytes[at] ^= 0x10;
        // bzip2 gives what it decoded before it looks at the checksum: then it is the archive that makes no sense.
        repo.refuses(&bytes, &[], 3, &["archive", "byte"]);
    }
}

#[test]
fn damaged_headers_are_refused() {
    let repo = Repo::with_content();
    let tar = Tar::new().file("first", b"1").file("second", b"2").file("third", b"3").end();
    for (at, value) in [(1024, b'S'), (1024 + 124, b'7'), (1024 + 156, b'5'), (1024 + 148, b'x')] {
        let mut tar = tar.clone();
        tar[at] = value;
        repo.refuses(&tar, &[], 3, &["byte 1024"]);
    }
    let mut tar = tar;
    tar[1024..1536].fill(0);
    repo.refuses(&tar, &[], 3, &["byte 1024"]);
    repo.refuses(&noise(10_000, 4), &[], 3, &["byte 0", "not a tar archive"]);
    repo.refuses(b"short", &[], 3, &["byte"]);
}

#[test]
fn impossible_entries_are_refused_where_they_stand() {
    let repo = Repo::with_content();
    let start = Tar::new().file("first", b"1");
    let long = "n".repeat(256);
    let at = "byte 1024";
    let directory = |name: &str| start.clone().dir(name).end();
    let file = |name: &str| start.clone().file(name, b"x").end();
    let link = |name: &str, target: &str| start.clone().link(name, target).end();
    for (archive, fragments) in [
        (file("../evil"), vec![at, "../evil"]),
        (file("a/../../evil"), vec![at, "evil"]),
        (file(".."), vec![at, ".."]),
        (directory("a/.."), vec![at, "a/.."]),
        (link("l", "../../etc/passwd"), vec![at, "\"l\""]),
        (file(&format!("a/{long}")), vec!["byte 2048", "255 bytes", "nnn"]),
        (directory(&format!("a/{long}")), vec!["byte 2048", "255 bytes", "nnn"]),
        (file("first/below"), vec![at, "first/below", "not a directory"]),
        (start.clone().symlink("s", "dir").file("s/below", b"").end(), vec!["byte 1536", "s/below", "not a directory"]),
        (start.clone().symlink("s", "dir").dir("s/d").end(), vec!["byte 1536", "s/d", "not a directory"]),
        (directory("a/.cvmfscatalog"), vec![at, "a/.cvmfscatalog", "regular file"]),
        (start.clone().symlink("a/.cvmfscatalog", "x").end(), vec![at, "a/.cvmfscatalog", "regular file"]),
        (start.clone().entry(b'6', "a/.cvmfscatalog", "", b"", |_| ()).end(), vec![at, "a/.cvmfscatalog"]),
        (file(".cvmfscatalog"), vec![at, ".cvmfscatalog", "root"]),
        (link(".cvmfscatalog", "first"), vec![at, ".cvmfscatalog", "root"]),
        (file(".cvmfs"), vec![at, ".cvmfs"]),
        (directory(".cvmfs/snapshots"), vec![at, ".cvmfs"]),
        (link(".cvmfs/x", "first"), vec![at, ".cvmfs"]),
        (link("l", "l"), vec![at, "itself"]),
        (start.clone().dir("d").link("l", "d").end(), vec!["byte 1536", "directory"]),
        (file("."), vec![at, "base directory"]),
        (start.clone().symlink("./", "x").end(), vec![at]),
    ] {
        repo.refuses(&archive, &[], 1, &fragments);
    }
}

/// The reader knows the archive; what is in the repository is only known when the changes are applied.
#[test]
fn impossible_entries_for_this_repository_are_refused() {
    let repo = Repo::with_content();
    for (archive, fragments) in [
        (Tar::new().file("dir/file/below", b"").end(), ["byte 0:", "/dir/file", "directory"]),
        (Tar::new().dir("dir/file/below").end(), ["byte 0:", "/dir/file", "directory"]),
        (Tar::new().file("link/below", b"").end(), ["byte 0:", "/link", "directory"]),
        (Tar::new().link("l", "nothing").end(), ["byte 0:", "/l", "/nothing"]),
        (Tar::new().link("l", "link/file").end(), ["byte 0:", "/l", "/link/file"]),
        (Tar::new().link("l", "nested/sub/nothing").end(), ["byte 0:", "/l", "/nested/sub/nothing"]),
        (Tar::new().link("l", "nested").end(), ["byte 0:", "/l", "directory"]),
        (Tar::new().dir("fresh").link("l", "fresh/nothing").end(), ["byte 512:", "/l", "/fresh/nothing"]),
        (
            Tar::new().symlink("s", "dir").link("d/.cvmfscatalog", "s").end(),
            ["byte 512:", ".cvmfscatalog", "regular file"],
        ),
    ] {
        repo.refuses(&archive, &[], 1, &fragments);
    }
}

#[test]
fn an_archive_may_not_be_larger_than_the_limit() {
    let repo = Repo::with_content();
    let limit = &["--max-size", "1M"];
    let large = Tar::new().file("first", b"x").file("large", &vec![7; 2 << 20]).end();
    let mut padded = Tar::new().file("first", b"x").end();
    padded.resize(2 << 20, 0);
    let many = (0..3000).fold(Tar::new(), |tar, number| tar.dir(&format!("d{number}"))).end();
    for (name, archive) in [("plain", large.clone())].into_iter().chain(compressed(&large)) {
        repo.refuses(&archive, limit, 1, &["entry large at byte", "more than 1048576 bytes", ""]);
        repo.accepts(&archive, &["--max-size", "3M", "--base-dir", name]);
    }
    repo.refuses(&many, limit, 1, &["at byte 1048", "more than 1048576 bytes"]);
    for (_, archive) in compressed(&padded) {
        repo.refuses(&archive, limit, 1, &["more than 1048576 bytes"]);
    }
    // Holes take no room in the archive.
    let sparse = Tar::new()
        .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"1000000000000")])
        .file("holes", &[&b"1\n0\n1\n"[..], &[0; 506], b"x"].concat())
        .end();
    repo.refuses(&sparse, limit, 1, &["entry holes at byte", "more than 1048576 bytes"]);
    for size in ["1X", "-1", "", "20000000T"] {
        repo.run(&["--tar", "-", &format!("--max-size={size}")]).expect(2, &["bytes"]);
    }
}

#[test]
fn an_entry_cannot_replace_the_base_directory() {
    let repo = Repo::with_content();
    for name in [".", "./", "/"] {
        repo.refuses(&Tar::new().symlink(name, "x").end(), &["--base-dir", "dir"], 1, &["byte 0", "base directory"]);
    }
    repo.refuses(&Tar::new().file(".", b"x").end(), &["--base-dir", "dir"], 1, &["byte 0", "base directory"]);
    assert!(repo.paths().contains(&"dir/sub/deep".to_owned()));
}

#[test]
fn odd_names_become_canonical() {
    let repo = Repo::new();
    let tar = Tar::new().file("a//b", b"1").file("././c", b"2").dir(".//d///").file("./d/./e", b"3").dir("./").end();
    repo.accepts(&tar, &["--base-dir", "//x//y/"]);
    assert_eq!(repo.paths(), ["x", "x/y", "x/y/a", "x/y/a/b", "x/y/c", "x/y/d", "x/y/d/e"]);
}

#[test]
fn absolute_names_are_taken_below_the_base_directory_with_a_warning() {
    let repo = Repo::new();
    let run = repo.accepts(&Tar::new().file("/etc/passwd", b"x").link("/l", "/etc/passwd").end(), &["--base-dir", "x"]);
    for fragment in ["warning", "layer.tar", "byte 0", "byte 1024", "/etc/passwd", "absolute"] {
        assert!(run.err.contains(fragment), "{run:?}");
    }
    assert_eq!(repo.paths(), ["x", "x/etc", "x/etc/passwd", "x/l"]);
    let quiet = repo.accepts(&Tar::new().file("/new", b"x").end(), &["--quiet"]);
    assert_eq!(quiet.err, "");
    // The root is the same in either form.
    let root = repo.accepts(&Tar::new().dir("/").file("other", b"x").end(), &[]);
    assert!(!root.err.contains("absolute"), "{root:?}");
}

#[test]
fn the_last_of_several_entries_wins() {
    let repo = Repo::new();
    let cases = [
        ("file", Tar::new().file("p", b"old").file("p", b"new").file("p", b"")),
        ("file", Tar::new().dir("p").file("p/below", b"x").file("p", b"")),
        ("file", Tar::new().symlink("p", "x").file("p", b"")),
        ("dir", Tar::new().file("p", b"").dir("p")),
        ("dir", Tar::new().dir("p").file("p/x", b"").file("p", b"").dir("p")),
        ("full", Tar::new().file("p", b"").dir("p").file("p/x", b"")),
        ("full", Tar::new().symlink("p", "q").dir("p").file("p/x", b"")),
        // A file of the directory that went is not in the way of what comes later.
        ("deep", Tar::new().file("p/x", b"").file("p", b"").dir("p").dir("p/x").file("p/x/y", b"")),
        ("deep", Tar::new().file("p/x", b"").file("p", b"").dir("p").file("p/x/y", b"")),
    ];
    for (number, (expected, tar)) in cases.into_iter().enumerate() {
        let base = format!("case{number}");
        repo.accepts(&tar.end(), &["--base-dir", &base]);
        let list = repo.list();
        let below: Vec<&str> = list.keys().filter_map(|path| path.strip_prefix(&format!("{base}/"))).collect();
        let (paths, kind): (&[&str], _) = match expected {
            "file" => (&["p"], "f"),
            "dir" => (&["p"], "d"),
            "full" => (&["p", "p/x"], "d"),
            _ => (&["p", "p/x", "p/x/y"], "d"),
        };
        assert_eq!(below, paths, "case {number}");
        let top = &list[&format!("{base}/p")];
        assert_eq!((&top.kind[..], top.size), (kind, if kind == "f" { 0 } else { 4096 }), "case {number}");
    }
}

#[test]
fn an_empty_archive_changes_nothing_or_makes_the_catalog() {
    let repo = Repo::with_content();
    let before = repo.manifest();
    let run = repo.accepts(&Tar::new().end(), &[]);
    assert!(run.out.contains("unchanged"), "{run:?}");
    assert!(repo.manifest() == before);
    repo.accepts(&Tar::new().end(), &["--base-dir", "a/b", "--catalog"]);
    assert!(repo.paths().contains(&"a/b/.cvmfscatalog".to_owned()));
    repo.fails(&["--tar", &repo.archive(&Tar::new().end()), "--catalog"], 1, &["--catalog", "root"]);
}

#[test]
fn the_same_archive_again_makes_no_revision() {
    let repo = Repo::with_content();
    let tar = Tar::new()
        .dir("d")
        .file("d/f", b"x")
        .link("d/g", "d/f")
        .symlink("s", "d")
        .file("n/.cvmfscatalog", b"")
        .file("n/x", &noise(9 << 20, 5))
        .link("cross", "n/x")
        .end();
    for arguments in [&["--base-dir", "x/y"][..], &["--base-dir", "z", "--catalog"], &["--base-dir", "z", "--catalog"]]
    {
        repo.accepts(&tar, arguments);
        let before = repo.manifest();
        // An own clock: time that passes is no change.
        let path = repo.archive(&tar);
        let mut command = repo.command(&[&["--tar", &path], arguments].concat());
        let again: Run =
            command.env("SOURCE_DATE_EPOCH", (super::support::now().0 + 50).to_string()).output().unwrap().into();
        let again = again.expect(0, &[]);
        assert!(again.out.contains("unchanged"), "{again:?}");
        assert!(repo.manifest() == before, "{arguments:?}");
    }
}

#[test]
fn metadata_that_does_not_fit_is_reported() {
    let repo = Repo::new();
    let long = [b'v'; 300];
    let tar = Tar::new()
        .pax(&[("SCHILY.xattr.user.long", &long), ("SCHILY.xattr.user.short", b"1")])
        .file("file", b"x")
        .end();
    let run = repo.accepts(&tar, &[]);
    for fragment in ["warning", "layer.tar", "file", "user.long", "255 bytes"] {
        assert!(run.err.contains(fragment), "{run:?}");
    }
    let tar = Tar::new().file("a", b"").pax(&[("uid", b"4294967296")]).file("big", b"").end();
    repo.refuses(&tar, &["--keep-owner"], 1, &["big", "byte 1536", "4294967296"]);
    repo.accepts(&tar, &[]);
    let tar = Tar::new().pax(&[("uid", b"4294967295"), ("gid", b"4294967294")]).file("max", b"").end();
    let run = repo.ingest(&tar, &["--keep-owner"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(repo.list()["max"].owner, "4294967295:4294967294");
}

#[test]
fn parent_directories_that_no_archive_names_have_sane_owners() {
    let repo = Repo::new();
    repo.accepts(&Tar::new().file("a/b/file", b"x").end(), &["--keep-owner"]);
    let list = repo.list();
    for (path, owner, mode) in [("a", "0:0", "0755"), ("a/b", "0:0", "0755"), ("a/b/file", "1000:2000", "0644")] {
        assert_eq!((&list[path].owner[..], &list[path].mode[..]), (owner, mode), "{path}");
    }
}

#[test]
fn files_that_nobody_may_read_are_published() {
    let repo = Repo::new();
    let secret = |header: &mut [u8; 512]| header[100..108].copy_from_slice(b"0000000\0");
    let tar =
        Tar::new().entry(b'0', "file", "", b"secret", secret).entry(b'5', "dir", "", b"", secret).file("dir/x", b"");
    repo.accepts(&tar.end(), &[]);
    let list = repo.list();
    assert_eq!((&list["file"].mode[..], &list["dir"].mode[..], list["file"].size), ("0000", "0000", 6));
}

#[test]
fn many_entries_and_deep_paths_work() {
    let repo = Repo::new();
    let mut tar = Tar::new();
    for number in 0..10_000 {
        tar = tar.file(&format!("many/{number:05}"), b"same");
    }
    let deep = vec!["d"; 300].join("/");
    repo.accepts(&tar.file(&format!("{deep}/file"), b"x").end(), &[]);
    let paths = repo.paths();
    assert_eq!(paths.iter().filter(|path| path.starts_with("many/")).count(), 10_000);
    assert!(paths.contains(&format!("{deep}/file")));
    repo.accepts(&Tar::new().end(), &["--delete", "d", "--delete", "many"]);
    assert_eq!(repo.paths(), Vec::<String>::new());
}

/// A gibibyte of holes: content of a sparse file is as long as it says, and costs time but no memory.
#[test]
fn a_huge_sparse_file_needs_little_memory() {
    let repo = Repo::new();
    let size: u64 = 1 << 30;
    let tar = Tar::new().pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", size.to_string().as_bytes()),
    ]);
    let mut map = format!("1\n{}\n5\n", size - 5).into_bytes();
    map.resize(512, 0);
    map.extend_from_slice(b"12345");
    let path = repo.archive(&tar.file("x", &map).end());
    let start = Instant::now();
    let mut child = repo.command(&["--tar", &path]).stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let end = loop {
        if let Some(end) = child.try_wait().unwrap() {
            break end;
        }
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
        peak = peak.max(line.trim().trim_end_matches(" kB").parse().unwrap_or(0));
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(end.success());
    assert!(peak > 1000 && peak < 256 << 10, "{peak} KiB");
    assert!(start.elapsed() < Duration::from_mins(5));
    repo.check();
    assert_eq!(repo.list()["sparse"].size, size);
}

#[test]
fn a_slow_pipe_is_no_problem() {
    let repo = Repo::new();
    let tar = Tar::new().file("a", &noise(2000, 6)).file("b/c", &noise(1000, 7)).end();
    let mut child = repo.start(&["--tar", "-"]);
    let mut stdin = child.stdin.take().unwrap();
    for piece in tar.chunks(97) {
        stdin.write_all(piece).unwrap();
        stdin.flush().unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(stdin);
    Run::from(child.wait_with_output().unwrap()).expect(0, &[]);
    assert_eq!(repo.paths(), ["a", "b", "b/c"]);
    repo.check();
}

#[test]
fn a_pipe_that_ends_early_is_refused() {
    let repo = Repo::with_content();
    let before = repo.manifest();
    let tar = Tar::new().file("a", &noise(2000, 6)).file("b", b"").end();
    for length in [300, 512, 1000, 2700] {
        let child = repo.start(&["--tar", "-", "--delete", "dir"]);
        finish(child, &tar[..length]).expect(3, &["standard input", "byte"]);
        assert!(repo.manifest() == before);
    }
    repo.works();
}

#[test]
fn unreadable_input_is_named_with_the_reason() {
    let repo = Repo::with_content();
    let root = repo.root().to_str().unwrap().to_owned();
    let missing = format!("{root}/missing.tar");
    repo.fails(&["--tar", &missing], 1, &[&missing, "No such file"]);
    repo.fails(&["--tar", &root], 1, &[&root, "directory"]);
    repo.fails(&["--tar", "/proc/self/mem"], 1, &["/proc/self/mem", "byte 0", "Input/output error"]);
    let good = repo.archive(&Tar::new().file("x", b"x").end());
    repo.fails(&["--tar", &good, "--tar", &missing], 1, &[&missing]);
}

/// What decompresses without end is stored without end: memory stays bounded, and a full disk ends it.
#[test]
fn a_decompression_bomb_fills_the_disk_at_most() {
    let repo = Repo::unmade();
    let Some(mount) = Mount::tmpfs(&repo.root().join("srv"), "4m") else { return };
    repo.mkfs();
    // Content that shrinks neither here nor there would be no bomb; what repeats at a distance shrinks for zstd only.
    let block = noise(100_000, 8);
    let bomb: Vec<u8> = block.iter().copied().cycle().take(20_000_000).collect();
    let archive = zstd::encode_all(&Tar::new().file("bomb", &bomb).end()[..], 3).unwrap();
    assert!(archive.len() < 200_000);
    let before = repo.manifest();
    repo.ingest(&archive, &[]).expect(1, &["No space left", "nothing is lost"]);
    assert!(repo.manifest() == before);
    mount.remount("size=64m");
    repo.works();
}
