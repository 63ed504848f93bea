//! The file `/.cvmfsdirtab`: rules for which directories are nested catalogs.
//!
//! ```text
//! # comment
//! /software/*/*        each second-level directory
//! ! */tmp              but none of that name
//! ```
//!
//! A positive rule is an absolute path in which `*` and `?` stay within one component; in a negative rule they also
//! cross slashes. `\` takes the special meaning from `*`, `?` and `\`.
//!
//! Source: `cvmfs/path_filters/dirtab.cc`, `cvmfs/pathspec/pathspec_pattern.cc`.

use crate::error::{Error, Result};
use crate::glob::Pattern;
use crate::path::{RepoPath, display};

/// Name of the file.
pub const NAME: &[u8] = b".cvmfsdirtab";

/// Largest file that is read, in bytes.
pub const MAX_SIZE: u64 = 1 << 20;

/// Parsed rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dirtab {
    positive: Vec<Vec<Pattern>>,
    negative: Vec<Pattern>,
}

impl Dirtab {
    /// Parses the file.
    ///
    /// # Errors
    /// `InvalidInput` naming the line, for rules that the reference refuses: a positive rule that is not absolute, a
    /// backslash before something else, the same rule both ways.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let mut dirtab = Self::default();
        let (mut wanted, mut unwanted) = (Vec::new(), Vec::new());
        for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let invalid =
                |reason: &str| Error::invalid(format!(".cvmfsdirtab line {}: {}", number + 1, display(line)), reason);
            let line = line.trim_ascii();
            if line.is_empty() || line[0] == b'#' {
                continue;
            }
            let (is_negative, rule) = match line.strip_prefix(b"!") {
                Some(rule) => (true, rule.trim_ascii()),
                None => (false, line),
            };
            let rule = rule.strip_suffix(b"/").unwrap_or(rule);
            let pattern = Pattern::parse(rule).ok_or_else(|| invalid("a backslash must be followed by *, ? or \\"))?;
            if is_negative {
                unwanted.push(rule.to_vec());
                dirtab.negative.push(pattern);
            } else {
                if line[0] != b'/' {
                    return Err(invalid("a rule must begin with a slash"));
                }
                wanted.push(rule.to_vec());
                dirtab.positive.push(pattern.components());
            }
            if wanted.iter().any(|rule| unwanted.contains(rule)) {
                return Err(invalid("the same rule is there with and without `!`"));
            }
        }
        Ok(dirtab)
    }

    /// Whether a directory is to be a nested catalog.
    pub fn matches(&self, path: &RepoPath) -> bool {
        !path.is_root() && self.positive.iter().any(|rule| rule_matches(rule, path)) && !self.excludes(path)
    }

    /// Whether something below a directory could match.
    pub fn may_match_below(&self, path: &RepoPath) -> bool {
        let depth = path.components().count();
        self.positive.iter().any(|rule| rule.len() > depth && rule_matches(&rule[..depth], path))
    }

    fn excludes(&self, path: &RepoPath) -> bool {
        let text = path.to_catalog_text();
        self.negative.iter().any(|pattern| pattern.matches(&text))
    }
}

/// A selection of the tree in the same syntax, for partial replicas.
///
/// A positive rule selects what is on the way to the paths that it matches, those paths, and all below them. A negative
/// rule takes out the paths that it matches and all below them.
///
/// Source: `cvmfs/path_filters/relaxed_path_filter.cc`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PathFilter(Dirtab);

impl PathFilter {
    /// Parses the text.
    ///
    /// # Errors
    /// Those of [`Dirtab::parse`].
    pub fn parse(text: &[u8]) -> Result<Self> {
        Dirtab::parse(text).map(Self)
    }

