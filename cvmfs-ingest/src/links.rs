//! The symbolic links of a layer, and where paths that lead through them end.
//!
//! Programs that unpack layers follow a link that the layer made before, within the root file system. So does this, without
//! a file system: no path ends outside of the base directory, whatever links say.
//!
//! Source: `umoci`, `oci/layer/tar_extract.go`; `containerd`, `pkg/archive/tar.go`.

use std::collections::{BTreeMap, VecDeque};

use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::{RepoPath, display};

/// How many links a path may lead through, as in Linux.
const LINKS_MAX: usize = 40;

/// Bytes that the links may take in memory: some 300,000 links of usual length.
const MEMORY_MAX: usize = 64 << 20;
/// What a link takes beside the bytes of its path and target.
const LINK_OVERHEAD: usize = 128;

/// Symbolic links by path.
#[derive(Debug, Default)]
pub(crate) struct Links {
    by_path: BTreeMap<Vec<u8>, Link>,
    /// Bytes that they take.
    memory: usize,
}

#[derive(Debug)]
struct Link {
    target: Vec<u8>,
    /// The number of the archive that it is from.
    archive: usize,
    /// Whether somebody was told that a path leads through it.
    told: bool,
}

impl Links {
    /// Notes a link of an archive.
    ///
    /// # Errors
    /// `InvalidInput` if there are more than the memory for them holds.
    pub(crate) fn add(&mut self, path: &RepoPath, target: &[u8], archive: usize) -> Result<()> {
        self.remove(path.as_bytes());
        let path = path.as_bytes().to_owned();
        self.memory += memory(&path, target);
        if self.memory > MEMORY_MAX {
            let reason = format!("there are too many symbolic links ({}) in the layer", self.by_path.len() + 1);
            return Err(Error::invalid(display(&path), reason));
        }
        self.by_path.insert(path, Link { target: target.to_owned(), archive, told: false });
        Ok(())
    }

    /// Notes one more name of a link, if it is one.
    pub(crate) fn add_name(&mut self, path: &RepoPath, same: &RepoPath, archive: usize) -> Result<()> {
        let target = self.by_path.get(same.as_bytes()).map(|link| link.target.clone());
        target.map_or(Ok(()), |target| self.add(path, &target, archive))
    }

    fn remove(&mut self, path: &[u8]) {
        if let Some(link) = self.by_path.remove(path) {
            self.memory -= memory(path, &link.target);
        }
    }

    /// Forgets a link that something else replaces, and those below it, unless that is a directory.
    pub(crate) fn replace(&mut self, path: &RepoPath, is_directory: bool) {
        self.remove(path.as_bytes());
        if !is_directory {
            self.forget(path, usize::MAX);
        }
    }

    /// Forgets the links at and below a path of archives before one.
    pub(crate) fn forget(&mut self, path: &RepoPath, before: usize) {
        let below = |end: u8| [path.as_bytes(), &[end]].concat();
        // All that begins with the path and a slash; a path that is the root has no slash, and is never replaced.
        let range = below(b'/')..below(b'/' + 1);
        let is_gone = |(_, link): &(&Vec<u8>, &Link)| link.archive < before;
        let mut gone: Vec<Vec<u8>> = self.by_path.range(range).filter(is_gone).map(|(path, _)| path.clone()).collect();
        gone.extend(self.by_path.get_key_value(path.as_bytes()).filter(is_gone).map(|(path, _)| path.clone()));
        for path in gone {
            self.remove(&path);
        }
    }

