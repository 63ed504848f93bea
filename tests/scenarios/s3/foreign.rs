//! The same against a server of other people: moto, which checks signatures and what a user may do, as AWS does.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use cvmfs_core::error::Error;
use cvmfs_core::storage::{NamedFile, ReadStore as _, S3Config, S3Store, conformance};

use crate::support::replica::Replica;
use crate::support::{NAME, Site, make_tree, test_file, verifier};

/// What `./dev test` installs as well.
const PACKAGES: [&str; 5] = ["moto==5.2.5", "flask==3.1.3", "flask-cors==6.0.5", "PyYAML", "py-partiql-parser"];

/// A running server with an empty bucket.
struct Moto {
    child: Child,
    configuration: String,
}

impl Moto {
    fn start() -> Self {
        let mut command = Command::new("python3");
        command.arg(test_file("support/moto_server.py")).env("PYTHONPATH", install());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("python3");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("standard output");
        let value: serde_json::Value = serde_json::from_str(&line).expect("moto does not start");
        let text = |key: &str| value[key].as_str().expect("text").to_owned();
        let configuration = format!(
            "CVMFS_S3_HOST=127.0.0.1\nCVMFS_S3_PORT={}\nCVMFS_S3_BUCKET=bucket\nCVMFS_S3_ACCESS_KEY={}\n\
             CVMFS_S3_SECRET_KEY={}\nCVMFS_S3_DNS_BUCKETS=false\nCVMFS_S3_TIMEOUT=10\n",
            value["port"],
            text("access_key"),
            text("secret_key")
        );
        Self { child, configuration }
    }
}

fn store(directory: &Path, alias: &str, configuration: &str) -> S3Store {
    let file = directory.join("s3.conf");
    fs::write(&file, configuration).expect("configuration");
    let config = S3Config::load(&file, alias, &directory.join("tmp")).expect("configuration");
    S3Store::open(config).expect("store")
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where moto is: beside the programs, installed there by whoever needs it first.
fn install() -> PathBuf {
    let test = std::env::current_exe().expect("path of this test");
    let directory = test.ancestors().nth(3).expect("target directory").join("moto");
    if !directory.exists() {
        let half = directory.with_extension(std::process::id().to_string());
        let mut command = Command::new("python3");
        command.args(["-m", "pip", "install", "--quiet", "--no-compile", "--target"]).arg(&half).args(PACKAGES);
        crate::support::run(&mut command).ok();
        fs::rename(&half, &directory).expect("moto is installed");
    }
    directory
}

#[test]
fn a_server_that_checks_signatures_takes_everything() {
    let moto = Moto::start();
    let site = Site::empty(NAME);
    conformance::prune_alone(&store(site.temp.path(), "conformance.example.org", &moto.configuration));
    // A wrong key is refused, and nothing is tried again.
    let wrong = moto.configuration.replace("SECRET_KEY=", "SECRET_KEY=x");
    let refused = store(site.temp.path(), NAME, &wrong).read(&NamedFile::Manifest.into());
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");

    // A Stratum 0 in the bucket.
    let file = site.path("s3.conf");
    fs::write(&file, &moto.configuration).expect("configuration");
    let file = file.to_str().expect("UTF-8");
    site.publish(&["mkfs", NAME, "-s", file, "-w", "http://bucket.example.org/path", "--gc", "--no-autotags"]).ok();
    let tree = site.path("tree");
    make_tree("many", &tree, &["10"]);
    let from = tree.to_str().expect("UTF-8");
    site.publish(&["publish", "--from", from, "--base-dir", "a", "--tag", "one"]).ok();
    site.publish(&["publish", "--from", from, "--base-dir", "b"]).ok();
    site.publish(&["rm", "-r", "/a"]).ok();
    site.publish(&["tag", "remove", "one"]).ok();
    // S3 has whole seconds: what is of this one would be too young to go.
    thread::sleep(Duration::from_millis(1100));
    let collected = site.publish(&["--json", "gc", "--keep-revisions", "0", "--grace-period", "0"]).json();
    assert!(collected["condemned"]["objects"].as_u64() > Some(0), "{collected}");
    site.publish(&["check", "--data"]).ok();

    // Served from there, and a replica of that in the same bucket, which is served as well.
    let served = site.serve();
    let url = served.repository(NAME);
    let replica = Replica { site: Site::empty("mirror.example.org") };
    let key = site.key_file("pub");
    let key = key.to_str().expect("UTF-8");
    let arguments = ["add-replica", "--stratum0", &url, "--public-key", key, "--name", "mirror.example.org"];
    replica.run(&[&arguments[..], &["-s", file, "-w", "http://bucket.example.org/path"]].concat()).ok();
    assert_eq!(replica.snapshot()["ending"], "updated");
    replica.run(&["check", "--data"]).ok();
    let mirror = replica.site.serve();
    for (url, kind) in [(&url, "--all-tags"), (&mirror.repository("mirror.example.org"), "--replica")] {
        verifier(["check", "--quiet", "--stale-y", kind, "--store", url, "--fqrn", NAME, "--pub", key]).ok();
    }
    replica.run(&["remove", "mirror.example.org"]).ok();
    assert!(
        store(site.temp.path(), "mirror.example.org", &moto.configuration)
            .size(&NamedFile::Manifest.into())
            .expect("an answer")
            .is_none()
    );
    site.publish(&["verify"]).ok();
}
