//! A replica that is still filling serves all of its source, and nothing that is wrong.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::replica::{Replica, Source, object_path};
use crate::support::{NAME, Site, make_tree, objects, run};

/// A repository with some hundred objects and nested catalogs.
fn original() -> Site {
    let site = Site::with_repository(&[]);
    let tree = site.path("tree");
    make_tree("many", &tree, &["100"]);
    site.publish(&["publish", "--from", tree.to_str().expect("the test can go on"), "--tag", "v1"]).ok();
    site
}

fn pulling(original: &Site, source: &Source) -> Replica {
    let replica = Replica::of(original, source, &[]);
    replica.configure("CVMFS_REPLICA_PULL_THROUGH", "yes");
    replica
}

fn catalogs(storage: &Path) -> usize {
    if storage.join("data").is_dir() { objects(storage).iter().filter(|name| name.ends_with('C')).count() } else { 0 }
}

/// Has every object of the repository read over HTTP.
fn read_all(site: &Site, url: &str) -> bool {
    let key = site.key_file("pub");
    let arguments = ["verify", "--repo", NAME, "--url", url, "--public-key", key.to_str().expect("the test can go on")];
    site.publish(&arguments).status.success()
}

#[test]
fn all_of_the_source_is_there_before_the_first_snapshot() {
    let original = original();
    let mut source = Source::start(&original);
    let replica = pulling(&original, &source);
    let server = replica.site.serve();
    let url = server.repository(NAME);
    assert!(read_all(&original, &url));
    // Every object was fetched once; the certificate also to verify the manifest that is passed on.
    let requests = source.requests();
    let of_objects: Vec<&String> =
        requests.iter().filter(|request| request.contains("data/") && !request.ends_with('X')).collect();
    let twice: Vec<&&String> = of_objects.windows(2).filter(|two| two[0] == two[1]).map(|two| &two[0]).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert!(of_objects.len() > 50, "{}", of_objects.len());
    // Catalogs wait beside the storage: one in it would promise that all below it is there.
    assert_eq!(catalogs(&replica.site.storage()), 0);
    assert!(catalogs(&replica.site.spool().join("catalogs")) > 1);
    assert!(!replica.site.storage().join(".cvmfspublished").exists());
    assert!(read_all(&original, &url));
    assert_eq!(source.requests().iter().filter(|request| request.contains("data/")).count(), 0);
    // The snapshot takes what is there; of its own it only asks for the small objects that a manifest names.
    let stored = objects(&replica.site.storage());
    replica.snapshot();
    let again = source.requests().into_iter().filter(|request| {
        stored
            .iter()
            .any(|name| !name.ends_with(['H', 'M', 'X']) && *request == object_path(name).display().to_string())
    });
    assert_eq!(again.count(), 0);
    replica.check(&[]);
    replica.assert_equals(&original);
    assert!(read_all(&original, &url));
}

#[test]
fn many_clients_make_one_fetch() {
    let original = original();
    let mut source = Source::start(&original);
    let replica = pulling(&original, &source);
    let server = replica.site.serve();
    let object = objects(&original.storage()).into_iter().find(|name| name.len() == 40).expect("the test can go on");
    let path = object_path(&object).display().to_string();
    source.requests();
    let url = format!("{}/{path}", server.repository(NAME));
    let clients: Vec<_> = (0..20)
        .map(|number| {
            let mut command = Command::new("curl");
            command.args(["--noproxy", "*", "--silent", "--fail", "--output"]);
            command.arg(replica.site.path(&format!("copy-{number}"))).arg(&url).stdout(Stdio::null());
            command.spawn().expect("the test can go on")
        })
        .collect();
    for mut client in clients {
        assert!(client.wait().expect("the test can go on").success());
    }
    let content = fs::read(original.storage().join(&path)).expect("the test can go on");
    for number in 0..20 {
        assert!(fs::read(replica.site.path(&format!("copy-{number}"))).expect("the test can go on") == content);
    }
    assert_eq!(source.requests(), [path]);
}

#[test]
fn what_is_wrong_at_the_source_is_neither_served_nor_stored() {
    let original = original();
    let mut source = Source::start(&original);
    let replica = pulling(&original, &source);
    let server = replica.site.serve();
    let status = |path: &str| {
        let mut command = Command::new("curl");
        command.args(["--noproxy", "*", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]);
        run(command.arg(format!("{}/{path}", server.repository(NAME)))).ok()
    };
    let names = objects(&original.storage());
    let plain = names.iter().find(|name| name.len() == 40).unwrap();
    let catalog = names.iter().find(|name| name.ends_with('C')).unwrap();
    for name in [plain, catalog] {
        let path = object_path(name).display().to_string();
        let file = original.storage().join(&path);
        let content = fs::read(&file).expect("the test can go on");
        let mut damaged = content.clone();
        damaged[content.len() / 2] ^= 1;
        fs::write(&file, damaged).expect("the test can go on");
        assert_eq!(status(&path), "404");
        assert!(!replica.site.storage().join(&path).exists());
        assert!(!replica.site.spool().join("catalogs").join(&path).exists());
        // For some seconds the source is left alone.
        let before = source.requests().len();
        assert!((1..=8).contains(&before), "{before}");
        assert_eq!(status(&path), "404");
        assert_eq!(source.requests().len(), 0);
        fs::write(&file, content).expect("the test can go on");
    }
    // An object that nobody has.
    assert_eq!(status("data/00/0123456789012345678901234567890123456a"), "404");
    // Without pull-through nothing of this happens.
    let patient = Replica::of(&original, &source, &[]);
    let server = patient.site.serve();
    source.requests();
    let mut command = Command::new("curl");
    command.args(["--noproxy", "*", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]);
    let path = object_path(plain).display().to_string();
    assert_eq!(run(command.arg(format!("{}/{path}", server.repository(NAME)))).ok(), "404");
    assert_eq!(source.requests().len(), 0);
    // A manifest that is signed by somebody else.
    let stranger = Site::with_repository(&[]);
    fs::write(original.storage().join(".cvmfspublished"), stranger.manifest()).expect("the test can go on");
    assert_eq!(status(".cvmfspublished"), "404");
    assert_eq!(status(".cvmfs_status.json"), "200");
}
