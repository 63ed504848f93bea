//! The reference's own migrations beside ours; see `support/reference.rs`.

use std::fs;
use std::process::Command;

use crate::rewrite::{older, site};
use crate::support::reference::{Reference, scratch, text};
use crate::support::{NAME, Site, run};

/// The rows of all catalogs after a migration of the reference, which is not published.
fn their_rows(reference: &Reference, site: &Site, base: &str, more: &[&str]) -> String {
    let server = site.serve();
    let (temp, storage) = (scratch(site, "migrate"), text(&site.storage()));
    let (manifest, url, key) = (format!("{temp}/manifest"), server.repository(NAME), text(&site.key_file("pub")));
    let spooler = format!("local,{storage}/data/txn,{storage}");
    let place =
        ["migrate", "-v", base, "-r", &url, "-n", NAME, "-u", &spooler, "-o", &manifest, "-t", &temp, "-k", &key];
    reference.swissknife(&[&place[..], more].concat());
    let manifest = fs::read(&manifest).expect("manifest");
    let lines = String::from_utf8_lossy(&manifest).into_owned();
    let root = lines.lines().find_map(|line| line.strip_prefix('C')).expect("root catalog").to_owned();
    older(site, &["rows", &root])
}

fn their_check_finds_nothing(reference: &Reference, site: &Site) {
    reference.check(site, &site.serve());
    site.publish(&["check", "--data"]).ok();
}

/// Rows in their order without markers, whose time and object are of the one who made them.
fn without_markers(rows: &str) -> Vec<&str> {
    // `.cvmfscatalog` as hexadecimal digits.
    rows.lines().filter(|line| !line.contains("2e63766d6673636174616c6f67")).collect()
}

#[test]
fn both_write_the_same_rows() {
    let Some(reference) = Reference::find() else { return };
    let site = site(true);
    older(&site, &["make", "2.5.7", "bulk"]);
    // The same tables before, as theirs stay.
    site.publish(&["migrate"]).ok();
    let map = |name: &str, rules: &str| {
        fs::write(site.path(name), rules).expect("map");
        text(&site.path(name))
    };
    let (users, groups) = (map("uid.map", "7 1007\n0 5\n5 0\n"), map("gid.map", "# all but one\n* 3\n8 9\n"));
    for (base, more, ours) in [
        ("chown", &["-i", &users, "-j", &groups][..], &["catalog-chown", "-u", &users, "-g", &groups][..]),
        ("hardlink", &[], &["eliminate-hardlinks"]),
        ("bulkhash", &[], &["eliminate-bulk-hashes"]),
    ] {
        let theirs = their_rows(&reference, &site, base, more);
        site.publish(ours).ok();
        let ours = older(&site, &["rows"]);
        assert!(theirs == ours, "{base}:\n{theirs}\n{ours}");
        their_check_finds_nothing(&reference, &site);
    }
}

#[test]
fn both_migrate_the_oldest_catalogs_to_the_same_rows() {
    let Some(reference) = Reference::find() else { return };
    let site = site(false);
    // They count FIFOs as files.
    site.publish(&["rm", "/e/pipe"]).ok();
    older(&site, &["make", "1.0"]);
    let theirs = their_rows(&reference, &site, "2.0.x", &["-p", "3", "-g", "4"]);
    site.publish(&["migrate", "--owner", "3:4"]).ok();
    let ours = older(&site, &["rows"]);
    assert_eq!(without_markers(&theirs), without_markers(&ours));
    assert_eq!(theirs.lines().count(), ours.lines().count());
    their_check_finds_nothing(&reference, &site);
}

#[test]
fn their_check_finds_nothing_after_a_migration() {
    let Some(reference) = Reference::find() else { return };
    let site = site(true);
    run(Command::new("cp").arg("-a").args([site.root(), site.path("pristine")])).ok();
    for (schema, option) in [("2.1", "no-statistics"), ("2.4", "no-revision"), ("2.5.0", "bulk"), ("2.5.4", "bulk")] {
        run(Command::new("bash").args(["-euc", "rm -rf site; cp -a pristine site"]).current_dir(site.path(""))).ok();
        older(&site, &["make", schema, option]);
        site.publish(&["migrate"]).ok();
        their_check_finds_nothing(&reference, &site);
    }
}
