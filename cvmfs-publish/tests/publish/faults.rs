//! What goes wrong: processes that are killed, disks that are full, files that change, several publishers at once.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use super::support::{Site, make_tree, run, source_listing};
use super::{is_root, publish, shell};

const KILLS: u32 = 12;
const SIGKILL: i32 = 9;

/// A command that publishes a directory of the site.
fn command(site: &Site, directory: &str, more: &[&str]) -> Command {
    let mut command = site.command("cvmfs-publish");
    command.args(["--json", "publish", "--from"]).arg(site.path(directory)).args(more);
    command
}

#[test]
fn a_killed_publish_leaves_the_old_or_the_new_revision() {
    let site = Site::with_repository(&["--gc"]);
    make_tree("many", &site.path("one"), &["1500"]);
    make_tree("many", &site.path("two"), &["900"]);
    // Other bytes of the same size: the time must tell.
    shell(&site, "two", "touch -d 2012-12-12 large");
    let trees = ["one", "two"].map(|name| source_listing(&site.path(name)));
    // How long it takes when nobody interferes, with nothing known.
    let mut seconds = ["one", "two", "one"].map(|name| {
        let start = Instant::now();
        publish(&site, name, &["--no-index"]);
        start.elapsed()
    });

    let (mut killed, mut seen, mut now) = (0, BTreeSet::new(), 0);
    for number in 0..KILLS {
        let next = 1 - now;
        let revision: u64 = site.manifest_field('S').parse().expect("a number");
        let run_again = || command(&site, ["one", "two"][next], &["--no-index"]);
        let mut child = run_again().stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("publish");
        let share = 1.0 - (1.0 - f64::from(number) / f64::from(KILLS - 1)).powi(2);
        let moment = seconds[1 + now].mul_f64(share);
        thread::sleep(moment);
        child.kill().expect("kill");
        let status = child.wait().expect("publish");
        assert!(status.signal() == Some(SIGKILL) || status.success(), "{status}");
        killed += u32::from(status.signal() == Some(SIGKILL));
        // Follows a machine that has become faster.
        if status.success() {
            seconds[1 + now] = moment.mul_f64(0.8);
        }

        // The reflog is written right before the manifest, which names it.
        site.check(&["--stale-y"]);
        let reached: u64 = site.manifest_field('S').parse().expect("a number");
        seen.insert(reached - revision);
        let found = if reached == revision { now } else { next };
        site.list(&[]).below("").assert_is(&trees[found]);
        // The same command again finishes the job, or finds it done.
        let again = run(&mut run_again()).json();
        assert_eq!(again["changed"].as_bool(), Some(reached == revision));
        site.check(&["--no-data"]);
        site.list(&[]).below("").assert_is(&trees[next]);
        now = next;
    }
    assert!(killed >= KILLS / 3, "only {killed} runs were killed in time");
    assert!(seen.contains(&0));
}

#[test]
fn a_full_disk_is_named_and_changes_nothing() {
    let site = Site::with_repository(&[]);
    let mount = |size: &str| {
        // The site moves into a file system of its own.
        let script = format!(
            "mkdir -p full; mount -t tmpfs -o size={size} none full && cp -a site/. full/ && rm -rf site && ln -sfn full site"
        );
        run(Command::new("bash").args(["-euc", &script]).current_dir(site.path(""))).status.success()
    };
    if !is_root() || !mount("3m") {
        return;
    }
    let text = fs::read_to_string(site.server_conf()).expect("server.conf");
    assert!(text.contains("/site/"), "{text}");
    shell(&site, "", "mkdir s && head -c 6000000 /dev/urandom >s/large && echo small >s/small");
    let before = site.manifest();
    let done = run(&mut command(&site, "s", &[]));
    let same = site.manifest() == before;
    let remounted = run(Command::new("mount").args(["-o", "remount,size=40m"]).arg(site.path("full"))).status.success();
    let again = run(&mut command(&site, "s", &[]));
    let checked = remounted && again.status.success() && {
        site.check(&[]);
        site.list(&[]).below("").assert_is(&source_listing(&site.path("s")));
        true
    };
    run(Command::new("umount").arg(site.path("full")));
    assert!(done.fails(1).contains("No space left"));
    assert!(same && checked, "{}", again.stderr);
}

