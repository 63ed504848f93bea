//! Random trees through GNU tar and Python's tarfile, in every format, into a repository: what the independent verifier
//! lists there is what it lists of the tree.
//!
//! `CVMFS_RANDOM_TREES` is the number of trees, `CVMFS_RANDOM_SEED` repeats others than the usual ones.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Listing, Site, run, source_listing};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// Trees in one run of the tests.
const TREES: u32 = 22;
const SEED: u64 = 1;

/// Who packs, and what fits into such an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packer {
    program: Program,
    format: &'static str,
    /// Names, targets and times are short, and names may be split at a slash.
    is_ustar: bool,
    times: Times,
    xattrs: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Tar,
    /// Finds holes and leaves them out.
    TarSparse(&'static str),
    Python,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Times {
    Seconds,
    Nanoseconds,
}

const fn packer(program: Program, format: &'static str, is_ustar: bool, times: Times, xattrs: bool) -> Packer {
    Packer { program, format, is_ustar, times, xattrs }
}

const PACKERS: [Packer; 11] = [
    packer(Program::Tar, "posix", false, Times::Nanoseconds, true),
    packer(Program::Tar, "gnu", false, Times::Seconds, false),
    packer(Program::Tar, "oldgnu", false, Times::Seconds, false),
    packer(Program::Tar, "ustar", true, Times::Seconds, false),
    packer(Program::TarSparse("0.0"), "posix", false, Times::Nanoseconds, true),
    packer(Program::TarSparse("0.1"), "posix", false, Times::Nanoseconds, true),
    packer(Program::TarSparse("1.0"), "posix", false, Times::Nanoseconds, true),
    packer(Program::TarSparse("1.0"), "gnu", false, Times::Seconds, false),
    packer(Program::Python, "GNU_FORMAT", false, Times::Seconds, false),
    packer(Program::Python, "PAX_FORMAT", false, Times::Nanoseconds, false),
    packer(Program::Python, "USTAR_FORMAT", true, Times::Seconds, false),
];

/// Something in a tree. Numbers choose among what is there already.
#[derive(Debug, Clone)]
struct Node {
    parent: usize,
    name: Vec<u8>,
    kind: Kind,
    mode: u32,
    seconds: i64,
    nanoseconds: u32,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone)]
enum Kind {
    Directory,
    /// Bytes of a seed, with holes where the pattern says so.
    File {
        size: usize,
        seed: u8,
        holes: bool,
    },
    Symlink(Vec<u8>),
    /// One more name of an earlier file.
    Link(usize),
    Fifo,
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        8 => (b'a'..=b'c').boxed(),
        4 => select(&b" \n\t\"'\\%*?=:,.-~#"[..]).boxed(),
        1 => any::<u8>().prop_filter("no name has it", |byte| !matches!(byte, 0 | b'/')).boxed(),
        1 => Just(0xff).boxed(),
    ];
    let long = select(&[99_usize, 100, 101, 154, 155, 156, 254, 255][..]).prop_map(|length| vec![b'n'; length]);
    let text = select(&["Grüße", "你好", "-rf", ".hidden", "...", "PaxHeaders", "GNUSparseFile.0", "@LongLink"][..]);
    prop_oneof![
        6 => vec(byte, 1..12).boxed(),
        2 => long.boxed(),
        1 => text.prop_map(|text| text.as_bytes().to_vec()).boxed(),
    ]
    .prop_filter("no names", |name| name != b"." && name != b"..")
}

fn kinds() -> impl Strategy<Value = Kind> {
    // Around the blocks of tar and the chunk sizes of the tests.
    let sizes =
        select(&[0, 1, 511, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097, 8192, 16_383, 16_384, 16_385, 70_000][..]);
    let sizes = prop_oneof![sizes, 0..3000_usize];
    let file = (sizes, any::<u8>(), any::<bool>()).prop_map(|(size, seed, holes)| Kind::File { size, seed, holes });
    let target = prop_oneof![
        names(),
        vec(names(), 1..20).prop_map(|names| names.join(&b"/"[..])),
        select(&[99_usize, 100, 101, 255, 256, 1000, 4000][..]).prop_map(|length| vec![b't'; length]),
    ];
    prop_oneof![
        3 => Just(Kind::Directory).boxed(),
        6 => file.boxed(),
        2 => target.prop_map(Kind::Symlink).boxed(),
        2 => any::<usize>().prop_map(Kind::Link).boxed(),
        1 => Just(Kind::Fifo).boxed(),
    ]
}

