//! Transactions: what a sequence of commands does to a repository is what the same sequence does to a directory, in one
//! revision, or not at all.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Done, Listing, Site, make_tree, pack, run, source_listing};

/// A site whose repository and whose directory `source` have the same rich tree.
fn rich_site() -> Site {
    let site = Site::with_repository(&[]);
    make_tree("rich", &site.path("source"), &[]);
    site.publish(&["publish", "--from", site.path("source").to_str().expect("UTF-8"), "--tag", "start"]).ok();
    site
}

/// A listing without the times of what commands make or touch on their way: directories and symbolic links.
fn timeless(listing: &Listing) -> Listing {
    let strip = |line: &String| {
        let mut fields: Vec<&str> = line.split(' ').collect();
        if ["d", "l"].contains(&fields[0]) {
            fields[4] = "-";
        }
        fields.join(" ")
    };
    Listing(listing.0.iter().map(|(path, line)| (path.clone(), strip(line))).collect())
}

/// Runs a shell command in the directory `source`.
fn shell(site: &Site, command: &str) {
    run(Command::new("bash").args(["-euc", command]).current_dir(site.path("source"))).ok();
}

fn revision(site: &Site) -> u64 {
    site.manifest_field('S').parse().expect("a number")
}

#[test]
fn many_commands_become_one_revision_with_the_effect_of_coreutils() {
    let site = rich_site();
    shell(
        &site,
        "mkdir -p w/a/b w/n; echo one >w/a/one; ln w/a/one w/a/two; ln -s one w/a/link; echo x >w/n/x; >w/n/.cvmfscatalog",
    );
    site.publish(&["publish", "--from", site.path("source").to_str().expect("UTF-8")]).ok();
    let before = (revision(&site), site.manifest());

    assert_eq!(site.publish(&["transaction", "--json"]).json()["revision"].as_u64(), Some(before.0));
    let publish = |arguments: &[&str]| site.publish(arguments).ok();
    for (ours, theirs) in [
        ("cp /w /copy", "cp -a w copy"),
        ("mkdir -p -m 700 /w/p/q", "mkdir -p w/p; mkdir -m 700 w/p/q"),
        ("mv /w/a/one /w/a/renamed", "mv w/a/one w/a/renamed"),
        ("mv /w/a/link /w/p/moved", "mv w/a/link w/p/moved"),
        ("mv /w/n /w/p/q/n", "mv w/n w/p/q/n"),
        ("ln -s ../a /w/p/up", "ln -s ../a w/p/up"),
        ("ln /w/p/q/n/x /w/p/q/n/y", "ln w/p/q/n/x w/p/q/n/y"),
        ("chmod 640 /w/a/two", "chmod 640 w/a/two"),
        ("chmod -R go-rwx /copy", "chmod -R go-rwx copy"),
        ("chown -R 7:8 /copy/a", "chown -Rh 7:8 copy/a"),
        ("rm /w/p/up", "rm w/p/up"),
        ("cp /w/p/q /w/again", "cp -a w/p/q w/again"),
        ("rm -r /w/p/q", "rm -r w/p/q"),
        ("cp --from-tag start / /start", "true"),
        ("rm -r /start", "true"),
    ] {
        let arguments: Vec<&str> = ours.split(' ').collect();
        assert!(publish(&arguments).contains("added to the open transaction"), "{ours}");
        shell(&site, theirs);
    }
    // A tarball and a directory come into it, too.
    make_tree("many", &site.path("more"), &["30"]);
    pack(&site.path("more"), &site.path("more.tar"), &["."]);
    assert_eq!(
        site.ingest_tar("more.tar", &["--base-dir", "tar", "--transaction", "--catalog"])["revision"],
        serde_json::Value::Null
    );
    let more = site.path("more");
    publish(&["publish", "--from", more.to_str().expect("UTF-8"), "--base-dir", "dir", "--transaction"]);
    // It sees what is pending: the same once more changes nothing, something else takes away what was added.
    shell(&site, "cp -a ../more tar; cp -a ../more dir; >tar/.cvmfscatalog; rm -r dir/0*");
    shell(&site, "rm -r ../more/0*");
    publish(&["publish", "--from", more.to_str().expect("UTF-8"), "--base-dir", "dir", "--transaction"]);

    assert!(site.manifest() == before.1, "nothing is published yet");
    site.check(&[]);
    let pending = publish(&["diff", "--pending"]);
    for line in ["+ /copy/a/one", "- /w/n", "+ /tar", "+ /w/a/renamed"] {
        assert!(pending.lines().any(|found| found == line), "{line}: {pending}");
    }

    let outcome = site.publish(&["publish", "--tag", "done", "--json"]).json();
    assert_eq!((outcome["revision"].as_u64(), outcome["tag"].as_str()), (Some(before.0 + 1), Some("done")));
    site.check_chunks();
    let mut found = site.list(&[]).below("");
    // Its time is that of the commit.
    found.take(|path| path == "tar/.cvmfscatalog");
    let mut expected = source_listing(&site.path("source"));
    expected.take(|path| path == "tar/.cvmfscatalog");
    timeless(&found).assert_is(&timeless(&expected));
    site.publish(&["publish"]).fails(1);
}

