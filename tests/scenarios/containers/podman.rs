//! podman with the store of a repository that was exported to a directory.

use std::fs;
use std::path::Path;

use super::image::{Layer, convert, site};
use super::sharing::export;
use crate::mounted::{Driver, Podman};
use crate::support::{NAME, run};
use crate::tarball::Tar;

/// A system that can run.
fn system() -> Vec<u8> {
    let busybox = fs::read("/bin/busybox").expect("busybox-static");
    let tar = Tar::new().dir("bin").entry(b'0', "bin/busybox", "", &busybox, super::odd::mode(0o755));
    let tar = ["sh", "cat", "ls", "echo"].iter().fold(tar, |tar, name| tar.symlink(&format!("bin/{name}"), "busybox"));
    let tar = ["dev", "proc", "sys", "etc", "data"].iter().fold(tar, |tar, name| tar.dir(name));
    tar.file("etc/name", b"below\n").file("etc/gone", b"").file("data/hidden", b"").end()
}

/// `/cvmfs`, made for a test if it does not exist; what is mounted there is for podman alone.
struct Root(bool);

impl Root {
    fn make() -> Self {
        Self(fs::create_dir("/cvmfs").is_ok())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if self.0 {
            let _ = fs::remove_dir("/cvmfs");
        }
    }
}

#[test]
fn podman_runs_what_was_converted() {
    let Some(podman) = Podman::seen_as(Driver::Kernel, &format!("/cvmfs/{NAME}")) else { return };
    let _root = Root::make();
    let (site, layout) = site();
    let upper = Tar::new().dir("etc").file("etc/.wh.gone", b"").file("etc/name", b"above\n");
    let upper = upper.dir("data").file("data/.wh..wh..opq", b"").file("data/new", b"").end();
    let upper = Layer::gzip(&upper);
    let between = Layer::gzip(&Tar::new().dir("etc").file("etc/name", b"between\n").file("etc/gone", b"back").end());
    // Builders repeat layers, empty ones above all: the kernel takes no directory twice.
    let empty = Layer::gzip(&Tar::new().end());
    layout.image("1", &[Layer::gzip(&system()), empty.clone(), upper.clone(), between, empty, upper]);
    for mode in ["flat", "layers"] {
        let again = ["--podman", mode, "--whiteouts", "overlay"];
        convert(&site, &layout.name("1"), "group/app:1", &again).json();
        // As a client shows the newest revision.
        run(std::process::Command::new("bash")
            .args(["-c", "rm -rf \"$1\"/* \"$1\"/.[a-z]*", "bash"])
            .arg(podman.repository()))
        .ok();
        export(&site, "", &podman.repository());
        assert!(Path::new(&podman.repository()).join("podmanStore/overlay-images/images.json").exists());
        let names: Vec<String> =
            podman.images().iter().map(|line| line.split(' ').next().expect("a name").to_owned()).collect();
        assert_eq!(names, ["r.example.org/group/app:1"], "{mode}");
        let look = ["/bin/sh", "-c", "cat /etc/name; ls /data; ls /etc/gone 2>&1"];
        let said =
            podman.podman(&[&["run", "--rm", "--network", "none", "--pull", "never", &names[0]], &look[..]].concat());
        let said = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
        assert_eq!(said, "above\nnew\nls: /etc/gone: No such file or directory\n", "{mode}");
    }
    site.check(&[]);
}
