//! Trees with everything that a file system can hold, through GNU tar into a repository: what the independent verifier
//! lists there is what it lists of the source, after the first revision and after many others.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Site, gzip, make_tree, pack, run, source_listing};

/// A site with the rich tree in `source`, packed as `rich.tar`.
fn rich_site(mkfs: &[&str]) -> Site {
    let site = Site::with_repository(mkfs);
    make_tree("rich", &site.path("source"), &[]);
    pack(&site.path("source"), &site.path("rich.tar"), &["."]);
    site
}

#[test]
fn a_rich_tree_arrives_whole() {
    let site = rich_site(&[]);
    let expected = source_listing(&site.path("source"));
    let outcome = site.ingest_tar("rich.tar", &[]);
    assert_eq!((outcome["changed"].as_bool(), outcome["revision"].as_u64()), (Some(true), Some(2)), "{outcome}");
    assert_eq!(outcome["warnings"], serde_json::json!([]));
    assert_eq!(outcome["entries"]["added"].as_u64(), Some(expected.0.len() as u64));
    site.check_chunks();
    // That of the root, and one for each directory with a marker.
    assert_eq!(site.catalogs(), 1 + expected.directories_with(".cvmfscatalog").len());
    site.list(&[]).below("").assert_is(&expected);

    // The same once more, in every form: nothing changes, not even the signature.
    let manifest = site.manifest();
    let objects = site.objects();
    gzip(&site.path("rich.tar"), &site.path("rich.tar.gz"));
    let tarball = fs::File::open(site.path("rich.tar")).expect("tarball");
    let piped = run(site.ingest_command(&["--tar", "-"]).stdin(tarball)).json();
    for again in [site.ingest_tar("rich.tar", &[]), site.ingest_tar("rich.tar.gz", &["--threads", "1"]), piped] {
        assert_eq!((again["changed"].as_bool(), again["revision"].as_u64()), (Some(false), Some(2)), "{again}");
        assert_eq!(again["content"]["objects_new"].as_u64(), Some(0));
        assert!(site.manifest() == manifest);
    }
    assert_eq!(site.objects(), objects);

    // Below a new directory that becomes a catalog: the same content needs no new data objects.
    let below = site.ingest_tar("rich.tar.gz", &["--base-dir", "copy/of it", "--catalog", "--tag", "copied"]);
    assert_eq!(below["content"]["objects_new"].as_u64(), Some(0));
    site.check_chunks();
    let manifest = site.manifest();
    let again = site.ingest_tar("rich.tar.gz", &["--base-dir", "copy/of it", "--catalog"]);
    assert_eq!(again["changed"].as_bool(), Some(false), "{again}");
    assert!(site.manifest() == manifest);
    let all = site.list(&[]);
    let mut copy = all.below("copy/of%20it");
    assert_eq!(copy.take(|path| path == ".cvmfscatalog"), [".cvmfscatalog"]);
    copy.assert_is(&expected);
    let mut rest = all.below("");
    rest.take(|path| path == "copy" || path.starts_with("copy/"));
    rest.assert_is(&expected);
    site.list(&["--tag", "copied"]).assert_is(&all);
    site.list(&["--tag", "trunk-previous"]).below("").assert_is(&expected);
}

#[test]
fn every_algorithm_and_compression_keeps_all() {
    for options in [["--hash", "rmd160", "--compression", "zlib"], ["--hash", "shake128", "--compression", "none"]] {
        let site = rich_site(&options);
        site.ingest_tar("rich.tar", &[]);
        site.check_chunks();
        site.list(&[]).below("").assert_is(&source_listing(&site.path("source")));
    }
}

/// Changes the source and ingests what must lead there.
struct Story {
    site: Site,
    step: u32,
}

impl Story {
    fn source(&self, name: &str) -> std::path::PathBuf {
        self.site.path("source").join(name)
    }

