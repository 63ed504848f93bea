//! A repository in a bucket of S3: a real server in this process, our commands, and the independent verifier on what the
//! server stored.

mod faults;
mod foreign;
mod replica;
mod server;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::thread;

use cvmfs_core::error::Error;
use cvmfs_core::hash::{Algorithm, ObjectId, ObjectKind};
use cvmfs_core::storage::{NamedFile, Put, ReadStore as _, S3Config, S3Store, WriteStore as _, conformance};

use self::server::{Fault, Server};
use crate::service::{Service, left, site_with_garbage_in};
use crate::support::{NAME, Site};

/// A store for the bucket, with more lines of configuration.
fn open(server: &Server, more: &str) -> (tempfile::TempDir, S3Store) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = directory.path().join("s3.conf");
    fs::write(&file, server.configuration(more)).expect("configuration");
    let config = S3Config::load(&file, NAME, &directory.path().join("tmp")).expect("configuration");
    (directory, S3Store::open(config).expect("store"))
}

/// A repository in the bucket. The verifier reads it where the server keeps its files.
fn site(server: &Server, more: &str) -> Site {
    let site = Site::empty(NAME);
    make_repository(server, &site, more);
    site
}

fn make_repository(server: &Server, site: &Site, more: &str) {
    let file = site.path("s3.conf");
    fs::write(&file, server.configuration(more)).expect("configuration");
    let file = file.to_str().expect("UTF-8");
    site.publish(&["mkfs", NAME, "-s", file, "-w", "http://bucket.example.org/path", "--gc", "--no-autotags"]).ok();
    link_storage(server, site);
}

fn link_storage(server: &Server, site: &Site) {
    // The verifier expects all directories of the layout; in a bucket there are none without objects.
    for directory in (0..=u8::MAX).map(|first| format!("{first:02x}")).chain(["txn".into()]) {
        fs::create_dir_all(server.bucket().join(NAME).join("data").join(directory)).expect("directory");
    }
    fs::create_dir_all(site.root().join("srv/cvmfs")).expect("directory");
    symlink(server.bucket().join(NAME), site.storage()).expect("link");
}

/// The same repository on another machine: keys and configuration are copied, nothing else is.
fn second_machine(server: &Server, first: &Site) -> Site {
    let second = Site::empty(NAME);
    let copy = |directory: &str| {
        let (from, to) = (first.root().join(directory), second.root().join(directory));
        fs::create_dir_all(&to).expect("directory");
        for entry in fs::read_dir(from).expect("directory") {
            let entry = entry.expect("entry");
            fs::copy(entry.path(), to.join(entry.file_name())).expect("copy");
        }
    };
    copy("etc/cvmfs/keys");
    copy(&format!("etc/cvmfs/repositories.d/{NAME}"));
    let (from, to) = (first.root(), second.root());
    let text = fs::read_to_string(second.server_conf()).expect("server.conf");
    let text = text.replace(from.to_str().expect("UTF-8"), to.to_str().expect("UTF-8"));
    fs::write(second.server_conf(), text).expect("server.conf");
    fs::create_dir_all(second.spool()).expect("directory");
    link_storage(server, &second);
    second
}

fn paths(site: &Site) -> BTreeSet<String> {
    site.publish(&["find"]).ok().lines().map(str::to_owned).collect()
}

#[test]
fn the_store_keeps_the_contract() {
    let server = Server::start();
    let (_directory, store) = open(&server, "");
    conformance::prune_alone(&store);
}

#[test]
fn large_objects_go_in_parts_and_come_back_whole() {
    let server = Server::start();
    let (_directory, store) = open(&server, "");
    let content: Vec<u8> = (0..20_000_000_u32).map(|number| (number >> 7).to_le_bytes()[0]).collect();
    let id = ObjectId::of(Algorithm::Sha1, ObjectKind::File, &content);
    let mut staged = store.stage().expect("staged");
    std::io::Write::write_all(&mut staged, &content).expect("written");
    assert_eq!(staged.finish(&id).expect("finished"), Put::New);
    store.flush().expect("flushed");
    assert!(server.log().iter().any(|line| line.starts_with("PUT") && line.contains("partNumber=3")));
    assert!(store.read(&id.into()).expect("read") == content);
}

