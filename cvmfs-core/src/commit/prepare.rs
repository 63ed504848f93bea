//! What a change set needs before it can be applied to the head: conflicts looked for, links resolved, markers added.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::{MARKER, Row};
use crate::change::Metadata;
use crate::changeset::{ChangeSet, Op, Pending};
use crate::clock::UnixSeconds;
use crate::diff::{self, Side, diff};
use crate::dirtab::{self, Dirtab, MAX_SIZE};
use crate::entry::{Entry, EntryKind, FileContent, Mount, Mtime};
use crate::error::{Error, Result};
use crate::object::read_error;
use crate::path::RepoPath;
use crate::tree::Tree;
use crate::xattr::Xattrs;

/// Finds paths that the change set touches and that another commit changed since the change set's maker looked.
///
/// # Errors
/// `Conflict` naming the first such path.
pub(super) fn check_conflicts(changes: &ChangeSet, base: &mut Tree, head: &mut Tree) -> Result<()> {
    // The last directory without a row that is still there: the next new entry is most often in the same one.
    let mut kept: Option<RepoPath> = None;
    changes.for_each(|Pending { path, op, cleared, origin, .. }| {
        let (before, now) = (base.find(&path)?, head.find(&path)?);
        let was_directory = is_directory(before.as_ref());
        let mut collides = match &op {
            Op::Ensure(_) if !cleared => !is_directory(now.as_ref()) && !same_row(before.as_ref(), now.as_ref()),
            // Two publishers that remove the same thing, or put the very same thing, agree.
            Op::Remove if now.is_none() => false,
            Op::Put(entry) if !cleared && now.as_ref().is_some_and(|row| same_entry(entry, &row.entry)) => false,
            Op::Put(_) | Op::LinkToExisting(_) if !was_directory => !same_row(before.as_ref(), now.as_ref()),
            Op::Put(entry) if entry.is_directory() && !cleared => !same_row(before.as_ref(), now.as_ref()),
            // The whole tree below goes: what somebody put there meanwhile must not go with it.
            _ => !same_tree(&path, before.as_ref(), now.as_ref(), base, head)?,
        };
        let is_new = before.is_none() && now.is_none() && !matches!(op, Op::Remove | Op::Keep);
        if let Some(directory) = path.parent().filter(|directory| is_new && kept.as_ref() != Some(directory)) {
            collides |= is_directory(base.find(&directory)?.as_ref()) && !is_directory(head.find(&directory)?.as_ref());
            kept = Some(directory);
        }
        if collides {
            let reason = "another commit changed it meanwhile; run again to apply to the new head";
            return Err(Error::conflict(path.to_string(), reason).from_origin(origin.as_ref()));
        }
        Ok(())
    })
}

fn is_directory(row: Option<&Row>) -> bool {
    row.is_some_and(|row| row.entry.is_directory())
}

fn same_row(before: Option<&Row>, now: Option<&Row>) -> bool {
    match (before, now) {
        (None, None) => true,
        (Some(before), Some(now)) => same_entry(&before.entry, &now.entry),
        _ => false,
    }
}

/// Whether two entries are the same but for the role of directories among catalogs.
fn same_entry(before: &Entry, now: &Entry) -> bool {
    match (&before.kind, &now.kind) {
        (EntryKind::Directory(_), EntryKind::Directory(_)) => {
            Entry { kind: now.kind.clone(), ..before.clone() } == *now
        }
        _ => before == now,
    }
}

/// Whether a path with these rows is the same, with everything below it.
fn same_tree(
    top: &RepoPath,
    before: Option<&Row>,
    now: Option<&Row>,
    base: &mut Tree,
    head: &mut Tree,
) -> Result<bool> {
    let mut same = same_row(before, now);
    if same && is_directory(now) {
        let (base, head) = (Side::at(base, top.clone()), Side::at(head, top.clone()));
        diff(base, head, diff::Options::default(), &mut |_| {
            same = false;
            Ok(())
        })?;
    }
    Ok(same)
}

/// Replaces links to entries of the repository by the entries themselves, as names of one file.
///
/// # Errors
/// `InvalidInput` if a target does not exist or is a directory.
pub(super) fn resolve_links(changes: &mut ChangeSet, head: &mut Tree) -> Result<()> {
    // By one name of each file, whichever of its names the links name.
    let mut links: BTreeMap<RepoPath, (Row, Vec<RepoPath>)> = BTreeMap::new();
    for Pending { path, op, origin, .. } in changes.links()? {
        let Op::LinkToExisting(target) = op else { continue };
        let row = find_target(&path, &target, head).map_err(|error| error.from_origin(origin.as_ref()))?;
        let first = first_name(target, &row, head)?;
        links.entry(first).or_insert_with(|| (row, Vec::new())).1.push(path);
    }
    for (target, (row, paths)) in links {
        let mut names: BTreeSet<RepoPath> = paths.iter().cloned().collect();
        if let Some(directory) =
            target.parent().filter(|directory| paths.iter().any(|path| path.parent().as_ref() == Some(directory)))
        {
            // The target and its other names in the directory become members of the same group.
            for sibling in head.list(&directory)? {
                let path = directory.child(&sibling.name)?;
                let is_member =
                    path == target || (row.hardlinks.group != 0 && sibling.hardlinks.group == row.hardlinks.group);
                if is_member && changes.get(&path)?.is_none() {
                    names.insert(path);
                }
            }
        }
        changes.put_linked(&names, &row.entry)?;
    }
    Ok(())
}

