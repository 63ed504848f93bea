//! `--upper`: overlays over the exported tree of a repository, edited by real programs; what is published is what the
//! overlay shows.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::support::{Listing, Site, make_tree, run, source_listing};
use super::{is_root, publish, publish_upper, shell};

/// An overlay with `lower`, `upper`, `work` and `merged` in a memory file system; unmounted when dropped.
struct Overlay<'a>(&'a Site);

impl<'a> Overlay<'a> {
    /// Mounts a kernel overlay over a copy of `source`; `None` if this machine does not let us.
    fn kernel(site: &'a Site, options: &str) -> Option<Self> {
        let script = format!(
            "mkdir o && mount -t tmpfs none o && cd o && cp -a ../source lower && mkdir upper work merged &&
             mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work{options} merged"
        );
        Self::mount(site, &script)
    }

    fn fuse(site: &'a Site) -> Option<Self> {
        let script = "mkdir o && mount -t tmpfs none o && cd o && cp -a ../source lower && mkdir upper work merged &&
             fuse-overlayfs -o lowerdir=lower,upperdir=upper,workdir=work,writeback=0,timeout=0 merged";
        Self::mount(site, script)
    }

    fn mount(site: &'a Site, script: &str) -> Option<Self> {
        let done = run(Command::new("bash").args(["-euc", script]).current_dir(site.path("")));
        let overlay = Self(site);
        if done.status.success() {
            return Some(overlay);
        }
        // Not through the macros, whose output is shown for failing tests only.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("skipped: {}", done.stderr).as_bytes());
        None
    }

    /// Edits the merged view, publishes the upper directory, and compares.
    #[track_caller]
    fn edit_and_publish(&self, script: &str, more: &[&str]) -> serde_json::Value {
        shell(self.0, "o/merged", script);
        // What is still in caches is not in the upper directory.
        run(&mut Command::new("sync")).ok();
        let outcome = publish_upper(self.0, "o/upper", more);
        self.0.check_chunks();
        self.assert_equal();
        let again = publish_upper(self.0, "o/upper", more);
        assert_eq!(again["changed"].as_bool(), Some(false), "{again}");
        assert_eq!(again["content"]["bytes_read"].as_u64(), Some(0), "{again}");
        outcome
    }

    #[track_caller]
    fn assert_equal(&self) {
        without_counts(self.0.list(&[]).below("")).assert_is(&without_counts(source_listing(&self.0.path("o/merged"))));
    }
}

impl Drop for Overlay<'_> {
    fn drop(&mut self) {
        for directory in ["o/merged", "o"] {
            run(Command::new("umount").arg(self.0.path(directory)));
        }
    }
}

/// A listing without link counts of directories: in an overlay they are always 1.
fn without_counts(listing: Listing) -> Listing {
    let without = |line: String| {
        let mut columns: Vec<&str> = line.split(' ').collect();
        if columns[0] == "d" {
            columns[5] = "-";
        }
        columns.join(" ")
    };
    Listing(listing.0.into_iter().map(|(path, line)| (path, without(line))).collect())
}

/// What users do to a tree.
const EDITS: &str = "
    rm -rf deep; mkdir deep; echo new >deep/new                 # opaque
    mv empty moved; mv nested nested2                            # directories of the lower layer are copied
    rm hard/b                                                    # one of three names
    cp -al hard2 hard4
    chmod 600 sizes/1 sizes/65536; chown 3:4 sizes/4096
    truncate -s 5 sizes/4097; truncate -s 100000 sizes/0; echo more >>sizes/text
    ln -s nowhere newlink; ln -sfn elsewhere symlinks/00; ln sizes/1 sizes/uno
    mkfifo special/fifo2; rm special/fifo; rm -f special/disk; rm -rf names; mkdir names
    rm -rf times; echo 'a file in place of a directory' >times
    rm symlinks/01; mkdir symlinks/01; touch symlinks/01/x
    setfattr -n user.hello -v world xattrs/user; setfattr -x user.a xattrs/user
    mkdir -p newdir/a/b && touch newdir/a/.cvmfscatalog newdir/a/b/f
    rm nested2/a/.cvmfscatalog
    tar -C /usr/share -cf - common-licenses | tar -xf - 
    mv owners/1000-1000 owners/renamed; touch -d 2011-11-11 modes