    /// Where a path of an archive ends: the links above it are followed, within the directory `root`. The first path through
    /// a link comes with a remark.
    ///
    /// # Errors
    /// `InvalidInput` if it leads through too many links, or through a name that is none.
    pub(crate) fn follow(&mut self, path: RepoPath, root: &RepoPath) -> Result<(RepoPath, Option<String>)> {
        if self.by_path.is_empty() {
            return Ok((path, None));
        }
        let names = |path: &[u8]| -> VecDeque<Vec<u8>> {
            path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_owned).collect()
        };
        let Some(below) = path.parent().and_then(|parent| parent.relative_to(root)) else { return Ok((path, None)) };
        let mut todo = names(below.as_bytes());
        let (mut current, mut followed, mut remark) = (root.clone(), 0, None);
        while let Some(name) = todo.pop_front() {
            match &name[..] {
                b"." => continue,
                b".." if current == *root => continue,
                b".." => {
                    current = current.parent().unwrap_or_default();
                    continue;
                }
                _ => {}
            }
            let next = current.child(&name)?;
            let Some(link) = self.by_path.get_mut(next.as_bytes()) else {
                current = next;
                continue;
            };
            followed += 1;
            if followed > LINKS_MAX {
                return Err(Error::invalid(next.to_string(), "too many symbolic links"));
            }
            if !std::mem::replace(&mut link.told, true) {
                remark = Some(format!("leads through the symbolic link {next}"));
            }
            if link.target.starts_with(b"/") {
                current = root.clone();
            }
            let mut ahead = names(&link.target);
            ahead.append(&mut todo);
            todo = ahead;
        }
        Ok((current.child(path.name())?, remark))
    }
}

/// Bytes that a link takes.
fn memory(path: &[u8], target: &[u8]) -> usize {
    path.len() + target.len() + LINK_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RepoPath {
        text.parse().unwrap()
    }

    fn links(pairs: &[(&str, &str)]) -> Links {
        let mut links = Links::default();
        for (from, target) in pairs {
            links.add(&path(from), target.as_bytes(), 1).unwrap();
        }
        links
    }

    #[test]
    fn links_are_followed_within_the_root() {
        let mut links = links(&[
            ("r/bin", "usr/bin"),
            ("r/usr/sbin", "bin"),
            ("r/sbin", "/usr/sbin/./"),
            ("r/out", "../../../../etc"),
            ("r/a/b/up", "../.."),
            ("r/loop", "loop"),
            ("r/empty", ""),
        ]);
        for (from, expected) in [
            ("r/bin/sh", "r/usr/bin/sh"),
            ("r/bin", "r/bin"),
            ("r/sbin/x/y", "r/usr/bin/x/y"),
            ("r/out/passwd", "r/etc/passwd"),
            ("r/a/b/up/x", "r/x"),
            ("r/a/b/up/bin/x", "r/usr/bin/x"),
            ("r/empty/x", "r/x"),
            ("r/other/x", "r/other/x"),
            ("r", "r"),
        ] {
            assert_eq!(links.follow(path(from), &path("r")).unwrap().0, path(expected), "{from}");
        }
        assert!(links.follow(path("r/loop/x"), &path("r")).unwrap_err().to_string().contains("too many"));
    }

    #[test]
    fn a_link_is_told_once() {
        let mut links = links(&[("bin", "usr/bin")]);
        let mut follow = |text: &str| links.follow(path(text), &RepoPath::root()).unwrap().1;
        assert_eq!(follow("bin/a").unwrap(), "leads through the symbolic link /bin");
        assert_eq!(follow("bin/b"), None);
    }

    #[test]
    fn what_is_replaced_or_hidden_leads_nowhere() {
        let mut links = links(&[("a/l", "x"), ("a/b/l", "x"), ("ab", "x"), ("a!", "x")]);
        links.add(&path("a/later"), b"x", 2).unwrap();
        let followed = |links: &mut Links, text: &str| links.follow(path(text), &RepoPath::root()).unwrap().0;
        links.forget(&path("a"), 2);
        for text in ["a/l/y", "a/b/l/y"] {
            assert_eq!(followed(&mut links, text), path(text));
        }
        for (text, expected) in [("a/later/y", "a/x/y"), ("ab/y", "x/y"), ("a!/y", "x/y")] {
            assert_eq!(followed(&mut links, text), path(expected));
        }
        links.replace(&path("a"), true);
        assert_eq!(followed(&mut links, "a/later/y"), path("a/x/y"));
        links.replace(&path("a"), false);
        assert_eq!(followed(&mut links, "a/later/y"), path("a/later/y"));
        links.replace(&path("ab"), true);
        assert_eq!(followed(&mut links, "ab/y"), path("ab/y"));
        links.add_name(&path("b"), &path("a!"), 2).unwrap();
        links.add_name(&path("c"), &path("none"), 2).unwrap();
        assert_eq!(followed(&mut links, "b/y"), path("x/y"));
        assert_eq!(followed(&mut links, "c/y"), path("c/y"));
    }
}
