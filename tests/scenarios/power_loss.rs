//! The power fails: what was not made durable is gone.
//!
//! A server lives on a file system of its own, in an image file. What the kernel has not yet written to the image is lost
//! when the image is copied: the copy is what a disk holds after a power failure at that moment. The server goes on from
//! the copy, as after a restart.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use crate::support::replica::{Replica, Source};
use crate::support::{Done, Site, make_tree, run, source_listing};

/// Cuts in the middle of each kind of work.
const CUTS: i32 = 4;

/// A site on a file system of its own, mounted where it always was.
struct Disk {
    image: PathBuf,
    place: PathBuf,
}

impl Disk {
    /// Moves the directory of a site there.
    ///
    /// Nothing is written to the image before somebody asks for that, or half a minute has passed.
    fn below(site: &Site) -> Self {
        let disk = Self { image: site.path("image"), place: site.root() };
        fs::create_dir_all(&disk.place).expect("directory");
        let keep = site.path("keep");
        fs::rename(&disk.place, &keep).expect("moved");
        fs::create_dir(&disk.place).expect("directory");
        let image = disk.image.to_str().expect("UTF-8");
        shell(&format!("truncate -s 200M {image} && mkfs.ext4 -q -F -m 0 -J size=8 -E lazy_itable_init=0 {image}"));
        disk.mount();
        shell(&format!("cp -a {}/. {}/ && sync -f {}", text(&keep), text(&disk.place), text(&disk.place)));
        disk
    }

    fn mount(&self) {
        shell(&format!("mount -o loop,commit=600 {} {}", text(&self.image), text(&self.place)));
    }

    /// The power fails, and comes back.
    fn cut(&self) {
        let copy = self.image.with_extension("copy");
        shell(&format!("cp --sparse=always {} {}", text(&self.image), text(&copy)));
        shell(&format!("umount {}", text(&self.place)));
        fs::rename(copy, &self.image).expect("renamed");
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.place).status();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn shell(script: &str) {
    run(Command::new("bash").args(["-euc", script])).ok();
}

/// Runs a command, kills it after a part of the time, and cuts the power in the same moment. Whether it was killed.
fn interrupt(disk: &Disk, mut command: Command, seconds: f64) -> bool {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a process");
    thread::sleep(std::time::Duration::from_secs_f64(seconds));
    let was_running = child.try_wait().expect("a process").is_none();
    child.kill().expect("killed");
    child.wait().expect("a process");
    disk.cut();
    was_running
}

/// The part of a command that goes before each cut: 1/8, 1/4, 1/2, all of it.
fn part_before(cut: i32) -> f64 {
    0.5_f64.powi(CUTS - 1 - cut)
}

fn timed(work: impl FnOnce() -> Done) -> f64 {
    let start = Instant::now();
    work().ok();
    start.elapsed().as_secs_f64()
}

#[test]
fn a_power_failure_leaves_the_old_or_the_new_revision() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root has file systems to mount");
        return;
    }
    let site = Site::with_repository(&["--gc"]);
    let trees = ["one", "two"].map(|name| site.path(name));
    make_tree("many", &trees[0], &["120"]);
    make_tree("many", &trees[1], &["60"]);
    fs::write(trees[1].join("more"), "more").expect("file");
    // Other bytes of the same size: the time must tell.
    shell(&format!("touch -d 2012-12-12 {}", text(&trees[1].join("large"))));
    let listings = [source_listing(&trees[0]), source_listing(&trees[1])];
    let disk = Disk::below(&site);
    let publish = |number: usize| {
        let mut command = site.command("cvmfs-publish");
        command.args(["publish", "--no-index", "--from"]).arg(&trees[number]);
        command
    };

    // What was acknowledged is there, complete, and can be gone on with.
    let mut seconds = 0.0;
    for number in [0, 1, 0] {
        seconds = timed(|| run(&mut publish(number)));
        disk.cut();
        site.check(&[]);
        site.list(&[]).below("").assert_is(&listings[number]);
    }
    site.publish(&["mkdir", "/one-more"]).ok();
    disk.cut();
    site.publish(&["rm", "-r", "/one-more"]).ok();
    disk.cut();
    site.publish(&["gc", "--keep-revisions", "0", "--grace-period", "0"]).ok();
    disk.cut();
    site.check(&["--stale-y"]);

    // What was not is there or not, and the same command succeeds then.
    let (mut now, mut interrupted) = (0, 0);
    for number in 0..CUTS {
        let revision = site.manifest_field('S');
        let next = 1 - now;
        interrupted += u32::from(interrupt(&disk, publish(next), seconds * part_before(number)));
        site.check(&["--stale-y"]);
        let found = if site.manifest_field('S') == revision { now } else { next };
        site.list(&[]).below("").assert_is(&listings[found]);
        run(&mut publish(next)).ok();
        site.list(&[]).below("").assert_is(&listings[next]);
        now = next;
    }
    assert!(interrupted > 0);
    site.check(&["--stale-y"]);
}

#[test]
fn a_power_failure_leaves_a_complete_replica() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root has file systems to mount");
        return;
    }
    let original = Site::with_repository(&[]);
    let tree = original.path("tree");
    let publish = |size: &str| {
        if tree.exists() {
            fs::remove_dir_all(&tree).expect("removed");
        }
        make_tree("many", &tree, &[size]);
        fs::write(tree.join("size"), size).expect("file");
        original.publish(&["publish", "--from", text(&tree)]).ok();
    };
    publish("100");
    let source = Source::start(&original);
    let replica = Replica::of(&original, &source, &[]);
    let disk = Disk::below(&replica.site);
    let seconds = timed(|| replica.run(&["snapshot"]));
    disk.cut();
    replica.assert_equals(&original);
    replica.check(&[]);
    for number in 0..CUTS {
        publish(&format!("{}", 101 + number));
        let old = replica.site.manifest();
        interrupt(&disk, replica.snapshot_command(&[]), seconds * part_before(number));
        replica.check(&["--stale-y"]);
        assert!([&old, &original.manifest()].contains(&&replica.site.manifest()));
        replica.snapshot();
        assert!(replica.site.manifest() == original.manifest());
    }
    disk.cut();
    replica.check(&[]);
}