";

fn site_with_source() -> Site {
    let site = Site::with_repository(&[]);
    make_tree("rich", &site.path("source"), &[]);
    publish(&site, "source", &[]);
    site
}

#[test]
fn a_kernel_overlay_is_published_as_it_shows() {
    for options in ["", ",userxattr", ",index=on", ",xino=on,redirect_dir=nofollow"] {
        let site = site_with_source();
        let Some(overlay) = Overlay::kernel(&site, options) else { return };
        let more: &[&str] = if options == ",userxattr" { &["--userxattr"] } else { &[] };
        overlay.edit_and_publish(EDITS, more);
        // Once more on top of it: the overlay goes on, over the tree that it was mounted over.
        overlay.edit_and_publish("rm -r newdir deep; echo again >newdir; rm sizes/4096", more);
        let all = site.publish(&["--json", "ls", "-R"]).ok();
        assert!(!all.contains("overlay."), "attributes of the overlay are in the catalog");
    }
}

#[test]
fn a_file_whose_metadata_only_was_copied_up_keeps_its_data() {
    let site = site_with_source();
    let Some(overlay) = Overlay::kernel(&site, ",metacopy=on,redirect_dir=on") else { return };
    let outcome = overlay.edit_and_publish(
        "chmod 640 sizes/300001 sizes/65536; chown 9:9 sizes/text; mv sizes/65536 sizes/moved; mv sizes/16385 hard/moved",
        &[],
    );
    assert_eq!(outcome["content"]["bytes_read"].as_u64(), Some(0), "{outcome}");
    // Renaming a directory in place is named, and refused.
    shell(&site, "o/merged", "mv nested renamed");
    let before = site.manifest();
    let path = site.path("o/upper");
    let message = site.publish(&["publish", "--upper", path.to_str().expect("UTF-8")]).fails(1);
    assert!(message.contains("o/upper/renamed") && message.contains("redirect_dir=off"), "{message}");
    assert!(site.manifest() == before);
}

/// Packs two versions of a Python package as `pip` installs them.
const MAKE_WHEELS: &str = r#"
import zipfile
for version, files in [("1.0", ["__init__", "old", "sub/__init__"]), ("2.0", ["__init__", "new", "sub/__init__"])]:
    info = f"tool-{version}.dist-info/"
    with zipfile.ZipFile(f"tool-{version}-py3-none-any.whl", "w") as wheel:
        for name in files:
            wheel.writestr(f"tool/{name}.py", f"VERSION = {version!r}\n" * 100)
        wheel.writestr(info + "METADATA", f"Metadata-Version: 2.1\nName: tool\nVersion: {version}\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(info + "RECORD", "")
"#;

#[test]
fn what_pip_does_in_an_overlay_is_published() {
    let site = Site::with_repository(&[]);
    shell(&site, "", &format!("mkdir -p source/lib; python3 - <<'END'{MAKE_WHEELS}END"));
    let install = "python3 -m pip install --quiet --disable-pip-version-check --no-index --no-cache-dir --upgrade";
    shell(&site, "source", &format!("{install} --target lib ../tool-1.0-py3-none-any.whl"));
    publish(&site, "source", &[]);
    assert!(site.list(&[]).0.contains_key("lib/tool/old.py"));
    let Some(overlay) = Overlay::kernel(&site, "") else { return };
    overlay.edit_and_publish(&format!("{install} --target lib ../../tool-2.0-py3-none-any.whl"), &[]);
    let paths = site.list(&[]).0;
    assert!(paths.contains_key("lib/tool/new.py") && !paths.contains_key("lib/tool/old.py"), "{:?}", paths.keys());
}

#[test]
fn fuse_overlayfs_is_published_as_it_shows() {
    if !run(Command::new("bash").args(["-c", "command -v fuse-overlayfs"])).status.success() || !is_root() {
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"skipped: no fuse-overlayfs, or not root\n");
        return;
    }
    let site = Site::with_repository(&[]);
    shell(
        &site,
        "",
        "mkdir -p source/d/e source/gone/x source/opaque/y source/names &&
         for n in 1 2 3 4; do echo $n >source/d/$n; done; echo x >source/gone/x/f; echo y >source/opaque/y/f;
         ln -s 1 source/d/l; setfattr -n user.a -v b source/d/2",
    );
    publish(&site, "source", &[]);
    let Some(overlay) = Overlay::fuse(&site) else { return };
    overlay.edit_and_publish(
        "rm d/1; echo more >>d/2; chmod 700 d/3; mv d/4 d/e/four; rm -r gone; rm -r opaque; mkdir opaque;
         echo new >opaque/new; mkdir -p n/n; cp -a d n/n/copy; ln -sfn 3 d/l; chown 5:6 names",
        &[],
    );
}

