//! The CernVM-FS Stratum 0: create, inspect and publish repositories.
//!
//! Each operation is a module with its `Options`, its function and its `Outcome`; the binary parses arguments, calls one
//! function, and prints. What changes a repository ends in [`cvmfs_core::commit`].

pub mod card;
pub mod catalogs;
mod configuration;
pub mod edit;
pub mod export;
pub mod find;
pub mod history;
pub mod import;
pub mod index;
pub mod inspect;
pub mod mkfs;
pub mod mode;
pub mod publish;
pub mod resign;
pub mod rmfs;
pub mod service;
