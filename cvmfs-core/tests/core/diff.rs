//! Differences of random trees, against a model that knows nothing of catalogs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::{Arc, Mutex};

use crate::model::{Model, Repo, Step, View, commits, path, run_steps, steps, view};
use cvmfs_core::catalog::Row;
use cvmfs_core::diff::{self, Aspect, Difference, Fate, Options, Side, Summary, diff};
use cvmfs_core::entry::{Entry, EntryKind, Mount, Mtime};
use cvmfs_core::error::Result;
use cvmfs_core::hash::ContentHash;
use cvmfs_core::path::RepoPath;
use cvmfs_core::storage::{Key, MemoryStore, ReadStore};
use cvmfs_core::tree::Tree;
use proptest::prelude::*;

fn tree(repo: &Repo, root: ContentHash) -> Tree {
    Tree::new(Arc::new(repo.store.clone()), root, repo.directory.path())
}

fn differences(before: Side<'_>, after: Side<'_>, options: Options) -> Vec<Difference> {
    let mut found = Vec::new();
    diff(before, after, options, &mut |difference| {
        found.push(difference);
        Ok(())
    })
    .unwrap();
    found
}

fn whole(repo: &Repo, before: ContentHash, after: ContentHash, options: Options) -> Vec<Difference> {
    let (mut before, mut after) = (tree(repo, before), tree(repo, after));
    differences(Side::whole(&mut before), Side::whole(&mut after), options)
}

/// Makes the head equal to another tree and says what changed.
fn apply(repo: &Repo, target: ContentHash) {
    let (mut before, mut after) = (tree(repo, repo.root()), tree(repo, target));
    let mut changes = Vec::new();
    diff::changes(Side::whole(&mut before), Side::whole(&mut after), &mut |change| {
        changes.push(change);
        Ok(())
    })
    .unwrap();
    repo.commit(&changes);
}

/// An entry without its role among catalogs, and the names of the same file.
fn plain(view: &View, at: &RepoPath) -> Option<(Entry, Option<BTreeSet<RepoPath>>)> {
    let (mut entry, _) = view.entries.get(at)?.clone();
    if entry.is_directory() {
        entry.kind = EntryKind::Directory(Mount::Plain);
    }
    Some((entry, view.groups.iter().find(|group| group.contains(at)).cloned()))
}

