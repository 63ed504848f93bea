//! The repositories of a server, with their state: what `list` shows.
//!
//! Nothing is verified and nothing is changed; a repository that cannot be looked at is listed with the reason.
//!
//! Source: `cvmfs/server/cvmfs_server_list.sh`.

use std::fmt;

use rayon::prelude::*;
use serde::Serialize;

use crate::clock::UnixSeconds;
use crate::commit::{About, Activity, Checkout};
use crate::error::{Error, Result};
use crate::path::RepositoryName;
use crate::server::{PublisherKeys, ServerRoot, Variables};
use crate::status::{CHECK_STATUS, LAST_CHECK, LAST_GC, Overview};
use crate::storage::StoragePlace;

/// What a repository is on this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It is published here.
    Stratum0,
    /// It is a replica.
    Stratum1,
}

/// What is worth knowing about a repository at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A transaction is open.
    InTransaction,
    /// The whitelist has expired.
    WhitelistExpired,
    /// There is no whitelist.
    WhitelistMissing,
    /// The storage does not answer, or is not there.
    Unreachable,
    /// A document is not what it should be.
    Damaged,
    /// There is no revision.
    Empty,
    /// The last check found something.
    CheckFailed,
    /// There is no key to publish with.
    NoKeys,
    /// Requests are passed on to the source.
    PassThrough,
    /// It takes no part in snapshots of all replicas.
    Inactive,
    /// Its removal was interrupted.
    HalfRemoved,
    /// Its configuration cannot be used.
    Unusable,
}

impl State {
    /// The state in words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::InTransaction => "in transaction",
            Self::WhitelistExpired => "whitelist expired",
            Self::WhitelistMissing => "whitelist missing",
            Self::Unreachable => "storage unreachable",
            Self::Damaged => "damaged",
            Self::Empty => "empty",
            Self::CheckFailed => "check failed",
            Self::NoKeys => "no keys",
            Self::PassThrough => "pass-through",
            Self::Inactive => "not active",
            Self::HalfRemoved => "half removed",
            Self::Unusable => "unusable",
        }
    }
}

/// A repository of this server.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// Its name on this server.
    pub name: String,
    /// The repository: another name only for a replica that has an alias.
    pub repository: String,
    /// What it is here.
    pub kind: Kind,
    /// `local` or `s3`.
    pub storage_type: &'static str,
    /// The storage.
    pub storage: String,
    /// Where its server's own tools find it, or a replica its source.
    pub url: Option<String>,
    /// The system user who owns it.
    pub owner: Option<String>,
    /// What is worth knowing.
    pub states: Vec<State>,
    /// The newest revision.
    pub revision: Option<u64>,
    /// Its root catalog.
    pub root_hash: Option<String>,
    /// When it was signed.
    pub published: Option<String>,
    /// When the whitelist expires.
    pub whitelist_expires: Option<String>,
    /// Whole days until then; negative if it has expired.
    pub whitelist_days_left: Option<i64>,
    /// The open transaction, unless it is one of the reference's tools.
    pub transaction: Option<About>,
    /// What is checked out.
    pub checkout: Option<Checkout>,
    /// When a replica was brought up to date for the last time.
    pub last_snapshot: Option<String>,
    /// When garbage was collected for the last time.
    pub last_gc: Option<String>,
    /// When it was checked for the last time.
    pub last_check: Option<String>,
    /// Why it could not be looked at.
    pub error: Option<String>,
}

/// Lists the repositories of a server by name.
///
/// # Errors
/// `Io` if the configuration directory cannot be read.
pub fn census(root: &ServerRoot, now: UnixSeconds) -> Result<Vec<Listed>> {
    // A bucket that does not answer takes its time; the others need not wait for it.
    Ok(root.known_repositories()?.par_iter().map(|(name, is_whole)| look(root, name, *is_whole, now)).collect())
}

fn look(root: &ServerRoot, name: &RepositoryName, is_whole: bool, now: UnixSeconds) -> Listed {
    let mut listed = Listed {
        name: name.to_string(),
        repository: name.to_string(),
        kind: Kind::Stratum0,
        storage_type: "local",
        storage: root.storage_dir(name).display().to_string(),
        url: None,
        owner: None,
        states: Vec::new(),
        revision: None,
        root_hash: None,
        published: None,
        whitelist_expires: None,
        whitelist_days_left: None,
        transaction: None,
        checkout: None,
        last_snapshot: None,
        last_gc: None,
        last_check: None,
        error: None,
    };
    if is_whole {
        if let Err(error) = fill_in(&mut listed, root, name, now) {
            listed.states.push(State::Unusable);
            listed.error = Some(error.to_string());
        }
    } else {
        listed.states.push(State::HalfRemoved);
    }
    listed.states.sort_unstable();
    listed.states.dedup();
    listed
}

