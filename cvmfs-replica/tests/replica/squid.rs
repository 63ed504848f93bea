//! Through a real Squid, the cache that sites run: what it keeps, and when it asks again.
//!
//! Squid keeps no time but the system's, so a copy is made stale by the request: `Cache-Control: max-age=0` asks
//! for nothing older than now, which is what happens by itself 61 seconds later.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cvmfs_core::hash::ObjectKind;

use crate::harness::evil::{Fault, Source};
use crate::harness::original::{make, now, publish_files, scratch};
use cvmfs_core::fetch::parse_servers;
use cvmfs_core::progress::{Cancel, Silent};
use cvmfs_core::server::ServerRoot;
use cvmfs_replica::replica::{AddOptions, add};
use cvmfs_replica::snapshot::{Ending, SnapshotOptions, snapshot};

use crate::harness::{Client, REPOSITORY, Reply, Server, Site, noise};
use crate::ports::free_port;

const SQUID: &str = "/usr/sbin/squid";

/// A Squid of our own, with its port, configuration and cache in one directory.
struct Squid {
    process: Child,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

impl Squid {
    fn start() -> Self {
        assert!(Path::new(SQUID).exists(), "this test needs Squid: apt-get install squid");
        let directory = tempfile::tempdir().expect("temporary directory");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let configuration = directory.path().join("squid.conf");
        std::fs::write(&configuration, configure(address, directory.path())).expect("configuration");
        hand_over(directory.path());
        let squid = |mode: &str| {
            let mut command = Command::new(SQUID);
            command.arg("-f").arg(&configuration).args(["-N", mode]).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        assert!(squid("-z").status().expect("squid -z").success(), "cannot make the cache directory");
        let process = squid("-C").spawn().expect("squid");
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(started.elapsed() < Duration::from_mins(1), "Squid does not start: {}", log(directory.path()));
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { process, address, directory }
    }

    /// Asks for a path of the repository as clients do through a proxy, and says what Squid made of it.
    fn get(&self, server: SocketAddr, path: &str, headers: &str) -> (Reply, String) {
        let mut client = Client::connect(self.address);
        let url = format!("http://{server}/cvmfs/{REPOSITORY}/{path}");
        client.send(format!("GET {url} HTTP/1.1\r\nHost: {server}\r\n{headers}Connection: close\r\n\r\n"));
        let reply = client.reply();
        let result = reply.header("x-cache").split(' ').next().unwrap_or_default().to_owned();
        (reply, result)
    }

    /// The outcome of the last request in Squid's own words. Wait for it: Squid logs after it has answered.
    fn last_result(&self, requests: usize) -> String {
        let started = Instant::now();
        loop {
            let log = std::fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default();
            // The connection that tried whether Squid is up is in the log as well.
            if let Some(line) = log.lines().filter(|line| !line.starts_with("NONE_NONE")).nth(requests - 1) {
                return line.to_owned();
            }
            assert!(started.elapsed() < Duration::from_mins(1), "request {requests} is not in Squid's log: {log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Squid {
    fn drop(&mut self) {
        // Nothing can be done about a Squid that is gone already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The recommended settings for sites, and places of our own.
fn configure(address: SocketAddr, directory: &Path) -> String {
    let place = |name: &str| -> PathBuf { directory.join(name) };
    format!(
        "http_port {address}\n\
         http_access allow all\n\
         collapsed_forwarding on\n\
         minimum_expiry_time 0\n\
         maximum_object_size 1024 MB\n\
         maximum_object_size_in_memory 128 KB\n\
         cache_mem 32 MB\n\
         cache_dir ufs {cache} 100 16 16\n\
         logformat result %Ss %>Hs %rp\n\
         access_log stdio:{access} logformat=result\n\
         cache_log {log}\n\
         pid_filename {pid}\n\
         coredump_dir {directory}\n\
         pinger_enable off\n\
         shutdown_lifetime 0 seconds\n\
         visible_hostname squid.test\n",
        cache = place("cache").display(),
        access = place("access.log").display(),
        log = place("cache.log").display(),
        pid = place("squid.pid").display(),
        directory = directory.display(),
    )
}

/// Started as root, Squid becomes `proxy` and needs to write here.
fn hand_over(directory: &Path) {
    // Fails for other users, who run Squid as themselves.
    drop(Command::new("chown").arg("proxy").arg(directory).stderr(Stdio::null()).status());
}

fn log(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("cache.log")).unwrap_or_default()
}

#[test]
fn squid_keeps_objects_and_asks_again_for_manifests() {
    let site = Site::new();
    let small = noise(10_000, 1);
    let large = noise(3_000_000, 2);
    let objects =
        [(site.put_object(ObjectKind::File, &small), small), (site.put_object(ObjectKind::Chunk, &large), large)];
    let mut server = Server::start(&site);
    let squid = Squid::start();
    let address = server.address;
    let mut requests = 0;
    let mut get = |path: &str, headers: &str| {
        requests += 1;
        let (reply, cache) = squid.get(address, path, headers);
        (reply, cache, squid.last_result(requests))
    };

    // Objects come from the cache from the second time on, whole and in parts.
    for (path, content) in &objects {
        for (expected, result) in [("MISS", "TCP_MISS 200"), ("HIT", "HIT 200"), ("HIT", "HIT 200")] {
            let (reply, cache, log) = get(path, "");
            assert!(reply.body == *content, "{path}");
            assert_eq!(cache, expected, "{log}");
            assert!(log.contains(result), "{log}");
            assert_eq!(reply.header("cache-control"), "max-age=259200");
        }
        let (reply, cache, _) = get(path, "Range: bytes=100-199\r\n");
        assert_eq!((reply.status, cache.as_str()), (206, "HIT"));
        assert!(reply.body == content[100..200]);
    }

    // A manifest is kept, too: default Squids need more than 60 seconds for that, hence 61.
    let (first, cache, _) = get(".cvmfspublished", "");
    assert_eq!((first.text().as_str(), cache.as_str()), ("manifest of revision 1\n", "MISS"));
    assert_eq!(get(".cvmfspublished", "").1, "HIT");
    // A stale one that is still right is confirmed by its tag, not sent again.
    let (reply, _, log) = get(".cvmfspublished", "Cache-Control: max-age=0\r\n");
    assert_eq!(reply.body, first.body);
    assert!(log.starts_with("TCP_REFRESH_UNMODIFIED 200"), "{log}");
    // A stale one that is wrong is replaced, also within the second in which the first one was written.
    for revision in 2..6 {
        let manifest = format!("manifest of revision {revision}\n");
        site.put(".cvmfspublished", manifest.as_bytes());
        let (reply, _, log) = get(".cvmfspublished", "Cache-Control: max-age=0\r\n");
        assert_eq!(reply.text(), manifest, "{log}");
        assert!(log.starts_with("TCP_REFRESH_MODIFIED 200"), "{log}");
        assert_eq!(get(".cvmfspublished", "").0.text(), manifest);
    }
    // What clients send after they got damaged data goes through to us.
    let (_, _, log) = get(&objects[0].0, "Pragma: no-cache\r\nCache-Control: no-cache\r\n");
    assert!(log.contains("MISS 200"), "{log}");

    // An object that comes later is found although it was missing a moment ago (10 seconds at most).
    let late = noise(100, 3);
    let path = "data/ff/049c626904064d641feca0e9936e5b211807c6";
    assert_eq!(get(path, "").0.status, 404);
    site.put(path, &late);
    assert!(get(path, "Cache-Control: max-age=0\r\n").0.body == late);

    // Without us, the cache goes on with what it has.
    server.begin_stop();
    server.finish();
    for (path, content) in &objects {
        let (reply, cache, _) = get(path, "");
        assert!(reply.body == *content, "{path}");
        assert_eq!(cache, "HIT");
    }
}

/// The stored objects of a repository: path below it, and content.
fn stored_objects(storage: &Path) -> Vec<(String, Vec<u8>)> {
    let mut objects = Vec::new();
    for directory in std::fs::read_dir(storage.join("data")).expect("data").flatten() {
        for file in std::fs::read_dir(directory.path()).expect("directory").flatten() {
            let path = file.path().strip_prefix(storage).expect("below").to_str().expect("text").to_owned();
            objects.push((path, std::fs::read(file.path()).expect("object")));
        }
    }
    objects
}

#[test]
fn snapshots_go_around_what_squid_has_wrong() {
    let directory = scratch();
    let (root, name) = make(&directory.path().join("original"));
    publish_files(&root, &name, "a");
    let storage = root.storage_dir(&name);
    let objects = stored_objects(&storage);
    // The catalogs and one file come wrong the first time, and Squid keeps that.
    let file =
        objects.iter().map(|(path, _)| path.clone()).find(|path| !path.ends_with(|last: char| last.is_uppercase()));
    let file = file.expect("a file");
    let wrong: Vec<_> = objects.iter().filter(|(path, _)| path.ends_with('C') || *path == file).cloned().collect();
    assert!(wrong.len() >= 3, "{wrong:?}");
    let poison = wrong.clone();
    let source = Source::start(&storage, move |path, nth| {
        let (_, content) = poison.iter().find(|(wrong, _)| nth == 0 && path == wrong)?;
        let mut content = content.clone();
        *content.last_mut()? ^= 1;
        Some(Fault::Headed("Expires: Thu, 01 Jan 2099 00:00:00 GMT\r\n", content))
    });
    let squid = Squid::start();
    for (path, content) in &wrong {
        for expected in ["MISS", "HIT"] {
            let (reply, cache) = squid.get(source.address, path, "");
            assert!(reply.body != *content, "{path}");
            assert_eq!(cache, expected);
        }
    }

    let urls = parse_servers(&source.url("")).expect("URL");
    let options = AddOptions {
        proxy: Some(format!("http://{}", squid.address)),
        ..AddOptions::new(now(), urls, vec![root.key_file(&name, "pub")])
    };
    let replica_root = ServerRoot::new(&directory.path().join("replica")).expect("root");
    let replica = add(&replica_root, &options).expect("add-replica");
    let outcome = snapshot(&replica, &SnapshotOptions::new(now()), &Silent, &Cancel::new()).expect("snapshot");
    assert_eq!(outcome.ending, Ending::Updated, "{}", outcome.failures);
    let replicated = replica.storage.directory().expect("directory");
    for (path, content) in stored_objects(replicated) {
        assert!(content == std::fs::read(storage.join(&path)).expect("object of the source"), "{path}");
    }
    for (path, content) in &wrong {
        if !replicated.join(path).exists() {
            // A catalog of a revision that was not asked for.
            continue;
        }
        assert_eq!(source.requests(path), 2, "{path}");
        // Now Squid has it right as well.
        let (reply, _) = squid.get(source.address, path, "");
        assert!(reply.body == *content, "{path}");
    }
    assert!(replicated.join(&file).exists());
}
