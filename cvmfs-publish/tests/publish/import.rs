//! Storages taken over, with and without keys, by the real program.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::{is_root, shell};
use crate::support::fixture::{FQRN, unpacked};
use crate::support::{NAME, Site, run};

/// A server that has a storage and nothing else; the keys are in `keys` beside it.
fn orphan(mkfs: &[&str]) -> Site {
    let site = Site::with_repository(mkfs);
    site.publish(&["mkdir", "/a", "--tag", "one"]).ok();
    site.publish(&["rmfs", "--keep-storage", NAME]).ok();
    shell(&site, "", "mv site/etc/cvmfs/keys keys; rm -r site/etc site/var");
    site
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn import(site: &Site, more: &[&str]) -> crate::support::Done {
    let keys = site.path("keys");
    site.publish(&[&["import", "--keys", path(&keys), NAME], more].concat())
}

/// Names, sizes, times and owners of everything on the server, and of nothing that a refusal may leave.
fn state(site: &Site) -> String {
    let script = "find site ! -path '*/var*' -printf '%p %s %T@ %U %m\\n' | LC_ALL=C sort; cat site/srv/cvmfs/*/.cvmfs* | sha1sum";
    run(Command::new("bash").args(["-euc", script]).current_dir(site.path(""))).ok()
}

fn key(site: &Site, extension: &str) -> PathBuf {
    site.path("keys").join(format!("{NAME}.{extension}"))
}

#[test]
fn with_its_keys_publishing_goes_on() {
    let site = orphan(&["--gc", "--ttl", "77", "--hash", "shake128"]);
    let before = state(&site);
    let rehearsed = import(&site, &["--dry-run", "--json"]).json();
    assert_eq!(state(&site), before);
    let sum = |site: &Site| {
        let script = "cd site/srv; find . -type f | LC_ALL=C sort | xargs sha1sum";
        run(Command::new("bash").args(["-euc", script]).current_dir(site.path(""))).ok()
    };
    let content = sum(&site);
    let imported = import(&site, &["--json"]).json();
    assert_eq!(sum(&site), content);
    assert_eq!((&imported["can_publish"], &imported["revision"]), (&true.into(), &2.into()));
    assert_eq!(imported["whitelist_expires"], rehearsed["whitelist_expires"]);
    assert_eq!(fs::metadata(site.key_file("key")).expect("key").mode() & 0o777, 0o400);

    site.publish(&["mkdir", "/b"]).ok();
    assert_eq!((site.manifest_field('G'), site.manifest_field('D')), ("yes".into(), "77".into()));
    assert!(site.manifest_field('C').ends_with("shake128"));
    site.publish(&["rollback", "one"]).ok();
    site.check(&[]);
    site.publish(&["check", "--data"]).ok();
    site.publish(&["gc", "-r", "0", "--grace-period", "0"]).ok();
    site.publish(&["resign"]).ok();
    // Once is enough.
    assert!(import(&site, &[]).fails(4).contains("server.conf exists"));
}

#[test]
fn a_repository_of_the_reference_is_taken_over() {
    let site = unpacked();
    let list = |site: &Site| site.publish(&["find"]).ok();
    let (before, tags) = (list(&site), site.publish(&["tag"]).ok());
    fs::remove_dir_all(site.server_conf().parent().unwrap()).expect("configuration");
    fs::remove_dir_all(site.spool()).expect("spool");
    site.publish(&["import", FQRN]).ok();
    assert_eq!((list(&site), site.publish(&["tag"]).ok()), (before, tags));
    assert_eq!(fs::read_to_string(site.spool().join("reflog.chksum")).expect("checksum"), site.manifest_field('Y'));
    site.publish(&["mkdir", "/ours"]).ok();
    site.publish(&["check", "--data"]).ok();
}

#[test]
fn without_keys_it_can_be_read_and_get_new_ones_later() {
    let site = orphan(&[]);
    let aside = site.path("aside");
    fs::create_dir(&aside).expect("directory");
    for extension in ["key", "crt", "masterkey"] {
        fs::rename(key(&site, extension), aside.join(extension)).expect("key");
    }
    assert_eq!(import(&site, &["--json"]).json()["can_publish"], false);
    site.publish(&["verify"]).ok();
    site.publish(&["check"]).ok();
    assert!(site.publish(&["list"]).ok().contains("no keys"));
    for command in
        [&["mkdir", "/b"][..], &["transaction"], &["tag", "add", "x"], &["gc"], &["update-repoinfo", "-f", "/dev/null"]]
    {
        let complaint = site.publish(command).fails(1);
        assert!(complaint.contains(&format!("the key to publish {NAME} with")), "{complaint}");
    }
    assert!(site.publish(&["resign", "--new-key"]).fails(1).contains("masterkey"));
    fs::copy(aside.join("masterkey"), site.key_file("masterkey")).expect("key");
    site.publish(&["resign", "--new-key"]).ok();
    site.publish(&["mkdir", "/b"]).ok();
    site.check(&[]);
}

#[test]
fn an_expired_whitelist_takes_the_master_key() {
    let site = orphan(&[]);
    let storage = site.storage();
    shell(&site, "", "cp -a site whole");
    let later = |more: &[&str]| {
        let keys = site.path("keys");
        let mut command = site.command("cvmfs-publish");
        run(command.env("SOURCE_DATE_EPOCH", "4000000000").args(["import", "--keys", path(&keys), NAME]).args(more))
    };
    let before = state(&site);
    assert!(later(&[]).fails(5).contains("expired"));
    assert_eq!(state(&site), before);
    later(&["-r", "--whitelist-days", "7"]).ok();
    let whitelist = fs::read(storage.join(".cvmfswhitelist")).expect("whitelist");
    assert!(String::from_utf8_lossy(&whitelist).contains("\nE20961009070640\n"), "{whitelist:?}");
    let mut publish = site.command("cvmfs-publish");
    run(publish.env("SOURCE_DATE_EPOCH", "4000000100").args(["mkdir", "/b"])).ok();

    // The master key is on another machine, which signed a list.
    shell(
        &site,
        "",
        "rm -r site; cp -a whole site; cp site/srv/cvmfs/*/.cvmfswhitelist keys/test.example.org.whitelist; rm keys/*.masterkey",
    );
    assert!(import(&site, &["--new-keys"]).fails(1).contains("masterkey"));
    fs::remove_file(storage.join(".cvmfswhitelist")).expect("whitelist");
    import(&site, &[]).fails(1);
    assert!(import(&site, &["-r"]).stderr.contains("no whitelist vouches for"));
    site.publish(&["mkdir", "/b"]).ok();
    site.check(&[]);
}

#[test]
fn new_keys_leave_a_repository_that_clients_accept_at_every_moment() {
    let site = orphan(&[]);
    for extension in ["key", "crt"] {
        fs::remove_file(key(&site, extension)).expect("key");
    }
    shell(&site, "", "cp -a site whole");
    // A client has the public key and the storage.
    let accepted = || {
        let (store, public) = (site.storage(), key(&site, "pub"));
        let place = ["--store", path(&store), "--fqrn", NAME, "--pub", path(&public)];
        // The reflog is written right before the manifest, which names it.
        crate::support::verifier(["check", "--quiet", "--stale-y"].iter().chain(&place)).ok()
    };
    let mut finished = 0;
    for moment in [5, 60, 150, 300] {
        shell(&site, "", "rm -r site; cp -a whole site");
        let keys = site.path("keys");
        let mut command = site.command("cvmfs-publish");
        command.args(["import", "-t", "--keys", path(&keys), NAME]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("a process");
        thread::sleep(Duration::from_millis(moment));
        let _ = child.kill();
        let _ = child.wait();
        accepted();
        if site.server_conf().exists() {
            finished += 1;
        } else {
            import(&site, &["-t"]).ok();
        }
        accepted();
        site.publish(&["mkdir", "/b"]).ok();
        site.check(&[]);
    }
    assert!(finished < 4, "the moments are badly chosen");
    assert!(fs::read_dir(site.key_file("key").parent().unwrap()).expect("keys").count() == 4);
    // The old certificate goes when it is not needed any more.
    assert_eq!(
        site.publish(&["resign", "--only-this", "--json"]).json()["fingerprints"].as_array().expect("a list").len(),
        1
    );
}

#[test]
fn what_does_not_fit_is_refused_and_left_as_it_is() {
    let site = orphan(&[]);
    let other = Site::with_repository(&[]);
    shell(&site, "", "cp -a site whole; cp -a keys good");
    let their = |extension: &str| path(&other.key_file(extension)).to_owned();
    let published = "site/srv/cvmfs/test.example.org/.cvmfspublished";
    for (what, script, more, code) in [
        ("another master key", format!("cp -f {} keys/{NAME}.pub", their("pub")), &[][..], 5),
        ("masters that do not fit", format!("cp -f {} keys/{NAME}.masterkey", their("masterkey")), &["-r"], 5),
        ("a key of another certificate", format!("cp -f {} keys/{NAME}.key", their("key")), &[], 5),
        ("keys that are not listed", format!("cp -f {} {} keys/", their("key"), their("crt")), &[], 5),
        ("no certificate", format!("rm -f keys/{NAME}.crt"), &[], 1),
        ("no public key", "rm -f keys/*.pub keys/*.masterkey".into(), &[], 1),
        ("no master key", "rm -f keys/*.masterkey".into(), &["-r"], 1),
        ("no master key for new keys", "rm -f keys/*.masterkey".into(), &["-t"], 1),
        ("half a key", format!("head -c 300 good/{NAME}.key >half; cp -f half keys/{NAME}.key"), &[], 1),
        ("no manifest", format!("rm {published}"), &[], 1),
        ("half a manifest", format!("truncate -s 100 {published}"), &[], 3),
        ("a changed manifest", format!("sed -i s/^S2/S3/ {published}"), &[], 3),
        ("no certificate object", "rm -f site/srv/cvmfs/*/data/*/*X".into(), &[], 3),
        ("no whitelist", "rm -f site/srv/cvmfs/*/.cvmfswhitelist".into(), &[], 1),
        ("no storage", "rm -r site/srv/cvmfs/*".into(), &[], 1),
        (
            "other keys on the server",
            format!("mkdir -p site/etc/cvmfs/keys; cp {} site/etc/cvmfs/keys", their("pub")),
            &[],
            4,
        ),
        (
            "an interrupted removal",
            format!(
                "mkdir -p site/etc/cvmfs/repositories.d/{NAME}; >site/etc/cvmfs/repositories.d/{NAME}/server.conf.removed"
            ),
            &[],
            4,
        ),
        (
            "a storage of another",
            format!(
                "d=$PWD/site/srv/cvmfs/{NAME}; mkdir -p site/etc/cvmfs/repositories.d/b.example.org; echo CVMFS_UPSTREAM_STORAGE=local,$d/data/txn,$d >site/etc/cvmfs/repositories.d/b.example.org/server.conf"
            ),
            &[],
            4,
        ),
        ("an unknown user", "true".into(), &["--owner", "nobody-of-that-name"], 1),
        ("a bucket without URL", "true".into(), &["-u", "S3,/tmp,x@/nowhere/s3.conf"], 1),
        ("no such storage", "true".into(), &["-u", "gw,/tmp,http://x"], 2),
    ] {
        shell(&site, "", "rm -rf site keys; cp -a whole site; cp -a good keys");
        shell(&site, "", &script);
        let before = state(&site);
        for mode in [&["--dry-run"][..], &[]] {
            let done = import(&site, &[more, mode].concat());
            assert_eq!(done.status.code(), Some(code), "{what}: {}{}", done.stdout, done.stderr);
        }
        assert_eq!(state(&site), before, "{what}");
    }
    // Another name is another repository.
    shell(
        &site,
        "",
        "rm -rf site keys; cp -a whole site; cp -a good keys; cp keys/test.example.org.pub keys/b.example.org.pub",
    );
    let (storage, keys) = (site.storage(), site.path("keys"));
    let done = site.publish(&["import", "b.example.org", "--storage", path(&storage), "-k", path(&keys)]);
    assert!(done.fails(1).contains("it is the storage of test.example.org"));
}

#[test]
fn a_storage_elsewhere_stays_there_and_belongs_to_its_owner() {
    let site = orphan(&[]);
    shell(&site, "", "mv site/srv/cvmfs/test.example.org elsewhere; find elsewhere -type d -empty -delete");
    let storage = site.path("elsewhere");
    if is_root() {
        run(Command::new("chown").args(["-R", "games"]).arg(&storage)).ok();
        assert!(
            import(&site, &["--storage", path(&storage), "--owner", "root"]).fails(4).contains("it belongs to games")
        );
    }
    let imported = import(&site, &["--storage", path(&storage), "--replicable", "--json"]).json();
    let conf = fs::read_to_string(site.server_conf()).expect("server.conf");
    assert!(conf.contains(&format!("CVMFS_UPSTREAM_STORAGE=local,{0}/data/txn,{0}\n", storage.display())));
    if is_root() {
        assert_eq!(imported["owner"], "games");
        let owner = |file: &Path| fs::metadata(file).expect("file").uid();
        let games = owner(&storage.join(".cvmfspublished"));
        assert_eq!([owner(&site.spool()), owner(&site.key_file("key"))], [games, games]);
        site.publish(&["rmfs", "-p", NAME]).ok();
        shell(&site, "", "rm -f site/etc/cvmfs/keys/*");
        import(&site, &["--storage", path(&storage), "--owner", "root", "--chown"]).ok();
        assert_eq!(owner(&storage.join("data/txn")), 0);
    }
    site.publish(&["mkdir", "/b"]).ok();
    site.publish(&["check"]).ok();
}

#[test]
fn of_two_at_once_one_takes_it() {
    let site = orphan(&[]);
    let codes: Vec<i32> = thread::scope(|scope| {
        let run = || import(&site, &["-t"]).status.code().expect("a code");
        let threads = [scope.spawn(run), scope.spawn(run)];
        threads.map(|thread| thread.join().expect("a code")).into()
    });
    assert!(codes.contains(&0), "{codes:?}");
    site.publish(&["mkdir", "/b"]).ok();
    site.check(&[]);
}
