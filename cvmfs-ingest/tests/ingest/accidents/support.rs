//! Repositories in temporary directories, the real binary, the independent verifier, and archives byte by byte.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::path::RepositoryName;
use cvmfs_core::server::ServerRoot;
use cvmfs_publish::mkfs;
use tempfile::TempDir;

#[path = "../../../../tests/support/tarball.rs"]
mod tarball;
pub(crate) use tarball::Tar;

pub(crate) const NAME: &str = "accidents.example.org";
const VERIFIER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/verifier/verify.py");

/// Key files by extension, made once: making them is the slow part of a new repository.
static KEYS: OnceLock<Vec<(&str, Vec<u8>)>> = OnceLock::new();

pub(crate) fn now() -> UnixSeconds {
    UnixSeconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed())
}

/// A repository of its own; goes away with the value.
pub(crate) struct Repo {
    directory: TempDir,
}

/// What a run of the binary said.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Run {
    #[track_caller]
    pub(crate) fn expect(self, code: i32, fragments: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(!self.err.contains("panicked"), "{self:?}");
        for fragment in fragments {
            assert!(self.err.contains(fragment), "{fragment:?} is not in {self:?}");
        }
        self
    }
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) kind: String,
    pub(crate) mode: String,
    pub(crate) size: u64,
    pub(crate) links: u32,
    pub(crate) target: String,
    pub(crate) owner: String,
    pub(crate) sha256: String,
    pub(crate) mtime: String,
}

impl Repo {
    /// A repository without content.
    pub(crate) fn new() -> Self {
        let repo = Self { directory: tempfile::tempdir().unwrap() };
        repo.mkfs();
        repo
    }

    /// A repository with directories, links, a nested catalog and a group of hard links.
    pub(crate) fn with_content() -> Self {
        let repo = Self::new();
        let tar = Tar::new()
            .dir("dir")
            .file("dir/file", b"content")
            .dir("dir/sub")
            .file("dir/sub/deep", b"deep")
            .symlink("link", "dir")
            .dir("nested")
            .file("nested/.cvmfscatalog", b"")
            .dir("nested/sub")
            .file("nested/sub/deep", b"nested deep")
            .dir("group")
            .file("group/one", b"linked")
            .link("group/two", "group/one")
            .link("group/three", "group/two")
            .end();
        repo.accepts(&tar, &[]);
        repo
    }

    /// A directory for a repository that is still to be made.
    pub(crate) fn unmade() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn mkfs(&self) {
        let name: RepositoryName = NAME.parse().unwrap();
        let root = ServerRoot::new(self.root()).unwrap();
        let given = self.root().join("given");
        let mut options = mkfs::Options::new(now());
        fs::create_dir_all(&given).unwrap();
        let keys = KEYS.get_or_init(|| {
            let scratch = tempfile::tempdir().unwrap();
            let root = ServerRoot::new(scratch.path()).unwrap();
            mkfs::mkfs(&root, &name, &options).unwrap();
            ["masterkey", "pub", "key", "crt"]
                .map(|extension| (extension, fs::read(root.key_file(&name, extension)).unwrap()))
                .into()
        });
        for (extension, bytes) in keys {
            fs::write(given.join(format!("{NAME}.{extension}")), bytes).unwrap();
        }
        options.keys = Some(given);
        mkfs::mkfs(&root, &name, &options).unwrap();
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn storage(&self) -> PathBuf {
        self.root().join("srv/cvmfs").join(NAME)
    }

    pub(crate) fn spool(&self) -> PathBuf {
        self.root().join("var/spool/cvmfs").join(NAME)
    }

    pub(crate) fn key(&self, extension: &str) -> PathBuf {
        self.root().join(format!("etc/cvmfs/keys/{NAME}.{extension}"))
    }

    /// Appends variables to the configuration.
    pub(crate) fn configure(&self, variables: &str) {
        let path = self.root().join(format!("etc/cvmfs/repositories.d/{NAME}/server.conf"));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, text + variables).unwrap();
    }

    pub(crate) fn manifest(&self) -> Vec<u8> {
        fs::read(self.storage().join(".cvmfspublished")).unwrap()
    }

    /// The hash that a letter of the manifest names.
    pub(crate) fn manifest_field(&self, letter: char) -> String {
        let manifest = self.manifest();
        let text = String::from_utf8_lossy(&manifest);
        text.lines().find_map(|line| line.strip_prefix(letter)).unwrap().to_owned()
    }

    /// The file of an object.
    pub(crate) fn object(&self, hash: &str, suffix: &str) -> PathBuf {
        self.storage().join(format!("data/{}/{}{suffix}", &hash[..2], &hash[2..]))
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cvmfs-ingest"));
        command.arg("--root").arg(self.root()).args(arguments).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        self.command(arguments).output().unwrap().into()
    }