#[test]
fn what_may_pass_is_repeated_and_nothing_else() {
    let server = Server::start();
    let (_directory, store) = open(&server, "CVMFS_S3_MAX_RETRIES=2\n");
    let id = |content: &[u8]| ObjectId::of(Algorithm::Sha1, ObjectKind::File, content);
    for (number, fault) in [Fault::Internal, Fault::Busy, Fault::Cut, Fault::Lost].into_iter().enumerate() {
        let content = [u8::try_from(number).expect("a small number")];
        server.spoil(0, 2, fault);
        store.put(&id(&content), &content).expect("put");
        store.flush().expect("flushed");
        server.heal();
        assert_eq!(store.read(&id(&content).into()).expect("read"), content, "{fault:?}");
        // A condition that our own lost request made untrue holds.
        server.spoil(1, 1, fault);
        let written = store.write_if(NamedFile::Status, &content, &|current| current.is_none());
        assert!(written.expect("written"), "{fault:?}");
        server.heal();
        store.remove(NamedFile::Status).expect("removed");
    }

    // The first error is that of all later flushes, until the object is there.
    server.spoil(0, 3, Fault::Busy);
    store.put(&id(b"busy"), b"busy").expect("queued");
    assert!(matches!(store.flush(), Err(Error::Unavailable { .. })));
    server.heal();
    assert!(matches!(store.flush(), Err(Error::Unavailable { .. })));

    let (_directory, store) = open(&server, "CVMFS_S3_MAX_RETRIES=2\n");
    server.spoil(0, 1, Fault::Denied);
    let before = server.requests();
    store.put(&id(b"denied"), b"denied").expect("queued");
    assert!(matches!(store.flush(), Err(Error::Refused { .. })));
    assert_eq!(server.requests() - before, 1);
    server.heal();

    // What is there is not sent again.
    let (_directory, store) = open(&server, "");
    server.log();
    store.put(&id(&[1]), &[1]).expect("put");
    store.flush().expect("flushed");
    // One that does nothing, because it is there, and one that makes it young.
    let requests = server.log();
    let puts = requests.iter().filter(|line| line.starts_with("PUT")).count();
    assert!(puts <= 2, "{requests:?}");
    assert_eq!(store.read(&id(&[1]).into()).expect("read"), [1]);
}

#[test]
fn a_whole_life_in_a_bucket() {
    let server = Server::start();
    let site = site(&server, "");
    let tree = site.path("tree");
    crate::support::make_tree("many", &tree, &["40"]);
    let from = tree.to_str().expect("UTF-8");
    site.publish(&["publish", "--from", from, "--base-dir", "a", "--tag", "one"]).ok();
    crate::support::pack(&tree, &site.path("b.tar"), &["."]);
    site.ingest_tar("b.tar", &["--base-dir", "b"]);
    site.publish(&["tag", "add", "two"]).ok();
    site.publish(&["rm", "-r", "/a"]).ok();
    site.check(&[]);
    site.publish(&["rollback", "one"]).ok();
    site.publish(&["tag", "remove", "one"]).ok();
    site.publish(&["verify"]).ok();
    site.check(&[]);
    site.publish(&["mkdir", "/new"]).ok();
    server.log();
    let collected = site.publish(&["--json", "gc", "--keep-revisions", "0", "--grace-period", "0"]).json();
    let condemned = collected["condemned"]["objects"].as_u64().expect("a number");
    assert!(condemned > 10, "{collected}");
    // Those of a directory of the layout in one request.
    let requests = server.log();
    assert_eq!(requests.iter().filter(|line| line.starts_with("DELETE")).count(), 0, "{requests:?}");
    let deletions = requests.iter().filter(|line| line.starts_with("POST") && line.contains("delete")).count();
    assert!((1..=condemned).contains(&(deletions as u64)), "{deletions} of {condemned}");
    site.publish(&["check", "--data"]).ok();
    site.check(&["--stale-y"]);
    assert!(paths(&site).contains("/new"));

    // Nobody makes it once more over the one that is there.
    let other = Site::empty(NAME);
    let manifest = fs::read(site.storage().join(".cvmfspublished")).expect("manifest");
    let file = site.path("s3.conf");
    let arguments = ["mkfs", NAME, "-s", file.to_str().expect("UTF-8"), "-w", "http://bucket.example.org"];
    assert!(other.publish(&arguments).fails(4).contains("exists"));
    assert!(fs::read(site.storage().join(".cvmfspublished")).expect("manifest") == manifest);
}

