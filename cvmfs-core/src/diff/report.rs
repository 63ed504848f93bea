//! Differences for people and programs.

use std::fmt;

use serde::Serialize;

use super::{Aspect, Difference, Fate, Version};
use crate::clock::UnixSeconds;
use crate::entry::{EntryKind, FileObjects, Mtime, Special};
use crate::listing::{Listed, kind_name};
use crate::path::display;

/// A difference for JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The path, escaped where it is not printable.
    pub path: String,
    /// What became of it.
    pub fate: Fate,
    /// What changed; empty unless the fate is `changed`.
    pub aspects: Vec<Aspect>,
    /// The entry before.
    pub before: Option<Listed>,
    /// The entry after.
    pub after: Option<Listed>,
}

impl From<&Difference> for Report {
    fn from(difference: &Difference) -> Self {
        let listed = |version: &Option<Version>| {
            version.as_ref().map(|version| Listed::new(&difference.path, version.links, &version.entry))
        };
        Self {
            path: difference.path.to_string(),
            fate: difference.fate(),
            aspects: difference.aspects.clone(),
            before: listed(&difference.before),
            after: listed(&difference.after),
        }
    }
}

/// One line: `+ /added`, `- /removed`, or `M /changed  size 10 -> 12, mtime ...`.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => {
                let details: Vec<String> =
                    self.aspects.iter().map(|aspect| describe_change(*aspect, before, after)).collect();
                write!(f, "M {path}  {}", details.join(", "))
            }
            (None, _) => write!(f, "+ {path}"),
            (_, None) => write!(f, "- {path}"),
        }
    }
}

fn describe_change(aspect: Aspect, before: &Version, after: &Version) -> String {
    let shown: Option<[String; 2]> = match aspect {
        Aspect::Content | Aspect::Storage | Aspect::Xattrs => None,
        _ => Some([describe(aspect, before), describe(aspect, after)]),
    };
    match shown {
        Some([before, after]) => format!("{} {before} -> {after}", aspect.name()),
        None => aspect.name().into(),
    }
}

/// The value of an aspect; empty if the entry has no such thing.
fn describe(aspect: Aspect, version: &Version) -> String {
    let entry = &version.entry;
    match (aspect, &entry.kind) {
        (Aspect::Type, kind) => kind_name(kind).into(),
        (Aspect::Size, _) => entry.size_column().to_string(),
        (Aspect::Chunks, EntryKind::File(file)) => match &file.objects {
            FileObjects::Whole(_) => "none".into(),
            FileObjects::Chunked { chunks, .. } => chunks.len().to_string(),
        },
        (Aspect::Target, EntryKind::Symlink { target }) => display(target),
        (Aspect::Device, EntryKind::Special(Special::CharacterDevice(device) | Special::BlockDevice(device))) => {
            format!("{device:#x}")
        }
        (Aspect::Mode, _) => format!("{:04o}", entry.permissions),
        (Aspect::Owner, _) => format!("{}:{}", entry.uid, entry.gid),
        (Aspect::Mtime, _) => {
            let Mtime { seconds, nanoseconds } = entry.mtime;
            let fraction = nanoseconds.map_or_else(String::new, |nanoseconds| format!(".{nanoseconds:09}"));
            UnixSeconds(seconds).iso().replace('Z', &format!("{fraction}Z"))
        }
        (Aspect::Links, _) => version.links.to_string(),
        (Aspect::Nesting, EntryKind::Directory(mount)) => {
            if mount.is_catalog() {
                "catalog".into()
            } else {
                "none".into()
            }
        }
        _ => String::new(),
    }
}

/// Counts of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Summary {
    /// Entries added.
    pub added: u64,
    /// Entries removed.
    pub removed: u64,
    /// Entries changed.
    pub changed: u64,
    /// Those of them whose content is the same.
    pub metadata_only: u64,
    /// Plain bytes of regular files among the entries added and those after a change of content. A file counts once,
    /// however many names it has.
    pub bytes_added: u64,
    /// The same of the entries removed and those before a change of content.
    pub bytes_removed: u64,
}

impl Summary {
    /// Counts one more difference.
    pub fn add(&mut self, difference: &Difference) {
        match difference.fate() {
            Fate::Added => self.added += 1,
            Fate::Removed => self.removed += 1,
            Fate::Changed => self.changed += 1,
        }
        if difference.is_metadata_only() {
            self.metadata_only += 1;
            return;
        }
        let bytes = |version: &Option<Version>| match version {
            Some(version) if version.is_first_name(&difference.path) => match &version.entry.kind {
                EntryKind::File(file) => file.size,
                _ => 0,
            },
            _ => 0,
        };
        self.bytes_added += bytes(&difference.after);
        self.bytes_removed += bytes(&difference.before);
    }

    /// Whether the trees are equal.
    pub fn is_empty(&self) -> bool {
        self.added + self.removed + self.changed == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { added, removed, changed, metadata_only, bytes_added, bytes_removed } = self;
        write!(
            f,
            "{added} added, {removed} removed, {changed} changed ({metadata_only} of them in metadata only); \
             {bytes_added} bytes came, {bytes_removed} bytes went"
        )
    }
}
