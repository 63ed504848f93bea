//! `.cvmfs_status.json`: what a server tells about a repository, for monitors.
//!
//! Source: `update_repo_status` in `cvmfs/server/cvmfs_server_util.sh`.

use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value};

use crate::clock::UnixSeconds;
use crate::error::{Error, Result};
use crate::manifest::{Manifest, SignedManifest};
use crate::storage::{NamedFile, ReadStore, WriteStore};
use crate::trust::whitelist::{SignedWhitelist, Whitelist};

/// Key of the time of the last collection of garbage, as `date --utc` prints it.
pub const LAST_GC: &str = "last_gc";
/// Key of the time of the last check.
pub const LAST_CHECK: &str = "last_check";
/// Key of how that ended: `succeeded` or `failed`.
pub const CHECK_STATUS: &str = "check_status";

/// One change at a time: a snapshot and a check of one service may end together, and must not undo what the other noted.
static CHANGING: Mutex<()> = Mutex::new(());

/// Sets a value; others stay.
pub fn set(store: &dyn WriteStore, key: &str, value: &str) -> Result<()> {
    set_all(store, &[(key, value)])
}

/// Notes how a check ended.
pub fn set_check(store: &dyn WriteStore, now: UnixSeconds, is_clean: bool) -> Result<()> {
    let verdict = if is_clean { "succeeded" } else { "failed" };
    set_all(store, &[(LAST_CHECK, &now.date_command()), (CHECK_STATUS, verdict)])
}

/// Reads a time, as [`set_check`] and others note it.
pub fn time(store: &dyn ReadStore, key: &str) -> Result<Option<UnixSeconds>> {
    Ok(read(store)?.get(key).and_then(|value| UnixSeconds::parse_date_command(value.as_str()?)))
}

fn set_all(store: &dyn WriteStore, values: &[(&str, &str)]) -> Result<()> {
    let _changing = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut status = read(store)?;
    for (key, value) in values {
        status.insert((*key).to_owned(), Value::String((*value).to_owned()));
    }
    let text = serde_json::to_string_pretty(&status).map_err(|error| Error::invalid("status", error.to_string()))?;
    store.write(NamedFile::Status, format!("{text}\n").as_bytes())
}

/// Reads all values; what is no JSON object counts as empty.
pub fn read(store: &dyn ReadStore) -> Result<Map<String, Value>> {
    let bytes = match store.read(&NamedFile::Status.into()) {
        Err(error) if error.is_not_found() => return Ok(Map::new()),
        result => result?,
    };
    Ok(serde_json::from_slice(&bytes).unwrap_or_default())
}

/// What the documents of a storage say, unverified: for overviews.
#[derive(Debug, Default)]
pub struct Overview {
    /// The manifest.
    pub manifest: Option<Manifest>,
    /// The whitelist.
    pub whitelist: Option<Whitelist>,
    /// What monitors read.
    pub values: Map<String, Value>,
    /// Documents that cannot be read or understood, the most important one first.
    pub failures: Vec<Error>,
}

impl Overview {
    /// Reads the documents. One that is not there is no failure.
    pub fn read(store: &dyn ReadStore) -> Self {
        let mut overview = Self::default();
        let mut keep = |failure: Error| {
            if !failure.is_not_found() {
                overview.failures.push(failure);
            }
        };
        let read = |file: NamedFile| store.read(&file.into());
        let manifest = read(NamedFile::Manifest).and_then(|bytes| SignedManifest::parse(&bytes));
        overview.manifest = manifest.map_err(&mut keep).ok().map(|signed| signed.unverified().clone());
        let whitelist = read(NamedFile::Whitelist).and_then(|bytes| SignedWhitelist::parse(&bytes));
        overview.whitelist = whitelist.map_err(&mut keep).ok().map(|signed| signed.unverified().clone());
        overview.values = self::read(store).map_err(&mut keep).unwrap_or_default();
        overview
    }

    /// A text that monitors read.
    pub fn value(&self, key: &str) -> Option<String> {
        self.values.get(key).and_then(Value::as_str).map(str::to_owned)
    }

    /// When the revision was signed, as JSON has it.
    pub fn published(&self) -> Option<String> {
        self.manifest.as_ref().and_then(|manifest| manifest.timestamp).map(UnixSeconds::iso)
    }

    /// When the whitelist expires, as JSON has it.
    pub fn whitelist_expires(&self) -> Option<String> {
        self.whitelist.as_ref().map(|whitelist| whitelist.expires.iso())
    }
}
