//! Signing again: the whitelist before it expires, the manifest after its key changed.
//!
//! ```text
//! master key ─► whitelist: this repository's certificates, for some days
//! key ────────► manifest: the newest revision
//! ```
//!
//! A new key takes effect in an order in which clients accept what they find at every moment: the whitelist lists the new
//! certificate beside the old one, the keys are exchanged, the manifest is signed anew. The old certificate is taken off the
//! list later, when nobody has a manifest any more that it signed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::{Error, IoContext as _, Result, remove_if_there};
use cvmfs_core::path::RepositoryName;
use cvmfs_core::progress::Cancel;
use cvmfs_core::server::{PublisherKeys, RepositoryConfig, ServerRoot, load_master_keys};
use cvmfs_core::storage::{NamedFile, WriteStore};
use cvmfs_core::trust::keys::{Certificate, Fingerprint, PrivateKey, SignRaw};
use cvmfs_core::trust::token::{Token, TokenSettings};
use cvmfs_core::trust::whitelist::{DEFAULT_DAYS, SignedWhitelist, Whitelist};
use serde::Serialize;

use crate::mkfs::write_key;

/// Days that a whitelist is valid that a token signed. Source: `create_whitelist` in `cvmfs/server/cvmfs_server_ssl.sh`.
pub const TOKEN_DAYS: u32 = 7;

/// Choices for signing the whitelist.
#[derive(Debug, Clone)]
pub struct Options {
    /// The time.
    pub now: UnixSeconds,
    /// Days that it is valid.
    pub days: u32,
    /// Whether certificates that the present whitelist lists stay on it.
    pub keep_others: bool,
    /// Certificates that are listed besides that of the repository.
    pub also: Vec<Certificate>,
}

impl Options {
    /// For the usual time, with all that is listed.
    pub fn new(now: UnixSeconds) -> Self {
        Self { now, days: DEFAULT_DAYS, keep_others: true, also: Vec::new() }
    }
}

/// When and for how long whitelists are signed again on their own.
#[derive(Debug, Clone)]
pub struct Renewal {
    /// As soon as fewer days than this are left.
    pub when_days_left: u32,
    /// Days that the new whitelist is valid; more than the former.
    pub days: u32,
    /// The token with the master key, for repositories without a file of it.
    pub token: Option<TokenSettings>,
}

/// What came of a look at a whitelist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewed {
    /// It is valid for longer than that.
    NotYet,
    /// It was signed.
    Signed(Signed),
    /// It should be signed, and the master key is kept elsewhere.
    NoKey {
        /// When it expires, or did.
        expires: UnixSeconds,
    },
    /// It was signed in the future. Nothing is signed then, because a whitelist of a clock that is behind may have expired.
    WrongClock {
        /// When it was signed, as it says.
        issued: UnixSeconds,
    },
}

/// What was signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signed {
    /// Until when the whitelist is valid.
    pub whitelist_expires: String,
    /// The certificates that it lists.
    pub fingerprints: Vec<String>,
    /// What the operator should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What signs whitelists.
#[derive(Debug)]
pub enum MasterKey {
    /// A key in a file.
    File(PrivateKey),
    /// A token that has the key.
    Token(Token),
}

impl MasterKey {
    /// For how many days a whitelist is usually signed with it: for fewer with a token, which nobody can copy and somebody may
    /// steal.
    pub fn usual_days(&self) -> u32 {
        match self {
            Self::File(_) => DEFAULT_DAYS,
            Self::Token(_) => TOKEN_DAYS,
        }
    }
}

/// Loads the master key of a repository from its file, or opens the token if there is no such file.
///
/// # Errors
/// `NotFound` if it is kept elsewhere; those of [`Token::open`].
pub fn master_key(root: &ServerRoot, name: &RepositoryName, token: Option<&TokenSettings>) -> Result<MasterKey> {
    match (key_file_of(root, name), token) {
        (Ok(key), _) => Ok(MasterKey::File(key)),
        (Err(error), Some(settings)) if error.is_not_found() => Token::open(settings).map(MasterKey::Token),
        (Err(error), _) => Err(error),
    }
}

/// Loads the file with the master key of a repository.
///
/// # Errors
/// `NotFound` if there is none.
pub fn key_file_of(root: &ServerRoot, name: &RepositoryName) -> Result<PrivateKey> {
    let file = root.key_file(name, "masterkey");
    match fs::read(&file) {
        Ok(pem) => PrivateKey::from_pem(&file.display().to_string(), &pem),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::not_found(format!(
            "{} (a whitelist that was signed elsewhere can be put in place with --whitelist)",
            file.display()
        ))),
        Err(error) => Err(Error::io(file, error)),
    }
}