#[test]
fn an_aborted_transaction_leaves_nothing() {
    let site = rich_site();
    let (manifest, listing) = (site.manifest(), site.list(&[]));
    site.publish(&["transaction"]).ok();
    site.publish(&["mkdir", "/new"]).ok();
    assert!(site.publish(&["transaction"]).fails(4).contains("opened one at"));
    assert!(site.publish(&["info"]).ok().contains("transaction     opened by "));
    let start = Instant::now();
    site.publish(&["transaction", "-t", "1"]).fails(4);
    assert!(start.elapsed() >= Duration::from_secs(1));
    // With 0 it waits until the other one ends.
    let hook = format!("transaction_before_hook() {{ >{}; }}", site.path("waits").display());
    fs::write(site.root().join("etc/cvmfs/cvmfs_server_hooks.sh"), hook).expect("hooks");
    let mut waiting = site.command("cvmfs-publish").args(["transaction", "-t", "0"]).spawn().expect("transaction");
    while !site.path("waits").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(site.publish(&["abort"]).ok().contains("1 changes forgotten"));
    assert!(waiting.wait().expect("transaction").success());
    site.publish(&["abort"]).ok();
    site.publish(&["abort"]).fails(1);
    assert!(site.manifest() == manifest);
    site.list(&[]).assert_is(&listing);
    site.publish(&["transaction"]).ok();
    assert_eq!(site.publish(&["publish", "--json"]).json()["changed"].as_bool(), Some(false));
    assert!(site.manifest() == manifest);
}

#[test]
fn a_damaged_transaction_can_be_aborted() {
    let site = rich_site();
    let manifest = site.manifest();
    let file = |name: &str| site.spool().join("transaction").join(name);
    fs::create_dir(file("")).expect("directory");
    fs::write(file("remains"), "").expect("write");
    assert!(site.publish(&["transaction"]).fails(4).contains("abort it first"));
    assert!(site.publish(&["abort"]).stderr.contains("damaged"));
    for (name, bytes) in [("about.json", Some("garbage")), ("changes.db", Some("garbage")), ("changes.db", None)] {
        site.publish(&["transaction"]).ok();
        fs::remove_file(file(name)).expect("remove");
        if let Some(bytes) = bytes {
            fs::write(file(name), bytes).expect("write");
        }
        for command in [&["mkdir", "/a"][..], &["publish"]] {
            let done = site.publish(command);
            assert!([Some(1), Some(3)].contains(&done.status.code()) && done.stderr.contains(name), "{}", done.stderr);
        }
        let done = site.publish(&["abort"]);
        assert!(done.stderr.contains("damaged"), "{}", done.stderr);
        done.ok();
    }
    assert!(site.manifest() == manifest);
    site.publish(&["mkdir", "/a"]).ok();
    site.check(&[]);
}