/// The paths that differ, and how, found by comparing two maps.
fn expected(before: &View, after: &View) -> BTreeMap<RepoPath, Fate> {
    let paths: BTreeSet<&RepoPath> = before.entries.keys().chain(after.entries.keys()).collect();
    let fate = |at: &RepoPath| match (plain(before, at), plain(after, at)) {
        (None, _) => Some(Fate::Added),
        (_, None) => Some(Fate::Removed),
        (before, after) => (before != after).then_some(Fate::Changed),
    };
    paths.into_iter().filter_map(|at| Some((at.clone(), fate(at)?))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn differences_are_those_of_the_models_and_lead_from_tree_to_tree(commits in commits(steps())) {
        let repo = Repo::new(|_| ());
        let mut model = Model::default();
        let mut revisions = vec![(repo.root(), model.view())];
        for steps in &commits {
            let changes = run_steps(&repo, &mut model, steps);
            repo.commit(&changes);
            revisions.push((repo.root(), model.view()));
            model.settle();
        }
        for (before, old) in &revisions {
            for (after, new) in &revisions {
                let found = whole(&repo, *before, *after, Options::default());
                let order: Vec<_> = found.iter().map(|difference| (difference.path.clone(), difference.fate())).collect();
                prop_assert_eq!(order, expected(old, new).into_iter().collect::<Vec<_>>());
            }
        }
        for (root, expected) in &revisions {
            apply(&repo, *root);
            prop_assert_eq!(&view(&repo.tree()), expected);
            prop_assert_eq!(whole(&repo, repo.root(), *root, Options { nesting: true }), []);
        }
        repo.verify();
    }
}

/// A store that remembers what was read from it.
#[derive(Debug)]
struct Watched(MemoryStore, Mutex<Vec<Key>>);

impl ReadStore for Watched {
    fn describe(&self, key: &Key) -> String {
        self.0.describe(key)
    }

    fn read(&self, key: &Key) -> Result<Vec<u8>> {
        self.1.lock().unwrap().push(*key);
        self.0.read(key)
    }

    fn open(&self, key: &Key) -> Result<Box<dyn Read + Send>> {
        self.1.lock().unwrap().push(*key);
        self.0.open(key)
    }

    fn size(&self, key: &Key) -> Result<Option<u64>> {
        self.0.size(key)
    }
}

fn build(repo: &Repo, model: &mut Model, steps: &[Step]) -> ContentHash {
    let changes = run_steps(repo, model, steps);
    repo.commit(&changes);
    model.settle();
    repo.root()
}

fn file(at: &str, variant: u8) -> Step {
    Step::File(at.into(), variant)
}

#[test]
fn catalogs_that_are_the_same_are_not_fetched_and_others_once() {
    let repo = Repo::new(|_| ());
    let mut model = Model::default();
    // More catalogs below each other than a tree keeps open, and neighbours that do not change.
    let names: Vec<String> = (0..24).map(|depth| vec!["d"; depth + 1].join("/")).collect();
    let mut steps: Vec<Step> = names.iter().map(|name| Step::Mark(name.clone())).collect();
    steps.extend(names.iter().map(|name| Step::Mark(format!("{name}/same"))));
    let before = build(&repo, &mut model, &steps);
    let deepest = format!("{}/z", names[23]);
    let after = build(&repo, &mut model, &[file(&deepest, 1), file("d/z", 1)]);

    let store = Arc::new(Watched(repo.store.clone(), Mutex::default()));
    let mut trees = [before, after].map(|root| Tree::new(Arc::clone(&store) as _, root, repo.directory.path()));
    let [before, after] = &mut trees;
    let found = differences(Side::whole(before), Side::whole(after), Options::default());
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(lines, [format!("+ /{deepest}"), "+ /d/z".into()]);
    let mut fetched = store.1.lock().unwrap().clone();
    assert_eq!(fetched.len(), 2 * 25);
    fetched.sort();
    fetched.dedup();
    assert_eq!(fetched.len(), 2 * 25);
}

#[test]
fn each_kind_of_change_is_told() {
    let repo = Repo::new(|_| ());
    let mut model = Model::default();
    let directory = |at: &str, mode| Step::Directory(at.into(), mode);
    let link = |at: &str, target: &str| Step::Link(at.into(), target.into());
    let before = build(
        &repo,
        &mut model,
        &[
            file("content", 1),
            file("chunks", 1),
            file("type", 1),
            file("went/below", 1),
            directory("mode", 0o755),
            directory("nested", 0o755),
            file("names/a", 1),
            link("names/b", "names/a"),
            link("names/c", "names/a"),
        ],
    );
    let old = model.view();
    let after = build(
        &repo,
        &mut model,
        &[
            file("content", 2),
            file("chunks", 3),
            file("type", 4),
            Step::Remove("went".into()),
            directory("mode", 0o711),
            Step::Mark("nested".into()),
            Step::Remove("names/c".into()),
            file("new", 6),
        ],
    );
    let found = whole(&repo, before, after, Options { nesting: true });
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "M /chunks  size 3 -> 11, content, chunks none -> 2",
            "M /content  size 3 -> 5, content",
            "M /mode  mode 0755 -> 0711, xattrs",
            "M /names/a  links 3 -> 2",
            "M /names/b  links 3 -> 2",
            "- /names/c",
            "M /nested  nesting none -> catalog",
            "+ /nested/.cvmfscatalog",
            "+ /new",
            "M /type  type file -> symlink",
            "- /went",
            "- /went/below",
        ]
    );
    assert_eq!(found[6].aspects, [Aspect::Nesting]);
    assert!(found[6].is_metadata_only() && !found[0].is_metadata_only());
    let quiet = whole(&repo, before, after, Options::default());
    assert_eq!(quiet.len(), lines.len() - 1);
    let mut summary = Summary::default();
    for difference in &quiet {
        summary.add(difference);
    }
    let counts = Summary { added: 2, removed: 3, changed: 6, metadata_only: 3, bytes_added: 16, bytes_removed: 12 };
    assert_eq!(summary, counts);
    let json = serde_json::to_value(diff::Report::from(&quiet[0])).unwrap();
    assert_eq!(json["aspects"], serde_json::json!(["size", "content", "chunks"]));
    assert_eq!((&json["fate"], &json["before"]["size"]), (&"changed".into(), &3.into()));

    apply(&repo, before);
    assert_eq!(view(&repo.tree()), old);
    apply(&repo, after);
    assert_eq!(view(&repo.tree()), model.view());
}

