//! A replica in a bucket, from `add-replica` to `remove`, and what clients get of it.

use std::fs;
use std::process::Command;

use super::link_storage;
use super::server::Server;
use crate::support::replica::{Replica, Source, object_path};
use crate::support::{NAME, Site, make_tree, objects};

/// An empty replica in the bucket of a new server. The verifier reads it where the server keeps its files.
pub(super) fn replica(original: &Site, source: &Source, more: &str) -> (Server, Replica) {
    let server = Server::start();
    let replica = Replica { site: Site::empty(NAME) };
    add(&server, &replica, original, source, more).ok();
    link_storage(&server, &replica.site);
    (server, replica)
}

fn add(server: &Server, replica: &Replica, original: &Site, source: &Source, more: &str) -> crate::support::Done {
    let file = replica.site.path("s3.conf");
    fs::write(&file, server.configuration(more)).expect("configuration");
    let file = file.to_str().expect("UTF-8");
    replica.add(original, source, &["-s", file, "-w", "http://bucket.example.org/path"])
}

/// What a client gets: status, head and body.
fn curl(url: &str, more: &[&str]) -> (String, String, Vec<u8>) {
    let mut command = Command::new("curl");
    command.args(["--noproxy", "*", "--silent", "--show-error", "--include"]).args(more).arg(url);
    let output = command.output().expect("curl").stdout;
    let end = output.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&output[..end]).to_lowercase();
    let status = head.split_whitespace().nth(1).unwrap_or_default().to_owned();
    (status, head, output[end + 4..].to_vec())
}

