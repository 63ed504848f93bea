//! Repositories removed and listed, by the real program on real directory trees.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use cvmfs_core::lock::FileLock;
use cvmfs_core::progress::Cancel;

use super::{is_root, shell};
use crate::support::{NAME, Site, run};

/// All files below the site but those of `without`.
fn files(site: &Site, without: &str) -> String {
    let root = site.root();
    let root = root.to_str().expect("UTF-8");
    let script = format!(
        "cd '{root}'; find . -not -type d | grep -v '{without}' | LC_ALL=C sort | xargs -r ls -l --time-style=full-iso"
    );
    run(Command::new("bash").args(["-euc", &script])).ok()
}

fn list(site: &Site) -> Vec<serde_json::Value> {
    site.publish(&["list", "--json"]).json().as_array().expect("a list").clone()
}

fn states(site: &Site) -> String {
    list(site).iter().map(|entry| entry["states"].to_string()).collect()
}

#[test]
fn a_repository_goes_with_everything_but_its_keys() {
    let site = Site::with_repository(&[]);
    site.publish(&["mkdir", "/a"]).ok();
    fs::write(site.server_conf().with_file_name("replica.local"), "x").expect("a file of the administrator");
    let (before, objects) = (files(&site, "nothing"), site.objects().len());
    let rehearsed = site.publish(&["rmfs", "--dry-run", "--json", NAME]).json();
    assert_eq!((&rehearsed["dry_run"], &rehearsed["objects"]), (&true.into(), &objects.into()));
    assert_eq!(files(&site, "nothing"), before);

    let removed = site.publish(&["rmfs", "--json", NAME]).json();
    assert_eq!((&removed["removed"], &removed["kept"]), (&rehearsed["removed"], &rehearsed["kept"]));
    assert_eq!(removed["objects"], objects);
    assert!(!site.storage().exists() && !site.spool().exists() && !site.server_conf().parent().unwrap().exists());
    assert!(files(&site, "etc/cvmfs/keys").is_empty());
    assert!(["masterkey", "pub", "key", "crt"].iter().all(|extension| site.key_file(extension).exists()));
    assert_eq!(list(&site).len(), 0);
    assert!(site.publish(&["rmfs", NAME]).fails(1).contains("not found"));
}

#[test]
fn storage_stays_and_keys_go_on_request() {
    let site = Site::with_repository(&[]);
    let storage = run(Command::new("cp").arg("-a").arg(site.storage()).arg(site.path("copy")));
    storage.ok();
    site.publish(&["rmfs", "-f", "-p", NAME]).ok();
    let difference = run(Command::new("diff").arg("-r").arg(site.storage()).arg(site.path("copy"))).ok();
    assert_eq!(difference, "");
    site.publish(&["import", NAME]).ok();
    site.publish(&["rmfs", "--keep-storage", "--keys", NAME]).fails(2);
    site.publish(&["rmfs", "--keys", NAME]).ok();
    assert!(files(&site, "nothing").is_empty());
}