#[test]
fn signs_without_an_overlay() {
    let site = Site::with_repository(&[]);
    shell(
        &site,
        "",
        "mkdir -p source/d source/o/p source/r source/w && touch source/d/a source/d/b source/o/p/f source/o/q source/r/s \
         source/w/x source/w/y; echo data >source/d/c",
    );
    publish(&site, "source", &["--base-dir", "base"]);
    shell(
        &site,
        "",
        "mkdir -p upper/d upper/o/p upper/r upper/w && touch upper/d/.wh.a upper/o/.wh..wh..opq upper/o/new",
    );
    shell(
        &site,
        "upper",
        "touch o/p/kept .wh..wh.plnk w/x; ln -s '(overlay-whiteout)' d/b; setfattr -n user.overlay.whiteout w/x",
    );
    shell(&site, "upper", "setfattr -n user.overlay.opaque -v x w; setfattr -n user.fuseoverlayfs.opaque -v y r");
    shell(&site, "upper", "setfattr -n user.containers.override_stat -v 12:34:0751:dir d; echo >d/dev");
    shell(&site, "upper", "setfattr -n user.containers.override_stat -v 1:2:0640:char-1-3 d/dev");
    publish_upper(&site, "upper", &["--base-dir", "base", "--userxattr"]);
    site.check(&[]);
    let listing = site.list(&[]).below("base");
    let paths: Vec<&str> = listing.0.keys().map(String::as_str).collect();
    assert_eq!(paths, ["d", "d/c", "d/dev", "o", "o/new", "o/p", "o/p/kept", "r", "w", "w/y"]);
    assert!(listing.0["d"].contains(" 12 34 ") && listing.0["d"].starts_with("d 0751"), "{}", listing.0["d"]);
    assert!(listing.0["d/dev"].starts_with("c 0640") && listing.0["d/dev"].contains("1:3"), "{}", listing.0["d/dev"]);
    assert!(listing.0.values().all(|line| line.ends_with(" -")), "attributes of the overlay are in the catalog");
    let again = publish_upper(&site, "upper", &["--base-dir", "base", "--userxattr"]);
    assert_eq!(again["changed"].as_bool(), Some(false));
}

/// Without the privilege, attributes of the kernel's overlay are invisible, and what was removed would come back.
#[test]
fn who_cannot_see_the_signs_is_told() {
    if !is_root() {
        return;
    }
    let site = Site::with_repository(&[]);
    shell(&site, "", "mkdir upper; chmod 755 .; chown -R 65534:65534 .");
    let upper = site.path("upper");
    let as_nobody = |more: &[&str]| {
        let mut command = site.command("cvmfs-publish");
        command.args(["publish", "--upper"]).arg(&upper).args(more);
        std::os::unix::process::CommandExt::uid(&mut command, 65534);
        if Path::new(&upper).is_dir() { run(&mut command) } else { unreachable!() }
    };
    let done = as_nobody(&[]);
    if done.stderr.contains("denied") {
        // The program is where nobody else may go.
        return;
    }
    assert!(done.fails(1).contains("--userxattr"));
    as_nobody(&["--userxattr"]).ok();
    assert!(fs::read_dir(&upper).expect("directory").next().is_none());
}
