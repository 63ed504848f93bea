//! What a replica tells about itself: files in its storage that monitors read, and the history of its snapshots.
//!
//! Source: `update_repo_status` in `cvmfs/server/cvmfs_server_util.sh`.

use std::fs::{self, OpenOptions};
use std::io::Write as _;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::status::{CHECK_STATUS, LAST_CHECK, LAST_GC, Overview, set};
use cvmfs_core::storage::{NamedFile, WriteStore};
use serde::{Deserialize, Serialize};

use crate::replica::Replica;
use crate::snapshot::{Counts, Ending};

/// Name of the history of snapshots in the spool directory: one JSON object a line.
pub const HISTORY: &str = "snapshots.jsonl";
/// The history is cut to half of this size when it is larger, in bytes.
const HISTORY_MAX: u64 = 4 << 20;

/// One run of a snapshot, as the history keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// When it began.
    pub start: UnixTime,
    /// How long it took.
    pub seconds: f64,
    /// How it ended; `None` for an error.
    pub ending: Option<Ending>,
    /// The revision that the replica had afterwards.
    pub revision: Option<u64>,
    /// What was fetched.
    pub counts: Counts,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Seconds since 1970.
pub type UnixTime = i64;

/// The state of a replica.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Its name on this server.
    pub alias: String,
    /// The repository.
    pub name: String,
    /// Where it comes from.
    pub sources: Vec<String>,
    /// Its group.
    pub group: String,
    /// Whether it takes part in snapshots of all replicas.
    pub active: bool,
    /// Whether requests are passed on to the source.
    pub pass_through: bool,
    /// The revision that it has; `None` before the first snapshot ended.
    pub revision: Option<u64>,
    /// The root catalog of that.
    pub root_hash: Option<String>,
    /// When that was published.
    pub published: Option<String>,
    /// When a snapshot ended well for the last time, as monitors read it.
    pub last_snapshot: Option<String>,
    /// When garbage was collected for the last time.
    pub last_gc: Option<String>,
    /// When it was checked for the last time.
    pub last_check: Option<String>,
    /// How that ended: `succeeded` or `failed`.
    pub check_status: Option<String>,
    /// Whether a snapshot is running, or was killed.
    pub snapshotting: bool,
    /// When the whitelist expires.
    pub whitelist_expires: Option<String>,
    /// The newest runs, the last one first.
    pub history: Vec<HistoryEntry>,
}

/// Notes that a snapshot ended well.
pub(crate) fn set_last_snapshot(store: &dyn WriteStore, now: UnixSeconds) -> Result<()> {
    let date = now.date_command();
    set(store, "last_snapshot", &date)?;
    store.write(NamedFile::LastSnapshot, format!("{date}\n").as_bytes())
}

/// `.cvmfs_is_snapshotting`, which exists while this value does.
#[derive(Debug)]
pub(crate) struct Snapshotting<'a>(&'a dyn WriteStore);

impl<'a> Snapshotting<'a> {
    pub(crate) fn begin(store: &'a dyn WriteStore, now: UnixSeconds) -> Result<Self> {
        store.write(NamedFile::IsSnapshotting, format!("{}\n", now.date_command()).as_bytes())?;
        Ok(Self(store))
    }
}

impl Drop for Snapshotting<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove(NamedFile::IsSnapshotting) {
            tracing::warn!(%error, "cannot remove the note that a snapshot is running");
        }
    }
}

/// Adds a run to the history of a replica.
pub(crate) fn add_to_history(replica: &Replica, entry: &HistoryEntry) -> Result<()> {
    let file = replica.spool.join(HISTORY);
    let line = serde_json::to_string(entry).map_err(|error| Error::invalid(HISTORY, error.to_string()))?;
    if fs::metadata(&file).is_ok_and(|metadata| metadata.len() > HISTORY_MAX) {
        let text = fs::read_to_string(&file).at(&file)?;
        let middle = text.len() / 2;
        let start = text.bytes().skip(middle).position(|byte| byte == b'\n').map_or(text.len(), |at| middle + at + 1);
        let shorter = file.with_extension("new");
        fs::write(&shorter, &text.as_bytes()[start..]).at(&shorter)?;
        fs::rename(&shorter, &file).at(&file)?;
    }
    let mut out = OpenOptions::new().append(true).create(true).open(&file).at(&file)?;
    out.write_all(format!("{line}\n").as_bytes()).at(&file)
}

/// The runs of a replica's snapshots, the oldest first. Lines that are damaged are left out.
pub fn history(replica: &Replica) -> Result<Vec<HistoryEntry>> {
    let file = replica.spool.join(HISTORY);
    let text = match fs::read_to_string(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.at(&file)?,
    };
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// The state of a replica, with the newest `runs` of its history.
pub fn status(replica: &Replica, runs: usize) -> Result<Status> {
    let storage = match replica.storage.open() {
        Err(error) if error.is_not_found() => None,
        store => Some(store?),
    };
    let read_file = |file: NamedFile| storage.as_ref().and_then(|store| store.read(&file.into()).ok());
    let overview = storage.as_ref().map(|store| Overview::read(&**store)).unwrap_or_default();
    let manifest = overview.manifest.as_ref();
    let last_snapshot = || {
        let text = read_file(NamedFile::LastSnapshot)?;
        Some(String::from_utf8_lossy(&text).trim().to_owned())
    };
    let mut history = history(replica)?;
    history.reverse();
    history.truncate(runs);
    Ok(Status {
        alias: replica.alias.to_string(),
        name: replica.name.to_string(),
        sources: replica.sources.iter().map(cvmfs_core::fetch::shown_url).collect(),
        group: replica.group.clone(),
        active: replica.is_active,
        pass_through: replica.is_pass_through,
        revision: manifest.map(|manifest| manifest.revision),
        root_hash: manifest.map(|manifest| manifest.root_catalog.to_string()),
        published: overview.published(),
        last_snapshot: overview.value("last_snapshot").or_else(last_snapshot),
        last_gc: overview.value(LAST_GC),
        last_check: overview.value(LAST_CHECK),
        check_status: overview.value(CHECK_STATUS),
        snapshotting: read_file(NamedFile::IsSnapshotting).is_some(),
        whitelist_expires: overview.whitelist_expires(),
        history,
    })
}
