//! The browser of trees: tags, directories, and single entries.

use std::sync::Arc;

use cvmfs_core::catalog::Row;
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::entry::{EntryKind, FileContent, Mount};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::hash::ContentHash;
use cvmfs_core::history::{Tag, TagName};
use cvmfs_core::listing::kind_name;
use cvmfs_core::manifest::Manifest;
use cvmfs_core::path::{RepoPath, display};
use maud::{Markup, html};

use super::{ago, bytes, encode, grouped, layout};
use crate::serve::connection::Shared;
use crate::serve::librarian::{Librarian, Shelf, read_manifest};
use crate::serve::repositories::Storage;
use crate::serve::route::Entry;

/// Entries of a directory on one page.
const PAGE: usize = 500;

/// Objects of a file that are listed.
const OBJECTS_MAX: usize = 40;

/// A repository that can be looked into.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) storage: Storage,
    pub(super) manifest: Manifest,
}

/// A revision as somebody named it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) root: ContentHash,
    pub(super) revision: Option<u64>,
    pub(super) time: Option<UnixSeconds>,
}

/// Finds a repository that is served.
pub(super) async fn place<'a>(name: &str, shared: &'a Shared) -> Result<(Place, &'a Librarian)> {
    let missing = || Error::not_found(format!("repository {name}"));
    let librarian = shared.librarian.as_ref().ok_or_else(missing)?;
    let storage = shared.repositories.storage(name).ok_or_else(missing)?;
    let from = storage.clone();
    let manifest = librarian.ask(move |_| read_manifest(&from)).await;
    let manifest = manifest.map_err(|error| if error.is_not_found() { missing() } else { error })?;
    Ok((Place { manifest: manifest.unverified().clone(), storage }, librarian))
}

/// Makes sense of how an address names a revision: a tag, a number or the hash of a root catalog.
pub(super) fn find(shelf: &mut Shelf, place: &Place, name: &str) -> Result<Found> {
    let manifest = &place.manifest;
    let head = Found { root: manifest.root_catalog, revision: Some(manifest.revision), time: manifest.timestamp };
    if name == TagName::trunk().as_str() || name.parse() == Ok(manifest.revision) {
        return Ok(head);
    }
    let tags = shelf.tags(&place.storage, manifest)?;
    let by_name = tags.iter().find(|tag| tag.name == name);
    let found = by_name.or_else(|| tags.iter().find(|tag| name.parse() == Ok(tag.revision)));
    match (found, name.parse::<ContentHash>()) {
        (Some(tag), _) => Ok(Found { root: tag.root, revision: Some(tag.revision), time: Some(tag.timestamp) }),
        (None, Ok(root)) if root == manifest.root_catalog => Ok(head),
        (None, Ok(root)) => Ok(Found { root, revision: None, time: None }),
        (None, Err(_)) => Err(Error::not_found(format!("tag {name:?}"))),
    }
}

/// The page with the tags of a repository.
pub(super) async fn tags(repository: &str, shared: &Arc<Shared>) -> Result<Markup> {
    let name = repository.to_owned();
    let place_name = name.clone();
    let (place, librarian) = place(&place_name, shared).await?;
    let manifest = place.manifest.clone();
    let tags = librarian.ask(move |shelf| shelf.tags(&place.storage, &place.manifest)).await?;
    let now = crate::serve::unix_now();
    let body = html! {
        header class="top" { (crumbs(&name, None, &RepoPath::root())) }
        main {
            h1 { (name) }
            p class="role" {
                "Revision " (grouped(manifest.revision))
                @if let Some(time) = manifest.timestamp { ", published " (ago(time, now)) }
                ", root catalog " code { (manifest.root_catalog.to_string()) }
            }
            p { a class="button" href=(address(&name, TagName::trunk().as_str(), &RepoPath::root())) { "Browse the newest revision" } }
            @if !tags.is_empty() { (tag_table(&name, &tags, now)) }
        }
    };
    Ok(layout(&name, &body))
}

