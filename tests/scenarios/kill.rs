//! An ingest that is killed leaves the old revision or the new one, complete; running it again completes it. Other
//! commands: see `interrupted_commands.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use crate::support::{Listing, Site, make_tree, pack, run, source_listing};

/// Kills at so many moments.
const KILLS: u32 = 8;

const SIGKILL: i32 = 9;

#[test]
fn a_killed_ingest_leaves_the_old_or_the_new_revision() {
    let site = Site::with_repository(&["--gc"]);
    make_tree("many", &site.path("source"), &["2000"]);
    pack(&site.path("source"), &site.path("many.tar"), &["."]);
    let tarball = site.path("many.tar");
    let tarball = tarball.to_str().expect("UTF-8");

    let complete = source_listing(&site.path("source"));
    make_tree("many", &site.path("old"), &["50"]);
    pack(&site.path("old"), &site.path("old.tar"), &["."]);
    site.ingest_tar("old.tar", &["--base-dir", "old", "--tag", "old"]);
    copy(&site.root(), &site.path("snapshot"));

    // How long it takes when nobody interferes: the first time, and with all objects in place.
    let mut seconds = ["first", "second"].map(|base_dir| {
        let start = Instant::now();
        site.ingest(&["--tar", tarball, "--base-dir", base_dir]).json();
        start.elapsed()
    });
    site.list(&[]).below("first").assert_is(&complete);

    let mut killed = 0;
    let mut seen = BTreeSet::new();
    for number in 0..KILLS {
        let base_dir = format!("new/{number}");
        // Every other run has all the work to do; the one after it finds objects and the leftovers of the killed.
        if number % 2 == 0 {
            fs::remove_dir_all(site.root()).expect("remove");
            copy(&site.path("snapshot"), &site.root());
        }
        let before = site.list(&["--no-data"]);
        let revision: u32 = site.manifest_field('S').parse().expect("a number");
        let arguments = ["--tar", tarball, "--base-dir", &base_dir, "--catalog", "--delete", "old/01"];
        let mut command = site.ingest_command(&arguments);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("ingest");
        // Spread over the whole run, denser at its end, where the commit is.
        let share = 1.0 - (1.0 - f64::from(number) / f64::from(KILLS - 1)).powi(2);
        let moment = seconds[(number % 2) as usize].mul_f64(share * 1.05);
        thread::sleep(moment);
        child.kill().expect("kill");
        let status = child.wait().expect("ingest");
        assert!(status.signal() == Some(SIGKILL) || status.success(), "{status}");
        killed += u32::from(status.signal() == Some(SIGKILL));
        // Follows a machine that has become faster.
        if status.success() {
            seconds[(number % 2) as usize] = moment.mul_f64(0.8);
        }

        // Everything reachable is complete; which revision it is, the manifest says.
        site.check(&["--stale-y"]);
        let reached: u32 = site.manifest_field('S').parse().expect("a number");
        seen.insert(reached - revision);
        match reached - revision {
            0 => site.list(&["--no-data"]).assert_is(&before),
            1 => assert_new(&site.list(&[]), &base_dir, &complete),
            _ => panic!("from revision {revision} to {reached}"),
        }

        // The same command again finishes the job, or finds it done.
        let again = site.ingest(&arguments).json();
        assert_eq!(again["changed"].as_bool(), Some(reached == revision));
        site.check(&["--no-data"]);
        assert_new(&site.list(&[]), &base_dir, &complete);
    }
    assert!(killed >= KILLS / 2, "only {killed} runs were killed in time");
    assert!(seen.contains(&0));
    // Working files of the killed are no obstacle, and do not pile up in the storage.
    let leftovers = fs::read_dir(site.storage().join("data/txn")).expect("txn").count();
    assert!(leftovers <= usize::try_from(killed).expect("small") * 16, "{leftovers} temporary files");
}

#[track_caller]
fn assert_new(listing: &Listing, base_dir: &str, expected: &Listing) {
    let mut found = listing.below(base_dir);
    found.take(|path| path == ".cvmfscatalog");
    found.assert_is(expected);
    assert!(listing.below("old/01").0.is_empty() && !listing.below("old/02").0.is_empty());
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to)).ok();
}
