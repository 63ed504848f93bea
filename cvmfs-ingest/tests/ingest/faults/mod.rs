//! A storage that fails at the n-th operation, for every n of an ingest, in every way that a storage fails.
//!
//! After each fault the head is the old revision or the new one, complete; the tags of before are readable; and the
//! same ingest without fault makes the revision that it would have made in the first place, to the byte. The same for
//! edits, tags, rollbacks, branches and transactions.

mod store;

use std::collections::BTreeSet;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use self::store::{Fault, FaultStore, Plan, copy_tree};
use cvmfs_core::chunking::ChunkSizes;
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::{self, Publisher, Rewrite};
use cvmfs_core::error::Result;
use cvmfs_core::idmap::IdMap;
use cvmfs_core::listing::Listed;
use cvmfs_core::path::{RepoPath, RepositoryName};
use cvmfs_core::progress::{Cancel, Silent};
use cvmfs_core::publication::Outcome;
use cvmfs_core::repository::{Repository, Selector};
use cvmfs_core::server::{RepositoryConfig, ServerRoot, load_master_keys};
use cvmfs_core::storage::LocalStore;
use cvmfs_ingest::source::{Input, Ownership};
use cvmfs_ingest::{Options, ingest};
use cvmfs_publish::edit::{self, Edit};
use cvmfs_publish::inspect::{list, read_back};
use cvmfs_publish::{history, mkfs};

const NAME: &str = "faults.example.org";
const FIRST: UnixSeconds = UnixSeconds(1_800_000_000);
const SECOND: UnixSeconds = UnixSeconds(1_800_000_100);

fn name() -> RepositoryName {
    NAME.parse().unwrap()
}

/// Bytes that do not compress.
fn noise(size: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..size).map(|_| byte()).collect()
}