#[test]
fn a_service_looks_after_a_bucket() {
    let server = Server::start();
    let (site, garbage) = site_with_garbage_in(|site| make_repository(&server, site, ""));
    site.publish(&["tag", "remove", "garbage"]).ok();
    assert!(left(&site, &garbage) > 100);
    let jobs = ["--gc-every", "1", "--check-every", "1", "--check-data"];
    let service = Service::start(&site, "cvmfs-publish", &jobs);
    service.wait_for("collection", |_| (left(&site, &garbage) == 0).then_some(()));
    service.wait_for_run(NAME, "check");
    assert_eq!(service.get(&format!("/healthz/{NAME}")), (200, "ok".to_owned()), "{}", service.log());
    // A file that is gone from the bucket is noticed.
    let object = site.objects().into_iter().find(|object| object.ends_with('C')).expect("a catalog");
    fs::remove_file(site.storage().join("data").join(&object[..2]).join(&object[2..])).expect("object");
    service.wait_for("damage", |service| (service.get(&format!("/healthz/{NAME}")).0 == 503).then_some(()));
    assert!(service.end().success());
}

#[test]
fn a_bucket_is_taken_over_and_emptied() {
    let server = Server::start();
    let site = site(&server, "");
    let tree = site.path("tree");
    crate::support::make_tree("many", &tree, &["40"]);
    site.publish(&["publish", "--from", tree.to_str().expect("UTF-8")]).ok();
    let files = |site: &Site| -> Vec<String> {
        let named = fs::read_dir(site.storage()).expect("directory").map(|entry| entry.expect("entry"));
        let named = named.filter(|entry| entry.path().is_file()).map(|entry| entry.file_name().into_string());
        site.objects().into_iter().chain(named.map(|name| name.expect("UTF-8"))).collect()
    };
    let before = files(&site);
    assert_eq!(site.publish(&["list", "--json"]).json()[0]["storage_type"], "s3");
    site.publish(&["rmfs", "--keep-storage", NAME]).ok();
    assert_eq!(files(&site), before);
    let file = site.path("s3.conf");
    let place = ["--s3", file.to_str().expect("UTF-8"), "-w", "http://bucket.example.org/path"];
    site.publish(&[&["import", NAME], &place[..]].concat()).ok();
    assert_eq!(files(&site), before);
    site.publish(&["mkdir", "/more"]).ok();
    site.check(&[]);

    // Interrupted by a service that fails, it goes on.
    let objects = site.objects().len();
    assert_eq!(site.publish(&["rmfs", "-n", "--json", NAME]).json()["objects"], objects);
    fs::write(&file, server.configuration("CVMFS_S3_MAX_RETRIES=0\n")).expect("configuration");
    server.spoil(1, 1, Fault::Internal);
    site.publish(&["rmfs", NAME]).fails(1);
    server.heal();
    assert!(site.publish(&["list"]).ok().contains("half removed"));
    server.log();
    site.publish(&["rmfs", NAME]).ok();
    assert_eq!(files(&site), Vec::<String>::new());
    assert!(!site.spool().exists());
    // Many go in one request, and nobody asks for each.
    let requests = server.log();
    assert!(requests.len() < 20 && !requests.iter().any(|line| line.starts_with("HEAD")), "{requests:?}");
}

#[test]
fn two_machines_do_not_lose_revisions_of_each_other() {
    let server = Server::start();
    let first = site(&server, "");
    let second = second_machine(&server, &first);
    let mut expected = BTreeSet::new();
    for (number, site) in [&first, &second, &first, &second].into_iter().enumerate() {
        let path = format!("/turn{number}");
        site.publish(&["mkdir", &path]).ok();
        expected.insert(path);
    }
    thread::scope(|scope| {
        for (name, site) in [("a", &first), ("b", &second)] {
            scope.spawn(move || {
                let map = site.path("uid.map");
                fs::write(&map, "* 7\n").expect("map");
                for number in 0..8 {
                    site.publish(&["mkdir", &format!("/{name}{number}")]).ok();
                    if number == 3 {
                        site.publish(&["catalog-chown", "-u", map.to_str().expect("UTF-8")]).ok();
                    }
                }
            });
            expected.extend((0..8).map(|number| format!("/{name}{number}")));
        }
    });
    let missing: Vec<_> = expected.difference(&paths(&first)).cloned().collect();
    assert!(missing.is_empty(), "{missing:?}");
    // The one that published last knows the checksum of the reflog; the other one believes it as well.
    first.publish(&["tag", "add", "end"]).ok();
    second.publish(&["tag", "add", "other-end"]).ok();
    second.check(&[]);
}
