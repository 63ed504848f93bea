//! Documents about servers and repositories, and statistics, by the real program.

use std::fs;
use std::io::Write as _;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Done, NAME, Site, run};

fn with_input(site: &Site, arguments: &[&str], input: &str) -> Done {
    let file = site.path("input");
    fs::write(&file, input).expect("input");
    let mut command = site.command("cvmfs-publish");
    run(command.args(arguments).stdin(fs::File::open(file).expect("input")))
}

fn with_editor(site: &Site, arguments: &[&str], editor: &str) -> Done {
    run(site.command("cvmfs-publish").env_remove("VISUAL").env("EDITOR", editor).args(arguments))
}

fn description(site: &Site) -> Value {
    site.publish(&["update-repoinfo"]).json()
}

/// What the manifest leads to, read by another program.
fn stored(site: &Site) -> String {
    let object = site.manifest_field('M');
    let file = site.storage().join("data").join(&object[..2]).join(object[2..].to_owned() + "M");
    let script = "import sys, zlib; sys.stdout.write(zlib.decompress(open(sys.argv[1], 'rb').read()).decode())";
    run(Command::new("python3").args(["-c", script]).arg(file)).ok()
}

#[test]
fn a_description_is_published_as_it_was_written() {
    let site = Site::with_repository(&[]);
    assert_eq!(description(&site)["email"], "");
    let (root, revision) = (site.manifest_field('C'), site.manifest_field('S'));
    let text = "{ \"email\": \"a@example.org\",\n\n  \"custom\": {\"b\": [1, 2.50]} }";
    assert_eq!(with_input(&site, &["update-repoinfo", "-f", "-", "--json"], text).json()["changed"], true);
    assert_eq!(stored(&site), text);
    assert_eq!(site.publish(&["update-repoinfo"]).ok(), text);
    assert_eq!((site.manifest_field('C'), site.manifest_field('S')), (root, revision));
    site.check(&[]);
    site.publish(&["check", "--data"]).ok();
    // Twice is once; and it survives what is published later.
    let manifest = site.manifest();
    assert_eq!(with_input(&site, &["update-repoinfo", "-f", "-", "--json"], text).json()["changed"], false);
    assert_eq!(site.manifest(), manifest);
    site.publish(&["mkdir", "/a"]).ok();
    assert_eq!(stored(&site), text);
}

#[test]
fn what_is_no_description_is_refused_with_the_place() {
    let site = Site::with_repository(&[]);
    let manifest = site.manifest();
    for (text, complaint) in [("{\n\"a\": }", "line 2 column 6"), ("[1]", "no object"), ("", "empty")] {
        let done = with_input(&site, &["update-repoinfo", "--file", "-"], text).fails(1);
        assert!(done.contains(complaint), "{done}");
    }
    assert!(site.publish(&["update-repoinfo", "--file", "/nowhere/x.json"]).fails(1).contains("/nowhere/x.json"));
    assert!(with_editor(&site, &["update-repoinfo", "--edit"], "false").fails(1).contains("nothing was changed"));
    let complaint = with_editor(&site, &["update-repoinfo", "--edit"], "sed -i s/}//").fails(1);
    let kept = complaint.trim().rsplit(' ').next().expect("a path").to_owned();
    assert!(fs::read_to_string(&kept).expect("what was typed").contains("administrator"));
    fs::remove_file(kept).expect("file");
    assert_eq!(site.manifest(), manifest);
    assert!(with_input(&site, &["update-repoinfo", "-f", "-"], "{\"email\": 7}").stderr.contains("usually a text"));
}

