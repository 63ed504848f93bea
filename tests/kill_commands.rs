//! Every command that writes, killed at several moments: the old state or the new one, complete, and the command can be
//! run again.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use support::{Site, make_tree, run};

/// Shares of a command's duration at which it is killed; most of it is the start of the process.
const MOMENTS: [f64; 4] = [0.4, 0.6, 0.8, 0.95];

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    run(Command::new("cp").arg("-a").arg(from).arg(to)).ok();
}

/// A repository with some content, tags and an old revision; with or without an open transaction that has changes.
fn site(transaction: bool) -> Site {
    let site = Site::with_repository(&[]);
    make_tree("many", &site.path("source"), &["200"]);
    let source = site.path("source");
    site.publish(&["publish", "--from", source.to_str().expect("UTF-8"), "--base-dir", "a", "--tag", "one"]).ok();
    site.publish(&["mkdir", "/b", "--tag", "two"]).ok();
    if transaction {
        site.publish(&["transaction"]).ok();
        site.publish(&["cp", "/a", "/pending"]).ok();
    }
    copy(&site.root(), &site.path("snapshot"));
    site
}

/// Everything that a command can have changed: the newest tree, the tags, the open transaction.
fn state(site: &Site) -> (String, String, String) {
    let tree = format!("{:?}", site.list(&["--no-data"]).0.keys().collect::<Vec<_>>());
    let tags = site.publish(&["tag", "list", "--json"]).ok();
    // Names of automatic tags have the time of the command in them.
    let tags: Vec<serde_json::Value> = serde_json::from_str(&tags).expect("JSON");
    let tags: Vec<_> = tags
        .iter()
        .map(|tag| (tag["name"].as_str().map(|name| &name[..name.len().min(9)]), &tag["revision"]))
        .collect();
    let pending = site.publish(&["diff", "--pending", "--summary"]);
    let pending = if pending.status.success() { pending.ok() } else { "none".into() };
    (tree, format!("{tags:?}"), pending)
}

fn kill_at_moments(site: &Site, arguments: &[&str]) {
    let reset = || copy(&site.path("snapshot"), &site.root());
    reset();
    let before = state(site);
    let start = Instant::now();
    site.publish(arguments).ok();
    let duration = start.elapsed();
    let after = state(site);
    assert_ne!(before, after, "{arguments:?}");
    for moment in MOMENTS {
        reset();
        let mut command = site.command("cvmfs-publish");
        let mut child = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("command");
        thread::sleep(duration.mul_f64(moment));
        child.kill().expect("kill");
        child.wait().expect("command");
        // Between reflog and manifest, the reflog is ahead of what the manifest says of it.
        site.check(&["--stale-y"]);
        let found = state(site);
        // Published, but the transaction is not yet removed: that nothing is pending is all it says.
        let is_published = (&found.0, &found.1) == (&after.0, &after.1) && found.2.starts_with("0 added, 0 removed");
        assert!(found == before || found == after || is_published, "{arguments:?} at {moment}: {found:?}");
        if found != after {
            site.publish(arguments).ok();
            assert!(state(site) == after, "{arguments:?} again after {moment}");
        }
    }
}

#[test]
fn edits_and_history_survive_kills() {
    let site = site(false);
    for arguments in [
        &["rm", "-r", "/a"][..],
        &["mv", "/a", "/moved"],
        &["chmod", "-R", "go-rwx", "/a", "--tag", "modes"],
        &["tag", "add", "three"],
        &["tag", "remove", "one"],
        &["rollback", "one"],
        &["transaction"],
    ] {
        kill_at_moments(&site, arguments);
    }
}

#[test]
fn transactions_survive_kills() {
    let site = site(true);
    for arguments in [&["cp", "/a", "/more"][..], &["publish", "--tag", "three"], &["abort"]] {
        kill_at_moments(&site, arguments);
    }
}