    /// Ingests members of the source, removing some paths first, and compares everything.
    #[track_caller]
    fn expect_after(&mut self, members: &[&str], delete: &[&str]) {
        self.step += 1;
        let before = self.site.list(&[]);
        let tag = format!("step-{}", self.step);
        let tarball = format!("{tag}.tar");
        let mut arguments = vec!["--tag", &tag];
        for path in delete {
            arguments.extend(["--delete", path]);
        }
        if members.is_empty() {
            let outcome = self.site.ingest(&arguments).json();
            assert_eq!(outcome["changed"].as_bool(), Some(true), "{outcome}");
        } else {
            pack(&self.site.path("source"), &self.site.path(&tarball), members);
            let outcome = self.site.ingest_tar(&tarball, &arguments);
            assert_eq!(outcome["changed"].as_bool(), Some(true), "{outcome}");
        }
        self.site.check_chunks();
        let mut found = self.site.list(&[]).below("");
        let mut expected = source_listing(&self.site.path("source"));
        // A directory's time is that of the tarball or the revision before; only the source's changes by itself.
        for listing in [&mut found, &mut expected] {
            for line in listing.0.values_mut().filter(|line| line.starts_with("d ")) {
                let mut columns: Vec<&str> = line.split(' ').collect();
                columns[4] = "*";
                *line = columns.join(" ");
            }
        }
        found.assert_is(&expected);
        assert_eq!(self.site.catalogs(), 1 + expected.directories_with(".cvmfscatalog").len());
        self.site.list(&["--tag", "trunk-previous"]).assert_is(&before);
        assert_eq!(self.site.manifest_field('S'), (2 + self.step).to_string());
    }
}

