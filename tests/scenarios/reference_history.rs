//! The reference's tools for tags, rollback, branches, differences and catalogs on our repositories, and ours on what
//! they left; see `support/reference.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::reference::{Reference, scratch, text};
use crate::support::{NAME, Server, Site, make_tree, pack, run};

/// Three revisions of the rich tree, tagged `v1`, `v2` and `v3`.
fn site_with_past() -> Site {
    let site = Site::with_repository(&["--gc", "--no-autotags"]);
    make_tree("rich", &site.path("source"), &[]);
    pack(&site.path("source"), &site.path("rich.tar"), &["."]);
    site.ingest_tar("rich.tar", &["--tag", "v1", "--message", "the first"]);
    site.ingest(&["--delete", "nested/a/large", "--delete", "hard/b", "--tag", "v2"]).json();
    site.ingest_tar("rich.tar", &["--base-dir", "copy", "--catalog", "--tag", "v3"]);
    site
}

/// What the reference's commands need to know.
struct Theirs<'a> {
    reference: &'a Reference,
    site: &'a Site,
    url: String,
    key: String,
}

impl<'a> Theirs<'a> {
    fn new(reference: &'a Reference, site: &'a Site, server: &Server) -> Self {
        Self { reference, site, url: server.repository(NAME), key: text(&site.key_file("pub")) }
    }

    #[track_caller]
    fn look(&self, command: &[&str]) -> String {
        let temp = scratch(self.site, "look");
        let place = ["-w", &self.url, "-t", &temp, "-p", &self.key, "-f", NAME];
        self.reference.swissknife(&[command, &place].concat())
    }

    #[track_caller]
    fn catalogs(&self, more: &[&str]) -> String {
        let temp = scratch(self.site, "list");
        let place = ["lsrepo", "-r", &self.url, "-n", NAME, "-k", &self.key, "-l", &temp];
        self.reference.swissknife(&[&place, more].concat())
    }

    #[track_caller]
    fn diff(&self, more: &[&str]) -> String {
        let keys = text(Path::new(&self.key).parent().expect("keys"));
        run(self.reference.tool("cvmfs_publish").args(["diff", "-k", &keys, "-m"]).args(more).arg(&self.url)).ok()
    }

    /// What the reference's shell scripts do for a change of the tags: edit, sign.
    #[track_caller]
    fn edit(&self, command: &[&str]) {
        let site = self.site;
        let temp = scratch(site, "edit");
        let spooler = format!("local,{0}/data/txn,{0}", text(&site.storage()));
        let manifest = format!("{temp}/manifest");
        let [certificate, private] = ["crt", "key"].map(|extension| text(&site.key_file(extension)));
        let checksum = text(&site.spool().join("reflog.chksum"));
        let place = ["-r", &spooler, "-t", &temp, "-m", &manifest];
        let base = site.manifest_field('C');
        let edit = ["-w", &self.url, "-p", &self.key, "-f", NAME, "-b", &base, "-e", "sha1"];
        self.reference.swissknife(&[command, &place, &edit].concat());
        let sign = ["sign", "-c", &certificate, "-k", &private, "-n", NAME, "-u", &self.url, "-R", &checksum, "-g"];
        self.reference.swissknife(&[&sign[..], &place].concat());
    }
}

fn sorted(lines: &str) -> BTreeSet<String> {
    lines.lines().map(|line| line.trim_end().to_owned()).collect()
}

#[test]
fn their_tools_show_what_ours_show() {
    let Some(reference) = Reference::find() else { return };
    let site = site_with_past();
    let server = site.serve();
    let theirs = Theirs::new(&reference, &site, &server);
    let same_tags = || {
        assert_eq!(sorted(&theirs.look(&["tag_list", "-x"])), sorted(&site.publish(&["tag", "-x"]).ok()));
        assert_eq!(theirs.look(&["tag_list", "-B", "-x"]), site.publish(&["tag", "branches", "-x"]).ok());
        reference.check(&site, &server);
    };
    same_tags();
    for edit in [
        &["tag", "add", "old", "v1", "-m", "an older one"][..],
        &["tag", "move", "old", "v2"],
        &["tag", "add", "older", "2"],
        &["tag", "remove", "v2", "older"],
    ] {
        site.publish(edit).ok();
        same_tags();
    }
    let shown = site.publish(&["tag", "show", "old", "-x"]).ok();
    assert_eq!(theirs.look(&["tag_info", "-n", "old", "-x"]), shown);

    // A branch, and a second revision on it.
    site.publish(&["checkout", "v1", "-b", "side"]).ok();
    site.ingest(&["--delete", "copy", "--delete", "sizes", "--tag", "side1"]).json();
    same_tags();
    site.publish(&["checkout", "-b", "side"]).ok();
    site.ingest(&["--delete", "names", "--tag", "side2"]).json();
    same_tags();

    for revision in ["v1", "v3", "side2"] {
        let ours = site.publish(&["list-catalogs", "-s", "-e", "-d", "-x", "--tag", revision]).ok();
        let tag = site.publish(&["tag", "show", revision, "--json"]).json();
        let root = tag["root_hash"].as_str().expect("hash").to_owned();
        assert_eq!(sorted(&theirs.catalogs(&["-s", "-e", "-d", "-h", &root])), sorted(&ours));
    }

    // The same trees differ in the same places. What they print of names that are not printable, of variant symbolic
    // links and of devices is not what the catalogs have; below a nested catalog that went they list nothing.
    let lines_with = |lines: &str, start: &str| -> BTreeSet<String> {
        let comparable = |line: &&str| {
            line.starts_with(start)
                && !line.contains("/names/")
                && !line.contains("/symlinks/")
                && line.as_bytes()[2] != b'U'
        };
        lines.lines().filter(comparable).map(|line| line.trim_end().to_owned()).collect()
    };
    for (from, to) in [("v1", "v3"), ("v3", "side2"), ("trunk-previous", "trunk")] {
        let ours = site.publish(&["diff", from, to, "-m"]).ok();
        let their_lines = theirs.diff(&["-s", from, "-d", to]);
        for start in ["S ", "A "] {
            assert_eq!(lines_with(&their_lines, start), lines_with(&ours, start), "{from} {to}");
        }
        let (gone, they_say) = (lines_with(&ours, "R "), lines_with(&their_lines, "R "));
        assert!(they_say.is_subset(&gone), "{they_say:?} {gone:?}");
        assert!(gone.len() + lines_with(&ours, "A ").len() > 1);
    }
}

