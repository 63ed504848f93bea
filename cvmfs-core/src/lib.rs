//! Placeholder.
pub mod catalog;
pub mod chunking;
pub mod clock;
pub mod compression;
mod database;
pub mod entry;
pub mod error;
pub mod hash;
pub mod manifest;
pub mod object;
pub mod path;
pub mod storage;
pub mod trust;
pub mod xattr;
pub use error::{Error, Result};
