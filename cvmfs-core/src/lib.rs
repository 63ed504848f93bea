//! Placeholder.
pub mod error;
pub mod fetch;
pub mod hash;
pub mod path;
pub mod storage;