#[test]
fn a_whole_life_in_a_bucket() {
    let original = Site::with_repository(&["--gc", "--no-autotags"]);
    let tree = original.path("tree");
    make_tree("many", &tree, &["40"]);
    // One object that no answer has in one block.
    fs::write(tree.join("large"), (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>()).expect("file");
    original.configure("CVMFS_COMPRESSION_ALGORITHM", "none");
    original.configure("CVMFS_USE_FILE_CHUNKING", "false");
    let from = tree.to_str().expect("UTF-8");
    original.publish(&["publish", "--from", from, "--base-dir", "a", "--catalog"]).ok();
    let source = Source::start(&original);

    let (server, replica) = replica(&original, &source, "");
    assert!(add(&server, &replica, &original, &source, "").fails(4).contains("exists"));
    let listed = replica.run(&["--json", "list"]).json();
    assert_eq!(listed[0]["revision"].as_u64(), None);
    assert!(replica.run(&["gc"]).ok().contains("no snapshot yet"));
    replica.snapshot();
    replica.assert_equals(&original);
    replica.check(&[]);
    assert_eq!(replica.run(&["--json", "status"]).json()[0]["revision"], listed_revision(&original));

    // With nothing new hardly anything is asked of the bucket.
    server.log();
    assert_eq!(replica.snapshot()["ending"], "unchanged");
    let requests = server.log();
    assert!(requests.len() < 12, "{requests:#?}");

    // What a run that is killed has brought stays; nothing is fetched or sent twice.
    fs::remove_file(replica.site.spool().join("proven.db")).expect("removed");
    let sent =
        |requests: &[String]| requests.iter().filter(|line| line.contains("PUT") && line.contains("/data/")).count();
    server.log();
    replica.run(&["snapshot"]).ok();
    assert_eq!(sent(&server.log()), 0);

    serve(&server, &replica, &original);

    // A damaged object is found, and mended from the source.
    let victim = objects(&replica.site.storage()).into_iter().find(|name| name.len() == 40).expect("an object");
    let victim = replica.site.storage().join(object_path(&victim));
    let content = fs::read(&victim).expect("object");
    fs::write(&victim, &content[..content.len() - 1]).expect("damaged");
    replica.run(&["check"]).fails(3);
    replica.run(&["check", "--repair"]).ok();
    assert!(fs::read(&victim).expect("object") == content);
    replica.run(&["check", "--data"]).ok();

    // What the source has removed goes here, too, many in a request.
    original.publish(&["rm", "-r", "/a"]).ok();
    original.publish(&["mkdir", "/b"]).ok();
    assert_eq!(replica.snapshot()["ending"], "updated");
    let before = objects(&replica.site.storage()).len();
    server.log();
    replica.run(&["gc", "--always", "--keep-revisions", "0", "--grace-period", "0", NAME]).ok();
    let requests = server.log();
    assert!(requests.iter().any(|line| line.starts_with("POST") && line.contains("delete")), "{requests:?}");
    assert!(objects(&replica.site.storage()).len() < before / 2);
    replica.check(&["--stale-y"]);
    replica.run(&["check"]).ok();

    // Another machine's manifest is not replaced.
    let manifest = replica.site.storage().join(".cvmfspublished");
    assert!(manifest.exists());
    replica.run(&["remove", NAME]).ok();
    assert!(!manifest.exists());
    assert_eq!(objects(&replica.site.storage()), Vec::<String>::new());
    assert!(!replica.site.spool().exists());
}

fn listed_revision(site: &Site) -> serde_json::Value {
    site.manifest_field('S').parse::<u64>().expect("a number").into()
}

/// Clients get everything, from a bucket that is not theirs to read.
fn serve(server: &Server, replica: &Replica, original: &Site) {
    let served = replica.site.serve();
    let url = served.repository(NAME);
    let key = original.key_file("pub");
    original.publish(&["verify", "--repo", NAME, "--url", &url, "--public-key", key.to_str().expect("UTF-8")]).ok();

    let stored = replica.site.storage();
    let size = |name: &String| fs::metadata(stored.join(object_path(name))).expect("object").len();
    let mut by_size = objects(&stored);
    by_size.sort_by_key(size);
    by_size.retain(|name| name.len() == 40 && size(name) > 100);
    for (name, is_cached) in [(&by_size[0], true), (&by_size[by_size.len() - 1], false)] {
        let content = fs::read(stored.join(object_path(name))).expect("object");
        let object = format!("{url}/{}", object_path(name).display());
        assert!(curl(&object, &[]).2 == content);
        server.log();
        let (status, head, body) = curl(&object, &[]);
        assert_eq!((&status[..], body == content), ("200", true), "{head}");
        for line in [
            "cache-control: max-age=259200",
            "content-type: application/octet-stream",
            &format!("etag: \"{}\"", name.to_lowercase()),
        ] {
            assert!(head.contains(line), "{line} in {head}");
        }
        assert!(head.contains(&format!("content-length: {}", content.len())), "{head}");
        assert_eq!(server.log().len(), usize::from(!is_cached), "{name}");
        let (status, head, body) = curl(&object, &["--range", "3-9"]);
        assert_eq!((&status[..], &body[..]), ("206", &content[3..10]), "{head}");
        assert!(head.contains(&format!("content-range: bytes 3-9/{}", content.len())), "{head}");
        assert_eq!(curl(&object, &["--header", &format!("If-None-Match: \"{name}\"")]).0, "304");
        let (status, head, body) = curl(&object, &["--head"]);
        assert_eq!((&status[..], body.len()), ("200", 0));
        assert!(head.contains(&format!("content-length: {}", content.len())), "{head}");
        // With a body that is written by another part of the server.
        assert!(curl(&object, &["--header", "Connection: close"]).2 == content);
    }

    let manifest = format!("{url}/.cvmfspublished");
    let (status, head, body) = curl(&manifest, &[]);
    assert_eq!((&status[..], body == fs::read(stored.join(".cvmfspublished")).expect("manifest")), ("200", true));
    assert!(head.contains("cache-control: max-age=61") && !head.contains("bundle"), "{head}");
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).expect("a tag").to_owned();
    assert_eq!(curl(&manifest, &["--header", &format!("If-None-Match: {tag}")]).0, "304");
    // All clients ask for the same documents.
    server.log();
    for _ in 0..5 {
        curl(&manifest, &[]);
    }
    assert!(server.log().len() <= 2);
    assert_eq!(curl(&format!("{url}/data/00/{}", "0".repeat(38)), &[]).0, "404");
    assert_eq!(curl(&format!("{url}/.cvmfs_status.json"), &[]).0, "200");
    assert_eq!(curl(&format!("{url}/stats/stats.db"), &[]).0, "404");

    let base = url.split("/cvmfs/").next().expect("an address");
    let page = String::from_utf8(curl(&format!("{base}/browse/{NAME}/trunk/a"), &[]).2).expect("UTF-8");
    assert!(page.contains("large"), "{page}");
    assert!(String::from_utf8_lossy(&curl(&format!("{base}/metrics"), &[]).2).contains(NAME));

    // A bucket that is in trouble is told from one that lacks something, and a transfer that breaks goes on.
    let name = &by_size[by_size.len() - 1];
    let object = format!("{url}/{}", object_path(name).display());
    server.spoil(0, 1, super::Fault::Half);
    assert!(curl(&object, &[]).2 == fs::read(stored.join(object_path(name))).expect("object"));
    server.spoil(0, 1, super::Fault::Denied);
    assert_eq!(curl(&object, &[]).0, "502");
    server.heal();
}
