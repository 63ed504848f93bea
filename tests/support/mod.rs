//! What the scenarios share: our commands on a server's directory tree below a temporary directory, source trees, and
//! the independent verifier, which says what to expect.

#![allow(dead_code, reason = "every scenario uses another part")]

pub(crate) mod fixture;
pub(crate) mod reference;
pub(crate) mod replica;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

/// The repository of a [`Site`].
pub(crate) const NAME: &str = "test.example.org";

/// Small chunks, so that small files have many.
pub(crate) const CHUNKS: &str = "4096,8192,16384";

/// The directory of our workspace; packages of tests outside of it use this module, too.
fn project() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().find(|directory| directory.join("tests/support/mod.rs").exists()).expect("our workspace")
}

/// A file of this project's tests.
pub(crate) fn test_file(name: &str) -> PathBuf {
    project().join("tests").join(name)
}

/// One of our binaries, built like this test.
///
/// Cargo hands out the path of binaries only to tests of their own package. `CVMFS_TEST_BINARIES` names a directory
/// with finished ones.
pub(crate) fn binary(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| match std::env::var_os("CVMFS_TEST_BINARIES") {
        Some(directory) => directory.into(),
        None => build_binaries(),
    });
    directory.join(name)
}

fn build_binaries() -> PathBuf {
    // <target directory>/<profile>/deps/<this test>
    let test = std::env::current_exe().expect("path of this test");
    let directory = test.ancestors().nth(2).expect("target directory").to_owned();
    let profile = match directory.file_name().and_then(OsStr::to_str).expect("profile") {
        "debug" => "dev",
        other => other,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(project()).args(["build", "--quiet", "--bins", "--profile", profile]);
    if Path::new(env!("CARGO_MANIFEST_DIR")) == project() {
        command.arg("--target-dir").arg(directory.parent().expect("target directory"));
        run(&mut command).ok();
        return directory;
    }
    // A package with a target directory of its own: the workspace's has most of what there is to build.
    run(&mut command).ok();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| project().join("target"), PathBuf::from);
    target.join(directory.file_name().expect("profile"))
}

/// How a command ended.
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    command: String,
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Done {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Done {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        command: format!("{command:?}"),
    }
}

impl Done {
    #[track_caller]
    fn show(&self, wrong: &str) -> ! {
        panic!("{wrong}: {}\n{}\n{}{}", self.command, self.status, self.stdout, self.stderr)
    }

    /// What it printed, for a command that must succeed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        if self.status.success() { self.stdout } else { self.show("failed") }
    }

    /// What it printed as JSON, for a command that must succeed.
    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        match (self.status.success(), serde_json::from_str(&self.stdout)) {
            (true, Ok(value)) => value,
            _ => self.show("no JSON"),
        }
    }

    /// What it complained about, for a command that must fail in a certain way.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        if self.status.code() == Some(code) { self.stderr } else { self.show(&format!("exit code is not {code}")) }
    }
}

/// Calls the independent verifier.
pub(crate) fn verifier<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Done {
    run(Command::new("python3").arg(test_file("verifier/verify.py")).args(arguments))
}

/// A listing as the verifier prints it; lines by path.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Listing(pub(crate) BTreeMap<String, String>);

impl Listing {
    pub(crate) fn parse(text: &str) -> Self {
        // The heading; `#` alone may be a name.
        let lines = text.lines().filter(|line| !line.starts_with("# path "));
        Self(lines.filter_map(|line| line.split_once(' ')).map(|(path, rest)| (path.into(), rest.into())).collect())
    }

    /// What lies below a directory, with paths relative to it; without the directory itself.
    pub(crate) fn below(&self, directory: &str) -> Self {
        let below = |path: &str| {
            let rest = if directory.is_empty() { Some(path) } else { path.strip_prefix(directory)?.strip_prefix('/') };
            rest.filter(|rest| *rest != ".").map(str::to_owned)
        };
        Self(self.0.iter().filter_map(|(path, rest)| Some((below(path)?, rest.clone()))).collect())
    }

    /// Takes out paths that satisfy a condition and returns them.
    pub(crate) fn take(&mut self, condition: impl Fn(&str) -> bool) -> Vec<String> {
        let taken: Vec<String> = self.0.keys().filter(|path| condition(path)).cloned().collect();
        self.0.retain(|path, _| !taken.contains(path));
        taken
    }

    /// Paths with this last component, without that component.
    pub(crate) fn directories_with(&self, name: &str) -> Vec<&str> {
        let suffix = format!("/{name}");
        self.0.keys().filter_map(|path| path.strip_suffix(&suffix)).collect()
    }

    /// Fails with the differences.
    #[track_caller]
    pub(crate) fn assert_is(&self, expected: &Self) {
        let mut differences = Vec::new();
        for (path, line) in &expected.0 {
            match self.0.get(path) {
                Some(found) if found == line => {}
                Some(found) => differences.push(format!("{path}\n  expected {line}\n  found    {found}")),
                None => differences.push(format!("{path}\n  is missing")),
            }
        }
        differences.extend(
            self.0.keys().filter(|path| !expected.0.contains_key(*path)).map(|path| format!("{path}\n  is too much")),
        );
        let count = differences.len();
        differences.truncate(20);
        assert!(count == 0, "{count} differences:\n{}", differences.join("\n"));
    }
}

