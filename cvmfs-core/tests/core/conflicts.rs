//! What becomes of changes when others publish before they are committed: they are applied to the new head, or it is a
//! conflict that names the path, and the head stays as the others made it.

use crate::model::{MARKER, NOW, Repo, marker, metadata, path};
use cvmfs_core::catalog::Row;
use cvmfs_core::change::{Change, Content, Metadata};
use cvmfs_core::error::Error;
use cvmfs_core::repository::Selector;

/// What others do, what we do, and what is there in the end, or the path that collides.
type Case<'a> = (&'a str, &'a str, Result<&'a str, &'a str>);

/// What each case begins with.
const START: &str = "d/, d/e/, d/e/f=1, d/g=22, h=333, n/, n/deep/";

/// A change below a directory, with paths as text: `d/` and `d/ 711` for a directory, `d/?` for one that is made unless it
/// is there, `f=text` for a file, `a->b` for a hard link, `-f` for what goes, `*d` for a directory whose content goes.
fn change(repo: &Repo, top: &str, text: &str) -> Change {
    let below = |at: &str| path(&format!("{top}/{at}"));
    let put = |at: &str, metadata: Metadata, content| Change::Put { path: below(at), metadata, content };
    if let Some(at) = text.strip_prefix('-') {
        Change::Remove { path: below(at) }
    } else if let Some(at) = text.strip_prefix('*') {
        Change::Clear { path: below(at) }
    } else if let Some(at) = text.strip_suffix("/?") {
        Change::Ensure { path: below(at), metadata: metadata(0o755) }
    } else if let Some(at) = text.strip_suffix("/ 711") {
        put(at, metadata(0o711), Content::Directory)
    } else if let Some(at) = text.strip_suffix('/') {
        put(at, metadata(0o755), Content::Directory)
    } else if let Some((at, target)) = text.split_once("->") {
        Change::Link { path: below(at), target: below(target) }
    } else {
        let (at, content) = text.split_once('=').unwrap();
        put(at, metadata(0o644), repo.text(content))
    }
}

fn changes(repo: &Repo, top: &str, list: &str) -> Vec<Change> {
    list.split(", ").map(|text| change(repo, top, text)).collect()
}

/// What is below a directory, with permissions of directories and sizes of files.
fn shown(repo: &Repo, top: &str) -> String {
    let mut tree = repo.publisher.head(NOW).unwrap().tree(&Selector::Head).unwrap();
    let mut found = Vec::new();
    let top = path(top);
    tree.walk(&top, &mut |at, Row { entry, .. }| {
        if *at != top && at.name() != MARKER.as_bytes() {
            let at = at.to_string().splitn(3, '/').last().unwrap().to_owned();
            let size = entry.size_column();
            found.push(if entry.is_directory() {
                format!("{at}/ {:o}", entry.permissions)
            } else {
                format!("{at} {size}")
            });
        }
        Ok(())
    })
    .unwrap();
    found.join(", ")
}