fn find_target(path: &RepoPath, target: &RepoPath, head: &mut Tree) -> Result<Row> {
    let invalid = |reason| Error::invalid(path.to_string(), reason);
    match head.find(target)? {
        Some(row) if row.entry.is_directory() => Err(invalid(format!("hard link to the directory {target}"))),
        Some(row) => Ok(row),
        None => Err(invalid(format!("hard link to {target}, which does not exist"))),
    }
}

/// The first name that a file has in the directory of one of its names.
fn first_name(name: RepoPath, row: &Row, head: &mut Tree) -> Result<RepoPath> {
    let group = row.hardlinks.group;
    match name.parent() {
        Some(directory) if group != 0 => match head.list(&directory)?.iter().find(|row| row.hardlinks.group == group) {
            Some(first) => directory.child(&first.name),
            None => Ok(name),
        },
        _ => Ok(name),
    }
}

/// Adds a catalog marker to each directory that is asked for and has none: by the change set, or by `.cvmfsdirtab`. `marker` is the content of an empty file.
pub(super) fn add_markers(
    changes: &mut ChangeSet,
    head: &mut Tree,
    marker: &EntryKind,
    now: UnixSeconds,
) -> Result<()> {
    let mut wanted = find_selected(changes, head)?;
    for path in changes.wanted_catalogs()? {
        let path = &path;
        let entry = match changes.get(path)?.map(|pending| pending.op) {
            Some(Op::Put(entry) | Op::Ensure(entry)) => Some(entry),
            None | Some(Op::Keep) if !goes(path, changes)? => head.find(path)?.map(|row| row.entry),
            _ => None,
        };
        let entry = entry.filter(|entry| entry.is_directory() && !path.is_root());
        let entry = entry.ok_or_else(|| Error::invalid(path.to_string(), "it cannot become a nested catalog"))?;
        wanted.insert(path.clone(), entry);
    }
    for (directory, entry) in wanted {
        let at = directory.child(MARKER)?;
        let exists = match changes.get(&at)? {
            Some(pending) => !matches!(pending.op, Op::Remove),
            None => head.find(&at)?.is_some() && !goes(&at, changes)?,
        };
        if !exists {
            let mtime = Mtime::seconds(now.0);
            let metadata =
                Metadata { permissions: 0o644, uid: entry.uid, gid: entry.gid, mtime, xattrs: Xattrs::new() };
            changes.put(&at, &metadata.into_entry(marker.clone()))?;
        }
    }
    Ok(())
}

/// Finds what `.cvmfsdirtab` selects: of the directories of the change set, and in the whole tree if the rules
/// themselves change.
fn find_selected(changes: &ChangeSet, head: &mut Tree) -> Result<BTreeMap<RepoPath, Entry>> {
    let mut wanted = BTreeMap::new();
    let path = RepoPath::root().child(dirtab::NAME)?;
    let old = head.find(&path)?.map(|row| row.entry);
    let new = match changes.get(&path)?.map(|pending| pending.op) {
        Some(Op::Put(entry)) => Some(entry),
        Some(Op::Remove) => None,
        _ => old.clone(),
    };
    let Some(Entry { kind: EntryKind::File(file), .. }) = &new else { return Ok(wanted) };
    let rules = Dirtab::parse(&read_small_file(head, &path, file)?)?;
    changes.for_each(|pending| {
        if let Op::Put(entry) | Op::Ensure(entry) = pending.op
            && entry.is_directory()
            && rules.matches(&pending.path)
        {
            wanted.insert(pending.path, entry);
        }
        Ok(())
    })?;
    if old != new {
        find_matches(&rules, &RepoPath::root(), changes, head, &mut wanted)?;
    }
    Ok(wanted)
}

fn find_matches(
    rules: &Dirtab,
    directory: &RepoPath,
    changes: &ChangeSet,
    head: &mut Tree,
    wanted: &mut BTreeMap<RepoPath, Entry>,
) -> Result<()> {
    for row in head.list(directory)? {
        let path = directory.child(&row.name)?;
        let is_plain = !matches!(row.entry.kind, EntryKind::Directory(Mount::Bind)) && row.entry.is_directory();
        if !is_plain || goes(&path, changes)? {
            continue;
        }
        if rules.matches(&path) {
            wanted.entry(path.clone()).or_insert_with(|| row.entry.clone());
        }
        if rules.may_match_below(&path) {
            find_matches(rules, &path, changes, head, wanted)?;
        }
    }
    Ok(())
}

/// Whether the change set removes or replaces a path of the repository, or a directory above it.
fn goes(path: &RepoPath, changes: &ChangeSet) -> Result<bool> {
    let mut places = path.ancestors();
    places.push(path.clone());
    for place in places {
        match changes.get(&place)? {
            Some(Pending { op: Op::Remove | Op::LinkToExisting(_), .. }) => return Ok(true),
            Some(Pending { op: Op::Put(entry), .. }) if !entry.is_directory() => return Ok(true),
            Some(Pending { cleared: true, .. }) if place != *path => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

fn read_small_file(tree: &Tree, path: &RepoPath, file: &FileContent) -> Result<Vec<u8>> {
    if file.size > MAX_SIZE {
        return Err(Error::invalid(path.to_string(), format!("larger than {MAX_SIZE} bytes")));
    }
    let mut content = Vec::new();
    let mut reader = tree.open_file(path, file)?;
    std::io::Read::read_to_end(&mut reader, &mut content).map_err(|error| read_error(&path.to_string(), error))?;
    Ok(content)
}