/// The place of a copy against its original: what makes the copy.
#[test]
fn a_tree_is_copied_by_its_differences_to_nothing() {
    let repo = Repo::new(|_| ());
    let mut model = Model::default();
    let link = Step::Link("from/b".into(), "from/a".into());
    let root = build(&repo, &mut model, &[file("from/a", 1), link, Step::Mark("from/c".into()), file("from/c/d", 3)]);
    let (mut place, mut original) = (tree(&repo, root), tree(&repo, root));
    let mut changes = Vec::new();
    let (before, after) = (Side::at(&mut place, path("to")), Side::at(&mut original, path("from")));
    diff::changes(before, after, &mut |change| {
        changes.push(change);
        Ok(())
    })
    .unwrap();
    repo.commit(&changes);

    let copied = view(&repo.tree());
    let below = |top: &str| -> Vec<_> {
        let top = path(top);
        let of_top = copied.entries.iter().filter(|(at, _)| at.starts_with(&top));
        of_top
            .map(|(at, entry)| (at.to_string()[1..].split_once('/').map(|(_, rest)| rest.to_owned()), entry))
            .collect()
    };
    assert_eq!(below("from").len(), 6);
    assert_eq!(below("to"), below("from"));
    assert!(copied.groups.contains(&BTreeSet::from([path("to/a"), path("to/b")])));
    let (mut one, mut other) = (tree(&repo, repo.root()), tree(&repo, repo.root()));
    let same = differences(Side::at(&mut one, path("to")), Side::at(&mut other, path("from")), Options::default());
    assert_eq!(same, []);
    // A single file, and nothing at all.
    let same = differences(Side::at(&mut one, path("to/a")), Side::at(&mut other, path("from/a")), Options::default());
    assert_eq!(same, []);
    let gone = differences(Side::at(&mut one, path("to/a")), Side::at(&mut other, path("none")), Options::default());
    assert_eq!(gone.iter().map(ToString::to_string).collect::<Vec<_>>(), ["- /to/a"]);
    repo.verify();
}

/// The reference hides `.cvmfs`, which shows other revisions: it is there, and in no listing.
#[test]
fn what_is_hidden_is_not_part_of_a_tree() {
    let repo = Repo::new(|_| ());
    let row = |at: &str, hidden, permissions| {
        let entry = Entry::directory(permissions, 0, 0, Mtime::seconds(0));
        Row::new(&path(at), Entry { hidden, ..entry })
    };
    let store = |rows: &[Row]| repo.store_tree(rows).hash;
    let around = [row(".a", false, 0o755), row("d", false, 0o755)];
    let plain = store(&around);
    let hidden = |name: &str, below: &str, permissions| {
        let at = [name.to_owned(), format!("{name}/{below}"), format!("d/{name}")];
        let added = [row(&at[0], true, permissions), row(&at[1], false, 0o755), row(&at[2], true, permissions)];
        store(&[&around[..], &added].concat())
    };
    let (one, other) = (hidden(".cvmfs", "x", 0o755), hidden(".cvmfs", "y", 0o711));
    let shown = store(&[&around[..], &[row(".cvmfs", false, 0o755), row(".cvmfs/x", false, 0o755)]].concat());
    let none: &[&str] = &[];
    for (before, after, expected) in [
        (plain, one, none),
        (one, plain, none),
        (one, other, none),
        (plain, shown, &["+ /.cvmfs", "+ /.cvmfs/x"]),
        (one, shown, &["+ /.cvmfs", "+ /.cvmfs/x"]),
        (shown, other, &["- /.cvmfs", "- /.cvmfs/x"]),
    ] {
        let found = whole(&repo, before, after, Options { nesting: true });
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    }
}
