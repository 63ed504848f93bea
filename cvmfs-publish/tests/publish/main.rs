//! `cvmfs-publish publish`: real trees through the real program into a repository; what the independent verifier lists
//! there is what it lists of the source.

mod directory;
mod documents;
mod faults;
mod import;
mod random;
mod resign;
mod rmfs;
#[path = "../../../tests/support/mod.rs"]
mod support;
mod upper;

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use serde_json::Value;
use support::{Site, run};

/// Publishes a directory of the site.
#[track_caller]
fn publish(site: &Site, directory: &str, more: &[&str]) -> Value {
    publish_as("--from", site, directory, more)
}

/// Publishes an upper directory of the site.
#[track_caller]
fn publish_upper(site: &Site, directory: &str, more: &[&str]) -> Value {
    publish_as("--upper", site, directory, more)
}

#[track_caller]
fn publish_as(kind: &str, site: &Site, directory: &str, more: &[&str]) -> Value {
    let path = site.path(directory);
    site.publish(&[&["--json", "publish", kind, path.to_str().expect("UTF-8")], more].concat()).json()
}

/// Whether these tests can mount, make devices and become somebody else.
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Runs a shell script in a directory of the site.
#[track_caller]
fn shell(site: &Site, directory: &str, script: &str) {
    run(Command::new("bash").args(["-euc", script]).current_dir(site.path(directory))).ok();
}
