//! Verifies a manifest step by step, from the public master key down, as every reader has to.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::manifest::SignedManifest;
use cvmfs_core::object::read_small;
use cvmfs_core::path::RepositoryName;
use cvmfs_core::server::ServerRoot;
use cvmfs_core::storage::NamedFile;
use cvmfs_core::trust::keys::{Certificate, PublicKey};
use cvmfs_core::trust::whitelist::SignedWhitelist;
use cvmfs_publish::mkfs::{self, mkfs};

fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let name: RepositoryName = "software.example.org".parse()?;
    let now = UnixSeconds(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().try_into()?);
    let made = mkfs(&ServerRoot::new(directory.path())?, &name, &mkfs::Options::new(now))?;
    let store = made.storage.open()?;

    // 1. The master key, which the reader has from elsewhere, vouches for a list of certificates.
    let master = PublicKey::from_pem("master key", &fs::read(made.public_key)?)?;
    let whitelist = SignedWhitelist::parse(&store.read(&NamedFile::Whitelist.into())?)?;
    let whitelist = whitelist.verify(&name, &[master], now)?;
    println!("the whitelist is valid until {}", whitelist.expires);

    // 2. The manifest names the certificate that it is signed with. It has to be one of those.
    let bytes = store.read(&NamedFile::Manifest.into())?;
    let manifest = SignedManifest::parse(&bytes)?;
    let pem = read_small(&*store, &manifest.certificate_object(), 64 * 1024)?;
    let certificate = Certificate::from_pem("certificate", pem)?;
    whitelist.check_certificate(&certificate)?;

    // 3. The signature covers the rest. Only now is there a manifest to look at.
    let verified = manifest.verify(&name, &certificate)?;
    println!("revision {} is {}", verified.revision, verified.root_catalog);

    // One changed byte, and there is none.
    let mut forged = bytes;
    forged[1] ^= 1;
    println!("a changed manifest: {}", SignedManifest::parse(&forged).expect_err("its text has another hash"));
    Ok(())
}