/// An archive of files; a name with a slash at its end is a directory, content `=target` a hard link.
fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o755);
        header.set_mtime(100);
        if let Some(target) = content.strip_prefix(b"=") {
            header.set_entry_type(tar::EntryType::Link);
            header.set_size(0);
            builder.append_link(&mut header, name, std::str::from_utf8(target).unwrap()).unwrap();
        } else {
            let is_directory = name.ends_with('/');
            header.set_entry_type(if is_directory { tar::EntryType::Directory } else { tar::EntryType::Regular });
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

/// A place with a repository; goes away with the value.
struct Site {
    directory: tempfile::TempDir,
}

impl Site {
    /// In memory if possible: there are hundreds of them.
    fn empty() -> Self {
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        Self { directory }
    }

    fn copy(&self) -> Self {
        let copy = Self::empty();
        copy_tree(self.directory.path(), copy.directory.path());
        // Configuration names absolute paths.
        let config = copy.root().config_dir(&name()).join("server.conf");
        let text = fs::read_to_string(&config).unwrap();
        let (from, to) = (self.directory.path().to_str().unwrap(), copy.directory.path().to_str().unwrap());
        fs::write(config, text.replace(from, to)).unwrap();
        copy
    }

    fn root(&self) -> ServerRoot {
        ServerRoot::new(self.directory.path()).unwrap()
    }

    fn storage(&self) -> PathBuf {
        self.root().storage_dir(&name())
    }

    fn spool(&self) -> PathBuf {
        self.root().spool_dir(&name())
    }

    /// The repository as it is, read without faults.
    fn repository(&self) -> Repository {
        let store = Arc::new(LocalStore::open(self.storage()).unwrap());
        let keys = load_master_keys(&self.root(), &name()).unwrap();
        Repository::open(store, &name(), &keys, SECOND, &std::env::temp_dir()).unwrap()
    }

    /// Everything that a revision has, after all of its objects were read and verified.
    fn tree(&self, selector: &Selector) -> Vec<Listed> {
        let mut tree = self.repository().tree(selector).unwrap();
        read_back(&mut tree, &RepoPath::root()).unwrap();
        list(&mut tree, &RepoPath::root(), true).unwrap()
    }

    fn head(&self) -> (u64, String) {
        let repository = self.repository();
        (repository.manifest().revision, repository.manifest().root_catalog.to_string())
    }

    /// Names and roots of all tags.
    fn tags(&self) -> Vec<(String, String)> {
        let tags = self.repository().tags().unwrap();
        tags.into_iter().map(|tag| (tag.name, tag.root.to_string())).collect()
    }

    /// Files that no finished process leaves.
    fn leftovers(&self) -> Vec<PathBuf> {
        let places = [self.storage().join("data/txn"), self.spool().join("changes"), self.spool().join("tmp")];
        let files = places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten();
        files.map(|entry| entry.unwrap().path()).collect()
    }

    /// The independent verifier looks at all revisions.
    fn verify(&self) {
        let (current, prepared) = (self.spool().join("reflog.chksum"), self.spool().join("reflog.chksum.new"));
        let sum = Command::new("sha1sum").arg(self.storage().join(".cvmfsreflog")).output().unwrap().stdout;
        let is_prepared = fs::read(&prepared).is_ok_and(|checksum| sum.starts_with(&checksum));
        let output = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/verifier/verify.py"))
            // A run that fails between reflog and manifest leaves a reflog that knows more than the manifest.
            .args(["check", "--all-tags", "--stale-y", "--fqrn", NAME, "--now", &SECOND.0.to_string(), "--store"])
            .arg(self.storage())
            .arg("--pub")
            .arg(self.root().key_file(&name(), "pub"))
            .arg("--reflog-checksum")
            .arg(if is_prepared { prepared } else { current })
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    fn publisher(&self, plan: &Arc<Plan>) -> Publisher {
        let mut publisher = Publisher::open(&self.root(), &name()).unwrap();
        let store = LocalStore::open(self.storage()).unwrap();
        publisher.store = Arc::new(FaultStore { store, plan: Arc::clone(plan) });
        // They are operations of their own.
        publisher.config.shortcuts = true;
        publisher
    }
}

fn options(config: &RepositoryConfig, base: &str, now: UnixSeconds) -> Options {
    let mut options = Options::new(config, base.parse().unwrap(), now).unwrap();
    options.source.ownership = Ownership { uid: IdMap::constant(1), gid: IdMap::constant(1), implied: (1, 1) };
    options.publication.pipeline.chunking = Some(ChunkSizes::new(1024, 2048, 4096).unwrap());
    // One thread: the n-th operation is the same one in every run.
    options.publication.pipeline.threads = 1;
    options.publication.commit.threads = 1;
    options
}

fn inputs(archives: &[&[u8]]) -> Vec<Input> {
    let input = |archive: &&[u8]| Input::stream("faults.tar", Cursor::new(archive.to_vec()));
    archives.iter().map(input).collect()
}

/// A repository with nested catalogs, chunks, links and a tag.
fn template() -> Site {
    let site = Site::empty();
    let mut settings = mkfs::Options::new(FIRST);
    settings.garbage_collectable = true;
    mkfs::mkfs(&site.root(), &name(), &settings).unwrap();

    let first = tar(&[
        ("old/", b""),
        ("old/file", b"old"),
        ("old/large", &noise(9000, 1)),
        ("nested/.cvmfscatalog", b""),
        ("nested/file", b"in a catalog"),
        ("nested/deep/.cvmfscatalog", b""),
        ("nested/deep/file", b"in another catalog"),
        ("linked/one", b"linked"),
        ("linked/two", b"=linked/one"),
    ]);
    let publisher = site.publisher(&Plan::new(0, Fault::Before));
    let mut options = options(&publisher.config, "", FIRST);
    options.publication.commit.tag = Some("first".parse().unwrap());
    ingest(&publisher, inputs(&[&first]), &options, &Silent, &Cancel::default()).unwrap();
    site
}

/// The ingest that is disturbed: two archives, a deletion, new and changed catalogs, a tag.
fn disturbed(site: &Site, plan: &Arc<Plan>) -> Result<Outcome> {
    let one = tar(&[
        ("new/large", &noise(12_000, 2)),
        ("new/small", b"small"),
        ("new/same", b"small"),
        ("new/.cvmfscatalog", b""),
        ("nested/deep/more", b"more"),
        ("linked/three", b"=linked/two"),
    ]);
    let two = tar(&[("new/link", b"=new/small"), ("nested/file", b"changed"), ("old", b"a file now")]);
    let publisher = site.publisher(plan);
    let mut options = options(&publisher.config, "", SECOND);
    options.source.delete = vec!["linked/one".parse().unwrap()];
    options.publication.commit.tag = Some("second".parse().unwrap());
    ingest(&publisher, inputs(&[&one, &two]), &options, &Silent, &Cancel::default())
}

/// What an undisturbed ingest makes of the template.
struct Expected {
    old: (u64, String),
    old_tree: Vec<Listed>,
    new: (u64, String),
    new_tree: Vec<Listed>,
    new_tags: Vec<(String, String)>,
    operations: u64,
}

fn expected(template: &Site) -> Expected {
    let site = template.copy();
    let plan = Plan::new(0, Fault::Before);
    let outcome = disturbed(&site, &plan).unwrap();
    assert!(outcome.finished.revision().unwrap().changed);
    site.verify();
    assert_eq!(site.leftovers(), Vec::<PathBuf>::new());
    let expected = Expected {
        old: template.head(),
        old_tree: template.tree(&Selector::Head),
        new: site.head(),
        new_tree: site.tree(&Selector::Head),
        new_tags: site.tags(),
        operations: plan.count(),
    };
    assert_ne!(expected.old, expected.new);
    let paths: Vec<&str> = expected.new_tree.iter().map(|listed| listed.path.as_str()).collect();
    for path in ["/new/large", "/new/link", "/nested/deep/more", "/linked/three", "/old"] {
        assert!(paths.contains(&path), "{path} is not in {paths:?}");
    }
    let large = expected.new_tree.iter().find(|listed| listed.path == "/new/large").unwrap();
    assert!(large.objects.len() > 2, "not chunked: {large:?}");
    expected
}

/// The head is the old revision or the new one, complete, and so is what tags name. Returns whether it is the new one.
fn check_head(site: &Site, expected: &Expected, what: &str) -> bool {
    let head = site.head();
    let is_new = head == expected.new;
    assert!(is_new || head == expected.old, "{what}: {head:?}");
    let tree = site.tree(&Selector::Head);
    assert!(tree == if is_new { &expected.new_tree[..] } else { &expected.old_tree[..] }, "{what}: another tree");
    assert!(site.tree(&Selector::Tag("first".into())) == expected.old_tree, "{what}: the old tag has another tree");
    is_new
}

/// The same ingest without faults ends where an undisturbed one does.
fn check_repeated(site: &Site, expected: &Expected, was_new: bool, what: &str) {
    let outcome = disturbed(site, &Plan::new(0, Fault::Before)).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(outcome.finished.revision().unwrap().changed, !was_new, "{what}");
    assert_eq!(site.head(), expected.new, "{what}");
    assert_eq!(site.tags(), expected.new_tags, "{what}");
    assert!(site.tree(&Selector::Head) == expected.new_tree, "{what}: another tree");
    assert!(site.tree(&Selector::Tag("first".into())) == expected.old_tree, "{what}: the old tag has another tree");
}

#[test]
fn whatever_fails_the_head_is_whole_and_the_next_run_succeeds() {
    let template = template();
    let expected = expected(&template);
    assert!(expected.operations > 40, "only {} operations", expected.operations);
    let mut struck = std::collections::BTreeMap::new();
    for fault in [Fault::Before, Fault::After, Fault::Torn] {
        for at in 1..=expected.operations {
            let site = template.copy();
            let plan = Plan::new(at, fault);
            let result = disturbed(&site, &plan);
            let what = format!("{fault:?} in operation {at}, {:?}", plan.struck());
            let operation = plan.struck().unwrap_or_else(|| panic!("{what}: not reached"));
            *struck.entry(operation).or_insert(0) += 1;
            // No operation of the storage may fail without being noticed.
            let error = result.map(|_| ()).expect_err(&what).to_string();
            let is_new = check_head(&site, &expected, &what);
            // The new manifest in place is the only thing that makes the new revision.
            assert_eq!(is_new, operation == "write manifest" && fault == Fault::After, "{what}: {error}");
            let leftovers = site.leftovers();
            assert!(leftovers.iter().all(|file| file.ends_with("data/txn/torn")), "{what}: {leftovers:?}");
            if at % 16 == 0 || operation.starts_with("write") {
                site.verify();
            }
            check_repeated(&site, &expected, is_new, &what);
            if at % 16 == 0 || operation.starts_with("write") {
                site.verify();
            }
        }
    }
    // The ingest is rich enough to need all of these.
    for operation in ["read", "open", "read of an open file", "put", "flush", "write reflog", "write manifest"] {
        assert!(struck.contains_key(operation), "{operation} is not among {struck:?}");
    }
    eprintln!("faults by operation: {struck:?}");
}

/// Two runs in a row that fail while they replace named files.
#[test]
fn a_second_failure_while_the_first_is_not_mended_loses_nothing() {
    let template = template();
    let expected = expected(&template);
    let faults = [Fault::Before, Fault::After, Fault::Torn];
    // Flush, reflog and manifest are the last operations.
    let last = expected.operations - 2..=expected.operations;
    for (first_at, first) in last.clone().flat_map(|at| faults.map(|fault| (at, fault))) {
        for second in faults {
            for back in 0..3 {
                let site = template.copy();
                disturbed(&site, &Plan::new(first_at, first)).unwrap_err();
                if check_head(&site, &expected, "after one fault") {
                    continue;
                }
                // Fewer operations than the first time, since objects are known: count them.
                let counted = Plan::new(0, Fault::Before);
                let copy = site.copy();
                disturbed(&copy, &counted).unwrap();
                let plan = Plan::new(counted.count() - back, second);
                disturbed(&site, &plan).unwrap_err();
                let what = format!("{first:?} in operation {first_at}, then {second:?} in {:?}", plan.struck());
                let is_new = check_head(&site, &expected, &what);
                check_repeated(&site, &expected, is_new, &what);
            }
        }
    }
}

#[test]
fn reads_and_writes_of_fewer_bytes_are_no_failures() {
    let template = template();
    let expected = expected(&template);
    for at in 1..=expected.operations {
        let site = template.copy();
        let plan = Plan::new(at, Fault::Short);
        disturbed(&site, &plan).unwrap_or_else(|error| panic!("operation {at}, {:?}: {error}", plan.struck()));
        assert!(plan.struck().is_some());
        assert_eq!(site.head(), expected.new);
        assert!(site.tree(&Selector::Head) == expected.new_tree);
    }
}

/// A change that is no ingest.
struct Other {
    name: &'static str,
    /// What has to be there before it.
    prepare: fn(&Publisher),
    make: fn(&Publisher) -> Result<()>,
}

fn edit(publisher: &Publisher, edit: Edit, tag: Option<&str>) -> Result<()> {
    let mut options = commit::Options { threads: 1, ..commit::Options::new(SECOND) };
    options.tag = tag.map(|tag| tag.parse().unwrap());
    edit::apply(publisher, &[edit], (1, 1), &options, &Silent, &Cancel::default()).map(drop)
}

fn others() -> [Other; 7] {
    [
        Other {
            name: "edit",
            prepare: |_| {},
            make: |publisher| {
                let (path, mode) = ("nested/deep".parse().unwrap(), "0700".parse().unwrap());
                edit(publisher, Edit::SetMode { path, mode, recursive: true }, None)
            },
        },
        Other {
            name: "tag",
            prepare: |_| {},
            make: |publisher| {
                let (options, name) = (history::Options::new(SECOND), "another".parse().unwrap());
                history::add_tag(publisher, &name, "first", "", &options, &Cancel::default()).map(drop)
            },
        },
        Other {
            name: "removal of a tag",
            prepare: |publisher| edit(publisher, make_directory("more"), Some("more")).unwrap(),
            make: |publisher| {
                let options = history::Options::new(SECOND);
                history::remove_tags(publisher, &["more".into()], &options, &Cancel::default()).map(drop)
            },
        },
        Other {
            name: "rollback",
            prepare: |publisher| edit(publisher, make_directory("more"), Some("more")).unwrap(),
            make: |publisher| {
                history::roll_back(publisher, "first", &history::Options::new(SECOND), &Cancel::default()).map(drop)
            },
        },
        Other {
            name: "branch",
            prepare: |publisher| {
                edit(publisher, make_directory("more"), Some("more")).unwrap();
                let options = history::Options::new(SECOND);
                history::check_out(publisher, Some("first"), "branch", &options, &Cancel::default()).unwrap();
            },
            make: |publisher| edit(publisher, make_directory("nested/branched"), Some("branched")),
        },
        Other {
            name: "map of owners",
            prepare: |_| {},
            make: |publisher| {
                let what = Rewrite::Owners { users: IdMap::constant(7), groups: IdMap::default() };
                let options = commit::Options { threads: 1, ..commit::Options::new(SECOND) };
                publisher.rewrite(&what, &options, &Silent, &Cancel::default()).map(drop)
            },
        },
        Other {
            name: "transaction",
            prepare: |publisher| {
                publisher.open_transaction(SECOND, "test".into(), Duration::ZERO, &Cancel::default()).unwrap();
                edit(publisher, make_directory("nested/one"), None).unwrap();
                edit(publisher, make_directory("two"), None).unwrap();
            },
            make: |publisher| {
                let options = commit::Options { threads: 1, ..commit::Options::new(SECOND) };
                let transaction = publisher.join_transaction(Duration::ZERO, &Cancel::default())?;
                transaction.publish(&options, &Silent, &Cancel::default()).map(drop)
            },
        },
    ]
}

fn make_directory(path: &str) -> Edit {
    Edit::MakeDirectory { path: path.parse().unwrap(), parents: false, permissions: 0o755 }
}

/// Everything that they can change. All objects of all revisions are read.
#[derive(Debug, PartialEq)]
struct State {
    head: (u64, String),
    tags: Vec<(String, String)>,
    trees: Vec<Vec<Listed>>,
    transaction: bool,
}

impl State {
    fn of(site: &Site) -> Self {
        let tags = site.tags();
        let roots: BTreeSet<&String> = tags.iter().map(|(_, root)| root).collect();
        let trees = roots.into_iter().map(|root| site.tree(&Selector::Root(root.parse().unwrap()))).collect();
        Self { head: site.head(), trees, transaction: site.spool().join("transaction").exists(), tags }
    }
}

/// Also what a process that is killed between any two of its operations would leave.
#[test]
fn whatever_fails_other_changes_are_made_or_not() {
    for Other { name, prepare, make } in others() {
        let template = template();
        prepare(&template.publisher(&Plan::new(0, Fault::Before)));
        let old = State::of(&template);
        let (undisturbed, plan) = (template.copy(), Plan::new(0, Fault::Before));
        make(&undisturbed.publisher(&plan)).unwrap();
        let new = State::of(&undisturbed);
        assert!(old.tags != new.tags, "{name}");
        undisturbed.verify();
        // What fails before an operation is what fails after the one before it.
        for at in 1..=plan.count() {
            let site = template.copy();
            let plan = Plan::new(at, Fault::After);
            let result = make(&site.publisher(&plan));
            let operation = plan.struck().unwrap();
            let what = format!("{name}, operation {at}, {operation}");
            assert!(result.is_err(), "{what}");
            let is_new = operation == "write manifest";
            let found = State::of(&site);
            // The transaction is removed once the revision is out.
            let expected =
                if is_new { &State { transaction: old.transaction, ..State::of(&undisturbed) } } else { &old };
            assert!(found == *expected, "{what}: {found:?}");
            if operation.starts_with("write") {
                site.verify();
            }
            if !is_new {
                make(&site.publisher(&Plan::new(0, Fault::Before))).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(State::of(&site) == new, "{what}: another state after it was made again");
            }
        }
    }
}
