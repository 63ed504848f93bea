//! Container images: from a registry, or a file, into a repository.
//!
//! ```text
//! source: manifests, blobs ─► Image ─► layer: one change set each ─► stack: merged ─► layout ─► one revision
//! ```

pub mod batch;
pub mod clean;
pub mod contents;
pub mod convert;
pub mod digest;
pub mod inventory;
pub mod layer;
pub mod layout;
pub mod library;
pub mod listen;
pub mod local;
pub mod manifest;
pub mod notify;
pub mod recipe;
pub mod reference;
pub mod registry;
pub mod rows;
pub mod source;
pub mod stack;
pub mod thin;
pub mod unpack;
pub mod webhook;
pub mod whiteout;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use cvmfs_core::error::{Error, Result};
use digest::Digest;

/// What a manifest says of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// What it is, as a media type.
    pub media_type: String,
    /// The SHA-256 of its bytes.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Where else it can be had; the only places for layers that registries do not distribute.
    pub urls: Vec<String>,
}

/// A document, exactly as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The SHA-256 of the bytes.
    pub digest: Digest,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The blob, compressed or not.
    pub blob: Descriptor,
    /// The SHA-256 of the uncompressed tar archive.
    pub diff_id: Digest,
}

/// Where an image runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Platform {
    /// The operating system: `linux`.
    pub os: String,
    /// The architecture, as Go names it: `amd64`.
    pub architecture: String,
    /// Its variant: `v8`; empty if there is none.
    pub variant: String,
}

impl Platform {
    /// The one that is meant where nothing is said.
    pub fn linux_amd64() -> Self {
        Self { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: String::new() }
    }
}

/// What an image's configuration says about running it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments that those of the user replace.
    pub command: Vec<String>,
    /// Variables of the environment, `NAME=value`.
    pub environment: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it was made, in RFC 3339.
    pub created: Option<String>,
}

/// One image for one platform: verified documents, and what they say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The manifest.
    pub manifest: Document,
    /// The configuration; its digest is the image's id.
    pub config: Document,
    /// Where it runs.
    pub platform: Platform,
    /// How it runs.
    pub settings: Settings,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
}

impl fmt::Display for Platform {
    /// As Docker writes it: `linux/arm64/v8`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// Reads `linux/arm64/v8`, or without the variant, or without the operating system, which is Linux then.
    ///
    /// # Errors
    /// `InvalidInput` for anything else.
    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<_> = text.strip_prefix("linux/").unwrap_or(text).split('/').collect();
        let is_plain = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let (architecture, variant) = match parts[..] {
            [architecture] => (architecture, ""),
            [architecture, variant] => (architecture, variant),
            _ => ("", ""),
        };
        if architecture.is_empty() || !parts.iter().all(is_plain) {
            return Err(Error::invalid(format!("the platform {text:?}"), "not like linux/amd64 or linux/arm64/v8"));
        }
        Ok(Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.to_owned() })
    }
}
