//! Streams tarballs into CernVM-FS repositories.
//!
//! ```text
//! file or pipe ─ decompress ─> tar bytes ─ Archive ─> entries and their content
//! ```
//!
//! Modules in reading order:
//! - [`archive`]: every tar archive in one forward pass, compressed or not; knows nothing of repositories.

pub mod archive;