#[test]
fn without_a_transaction_each_command_is_a_revision() {
    let site = rich_site();
    let start = revision(&site);
    site.publish(&["mkdir", "/a", "/b", "--tag", "two"]).ok();
    site.publish(&["rm", "-r", "/b"]).ok();
    assert_eq!(revision(&site), start + 2);
    site.check(&[]);
    for (arguments, fragment) in [
        (&["rm", "/none"][..], "there is nothing"),
        (&["rm", "/a"], "directory"),
        (&["rm", "-r", "/"], "root"),
        (&["mkdir", "/a"], "something already"),
        (&["mkdir", "/x/y"], "no directory"),
        (&["mv", "/a", "/a/b"], "in /a itself"),
        (&["mv", "/none", "/c"], "nothing"),
        (&["cp", "/a", "/x/y"], "no directory"),
        (&["cp", "/a", "/a"], "something already"),
        (&["ln", "/none", "/c"], "does not exist"),
        (&["ln", "-s", "x", "/a"], "something already"),
        (&["ln", "/sizes/1", "/sizes/text"], "something already"),
        (&["ln", "/a", "/c"], "directory"),
        (&["chmod", "644", "/none"], "nothing"),
        (&["cp", "--from-tag", "none", "/a", "/c"], "none"),
    ] {
        let said = site.publish(arguments).fails(1);
        assert!(said.contains(fragment), "{arguments:?}: {said}");
    }
    site.publish(&["chmod", "9", "/a"]).fails(2);
    site.publish(&["rm", "-f", "/none"]).ok();
    assert_eq!(revision(&site), start + 2);
}

#[test]
fn others_publish_beside_an_open_transaction() {
    let site = rich_site();
    let put_target = |content: &str| {
        fs::write(site.path("target"), content).expect("write");
        pack(site.temp.path(), &site.path("target.tar"), &["target"]);
        site.ingest_tar("target.tar", &[]);
    };
    put_target("old");
    site.publish(&["transaction"]).ok();
    // What it names is found when it is published, not when something is added to it or it is looked at.
    site.publish(&["ln", "/target", "/link"]).ok();
    site.publish(&["mkdir", "/mine"]).ok();
    site.publish(&["diff", "--pending"]).ok();
    put_target("new");
    site.publish(&["ln", "-s", "x", "/both"]).ok();
    make_tree("many", &site.path("more"), &["10"]);
    pack(&site.path("more"), &site.path("more.tar"), &["."]);
    site.ingest_tar("more.tar", &["--base-dir", "theirs"]);
    let said = site.publish(&["publish", "--from", site.path("more").to_str().expect("UTF-8")]).fails(1);
    assert!(said.contains("a transaction is open"), "{said}");
    let copy = |from: &str, to: &str| run(Command::new("cp").arg("-a").arg(site.path(from)).arg(site.path(to))).ok();
    copy("site", "saved");
    site.publish(&["publish"]).ok();
    site.check(&[]);
    let listing = site.list(&[]);
    assert!(["mine", "both", "theirs"].iter().all(|path| listing.0.contains_key(*path)));
    assert_eq!(site.publish(&["cat", "/link"]).ok(), "new");

    // The same again, but the other one made the same path.
    fs::remove_dir_all(site.root()).expect("remove");
    copy("saved", "site");
    fs::write(site.path("both"), "a file").expect("write");
    pack(site.temp.path(), &site.path("both.tar"), &["both"]);
    site.ingest_tar("both.tar", &[]);
    let manifest = site.manifest();
    assert!(site.publish(&["publish"]).fails(4).contains("/both"));
    assert!(site.manifest() == manifest);
    // It is still open.
    site.publish(&["rm", "/both"]).fails(4);
    site.publish(&["abort"]).ok();

    // What the other one puts into a directory does not go with it; what both remove is gone.
    site.publish(&["transaction"]).ok();
    site.publish(&["rm", "-r", "/theirs"]).ok();
    site.ingest_tar("both.tar", &["--base-dir", "theirs"]);
    assert!(site.publish(&["publish"]).fails(4).contains("/theirs"));
    site.ingest(&["--delete", "theirs"]).json();
    site.publish(&["publish"]).ok();
    assert!(!site.list(&[]).0.contains_key("theirs"));
}

