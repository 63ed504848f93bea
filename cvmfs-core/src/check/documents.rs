//! Everything that the manifest names, and whatever vouches for it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::Subject;
use super::findings::{Findings, Kind};
use crate::catalog::Catalog;
use crate::clock::UnixSeconds;
use crate::error::{Error, Result};
use crate::hash::{ContentHash, ObjectId, ObjectKind};
use crate::history::{History, Tag, TagName};
use crate::manifest::{Manifest, SignedManifest};
use crate::object;
use crate::reflog::StoredReflog;
use crate::storage::{Key, NamedFile, ReadStore};
use crate::trust::keys::Certificate;
use crate::trust::whitelist::SignedWhitelist;

/// Largest certificate or meta info object that is read, in bytes.
const SMALL_OBJECT_MAX: u64 = 1 << 20;

/// What the documents say, as far as they can be read.
#[derive(Debug)]
pub(super) struct Documents {
    pub(super) manifest: Manifest,
    pub(super) tags: Vec<Tag>,
}

/// The value, or a finding if an error says that something is wrong with the repository.
///
/// # Errors
/// Those that say nothing of the repository.
pub(super) fn found<T>(result: Result<T>, kind: Kind, place: &str, findings: &Findings) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(
            error @ (Error::NotFound { .. }
            | Error::MissingObject { .. }
            | Error::HashMismatch { .. }
            | Error::Malformed { .. }
            | Error::Untrusted { .. }
            | Error::Expired { .. }
            | Error::InvalidInput { .. }
            | Error::Unsupported { .. }
            | Error::Crypto { .. }
            | Error::Database { .. }),
        ) => {
            let mut message = error.to_string();
            if let Some(cause) = std::error::Error::source(&error) {
                message.push_str(&format!(": {cause}"));
            }
            findings.add(kind, place, message);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The same for something that was read from an object, which is lost if that says so.
pub(super) fn found_in<T>(result: Result<T>, kind: Kind, id: ObjectId, findings: &Findings) -> Result<Option<T>> {
    if matches!(result, Err(Error::MissingObject { .. } | Error::HashMismatch { .. } | Error::Malformed { .. })) {
        findings.lose(id);
    }
    found(result, kind, &id.to_string(), findings)
}

/// Looks at whitelist, certificate, manifest, meta info, tag database, reflog and shortcuts; `None` if there is no
/// manifest that could be read.
pub(super) fn inspect(
    subject: &Subject<'_>,
    now: UnixSeconds,
    scratch: &Path,
    findings: &Findings,
) -> Result<Option<Documents>> {
    let store = &subject.read_store();
    let whitelist = store.read(&NamedFile::Whitelist.into()).and_then(|bytes| SignedWhitelist::parse(&bytes));
    let whitelist = found(whitelist, Kind::Whitelist, NamedFile::Whitelist.name(), findings)?;
    if let Some(whitelist) = &whitelist {
        let verified = whitelist.verify(subject.name, subject.master_keys, now);
        found(verified, Kind::Whitelist, NamedFile::Whitelist.name(), findings)?;
    }
    let signed = store.read(&NamedFile::Manifest.into()).and_then(|bytes| SignedManifest::parse(&bytes));
    let Some(signed) = found(signed, Kind::Manifest, NamedFile::Manifest.name(), findings)? else { return Ok(None) };
    let manifest = signed.unverified().clone();

    let id = manifest.certificate_object();
    let certificate = object::read_small(&**store, &id, SMALL_OBJECT_MAX)
        .and_then(|pem| Certificate::from_pem("certificate of the manifest", pem));
    if let Some(certificate) = found_in(certificate, Kind::Certificate, id, findings)? {
        if let Some(whitelist) = &whitelist {
            let listed = whitelist.unverified().check_certificate(&certificate);
            found(listed, Kind::Certificate, &id.to_string(), findings)?;
        }
        let verified = signed.verify(subject.name, &certificate);
        found(verified, Kind::Manifest, NamedFile::Manifest.name(), findings)?;
    }
    if let Some(id) = manifest.metainfo_object() {
        let is_object = |text: Vec<u8>| match serde_json::from_slice(&text) {
            Ok(serde_json::Value::Object(_)) => Ok(()),
            _ => Err(Error::malformed("meta info", "it is no JSON object")),
        };
        let read = object::read_small(&**store, &id, SMALL_OBJECT_MAX).and_then(is_object);
        found_in(read, Kind::Metainfo, id, findings)?;
    }

    let tags = match manifest.history {
        Some(hash) => inspect_history(subject, &manifest, hash, scratch, findings)?,
        None => Vec::new(),
    };
    inspect_reflog(subject, &manifest, &tags, findings)?;
    if manifest.shortcuts {
        let named = [Some(manifest.root_object()), Some(manifest.certificate_object()), manifest.history_object()];
        for id in named.into_iter().flatten().chain(manifest.metainfo_object()) {
            if store.size(&Key::Shortcut(id))?.is_none() && store.size(&Key::Object(id))?.is_some() {
                findings.add(Kind::Shortcut, Key::Shortcut(id), "the manifest promises it, and it does not exist");
            }
        }
    }
    Ok(Some(Documents { manifest, tags }))
}

fn inspect_history(
    subject: &Subject<'_>,
    manifest: &Manifest,
    hash: ContentHash,
    scratch: &Path,
    findings: &Findings,
) -> Result<Vec<Tag>> {
    let store = &subject.read_store();
    let id = ObjectId::new(hash, ObjectKind::History);
    let place = id.to_string();
    let Some(history) = found_in(History::fetch(&**store, hash, scratch), Kind::History, id, findings)? else {
        return Ok(Vec::new());
    };
    let Some(repository) = found(history.repository(), Kind::History, &place, findings)? else {
        return Ok(Vec::new());
    };
    if repository != subject.name.as_str() {
        findings.add(Kind::History, &place, format!("it is the tag database of {repository:?}"));
    }
    let Some(tags) = found(history.tags(), Kind::History, &place, findings)? else { return Ok(Vec::new()) };
    if let Some(branches) = found(history.branches(), Kind::History, &place, findings)? {
        let used: BTreeSet<&str> = tags.iter().map(|tag| &tag.branch[..]).collect();
        let since: BTreeMap<&str, u64> =
            branches.iter().map(|branch| (&branch.name[..], branch.initial_revision)).collect();
        for branch in branches.iter().filter(|branch| !used.contains(&branch.name[..]) && !tags.is_empty()) {
            findings.add(Kind::Branch, format!("branch {:?}", branch.name), "no tag is on it");
        }
        for tag in &tags {
            let place = format!("tag {}", tag.name);
            match since.get(&tag.branch[..]) {
                None => findings.add(Kind::Branch, place, format!("there is no branch {:?}", tag.branch)),
                Some(first) if tag.revision < *first => {
                    let message = format!("its revision {} is before the first of its branch, {first}", tag.revision);
                    findings.add(Kind::Branch, place, message);
                }
                Some(_) => {}
            }
        }
    }
    // Many tags may have the same root catalog; it is opened for the first one.
    let mut roots: HashMap<ContentHash, Option<Facts>> = HashMap::new();
    for tag in &tags {
        let place = format!("tag {}", tag.name);
        if tag.name == TagName::trunk().as_str() && tag.root != manifest.root_catalog {
            findings.add(Kind::Tag, &place, "it does not name the newest revision");
        }
        let facts = match roots.entry(tag.root) {
            Entry::Occupied(known) => *known.get(),
            // The newest revision is looked at as a whole; its tags must say what the trunk's says.
            Entry::Vacant(new) if tag.root == manifest.root_catalog => {
                let trunk = tags.iter().find(|other| other.name == TagName::trunk().as_str() && other.root == tag.root);
                let facts =
                    |trunk: &Tag| Facts { revision: trunk.revision, modified: trunk.timestamp, size: trunk.root_size };
                *new.insert(trunk.map(facts))
            }
            Entry::Vacant(new) => *new.insert(inspect_tagged(subject, store, tag, scratch, findings)?),
        };
        if let Some(facts) = facts {
            compare_with_root(tag, facts, findings);
        }
    }
    Ok(tags)
}

/// What a root catalog says that its tags say, too.
#[derive(Debug, Clone, Copy)]
struct Facts {
    revision: u64,
    modified: UnixSeconds,
    size: u64,
}

/// Looks at the root catalog of a tag; `None` if there is nothing to compare with.
fn inspect_tagged(
    subject: &Subject<'_>,
    store: &Arc<dyn ReadStore>,
    tag: &Tag,
    scratch: &Path,
    findings: &Findings,
) -> Result<Option<Facts>> {
    let place = format!("tag {}", tag.name);
    let catalog = match Catalog::fetch(&**store, tag.root, scratch) {
        Err(Error::MissingObject { .. }) if subject.is_replica => return Ok(None),
        catalog => {
            if catalog.is_err() {
                findings.lose(ObjectId::catalog(tag.root));
            }
            found(catalog, Kind::Tag, &place, findings)?
        }
    };
    // The oldest catalogs say nothing about themselves.
    let Some(catalog) = catalog.filter(Catalog::has_place) else { return Ok(None) };
    let said = || {
        let (modified, size) = (catalog.last_modified()?, catalog.file_size()?);
        let facts = Facts { revision: catalog.revision()?, modified, size };
        Ok::<_, Error>((facts, catalog.root()?))
    };
    let Some((facts, root)) = found(said(), Kind::Tag, &place, findings)? else { return Ok(None) };
    if !root.is_root() {
        findings.add(Kind::Tag, &place, format!("its catalog is that of {root}"));
    }
    Ok(Some(facts))
}

fn compare_with_root(tag: &Tag, facts: Facts, findings: &Findings) {
    for (what, says, is) in [
        ("revision", tag.revision, facts.revision),
        ("time", tag.timestamp.0.unsigned_abs(), facts.modified.0.unsigned_abs()),
        ("size", tag.root_size, facts.size),
    ] {
        // Old tags have no size.
        if says != is && !(what == "size" && says == 0) {
            let message = format!("its {what} is {says}, that of its root catalog {is}");
            findings.add(Kind::Tag, format!("tag {}", tag.name), message);
        }
    }
}

/// The reflog must be the one that was written last, and have all that must not be lost sight of.
fn inspect_reflog(subject: &Subject<'_>, manifest: &Manifest, tags: &[Tag], findings: &Findings) -> Result<()> {
    let reflog = StoredReflog { store: &*subject.store, spool: subject.spool, name: subject.name };
    // That of a replica is not the one that the manifest speaks of.
    let expected = manifest.reflog_checksum.filter(|_| !subject.is_replica);
    let is_expected = expected.is_some() || reflog.has_checksum();
    let name = NamedFile::Reflog.name();
    if !is_expected && subject.store.size(&NamedFile::Reflog.into())?.is_none() {
        return Ok(());
    }
    let entries = reflog.read(expected).and_then(|reflog| reflog.entries());
    let Some(entries) = found(entries, Kind::Reflog, name, findings)? else { return Ok(()) };
    let entries: HashSet<ObjectId> = entries.into_iter().map(|(id, _)| id).collect();
    let named = [Some(manifest.root_object()), Some(manifest.certificate_object()), manifest.history_object()];
    let mut needed: BTreeSet<ObjectId> = named.into_iter().flatten().chain(manifest.metainfo_object()).collect();
    for tag in tags {
        let id = ObjectId::catalog(tag.root);
        if subject.store.size(&id.into())?.is_some() {
            needed.insert(id);
        }
    }
    for id in needed.difference(&entries.iter().copied().collect()) {
        findings.add(Kind::Reflog, id, "it is in use and not in the reflog");
    }
    Ok(())
}
