//! Streams tarballs into CernVM-FS repositories: no mount, no staging, one revision.
//!
//! ```text
//! bytes ─► archive (decompress, tar) ─► source (changes) ─► pipeline ─► change set ─► commit
//!          this crate                                       cvmfs-core
//! ```

pub mod archive;
pub mod image;
mod links;
pub mod source;

mod ingest;

pub use ingest::{Options, ingest};