#[test]
fn what_a_killed_command_added_is_not_in_the_transaction() {
    let site = rich_site();
    make_tree("many", &site.path("more"), &["3000"]);
    pack(&site.path("more"), &site.path("more.tar"), &["."]);
    let tarball = site.path("more.tar");
    let arguments = |base: &str| {
        ["--tar", tarball.to_str().expect("UTF-8"), "--base-dir", base, "--transaction", "--no-index"]
            .map(str::to_owned)
    };
    site.publish(&["transaction"]).ok();
    site.publish(&["mkdir", "/kept"]).ok();
    let start = Instant::now();
    run(site.ingest_command(&[]).args(arguments("whole"))).json();
    let duration = start.elapsed();
    for share in [0.2, 0.5, 0.8, 0.95] {
        let mut command = site.ingest_command(&[]);
        command.args(arguments("killed")).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("ingest");
        std::thread::sleep(duration.mul_f64(share));
        // Another command waits for it, or goes on after it.
        child.kill().expect("kill");
        let finished = child.wait().expect("ingest").success();
        let pending: Done = site.publish(&["diff", "--pending"]);
        let pending = pending.ok();
        assert!(pending.contains("+ /kept") && pending.contains("+ /whole/"), "{pending}");
        // All of it may be there though the command did not live to say so, but never a part.
        let added = |base: &str| pending.matches(&format!("+ /{base}/")).count();
        assert!(!finished || added("killed") > 0);
        if added("killed") > 0 {
            assert_eq!(added("killed"), added("whole"));
            break;
        }
    }
    site.publish(&["publish"]).ok();
    site.check(&[]);
    let listing = site.list(&[]);
    listing.below("whole").assert_is(&source_listing(&site.path("more")));
    assert!(listing.0.contains_key("kept"));
}

