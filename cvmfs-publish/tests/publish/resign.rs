//! Whitelists and manifests signed again, judged by reading the repository as clients do.

use std::fs;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::Error;
use cvmfs_core::path::RepositoryName;
use cvmfs_core::progress::Cancel;
use cvmfs_core::repository::Repository;
use cvmfs_core::server::{ServerRoot, load_master_keys};
use cvmfs_core::trust::keys::{Certificate, PrivateKey};
use cvmfs_publish::mkfs::{self, mkfs};
use cvmfs_publish::resign::{MasterKey, Options, Renewal, Renewed, Signed, master_key, new_key, renew, sign_whitelist};

const NOW: UnixSeconds = UnixSeconds(1_800_000_000);
const DAY: i64 = 86_400;

struct Site {
    directory: tempfile::TempDir,
    root: ServerRoot,
    name: RepositoryName,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = ServerRoot::new(directory.path()).expect("a root");
        let name: RepositoryName = "sign.example.org".parse().expect("a name");
        mkfs(&root, &name, &mkfs::Options::new(NOW)).expect("a repository");
        Self { directory, root, name }
    }

    fn publisher(&self) -> Publisher {
        Publisher::open(&self.root, &self.name).expect("a publisher")
    }

    /// Reads it as a client does that has the public key only; returns the certificate that signed the manifest.
    fn read(&self, now: UnixSeconds) -> Result<String, Error> {
        let store = self.publisher().read_store();
        let keys = load_master_keys(&self.root, &self.name)?;
        let repository = Repository::open(store, &self.name, &keys, now, self.directory.path())?;
        Ok(repository.manifest().certificate.to_string())
    }

    fn sign(&self, now: UnixSeconds, change: impl FnOnce(&mut Options)) -> Signed {
        let mut options = Options::new(now);
        change(&mut options);
        let master_key = master_key(&self.root, &self.name, None).expect("a master key");
        sign_whitelist(&self.publisher(), &master_key, &options).expect("a signature")
    }

    fn new_key(&self, now: UnixSeconds) -> Signed {
        let master_key = master_key(&self.root, &self.name, None).expect("a master key");
        let patience = std::time::Duration::ZERO;
        new_key(&self.root, &self.name, &master_key, &Options::new(now), patience, &Cancel::new()).expect("a new key")
    }

    fn key_file(&self, extension: &str) -> std::path::PathBuf {
        self.root.key_file(&self.name, extension)
    }
}

#[test]
fn an_expired_whitelist_is_signed_again() {
    let site = Site::new();
    let later = UnixSeconds(NOW.0 + 31 * DAY);
    assert!(matches!(site.read(later), Err(Error::Expired { .. })));
    let signed = site.sign(later, |options| options.days = 7);
    assert_eq!((signed.fingerprints.len(), signed.warnings.len()), (1, 0));
    site.read(later).unwrap();
    site.read(UnixSeconds(later.0 + 6 * DAY)).unwrap();
    assert!(matches!(site.read(UnixSeconds(later.0 + 8 * DAY)), Err(Error::Expired { .. })));
    assert_eq!(site.sign(later, |options| options.days = 31).warnings.len(), 1);
}

#[test]
fn other_certificates_stay_listed_until_they_are_dropped() {
    let site = Site::new();
    let other = Certificate::create(&site.name, &PrivateKey::generate().unwrap()).unwrap();
    let both = site.sign(NOW, |options| options.also = vec![other]);
    assert_eq!(both.fingerprints.len(), 2);
    assert_eq!(site.sign(NOW, |_| ()).fingerprints, both.fingerprints);
    assert_eq!(site.sign(NOW, |options| options.keep_others = false).fingerprints, both.fingerprints[..1]);
    site.read(NOW).unwrap();
}

#[test]
fn a_foreign_master_key_signs_nothing() {
    let site = Site::new();
    let before = fs::read(site.publisher().config.storage.directory().unwrap().join(".cvmfswhitelist")).unwrap();
    let foreign = PrivateKey::generate().unwrap();
    let error = sign_whitelist(&site.publisher(), &MasterKey::File(foreign), &Options::new(NOW)).unwrap_err();
    assert!(matches!(error, Error::Untrusted { .. }), "{error}");
    assert_eq!(fs::read(site.publisher().config.storage.directory().unwrap().join(".cvmfswhitelist")).unwrap(), before);
    fs::remove_file(site.key_file("masterkey")).unwrap();
    assert!(matches!(master_key(&site.root, &site.name, None), Err(Error::NotFound { .. })));
}