#[test]
fn an_editor_does_not_undo_what_others_wrote_meanwhile() {
    let site = Site::with_repository(&[]);
    with_editor(&site, &["update-repoinfo", "--edit"], "sed -i 's/\"email\": \"\"/\"email\": \"x@y\"/'").ok();
    assert_eq!(description(&site)["email"], "x@y");
    let other = site.path("editor with blanks.sh");
    let program = crate::support::binary("cvmfs-publish");
    let script =
        format!("#!/bin/sh\necho '{{}}' | {} update-repoinfo -f - >&2\nsed -i s/x@y/z@y/ \"$1\"\n", program.display());
    fs::write(&other, script).expect("script");
    run(Command::new("chmod").arg("+x").arg(&other)).ok();
    let complaint = with_editor(&site, &["update-repoinfo", "--edit"], &format!("'{}'", other.display())).fails(4);
    assert!(complaint.contains("somebody else changed it"), "{complaint}");
    assert_eq!(description(&site), json!({}));
}

#[test]
fn documents_about_the_server_follow_its_configuration() {
    let site = Site::with_repository(&[]);
    let info = site.root().join("srv/cvmfs/info/v1");
    let document =
        |name: &str| -> Value { serde_json::from_slice(&fs::read(info.join(name)).expect("document")).expect("JSON") };
    assert!(!info.exists());
    assert_eq!(site.publish(&["update-info", "--json"]).json()["meta_changed"], true);
    assert_eq!(
        document("repositories.json")["repositories"],
        json!([{ "name": NAME, "url": format!("/cvmfs/{NAME}") }])
    );
    assert_eq!(document("meta.json")["custom"], json!({}));
    // Written by hand, it stays, and so does the order of it.
    let text = "{ \"email\": \"a@example.org\" }\n";
    with_input(&site, &["update-info", "--file", "-"], text).ok();
    assert_eq!(site.publish(&["update-info", "-e", "-p", "--json"]).json()["meta_changed"], false);
    assert_eq!(fs::read_to_string(info.join("meta.json")).expect("document"), text);
    assert!(with_input(&site, &["update-info", "--file", "-"], "{").fails(1).contains("line 1"));
    with_editor(&site, &["update-info", "--edit"], "sed -i s/a@/b@/").ok();
    assert_eq!(document("meta.json"), json!({ "email": "b@example.org" }));
    // Whoever serves the file has to see what comes and goes.
    site.publish(&["mkfs", "b.example.org"]).ok();
    assert_eq!(document("repositories.json")["repositories"][0]["name"], "b.example.org");
    site.publish(&["rmfs", "--keep-storage", "b.example.org"]).ok();
    site.publish(&["rmfs", NAME]).ok();
    assert_eq!(document("repositories.json")["repositories"], json!([]));
    site.publish(&["import", "b.example.org"]).ok();
    assert_eq!(document("repositories.json")["repositories"][0]["name"], "b.example.org");
    assert_eq!(fs::read_dir(&info).expect("directory").count(), 2);
}

/// What `cvmfs_server print-stats` does.
fn sqlite(database: &std::path::Path, table: &str) -> String {
    run(Command::new("sqlite3").arg("-header").arg(database).arg(format!("SELECT * FROM {table};"))).ok()
}

