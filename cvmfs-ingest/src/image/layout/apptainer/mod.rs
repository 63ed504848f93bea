//! What Apptainer and Singularity expect in a root file system, put into the merged tree of an image.
//!
//! The tree is read-only where it is used, so all that containers mount something on has to be there. The scripts are
//! those that `apptainer build` makes for the same image, in words of our own.
//!
//! Source: `ducc/singularity`; `internal/pkg/build/sources` of Apptainer.

mod scripts;

use std::collections::BTreeMap;

use cvmfs_core::error::Result;
use cvmfs_core::path::RepoPath;

use super::{FILE_PERMISSIONS, Generated, SCRIPT_PERMISSIONS, path};
use crate::image::Settings;

/// What a merged tree has at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Absent,
    /// A directory.
    Directory,
    /// A symbolic link, with its target.
    Symlink(Vec<u8>),
    /// Anything else.
    Other,
}

/// Directories that must be there: of the scripts, and to mount something on.
const DIRECTORIES: [&str; 11] = [
    ".singularity.d/libs",
    ".singularity.d/actions",
    ".singularity.d/env",
    "dev",
    "proc",
    "root",
    "var/tmp",
    "tmp",
    "etc",
    "sys",
    "home",
];

/// Short names of the scripts, where the image has nothing else of that name.
const LINKS: [(&str, &str); 6] = [
    ("singularity", ".singularity.d/runscript"),
    (".run", ".singularity.d/actions/run"),
    (".exec", ".singularity.d/actions/exec"),
    (".test", ".singularity.d/actions/test"),
    (".shell", ".singularity.d/actions/shell"),
    ("environment", ".singularity.d/env/90-environment.sh"),
];

/// Files to mount something on: empty.
const MOUNT_POINTS: [&str; 2] = ["etc/hosts", "etc/resolv.conf"];

/// What has to be put into the merged tree of an image; paths begin at the root of the tree.
///
/// `find` tells what the tree has at a path, without following links; links are followed here, and never out of the tree.
/// What an image uses for something else stays: where it has a file instead of a directory, or links that lead nowhere, what
/// should be in that directory is left out.
///
/// The root of the tree needs the owner's write permission besides; that is for the caller to see to.
///
/// # Errors
/// Those of `find`.
pub fn generate(settings: &Settings, find: &dyn Fn(&RepoPath) -> Result<Found>) -> Result<Vec<Generated>> {
    let mut tree = Tree { find, made: BTreeMap::new(), entries: Vec::new() };
    for directory in DIRECTORIES {
        tree.directory(&path(directory))?;
    }
    for (name, target) in LINKS {
        tree.link(&path(name), target)?;
    }
    for name in MOUNT_POINTS {
        tree.file(&path(name), String::new(), FILE_PERMISSIONS)?;
    }
    for (name, text) in scripts::FIXED {
        tree.file(&path(name), text.to_owned(), SCRIPT_PERMISSIONS)?;
    }
    let run = scripts::run_script(&settings.entrypoint, &settings.command);
    tree.file(&path(".singularity.d/runscript"), run, SCRIPT_PERMISSIONS)?;
    let environment = scripts::environment(&settings.environment);
    tree.file(&path(".singularity.d/env/10-docker2singularity.sh"), environment, SCRIPT_PERMISSIONS)?;
    tree.file(&path(".singularity.d/labels.json"), labels(settings), FILE_PERMISSIONS)?;
    Ok(tree.entries)
}

/// What `apptainer inspect` shows.
fn labels(settings: &Settings) -> String {
    let mut bytes = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    serde::Serialize::serialize(&settings.labels, &mut serde_json::Serializer::with_formatter(&mut bytes, format))
        .expect("strings can be written as JSON");
    String::from_utf8(bytes).expect("JSON is UTF-8")
}

/// Links that are followed on the way to one path, as in Linux.
const MAX_LINKS: u32 = 40;

/// The merged tree with what is put into it.
struct Tree<'a> {
    find: &'a dyn Fn(&RepoPath) -> Result<Found>,
    made: BTreeMap<RepoPath, Found>,
    entries: Vec<Generated>,
}

