//! Administrative commands, judged by the reference's tools: they go on with what we took over, and we with theirs.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::reference::{Reference, StatisticsDirectory, text};
use crate::support::{NAME, Site, make_tree, pack, run};

#[test]
fn both_go_on_with_a_repository_that_was_imported() {
    let Some(reference) = Reference::find() else { return };
    let _statistics = StatisticsDirectory::make();
    let site = Site::with_repository(&["--gc"]);
    make_tree("many", &site.path("source"), &["30"]);
    pack(&site.path("source"), &site.path("many.tar"), &["."]);
    let tarball = text(&site.path("many.tar"));
    site.ingest_tar("many.tar", &["--base-dir", "ours", "--catalog"]);
    {
        let server = site.serve();
        reference.ingest(&site, &server, "first", &["-T", &tarball, "-B", "theirs"]);
    }
    // What they published last is taken over, with the keys, and then with new ones.
    for options in [&[][..], &["--new-keys"]] {
        site.publish(&["rmfs", "--keep-storage", NAME]).ok();
        site.publish(&[&["import", NAME], options].concat()).ok();
        let server = site.serve();
        reference.check(&site, &server);
        let description = site.path("description.json");
        fs::write(&description, format!("{{\"description\": \"{}\"}}", options.len())).expect("description");
        site.publish(&["update-repoinfo", "--file", &text(&description)]).ok();
        reference.check(&site, &server);
        let shown = reference.swissknife(&["info", "-r", &server.repository(NAME), "-M"]);
        assert_eq!(shown.trim(), fs::read_to_string(&description).expect("description"));
        let place = format!("theirs-{}", options.len());
        reference.ingest(&site, &server, &place, &["-T", &tarball, "-B", &place]);
        reference.check(&site, &server);
        site.ingest_tar("many.tar", &["--base-dir", &format!("ours-{}", options.len())]);
        reference.check(&site, &server);
        site.publish(&["check", "--data"]).ok();
    }
    let mounted = reference.mount(&site, &site.serve(), "").listing();
    let top: Vec<&String> = mounted.0.keys().filter(|path| !path.contains('/')).collect();
    assert_eq!(top, ["ours", "ours-0", "ours-1", "theirs", "theirs-0", "theirs-1"]);
}

/// Calls a function of the reference's server script in a shell.
fn their_script(reference: &Reference, call: &str, directory: &Path) {
    let script = reference.prefix.join("usr/bin/cvmfs_server");
    // The functions without what runs when the script is started.
    let text = format!(
        "check_parameter_count() {{ :; }}; eval \"$(sed -n '/^clean_up()/,/^}}/p; /^cvmfs_server_merge/,/^}}/p' {})\"; {call}",
        script.display()
    );
    run(Command::new("bash").args(["-c", &text]).current_dir(directory)).ok();
}

#[test]
fn both_merge_the_same_statistics() {
    let Some(reference) = Reference::find() else { return };
    let site = Site::with_repository(&["--gc"]);
    let database = site.spool().join("stats.db");
    for (number, directory) in ["/a", "/b"].iter().enumerate() {
        site.publish(&["mkdir", directory]).ok();
        site.publish(&["gc", "-r", "0", "--grace-period", "0"]).ok();
        fs::rename(&database, site.path(&format!("{number}.db"))).expect("database");
    }
    let files = [text(&site.path("0.db")), text(&site.path("1.db"))];
    their_script(
        &reference,
        &format!("cvmfs_server_merge_stats -o theirs.db {} {}", files[0], files[1]),
        &site.path(""),
    );
    let ours = text(&site.path("ours.db"));
    site.publish(&["merge-stats", "-o", &ours, &files[0], &files[1]]).ok();
    for table in ["publish_statistics", "gc_statistics"] {
        let rows = |database: &str| site.publish(&["print-stats", "-t", table, "--database", database]).ok();
        let theirs = rows(&text(&site.path("theirs.db")));
        assert_eq!(theirs.lines().count(), 3);
        assert_eq!(rows(&ours), theirs);
    }
}
