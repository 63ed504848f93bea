//! The key files of a repository.

use std::fs;

use super::ServerRoot;
use crate::error::{Error, IoContext as _, Result};
use crate::path::RepositoryName;
use crate::trust::keys::{Certificate, PrivateKey, PublicKey};

/// The keys that a publisher needs.
#[derive(Debug, Clone)]
pub struct PublisherKeys {
    /// Signs manifests.
    pub key: PrivateKey,
    /// Its certificate.
    pub certificate: Certificate,
    /// Verify the whitelist.
    pub master: Vec<PublicKey>,
}

impl PublisherKeys {
    /// Whether there are key and certificate of a repository, right or wrong.
    pub fn are_there(root: &ServerRoot, name: &RepositoryName) -> bool {
        ["key", "crt"].iter().all(|extension| root.key_file(name, extension).exists())
    }

    /// Loads `.key`, `.crt` and `.pub` of a repository and checks that key and certificate belong together.
    ///
    /// # Errors
    /// `NotFound` naming the missing file, `Crypto`, `Untrusted` if they do not belong together.
    pub fn load(root: &ServerRoot, name: &RepositoryName) -> Result<Self> {
        let read = |extension| {
            let file = root.key_file(name, extension);
            match fs::read(&file) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let what = file.display();
                    Err(Error::not_found(format!("the key to publish {name} with: {what}")))
                }
                bytes => Ok((file.display().to_string(), bytes.at(&file)?)),
            }
        };
        let (what, pem) = read("key")?;
        let key = PrivateKey::from_pem(&what, &pem)?;
        let (what, pem) = read("crt")?;
        let certificate = Certificate::from_pem(&what, pem)?;
        certificate.check_key(&key)?;
        Ok(Self { key, certificate, master: load_master_keys(root, name)? })
    }
}

/// Loads the public master key of a repository.
pub fn load_master_keys(root: &ServerRoot, name: &RepositoryName) -> Result<Vec<PublicKey>> {
    let file = root.key_file(name, "pub");
    let pem = fs::read(&file).at(&file)?;
    Ok(vec![PublicKey::from_pem(&file.display().to_string(), &pem)?])
}
