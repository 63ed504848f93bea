//! Repository paths and names, canonical by type.
//!
//! A [`RepoPath`] is the empty path (the repository root) or names joined by single slashes, as bytes:
//! no empty name, no `.` or `..`, no NUL, no component over 255 bytes. Nothing else can reach a catalog.

use std::fmt;
use std::str::FromStr;

use md5::Digest as _;

use crate::error::{Error, Result};

/// Longest name of a directory entry in bytes, as in Linux.
pub const NAME_MAX: usize = 255;

/// Top-level directory that publishing generates.
const GENERATED: &[u8] = b".cvmfs";

/// A canonical path inside a repository; empty for the root.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct RepoPath(Vec<u8>);

impl RepoPath {
    /// The repository root.
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// Makes a path from bytes that may have leading, trailing and doubled slashes and `.` components.
    ///
    /// # Errors
    /// `InvalidInput` for `..`, NUL bytes and names over 255 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut path = Vec::with_capacity(bytes.len());
        for name in bytes.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
            check_name(name).map_err(|reason| Error::invalid(display(bytes), reason))?;
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        Ok(Self(path))
    }

    /// The bytes, without leading slash; empty for the root.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the repository root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
    }

    /// The directory that holds this path; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let end = self.0.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        Some(Self(self.0[..end].to_vec()))
    }

    /// All directories above this path, the root first; empty for the root itself.
    pub fn ancestors(&self) -> Vec<Self> {
        let slashes = self.0.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let root = (!self.is_root()).then_some(0);
        root.into_iter().chain(slashes).map(|end| Self(self.0[..end].to_vec())).collect()
    }

    /// This path with one more component.
    ///
    /// # Errors
    /// `InvalidInput` if `name` is not a legal name.
    pub fn child(&self, name: &[u8]) -> Result<Self> {
        check_name(name).map_err(|reason| Error::invalid(display(name), reason))?;
        let mut path = Vec::with_capacity(self.0.len() + 1 + name.len());
        path.extend_from_slice(&self.0);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Ok(Self(path))
    }

    /// This path with another one below it.
    #[must_use]
    pub fn join(&self, below: &Self) -> Self {
        match (self.is_root(), below.is_root()) {
            (true, _) => below.clone(),
            (_, true) => self.clone(),
            _ => Self([&self.0[..], b"/", &below.0[..]].concat()),
        }
    }

    /// Whether this is the top-level directory `.cvmfs`, which publishing generates, or something below it.
    ///
    /// No input may change it.
    pub fn is_generated(&self) -> bool {
        self.components().next() == Some(GENERATED)
    }

    /// Whether this path is an entry of a directory.
    pub fn is_in(&self, directory: &Self) -> bool {
        let name = match directory.0.len() {
            0 => Some(&self.0[..]),
            _ => self.0.strip_prefix(&directory.0[..]).and_then(|rest| rest.strip_prefix(b"/")),
        };
        name.is_some_and(|name| !name.is_empty() && !name.contains(&b'/'))
    }

    /// Whether this path is `ancestor` or lies below it.
    pub fn starts_with(&self, ancestor: &Self) -> bool {
        ancestor.is_root()
            || self.0.strip_prefix(&ancestor.0[..]).is_some_and(|rest| rest.first().is_none_or(|&byte| byte == b'/'))
    }

    /// What this path is called seen from `ancestor`; `None` unless it lies there.
    pub fn relative_to(&self, ancestor: &Self) -> Option<Self> {
        self.starts_with(ancestor).then(|| {
            let rest = &self.0[ancestor.0.len()..];
            Self(rest.strip_prefix(b"/").unwrap_or(rest).to_vec())
        })
    }

    /// Compares in tree order: a directory, what is in it, what comes behind it.
    pub fn cmp_in_tree(&self, other: &Self) -> std::cmp::Ordering {
        self.components().cmp(other.components())
    }

    /// The components from the root down.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/').filter(|name| !name.is_empty())
    }

    /// The MD5 that catalogs use as key: of the path with its leading slash, or of nothing for the root.
    pub fn path_hash(&self) -> PathHash {
        let mut hasher = md5::Md5::new();
        if !self.is_root() {
            hasher.update(b"/");
            hasher.update(&self.0);
        }
        PathHash::from_digest(hasher.finalize().into())
    }

    /// The path as catalogs write it in text columns: leading slash, or nothing for the root.
    pub fn to_catalog_text(&self) -> Vec<u8> {
        if self.is_root() { Vec::new() } else { [b"/", &self.0[..]].concat() }
    }
}

/// Orders paths as a depth-first walk visits them: a directory before its content, the content before its
/// next sibling.
impl Ord for RepoPath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.components().cmp(other.components())
    }
}

impl PartialOrd for RepoPath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for RepoPath {
    /// Prints with leading slash; bytes that are not printable UTF-8 are escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", display(&self.0))
    }
}

impl fmt::Debug for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RepoPath({self})")
    }
}

impl FromStr for RepoPath {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::from_bytes(text.as_bytes())
    }
}

fn check_name(name: &[u8]) -> Result<(), &'static str> {
    match name {
        b"" => Err("empty name"),
        b"." | b".." => Err("`.` and `..` cannot be names in a repository"),
        _ if name.len() > NAME_MAX => Err("name longer than 255 bytes"),
        _ if name.contains(&0) => Err("NUL byte in name"),
        _ if name.contains(&b'/') => Err("slash in name"),
        _ => Ok(()),
    }
}

/// Shows bytes from outside readably and safely: control characters and invalid UTF-8 are escaped.
pub fn display(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

/// The key of a path in a catalog: the MD5 of its text as two little-endian halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathHash {
    /// Column `md5path_1`, digest bytes 0 to 7.
    pub first: i64,
    /// Column `md5path_2`, digest bytes 8 to 15.
    pub second: i64,
}

