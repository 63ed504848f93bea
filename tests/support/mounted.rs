//! A file system of our own, and podman with images from a directory there.

#![allow(dead_code, reason = "every binary uses another part")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A temporary directory on a file system of its own, where devices and all extended attributes can be made.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    /// `None`, with a note, if this process may not mount.
    pub(crate) fn mounted() -> Option<Self> {
        let place = Self(tempfile::tempdir().expect("temporary directory"));
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=256m,mode=755", "tmpfs"]).arg(place.path()).stderr(Stdio::null());
        if mount.status().is_ok_and(|status| status.success()) {
            return Some(place);
        }
        // Not through the macros, whose output is shown for failing tests only.
        let _ = std::io::stderr().write_all(b"skipped: no right to mount a file system\n");
        None
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-R", "-l"]).arg(self.path()).status();
    }
}

/// What podman mounts layers with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Driver {
    Kernel,
    Fuse,
}

/// A repository on disk, mounted read-only, and podman with its store as an additional one.
pub(crate) struct Podman {
    place: Place,
    /// Where podman sees the repository, if it is somewhere else for podman alone.
    seen_as: Option<String>,
}

impl Podman {
    /// `None`, with a note, if this process may not mount.
    pub(crate) fn new(driver: Driver) -> Option<Self> {
        Self::with_store(driver, None)
    }

    /// The same, with the repository at a path below `/cvmfs` as far as podman can see.
    pub(crate) fn seen_as(driver: Driver, path: &str) -> Option<Self> {
        Self::with_store(driver, Some(path.to_owned()))
    }

    fn with_store(driver: Driver, seen_as: Option<String>) -> Option<Self> {
        let place = Place::mounted()?;
        let root = place.path().to_str().expect("UTF-8");
        let program = match driver {
            Driver::Kernel => String::new(),
            Driver::Fuse => "mount_program = \"/usr/bin/fuse-overlayfs\"".to_owned(),
        };
        let repository = seen_as.clone().unwrap_or_else(|| format!("{root}/client"));
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\nrunroot = \"{root}/run\"\ngraphroot = \"{root}/graph\"\n\
             [storage.options]\nadditionalimagestores = [\"{repository}/podmanStore\"]\n\
             [storage.options.overlay]\n{program}\n"
        );
        // Limits and control groups of a machine without full privileges.
        let containers = format!(
            "[containers]\ndefault_ulimits = []\n[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\n\
             events_logger = \"none\"\nlock_type = \"file\"\ntmp_dir = \"{root}/tmp\"\n"
        );
        fs::write(place.path().join("storage.conf"), storage).expect("storage.conf");
        fs::write(place.path().join("containers.conf"), containers).expect("containers.conf");
        let podman = Self { place, seen_as };
        fs::create_dir(podman.repository()).expect("mkdir");
        podman.mount("client");
        Some(podman)
    }

    pub(crate) fn path(&self) -> &Path {
        self.place.path()
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.place.path().join("repository")
    }

    /// Shows the repository somewhere as a client does.
    pub(crate) fn mount(&self, name: &str) {
        let at = self.place.path().join(name);
        fs::create_dir(&at).expect("mkdir");
        for options in ["bind", "remount,bind,ro"] {
            let mut mount = Command::new("mount");
            let status = mount.args(["-o", options]).arg(self.repository()).arg(&at).status();
            assert!(status.expect("mount").success());
        }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.seen_as {
            None => Command::new("podman"),
            Some(path) => {
                // In a mount namespace of its own, so that nobody else sees what is mounted.
                let script = "mount -t tmpfs tmpfs /cvmfs && mkdir \"$1\" && mount --rbind \"$2\" \"$1\" && shift 2 && exec podman \"$@\"";
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", script, "sh", path]).arg(self.place.path().join("client"));
                command
            }
        };
        command.env("CONTAINERS_CONF", self.place.path().join("containers.conf"));
        command.env("CONTAINERS_STORAGE_CONF", self.place.path().join("storage.conf"));
        command.args(arguments);
        command
    }

    pub(crate) fn podman(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("podman")
    }

    /// What podman prints.
    #[track_caller]
    pub(crate) fn ask(&self, arguments: &[&str]) -> String {
        let output = self.podman(arguments);
        assert!(output.status.success(), "podman {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// What a container of the image prints.
    #[track_caller]
    pub(crate) fn run(&self, image: &str, arguments: &[&str]) -> String {
        self.ask(&[&["run", "--rm", "--network", "none", "--pull", "never", image], arguments].concat())
    }

    /// The names of all images with their ids, sorted.
    #[track_caller]
    pub(crate) fn images(&self) -> Vec<String> {
        self.images_from(&[])
    }

    #[track_caller]
    pub(crate) fn images_from(&self, options: &[&str]) -> Vec<String> {
        let question = ["images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"];
        let text = self.ask(&[options, &question].concat());
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }
}