#[test]
fn statistics_are_printed_as_the_reference_prints_them() {
    let site = Site::with_repository(&["--gc"]);
    let database = site.spool().join("stats.db");
    assert!(site.publish(&["print-stats"]).stderr.contains("no statistics yet"));
    site.publish(&["mkdir", "/a"]).ok();
    site.publish(&["rm", "-r", "/a"]).ok();
    assert_eq!(site.publish(&["print-stats"]).ok(), sqlite(&database, "publish_statistics"));
    assert_eq!(site.publish(&["print-stats", "-t", "gc"]).ok(), "");

    let gc = site.publish(&["gc", "-r", "0", "--grace-period", "0", "--json"]).json();
    site.publish(&["gc", "-r", "0", "--dry-run"]).ok();
    let rows = site.publish(&["print-stats", "-t", "gc_statistics", "--json"]).json();
    assert_eq!(rows.as_array().expect("rows").len(), 1);
    let row = &rows[0];
    assert_eq!(
        (&row["n_preserved_catalogs"], &row["n_condemned_catalogs"]),
        (&gc["catalogs_kept"], &gc["condemned_catalogs"])
    );
    assert_eq!(
        (&row["n_condemned_objects"], &row["sz_condemned_bytes"]),
        (&gc["condemned"]["objects"], &gc["condemned"]["bytes"])
    );
    assert_eq!(
        (&row["n_duplicate_delete_requests"], &row["success"], &row["gc_id"]),
        (&0.into(), &1.into(), &1.into())
    );

    let file = site.path("out.csv");
    site.publish(&["print-stats", "-t", "gc", "-s", ",", "-o", file.to_str().expect("UTF-8")]).ok();
    assert_eq!(fs::read_to_string(&file).expect("file"), sqlite(&database, "gc_statistics").replace('|', ","));
    site.publish(&["print-stats", "-t", "sqlite_master"]).fails(2);
    site.publish(&["print-stats", "--database", file.to_str().expect("UTF-8")]).fails(1);

    // A collection that fails has its row; one that is refused is none.
    let catalog = site.manifest_field('C');
    let object = site.storage().join("data").join(&catalog[..2]).join(catalog[2..].to_owned() + "C");
    let aside = fs::read(&object).expect("catalog");
    fs::remove_file(&object).expect("catalog");
    site.publish(&["gc", "-r", "0"]).fails(3);
    fs::write(&object, aside).expect("catalog");
    site.configure("CVMFS_GARBAGE_COLLECTION", "false");
    let last = site.publish(&["print-stats", "-t", "gc", "--json"]).json().as_array().expect("rows").last().cloned();
    assert_eq!(last.expect("a row")["success"], 0);
}

#[test]
fn databases_of_one_repository_are_merged() {
    let site = Site::with_repository(&["--gc"]);
    let database = site.spool().join("stats.db");
    let paths: Vec<String> =
        ["first.db", "all.db"].map(|name| site.path(name).to_str().expect("UTF-8").to_owned()).into();
    site.publish(&["mkdir", "/a"]).ok();
    fs::rename(&database, &paths[0]).expect("database");
    site.publish(&["mkdir", "/b"]).ok();
    site.publish(&["gc", "-r", "9"]).ok();
    let second = database.to_str().expect("UTF-8");
    let merged = site.publish(&["merge-stats", "--json", "-o", &paths[1], &paths[0], second]).json();
    assert_eq!(
        (&merged["publications"], &merged["collections"], &merged["name"]),
        (&2.into(), &1.into(), &NAME.into())
    );
    let rows = site.publish(&["print-stats", "--database", &paths[1], "--json"]).json();
    let numbers: Vec<(i64, i64)> = rows
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| (row["publish_id"].as_i64().unwrap(), row["revision"].as_i64().unwrap()))
        .collect();
    assert_eq!(numbers, [(1, 2), (2, 3)]);
    // The result can be what goes on.
    fs::copy(&paths[1], &database).expect("copy");
    site.publish(&["mkdir", "/c"]).ok();
    assert_eq!(site.publish(&["print-stats"]).ok().lines().count(), 4);

    site.publish(&["merge-stats", "-o", &paths[1], &paths[0]]).fails(2);
    let foreign = site.path("foreign");
    fs::File::create(&foreign).and_then(|mut file| file.write_all(b"precious")).expect("file");
    let foreign_text = foreign.to_str().expect("UTF-8");
    site.publish(&["merge-stats", "-o", foreign_text, &paths[0], second]).fails(4);
    site.publish(&["merge-stats", "-o", &paths[1], &paths[0], foreign_text]).fails(1);
    assert_eq!(fs::read(&foreign).expect("file"), b"precious");
    site.publish(&["merge-stats", "-o", "/nowhere/x.db", &paths[0], second]).fails(1);
}