impl PathHash {
    /// The parent of the repository root: all zero, not the hash of anything.
    pub const NULL: Self = Self { first: 0, second: 0 };

    fn from_digest(digest: [u8; 16]) -> Self {
        let half = |at: usize| i64::from_le_bytes(std::array::from_fn(|i| digest[at + i]));
        Self { first: half(0), second: half(8) }
    }

    /// The digest as lower-case hex, as in the manifest's `R` line.
    pub fn to_hex(self) -> String {
        let mut hex = String::with_capacity(32);
        for half in [self.first, self.second] {
            crate::hash::write_hex(&mut hex, &half.to_le_bytes()).expect("writing to a string cannot fail");
        }
        hex
    }
}

/// A fully qualified repository name such as `software.example.org`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(String);

impl RepositoryName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RepositoryName {
    type Err = Error;

    /// Accepts 1 to 60 of `A-Za-z0-9._-`, the first one alphanumeric, with a dot in it.
    ///
    /// Source: `cvmfs/sanitizer.h`.
    fn from_str(text: &str) -> Result<Self> {
        let invalid = |reason: &str| Err(Error::invalid(format!("repository name {text:?}"), reason));
        match text.as_bytes() {
            [] => invalid("empty"),
            bytes if bytes.len() > 60 => invalid("longer than 60 characters"),
            bytes if !bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b)) => {
                invalid("only letters, digits, dots, dashes and underscores are allowed")
            }
            [first, ..] if !first.is_ascii_alphanumeric() => invalid("must begin with a letter or digit"),
            bytes if !bytes.contains(&b'.') => invalid("must be fully qualified, like software.example.org"),
            _ => Ok(Self(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_hashes_match_the_published_vectors() {
        for (path, hex, first, second) in [
            ("", "d41d8cd98f00b204e9800998ecf8427e", 338_333_539_836_370_388, 9_098_107_892_288_553_193),
            ("/a", "0639767f3e9eaad729b54037a7e2abf5", -2_906_336_618_250_618_618, -744_252_105_585_281_751),
            ("/a/b", "aee31d71a4dce5fe24481547cc863476", -79_414_819_578_584_146, 8_517_581_007_188_477_988),
            ("/foo/bar.txt", "a361f6dba3db7cfce1d6d0f7d87bb190", -253_085_982_223_081_053, -8_020_493_289_569_331_487),
            ("/software", "3cdb59a63a3cd12f868155fa9018f956", 3_445_601_412_511_816_508, 6_267_067_367_417_020_806),
        ] {
            let hash = path.parse::<RepoPath>().unwrap().path_hash();
            assert_eq!((hash.first, hash.second, hash.to_hex().as_str()), (first, second, hex), "{path}");
        }
    }

    #[test]
    fn paths_become_canonical() {
        for (input, expected) in [
            ("", "/"),
            ("/", "/"),
            (".", "/"),
            ("./a", "/a"),
            ("././c", "/c"),
            ("a//b", "/a/b"),
            ("/a/b/", "/a/b"),
            ("a/./b", "/a/b"),
            ("...", "/..."),
        ] {
            assert_eq!(input.parse::<RepoPath>().unwrap().to_string(), expected, "{input}");
        }
    }

    #[test]
    fn impossible_paths_are_refused() {
        let long = "x".repeat(256);
        for input in ["..", "a/../b", "/..", "a\0b", long.as_str()] {
            assert!(input.parse::<RepoPath>().is_err(), "{input}");
        }
        assert!("x".repeat(255).parse::<RepoPath>().is_ok());
        assert!(RepoPath::root().child(b"a/b").is_err());
    }

    #[test]
    fn walks_up_and_down() {
        let path: RepoPath = "a/b/c".parse().unwrap();
        let texts: Vec<String> = path.ancestors().iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["/", "/a", "/a/b"]);
        assert_eq!(path.parent().unwrap().to_string(), "/a/b");
        assert_eq!(path.name(), b"c");
        assert!(path.starts_with(&"a/b".parse().unwrap()));
        assert!(!path.starts_with(&"a/bb".parse().unwrap()));
        assert!(!"ab".parse::<RepoPath>().unwrap().starts_with(&"a".parse().unwrap()));
        assert_eq!(RepoPath::root().ancestors(), []);
    }

    #[test]
    fn directories_sort_before_their_content_and_content_before_siblings() {
        let mut paths: Vec<RepoPath> = ["a-b", "a/b", "a", "a!", "b", ""].iter().map(|p| p.parse().unwrap()).collect();
        paths.sort();
        let texts: Vec<String> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["/", "/a", "/a/b", "/a!", "/a-b", "/b"]);
    }

    #[test]
    fn only_the_top_directory_is_generated() {
        for (path, expected) in [(".cvmfs", true), (".cvmfs/a", true), ("a/.cvmfs", false), (".cvmfscatalog", false)] {
            assert_eq!(path.parse::<RepoPath>().unwrap().is_generated(), expected, "{path}");
        }
    }

    #[test]
    fn repository_names_are_checked() {
        assert!("software.example.org".parse::<RepositoryName>().is_ok());
        for name in ["", "nodots", ".a.b", "a b.c", "a/../b.c", &"x.".repeat(31)] {
            assert!(name.parse::<RepositoryName>().is_err(), "{name}");
        }
    }

    #[test]
    fn bytes_from_outside_are_shown_escaped() {
        assert_eq!(display(b"a\nb\xff\xc3\xa9"), "a\\nb\\xff\u{e9}");
    }
}
