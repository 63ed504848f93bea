//! Keys that come with a storage: which there are, and whether they fit.

use std::fs;
use std::path::Path;

use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::path::RepositoryName;
use cvmfs_core::server::ServerRoot;
use cvmfs_core::trust::keys::{Certificate, PrivateKey, PublicKey};
use cvmfs_core::trust::whitelist::SignedWhitelist;

use super::Options;
use crate::mkfs::write_key;

/// Keys that were given.
pub(super) struct Keys {
    pub(super) master_key: Option<PrivateKey>,
    pub(super) public: PublicKey,
    /// To publish with.
    pub(super) pair: Option<(PrivateKey, Certificate)>,
    /// A whitelist that was signed elsewhere.
    pub(super) whitelist: Option<SignedWhitelist>,
    /// Files to be made: extension, mode, content.
    files: Vec<(&'static str, u32, Vec<u8>)>,
}

impl Keys {
    /// Reads them, and finds out whether they fit each other and those that the server has.
    pub(super) fn load(root: &ServerRoot, name: &RepositoryName, options: &Options) -> Result<Self> {
        let directory = options.keys.clone().unwrap_or_else(|| root.keys_dir());
        let file = |extension: &str| directory.join(format!("{name}.{extension}"));
        let read = |extension: &str| read_if_there(&file(extension));
        let what = |extension: &str| file(extension).display().to_string();
        let mut files = Vec::new();
        let master_pem = read("masterkey")?;
        let master_key = master_pem.as_ref().map(|pem| PrivateKey::from_pem(&what("masterkey"), pem)).transpose()?;
        let public_pem = match (read("pub")?, &master_key) {
            (Some(pem), _) => pem,
            (None, Some(master_key)) => master_key.public()?.to_pem()?,
            (None, None) => {
                let reason =
                    format!("{}: the public master key; without it nothing can be verified; it was", what("pub"));
                return Err(Error::not_found(reason));
            }
        };
        let public = PublicKey::from_pem(&what("pub"), &public_pem)?;
        if let Some(master_key) = &master_key {
            let probe = b"do these belong together?";
            if !public.verifies_raw(probe, &master_key.sign_raw(probe)?) {
                return Err(Error::untrusted(what("masterkey"), format!("it is not the key of {}", what("pub"))));
            }
        }
        let pair = match (read("key")?, read("crt")?) {
            (Some(key_pem), Some(certificate_pem)) if !options.new_keys => {
                let key = PrivateKey::from_pem(&what("key"), &key_pem)?;
                let certificate = Certificate::from_pem(&what("crt"), certificate_pem.clone())?;
                certificate.check_key(&key)?;
                files.extend([("key", 0o400, key_pem), ("crt", 0o444, certificate_pem)]);
                Some((key, certificate))
            }
            (Some(_), None) if !options.new_keys => {
                return Err(Error::not_found(format!("{}, the certificate of the key beside it,", what("crt"))));
            }
            _ => None,
        };
        files.push(("pub", 0o444, public_pem));
        files.extend(master_pem.map(|pem| ("masterkey", 0o400, pem)));
        let whitelist = read("whitelist")?.map(|bytes| SignedWhitelist::parse(&bytes)).transpose()?;
        let keys = Self { master_key, public, pair, whitelist, files };
        keys.refuse_others(root, name)?;
        Ok(keys)
    }

    pub(super) fn can_publish(&self) -> bool {
        self.pair.is_some()
    }

    /// # Errors
    /// `Conflict` if the server has other keys of that name.
    fn refuse_others(&self, root: &ServerRoot, name: &RepositoryName) -> Result<()> {
        for (extension, _, content) in &self.files {
            let file = root.key_file(name, extension);
            if read_if_there(&file)?.is_some_and(|present| present != *content) {
                let reason = format!("{} is another key; move it away first", file.display());
                return Err(Error::conflict(format!("repository {name}"), reason));
            }
        }
        Ok(())
    }

    /// Puts those in place that are not there yet.
    pub(super) fn install(&self, root: &ServerRoot, name: &RepositoryName) -> Result<()> {
        for (extension, mode, content) in &self.files {
            if !root.key_file(name, extension).exists() {
                write_key(root, name, extension, *mode, content)?;
            }
        }
        Ok(())
    }
}

fn read_if_there(file: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        bytes => bytes.at(file).map(Some),
    }
}
