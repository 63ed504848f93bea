//! Merging layers, against a model that does to a map what unpacking does to a directory.

use std::collections::{BTreeMap, VecDeque};

use cvmfs_core::entry::{EntryKind, Mount};
use proptest::prelude::*;

use super::*;
use crate::image::whiteout::unnamed_directory;

/// A layer as a test writes it: lines of a path and what the layer says, in tree order.
#[derive(Debug, Clone)]
struct Told {
    all: Vec<Statement>,
    next: VecDeque<Statement>,
}

impl Told {
    fn new(mut all: Vec<Statement>) -> Self {
        all.sort_by(|one, other| one.path.cmp_in_tree(&other.path));
        Self { next: all.clone().into(), all }
    }
}

impl Rows for Told {
    fn next(&mut self) -> Result<Option<Statement>> {
        Ok(self.next.pop_front())
    }

    fn get(&mut self, path: &RepoPath) -> Result<Option<Statement>> {
        Ok(self.all.iter().find(|statement| statement.path == *path).cloned())
    }
}

fn path(text: &str) -> RepoPath {
    RepoPath::from_bytes(text.as_bytes()).unwrap()
}

fn directory(mode: u32) -> Entry {
    Entry { permissions: mode, kind: EntryKind::Directory(Mount::Plain), ..unnamed_directory() }
}

fn link(target: &str) -> Entry {
    Entry { kind: EntryKind::Symlink { target: target.into() }, ..unnamed_directory() }
}

/// `dir 755`, `opaque 755`, `implied`, `implied-opaque`, `file NAME` (a symbolic link stands for any file), `name N NAME`
/// (one of several names of a file), `hardlink PATH`, `gone`.
fn statement(line: &str) -> Statement {
    let (at, says) = line.split_once(": ").unwrap();
    let words: Vec<&str> = says.split(' ').collect();
    let mode = |text| u32::from_str_radix(text, 8).unwrap();
    let (says, clears) = match words[..] {
        ["dir", permissions] => (Says::Put(directory(mode(permissions)), None), false),
        ["opaque", permissions] => (Says::Put(directory(mode(permissions)), None), true),
        ["implied"] => (Says::Somehow(unnamed_directory()), false),
        ["implied-opaque"] => (Says::Somehow(unnamed_directory()), true),
        ["file", name] => (Says::Put(link(name), None), false),
        ["name", group, name] => (Says::Put(link(name), Some(group.parse().unwrap())), false),
        ["hardlink", target] => (Says::Link(path(target)), false),
        ["gone"] => (Says::Gone, false),
        _ => panic!("{line}"),
    };
    Statement { path: path(at.trim_start_matches('/')), says, clears }
}

fn stack(layers: &[&[&str]]) -> Stack {
    let layers = layers.iter().map(|lines| lines.iter().map(|line| statement(line)).collect());
    Stack::new(layers.map(|all| Box::new(Told::new(all)) as Box<dyn Rows>).collect())
}

fn merged(stack: &mut Stack) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    while let Some(Merged { path, entry, same_as }) = stack.next_entry()? {
        let what = match &entry.kind {
            EntryKind::Symlink { target } => format!("file {}", String::from_utf8_lossy(target)),
            _ => format!("dir {:o}", entry.permissions),
        };
        let same = same_as.map_or_else(String::new, |other| format!(" = {other}"));
        lines.push(format!("{path}: {what}{same}"));
    }
    Ok(lines)
}

#[track_caller]
fn assert_merged(layers: &[&[&str]], expected: &[&str]) {
    assert_eq!(merged(&mut stack(layers)).unwrap(), expected);
}

#[test]
fn upper_layers_win() {
    assert_merged(
        &[
            &["/: dir 755", "/a: dir 700", "/a/x: file low", "/a/y: file low", "/b: file low"],
            &["/: implied", "/a: dir 711", "/a/x: file high", "/c: file high"],
        ],
        &["/: dir 755", "/a: dir 711", "/a/x: file high", "/a/y: file low", "/b: file low", "/c: file high"],
    );
}

#[test]
fn removals_reach_lower_layers_only() {
    assert_merged(
        &[
            &[
                "/: dir 755",
                "/a: dir 755",
                "/a/b: dir 755",
                "/a/b/c: file 1",
                "/d: file 1",
                "/e: dir 755",
                "/e/f: file 1",
            ],
            &["/: implied", "/a: gone", "/d: gone", "/e: opaque 700", "/e/g: file 2"],
            &["/: implied", "/a: dir 700", "/a/n: file 3"],
        ],
        &["/: dir 755", "/a: dir 700", "/a/n: file 3", "/e: dir 700", "/e/g: file 2"],
    );
}

#[test]
fn directories_and_others_replace_each_other() {
    assert_merged(
        &[
            &["/: dir 755", "/a: dir 755", "/a/b: file 1", "/lib: file usr/lib", "/o: file 1", "/z: file 1"],
            &["/: implied", "/a: file 2", "/lib: dir 755", "/lib/x: file 2", "/o: implied", "/o/p: file 2"],
            &["/: implied", "/a: dir 700", "/a/c: file 3"],
        ],
        &[
            "/: dir 755",
            "/a: dir 700",
            "/a/c: file 3",
            "/lib: dir 755",
            "/lib/x: file 2",
            "/o: dir 755",
            "/o/p: file 2",
            "/z: file 1",
        ],
    );
}

