//! Every command that writes but ingest and `publish --from`, killed and on a full disk: the old state or the new one,
//! complete, and the command can be run again.
//!
//! With `CVMFS_KILL_AT_EVERY_STEP` in the environment commands are killed before each of their steps, as in `./dev soak`.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Site, make_tree, run};

/// The share of a command's duration at which it is killed; the faults of `cvmfs-ingest` go through all its steps.
const MOMENT: f64 = 0.8;

/// The steps of a command: system calls that give files their names, take them away, or make them durable.
const STEPS: &str = "rename,renameat,renameat2,link,linkat,unlink,unlinkat,syncfs,fsync,fdatasync";

/// Bytes that are left on a full disk: for nothing, and for some of what is written.
const FREE: [u64; 2] = [0, 32 << 10];

const EDITS: &[&[&str]] = &[
    &["rm", "-r", "/a"],
    &["mv", "/a", "/moved"],
    &["chmod", "-R", "go-rwx", "/a", "--tag", "modes"],
    &["tag", "add", "three"],
    &["tag", "remove", "one"],
    &["rollback", "one"],
    &["eliminate-hardlinks"],
    &["transaction"],
];
/// While one is open.
const TRANSACTIONS: &[&[&str]] = &[&["cp", "/a", "/more"], &["publish", "--tag", "three"], &["abort"]];

/// The newest tree, the tags, the open transaction: everything that a command can have changed.
type State = (String, String, String);

/// Brings the site back to what it was in the beginning.
fn reset(site: &Site) {
    let script = "mkdir -p site; find -H site -mindepth 1 -delete; cp -a snapshot/. site/";
    run(Command::new("bash").args(["-euc", script]).current_dir(site.path(""))).ok();
}

/// A repository with some content, tags and an old revision; with or without an open transaction that has changes.
fn site(transaction: bool) -> Site {
    let site = Site::with_repository(&[]);
    make_tree("many", &site.path("source"), &["200"]);
    let source = site.path("source");
    site.publish(&["publish", "--from", source.to_str().expect("UTF-8"), "--base-dir", "a", "--tag", "one"]).ok();
    site.publish(&["ln", "/a/large", "/a/link"]).ok();
    site.publish(&["mkdir", "/b", "--tag", "two"]).ok();
    if transaction {
        site.publish(&["transaction"]).ok();
        site.publish(&["cp", "/a", "/pending"]).ok();
    }
    run(Command::new("cp").arg("-a").args([site.root(), site.path("snapshot")])).ok();
    site
}

