//! The statistics database: what a publication changed, in the reference's form.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use crate::support::{Site, run};

/// What `cvmfs_server print-stats` prints, without its times.
fn rows(site: &Site) -> Vec<String> {
    let database = site.spool().join("stats.db");
    let mut command = Command::new("sqlite3");
    command.arg("-header").arg(&database).arg("SELECT * from publish_statistics;");
    let text = run(&mut command).ok();
    text.lines().map(|line| line.split('|').skip(3).collect::<Vec<_>>().join("|")).collect()
}

/// Publishes the directory `tree` after a shell command changed it.
fn publish(site: &Site, command: &str) -> String {
    let tree = site.path("tree");
    fs::create_dir_all(&tree).expect("directory");
    run(Command::new("bash").args(["-euc", command]).current_dir(&tree)).ok();
    site.publish(&["publish", "--from", tree.to_str().expect("UTF-8"), "--base-dir", "t"]).ok();
    site.check(&[]);
    rows(site).pop().expect("a row")
}

/// Sizes of all objects, by name.
fn sizes(site: &Site) -> BTreeMap<String, u64> {
    let size = |name: String| {
        let file = site.storage().join("data").join(&name[..2]).join(&name[2..]);
        (name, fs::metadata(file).expect("object").len())
    };
    site.objects().into_iter().map(size).collect()
}

/// Numbers of objects stored, objects that were there, and catalogs; bytes of objects and of catalogs.
fn stored(row: &str) -> [u64; 5] {
    let fields: Vec<&str> = row.split('|').collect();
    [4, 5, 6, 15, 16].map(|field| fields[field].parse().expect("a number"))
}

/// Without objects and catalogs, whose number and size are not ours to predict.
fn counts(row: &str) -> String {
    let fields: Vec<&str> = row.split('|').collect();
    [&fields[..4], &fields[7..15]].concat().join(" ")
}

#[test]
fn each_publication_has_a_row_with_what_came_changed_and_went() {
    let site = Site::with_repository(&[]);
    // revision, files +-~, directories +-~, symlinks +-~, bytes +-
    let row = publish(
        &site,
        "mkdir -p d/e n; printf 12345 >d/a; printf 1234567 >d/b; ln -s a d/l; >n/.cvmfscatalog; printf 1 >n/f",
    );
    assert_eq!(counts(&row), "2 4 0 0 4 0 0 1 0 0 13 0");
    let before = sizes(&site);
    // Of another time and another name, so that the row is for these.
    let copy = publish(&site, "cp d/a d/again; printf 'new content' >n/new");
    let new: Vec<(String, u64)> = sizes(&site).into_iter().filter(|(name, _)| !before.contains_key(name)).collect();
    let bytes = |suffix: Option<char>| -> Vec<u64> {
        let is_wanted = |name: &str| name.chars().last().filter(char::is_ascii_uppercase) == suffix;
        new.iter().filter(|(name, _)| is_wanted(name)).map(|(_, size)| *size).collect()
    };
    let (files, catalogs) = (bytes(None), bytes(Some('C')));
    assert_eq!((files.len(), catalogs.len()), (1, 2));
    assert_eq!(stored(&copy), [1, 1, 2, files[0], catalogs.iter().sum()]);
    publish(&site, "rm d/again n/new");
    let row = publish(
        &site,
        "printf 123 >d/a; touch -d 2001-01-01 d/e; rm d/l; ln -s b d/l; rm d/b; mkdir d/b; chmod 600 n/f",
    );
    // `d` and `n` themselves have a new time or not, as the file system has it.
    let fields: Vec<String> = counts(&row).split(' ').map(str::to_owned).collect();
    assert_eq!(fields[..6], ["5", "0", "1", "2", "1", "0"]);
    assert_eq!(fields[7..], ["0", "0", "1", "4", "13"].map(str::to_owned)[..], "{row}");
    let row = publish(&site, "rm -r n d/b");
    let fields: Vec<String> = counts(&row).split(' ').map(str::to_owned).collect();
    assert_eq!(
        [&fields[1], &fields[2], &fields[4], &fields[5], &fields[10], &fields[11]],
        ["0", "2", "0", "2", "0", "1"]
    );
    // Nothing changed: no row.
    let before = rows(&site).len();
    publish(&site, "true");
    assert_eq!(rows(&site).len(), before);
    let columns = "revision|files_added|files_removed|files_changed|chunks_added|chunks_duplicated|catalogs_added|\
                   directories_added|directories_removed|directories_changed|symlinks_added|symlinks_removed|\
                   symlinks_changed|sz_bytes_added|sz_bytes_removed|sz_bytes_uploaded|sz_catalog_bytes_uploaded|success";
    assert_eq!(rows(&site)[0], columns);
    assert!(rows(&site)[1..].iter().all(|row| row.ends_with("|1")));
}

#[test]
fn old_rows_go_and_a_foreign_database_stays_as_it_is() {
    let site = Site::with_repository(&[]);
    site.configure("CVMFS_STATS_DB_DAYS_TO_KEEP", "10");
    site.publish(&["mkdir", "/a"]).ok();
    let database = site.spool().join("stats.db");
    let sql = "UPDATE publish_statistics SET start_time = datetime('now', '-11 days')";
    run(Command::new("sqlite3").arg(&database).arg(sql)).ok();
    site.publish(&["mkdir", "/b"]).ok();
    assert_eq!(rows(&site).len(), 2);
    run(Command::new("sqlite3").arg(&database).arg("UPDATE properties SET value = 'x' WHERE key = 'repo_name'")).ok();
    let done = site.publish(&["mkdir", "/c"]);
    assert!(done.stderr.contains("statistics of x"), "{}", done.stderr);
    done.ok();
    assert_eq!(rows(&site).len(), 2);
}
