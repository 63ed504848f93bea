//! The tools of the reference implementation, unmodified.
//!
//! `CVMFS_REFERENCE_DIR` is the prefix of its installation: `usr/bin/cvmfs_swissknife`, `usr/bin/cvmfs2` and `usr/lib`
//! below it. Without that variable there is nothing to compare with and the tests say so.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Listing, NAME, Server, Site, run, verifier};

/// The installed reference tools and a place for their working files.
pub(crate) struct Reference {
    pub(crate) prefix: PathBuf,
}

impl Reference {
    pub(crate) fn find() -> Option<Self> {
        let prefix = std::env::var_os("CVMFS_REFERENCE_DIR").map(PathBuf::from);
        if prefix.is_none() {
            // Not through the macros, whose output is shown for failing tests only.
            let _ = writeln!(io::stderr(), "skipped: the reference tools are not installed (CVMFS_REFERENCE_DIR)");
        }
        prefix.map(|prefix| Self { prefix })
    }

    pub(crate) fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(self.prefix.join("usr/bin").join(name));
        command.env("LD_LIBRARY_PATH", self.prefix.join("usr/lib")).env("LC_ALL", "C");
        command
    }

    /// Runs a command of the tool for everything.
    #[track_caller]
    pub(crate) fn swissknife(&self, arguments: &[&str]) -> String {
        run(self.tool("cvmfs_swissknife").args(arguments)).ok()
    }

    /// The reference's own check, with all objects, over HTTP. It must find nothing at all.
    #[track_caller]
    pub(crate) fn check(&self, site: &Site, server: &Server) {
        let temp = scratch(site, "check");
        let (url, key) = (server.repository(NAME), text(&site.key_file("pub")));
        let checksum = text(&site.spool().join("reflog.chksum"));
        let arguments = ["check", "-r", &url, "-t", &temp, "-k", &key, "-N", NAME, "-R", &checksum, "-c"];
        let done = run(self.tool("cvmfs_swissknife").args(arguments));
        assert_eq!(done.stderr, "", "{}", done.stdout);
        let printed = done.ok();
        assert!(printed.contains("no problems found"), "{printed}");
        self.swissknife(&["scrub", "-r", &text(&site.storage().join("data"))]);
    }

    pub(crate) fn mount(&self, site: &Site, server: &Server, more: &str) -> Mount {
        Mount::new(self, site, server, more)
    }
}

pub(crate) fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// A new directory of the site, for working files.
pub(crate) fn scratch(site: &Site, name: &str) -> String {
    let directory = (0..100).map(|number| site.path(&format!("{name}-{number}"))).find(|path| !path.exists());
    let directory = directory.expect("a free name");
    fs::create_dir(&directory).expect("mkdir");
    text(&directory)
}

/// The reference client on a repository; unmounts when dropped.
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
}

impl Mount {
    pub(crate) fn new(reference: &Reference, site: &Site, server: &Server, more: &str) -> Self {
        let point = PathBuf::from(scratch(site, "mount"));
        let cache = scratch(site, "cache");
        let config = format!(
            "CVMFS_CACHE_BASE={cache}\nCVMFS_RELOAD_SOCKETS={cache}\nCVMFS_QUOTA_LIMIT=4000\nCVMFS_SHARED_CACHE=no\n\
             CVMFS_HTTP_PROXY=DIRECT\nCVMFS_SERVER_URL={}\nCVMFS_PUBLIC_KEY={}\nCVMFS_CHECK_PERMISSIONS=yes\n\
             CVMFS_CLAIM_OWNERSHIP=no\nCVMFS_SUID=yes\nCVMFS_HIDE_MAGIC_XATTRS=yes\n\
             CVMFS_MAGIC_XATTRS_VISIBILITY=never\n{more}",
            server.repository(&site.name),
            site.key_file("pub").display()
        );
        let file = Path::new(&cache).join("client.conf");
        fs::write(&file, config).expect("client.conf");
        let options = format!("config={}", file.display());
        let mut client = reference.tool("cvmfs2");
        client.env("HOME", "/home/tests").env_remove("UNSET_BY_TESTS");
        run(client.args(["-o", &options, &site.name]).arg(&point)).ok();
        let mount = Self { point };
        let deadline = Instant::now() + Duration::from_mins(1);
        while !fs::read_to_string("/proc/mounts").expect("mounts").contains(&text(&mount.point)) {
            assert!(Instant::now() < deadline, "not mounted");
            thread::sleep(Duration::from_millis(20));
        }
        mount
    }

    /// What the client shows.
    pub(crate) fn listing(&self) -> Listing {
        Listing::parse(&verifier(["tree", "--no-dir-size", &text(&self.point)]).ok()).below("")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.point).status().is_ok_and(|status| status.success());
        if !unmounted {
            let _ = Command::new("fusermount3").args(["-u", "-z"]).arg(&self.point).status();
        }
    }
}

/// The reference's directory for statistics, which is the same for all installations: made for one test at a time.
pub(crate) struct StatisticsDirectory {
    path: PathBuf,
    made: bool,
    _lock: MutexGuard<'static, ()>,
}

impl StatisticsDirectory {
    pub(crate) fn make() -> Self {
        static LOCK: Mutex<()> = Mutex::new(());
        let lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        let path = Path::new("/var/spool/cvmfs").join(NAME);
        let made = !path.exists();
        fs::create_dir_all(&path).expect("directory for statistics");
        Self { path, made, _lock: lock }
    }
}

impl Drop for StatisticsDirectory {
    fn drop(&mut self) {
        if self.made {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