fn tag_table(name: &str, tags: &[Tag], now: UnixSeconds) -> Markup {
    html! {
        table {
            thead { tr { th { "Tag" } th class="number" { "Revision" } th { "Published" } th class="wide" { "Description" } } }
            tbody {
                @for tag in tags {
                    tr {
                        td { a href=(address(name, &tag.name, &RepoPath::root())) { (display(tag.name.as_bytes())) } }
                        td class="number" { (grouped(tag.revision)) }
                        td { (ago(tag.timestamp, now)) }
                        td class="wide" {
                            (display(tag.description.as_bytes()))
                            @if !tag.branch.is_empty() { " (branch " (display(tag.branch.as_bytes())) ")" }
                        }
                    }
                }
            }
        }
    }
}

/// What is at a path.
struct View {
    found: Found,
    row: Row,
    /// Sorted rows of a directory.
    listing: Option<Vec<Row>>,
}

/// The page of a directory or another entry.
pub(super) async fn entry(entry: Entry, query: Option<&str>, shared: &Arc<Shared>) -> Result<Markup> {
    let (place, librarian) = place(&entry.repository, shared).await?;
    let fqrn = place.manifest.name.to_string();
    let (tag, path) = (entry.tag.clone(), entry.path.clone());
    let view = librarian.ask(move |shelf| view(shelf, &place, &tag, &path)).await?;
    let now = crate::serve::unix_now();
    let page = query.and_then(|query| query.strip_prefix("page=")).and_then(|page| page.parse().ok()).unwrap_or(1);
    let title = format!("{} in {}", display(entry.path.name()), entry.repository);
    let content = match &view.listing {
        Some(rows) => directory(&entry, &fqrn, rows, page, now),
        None => single(&entry, &fqrn, &view.row, now),
    };
    let body = html! {
        header class="top" { (crumbs(&entry.repository, Some(&entry.tag), &entry.path)) }
        main {
            p class="role" {
                @match view.found.revision {
                    Some(revision) => { "Revision " (grouped(revision)) },
                    None => { "Root catalog " code { (view.found.root.to_string()) } },
                }
                @if let Some(time) = view.found.time { ", published " (ago(time, now)) }
            }
            (content)
        }
    };
    Ok(layout(if entry.path.is_root() { &entry.repository } else { &title }, &body))
}

fn view(shelf: &mut Shelf, place: &Place, tag: &str, path: &RepoPath) -> Result<View> {
    let found = find(shelf, place, tag)?;
    let tree = shelf.tree(&place.storage, found.root)?;
    let row = tree.find(path)?.ok_or_else(|| Error::not_found(format!("/{}", display(path.as_bytes()))))?;
    let listing = if row.entry.is_directory() {
        let mut rows = tree.list(path)?;
        rows.retain(|row| !row.entry.hidden);
        rows.sort_by(|one, other| {
            let key = |row: &Row| !row.entry.is_directory();
            key(one).cmp(&key(other)).then_with(|| one.name.cmp(&other.name))
        });
        Some(rows)
    } else {
        None
    };
    Ok(View { found, row, listing })
}

fn directory(entry: &Entry, fqrn: &str, rows: &[Row], page: usize, now: UnixSeconds) -> Markup {
    let pages = rows.len().div_ceil(PAGE).max(1);
    let page = page.clamp(1, pages);
    let shown = &rows[(page - 1) * PAGE..rows.len().min(page * PAGE)];
    html! {
        table class="files" {
            thead { tr { th { "Name" } th class="number" { "Size" } th { "Modified" } th class="wide" { "Mode" } th class="wide" { "Owner" } } }
            tbody {
                @if let Some(parent) = entry.path.parent() {
                    tr { td class="name" colspan="5" { a href=(address(&entry.repository, &entry.tag, &parent)) { ".." } } }
                }
                @for row in shown { (line(entry, fqrn, row, now)) }
            }
        }
        @if rows.is_empty() { p class="empty" { "This directory is empty." } }
        p class="server" {
            (grouped(rows.len() as u64)) @if rows.len() == 1 { " entry" } @else { " entries" }
            @if pages > 1 {
                ", page " (page) " of " (pages)
                @if page > 1 { " · " a href={ "?page=" (page - 1) } { "previous" } }
                @if page < pages { " · " a href={ "?page=" (page + 1) } { "next" } }
            }
        }
    }
}