#[test]
fn an_implied_directory_leaves_the_metadata_of_the_lower_one() {
    assert_merged(
        &[
            &["/: dir 700", "/tmp: dir 1777", "/tmp/x: file 1", "/root: dir 700", "/root/y: file 1"],
            &["/: implied", "/root: implied-opaque", "/root/n: file 2", "/tmp: implied", "/tmp/z: file 2"],
        ],
        &["/: dir 700", "/root: dir 700", "/root/n: file 2", "/tmp: dir 1777", "/tmp/x: file 1", "/tmp/z: file 2"],
    );
}

#[test]
fn hard_links_within_and_across_layers() {
    assert_merged(
        &[
            &["/: dir 755", "/a: name 1 one", "/b: name 1 one", "/c: name 1 one", "/x: file old"],
            &["/: implied", "/a: file other", "/d: hardlink b", "/e: hardlink x", "/x: file new"],
            // Numbers mean something within a layer only.
            &["/: implied", "/f: hardlink e", "/g: name 1 two", "/h: name 1 two"],
        ],
        &[
            "/: dir 755",
            "/a: file other",
            "/b: file one",
            "/c: file one = /b",
            "/d: file one",
            "/e: file old",
            "/f: file old",
            "/g: file two",
            "/h: file two = /g",
            "/x: file new",
        ],
    );
    let below: &[&str] = &["/: dir 755", "/a: dir 755", "/a/b: file 1"];
    for (layer, reason) in [
        (&["/: implied", "/l: hardlink a/b", "/a: gone"][..], "does not exist"),
        (&["/: implied", "/l: hardlink a"], "the directory"),
        (&["/: implied", "/l: hardlink nothing"], "does not exist"),
    ] {
        // The link's own layer is not below it.
        let removed: &[&str] = &["/: implied", "/a: opaque 755"];
        let layers: &[&[&str]] = if reason == "does not exist" { &[below, removed, layer] } else { &[below, layer] };
        let error = merged(&mut stack(layers)).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

/// What unpacking one layer after the other makes of a map.
fn unpack(layers: &[Vec<Statement>]) -> BTreeMap<Vec<Vec<u8>>, Entry> {
    let mut tree: BTreeMap<Vec<Vec<u8>>, Entry> = BTreeMap::new();
    let key = |path: &RepoPath| path.components().map(<[u8]>::to_vec).collect::<Vec<_>>();
    let below = |tree: &mut BTreeMap<Vec<Vec<u8>>, Entry>, at: &[Vec<u8>]| {
        tree.retain(|other, _| !(other.len() > at.len() && other.starts_with(at)));
    };
    for layer in layers {
        for Statement { path, says, clears } in layer {
            let at = key(path);
            if *clears {
                below(&mut tree, &at);
            }
            let was_directory = tree.get(&at).is_some_and(Entry::is_directory);
            match says {
                Says::Somehow(_) if was_directory => {}
                Says::Somehow(entry) => drop(tree.insert(at, entry.clone())),
                Says::Put(entry, _) => {
                    if !entry.is_directory() {
                        below(&mut tree, &at);
                    }
                    tree.insert(at, entry.clone());
                }
                Says::Link(_) => unreachable!("no links in random layers"),
                Says::Gone => {
                    below(&mut tree, &at);
                    tree.remove(&at);
                }
            }
        }
    }
    tree
}

/// A layer of a few names, three deep, where what has entries is a directory.
fn layer() -> impl Strategy<Value = Vec<Statement>> {
    let node = prop_oneof![
        3 => "[a-c]".prop_map(|name| format!("file {name}")),
        2 => Just("dir 755".to_owned()),
        1 => Just("dir 700".to_owned()),
        1 => Just("opaque 711".to_owned()),
        2 => Just("implied".to_owned()),
        1 => Just("implied-opaque".to_owned()),
        2 => Just("gone".to_owned()),
    ];
    let name = prop_oneof![Just("a"), Just("a-"), Just("b"), Just("c")];
    prop::collection::vec((prop::collection::vec(name, 1..4), node), 0..12).prop_map(|lines| {
        let mut layer = BTreeMap::from([(Vec::new(), statement("/: implied"))]);
        for (names, says) in lines {
            let mut at = Vec::new();
            for name in &names[..names.len() - 1] {
                at.push((*name).to_owned());
                let implied = statement(&format!("/{}: implied", at.join("/")));
                let entry = layer.entry(at.clone()).or_insert_with(|| implied.clone());
                if !entry.says.is_directory() {
                    *entry = implied;
                }
            }
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let told = statement(&format!("/{}: {says}", names.join("/")));
            if !told.says.is_directory() {
                layer.retain(|other: &Vec<String>, _| !other.starts_with(&names));
            }
            layer.insert(names, told);
        }
        layer.into_values().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn random_layers_merge_as_they_unpack(layers in prop::collection::vec(layer(), 1..5)) {
        let expected = unpack(&layers);
        let rows = || layers.iter().map(|all| Box::new(Told::new(all.clone())) as Box<dyn Rows>).collect();
        let mut merged = BTreeMap::new();
        let mut paths = Vec::new();
        let mut stack = Stack::new(rows());
        while let Some(Merged { path, entry, .. }) = stack.next_entry().unwrap() {
            merged.insert(path.components().map(<[u8]>::to_vec).collect(), entry);
            paths.push(path);
        }
        prop_assert!(paths.is_sorted_by(|one, other| one.cmp_in_tree(other).is_lt()));
        prop_assert_eq!(&merged, &expected);

        let mut stack = Stack::new(rows());
        for names in ["", "a", "a-", "b", "a/a", "a/b", "a-/c", "b/b/b", "c/a/a-"] {
            let at: Vec<Vec<u8>> = path(names).components().map(<[u8]>::to_vec).collect();
            let found = stack.find(&path(names)).unwrap();
            prop_assert_eq!(found.as_ref(), expected.get(&at), "{}", names);
        }
    }
}
