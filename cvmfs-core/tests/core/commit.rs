//! Random change sets, committed one after the other, against a model: a map from path to entry.
//!
//! What the model says is in the tree must be in the tree, and nothing else; the independent verifier recounts all
//! counters, link counts, transition points and registrations of every revision.

use crate::model::{
    AUTO_MARKER, MARKER, Model, Node, Repo, Step, commits, metadata, path, plain_steps, run_steps, steps, view,
};
use cvmfs_core::change::Change;
use cvmfs_core::entry::{EntryKind, Mount};
use cvmfs_core::path::RepoPath;
use cvmfs_core::server::AutomaticNesting;
use cvmfs_core::storage::{NamedFile, ReadStore as _, WriteStore as _};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_committed_tree_is_what_its_changes_say(commits in commits(steps())) {
        let repo = Repo::new(|_| ());
        let mut model = Model::default();
        for steps in &commits {
            // The second time mostly nothing changes, and then there must be no revision.
            for _ in 0..2 {
                let before = model.view();
                let changes = run_steps(&repo, &mut model, steps);
                let outcome = repo.commit(&changes);
                let expected = model.view();
                prop_assert_eq!(&view(&repo.tree()), &expected, "{:#?}", changes);
                prop_assert_eq!(outcome.changed, before != expected, "{:#?}", changes);
                model.settle();
            }
        }
        repo.verify();
    }

    #[test]
    fn automatic_splitting_changes_no_content(
        commits in commits(plain_steps()),
        (min_weight, max_weight) in (2..5_u64, 3..9_u64),
    ) {
        let repo = Repo::new(|config| config.nesting.automatic = Some(AutomaticNesting { min_weight, max_weight }));
        let mut model = Model::default();
        for steps in &commits {
            let changes = run_steps(&repo, &mut model, steps);
            repo.commit(&changes);
            let mut tree = repo.tree();
            let of_markers = |path: &RepoPath| path.name() == MARKER.as_bytes() || path.name() == AUTO_MARKER.as_bytes();
            tree.retain(|path, _| !of_markers(path));
            for row in tree.values_mut() {
                if row.entry.is_directory() {
                    row.entry.kind = EntryKind::Directory(Mount::Plain);
                }
            }
            prop_assert_eq!(&view(&tree), &model.view(), "{:#?}", changes);
            model.settle();
        }
        repo.verify();
    }

    #[test]
    fn directories_that_the_rules_select_are_catalogs(
        commits in commits(plain_steps()),
        rules_come in 0..3_usize,
    ) {
        let repo = Repo::new(|_| ());
        let selects = |path: &RepoPath| {
            let text = path.to_string();
            text == "/b" || text == "/a/a" || text == "/a/b"
        };
        let mut model = Model::default();
        let rules = Change::Put {
            path: path(".cvmfsdirtab"),
            metadata: metadata(0o644),
            content: repo.text("# rules\n/b\n/a/*\n! /a/c\n"),
        };
        let mut is_active = false;
        for (number, steps) in commits.iter().enumerate() {
            let before = model.clone();
            let mut changes = run_steps(&repo, &mut model, steps);
            // What clears the root takes the rules with it.
            let clears_root = changes.iter().any(|change| matches!(change, Change::Clear { path } if path.is_root()));
            is_active &= !clears_root;
            let comes = number == rules_come;
            if comes {
                changes.push(rules.clone());
                is_active = true;
            }
            repo.commit(&changes);
            let mut tree = repo.tree();
            prop_assert_eq!(tree.remove(&path(".cvmfsdirtab")).is_some(), is_active);
            for (at, node) in model.nodes.clone() {
                let marker = at.child(MARKER.as_bytes()).unwrap();
                let is_new = !before.is_directory(&at);
                if is_active && node.entry.is_directory() && selects(&at) && (comes || is_new) {
                    prop_assert!(tree.contains_key(&marker), "{} of {:#?}", at, changes);
                }
                // A marker may have been there, may have gone, may have come with a change of the directory.
                match tree.get(&marker) {
                    Some(row) if selects(&at) => {
                        model.files += 1;
                        let file = model.files;
                        model.nodes.entry(marker).or_insert(Node { entry: row.entry.clone(), file });
                    }
                    _ => {}
                }
            }
            prop_assert_eq!(&view(&tree), &model.view(), "{:#?}", changes);
            model.settle();
        }
        repo.verify();
    }
}

fn check(steps: &[&[Step]]) {
    let repo = Repo::new(|_| ());
    let mut model = Model::default();
    for steps in steps {
        let changes = run_steps(&repo, &mut model, steps);
        repo.commit(&changes);
        assert_eq!(view(&repo.tree()), model.view(), "{changes:#?}");
        model.settle();
    }
    repo.verify();
}

/// What the random ones have found, and what they find too seldom.
#[test]
fn known_difficulties_are_mastered() {
    let file = |at: &str| Step::File(at.into(), 1);
    let link = |at: &str, target: &str| Step::Link(at.into(), target.into());
    let remove = |at: &str| Step::Remove(at.into());
    let ensure = |at: &str| Step::Ensure(at.into());
    let clear = |at: &str| Step::Clear(at.into());
    let mark = |at: &str| Step::Mark(at.into());
    let directory = |at: &str| Step::Directory(at.into(), 0o711);
    // A directory that was removed is made anew, whatever was there.
    check(&[&[directory("a"), directory("a/b")], &[remove("a"), ensure("a/b")]]);
    check(&[&[file("a")], &[remove("a"), file("a/b")]]);
    check(&[&[file("a/b")], &[remove("a"), file("a/b/c")]]);
    check(&[&[file("a/b/c")], &[clear("a"), clear("a/b")]]);
    // Names of one file, named by different names.
    check(&[&[file("a/a"), link("a/b", "a/a")], &[link("b/a", "a/a"), link("b/b", "a/b"), link("a/c", "a/b")]]);
    check(&[&[file("a/a")], &[link("a", "a/a")]]);
    // Catalogs inside catalogs that come and go.
    check(&[&[mark("a"), mark("a/b"), file("a/b/c")], &[remove("a/.cvmfscatalog")], &[mark("a")], &[remove("a/b")]]);
    check(&[&[mark("a"), file("a/b")], &[remove("a"), mark("a"), file("a/c")], &[file("a")]]);
    check(&[&[mark("a/b"), file("a/b/c")], &[mark("a")], &[clear("a/b")], &[clear("")]]);
}

/// If the verifier saw nothing, the tests above would show little.
#[test]
fn damage_is_found() {
    let repo = Repo::new(|_| ());
    repo.verify();
    let mut manifest = repo.store.read(&NamedFile::Manifest.into()).unwrap();
    manifest[3] ^= 1;
    repo.store.write(NamedFile::Manifest, &manifest).unwrap();
    assert_ne!(repo.findings(), "");
}