#[test]
fn it_is_refused_while_something_speaks_against_it() {
    let site = Site::with_repository(&[]);
    let refused = |reason: &str| {
        let before = files(&site, "nothing");
        for more in [&["--dry-run"][..], &[]] {
            let complaint = site.publish(&[&["rmfs", NAME], more].concat()).fails(4);
            assert!(complaint.contains(reason), "{reason}: {complaint}");
        }
        assert_eq!(files(&site, "nothing"), before, "{reason}");
    };
    site.publish(&["transaction"]).ok();
    refused("has a transaction open");
    assert_eq!(states(&site), r#"["in_transaction"]"#);
    site.publish(&["abort"]).ok();
    let marker = site.spool().join("in_transaction.lock");
    fs::write(&marker, "").expect("marker");
    refused("transaction of cvmfs_server");
    assert_eq!(states(&site), r#"["in_transaction"]"#);
    fs::remove_file(marker).expect("marker");
    // Another process publishes.
    let lock = site.spool().join("is_publishing.lock");
    let held = FileLock::acquire(&lock, Duration::ZERO, &Cancel::new()).expect("a lock").expect("free");
    assert!(site.publish(&["rmfs", NAME]).fails(4).contains("at work"));
    drop(held);

    if is_root() {
        let mount = site.spool().join("read only");
        fs::create_dir(&mount).expect("directory");
        run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&mount)).ok();
        let complaint = site.publish(&["rmfs", NAME]).fails(4);
        run(Command::new("umount").arg(&mount)).ok();
        assert!(complaint.contains("read only is mounted"), "{complaint}");
    }

    let second = site.server_conf().parent().unwrap().with_file_name("copy.example.org");
    fs::create_dir(&second).expect("directory");
    let storage = site.storage();
    let text = format!("CVMFS_UPSTREAM_STORAGE=local,{0}/data/txn,{0}/\n", storage.display());
    fs::write(second.join("server.conf"), text).expect("server.conf");
    refused("copy.example.org has the same storage");
    fs::remove_dir_all(second).expect("directory");

    fs::write(site.server_conf().with_file_name("replica.conf"), "").expect("replica.conf");
    refused("cvmfs-replica remove");
    fs::remove_file(site.server_conf().with_file_name("replica.conf")).expect("replica.conf");

    for (key, place) in
        [("CVMFS_SPOOL_DIR", site.root()), ("CVMFS_SPOOL_DIR", "/".into()), ("CVMFS_SPOOL_DIR", "x".into())]
    {
        let kept = fs::read(site.server_conf()).expect("server.conf");
        site.configure(key, place.to_str().expect("UTF-8"));
        assert!(site.publish(&["rmfs", NAME]).fails(1).contains("cannot be removed with it"));
        fs::write(site.server_conf(), kept).expect("server.conf");
    }
    site.publish(&["transaction"]).ok();
    // Another process adds to the transaction.
    let held = fs::File::open(site.spool().join("transaction/lock")).expect("the lock");
    held.lock().expect("free");
    assert!(site.publish(&["rmfs", "--drop-transaction", NAME]).fails(4).contains("at work"));
    drop(held);
    site.publish(&["rmfs", "--drop-transaction", NAME]).ok();
    assert!(files(&site, "etc/cvmfs/keys").is_empty());
}

#[test]
fn nothing_goes_if_not_everything_may() {
    if !is_root() {
        return;
    }
    let site = Site::with_repository(&[]);
    shell(&site, "", "chmod 755 .; chmod -R a+rX site; chown -R games site; chown root site/srv/cvmfs/*/data");
    let before = files(&site, "nothing");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=games", "--clear-groups"]).arg(site.path("program")).args(["rmfs", NAME]);
    fs::copy(crate::support::binary("cvmfs-publish"), site.path("program")).expect("program");
    let complaint = run(command.env("CVMFS_SERVER_ROOT", site.root()).env_remove("CVMFS_REPO")).fails(1);
    assert!(complaint.contains("/data: Permission denied"), "{complaint}");
    assert_eq!(files(&site, "nothing"), before);
}

#[test]
fn no_name_leads_out_of_the_tree() {
    let site = Site::with_repository(&[]);
    let before = files(&site, "nothing");
    for name in ["../x", "..", ".", "", "a/../b.c", "test.example.org/..", "*.example.org"] {
        site.publish(&["rmfs", name]).fails(2);
        site.publish(&["import", name]).fails(2);
    }
    // It has to be spelt, even if there is only one.
    site.publish(&["rmfs"]).fails(2);
    assert_eq!(files(&site, "nothing"), before);
}