fn line(entry: &Entry, fqrn: &str, row: &Row, now: UnixSeconds) -> Markup {
    // A name that is no name cannot be in an address; it is shown all the same.
    let path = entry.path.child(&row.name).ok();
    let name = display(&row.name);
    html! {
        tr class=(class(row)) {
            td class="name" {
                @match &path {
                    Some(path) => a href=(address(&entry.repository, &entry.tag, path)) { (name) },
                    None => (name),
                }
                @if row.entry.is_directory() { "/" }
                @if let EntryKind::Symlink { target } = &row.entry.kind {
                    span class="target" { " → " (link(entry, fqrn, &entry.path, target)) }
                }
            }
            td class="number" {
                @if let EntryKind::File(file) = &row.entry.kind {
                    @match path.as_ref().filter(|_| !file.external) {
                        Some(path) => a class="download" href=(download(entry, path)) download { (bytes(file.size)) },
                        None => (bytes(file.size)),
                    }
                }
            }
            td { (modified(row, now)) }
            td class="wide mode" { (mode(row)) }
            td class="wide" { (row.entry.uid) ":" (row.entry.gid) }
        }
    }
}

/// The page of an entry that is no directory.
fn single(entry: &Entry, fqrn: &str, row: &Row, now: UnixSeconds) -> Markup {
    let parent = entry.path.parent().unwrap_or_default();
    html! {
        h1 class="name" { (display(entry.path.name())) }
        @if let EntryKind::File(file) = &row.entry.kind {
            p {
                @if file.external {
                    "The content is on another server, not in the repository."
                } @else {
                    a class="button" href=(download(entry, &entry.path)) download { "Download " (bytes(file.size)) }
                }
            }
        }
        dl class="details" {
            (detail("Type", &html! { (kind_name(&row.entry.kind)) }))
            @if let EntryKind::Symlink { target } = &row.entry.kind {
                (detail("Target", &link(entry, fqrn, &parent, target)))
            }
            (detail("Mode", &html! { (mode(row)) }))
            (detail("Owner", &html! { (row.entry.uid) ":" (row.entry.gid) }))
            (detail("Modified", &modified(row, now)))
            @if row.hardlinks.count > 1 { (detail("Names", &html! { (row.hardlinks.count) })) }
            @if let EntryKind::File(file) = &row.entry.kind { (file_details(file)) }
            @for (key, value) in row.entry.xattrs.iter() {
                (detail("Attribute", &html! { (display(key)) " = " (display(value)) }))
            }
        }
    }
}

fn file_details(file: &FileContent) -> Markup {
    let parts = file.parts();
    html! {
        (detail("Size", &html! { (grouped(file.size)) " bytes" }))
        (detail("Stored", &html! { (file.compression.to_string()) }))
        (detail(if parts.len() == 1 { "Object" } else { "Chunks" }, &html! {
            @if parts.len() > 1 { (grouped(parts.len() as u64)) }
            ul class="objects" {
                @for (id, size) in parts.iter().take(OBJECTS_MAX) {
                    li { code { (id.to_string()) } @if parts.len() > 1 { " " (bytes(*size)) } }
                }
                @if parts.len() > OBJECTS_MAX { li { "…" } }
            }
        }))
    }
}

fn detail(name: &str, value: &Markup) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

/// The target of a link; an address only if it is a place in this repository.
fn link(entry: &Entry, fqrn: &str, from: &RepoPath, target: &[u8]) -> Markup {
    let text = display(target);
    html! {
        @match resolve(fqrn, from, target) {
            Some(path) => a href=(address(&entry.repository, &entry.tag, &path)) { (text) },
            None => (text),
        }
    }
}

/// The place in the repository that a link in the directory `from` leads to; `None` if it leads out of it.
fn resolve(fqrn: &str, from: &RepoPath, target: &[u8]) -> Option<RepoPath> {
    let mut names: Vec<&[u8]> = Vec::new();
    let relative = if target.starts_with(b"/") {
        let inside = target.strip_prefix(b"/cvmfs/")?.strip_prefix(fqrn.as_bytes())?;
        if !inside.is_empty() && !inside.starts_with(b"/") {
            return None;
        }
        inside
    } else {
        names.extend(from.components());
        target
    };
    for name in relative.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop()?;
            }
            _ => names.push(name),
        }
    }
    RepoPath::from_bytes(&names.join(&b'/')).ok()
}

