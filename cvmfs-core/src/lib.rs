//! Placeholder.
pub mod error;
pub mod hash;
pub mod path;
pub mod storage;