/// Each case has a directory of its own, without and with a nested catalog in it; ours are made for the tree before theirs.
fn check(cases: &[Case<'_>]) {
    let repo = Repo::new(|_| ());
    let cases: Vec<_> =
        [false, true].into_iter().flat_map(|nested| cases.iter().map(move |case| (nested, case))).collect();
    let (mut start, mut theirs) = (Vec::new(), Vec::new());
    for (number, (is_nested, case)) in cases.iter().enumerate() {
        let top = number.to_string();
        start.push(Change::Put { path: path(&top), metadata: metadata(0o755), content: Content::Directory });
        start.extend(changes(&repo, &top, START));
        if *is_nested {
            start.push(change(&repo, &top, &format!("{}=", marker("d/e"))));
        }
        theirs.extend(changes(&repo, &top, case.0));
    }
    repo.commit(&start);
    let base = repo.root();
    repo.commit(&theirs);
    for (number, (_, (theirs, ours, expected))) in cases.iter().enumerate() {
        let (top, head) = (number.to_string(), repo.root());
        match (repo.commit_onto(base, &changes(&repo, &top, ours)), expected) {
            (Ok(_), Ok(expected)) => assert_eq!(shown(&repo, &top), *expected, "{theirs} | {ours}"),
            (Err(Error::Conflict { what, .. }), Err(expected)) => {
                assert_eq!(what, format!("/{top}/{expected}"), "{theirs} | {ours}");
                assert_eq!(repo.root(), head);
            }
            (other, _) => panic!("{theirs} | {ours}: {other:?}"),
        }
    }
    repo.verify();
}

#[test]
fn what_both_do_alike_is_no_conflict() {
    const OLD: &str = "d/ 755, d/e/ 755, d/e/f 1, d/g 2";
    let cases = [
        ("-h", "-h", format!("{OLD}, n/ 755, n/deep/ 755")),
        ("-d", "-d", "h 3, n/ 755, n/deep/ 755".into()),
        ("-d", "-d/e/f", "h 3, n/ 755, n/deep/ 755".into()),
        ("-d", "-d/none, *d/other", "h 3, n/ 755, n/deep/ 755".into()),
        ("-d, d=4444", "-d/e/f", "d 4, h 3, n/ 755, n/deep/ 755".into()),
        ("-d, d=4444", "-d, d=4444", "d 4, h 3, n/ 755, n/deep/ 755".into()),
        ("h=4444", "h=4444", format!("{OLD}, h 4, n/ 755, n/deep/ 755")),
        ("x=4444", "x=4444", format!("{OLD}, h 3, n/ 755, n/deep/ 755, x 4")),
        ("x/, x/a=1", "x/, x/b=1", format!("{OLD}, h 3, n/ 755, n/deep/ 755, x/ 755, x/a 1, x/b 1")),
        ("x/?, x/a=1", "x/?, x/b=1", format!("{OLD}, h 3, n/ 755, n/deep/ 755, x/ 755, x/a 1, x/b 1")),
        ("d/ 711", "d/ 711", "d/ 711, d/e/ 755, d/e/f 1, d/g 2, h 3, n/ 755, n/deep/ 755".into()),
    ];
    check(&cases.each_ref().map(|(theirs, ours, expected)| (*theirs, *ours, Ok(expected.as_str()))));
}

#[test]
fn what_is_at_different_paths_is_no_conflict() {
    let both = "d/ 711, d/e/ 755, d/e/f 1, d/e/x 1, d/g 2, h 3, n/ 755, n/deep/ 755";
    check(&[
        ("d/ 711", "d/e/x=1", Ok(both)),
        ("d/e/x=1", "d/ 711", Ok(both)),
        ("d/ 711", "d/?, d/e/?, d/e/x=1", Ok(both)),
        ("-d/g", "d/e/f=22", Ok("d/ 755, d/e/ 755, d/e/f 2, h 3, n/ 755, n/deep/ 755")),
        ("d/x=1", "*d/e", Ok("d/ 755, d/e/ 755, d/g 2, d/x 1, h 3, n/ 755, n/deep/ 755")),
        ("d/x=1", "-d/e", Ok("d/ 755, d/g 2, d/x 1, h 3, n/ 755, n/deep/ 755")),
        // The new name is one of what is there now.
        ("h=4444", "i->h", Ok("d/ 755, d/e/ 755, d/e/f 1, d/g 2, h 4, i 4, n/ 755, n/deep/ 755")),
        // A directory that is there again is as good as the one that was.
        ("-d, d/ 711, d/e/", "d/e/x=22", Ok("d/ 711, d/e/ 755, d/e/x 2, h 3, n/ 755, n/deep/ 755")),
    ]);
}

#[test]
fn what_both_change_in_different_ways_is_a_conflict() {
    check(&[
        ("h=1", "h=22", Err("h")),
        ("h=1", "-h", Err("h")),
        ("-h", "h=1", Err("h")),
        ("-h, h/", "h=1", Err("h")),
        ("-h, h/", "-h", Err("h")),
        ("h=1", "-h, h/", Err("h")),
        ("x=1", "x=22", Err("x")),
        ("x=1", "x/", Err("x")),
        ("x/ 711", "x/", Err("x")),
        ("x=1", "x/?, x/y=1", Err("x")),
        ("x=1", "x->h", Err("x")),
        ("d/ 711", "-d", Err("d")),
        ("-d", "d/ 711", Err("d")),
        ("-d, d=1", "d/ 711", Err("d")),
        ("d/ 711", "-d, d=1", Err("d")),
    ]);
}

/// What goes, goes with everything in it, and what comes needs what it is in.
#[test]
fn what_one_changes_in_a_tree_that_the_other_removes_is_a_conflict() {
    let mut cases = vec![
        // A directory comes back as it was, without what others put there meanwhile.
        ("d/x=1", "-d, d/, d/e/, d/g=22", Err("d")),
        // It takes the place of a file; others had the same idea, and may have put something into it.
        ("-h, h/", "-h, h/", Err("h")),
        ("-h, h/, h/theirs=1", "-h, h/, h/ours=1", Err("h")),
        // Others removed or replaced a directory that we change something in.
        ("-d", "d/e/f=22", Err("d/e/f")),
        ("-d", "d/e/x=22", Err("d/e/x")),
        ("-d, d=1", "d/e/f=22", Err("d/e/f")),
        ("-d, d=1", "d/e/x=22", Err("d/e/x")),
        ("-d, d=1", "d/x/", Err("d/x")),
        ("-d, d=1", "d/x->h", Err("d/x")),
        ("-d", "d/?, d/e/?, d/e/x=22", Err("d")),
        ("-d, d=1", "d/?, d/e/?, d/e/x=22", Err("d")),
        ("-d/e", "d/e/x=22", Err("d/e/x")),
        ("-n/deep", "n/deep/a=1, n/deep/b=1", Err("n/deep/a")),
    ];
    // Others changed something below, and we remove, replace or clear the directory above.
    for theirs in ["d/e/f=22", "-d/e/f", "d/e/x=1", "d/e/ 711", "-d/e", "d/e/x/", "d/e/z->d/e/f"] {
        for ours in ["-d", "-d, d=1", "-d, d/", "*d", "d/?, *d", "d/ 711, *d", "-d, d->h"] {
            cases.push((theirs, ours, Err("d")));
        }
    }
    check(&cases);
}