/// Runs the removal and kills it so long after it has begun to remove.
fn kill(site: &Site, after: Duration) {
    let mut command = site.command("cvmfs-publish");
    let mut child =
        command.args(["rmfs", NAME]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a process");
    while site.server_conf().exists() && child.try_wait().expect("a process").is_none() {
        thread::yield_now();
    }
    thread::sleep(after);
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn killed_in_the_middle_it_is_unknown_and_the_next_run_goes_on() {
    let site = Site::with_repository(&[]);
    shell(&site, "", "mkdir tree; cd tree; for n in $(seq 800); do echo $n >$n; done");
    super::publish(&site, "tree", &[]);
    shell(&site, "", "cp -a site whole");
    let mut interrupted = 0;
    // On a busy machine the command may have ended before it can be killed: then once more.
    for moment in [0, 2, 6].into_iter().chain([0; 40]) {
        if moment == 0 && interrupted > 0 {
            break;
        }
        shell(&site, "", "rm -rf site; cp -a whole site");
        kill(&site, Duration::from_millis(moment));
        if site.server_conf().parent().unwrap().exists() {
            interrupted += 1;
            assert_eq!(states(&site), r#"["half_removed"]"#);
            // Nobody reads or makes half a repository.
            assert!(!site.storage().join(".cvmfspublished").exists() || site.storage().join("data/ff").exists());
            site.publish(&["info", "--repo", NAME]).fails(1);
            site.publish(&["mkfs", NAME]).fails(4);
            site.publish(&["rmfs", NAME]).ok();
        }
        assert!(files(&site, "etc/cvmfs/keys").is_empty() && !site.storage().exists(), "{moment}");
    }
    assert!(interrupted > 0, "the moments are badly chosen");
}

#[test]
fn of_two_at_once_one_removes_it() {
    let site = Site::with_repository(&[]);
    let codes: Vec<i32> = thread::scope(|scope| {
        let remove = || site.publish(&["rmfs", NAME]).status.code().expect("a code");
        let threads = [scope.spawn(remove), scope.spawn(remove)];
        threads.map(|thread| thread.join().expect("a code")).into()
    });
    assert!(codes.contains(&0) && codes.iter().all(|code| [0, 1, 4].contains(code)), "{codes:?}");
    assert!(files(&site, "etc/cvmfs/keys").is_empty() && !site.spool().exists());
}

#[test]
fn the_list_says_how_repositories_are() {
    let site = Site::with_repository(&[]);
    let line = || site.publish(&["list"]).ok();
    assert_eq!(line(), format!("{NAME} (stratum0 / local) revision 1\n"));
    let entry = list(&site).remove(0);
    assert_eq!((&entry["kind"], &entry["revision"]), (&"stratum0".into(), &1.into()));
    assert_eq!(entry["root_hash"], site.manifest_field('C'));
    // Signed for 30 days a moment ago: 30 within the same second, 29 after it.
    assert!([29, 30].contains(&entry["whitelist_days_left"].as_i64().expect("days")), "{entry}");

    let with = |file: &Path, content: Option<&[u8]>, expected: &str| {
        let aside = fs::read(file).expect("file");
        match content {
            Some(content) => fs::write(file, content),
            None => fs::remove_file(file),
        }
        .expect("file");
        assert_eq!(states(&site), expected);
        let _ = fs::remove_file(file);
        fs::write(file, aside).expect("file");
    };
    let whitelist = site.storage().join(".cvmfswhitelist");
    with(&site.storage().join(".cvmfspublished"), None, r#"["empty"]"#);
    with(&site.storage().join(".cvmfspublished"), Some(b"C0\n"), r#"["damaged"]"#);
    with(&whitelist, None, r#"["whitelist_missing"]"#);
    with(&site.key_file("key"), None, r#"["no_keys"]"#);
    with(&site.server_conf(), Some(b"CVMFS_UPSTREAM_STORAGE=gw,/x,http://x\n"), r#"["unusable"]"#);
    with(&site.server_conf(), Some(b"CVMFS_UPSTREAM_STORAGE=local,/x,/x/nowhere\n"), r#"["unreachable"]"#);
    site.publish(&["resign", "--days", "0"]).fails(5);
    site.publish(&["mkdir", "/a", "--tag", "one"]).ok();
    site.publish(&["checkout", "one", "--branch", "fixes"]).ok();
    assert_eq!(line(), format!("{NAME} (stratum0 / local [checked out tag 'one' on branch 'fixes']) revision 2\n"));
    let mut later = site.command("cvmfs-publish");
    later.env("SOURCE_DATE_EPOCH", "4000000000").arg("list");
    assert!(run(&mut later).ok().starts_with(&format!("{NAME} (stratum0 / local - whitelist expired [")));
}