fn state(site: &Site) -> State {
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

/// Whether the command was published, though the transaction is not yet removed: that nothing is pending is all it says.
fn is_published(found: &State, after: &State) -> bool {
    (&found.0, &found.1) == (&after.0, &after.1) && found.2.starts_with("0 added, 0 removed")
}

/// What there is before and after a command that nobody disturbs, and how long it takes.
fn undisturbed(site: &Site, arguments: &[&str]) -> (State, State, Duration) {
    reset(site);
    let before = state(site);
    let start = Instant::now();
    site.publish(arguments).ok();
    let duration = start.elapsed();
    let after = state(site);
    assert_ne!(before, after, "{arguments:?}");
    (before, after, duration)
}

fn kill_in_the_middle(site: &Site, arguments: &[&str]) {
    let (before, after, duration) = undisturbed(site, arguments);
    if std::env::var_os("CVMFS_KILL_AT_EVERY_STEP").is_some() {
        return kill_at_every_step(site, arguments, &before, &after);
    }
    reset(site);
    let mut command = site.command("cvmfs-publish");
    let mut child = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("command");
    thread::sleep(duration.mul_f64(MOMENT));
    child.kill().expect("kill");
    child.wait().expect("command");
    check(site, arguments, &before, &after, "killed");
}

/// Kills a command before its first step, its second one, and so on, until it ends before it is killed. From the fortieth on
/// some are left out: so many are the same for many entries.
fn kill_at_every_step(site: &Site, arguments: &[&str], before: &State, after: &State) {
    let mut step = 1;
    loop {
        reset(site);
        let command = site.command("cvmfs-publish");
        let mut traced = Command::new("strace");
        // Steps are counted for each thread.
        traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={STEPS}")]);
        traced.args(["-e", &format!("inject={STEPS}:signal=KILL:when={step}")]).arg(command.get_program());
        traced.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let ended = run(traced.args(command.get_args()).args(arguments)).status.success();
        check(site, arguments, before, after, &format!("killed before step {step}"));
        if ended {
            assert!(step > 2, "{arguments:?}: only {step} steps");
            return;
        }
        step += 1 + step / 40;
    }
}

/// A file system of its own for a site; goes away with the value.
struct Disk(PathBuf);

impl Disk {
    /// Moves the site there; `None` where nobody may mount.
    fn of(site: &Site) -> Option<Self> {
        let disk = site.path("disk");
        let script = "mkdir disk; mount -t tmpfs -o size=12m none disk || exit 1; cp -a site/. disk/; rm -rf site; ln -s disk site";
        if !run(Command::new("bash").args(["-euc", script]).current_dir(site.path(""))).status.success() {
            return None;
        }
        Some(Self(disk))
    }

    /// Leaves so many bytes free, and returns the file that takes the rest.
    fn fill(&self, free: u64) -> PathBuf {
        let filler = self.0.join("filler");
        let mut file = File::create(&filler).expect("filler");
        while file.write_all(&[0; 4096]).is_ok() {}
        let length = file.metadata().expect("filler").len();
        file.set_len(length - free.min(length)).expect("filler");
        filler
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn fill_the_disk(site: &Site, disk: &Disk, arguments: &[&str]) {
    let (before, after, _) = undisturbed(site, arguments);
    let mut refused = 0;
    for free in FREE {
        reset(site);
        let filler = disk.fill(free);
        let done = site.publish(arguments);
        fs::remove_file(filler).expect("filler");
        if !done.status.success() {
            refused += 1;
            let message = done.fails(1);
            // The last is what SQLite says of files that it maps.
            let says_why = ["No space left", "disk is full", "disk I/O error"].iter().any(|why| message.contains(why));
            assert!(says_why, "{arguments:?}: {message}");
        }
        check(site, arguments, &before, &after, &format!("{free} bytes left"));
    }
    // To forget what is pending takes no room.
    assert!(refused > 0 || arguments == ["abort"], "{arguments:?}: there was room enough");
}

/// The old state or the new one, complete; and from the old one the command leads to the new one.
fn check(site: &Site, arguments: &[&str], before: &State, after: &State, what: &str) {
    // Between reflog and manifest, the reflog is ahead of what the manifest says of it.
    site.check(&["--stale-y"]);
    let found = state(site);
    let is_whole = found == *before || found == *after || is_published(&found, after);
    assert!(is_whole, "{arguments:?}, {what}: {found:?}");
    if found != *after {
        site.publish(arguments).ok();
        assert!(state(site) == *after, "{arguments:?} again, {what}");
    }
}

#[test]
fn edits_and_history_survive_kills() {
    let site = site(false);
    for arguments in EDITS {
        kill_in_the_middle(&site, arguments);
    }
}

#[test]
fn transactions_survive_kills() {
    let site = site(true);
    for arguments in TRANSACTIONS {
        kill_in_the_middle(&site, arguments);
    }
}

#[test]
fn edits_history_and_transactions_survive_a_full_disk() {
    for (transaction, commands) in [(false, EDITS), (true, TRANSACTIONS)] {
        let site = site(transaction);
        let Some(disk) = Disk::of(&site) else { return };
        for arguments in commands {
            fill_the_disk(&site, &disk, arguments);
        }
    }
}
