//! The reference's own check and collection of garbage beside ours; see `support/reference.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::support::reference::{Reference, StatisticsDirectory, scratch, text};
use crate::support::{NAME, Site, make_tree, pack, run};

/// Five revisions, the second and the fourth with tags.
fn site_with_past() -> Site {
    let site = Site::with_repository(&["--gc", "--no-autotags"]);
    make_tree("rich", &site.path("source"), &[]);
    make_tree("many", &site.path("many"), &["60"]);
    for tree in ["source", "many"] {
        pack(&site.path(tree), &site.path(&format!("{tree}.tar")), &["."]);
    }
    site.ingest_tar("source.tar", &["--tag", "v1"]);
    site.ingest_tar("many.tar", &["--base-dir", "many", "--catalog"]);
    site.publish(&["rm", "-r", "/many", "--tag", "v2"]).ok();
    site.publish(&["rm", "-r", "/nested"]).ok();
    site.publish(&["mkdir", "/more"]).ok();
    site
}

/// The reference's collection, with its default policy for revisions or a number of them.
fn their_gc(reference: &Reference, site: &Site, revisions: &str) {
    let server = site.serve();
    let _statistics = StatisticsDirectory::make();
    let (url, key, temp) = (server.repository(NAME), text(&site.key_file("pub")), scratch(site, "gc"));
    let spooler = format!("local,{0}/data/txn,{0}", text(&site.storage()));
    let checksum = text(&site.spool().join("reflog.chksum"));
    let place = ["gc", "-r", &url, "-u", &spooler, "-n", NAME, "-k", &key, "-t", &temp, "-R", &checksum];
    reference.swissknife(&[&place[..], &["-h", revisions]].concat());
}

#[test]
fn both_remove_the_same_objects_and_their_check_finds_nothing() {
    let Some(reference) = Reference::find() else { return };
    let site = site_with_past();
    let copy = |from: &str, to: &str| {
        run(Command::new("bash").args(["-euc", &format!("rm -rf {to}; cp -a {from} {to}")]).current_dir(site.path("")))
            .ok();
    };
    copy("site", "before");
    let objects = || -> BTreeSet<String> { site.objects().into_iter().collect() };
    let before = objects();
    for revisions in ["0", "1", "2", "9"] {
        copy("before", "site");
        their_gc(&reference, &site, revisions);
        let theirs = objects();
        copy("before", "site");
        site.publish(&["gc", "--keep-revisions", revisions, "--grace-period", "0"]).ok();
        let ours = objects();
        let only = |one: &BTreeSet<String>, other: &BTreeSet<String>| -> Vec<String> {
            one.difference(other).cloned().collect()
        };
        assert_eq!((only(&theirs, &ours), only(&ours, &theirs)), (vec![], vec![]), "{revisions}");
        assert_eq!(revisions == "9", ours == before);
        let server = site.serve();
        reference.check(&site, &server);
        // Each goes on where the other stopped.
        drop(server);
        their_gc(&reference, &site, "0");
        site.ingest_tar("many.tar", &["--base-dir", "many", "--catalog"]);
        site.publish(&["gc", "-r", "0", "--grace-period", "0"]).ok();
        reference.check(&site, &site.serve());
        site.publish(&["check", "--data"]).ok();
    }
}

#[test]
fn what_they_leave_is_clean_here() {
    let Some(reference) = Reference::find() else { return };
    let site = site_with_past();
    their_gc(&reference, &site, "0");
    site.publish(&["check", "--data"]).ok();
    let reflog = site.storage().join(".cvmfsreflog");
    let aside = fs::read(&reflog).expect("reflog");
    fs::write(&reflog, &aside[..aside.len() / 2]).expect("damage");
    site.publish(&["check"]).fails(3);
    fs::write(&reflog, aside).expect("mend");
    site.publish(&["check"]).ok();
}
