//! Archives of real trees by GNU tar, bsdtar and Python, compared with the file system.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cvmfs_ingest::archive::{EntryKind, Format};

use super::support::{Member, listing, read, read_compressed, run};

/// What a format can represent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    V7,
    Ustar,
    Full,
}

struct Tree {
    /// Removes the tree when dropped.
    _guard: tempfile::TempDir,
    root: PathBuf,
}

impl Tree {
    fn path(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.root.join(name.as_ref())
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Makes a tree with all that the level allows. Owners and devices are left out if we may not set them.
fn tree(level: Level) -> Tree {
    let guard = tempfile::tempdir().unwrap();
    let root = guard.path().join("tree");
    fs::create_dir(&root).unwrap();
    let tree = Tree { _guard: guard, root };
    let write = |name: &str, content: &[u8]| fs::write(tree.path(name), content).unwrap();
    write("empty", b"");
    write("one", b"1");
    write("block", &[b'b'; 512]);
    write("large", &(0..300_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    write("mode", b"#!/bin/sh\n");
    fs::set_permissions(tree.path("mode"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::create_dir_all(tree.path("dir/sub/empty")).unwrap();
    fs::set_permissions(tree.path("dir"), fs::Permissions::from_mode(0o1777)).unwrap();
    write("dir/file", b"in a directory");
    fs::write(tree.path(OsStr::from_bytes(b"dir/latin-\xe4 and\nbreak")), b"bytes").unwrap();
    fs::hard_link(tree.path("one"), tree.path("dir/same-as-one")).unwrap();
    symlink("../one", tree.path("dir/link")).unwrap();
    if level >= Level::Ustar {
        let deep = format!("dir/{}/{}", "d".repeat(90), "e".repeat(80));
        fs::create_dir_all(tree.path(&deep)).unwrap();
        write(&format!("{deep}/file"), b"needs a prefix");
        assert!(run(Command::new("mkfifo").arg(tree.path("fifo"))).is_some());
        if is_root() {
            run(Command::new("mknod").arg(tree.path("char")).args(["c", "1", "3"]));
            run(Command::new("mknod").arg(tree.path("block-device")).args(["b", "259", "70"]));
        }
    }
    if level == Level::Full {
        let deep = format!("dir/{}/{}/{}", "f".repeat(250), "g".repeat(250), "h".repeat(250));
        fs::create_dir_all(tree.path(&deep)).unwrap();
        write(&format!("{deep}/{}", "i".repeat(101)), b"needs a long name");
        fs::hard_link(tree.path("mode"), tree.path(format!("{deep}/link"))).unwrap();
        fs::hard_link(tree.path("mode"), tree.path(format!("{deep}/link2"))).unwrap();
        symlink("t".repeat(3000), tree.path("far")).unwrap();
        symlink("t".repeat(100), tree.path("just-fits")).unwrap();
    }
    if is_root() {
        lchown(tree.path("one"), Some(1234), Some(5678)).unwrap();
        lchown(tree.path("dir/link"), Some(12), Some(34)).unwrap();
        if level == Level::Full {
            lchown(tree.path("block"), Some(3_000_000), Some(4_000_000_000)).unwrap();
        }
    }
    for (name, time) in [
        ("one", "@1000000000.123456789"),
        ("dir/link", "@1234567890.987654321"),
        ("block", if level == Level::Full { "@-86400.25" } else { "@86400" }),
        ("mode", if level == Level::Full { "@9876543210" } else { "@0" }),
        ("dir", "@1111111111.000000001"),
    ] {
        run(Command::new("touch").args(["-h", "-d", time]).arg(tree.path(name)));
    }
    tree
}

/// All paths below a directory, and the directory itself as `.`.
fn walk(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::from([PathBuf::from(".")]);
    let mut open = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(root.join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = directory.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                open.push(path.clone());
            }
            found.insert(path);
        }
    }
    found
}

/// How exact the times of an archive are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Times {
    Seconds,
    Nanoseconds,
    /// Python computes them in floating point.
    About,
}

/// Compares the members of an archive of `.` with the tree that it was made from.
fn compare(tree: &Tree, members: &[Member], times: Times) {
    let mut seen = BTreeSet::new();
    for (entry, content) in members {
        let trimmed = entry.path.strip_suffix(b"/").unwrap_or(&entry.path);
        let name = trimmed.strip_prefix(b"./").unwrap_or(trimmed);
        let path = tree.path(OsStr::from_bytes(name));
        let stat = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(seen.insert(PathBuf::from(OsStr::from_bytes(name))), "{} comes twice", path.display());
        let kind = stat.file_type();
        match &entry.kind {
            EntryKind::File { size } => {
                assert!(kind.is_file());
                assert_eq!(*size, stat.len());
                assert!(*content == fs::read(&path).unwrap(), "content of {} differs", path.display());
            }
            EntryKind::Directory => assert!(kind.is_dir()),
            EntryKind::Symlink { target } => {
                assert_eq!(target, fs::read_link(&path).unwrap().as_os_str().as_bytes());
            }
            EntryKind::HardLink { target } => {
                let other = fs::symlink_metadata(tree.path(OsStr::from_bytes(target))).unwrap();
                assert_eq!(stat.ino(), other.ino(), "{}", path.display());
            }
            EntryKind::Fifo => assert!(kind.is_fifo()),
            EntryKind::CharDevice { major, minor } => {
                assert!(kind.is_char_device());
                assert_eq!((*major, *minor), (1, 3));
            }
            EntryKind::BlockDevice { major, minor } => {
                assert!(kind.is_block_device());
                assert_eq!((*major, *minor), (259, 70));
            }
        }
        // bsdtar has no mode of symbolic links.
        if !kind.is_symlink() {
            assert_eq!(u32::from(entry.mode), stat.mode() & 0o7777, "{}", path.display());
        }
        assert_eq!((entry.uid, entry.gid), (stat.uid().into(), stat.gid().into()), "{}", path.display());
        let nanoseconds = i64::from(entry.mtime.nanoseconds.unwrap_or(0));
        match times {
            Times::Seconds => assert_eq!(entry.mtime.nanoseconds, None),
            Times::Nanoseconds => assert_eq!(nanoseconds, stat.mtime_nsec()),
            Times::About => assert!((nanoseconds - stat.mtime_nsec()).abs() < 2000, "{}", path.display()),
        }
        assert_eq!(entry.mtime.seconds, stat.mtime(), "{}", path.display());
        assert!(entry.warnings.is_empty(), "{:?}", entry.warnings);
    }
    assert_eq!(seen, walk(&tree.root));
}

fn gnu_tar(tree: &Tree, arguments: &[&str]) -> Option<Vec<u8>> {
    run(Command::new("tar").args(arguments).arg("-C").arg(&tree.root).args(["-c", "."]))
}

#[test]
fn gnu_tar_in_all_its_formats() {
    for (format, level, times) in [
        ("v7", Level::V7, Times::Seconds),
        ("ustar", Level::Ustar, Times::Seconds),
        ("oldgnu", Level::Full, Times::Seconds),
        ("gnu", Level::Full, Times::Seconds),
        ("posix", Level::Full, Times::Nanoseconds),
    ] {
        let tree = tree(level);
        let Some(bytes) = gnu_tar(&tree, &["--format", format]) else { return };
        let members = read(&bytes).unwrap();
        compare(&tree, &members, times);
        let links = members.iter().filter(|(entry, _)| matches!(entry.kind, EntryKind::HardLink { .. })).count();
        assert_eq!(links, if level == Level::Full { 3 } else { 1 }, "{format}");
        let named = members.iter().filter(|(entry, _)| entry.uname == b"root" && entry.gname == b"root").count();
        assert!(format == "v7" || !is_root() || named > 5, "{format}");
    }
}

#[test]
fn bsdtar_in_all_its_formats() {
    for (format, level, times) in [
        ("v7", Level::V7, Times::Seconds),
        ("ustar", Level::Ustar, Times::Seconds),
        ("gnutar", Level::Full, Times::Seconds),
        ("pax", Level::Full, Times::Nanoseconds),
    ] {
        let tree = tree(level);
        if format == "gnutar" {
            // libarchive writes only times that fit into octal digits here.
            run(Command::new("touch").args(["-d", "@86400"]).arg(tree.path("block")).arg(tree.path("mode")));
        } else if format == "pax" {
            // It writes negative times with a fraction so that only itself reads them right.
            run(Command::new("touch").args(["-d", "@-86400"]).arg(tree.path("block")));
        }
        let mut command = Command::new("bsdtar");
        command.args(["--format", format, "-c", "-f", "-", "-C"]).arg(&tree.root).arg(".");
        let Some(bytes) = run(&mut command) else { return };
        compare(&tree, &read(&bytes).unwrap(), times);
    }
}

#[test]
fn python_in_all_its_formats() {
    const PROGRAM: &str = "
import sys, tarfile
with tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=int(sys.argv[2])) as tar:
    tar.add(sys.argv[1], arcname='.')
";
    for (format, level, times) in
        [("0", Level::Ustar, Times::Seconds), ("1", Level::Full, Times::Seconds), ("2", Level::Full, Times::About)]
    {
        let tree = tree(level);
        if times == Times::Seconds {
            // Python rounds negative times towards zero.
            run(Command::new("touch").args(["-d", "@-86400"]).arg(tree.path("block")));
            if level < Level::Full {
                run(Command::new("touch").args(["-d", "@86400"]).arg(tree.path("block")));
            }
        }
        let mut command = Command::new("python3");
        command.args(["-c", PROGRAM]).arg(&tree.root).arg(format);
        let Some(bytes) = run(&mut command) else { return };
        compare(&tree, &read(&bytes).unwrap(), times);
    }
}

/// Makes files with holes in different places; the sizes are far larger than what is stored.
fn sparse_tree() -> Tree {
    let guard = tempfile::tempdir().unwrap();
    let root = guard.path().join("tree");
    fs::create_dir(&root).unwrap();
    let make = |name: &str, size: u64, pieces: &[(u64, &[u8])]| {
        let mut file = fs::File::create(root.join(name)).unwrap();
        for (offset, bytes) in pieces {
            file.seek(SeekFrom::Start(*offset)).unwrap();
            file.write_all(bytes).unwrap();
        }
        file.set_len(size).unwrap();
    };
    let block = [b'x'; 4096];
    make("all-hole", 1 << 20, &[]);
    make("hole-first", (1 << 20) + 5, &[(1 << 20, b"12345")]);
    make("hole-last", 1 << 20, &[(0, &block)]);
    make("hole-between", 1 << 20, &[(0, &block), (500_000, b"middle"), ((1 << 20) - 3, b"end")]);
    make("plain", 5000, &[(0, &[b'p'; 5000])]);
    let many: Vec<(u64, &[u8])> = (0..60).map(|index| (index * 16_384, &block[..])).collect();
    make("many", 60 * 16_384, &many);
    make(&"long".repeat(40), 1 << 20, &[(8192, &block)]);
    Tree { _guard: guard, root }
}

#[test]
fn sparse_files_of_gnu_tar_and_bsdtar() {
    let tree = sparse_tree();
    for (arguments, times) in [
        (&["--sparse", "--format=oldgnu"][..], Times::Seconds),
        (&["--sparse", "--format=gnu"], Times::Seconds),
        (&["--sparse", "--format=gnu", "--hole-detection=raw"], Times::Seconds),
        (&["--sparse", "--format=posix", "--sparse-version=0.0"], Times::Nanoseconds),
        (&["--sparse", "--format=posix", "--sparse-version=0.1"], Times::Nanoseconds),
        (&["--sparse", "--format=posix", "--sparse-version=1.0"], Times::Nanoseconds),
    ] {
        let Some(bytes) = gnu_tar(&tree, arguments) else { return };
        assert!(bytes.len() < 1 << 20, "{arguments:?} stores holes");
        compare(&tree, &read(&bytes).unwrap(), times);
    }
    let mut command = Command::new("bsdtar");
    command.args(["--format=pax", "-c", "-f", "-", "-C"]).arg(&tree.root).arg(".");
    let Some(bytes) = run(&mut command) else { return };
    assert!(bytes.len() < 1 << 20, "bsdtar stores holes");
    compare(&tree, &read(&bytes).unwrap(), Times::Nanoseconds);
}

type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What `getfattr` says about a file.
fn xattrs_on_disk(path: &Path) -> Option<Xattrs> {
    let mut command = Command::new("getfattr");
    let text = run(command.args(["-h", "-d", "-m", "-", "-e", "hex", "--absolute-names"]).arg(path))?;
    let parse = |line: &str| {
        let (name, value) = line.split_once('=').unwrap();
        let digits = value.strip_prefix("0x").unwrap_or_default();
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        // The tool escapes what is special in its own format.
        let name = name.replace("\\075", "=");
        (name.into_bytes(), (0..digits.len()).step_by(2).map(byte).collect())
    };
    let text = String::from_utf8(text).unwrap();
    Some(text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(parse).collect())
}

#[test]
fn extended_attributes_and_access_control_lists() {
    let tree = tree(Level::V7);
    let set = |name: &str, value: &str, file: &str| {
        run(Command::new("setfattr").args(["-n", name, "-v", value]).arg(tree.path(file)))
    };
    for (name, value, file) in [
        ("user.text", "value", "one"),
        ("user.empty", "", "one"),
        ("user.bytes", "0x00ff0a3d00", "one"),
        ("user.percent%3Dsign", "x", "one"),
        ("user.large", &"v".repeat(2000), "dir"),
    ] {
        if set(name, value, file).is_none() {
            return;
        }
    }
    if is_root() {
        set("security.capability", "0x0100000200200000000000000000000000000000", "mode");
        set("trusted.overlay.opaque", "y", "dir");
    }
    let acl = |arguments: &[&str], file: &str| run(Command::new("setfacl").args(arguments).arg(tree.path(file)));
    if acl(&["-m", "u:12345:rw,g:23456:r,u:0:rwx"], "block").is_none() {
        return;
    }
    acl(&["-m", "u:12345:rx", "-d", "-m", "u::rwx,g::rx,o::-"], "dir/sub");

    let mut commands = Vec::new();
    let mut gnu = Command::new("tar");
    gnu.args(["--format=posix", "--xattrs", "--xattrs-include=*", "--acls", "-c"]);
    commands.push(gnu);
    let mut bsd = Command::new("bsdtar");
    bsd.args(["--format=pax", "--xattrs", "--acls", "-c", "-f", "-"]);
    commands.push(bsd);
    for command in &mut commands {
        let Some(bytes) = run(command.arg("-C").arg(&tree.root).arg(".")) else { return };
        let members = read(&bytes).unwrap();
        compare(&tree, &members, Times::Nanoseconds);
        let mut total = 0;
        for (entry, _) in &members {
            if let EntryKind::Symlink { .. } | EntryKind::HardLink { .. } = entry.kind {
                continue;
            }
            let expected = xattrs_on_disk(&tree.path(OsStr::from_bytes(&entry.path))).unwrap();
            assert_eq!(entry.xattrs, expected, "{command:?} {}", entry.path.escape_ascii());
            total += expected.len();
        }
        assert!(total >= 5 + 2, "{total} attributes");
    }
}

/// Pipes bytes through a program.
fn filter(program: &str, arguments: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let guard = tempfile::NamedTempFile::new().unwrap();
    fs::write(guard.path(), input).unwrap();
    let stdin = Stdio::from(fs::File::open(guard.path()).unwrap());
    run(Command::new(program).args(arguments).stdin(stdin))
}

#[test]
fn every_compression_of_its_own_tool() {
    let tree = tree(Level::Full);
    let Some(plain) = gnu_tar(&tree, &["--format=posix"]) else { return };
    let expected = read(&plain).unwrap();
    let (first, second) = plain.split_at(plain.len() / 3);
    let mut tested = 0;
    for (program, arguments, format) in [
        ("gzip", &["-c"][..], Format::Gzip),
        ("pigz", &["-c", "-p", "2", "-b", "128"], Format::Gzip),
        ("zstd", &["-c", "-q"], Format::Zstd),
        ("zstd", &["-c", "-q", "--long=27", "--no-check"], Format::Zstd),
        ("xz", &["-c"], Format::Xz),
        ("xz", &["-c", "-9", "-T2", "--block-size=100000"], Format::Xz),
        ("bzip2", &["-c"], Format::Bzip2),
        ("bzip2", &["-c", "-1"], Format::Bzip2),
    ] {
        let Some(whole) = filter(program, arguments, &plain) else { continue };
        let (found, members) = read_compressed(whole).unwrap();
        assert_eq!(found, format);
        assert!(members == expected, "{program} {arguments:?}");
        let parts = [first, b"", second].map(|part| filter(program, arguments, part).unwrap()).concat();
        assert!(read_compressed(parts).unwrap() == (format, expected.clone()), "{program} {arguments:?} in parts");
        tested += 1;
    }
    assert!(tested > 0);
    assert!(read_compressed(plain).unwrap() == (Format::Plain, expected));
}

#[test]
fn archives_appended_to_and_concatenated() {
    let tree = tree(Level::V7);
    let archive = tree.path("../archive.tar");
    let tar = |mode: &str, name: &str| {
        run(Command::new("tar").arg(mode).arg("-f").arg(&archive).arg("-C").arg(&tree.root).arg(name))
    };
    if tar("-c", "one").is_none() {
        return;
    }
    tar("-r", "block");
    tar("-r", "one");
    let members = read(&fs::read(&archive).unwrap()).unwrap();
    let names: Vec<_> = listing(&members).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["one", "block", "one"]);
}