#[test]
fn revisions_follow_the_source() {
    let site = rich_site(&["--gc"]);
    site.ingest_tar("rich.tar", &[]);
    let mut story = Story { site, step: 0 };
    let write = |path: &Path, content: &[u8]| fs::write(path, content).expect("write");

    // Content, mode, owner and target of what is there; new files in nested catalogs.
    write(&story.source("nested/a/file 7"), b"changed");
    write(&story.source("nested/a/b/new"), b"in a catalog in a catalog");
    write(&story.source("sizes/65536"), &vec![7; 30_000]);
    fs::set_permissions(story.source("modes/2755"), fs::Permissions::from_mode(0o600)).expect("mode");
    fs::remove_file(story.source("symlinks/00")).expect("remove");
    std::os::unix::fs::symlink("elsewhere", story.source("symlinks/00")).expect("symlink");
    story.expect_after(&["nested", "sizes/65536", "modes/2755", "symlinks/00"], &[]);

    // Files become directories and back; also where a catalog is.
    fs::remove_file(story.source("sizes/4096")).expect("remove");
    fs::create_dir_all(story.source("sizes/4096/now/a dir")).expect("mkdir");
    write(&story.source("sizes/4096/now/file"), b"below");
    fs::remove_dir_all(story.source("nested/a/b")).expect("remove");
    write(&story.source("nested/a/b"), b"was a directory with a catalog below");
    fs::remove_dir_all(story.source("nested/d")).expect("remove");
    std::os::unix::fs::symlink("a", story.source("nested/d")).expect("symlink");
    fs::remove_file(story.source("special/fifo")).expect("remove");
    write(&story.source("special/fifo"), b"no fifo any more");
    fs::remove_file(story.source("symlinks/03")).expect("remove");
    fs::create_dir(story.source("symlinks/03")).expect("mkdir");
    story.expect_after(&["sizes/4096", "nested", "special/fifo", "symlinks/03"], &[]);

    // Removal: files, names of hard linked files, trees with catalogs in them, things that do not exist.
    for file in ["hard/b", "hard/two", "hard/large", "sizes/300001", "nested/a/also 1", "hard/symlink"] {
        fs::remove_file(story.source(file)).expect(file);
    }
    for directory in ["deep", "nested/only marker", "names/dirs", "xattrs"] {
        fs::remove_dir_all(story.source(directory)).expect(directory);
    }
    let gone = [
        "hard/b",
        "hard/two",
        "hard/large",
        "sizes/300001",
        "nested/a/also 1",
        "hard/symlink",
        "deep",
        "nested/only marker",
        "names/dirs",
        "xattrs",
        "never/was",
        "hard/nor this",
    ];
    story.expect_after(&[], &gone);

    // Markers: one goes, its catalog is merged into the one above; new ones split.
    fs::remove_file(story.source("nested/.cvmfscatalog")).expect("remove");
    story.expect_after(&[], &["nested/.cvmfscatalog"]);
    for directory in ["hard", "nested/new", "nested/a"] {
        fs::create_dir_all(story.source(directory)).expect("mkdir");
        write(&story.source(directory).join(".cvmfscatalog"), b"");
    }
    story.expect_after(&["hard", "nested"], &["hard", "nested/new"]);

    // Removal and addition of the same tree in one revision: only the new content remains.
    fs::remove_dir_all(story.source("nested")).expect("remove");
    fs::create_dir(story.source("nested")).expect("mkdir");
    write(&story.source("nested/alone"), b"alone");
    story.expect_after(&["nested"], &["nested"]);

    // Everything goes; the repository is as empty as at first.
    let names: Vec<String> = fs::read_dir(story.site.path("source"))
        .expect("list")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8"))
        .collect();
    for name in &names {
        fs::remove_dir_all(story.source(name)).expect("remove");
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    story.expect_after(&[], &names);
    assert!(story.site.list(&[]).below("").0.is_empty());
}

#[test]
fn dirtab_and_automatic_splitting_make_catalogs() {
    let site = Site::with_repository(&["--autocatalogs"]);
    site.configure("CVMFS_AUTOCATALOGS_MAX_WEIGHT", "40");
    site.configure("CVMFS_AUTOCATALOGS_MIN_WEIGHT", "10");
    let source = site.path("source");
    for version in ["1.0", "1.1", "2.0-beta"] {
        for name in ["bin", "lib"] {
            let directory = source.join("software").join(version).join(name);
            fs::create_dir_all(&directory).expect("mkdir");
            fs::write(directory.join("file"), version).expect("write");
        }
    }
    fs::write(source.join(".cvmfsdirtab"), "# versions\n/software/*\n! *-beta\n/software/*/b?n\n").expect("write");
    pack(&source, &site.path("software.tar"), &["."]);
    site.ingest_tar("software.tar", &[]);
    site.check_chunks();
    let mut found = site.list(&[]).below("");
    assert_eq!(
        found.directories_with(".cvmfscatalog"),
        // The rule that excludes is for whole paths, so the last is none of its business.
        ["software/1.0", "software/1.0/bin", "software/1.1", "software/1.1/bin", "software/2.0-beta/bin"]
    );
    assert_eq!(site.catalogs(), 6);
    found.take(|path| path.ends_with("/.cvmfscatalog"));
    found.assert_is(&source_listing(&source));

    // 30 directories with 12 entries each: 391 entries must not stay in one catalog of at most 40.
    for directory in 0..30 {
        let directory = source.join(format!("data/{:02}/{directory:02}", directory % 5));
        fs::create_dir_all(&directory).expect("mkdir");
        for file in 0..12 {
            fs::write(directory.join(format!("{file:02}")), b"x").expect("write");
        }
    }
    pack(&source, &site.path("data.tar"), &["data"]);
    site.ingest_tar("data.tar", &[]);
    site.check_chunks();
    let mut found = site.list(&[]).below("");
    let automatic: Vec<String> = found.directories_with(".cvmfsautocatalog").into_iter().map(str::to_owned).collect();
    // 361 leaves and 30 directories need at least ten catalogs of 40.
    assert!(automatic.len() >= 9 && automatic.iter().all(|path| path.starts_with("data")), "{automatic:?}");
    assert_eq!(site.catalogs(), 6 + automatic.len());
    let markers = |path: &str| path.ends_with("/.cvmfscatalog") || path.ends_with("/.cvmfsautocatalog");
    found.take(markers);
    found.assert_is(&source_listing(&source));

    // Again: the markers that we made are not taken for a change.
    let manifest = site.manifest();
    assert_eq!(site.ingest_tar("data.tar", &[])["changed"].as_bool(), Some(false));
    assert!(site.manifest() == manifest);

    // Fewer than ten entries: the catalog goes, and its markers.
    let victim = automatic.iter().find(|path| path.split('/').count() == 3).expect("a leaf catalog").clone();
    let mut arguments: Vec<String> = Vec::new();
    for file in 0..10 {
        fs::remove_file(source.join(&victim).join(format!("{file:02}"))).expect("remove");
        arguments.extend(["--delete".into(), format!("{victim}/{file:02}")]);
    }
    site.ingest(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).json();
    site.check_chunks();
    let found = site.list(&[]).below("");
    assert!(!found.directories_with(".cvmfscatalog").contains(&victim.as_str()));
    assert!(!found.directories_with(".cvmfsautocatalog").contains(&victim.as_str()));
    assert_eq!(found.below(&victim).0.len(), 2);
}

#[test]
fn refusals_leave_the_repository_as_it_was() {
    let site = Site::with_repository(&[]);
    let source = site.path("source");
    fs::create_dir(&source).expect("mkdir");
    fs::write(source.join("file"), b"content").expect("write");
    pack(&source, &site.path("good.tar"), &["file"]);
    site.ingest_tar("good.tar", &["--tag", "taken"]);
    let manifest = site.manifest();

    let good = site.path("good.tar");
    let good = good.to_str().expect("UTF-8");
    let mut bytes = fs::read(good).expect("tarball");
    bytes.truncate(700);
    fs::write(site.path("torn.tar"), &bytes).expect("write");
    bytes[0] ^= 1;
    fs::write(site.path("damaged.tar"), &bytes).expect("write");
    fs::write(source.join("evil"), b"x").expect("write");
    let mut evil = Command::new("tar");
    evil.arg("-C").arg(&source).args(["-P", "--transform", "s,^,a/../../,", "-cf"]).arg(site.path("evil.tar"));
    run(evil.arg("evil")).ok();
    fs::create_dir(source.join(".cvmfscatalog")).expect("mkdir");
    pack(&source, &site.path("marker.tar"), &[".cvmfscatalog"]);
    fs::create_dir(source.join("file.d")).expect("mkdir");
    fs::hard_link(source.join("file"), source.join("link")).expect("link");
    pack(&source, &site.path("lost.tar"), &["file", "link"]);
    run(Command::new("tar").arg("--delete").arg("-f").arg(site.path("lost.tar")).arg("file")).ok();

    let tar = |name: &str| site.path(name).to_str().expect("UTF-8").to_owned();
    let (torn, damaged, evil, marker, missing) =
        (tar("torn.tar"), tar("damaged.tar"), tar("evil.tar"), tar("marker.tar"), tar("missing.tar"));
    for (arguments, code, complaint) in [
        (vec!["--tar", good, "--base-dir", "x", "--tag", "taken"], 4, "taken"),
        (vec!["--tar", &torn], 3, "torn.tar"),
        (vec!["--tar", &damaged], 3, "damaged.tar"),
        (vec!["--tar", &evil], 1, ".."),
        (vec!["--tar", &marker], 1, "marker"),
        (vec!["--tar", &missing], 1, "missing.tar"),
        (vec!["--tar", good, "--catalog"], 1, "root"),
        (vec!["--tar", good, "--base-dir", "file/below"], 1, "not a directory"),
        (vec!["--tar", good, "--base-dir", ".cvmfs"], 1, ".cvmfs"),
        (vec!["--tar", good, "--repo", "other.example.org"], 1, "other.example.org"),
        (vec!["--tar", good, "--tag", "a b"], 2, "a b"),
        (vec![], 2, "--tar"),
    ] {
        let stderr = site.ingest(&arguments).fails(code);
        assert!(stderr.contains(complaint), "{arguments:?}: {stderr}");
        assert!(site.manifest() == manifest, "{arguments:?}");
    }
    // A link to what is in the repository, but not in the tarball, is fine; to what is nowhere, it is not.
    assert_eq!(site.ingest_tar("lost.tar", &[])["changed"].as_bool(), Some(true));
    site.check_chunks();
    let manifest = site.manifest();
    let lost = tar("lost.tar");
    site.ingest(&["--tar", &lost, "--base-dir", "elsewhere"]).fails(1);
    assert!(site.manifest() == manifest);

    // Somebody else is publishing with the reference's tools.
    fs::write(site.spool().join("in_transaction.lock"), b"").expect("write");
    site.ingest(&["--tar", good, "--base-dir", "y"]).fails(4);
    fs::remove_file(site.spool().join("in_transaction.lock")).expect("remove");

    // Standard input that ends in the middle.
    let tarball = fs::File::open(site.path("torn.tar")).expect("tarball");
    run(site.ingest_command(&["--tar", "-"]).stdin(tarball).stdout(Stdio::piped())).fails(3);
    site.check_chunks();
}

/// Names of files with the number that says how they are stored, straight from the root catalog.
fn stored_how(site: &Site) -> String {
    const SCRIPT: &str = "
import sqlite3, sys, zlib
storage, root = sys.argv[1:]
database = sqlite3.connect(':memory:')
database.deserialize(zlib.decompress(open('%s/data/%s/%sC' % (storage, root[:2], root[2:]), 'rb').read()))
rows = database.execute('SELECT name, flags >> 11 & 7, flags >> 6 & 1 FROM catalog WHERE (flags & 28) = 4 ORDER BY name')
print(*('%s=%d%s' % (name, how, '+' if chunked else '') for name, how, chunked in rows))
";
    let mut python = Command::new("python3");
    run(python.args(["-c", SCRIPT]).arg(site.storage()).arg(site.manifest_field('C'))).ok().trim().to_owned()
}

/// Whole files: as they are if they do not shrink. Chunked ones, marked `+`: as they begin. 0 is zlib, 1 is none.
#[test]
fn what_does_not_shrink_is_stored_as_it_is_if_asked() {
    let site = Site::with_repository(&[]);
    let source = site.path("source");
    fs::create_dir(&source).expect("mkdir");
    let mut noise = vec![0; 100_000];
    openssl::rand::rand_bytes(&mut noise).expect("random bytes");
    let text = "all work and no play makes a dull text\n".repeat(3000).into_bytes();
    for (name, content) in [
        ("empty", &b""[..]),
        ("short", b"x"),
        ("small-noise", &noise[..4000]),
        ("small-text", &text[..4000]),
        ("noise", &noise),
        ("text", &text),
        ("text-then-noise", &[&text[..], &noise].concat()),
    ] {
        fs::write(source.join(name), content).expect("write");
    }
    pack(&source, &site.path("files.tar"), &["."]);
    let expected = source_listing(&source);

    let auto = "empty=1 noise=1+ short=1 small-noise=1 small-text=0 text=0+ text-then-noise=0+";
    let zlib = "empty=0 noise=0+ short=0 small-noise=0 small-text=0 text=0+ text-then-noise=0+";
    let runs: [(&[&str], &str, bool); 6] = [
        (&["--compression", "auto"], auto, true),
        (&["--compression", "auto", "--threads", "1", "--no-index"], auto, false),
        (&["--compression", "auto", "--threads", "8"], auto, false),
        (&[], zlib, true),
        (&["--engine", "zlib-rs", "--no-index"], zlib, true),
        (&["--compression", "none"], &zlib.replace("=0", "=1"), true),
    ];
    for (options, stored, changes) in runs {
        let outcome = site.ingest_tar("files.tar", options);
        assert_eq!(stored_how(&site), stored, "{options:?}");
        assert_eq!(outcome["changed"].as_bool(), Some(changes), "{options:?}: {outcome}");
        site.check_chunks();
        site.list(&[]).below("").assert_is(&expected);
        site.publish(&["verify"]).ok();
    }
    assert!(site.ingest(&["--compression", "best", "--delete", "x"]).fails(2).contains("none of zlib, none, auto"));
}