#[test]
fn a_new_key_signs_from_now_on() {
    let site = Site::new();
    let (old, old_key) = (site.read(NOW).unwrap(), fs::read(site.key_file("key")).unwrap());
    let signed = site.new_key(NOW);
    assert_eq!(signed.fingerprints.len(), 2);
    let new = site.read(NOW).unwrap();
    assert_ne!(new, old);
    assert_ne!(fs::read(site.key_file("key")).unwrap(), old_key);
    assert!(!site.key_file("key.new").exists() && !site.key_file("crt.new").exists());
    site.publisher().head(NOW).unwrap();
    assert_eq!(site.sign(NOW, |options| options.keep_others = false).fingerprints.len(), 1);
    assert_eq!(site.read(NOW).unwrap(), new);
}

#[test]
fn an_exchange_of_keys_goes_on_where_it_was_interrupted() {
    // Each state that a kill can leave, made by hand.
    for (state, present) in [
        ("half a key", &[("key.new", "-----BEGIN")][..]),
        ("a key without certificate", &[("key.new", "next key")]),
        ("half a certificate", &[("key.new", "next key"), ("crt.draft", "-----BEGIN")]),
        ("both wait", &[("key.new", "next key"), ("crt.new", "next crt")]),
        ("one took its place", &[("key.new", "next key"), ("crt", "next crt")]),
    ] {
        let site = Site::new();
        let old = site.read(NOW).unwrap();
        let key = PrivateKey::generate().unwrap();
        let certificate = Certificate::create(&site.name, &key).unwrap();
        site.sign(NOW, |options| options.also = vec![certificate.clone()]);
        for (extension, content) in present {
            let content = match *content {
                "next key" => key.to_pem().unwrap(),
                "next crt" => certificate.pem().to_vec(),
                other => other.as_bytes().to_vec(),
            };
            let _ = fs::remove_file(site.key_file(extension));
            fs::write(site.key_file(extension), content).unwrap();
        }
        site.new_key(NOW);
        assert_ne!(site.read(NOW).unwrap(), old, "{state}");
        site.publisher().head(NOW).unwrap();
        assert!(!site.key_file("key.new").exists() && !site.key_file("crt.new").exists(), "{state}");
    }
}

#[test]
fn a_whitelist_is_renewed_when_few_days_are_left() {
    let site = Site::new();
    let file = site.root.storage_dir(&site.name).join(".cvmfswhitelist");
    let day = |days: i64| UnixSeconds(NOW.0 + days * DAY);
    let look = |now| {
        let renewal = Renewal { when_days_left: 5, days: 12, token: None };
        renew(&site.root, &site.name, &renewal, now)
    };
    // It is valid for 30 days.
    assert_eq!(look(day(24)).expect("a look"), Renewed::NotYet);
    let issued = NOW;
    assert_eq!(look(day(-2)).expect("a look"), Renewed::WrongClock { issued });
    assert!(matches!(look(day(25)).expect("a look"), Renewed::Signed(signed) if signed.fingerprints.len() == 1));
    site.read(day(36)).expect("valid");
    assert!(matches!(site.read(day(38)), Err(Error::Expired { .. })));
    assert_eq!(look(day(31)).expect("a look"), Renewed::NotYet);
    // One that has expired, or is lost, is signed as well.
    assert!(matches!(look(day(100)).expect("a look"), Renewed::Signed(_)));
    fs::remove_file(&file).expect("a whitelist");
    assert!(matches!(look(day(100)).expect("a look"), Renewed::Signed(_)));
    site.read(day(111)).expect("valid");

    // What somebody else signed is not replaced.
    let ours = fs::read(&file).expect("a whitelist");
    let other = Site::new();
    fs::copy(other.root.storage_dir(&other.name).join(".cvmfswhitelist"), &file).expect("a whitelist");
    assert!(matches!(look(day(100)), Err(Error::Untrusted { .. })));
    fs::write(&file, ours).expect("a whitelist");
    fs::remove_file(site.key_file("masterkey")).expect("a key");
    assert_eq!(look(day(110)).expect("a look"), Renewed::NoKey { expires: day(112) });
}