#[test]
fn a_file_that_is_written_to_meanwhile_is_named() {
    let site = Site::with_repository(&[]);
    shell(&site, "", "mkdir s && echo first >s/a && head -c 20000000 /dev/urandom >s/busy");
    let before = site.manifest();
    let stop = AtomicBool::new(false);
    let done = thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().write(true).open(site.path("s/busy")).expect("file");
            for number in 0_u64.. {
                file.write_all_at(&number.to_le_bytes(), number % 1000 * 20_000).expect("write");
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let done = run(&mut command(&site, "s", &[]));
        stop.store(true, Ordering::Relaxed);
        done
    });
    let message = done.fails(4);
    assert!(message.contains("s/busy") && message.contains("changed while it was read"), "{message}");
    assert!(site.manifest() == before);

    // One that shrinks and grows is not put with bytes that it never had.
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().write(true).open(site.path("s/busy")).expect("file");
            while !stop.load(Ordering::Relaxed) {
                file.set_len(1000).expect("truncate");
                file.set_len(20_000_000).expect("truncate");
            }
        });
        for _ in 0..5 {
            let done = run(&mut command(&site, "s", &[]));
            assert!(matches!(done.status.code(), Some(0 | 4)), "{}", done.stderr);
        }
        stop.store(true, Ordering::Relaxed);
    });
    site.check(&[]);
    publish(&site, "s", &[]);
    site.list(&[]).below("").assert_is(&source_listing(&site.path("s")));
}

#[test]
fn a_tree_that_is_removed_meanwhile_is_an_error_or_an_earlier_state() {
    let site = Site::with_repository(&[]);
    shell(&site, "", "for d in {1..40}; do mkdir -p s/$d; for f in {1..25}; do echo $d $f >s/$d/$f; done; done");
    let mut child = command(&site, "s", &[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("publish");
    fs::remove_dir_all(site.path("s")).expect("remove");
    let status = child.wait().expect("publish");
    assert!(matches!(status.code(), Some(0 | 1 | 4)), "{status}");
    site.check(&[]);
}

#[test]
fn an_unreadable_file_is_named() {
    let site = Site::with_repository(&[]);
    shell(&site, "", "mkdir s && echo x >s/closed && chmod 0 s/closed");
    let mut command = command(&site, "s", &[]);
    if is_root() {
        shell(&site, "", "chmod 755 .; chown -R 65534:65534 .");
        command.uid(65534);
    }
    let before = site.manifest();
    let done = run(&mut command);
    if !done.stderr.contains("s/closed") && done.stderr.contains("denied") {
        // The program is where nobody else may go.
        return;
    }
    assert!(done.fails(1).contains("s/closed"));
    assert!(site.manifest() == before);
}

#[test]
fn several_publishers_at_once_lose_nothing() {
    let site = Site::with_repository(&["--no-autotags"]);
    let names = ["a", "b", "c"];
    for name in names {
        make_tree("many", &site.path(name), &[&format!("{}", 200 + name.len() * 10)]);
        shell(&site, name, &format!("echo {name} >whose"));
    }
    let start_all = |base_dir: &dyn Fn(&str) -> String| {
        let children = names.map(|name| {
            let mut command = command(&site, name, &["--base-dir", &base_dir(name)]);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("publish")
        });
        children.map(|child| child.wait_with_output().expect("publish"))
    };
    // On different paths everybody gets through.
    for output in start_all(&|name| format!("sw/{name}")) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    site.check(&[]);
    for name in names {
        site.list(&[]).below(&format!("sw/{name}")).assert_is(&source_listing(&site.path(name)));
    }
    // On the same path there is one result, and nobody's mixed with another's.
    let outputs = start_all(&|_| "same".into());
    assert!(outputs.iter().any(|output| output.status.success()));
    for output in &outputs {
        assert!(matches!(output.status.code(), Some(0 | 4)), "{}", String::from_utf8_lossy(&output.stderr));
    }
    site.check(&[]);
    let found = site.list(&[]).below("same");
    let whose = names.iter().find(|name| found == source_listing(&site.path(name)));
    assert!(whose.is_some(), "a mixture of several trees");
}
