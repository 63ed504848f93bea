//! What of a repository a partial replica holds: paths, tags, ages.

use std::path::{Path, PathBuf};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::dirtab::PathFilter;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::glob::Pattern;
use cvmfs_core::hash::Algorithm;
use cvmfs_core::history::{Tag, TagName};
use cvmfs_core::path::RepoPath;
use cvmfs_core::server::Variables;

/// The selected part of a repository; by default all of it.
///
/// The newest revision is always selected.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    paths: Option<Paths>,
    tags: Option<Vec<Pattern>>,
    days: Option<u32>,
}

#[derive(Debug, Clone)]
struct Paths {
    filter: PathFilter,
    /// Tells catalogs that are complete under one filter from those under another.
    key: String,
}

impl Selection {
    /// Reads `CVMFS_REPLICA_PATHS` (a file with a path specification), `CVMFS_REPLICA_TAGS` (patterns, separated by
    /// blanks) and `CVMFS_REPLICA_DAYS`.
    pub fn of(variables: &Variables) -> Result<Self> {
        let mut selection = Self::default();
        if let Some(file) = variables.get("CVMFS_REPLICA_PATHS") {
            selection = selection.with_paths(&PathBuf::from(file))?;
        }
        if let Some(patterns) = variables.get("CVMFS_REPLICA_TAGS") {
            selection = selection.with_tags(patterns.split_whitespace())?;
        }
        selection.days = variables.parse("CVMFS_REPLICA_DAYS")?;
        Ok(selection)
    }

    /// Selects nested catalogs by a path specification in a file.
    pub fn with_paths(mut self, file: &Path) -> Result<Self> {
        let text = std::fs::read(file).at(file)?;
        let filter = PathFilter::parse(&text)?;
        self.paths = Some(Paths { filter, key: Algorithm::Sha1.hash(&text).to_string() });
        Ok(self)
    }

    /// Selects tags by name.
    pub fn with_tags<'a>(mut self, patterns: impl Iterator<Item = &'a str>) -> Result<Self> {
        let parse = |text: &str| {
            let invalid =
                || Error::invalid(format!("tag pattern {text:?}"), "a backslash must be followed by *, ? or \\");
            Pattern::parse(text.as_bytes()).ok_or_else(invalid)
        };
        self.tags = Some(patterns.map(parse).collect::<Result<_>>()?);
        Ok(self)
    }

    /// Whether the tree at this path is selected.
    pub fn has_path(&self, path: &RepoPath) -> bool {
        path.is_root() || self.paths.as_ref().is_none_or(|paths| paths.filter.matches(path))
    }

    /// Whether the revision that a tag names is selected.
    ///
    /// The name of the newest revision says nothing about it: that is selected in any case.
    pub fn has_tag(&self, tag: &Tag, now: UnixSeconds) -> bool {
        let is_named = match &self.tags {
            None => true,
            Some(patterns) => patterns.iter().any(|pattern| pattern.matches(tag.name.as_bytes())),
        };
        is_named && self.oldest(now).is_none_or(|oldest| tag.timestamp >= oldest)
            || tag.name == TagName::trunk().as_str()
    }

    /// The time before which revisions are left out.
    pub fn oldest(&self, now: UnixSeconds) -> Option<UnixSeconds> {
        self.days.map(|days| UnixSeconds(now.0 - i64::from(days) * 86_400))
    }

    /// What tells trees that are complete in this selection from those in another; empty for complete trees.
    pub fn path_key(&self) -> &str {
        self.paths.as_ref().map_or("", |paths| &paths.key)
    }

    /// What tells whether a run with this selection brought all that a run with another one would.
    pub fn key(&self) -> String {
        format!("{}|{:?}|{:?}", self.path_key(), self.tags, self.days)
    }
}