/// What the verifier says about a directory: how a repository must list it.
pub(crate) fn source_listing(directory: &Path) -> Listing {
    let options = ["tree", "--links-per-directory", "--no-dir-size"].map(OsStr::new);
    Listing::parse(&verifier(options.into_iter().chain([directory.as_os_str()])).ok()).below("")
}

/// Makes a tree with `support/tree.py`.
pub(crate) fn make_tree(kind: &str, directory: &Path, more: &[&str]) {
    run(Command::new("python3").arg(test_file("support/tree.py")).arg(kind).arg(directory).args(more)).ok();
}

/// Packs members of a directory as GNU tar does, with all that it can keep.
pub(crate) fn pack(directory: &Path, tarball: &Path, members: &[&str]) {
    let mut command = Command::new("tar");
    command.args(["--format=posix", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--sort=name"]);
    command.arg("-C").arg(directory).arg("-cf").arg(tarball).arg("--").args(members);
    run(&mut command).ok();
}

/// A server's directory tree with one repository.
pub(crate) struct Site {
    pub(crate) temp: TempDir,
    pub(crate) name: String,
    pub(crate) environment: Vec<(&'static str, String)>,
}

impl Site {
    /// An empty directory tree.
    pub(crate) fn empty(name: &str) -> Self {
        let temp = tempfile::tempdir().expect("temporary directory");
        Self { temp, name: name.into(), environment: Vec::new() }
    }

    /// A repository with small chunks.
    pub(crate) fn with_repository(mkfs: &[&str]) -> Self {
        let site = Self::empty(NAME);
        site.mkfs(mkfs);
        site
    }

    /// Makes the repository.
    pub(crate) fn mkfs(&self, options: &[&str]) {
        self.publish(&[&["mkfs", NAME], options].concat()).ok();
        let sizes = CHUNKS.split(',');
        for (key, size) in ["CVMFS_MIN_CHUNK_SIZE", "CVMFS_AVG_CHUNK_SIZE", "CVMFS_MAX_CHUNK_SIZE"].iter().zip(sizes) {
            self.configure(key, size);
        }
    }

    /// The directory tree.
    pub(crate) fn root(&self) -> PathBuf {
        self.temp.path().join("site")
    }

    pub(crate) fn storage(&self) -> PathBuf {
        self.root().join("srv/cvmfs").join(&self.name)
    }

    pub(crate) fn spool(&self) -> PathBuf {
        self.root().join("var/spool/cvmfs").join(&self.name)
    }

    pub(crate) fn key_file(&self, extension: &str) -> PathBuf {
        self.root().join("etc/cvmfs/keys").join(format!("{}.{extension}", self.name))
    }

    pub(crate) fn server_conf(&self) -> PathBuf {
        self.root().join("etc/cvmfs/repositories.d").join(&self.name).join("server.conf")
    }

    /// A path beside the directory tree.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Sets a variable of `server.conf`.
    pub(crate) fn configure(&self, key: &str, value: &str) {
        let old = fs::read_to_string(self.server_conf()).expect("server.conf");
        let kept = old.lines().filter(|line| !line.starts_with(&format!("{key}=")));
        let text = kept.chain([format!("{key}={value}").as_str()]).collect::<Vec<_>>().join("\n") + "\n";
        fs::write(self.server_conf(), text).expect("server.conf");
    }

    /// One of our commands, to be run on this directory tree.
    pub(crate) fn command(&self, name: &str) -> Command {
        let mut command = Command::new(binary(name));
        command.env_remove("SOURCE_DATE_EPOCH").env_remove("CVMFS_REPO").env("CVMFS_SERVER_ROOT", self.root());
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command
    }

    pub(crate) fn publish(&self, arguments: &[&str]) -> Done {
        run(self.command("cvmfs-publish").args(arguments))
    }

    /// An ingest that keeps owners.
    pub(crate) fn ingest_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command("cvmfs-ingest");
        command.args(["--json", "--keep-owner"]).args(arguments);
        command
    }

    pub(crate) fn ingest(&self, arguments: &[&str]) -> Done {
        run(&mut self.ingest_command(arguments))
    }

    /// Runs `cvmfs-ingest` on a tarball of this site.
    pub(crate) fn ingest_tar(&self, tarball: &str, more: &[&str]) -> serde_json::Value {
        let path = self.path(tarball);
        self.ingest(&[&["--tar", path.to_str().expect("UTF-8")], more].concat()).json()
    }

    /// Arguments that tell the verifier where the repository is.
    fn place(&self) -> Vec<String> {
        let text = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
        let (storage, key) = (text(self.storage()), text(self.key_file("pub")));
        ["--store", &storage, "--fqrn", &self.name, "--pub", &key].map(str::to_owned).into()
    }

    /// Has every object, row and signature of the repository verified, in all revisions that have a tag.
    ///
    /// Returns the verifier's numbers.
    #[track_caller]
    pub(crate) fn check(&self, more: &[&str]) -> serde_json::Value {
        let checksum = self.checksum_file();
        let mut arguments = vec!["check".to_owned()];
        arguments.extend(self.place());
        arguments.extend(["--quiet", "--json", "--all-tags", "--reflog-checksum"].map(str::to_owned));
        arguments.push(checksum.to_str().expect("UTF-8").to_owned());
        arguments.extend(more.iter().map(|&text| text.to_owned()));
        let done = verifier(arguments);
        if done.status.code() == Some(3) {
            // Without the numbers, in which they would not be seen.
            let findings: Vec<_> = done.stdout.lines().filter(|line| !line.starts_with('{')).collect();
            panic!("the verifier found {}", findings.join("\n"));
        }
        done.json()["numbers"].take()
    }

    /// The file with the checksum of the reflog.
    ///
    /// A run that is killed right after it wrote the reflog leaves the checksum under the name that it prepared it.
    fn checksum_file(&self) -> PathBuf {
        let (current, prepared) = (self.spool().join("reflog.chksum"), self.spool().join("reflog.chksum.new"));
        let Ok(checksum) = fs::read_to_string(&prepared) else { return current };
        let sum = run(Command::new("sha1sum").arg(self.storage().join(".cvmfsreflog"))).ok();
        if sum.starts_with(&checksum) { prepared } else { current }
    }

    /// Number of catalogs of the head.
    #[track_caller]
    pub(crate) fn catalogs(&self) -> usize {
        let arguments = self.place().into_iter().chain(["--quiet", "--json", "--no-data"].map(str::to_owned));
        let report = verifier(["check".to_owned()].into_iter().chain(arguments)).json();
        usize::try_from(report["numbers"]["catalogs"].as_u64().expect("a number")).expect("a small number")
    }

    /// [`check`](Self::check) with chunk boundaries.
    #[track_caller]
    pub(crate) fn check_chunks(&self) {
        self.check(&["--chunks", CHUNKS]);
    }

    /// What the verifier finds in a revision; `more` says which, the head by default.
    #[track_caller]
    pub(crate) fn list(&self, more: &[&str]) -> Listing {
        let mut arguments = vec!["list".to_owned()];
        arguments.extend(self.place());
        arguments.extend(["--raw-links", "--ignore", "dirsize"].map(str::to_owned));
        arguments.extend(more.iter().map(|&text| text.to_owned()));
        Listing::parse(&verifier(arguments).ok())
    }

    /// The signed manifest as it is.
    pub(crate) fn manifest(&self) -> Vec<u8> {
        fs::read(self.storage().join(".cvmfspublished")).expect("manifest")
    }

    /// A line of the manifest.
    pub(crate) fn manifest_field(&self, key: char) -> String {
        let manifest = self.manifest();
        let text = String::from_utf8_lossy(&manifest);
        text.lines().find_map(|line| line.strip_prefix(key)).expect("field of the manifest").to_owned()
    }

    /// Names of all objects, sorted.
    pub(crate) fn objects(&self) -> Vec<String> {
        objects(&self.storage())
    }

    /// Serves the repositories of the site until dropped.
    pub(crate) fn serve(&self) -> Server {
        Server::start(self.command("cvmfs-replica"))
    }
}

/// Names of all objects of a storage, sorted.
pub(crate) fn objects(storage: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for directory in fs::read_dir(storage.join("data")).expect("data directory") {
        let directory = directory.expect("directory").path();
        let prefix = directory.file_name().and_then(OsStr::to_str).expect("UTF-8").to_owned();
        if prefix.len() != 2 {
            continue;
        }
        for object in fs::read_dir(&directory).expect("directory") {
            names.push(prefix.clone() + object.expect("object").file_name().to_str().expect("UTF-8"));
        }
    }
    names.sort();
    names
}

/// A running `cvmfs-replica serve`.
pub(crate) struct Server {
    child: Child,
    /// URL of the directory with all repositories.
    pub(crate) url: String,
}

impl Server {
    fn start(mut command: Command) -> Self {
        command.args(["serve", "--listen", "127.0.0.1:0"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut first = String::new();
        BufReader::new(child.stderr.take().expect("piped")).read_line(&mut first).expect("standard error");
        let url = first.strip_prefix("serving ").and_then(|rest| rest.split_whitespace().next());
        let url = url.unwrap_or_else(|| panic!("no address: {first}")).trim_end_matches('/').to_owned();
        Self { child, url }
    }

    /// URL of a repository.
    pub(crate) fn repository(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It serves files that are about to be deleted; nothing is lost by not waiting for running answers.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Compresses a file with gzip.
pub(crate) fn gzip(from: &Path, to: &Path) {
    let status = Command::new("gzip").arg("-nc").arg(from).stdout(File::create(to).expect("file")).status();
    assert!(status.expect("gzip").success());
}
