//! Who owns what the archives bring. Their entries belong to 1000:2000.

use super::support::{Repo, Tar};

fn owners(arguments: &[&str]) -> [String; 2] {
    let repo = Repo::new();
    repo.accepts(&Tar::new().file("implied/file", b"x").end(), arguments);
    let list = repo.list();
    ["implied/file", "implied"].map(|path| list[path].owner.clone())
}

#[test]
fn everything_belongs_to_the_repository_unless_said_otherwise() {
    let user = format!("{}:{}", rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    assert_eq!(owners(&[]), [user.clone(), user.clone()]);
    assert_eq!(owners(&["--uid", "7", "--gid", "8"]), ["7:8", "7:8"]);
    assert_eq!(owners(&["--keep-owner"]), ["1000:2000", &user]);
}

#[test]
fn maps_say_what_becomes_of_owners() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (named, others) = (file("named", "# ours\n1000 5\n* 6\n"), file("others", "1 2\n* 9\n"));
    let user = rustix::process::getuid().as_raw();
    assert_eq!(owners(&["--uid-map", &named, "--gid-map", &others]), ["5:9".to_owned(), owners(&[])[1].clone()]);
    assert_eq!(owners(&["--uid", "3", "--gid-map", &named])[0], "3:6");
    assert_eq!(owners(&["--uid-map", &others, "--gid", "4"]), ["9:4".to_owned(), format!("{user}:4")]);

    let repo = Repo::new();
    let bad = file("bad", "1000 5\nroot 0\n");
    repo.fails(&["--tar", "/dev/null", "--uid-map", &bad], 1, &[&bad, "line 2"]);
}