#[test]
fn hooks_run_around_what_they_are_for() {
    let site = rich_site();
    let log = site.path("log");
    let functions: String = ["transaction", "publish", "abort"]
        .iter()
        .flat_map(|operation| ["before", "after"].map(|when| format!("{operation}_{when}")))
        .map(|name| format!("{name}_hook() {{ echo {name} $1 >>{}; }}\n", log.display()))
        .collect();
    fs::write(site.root().join("etc/cvmfs/cvmfs_server_hooks.sh"), functions).expect("hooks");
    site.publish(&["transaction"]).ok();
    site.publish(&["mkdir", "/a"]).ok();
    site.publish(&["abort"]).ok();
    site.publish(&["transaction"]).ok();
    site.publish(&["publish"]).ok();
    site.publish(&["mkdir", "/b"]).ok();
    let said = || fs::read_to_string(&log).expect("log").replace(&format!(" {}", crate::support::NAME), "");
    let words = |said: &str| said.split_whitespace().collect::<Vec<_>>().join(" ");
    let expected = "transaction_before transaction_after abort_before abort_after transaction_before transaction_after \
                    publish_before publish_after publish_before publish_after";
    assert_eq!(words(&said()), expected);

    // Directories and tarballs are published like anything else; what makes no revision is not publishing.
    let before = said();
    pack(&site.path("source"), &site.path("more.tar"), &["."]);
    let source = site.path("source");
    let from = ["publish", "--from", source.to_str().expect("UTF-8"), "--base-dir", "from"];
    site.publish(&from).ok();
    site.publish(&[&from[..], &["--dry-run", "--checksum"]].concat()).ok();
    site.ingest_tar("more.tar", &["--base-dir", "tar"]);
    site.publish(&["transaction"]).ok();
    site.ingest_tar("more.tar", &["--base-dir", "again", "--transaction"]);
    site.publish(&["mkdir", "/c"]).ok();
    site.publish(&["abort"]).ok();
    let expected = "publish_before publish_after publish_before publish_after transaction_before transaction_after \
                    abort_before abort_after";
    assert_eq!(words(&said()[before.len()..]), expected);

    // Programs are told the revision: the newest one before, the one that was made after.
    let programs = site.server_conf().with_file_name("hooks");
    fs::create_dir(&programs).expect("hooks");
    for when in ["before", "after"] {
        let program = programs.join(format!("publish-{when}"));
        fs::write(&program, format!("#!/bin/sh\necho $1 $2 >{}\n", site.path(when).display())).expect("hook");
        run(Command::new("chmod").arg("755").arg(&program)).ok();
    }
    let newest = revision(&site);
    site.publish(&["mkdir", "/d"]).ok();
    for (when, revision) in [("before", newest), ("after", newest + 1)] {
        let told = fs::read_to_string(site.path(when)).expect("the hook ran");
        assert_eq!(told, format!("{} {revision}\n", crate::support::NAME));
    }

    fs::write(site.root().join("etc/cvmfs/cvmfs_server_hooks.sh"), "publish_before_hook() { false; }").expect("hooks");
    let manifest = site.manifest();
    assert!(site.publish(&["mkdir", "/e"]).fails(1).contains("publish_before_hook"));
    assert!(site.manifest() == manifest);
    // What they say is not what the command prints.
    fs::write(site.root().join("etc/cvmfs/cvmfs_server_hooks.sh"), "publish_before_hook() { echo said; }")
        .expect("hooks");
    let done = site.publish(&["mkdir", "/e", "--json"]);
    assert!(done.stderr.contains("said"), "{}", done.stderr);
    assert_eq!(done.json()["changed"].as_bool(), Some(true));
}

#[test]
fn a_notification_server_is_told_of_each_new_manifest() {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    let site = rich_site();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listener");
    let url = format!("http://{}/api/v1/", listener.local_addr().expect("address"));
    site.configure("CVMFS_NOTIFICATION_SERVER", &url);
    let answer = move |status: &str| {
        let (mut stream, _) = listener.accept().expect("connection");
        let mut reader = BufReader::new(stream.try_clone().expect("stream"));
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let start = head.len();
            reader.read_line(&mut head).expect("line");
            if let Some(value) = head[start..].to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a number");
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("body");
        // Whoever was told may have lost patience by now.
        write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 15\r\n\r\n{{\"status\":\"ok\"}}").ok();
        (head, body)
    };
    let server = std::thread::spawn(move || (answer("200 OK"), answer("500 Internal Server Error")));
    site.publish(&["mkdir", "/a"]).ok();
    let told = site.manifest();
    // It does not take the notice: a warning, and the revision is out all the same.
    let refused = |path: &str| {
        let done = site.publish(&["mkdir", path]);
        assert!(done.stderr.contains("nobody is told"), "{}", done.stderr);
        done.ok();
    };
    refused("/b");
    let ((head, body), _) = server.join().expect("server");
    assert!(head.starts_with("POST /api/v1/notifications/publish HTTP/1.1\r\n"), "{head}");
    let notice: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!((notice["version"].as_u64(), notice["type"].as_str()), (Some(1), Some("activity")));
    assert_eq!(notice["repository"], crate::support::NAME);
    let manifest = notice["manifest"].as_str().expect("Base64");
    assert_eq!(openssl::base64::decode_block(manifest).expect("Base64"), told);
    // Then nobody listens any more.
    refused("/c");
}