/// The way back, step by step.
fn crumbs(repository: &str, tag: Option<&str>, path: &RepoPath) -> Markup {
    let mut steps = path.ancestors();
    steps.retain(|step| !step.is_root());
    html! {
        nav class="crumbs" aria-label="Path" {
            a href="/" { "Repositories" }
            span { a href={ "/browse/" (encode(repository.as_bytes())) "/" } { (repository) } }
            @if let Some(tag) = tag {
                span { a class="tag" href=(address(repository, tag, &RepoPath::root())) { (display(tag.as_bytes())) } }
                @for step in &steps { span { a href=(address(repository, tag, step)) { (display(step.name())) } } }
                @if !path.is_root() { span class="here" { (display(path.name())) } }
            }
        }
    }
}

/// The address of an entry's page.
fn address(repository: &str, tag: &str, path: &RepoPath) -> String {
    place_in("/browse", repository, tag, path)
}

fn download(entry: &Entry, path: &RepoPath) -> String {
    place_in("/download", &entry.repository, &entry.tag, path)
}

fn place_in(prefix: &str, repository: &str, tag: &str, path: &RepoPath) -> String {
    let mut address = format!("{prefix}/{}/{}", encode(repository.as_bytes()), encode(tag.as_bytes()));
    for name in path.components() {
        address.push('/');
        address.push_str(&encode(name));
    }
    address
}

fn modified(row: &Row, now: UnixSeconds) -> Markup {
    ago(UnixSeconds(row.entry.mtime.seconds), now)
}

fn class(row: &Row) -> &'static str {
    match &row.entry.kind {
        EntryKind::Directory(Mount::Mountpoint | Mount::Root) => "directory nested",
        EntryKind::Directory(_) => "directory",
        EntryKind::File(file) if file.external => "file external",
        EntryKind::File(_) if row.entry.permissions & 0o111 != 0 => "file program",
        EntryKind::File(_) => "file",
        EntryKind::Symlink { .. } => "symlink",
        EntryKind::Special(_) => "special",
    }
}

/// Permission bits as `ls` writes them.
fn mode(row: &Row) -> String {
    let kind = match &row.entry.kind {
        EntryKind::Directory(_) => 'd',
        EntryKind::File(_) => '-',
        EntryKind::Symlink { .. } => 'l',
        EntryKind::Special(_) => 's',
    };
    let bits = row.entry.permissions;
    let letter = |bit: u32, letter: char| if bits & bit != 0 { letter } else { '-' };
    let execute = |bit: u32, special: u32, letter: char| match (bits & bit != 0, bits & special != 0) {
        (true, true) => letter,
        (false, true) => letter.to_ascii_uppercase(),
        (true, false) => 'x',
        (false, false) => '-',
    };
    [
        kind,
        letter(0o400, 'r'),
        letter(0o200, 'w'),
        execute(0o100, 0o4000, 's'),
        letter(0o040, 'r'),
        letter(0o020, 'w'),
        execute(0o010, 0o2000, 's'),
        letter(0o004, 'r'),
        letter(0o002, 'w'),
        execute(0o001, 0o1000, 't'),
    ]
    .into_iter()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_places_in_the_repository_or_nowhere() {
        let from: RepoPath = "a/b".parse().unwrap();
        for (target, expected) in [
            (&b"c"[..], Some("a/b/c")),
            (b"./c/", Some("a/b/c")),
            (b"../c", Some("a/c")),
            (b"../..", Some("")),
            (b"../../..", None),
            (b"/etc/passwd", None),
            (b"/cvmfs/sw.example.org/x", Some("x")),
            (b"/cvmfs/sw.example.org", Some("")),
            (b"/cvmfs/sw.example.organ/x", None),
            (b"/cvmfs/other.example.org/x", None),
            (b"javascript:alert(1)", Some("a/b/javascript:alert(1)")),
            (b"//evil.example.org/x", None),
        ] {
            let expected = expected.map(|path| path.parse::<RepoPath>().unwrap());
            assert_eq!(resolve("sw.example.org", &from, target), expected, "{}", display(target));
        }
    }

    #[test]
    fn addresses_never_leave_their_prefix() {
        let path: RepoPath = "javascript:alert(1)/\"><script>".parse().unwrap();
        assert_eq!(
            address("sw.example.org", "v1/x", &path),
            "/browse/sw.example.org/v1%2Fx/javascript%3Aalert%281%29/%22%3E%3Cscript%3E"
        );
    }
}