fn fill_in(listed: &mut Listed, root: &ServerRoot, name: &RepositoryName, now: UnixSeconds) -> Result<()> {
    let mut variables = Variables::load(&root.server_conf(name))?;
    let replica = root.config_dir(name).join("replica.conf");
    if replica.is_file() {
        variables.extend(Variables::load(&replica)?);
        listed.kind = Kind::Stratum1;
    }
    let text = |key: &str| variables.get(key).map(str::to_owned);
    listed.repository = text("CVMFS_REPOSITORY_NAME").unwrap_or_else(|| name.to_string());
    (listed.url, listed.owner) = (text("CVMFS_STRATUM0"), text("CVMFS_USER"));
    let storage = variables.storage()?.unwrap_or_else(|| StoragePlace::Local(root.storage_dir(name)));
    listed.storage = storage.to_string();
    listed.storage_type = match storage {
        StoragePlace::Local(_) => "local",
        StoragePlace::S3 { .. } => "s3",
    };
    let spool = text("CVMFS_SPOOL_DIR").map_or_else(|| root.spool_dir(name), Into::into);
    match listed.kind {
        Kind::Stratum0 => {
            let Activity { transaction, foreign_transaction, checkout } = Activity::of(&spool)?;
            if transaction.is_some() || foreign_transaction {
                listed.states.push(State::InTransaction);
            }
            if !PublisherKeys::are_there(root, name) {
                listed.states.push(State::NoKeys);
            }
            (listed.transaction, listed.checkout) = (transaction, checkout);
        }
        Kind::Stratum1 => {
            if variables.flag("CVMFS_PASSTHROUGH", false) {
                // It has a revision, or none, as its source has.
                listed.states.push(State::PassThrough);
            }
            if variables.get("CVMFS_REPLICA_ACTIVE") == Some("no") {
                listed.states.push(State::Inactive);
            }
        }
    }
    match storage.open() {
        Ok(store) => describe(listed, &Overview::read(&*store), now),
        Err(error) => {
            listed.states.push(State::Unreachable);
            listed.error = Some(error.to_string());
        }
    }
    Ok(())
}

/// Takes over what the documents of the storage say.
fn describe(listed: &mut Listed, overview: &Overview, now: UnixSeconds) {
    if let Some(manifest) = &overview.manifest {
        listed.revision = Some(manifest.revision);
        listed.root_hash = Some(manifest.root_catalog.to_string());
    }
    listed.published = overview.published();
    listed.whitelist_expires = overview.whitelist_expires();
    if let Some(whitelist) = &overview.whitelist {
        let left = whitelist.expires.0 - now.0;
        listed.whitelist_days_left = Some(left.div_euclid(86_400));
        if left <= 0 {
            listed.states.push(State::WhitelistExpired);
        }
    }
    listed.last_snapshot = overview.value("last_snapshot");
    listed.last_gc = overview.value(LAST_GC);
    listed.last_check = overview.value(LAST_CHECK);
    if overview.value(CHECK_STATUS).as_deref() == Some("failed") {
        listed.states.push(State::CheckFailed);
    }
    if let Some(failure) = overview.failures.first() {
        listed.states.push(match failure {
            Error::Malformed { .. } | Error::HashMismatch { .. } | Error::InvalidInput { .. } => State::Damaged,
            _ => State::Unreachable,
        });
        listed.error = Some(failure.to_string());
    } else if !listed.states.contains(&State::PassThrough) {
        if overview.manifest.is_none() {
            listed.states.push(State::Empty);
        } else if overview.whitelist.is_none() {
            listed.states.push(State::WhitelistMissing);
        }
    }
}

impl fmt::Display for Listed {
    /// The line that the reference prints, with the revision behind it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Stratum0 => "stratum0",
            Kind::Stratum1 => "stratum1",
        };
        write!(f, "{} ({kind} / {}", self.name, self.storage_type)?;
        self.states.iter().try_for_each(|state| write!(f, " - {}", state.words()))?;
        if let Some(Checkout { tag, branch, .. }) = &self.checkout {
            write!(f, " [checked out tag '{tag}' on branch '{branch}']")?;
        }
        f.write_str(")")?;
        if self.repository != self.name {
            write!(f, " -> {}", self.repository)?;
        }
        match (self.revision, &self.error) {
            (Some(revision), None) => write!(f, " revision {revision}"),
            (_, Some(error)) => write!(f, " {error}"),
            (None, None) => Ok(()),
        }
    }
}