impl Tree<'_> {
    fn at(&self, path: &RepoPath) -> Result<Found> {
        if path.is_root() {
            return Ok(Found::Directory);
        }
        self.made.get(path).map_or_else(|| (self.find)(path), |found| Ok(found.clone()))
    }

    fn put(&mut self, found: Found, entry: Generated) {
        self.made.insert(entry.path().clone(), found);
        self.entries.push(entry);
    }

    /// The directory that a path leads to, made with those above it if it is missing; `None` if there cannot be one.
    fn directory(&mut self, path: &RepoPath) -> Result<Option<RepoPath>> {
        let mut to_go: Vec<Vec<u8>> = path.components().map(<[u8]>::to_vec).collect();
        to_go.reverse();
        let (mut reached, mut links) = (RepoPath::root(), 0);
        while let Some(name) = to_go.pop() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    reached = reached.parent().unwrap_or_default();
                    continue;
                }
                _ => {}
            }
            let Ok(next) = reached.child(&name) else { return Ok(None) };
            match self.at(&next)? {
                Found::Directory => reached = next,
                Found::Absent => {
                    self.put(Found::Directory, Generated::Directory { path: next.clone() });
                    reached = next;
                }
                Found::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(None);
                    }
                    if target.starts_with(b"/") {
                        reached = RepoPath::root();
                    }
                    to_go.extend(target.split(|&byte| byte == b'/').rev().map(<[u8]>::to_vec));
                }
                Found::Other => return Ok(None),
            }
        }
        Ok(Some(reached))
    }

    /// A link, if there is nothing of that name, not even a link that leads nowhere.
    fn link(&mut self, path: &RepoPath, target: &str) -> Result<()> {
        if self.at(path)? == Found::Absent {
            let found = Found::Symlink(target.into());
            self.put(found, Generated::Symlink { path: path.clone(), target: target.into() });
        }
        Ok(())
    }

    /// A file. A link of that name gives way; what it leads to may be needed by others.
    fn file(&mut self, path: &RepoPath, text: String, permissions: u32) -> Result<()> {
        let Some(directory) = self.directory(&path.parent().unwrap_or_default())? else { return Ok(()) };
        let path = directory.child(path.name())?;
        self.put(Found::Other, Generated::File { path, bytes: text.into_bytes(), permissions });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Generates for a tree of these names: directories end with a slash, links have targets.
    fn generate_in(tree: &[(&str, &str)], settings: &Settings) -> BTreeMap<String, Generated> {
        let find = |path: &RepoPath| {
            let text = path.to_string();
            let name = text.trim_start_matches('/');
            Ok(match tree.iter().find(|(found, _)| found.trim_end_matches('/') == name) {
                None => Found::Absent,
                Some((found, _)) if found.ends_with('/') => Found::Directory,
                Some((_, "")) => Found::Other,
                Some((_, target)) => Found::Symlink(target.as_bytes().to_vec()),
            })
        };
        let entries = generate(settings, &find).unwrap();
        let count = entries.len();
        let by_path: BTreeMap<_, _> = entries.into_iter().map(|entry| (entry.path().to_string(), entry)).collect();
        assert_eq!(by_path.len(), count, "nothing is put twice");
        by_path
    }

    fn kinds(entries: &BTreeMap<String, Generated>) -> Vec<String> {
        let line = |(path, entry): (&String, &Generated)| match entry {
            Generated::Directory { .. } => format!("{path}/"),
            Generated::Symlink { target, .. } => format!("{path} -> {}", String::from_utf8_lossy(target)),
            Generated::File { permissions, .. } => format!("{path} {permissions:o}"),
            other => panic!("{other:?}"),
        };
        entries.iter().map(line).collect()
    }

    const SCRIPTS: [&str; 19] = [
        "/.exec -> .singularity.d/actions/exec",
        "/.run -> .singularity.d/actions/run",
        "/.shell -> .singularity.d/actions/shell",
        "/.singularity.d/actions/exec 755",
        "/.singularity.d/actions/run 755",
        "/.singularity.d/actions/shell 755",
        "/.singularity.d/actions/start 755",
        "/.singularity.d/actions/test 755",
        "/.singularity.d/env/01-base.sh 755",
        "/.singularity.d/env/10-docker2singularity.sh 755",
        "/.singularity.d/env/90-environment.sh 755",
        "/.singularity.d/env/95-apps.sh 755",
        "/.singularity.d/env/99-base.sh 755",
        "/.singularity.d/env/99-runtimevars.sh 755",
        "/.singularity.d/labels.json 644",
        "/.singularity.d/runscript 755",
        "/.singularity.d/startscript 755",
        "/.test -> .singularity.d/actions/test",
        "/singularity -> .singularity.d/runscript",
    ];

    fn expected(more: &[&str]) -> Vec<String> {
        let mut lines: Vec<String> = SCRIPTS.iter().chain(more).map(ToString::to_string).collect();
        // By path, as the map has them.
        lines.sort_by(|a, b| {
            let path = |line: &str| line.split(' ').next().unwrap().trim_end_matches('/').to_owned();
            path(a).cmp(&path(b))
        });
        lines
    }

    const OWN: [&str; 4] =
        ["/.singularity.d/", "/.singularity.d/actions/", "/.singularity.d/env/", "/.singularity.d/libs/"];
    const ENVIRONMENT: &str = "/environment -> .singularity.d/env/90-environment.sh";

    #[test]
    fn an_empty_tree_gets_everything() {
        let places = ["/dev/", "/etc/", "/home/", "/proc/", "/root/", "/sys/", "/tmp/", "/var/", "/var/tmp/"];
        let more = [&OWN[..], &places[..], &["/etc/hosts 644", "/etc/resolv.conf 644", ENVIRONMENT][..]].concat();
        assert_eq!(kinds(&generate_in(&[], &Settings::default())), expected(&more));
    }

    /// What the image has of its own stays, but for files that something is mounted on.
    #[test]
    fn what_is_there_stays() {
        let tree = [
            ("dev/", ""),
            ("etc/", ""),
            ("etc/hosts", ""),
            ("etc/resolv.conf", "../run/resolv.conf"),
            ("home/", ""),
            ("proc/", ""),
            ("root", ""),
            ("sys/", ""),
            ("tmp", "nowhere/at/all"),
            ("var", "/srv"),
            ("srv/", ""),
            ("environment", "nothing"),
            (".singularity.d/", ""),
        ];
        let generated = generate_in(&tree, &Settings::default());
        let more =
            ["/nowhere/", "/nowhere/at/", "/nowhere/at/all/", "/srv/tmp/", "/etc/hosts 644", "/etc/resolv.conf 644"];
        assert_eq!(kinds(&generated), expected(&[&more[..], &OWN[1..]].concat()));
        for name in ["/etc/hosts", "/etc/resolv.conf"] {
            assert!(matches!(&generated[name], Generated::File { bytes, .. } if bytes.is_empty()), "{name}");
        }
    }

    /// Links lead through the tree and never out of it.
    #[test]
    fn links_are_followed_inside_the_tree() {
        for (etc, real) in [
            ("/image/etc", "/image/etc"),
            ("../../../image/etc", "/image/etc"),
            ("image/./x/..//etc", "/image/etc"),
            ("/", ""),
            ("other", "/image/etc"),
        ] {
            let tree = [("etc", etc), ("image/", ""), ("other", "/image/etc"), ("image/x/", "")];
            let generated = generate_in(&tree, &Settings::default());
            assert!(generated.contains_key(&format!("{real}/hosts")), "{etc}: {:?}", generated.keys());
            assert!(!generated.contains_key("/etc/hosts"), "{etc}");
        }
    }

    #[test]
    fn what_cannot_be_made_is_left_out() {
        let long = "x".repeat(300);
        for (name, target) in [("etc", ""), ("etc", "etc"), ("etc", "a/b"), ("etc", &*long)] {
            let tree = [(name, target), ("a", "")];
            let generated = generate_in(&tree, &Settings::default());
            let of_etc: Vec<_> = generated.keys().filter(|path| path.contains("hosts")).collect();
            assert_eq!(of_etc, Vec::<&String>::new(), "{target}");
            assert!(generated.contains_key("/.singularity.d/runscript"));
        }
    }

    #[test]
    fn labels_are_written_for_inspection() {
        let labels = BTreeMap::from([("a".to_owned(), "1 \"x\"".to_owned()), ("b".to_owned(), String::new())]);
        let generated = generate_in(&[], &Settings { labels, ..Settings::default() });
        let Generated::File { bytes, .. } = &generated["/.singularity.d/labels.json"] else { panic!() };
        assert_eq!(String::from_utf8_lossy(bytes), "{\n\t\"a\": \"1 \\\"x\\\"\",\n\t\"b\": \"\"\n}");
    }
}