/// Signs the whitelist again if that is due. A missing one is signed, one that somebody else signed is not replaced.
///
/// # Errors
/// `Untrusted` if the present whitelist, or the master key, is not that of the repository.
pub fn renew(root: &ServerRoot, name: &RepositoryName, renewal: &Renewal, now: UnixSeconds) -> Result<Renewed> {
    let publisher = Publisher::open(root, name)?;
    let expires = match publisher.store.read(&NamedFile::Whitelist.into()) {
        Err(error) if error.is_not_found() => now,
        bytes => {
            let signed = SignedWhitelist::parse(&bytes?)?;
            let whitelist = signed.verify_signature(name, &publisher.keys.master)?;
            if whitelist.issued > now.plus_days(1) {
                return Ok(Renewed::WrongClock { issued: whitelist.issued });
            }
            whitelist.expires
        }
    };
    if expires > now.plus_days(renewal.when_days_left) {
        return Ok(Renewed::NotYet);
    }
    let master_key = match master_key(root, name, renewal.token.as_ref()) {
        Err(error) if error.is_not_found() => return Ok(Renewed::NoKey { expires }),
        key => key?,
    };
    let options = Options { days: renewal.days, ..Options::new(now) };
    sign_whitelist(&publisher, &master_key, &options).map(Renewed::Signed)
}

/// Signs a new whitelist and puts it in place. Neither an expired whitelist nor a missing one is in the way.
///
/// # Errors
/// `Untrusted` if the master key is not that of the repository; `NotFound` if a token does not have it.
pub fn sign_whitelist(publisher: &Publisher, master_key: &MasterKey, options: &Options) -> Result<Signed> {
    let fingerprints = fingerprints(publisher, options)?;
    match master_key {
        MasterKey::File(key) => sign_with(publisher, key, fingerprints, options),
        MasterKey::Token(token) => sign_with(publisher, &token.key(&publisher.keys.master)?, fingerprints, options),
    }
}

/// Signs a whitelist of these certificates and puts it in place.
///
/// # Errors
/// `Untrusted` if the master key is not that of the repository.
pub(crate) fn sign_with(
    publisher: &Publisher,
    master_key: &dyn SignRaw,
    fingerprints: Vec<Fingerprint>,
    options: &Options,
) -> Result<Signed> {
    let (issued, expires) = (options.now, options.now.plus_days(options.days));
    let whitelist = Whitelist { issued, expires, name: publisher.config.name.clone(), fingerprints };
    let signed = whitelist.sign(publisher.config.algorithm, master_key)?;
    let mut signed = place_whitelist(publisher, &signed, options.now)?;
    if options.days > DEFAULT_DAYS {
        signed.warnings.push(format!("a stolen key can be used for {} days; {DEFAULT_DAYS} are usual", options.days));
    }
    Ok(signed)
}

/// The certificates that a new whitelist lists, each once.
pub(crate) fn fingerprints(publisher: &Publisher, options: &Options) -> Result<Vec<Fingerprint>> {
    let algorithm = publisher.config.algorithm;
    let mut fingerprints = vec![publisher.keys.certificate.fingerprint(algorithm)];
    fingerprints.extend(options.also.iter().map(|certificate| certificate.fingerprint(algorithm)));
    if options.keep_others {
        fingerprints.extend(listed(publisher)?);
    }
    let mut seen = Vec::new();
    fingerprints.retain(|fingerprint| {
        let is_new = !seen.contains(fingerprint);
        seen.push(*fingerprint);
        is_new
    });
    Ok(fingerprints)
}

/// Puts a whitelist in place that was signed elsewhere.
///
/// # Errors
/// `Untrusted`, `Expired` or `Malformed` if clients would not accept it, or not the repository's certificate.
pub fn place_whitelist(publisher: &Publisher, signed: &SignedWhitelist, now: UnixSeconds) -> Result<Signed> {
    let whitelist = signed.verify(&publisher.config.name, &publisher.keys.master, now)?;
    whitelist.check_certificate(&publisher.keys.certificate)?;
    publisher.store.write(NamedFile::Whitelist, &signed.to_bytes())?;
    Ok(Signed {
        whitelist_expires: whitelist.expires.to_string(),
        fingerprints: whitelist.fingerprints.iter().map(ToString::to_string).collect(),
        warnings: Vec::new(),
    })
}