    /// Whether the tree at this path is selected.
    pub fn matches(&self, path: &RepoPath) -> bool {
        let mut around = path.ancestors();
        around.push(path.clone());
        let depth = path.components().count();
        let is_on_the_way = |rule: &Vec<Pattern>| rule.len() >= depth && rule_matches(&rule[..depth], path);
        let is_below = |rule: &Vec<Pattern>| around.iter().any(|path| rule_matches(rule, path));
        self.0.positive.iter().any(|rule| is_on_the_way(rule) || is_below(rule))
            && !around.iter().any(|path| !path.is_root() && self.0.excludes(path))
    }
}

fn rule_matches(rule: &[Pattern], path: &RepoPath) -> bool {
    rule.len() == path.components().count()
        && rule.iter().zip(path.components()).all(|(pattern, name)| pattern.matches(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matching(rules: &str, paths: &[&str]) -> Vec<String> {
        let dirtab = Dirtab::parse(rules.as_bytes()).unwrap();
        paths.iter().filter(|path| dirtab.matches(&path.parse().unwrap())).map(ToString::to_string).collect()
    }

    #[test]
    fn rules_select_directories() {
        let paths = ["/", "/a", "/a/b", "/a/b/c", "/a/bb", "/a/.b", "/x/b", "/a*", "/a/tmp", "/a/b/tmp"];
        for (rules, expected) in [
            ("", vec![]),
            ("# nothing\n\n  \n", vec![]),
            ("/a", vec!["/a"]),
            ("  /a/  ", vec!["/a"]),
            ("/*", vec!["/a", "/a*"]),
            ("/a/*", vec!["/a/b", "/a/bb", "/a/.b", "/a/tmp"]),
            ("/a/b?", vec!["/a/bb"]),
            ("/*/b", vec!["/a/b", "/x/b"]),
            ("/a\\*", vec!["/a*"]),
            ("/a/*/*", vec!["/a/b/c", "/a/b/tmp"]),
            ("/a/*\n!/a/b", vec!["/a/bb", "/a/.b", "/a/tmp"]),
            ("/a/*\n/a/*/*\n! *tmp", vec!["/a/b", "/a/b/c", "/a/bb", "/a/.b"]),
            ("/*/*\n!/a/*", vec!["/x/b"]),
        ] {
            assert_eq!(matching(rules, &paths), expected, "{rules:?}");
        }
    }

    #[test]
    fn what_the_reference_refuses_is_refused() {
        for rules in ["relative/path", "/a\\b", "/a\\", "/a\n!/a", "! /a/\n/a"] {
            assert!(Dirtab::parse(rules.as_bytes()).is_err(), "{rules:?}");
        }
    }

    /// The cases of the reference's own description: on the way, at, below, beside, taken out.
    #[test]
    fn a_filter_selects_the_way_and_all_below() {
        let filter = PathFilter::parse(b"/a/b/c\n/x/*/z\n! /a/b/c/no\n!*/tmp").unwrap();
        for (path, expected) in [
            ("/a", true),
            ("/a/b", true),
            ("/a/b/c", true),
            ("/a/b/c/d/e", true),
            ("/a/b/d", false),
            ("/b", false),
            ("/x/1", true),
            ("/x/1/z/deep", true),
            ("/x/1/y", false),
            ("/a/b/c/no", false),
            ("/a/b/c/no/deep", false),
            ("/a/b/c/nowhere", true),
            ("/a/b/c/tmp/x", false),
        ] {
            assert_eq!(filter.matches(&path.parse().unwrap()), expected, "{path}");
        }
        assert!(!PathFilter::parse(b"").unwrap().matches(&"/a".parse().unwrap()));
    }

    #[test]
    fn only_promising_directories_are_searched() {
        let dirtab = Dirtab::parse(b"/a/*/c").unwrap();
        for (path, expected) in [("/", true), ("/a", true), ("/a/x", true), ("/a/x/c", false), ("/b", false)] {
            assert_eq!(dirtab.may_match_below(&path.parse().unwrap()), expected, "{path}");
        }
    }
}