#[test]
fn a_rollback_of_either_makes_the_same_history() {
    let Some(reference) = Reference::find() else { return };
    for target in [None, Some("v1"), Some("v2")] {
        let names = [true, false].map(|is_ours| {
            let site = site_with_past();
            site.publish(&["tag", "add", "also-v1", "v1"]).ok();
            site.publish(&["checkout", "v2", "-b", "side"]).ok();
            site.ingest(&["--delete", "names", "--tag", "side1"]).json();
            let expected = site.list(&["--tag", target.unwrap_or("trunk-previous")]);
            let server = site.serve();
            let theirs = Theirs::new(&reference, &site, &server);
            if is_ours {
                site.publish(&[&["rollback"], target.as_slice()].concat()).ok();
            } else {
                theirs.edit(
                    &[&["tag_rollback"][..], target.map_or(&[][..], |_| &["-n"][..]), target.as_slice()].concat(),
                );
            }
            reference.check(&site, &server);
            site.check(&["--no-strict"]);
            site.list(&[]).assert_is(&expected);
            let tags = site.publish(&["tag", "--json"]).json();
            let described =
                tags.as_array().expect("tags").iter().map(|tag| {
                    format!("{} {} {:?} {:?}", tag["name"], tag["revision"], tag["branch"], tag["description"])
                });
            let described: BTreeSet<String> = described.collect();

            // Each goes on from what the other left.
            if is_ours {
                theirs.edit(&["tag_edit", "-a", "theirs", "-D", "by them", "-h", &site.manifest_field('C')]);
            } else {
                site.publish(&["tag", "add", "ours", "-m", "by us"]).ok();
            }
            site.ingest(&["--delete", "hard", "--tag", "on"]).json();
            site.publish(&["rollback", "on"]).fails(1);
            site.publish(&["rollback", if is_ours { "theirs" } else { "ours" }]).ok();
            site.list(&[]).assert_is(&expected);
            reference.check(&site, &server);
            site.check(&["--no-strict"]);
            described
        });
        assert_eq!(names[0], names[1], "{target:?}");
    }
}

#[test]
fn their_tags_and_branches_are_ours() {
    let Some(reference) = Reference::find() else { return };
    let site = site_with_past();
    let server = site.serve();
    let theirs = Theirs::new(&reference, &site, &server);
    let root = |tag: &str| {
        site.publish(&["tag", "show", tag, "--json"]).json()["root_hash"].as_str().expect("hash").to_owned()
    };
    theirs.edit(&["tag_edit", "-a", "theirs", "-D", "by them", "-h", &root("v1"), "-B", "side", "-P", ""]);
    theirs.edit(&["tag_edit", "-d", "v2"]);
    reference.check(&site, &server);
    assert_eq!(sorted(&theirs.look(&["tag_list", "-x"])), sorted(&site.publish(&["tag", "-x"]).ok()));
    // Their branch goes on with our commit; what they remove last, takes the branch with it.
    site.publish(&["checkout", "-b", "side"]).ok();
    site.ingest(&["--delete", "names", "--tag", "ours"]).json();
    reference.check(&site, &server);
    assert_eq!(theirs.look(&["tag_list", "-B", "-x"]), "[0] (default) @0\n[1]  side @2\n");
    theirs.edit(&["tag_edit", "-d", "theirs ours"]);
    assert_eq!(site.publish(&["tag", "branches", "-x"]).ok(), "[0] (default) @0\n");
    site.check(&["--no-strict"]);
    // The marker of their checkout is ours.
    fs::write(site.spool().join("checkout"), format!("v1 {} again \n", root("v1"))).expect("checkout");
    let state = site.publish(&["checkout", "--json"]).json();
    assert_eq!((&state["branch"], &state["tag"]), (&"again".into(), &"v1".into()));
    site.ingest(&["--delete", "hard", "--tag", "again1"]).json();
    reference.check(&site, &server);
}
