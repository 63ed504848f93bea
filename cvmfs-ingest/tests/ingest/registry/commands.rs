//! The commands, as people type them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use serde_json::json;

use super::servers::{BASIC, PASSWORD, PLAIN, USER};
use super::support::{SAMPLE, SCRATCH, as_json, push};

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cvmfs-ingest"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn write(name: &str, text: &str) -> String {
    let file = SCRATCH.path().join(name);
    fs::write(&file, text).unwrap();
    file.display().to_string()
}

#[test]
fn names_come_apart() {
    let name = "https://registry.example.org/team/app:1.0";
    let csv = stdout(&run(&["check-image-syntax", "-z", name], &[]));
    assert_eq!(
        csv,
        "name,user,scheme,registry,repository,tag,digest,is_thin\n\
         https://registry.example.org/team/app:1.0,,https,registry.example.org,team/app,1.0,,false\n"
    );
    let json = as_json(stdout(&run(&["--json", "check-image", "r/a:1.*"], &[])).as_bytes());
    assert_eq!((&json["tag"], &json["is_pattern"]), (&json!("1.*"), &json!(true)));
    let table = stdout(&run(&["check-image", name], &[]));
    assert!(table.contains("repository   team/app\n"), "{table}");
    let wrong = run(&["check-image", "r/../a:1"], &[]);
    assert!(!wrong.status.success() && wrong.stdout.is_empty());
}

#[test]
fn the_flat_command_does_not_mix_with_others() {
    let mixed = run(&["--tar", "x.tar", "check-image", "r/a:1"], &[]);
    let said = String::from_utf8(mixed.stderr).unwrap();
    assert!(mixed.status.code() == Some(2) && said.contains("'--tar <FILE>' cannot stand before"), "{said}");
    assert_eq!(run(&[], &[]).status.code(), Some(2));
    // Options that all commands have may stand before; variables are no arguments.
    stdout(&run(&["--root", "/nowhere", "check-image", "r/a:1"], &[("CVMFS_REPO", "a.example.org")]));
}

#[test]
fn a_wish_list_of_two_registries() {
    let (plain, basic) = (&PLAIN.address, &BASIC.address);
    for tag in ["1.0", "1.1", "2.0"] {
        push(&SAMPLE.name(), plain, &format!("wish/app:{tag}"), &[]);
    }
    push(&SAMPLE.name(), basic, "wish/app:3.0", &[]);
    let recipe = write(
        "wish.yaml",
        &format!(
            "version: 1\ninput:\n  - 'http://{plain}/wish/app:1.*'\n  - 'http://{plain}/wish/app:1.1'\n  - '{basic}/wish/app:?.0'\n"
        ),
    );
    // The password is with a helper, a program that is asked.
    let helper = write(
        "docker-credential-cvmfs-test",
        &format!(
            "#!/bin/sh\nread -r server\ncase $1:$server in\n  get:{basic}) echo '{{\"ServerURL\":\"x\",\"Username\":\"{USER}\",\
             \"Secret\":\"{PASSWORD}\"}}' ;;\n  *) echo 'credentials not found in native keychain'; exit 1 ;;\nesac\n"
        ),
    );
    fs::set_permissions(helper, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", SCRATCH.path().display());
    let expected = format!("http://{plain}/wish/app:1.0\nhttp://{plain}/wish/app:1.1\nhttps://{basic}/wish/app:3.0\n");
    for (file, text) in [
        ("helper-one.json", json!({"credHelpers": {basic.clone(): "cvmfs-test"}})),
        ("helper-all.json", json!({"credsStore": "cvmfs-test", "auths": {basic.clone(): {}}})),
    ] {
        let file = write(file, &text.to_string());
        let arguments = ["expand", "--plain-http", basic, "--authfile", &file, &recipe];
        assert_eq!(stdout(&run(&arguments, &[("PATH", &path)])), expected);
    }

    let missing = run(&["expand", "--authfile", "/nowhere", &recipe], &[]);
    assert!(missing.stdout.is_empty() && String::from_utf8(missing.stderr).unwrap().contains("/nowhere"));

    // Without: the rest is listed, and the exit code tells.
    let output = run(&["expand", "--json", "--plain-http", basic, &recipe], &[]);
    assert_eq!(output.status.code(), Some(1));
    let report = as_json(&output.stdout);
    assert_eq!(report["images"].as_array().unwrap().len(), 2);
    assert_eq!(report["faults"][0]["line"], 5);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("wish.yaml:5: ") && said.contains("HTTP status 401"), "{said}");
}
