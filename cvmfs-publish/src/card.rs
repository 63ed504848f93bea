//! A repository whose master key is in a token: from its file into it.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write as _;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::{IoContext as _, Result};
use cvmfs_core::path::RepositoryName;
use cvmfs_core::server::ServerRoot;
use cvmfs_core::trust::token::{Token, TokenKey};
use serde::Serialize;

use crate::resign::{self, Options, TOKEN_DAYS};

/// What became of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Converted {
    /// The repository.
    pub name: String,
    /// Whether clients need the new public key.
    pub new_public_key: bool,
    /// Whether there was a file with the master key, which is gone now.
    pub key_file_removed: bool,
    /// Until when the new whitelist is valid.
    pub whitelist_expires: String,
}

impl fmt::Display for Converted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, new_public_key, key_file_removed, whitelist_expires } = self;
        write!(f, "{name}: whitelist signed until {whitelist_expires}")?;
        f.write_str(if *key_file_removed { "; the file of the master key is removed" } else { "" })?;
        f.write_str(if *new_public_key { "; clients need the new public key" } else { "" })
    }
}

/// Has a repository use the key in a token: public key and whitelist become the token's, and the master key's file goes.
///
/// Signed first, removed last: after any error there is a key that can sign.
///
/// # Errors
/// `NotFound` if the token has no key; `Untrusted` if the present whitelist is not signed rightly.
pub fn convert(root: &ServerRoot, name: &RepositoryName, token: &Token, now: UnixSeconds) -> Result<Converted> {
    let mut publisher = Publisher::open(root, name)?;
    // The repository's own key if the token has that one, whatever else it has.
    let key = token.key(&publisher.keys.master).or_else(|_| token.key(&[]))?;
    let new_public_key = !publisher.keys.master.iter().any(|master| master.is_same(key.public()));
    let options = Options { days: TOKEN_DAYS, ..Options::new(now) };
    let fingerprints = resign::fingerprints(&publisher, &options)?;
    if new_public_key {
        write_public_key(root, name, &key)?;
        publisher = Publisher::open(root, name)?;
    }
    let signed = resign::sign_with(&publisher, &key, fingerprints, &options)?;
    let key_file_removed = remove_key_file(root, name)?;
    Ok(Converted {
        name: name.to_string(),
        new_public_key,
        key_file_removed,
        whitelist_expires: signed.whitelist_expires,
    })
}

fn write_public_key(root: &ServerRoot, name: &RepositoryName, key: &TokenKey<'_>) -> Result<()> {
    let (file, new) = (root.key_file(name, "pub"), root.key_file(name, "pub.new"));
    fs::write(&new, key.public().to_pem()?).at(&new)?;
    fs::rename(&new, &file).at(&file)
}

/// Overwrites the key and removes it; false if there is none.
fn remove_key_file(root: &ServerRoot, name: &RepositoryName) -> Result<bool> {
    let file = root.key_file(name, "masterkey");
    let length = match fs::metadata(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        metadata => metadata.at(&file)?.len(),
    };
    // Keys are kept without the right to write.
    let mut permissions = fs::metadata(&file).at(&file)?.permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    fs::set_permissions(&file, permissions).at(&file)?;
    let zeros = vec![0; usize::try_from(length).unwrap_or(0)];
    let mut open = OpenOptions::new().write(true).open(&file).at(&file)?;
    open.write_all(&zeros).and_then(|()| open.sync_all()).at(&file)?;
    fs::remove_file(&file).at(&file)?;
    Ok(true)
}
