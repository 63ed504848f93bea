//! Formats, storage, trust, catalogs, change sets and commit of CernVM-FS repositories.
//!
//! ```text
//! ChangeSource ─► pipeline ─► ChangeSet ─► commit ─► new revision      writing
//! Repository ─► Tree ─► entries and content, all verified              reading
//! Tree, Tree ─► diff ─► differences, or the changes that undo them      comparing
//! ```
//!
//! This crate knows no command line, terminal, environment or clock (but for the feature `cli`, which the binaries
//! share): whoever calls passes such things in. Formats read and write bytes and local files; only [`storage`] and
//! [`fetch`] know where a repository is kept; only [`commit`] replaces a manifest.
//!
//! ```no_run
//! use std::sync::Arc;
//! use cvmfs_core::{clock::UnixSeconds, path::RepoPath, repository::{Repository, Selector}, server, storage::LocalStore};
//!
//! # fn main() -> cvmfs_core::Result<()> {
//! let root = server::ServerRoot::new("./site".as_ref())?;
//! let name = "demo.example.org".parse()?;
//! let store = Arc::new(LocalStore::open(root.storage_dir(&name))?);
//! let keys = server::load_master_keys(&root, &name)?;
//! let repository = Repository::open(store, &name, &keys, UnixSeconds(1_800_000_000), "/tmp".as_ref())?;
//! for row in repository.tree(&Selector::Head)?.list(&RepoPath::root())? {
//!     println!("{:?}", row.name);
//! }
//! # Ok(())
//! # }
//! ```

// What everything else speaks in.
mod buckets;
pub mod clock;
pub mod error;
pub mod exposition;
pub mod hash;
pub mod lock;
mod parallel;
pub mod path;
pub mod progress;
mod unique;

// Bytes of the formats.
pub mod chunking;
pub mod compression;
pub mod dirtab;
pub mod durable;
pub mod entry;
pub mod glob;
pub mod xattr;

// Where bytes are kept.
pub mod fetch;
pub mod object;
pub mod storage;

// Documents and databases.
pub mod catalog;
mod database;
pub mod history;
pub mod manifest;
pub mod reflog;
pub mod trust;

// A repository as a whole: reading, changing.
pub mod census;
pub mod change;
pub mod changeset;
pub mod check;
pub mod commit;
pub mod diff;
pub mod gc;
pub mod hooks;
pub mod idmap;
pub mod info;
pub mod known;
pub mod listing;
pub mod notice;
pub mod pipeline;
pub mod publication;
pub mod repository;
pub mod schedule;
pub mod server;
pub mod statistics;
pub mod status;
pub mod tree;

#[cfg(feature = "cli")]
pub mod cli;

pub use error::{Error, Result};
