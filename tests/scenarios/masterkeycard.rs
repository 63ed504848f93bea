//! The master key in a token that speaks PKCS#11: SoftHSM, which is one in software.

use std::fs;
use std::process::Command;

use crate::service::Service;
use crate::support::{Done, NAME, Site, run};

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "4711";

/// A site whose commands find an empty token.
fn site_with_token() -> Site {
    let mut site = Site::empty(NAME);
    let (tokens, configuration) = (site.path("tokens"), site.path("softhsm2.conf"));
    fs::create_dir(&tokens).expect("a directory");
    let text = format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display());
    fs::write(&configuration, text).expect("a file");
    site.environment = vec![
        ("SOFTHSM2_CONF", configuration.to_str().expect("UTF-8").to_owned()),
        ("CVMFS_MASTERKEYCARD_MODULE", MODULE.to_owned()),
        ("CVMFS_MASTERKEYCARD_PIN", PIN.to_owned()),
    ];
    add_token(&site, "card");
    site.mkfs(&[]);
    site
}

fn add_token(site: &Site, label: &str) {
    let mut init = Command::new("softhsm2-util");
    init.args(["--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "12345678"]);
    run(init.envs(site.environment.iter().map(|(key, value)| (key, value)))).ok();
}

fn card(site: &Site, arguments: &[&str]) -> Done {
    site.publish(&[&["masterkeycard"], arguments].concat())
}

fn public_key(site: &Site) -> String {
    fs::read_to_string(site.key_file("pub")).expect("a public key")
}

/// Days between the first two lines of the whitelist.
fn whitelist_days(site: &Site) -> i64 {
    let whitelist = fs::read(site.storage().join(".cvmfswhitelist")).expect("whitelist");
    let text = String::from_utf8_lossy(&whitelist);
    let seconds = |line: &str| -> i64 {
        let (date, time) = line.trim_start_matches('E').split_at(8);
        let time = format!("{date} {}:{}:{} UTC", &time[..2], &time[2..4], &time[4..]);
        run(Command::new("date").args(["+%s", "-d", &time])).ok().trim().parse().expect("a number")
    };
    let mut lines = text.lines();
    let issued = seconds(lines.next().expect("a line"));
    (seconds(lines.next().expect("a line")) - issued) / 86_400
}

#[test]
fn a_master_key_moves_into_a_token() {
    let site = site_with_token();
    let key = fs::read(site.key_file("masterkey")).expect("a master key");
    assert!(card(&site, &["-a"]).ok().contains("\"card\" is available"));
    assert!(card(&site, &["-k"]).fails(1).contains("not found"));
    assert!(card(&site, &["-s"]).ok().contains(NAME));
    card(&site, &["-k"]).ok();
    assert_eq!(card(&site, &["-r"]).ok(), public_key(&site));
    // What cannot be undone is to be said.
    for action in [["-s"], ["-d"], ["-c"]] {
        assert!(card(&site, &action).fails(1).contains("--force"));
    }
    card(&site, &["-s", "-f"]).ok();

    let public = public_key(&site);
    let converted = card(&site, &["--json", "-c", "-f", NAME]).json()["converted"][0].take();
    assert_eq!((&converted["new_public_key"], &converted["key_file_removed"]), (&false.into(), &true.into()));
    assert!(!site.key_file("masterkey").exists());
    assert_eq!((public_key(&site), whitelist_days(&site)), (public, 7));
    site.check(&[]);

    // From now on the token signs; without it nobody does.
    site.publish(&["resign"]).ok();
    site.publish(&["resign", "--days", "3"]).ok();
    assert_eq!(whitelist_days(&site), 3);
    site.publish(&["resign", "--new-key"]).ok();
    site.check(&[]);
    let mut without = site.command("cvmfs-publish");
    assert!(run(without.arg("resign").env_remove("CVMFS_MASTERKEYCARD_MODULE")).fails(1).contains("masterkey"));

    // A key file goes before the token; without the token's key it is nothing else than before.
    fs::write(site.key_file("masterkey"), key).expect("a master key");
    card(&site, &["-d", "-f"]).ok();
    assert!(card(&site, &["-r"]).fails(1).contains("not found"));
    site.publish(&["resign"]).ok();
    assert_eq!(whitelist_days(&site), 30);
    site.check(&[]);
}

#[test]
fn several_repositories_have_the_key_of_one_token() {
    let site = site_with_token();
    card(&site, &["-s", NAME]).ok();
    site.publish(&["mkfs", "other.example.org"]).ok();
    let other = |extension: &str| site.root().join(format!("etc/cvmfs/keys/other.example.org.{extension}"));
    assert_ne!(fs::read_to_string(other("pub")).expect("a key"), public_key(&site));
    let converted = card(&site, &["--json", "-c", "-f", "other.example.org"]).json()["converted"][0].take();
    assert_eq!((&converted["new_public_key"], &converted["key_file_removed"]), (&true.into(), &true.into()));
    assert_eq!(fs::read_to_string(other("pub")).expect("a key"), public_key(&site));
    site.publish(&["check", "--repo", "other.example.org"]).ok();
    site.publish(&["resign", "--repo", "other.example.org"]).ok();
    // The other key of the token is not the one.
    site.publish(&["mkfs", "third.example.org"]).ok();
    fs::remove_file(site.root().join("etc/cvmfs/keys/third.example.org.masterkey")).expect("a key");
    assert!(site.publish(&["resign", "--repo", "third.example.org"]).fails(1).contains("master key of the repository"));
}

#[test]
fn a_wrong_pin_is_tried_once() {
    let site = site_with_token();
    card(&site, &["-s"]).ok();
    fs::remove_file(site.key_file("masterkey")).expect("a key");
    let wrong = |arguments: &[&str]| {
        let mut command = site.command("cvmfs-publish");
        run(command.args(arguments).env("CVMFS_MASTERKEYCARD_PIN", "0815")).fails(1)
    };
    site.publish(&["resign", "--days", "3"]).ok();
    assert!(wrong(&["resign"]).contains("the PIN is wrong"));
    // Nobody is there to see that, so a service does not even try the right one.
    let renewing = ["--resign-when-days-left", "5", "--resign-days", "9"];
    let service = Service::start(&site, "cvmfs-publish", &renewing);
    service.wait_for("refusal", |service| service.log().contains("a wrong PIN was used last").then_some(()));
    assert!(service.end().success() && whitelist_days(&site) == 3);
    // By hand it may be typed again; then the service may, too.
    site.publish(&["resign", "--days", "3"]).ok();
    let service = Service::start(&site, "cvmfs-publish", &renewing);
    service.wait_for("signature", |_| (whitelist_days(&site) == 9).then_some(()));
    assert!(service.end().success());
    // Which of two tokens is meant has to be said.
    add_token(&site, "second");
    assert!(site.publish(&["resign"]).fails(1).contains("several tokens"));
    site.publish(&["resign", "--token", "card"]).ok();
    assert!(site.publish(&["resign", "--token", "third"]).fails(1).contains("not found"));
    assert!(card(&site, &["-a", "--module", "/nowhere.so"]).fails(1).contains("/nowhere.so"));
}