    /// Starts the binary with its standard input open and waits until it has looked at the head.
    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        let before = count_files(&self.spool().join("changes"));
        let child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_until(|| count_files(&self.spool().join("changes")) > before);
        child
    }

    /// Writes an archive into a file and returns its path.
    pub(crate) fn archive(&self, bytes: &[u8]) -> String {
        let path = self.root().join("layer.tar");
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(crate) fn ingest(&self, archive: &[u8], arguments: &[&str]) -> Run {
        let path = self.archive(archive);
        self.run(&[&["--tar", &path], arguments].concat())
    }

    /// Ingests an archive that is fine.
    #[track_caller]
    pub(crate) fn accepts(&self, archive: &[u8], arguments: &[&str]) -> Run {
        let run = self.ingest(archive, arguments).expect(0, &[]);
        self.check();
        run
    }

    /// Ingests an archive that must be refused with a message that names it and has all fragments.
    #[track_caller]
    pub(crate) fn refuses(&self, archive: &[u8], arguments: &[&str], code: i32, fragments: &[&str]) {
        let path = self.archive(archive);
        let arguments = [&["--tar", &path], arguments].concat();
        self.fails(&arguments, code, &[&[path.as_str()], fragments].concat());
    }

    /// Runs a command that must fail and change nothing; the repository must work afterwards.
    #[track_caller]
    pub(crate) fn fails(&self, arguments: &[&str], code: i32, fragments: &[&str]) {
        let before = self.manifest();
        self.run(arguments).expect(code, fragments);
        assert!(self.manifest() == before, "there is a new revision");
        self.works();
    }

    /// Nothing is damaged or left behind, and the next ingest works.
    #[track_caller]
    pub(crate) fn works(&self) {
        assert_eq!(self.leftovers(), Vec::<PathBuf>::new());
        let path = self.root().join("next.tar");
        // The manifest is content that the repository cannot have yet.
        fs::write(&path, Tar::new().file("next-good-one", &self.manifest()).end()).unwrap();
        self.run(&["--tar", path.to_str().unwrap()]).expect(0, &[]);
        self.check();
    }

    /// The independent verifier finds nothing, and no temporary files are left.
    #[track_caller]
    pub(crate) fn check(&self) {
        self.verify();
        assert_eq!(self.leftovers(), Vec::<PathBuf>::new());
    }

    #[track_caller]
    pub(crate) fn verify(&self) {
        let checksum = self.spool().join("reflog.chksum");
        let run: Run = Command::new("python3")
            .args([VERIFIER, "check", "--all-tags", "--fqrn", NAME, "--store"])
            .arg(self.storage())
            .arg("--pub")
            .arg(self.key("pub"))
            .arg("--reflog-checksum")
            .arg(checksum)
            .output()
            .unwrap()
            .into();
        assert_eq!(run.code, Some(0), "{}{}", run.out, run.err);
    }

    /// Files that a finished run must not leave.
    pub(crate) fn leftovers(&self) -> Vec<PathBuf> {
        let places = [self.storage().join("data/txn"), self.spool().join("changes"), self.spool().join("tmp")];
        let mut found: Vec<PathBuf> = places.iter().flat_map(|place| files(place)).collect();
        found.extend(Some(self.spool().join("is_publishing.lock")).filter(|lock| lock.exists()));
        found
    }

    /// The tree, as the independent verifier reads it; paths without leading slash, the root as `.`.
    pub(crate) fn list(&self) -> BTreeMap<String, Line> {
        let run: Run = Command::new("python3")
            .args([VERIFIER, "list", "--no-header", "--fqrn", NAME, "--store"])
            .arg(self.storage())
            .output()
            .unwrap()
            .into();
        assert_eq!(run.code, Some(0), "{}", run.err);
        let parse = |line: &str| {
            let fields: Vec<&str> = line.split(' ').collect();
            let line = Line {
                kind: fields[1].into(),
                mode: fields[2].into(),
                size: fields[3].parse().unwrap_or(0),
                links: fields[6].parse().unwrap(),
                target: fields[7].into(),
                owner: format!("{}:{}", fields[8], fields[9]),
                sha256: fields[4].into(),
                mtime: fields[5].into(),
            };
            (fields[0].to_owned(), line)
        };
        run.out.lines().map(parse).collect()
    }

    /// The paths of the tree, without the root.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.list().into_keys().filter(|path| path != ".").collect()
    }
}

pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn count_files(directory: &Path) -> usize {
    files(directory).len()
}

/// Waits for a condition that another process brings about.
#[track_caller]
pub(crate) fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < deadline, "it does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Gives a process its input and waits for its end.
pub(crate) fn finish(mut child: Child, input: &[u8]) -> Run {
    let mut stdin = child.stdin.take().unwrap();
    // It may have failed before it has read everything.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().unwrap().into()
}

/// A file system of limited size, unmounted with the value.
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// `None`, with a note, if this process may not mount.
    pub(crate) fn tmpfs(at: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at).stderr(Stdio::null());
        if command.status().is_ok_and(|status| status.success()) {
            return Some(Self(at.to_owned()));
        }
        eprintln!("skipped: no right to mount a file system");
        None
    }

    #[track_caller]
    pub(crate) fn remount(&self, options: &str) {
        let mut command = Command::new("mount");
        command.args(["-o", &format!("remount,{options}")]).arg(&self.0);
        assert!(command.status().unwrap().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Bytes that do not shrink, the same for the same seed.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The archive in every compression, with its name.
pub(crate) fn compressed(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(bytes).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default());
    bzip2.write_all(bytes).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(bytes).unwrap();
    let mut zstd = zstd::Encoder::new(Vec::new(), 3).unwrap();
    zstd.include_checksum(true).unwrap();
    zstd.write_all(bytes).unwrap();
    vec![
        ("gzip", gzip.finish().unwrap()),
        ("bzip2", bzip2.finish().unwrap()),
        ("xz", xz.finish().unwrap()),
        ("zstd", zstd.finish().unwrap()),
    ]
}