/// The certificates on the present whitelist, if the master key signed it, however long ago.
fn listed(publisher: &Publisher) -> Result<Vec<Fingerprint>> {
    let bytes = match publisher.store.read(&NamedFile::Whitelist.into()) {
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        bytes => bytes?,
    };
    let signed = SignedWhitelist::parse(&bytes)?;
    Ok(signed.verify_signature(&publisher.config.name, &publisher.keys.master)?.fingerprints.clone())
}

/// Makes a new key for the repository, and signs with it from now on. Interrupted, it goes on the next time.
///
/// 1. key and certificate are made, beside those in use;
/// 2. the whitelist lists both certificates;
/// 3. the new ones take their place;
/// 4. the manifest is signed with the new key.
///
/// # Errors
/// After any error clients accept what they find. In the moment between the exchange of key and certificate nobody can
/// publish; the next call mends that.
pub fn new_key(
    root: &ServerRoot,
    name: &RepositoryName,
    master_key: &MasterKey,
    options: &Options,
    patience: Duration,
    cancel: &Cancel,
) -> Result<Signed> {
    let config = RepositoryConfig::load(root, name)?;
    let (store, mut options) = (config.storage.open()?, options.clone());
    // Without keys, as after an import, only the new certificate is ours to list.
    options.also.extend(PublisherKeys::load(root, name).ok().map(|keys| keys.certificate));
    exchange_key(root, config, store, master_key, &options, patience, cancel)
}

/// The same for a repository that is not configured yet, and that may have no key here.
///
/// # Errors
/// As for [`new_key`].
pub(crate) fn exchange_key(
    root: &ServerRoot,
    config: RepositoryConfig,
    store: Arc<dyn WriteStore>,
    master_key: &MasterKey,
    options: &Options,
    patience: Duration,
    cancel: &Cancel,
) -> Result<Signed> {
    let next = NextKey::prepare(root, &config.name)?;
    let (key, certificate) = next.load()?;
    let keys = PublisherKeys { key, certificate, master: load_master_keys(root, &config.name)? };
    let publisher = Publisher { config, keys, store };
    let signed = sign_whitelist(&publisher, master_key, options)?;
    next.take_place()?;
    publisher.sign_again(options.now, patience, cancel)?;
    Ok(signed)
}

/// A key and a certificate that wait beside those in use.
struct NextKey {
    /// Where they wait, and where they go; the certificate first.
    files: [(PathBuf, PathBuf); 2],
}

impl NextKey {
    /// Makes them, unless an earlier call has: if the new certificate is there, so is its key, and both are whole.
    fn prepare(root: &ServerRoot, name: &RepositoryName) -> Result<Self> {
        let file = |extension| root.key_file(name, extension);
        let files = [(file("crt.new"), file("crt")), (file("key.new"), file("key"))];
        let [(certificate, _), (key_file, _)] = &files;
        let next = Self { files: files.clone() };
        // A key that waits without its certificate, which has taken its place, was interrupted there.
        let is_waiting = certificate.try_exists().at(certificate)?
            || key_file.try_exists().at(key_file)?
                && next.load().is_ok_and(|(key, certificate)| certificate.check_key(&key).is_ok());
        if !is_waiting {
            let draft = file("crt.draft");
            [key_file, &draft].into_iter().try_for_each(|file| remove_if_there(file))?;
            let key = PrivateKey::generate()?;
            write_key(root, name, "key.new", 0o400, &key.to_pem()?)?;
            write_key(root, name, "crt.draft", 0o444, Certificate::create(name, &key)?.pem())?;
            fs::rename(&draft, certificate).at(certificate)?;
        }
        Ok(next)
    }

    /// Loads the two from where they are now.
    fn load(&self) -> Result<(PrivateKey, Certificate)> {
        let [certificate, key] = &self.files;
        let read = |(next, current): &(PathBuf, PathBuf)| read(if next.exists() { next } else { current });
        let (what, pem) = read(key)?;
        let key = PrivateKey::from_pem(&what, &pem)?;
        let (what, pem) = read(certificate)?;
        Ok((key, Certificate::from_pem(&what, pem)?))
    }

    fn take_place(&self) -> Result<()> {
        for (next, current) in &self.files {
            if next.try_exists().at(next)? {
                fs::rename(next, current).at(next)?;
            }
        }
        Ok(())
    }
}

fn read(file: &Path) -> Result<(String, Vec<u8>)> {
    Ok((file.display().to_string(), fs::read(file).at(file)?))
}