fn nodes() -> impl Strategy<Value = Node> {
    let mode = prop_oneof![select(&[0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o7777, 0o600, 0][..]), 0..0o10_000_u32];
    let seconds = prop_oneof![
        select(&[0, 1, -1, -86_400, 1_600_000_000, (1 << 31) - 1, 1 << 31, (1 << 32) + 1, 8_589_934_591][..]),
        -2_000_000_000..8_000_000_000_i64,
    ];
    let nanoseconds = prop_oneof![select(&[0, 1, 250_000_000, 999_999_999][..]), 0..1_000_000_000_u32];
    let key = vec(prop_oneof![b'a'..=b'e', select(&b"=%\n \xff"[..])], 1..20);
    let key = key.prop_map(|name| [b"user.", &name[..]].concat());
    let xattrs = prop_oneof![3 => Just(BTreeMap::new()), 1 => btree_map(key, vec(any::<u8>(), 0..255), 1..4)];
    (any::<usize>(), names(), kinds(), mode, seconds, nanoseconds, xattrs).prop_map(
        |(parent, name, kind, mode, seconds, nanoseconds, xattrs)| Node {
            parent,
            name,
            kind,
            mode,
            seconds,
            nanoseconds,
            xattrs,
        },
    )
}

impl Node {
    /// Leaves out what the archive format has no place for. What it merely does not record is taken from the listing.
    fn fit(&mut self, packer: &Packer) {
        if packer.is_ustar {
            self.seconds = self.seconds.clamp(0, 0o77_777_777_777);
            self.name.truncate(90);
            if let Kind::Symlink(target) = &mut self.kind {
                target.truncate(100);
            }
        }
        // Python keeps times in floating point: exact are those with few binary digits.
        if packer.program == Program::Python {
            self.nanoseconds = self.nanoseconds / 250_000_000 * 250_000_000;
            // Without a fraction it rounds towards zero.
            if packer.times == Times::Seconds && self.seconds < 0 {
                self.nanoseconds = 0;
            }
        }
        if !is_root() {
            self.mode |= 0o600;
        }
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Makes the tree as far as it is possible: names that are taken and paths that are too long are left out.
fn make(root: &Path, nodes: &[Node], packer: &Packer) {
    fs::create_dir(root).unwrap();
    let mut directories = vec![root.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    let mut made: Vec<(PathBuf, Node)> = Vec::new();
    for node in nodes {
        let mut node = node.clone();
        node.fit(packer);
        let path = directories[node.parent % directories.len()].join(OsStr::from_bytes(&node.name));
        let inside = path.strip_prefix(root).unwrap().as_os_str().len();
        // Hard links must name their target in 100 bytes, too.
        if path.symlink_metadata().is_ok() || inside > if packer.is_ustar { 97 } else { 3000 } {
            continue;
        }
        match &node.kind {
            Kind::Directory => {
                fs::create_dir(&path).unwrap();
                directories.push(path.clone());
            }
            Kind::File { size, seed, holes } => {
                write(&path, *size, *seed, *holes);
                files.push(path.clone());
            }
            Kind::Symlink(target) => symlink(OsStr::from_bytes(target), &path).unwrap(),
            Kind::Link(_) if files.is_empty() => continue,
            Kind::Link(number) => {
                fs::hard_link(&files[number % files.len()], &path).unwrap();
                continue;
            }
            Kind::Fifo => {
                rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
            }
        }
        if matches!(node.kind, Kind::Directory | Kind::File { .. }) {
            for (key, value) in &node.xattrs {
                rustix::fs::setxattr(&path, &key[..], value, XattrFlags::empty()).unwrap();
            }
        }
        made.push((path, node));
    }
    // From the inside out: what happens in a directory changes its time, and its mode may forbid it.
    for (path, node) in made.iter().rev() {
        if !matches!(node.kind, Kind::Symlink(_)) {
            let mode = if matches!(node.kind, Kind::Directory) && !is_root() { node.mode | 0o700 } else { node.mode };
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
    }
    for (path, node) in made.iter().rev() {
        let time = Timespec { tv_sec: node.seconds, tv_nsec: node.nanoseconds.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn write(path: &Path, size: usize, seed: u8, holes: bool) {
    let mut file = File::create(path).unwrap();
    file.set_len(size as u64).unwrap();
    let mut state = u32::from(seed);
    let mut content = Vec::with_capacity(size);
    for _ in 0..size {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        content.push((state >> 24) as u8);
    }
    for (number, block) in content.chunks(4096).enumerate() {
        if holes && (seed >> (number % 8)) & 1 == 0 {
            continue;
        }
        file.seek(SeekFrom::Start(number as u64 * 4096)).unwrap();
        file.write_all(block).unwrap();
    }
}

const PYTHON: &str = "
import sys, tarfile
with tarfile.open(sys.argv[2], 'w', format=getattr(tarfile, sys.argv[3])) as tar:
    tar.add(sys.argv[1], arcname='.')
";

fn pack(packer: &Packer, tree: &Path, tarball: &Path) {
    let mut command = match packer.program {
        Program::Python => {
            let mut command = Command::new("python3");
            command.env("PYTHONUTF8", "1").args(["-c", PYTHON]).arg(tree).arg(tarball).arg(packer.format);
            command
        }
        Program::Tar | Program::TarSparse(_) => {
            let mut command = Command::new("tar");
            command.arg(format!("--format={}", packer.format)).arg("--numeric-owner");
            if packer.xattrs {
                command.args(["--xattrs", "--xattrs-include=*"]);
            }
            if let Program::TarSparse(version) = packer.program {
                command.args(["--sparse", "--sparse-version", version]);
            }
            command.arg("-C").arg(tree).arg("-cf").arg(tarball).arg(".");
            command
        }
    };
    run(&mut command).ok();
}

/// What the archive can tell of the tree.
fn told(mut listing: Listing, packer: &Packer) -> Listing {
    for line in listing.0.values_mut() {
        let mut columns: Vec<String> = line.split(' ').map(str::to_owned).collect();
        // type mode size sha256 mtime linkcount target uid gid rdev xattrs
        if packer.times == Times::Seconds {
            let whole = columns[4].split('.').next().unwrap().to_owned();
            columns[4] = whole + ".000000000";
        }
        if !packer.xattrs {
            columns[10] = "-".into();
        }
        *line = columns.join(" ");
    }
    listing
}

fn environment<T: std::str::FromStr>(name: &str, otherwise: T) -> T {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().ok().expect("a number"))
}

#[test]
fn what_was_packed_is_what_is_listed() {
    let site = Site::with_repository(&[]);
    let tree = site.path("tree");
    let tarball = site.path("tree.tar");
    let trees: u32 = environment("CVMFS_RANDOM_TREES", TREES);
    let seed: u64 = environment("CVMFS_RANDOM_SEED", SEED);
    for (number, packer) in (0..).zip(&PACKERS) {
        let config = Config {
            cases: trees.div_ceil(PACKERS.len().try_into().unwrap()),
            rng_seed: RngSeed::Fixed(seed.wrapping_mul(1000) + number),
            max_shrink_iters: 300,
            failure_persistence: None,
            ..Config::default()
        };
        let result = TestRunner::new(config).run(&vec(nodes(), 1..60), |nodes| {
            let _ = fs::remove_dir_all(&tree);
            make(&tree, &nodes, packer);
            pack(packer, &tree, &tarball);
            let path = tarball.to_str().unwrap();
            let outcome = site.ingest(&["--tar", path, "--base-dir", "t", "--delete", "t"]).json();
            prop_assert_eq!(&outcome["warnings"], &serde_json::json!([]));
            site.list(&[]).below("t").assert_is(&told(source_listing(&tree), packer));
            Ok(())
        });
        if let Err(error) = result {
            panic!("{packer:?}, seed {seed}: {error}");
        }
    }
    // Chunk boundaries and all objects, of all the trees.
    site.check_chunks();
}
