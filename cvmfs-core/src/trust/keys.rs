//! RSA keys and the certificate of a repository: load, create, sign, check.
//!
//! | file | is | signs |
//! | --- | --- | --- |
//! | `.masterkey` | master key | whitelists |
//! | `.pub` | its public half, given to clients | |
//! | `.key` | repository key | manifests |
//! | `.crt` | certificate: the container of the repository key's public half | |
//!
//! Signatures are made with the raw RSA operation on padded text that this module composes, so they do not depend on
//! whether the system's policy still lets OpenSSL sign SHA-1 digests.
//!
//! Source: `cvmfs/crypto/signature.cc`.

use std::fmt;

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private, Public};
use openssl::rsa::{Padding, Rsa};
use openssl::x509::{X509, X509NameBuilder};

use crate::error::{Error, Result};
use crate::hash::{Algorithm, ContentHash};
use crate::path::RepositoryName;

/// Bits of new keys.
const KEY_BITS: u32 = 2048;
/// Longest repository name in the subject of a certificate; the field holds 64 characters.
const SUBJECT_NAME_MAX: usize = 30;
/// ASN.1 of a SHA-1 digest in a PKCS#1 signature, up to the digest.
const SHA1_DIGEST_INFO: [u8; 15] =
    [0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a, 0x05, 0x00, 0x04, 0x14];

/// A private RSA key: master key or repository key.
#[derive(Clone)]
pub struct PrivateKey(Rsa<Private>);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

impl PrivateKey {
    /// Makes a new key.
    pub fn generate() -> Result<Self> {
        Rsa::generate(KEY_BITS).map(Self).map_err(|error| Error::crypto("cannot generate an RSA key", error))
    }

    /// Parses a PEM file; `what` names it in errors.
    pub fn from_pem(what: &str, pem: &[u8]) -> Result<Self> {
        // Without this callback OpenSSL would ask for a passphrase on the terminal.
        let key = PKey::private_key_from_pem_callback(pem, |_| Ok(0))
            .map_err(|error| Error::crypto(format!("{what}: not an unencrypted private key in PEM"), error))?;
        key.rsa().map(Self).map_err(|error| Error::crypto(format!("{what}: not an RSA key"), error))
    }

    /// The traditional PEM form, as the reference writes it.
    pub fn to_pem(&self) -> Result<Vec<u8>> {
        self.0.private_key_to_pem().map_err(|error| Error::crypto("cannot encode a private key", error))
    }

    /// The public half.
    pub fn public(&self) -> Result<PublicKey> {
        let copy = |number: &openssl::bn::BigNumRef| number.to_owned();
        let public = || Rsa::from_public_components(copy(self.0.n())?, copy(self.0.e())?);
        public().map(PublicKey).map_err(|error| Error::crypto("cannot derive a public key", error))
    }

    /// All numbers, for a token.
    #[cfg(feature = "token")]
    pub(super) fn numbers(&self) -> Result<Numbers> {
        let bytes = |number: Option<&openssl::bn::BigNumRef>| {
            let none = || Error::invalid("private key", "it lacks the numbers that make signing fast");
            number.map(openssl::bn::BigNumRef::to_vec).ok_or_else(none)
        };
        Ok(Numbers {
            modulus: self.0.n().to_vec(),
            public_exponent: self.0.e().to_vec(),
            private_exponent: self.0.d().to_vec(),
            primes: [bytes(self.0.p())?, bytes(self.0.q())?],
            exponents: [bytes(self.0.dmp1())?, bytes(self.0.dmq1())?],
            coefficient: bytes(self.0.iqmp())?,
        })
    }

    /// Signs the hash text of a whitelist: PKCS#1 padding around the text itself.
    pub fn sign_raw(&self, text: &[u8]) -> Result<Vec<u8>> {
        let mut signature = vec![0; self.0.size() as usize];
        let size = self
            .0
            .private_encrypt(text, &mut signature, Padding::PKCS1)
            .map_err(|error| Error::crypto("cannot sign", error))?;
        signature.truncate(size);
        Ok(signature)
    }

    /// Signs the hash text of a manifest: PKCS#1 v1.5 with SHA-1, whatever the repository's hash algorithm.
    pub fn sign_sha1(&self, text: &[u8]) -> Result<Vec<u8>> {
        self.sign_raw(&sha1_digest_info(text))
    }
}

/// Signs the hash texts of whitelists: a key in a file, or one in a token.
pub trait SignRaw {
    /// Signs a text with PKCS#1 padding around the text itself.
    fn sign_raw(&self, text: &[u8]) -> Result<Vec<u8>>;
}

impl SignRaw for PrivateKey {
    fn sign_raw(&self, text: &[u8]) -> Result<Vec<u8>> {
        Self::sign_raw(self, text)
    }
}

/// The numbers of a private RSA key, as big-endian bytes.
#[cfg(feature = "token")]
pub(super) struct Numbers {
    pub(super) modulus: Vec<u8>,
    pub(super) public_exponent: Vec<u8>,
    pub(super) private_exponent: Vec<u8>,
    pub(super) primes: [Vec<u8>; 2],
    pub(super) exponents: [Vec<u8>; 2],
    pub(super) coefficient: Vec<u8>,
}

/// A public RSA key.
#[derive(Clone)]
pub struct PublicKey(Rsa<Public>);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicKey(..)")
    }
}

impl PublicKey {
    /// Parses a PEM file with a subject public key info; `what` names it in errors.
    pub fn from_pem(what: &str, pem: &[u8]) -> Result<Self> {
        Rsa::public_key_from_pem(pem)
            .map(Self)
            .map_err(|error| Error::crypto(format!("{what}: not an RSA public key in PEM"), error))
    }

    /// A key of these numbers, given as big-endian bytes.
    #[cfg(feature = "token")]
    pub(super) fn from_numbers(modulus: &[u8], exponent: &[u8]) -> Result<Self> {
        let public = || Rsa::from_public_components(BigNum::from_slice(modulus)?, BigNum::from_slice(exponent)?);
        public().map(Self).map_err(|error| Error::crypto("cannot make a public key", error))
    }

    /// Whether the other one is the same key.
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.n() == other.0.n() && self.0.e() == other.0.e()
    }

    /// The PEM form.
    pub fn to_pem(&self) -> Result<Vec<u8>> {
        self.0.public_key_to_pem().map_err(|error| Error::crypto("cannot encode a public key", error))
    }

    /// Whether `signature` is that of [`PrivateKey::sign_raw`] for `text`.
    pub fn verifies_raw(&self, text: &[u8], signature: &[u8]) -> bool {
        let mut recovered = vec![0; self.0.size() as usize];
        match self.0.public_decrypt(signature, &mut recovered, Padding::PKCS1) {
            Ok(size) => recovered[..size] == *text,
            Err(_) => false,
        }
    }

    /// Whether `signature` is that of [`PrivateKey::sign_sha1`] for `text`.
    pub fn verifies_sha1(&self, text: &[u8], signature: &[u8]) -> bool {
        self.verifies_raw(&sha1_digest_info(text), signature)
    }
}

fn sha1_digest_info(text: &[u8]) -> Vec<u8> {
    [&SHA1_DIGEST_INFO[..], Algorithm::Sha1.hash(text).digest()].concat()
}

/// The certificate of a repository key. Nothing in it is checked but that its fingerprint is listed.
#[derive(Clone)]
pub struct Certificate {
    pem: Vec<u8>,
    der: Vec<u8>,
    key: PublicKey,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({})", self.fingerprint(Algorithm::Sha1))
    }
}

impl Certificate {
    /// Makes a self-signed certificate for a key, valid for a year (no client looks).
    pub fn create(name: &RepositoryName, key: &PrivateKey) -> Result<Self> {
        let short = match name.as_str() {
            long if long.len() > SUBJECT_NAME_MAX => format!("{}[...]", &long[..SUBJECT_NAME_MAX]),
            short => short.to_owned(),
        };
        let build = || -> Result<X509, openssl::error::ErrorStack> {
            let mut subject = X509NameBuilder::new()?;
            subject.append_entry_by_text("CN", &format!("{short} CernVM-FS Release Managers"))?;
            let subject = subject.build();
            let key = PKey::from_rsa(key.0.clone())?;
            let mut serial = BigNum::new()?;
            serial.rand(127, openssl::bn::MsbOption::MAYBE_ZERO, false)?;
            let mut builder = X509::builder()?;
            builder.set_version(2)?;
            builder.set_serial_number(&*serial.to_asn1_integer()?)?;
            builder.set_subject_name(&subject)?;
            builder.set_issuer_name(&subject)?;
            builder.set_not_before(&*Asn1Time::days_from_now(0)?)?;
            builder.set_not_after(&*Asn1Time::days_from_now(365)?)?;
            builder.set_pubkey(&key)?;
            builder.sign(&key, MessageDigest::sha256())?;
            Ok(builder.build())
        };
        let certificate = build().map_err(|error| Error::crypto("cannot create a certificate", error))?;
        let pem = certificate.to_pem().map_err(|error| Error::crypto("cannot encode a certificate", error))?;
        Self::from_pem("new certificate", pem)
    }

    /// Parses a PEM file, whose bytes are kept: they are the certificate object.
    pub fn from_pem(what: &str, pem: Vec<u8>) -> Result<Self> {
        let parse = || -> Result<_, openssl::error::ErrorStack> {
            let certificate = X509::from_pem(&pem)?;
            Ok((certificate.to_der()?, certificate.public_key()?.rsa()?))
        };
        let (der, key) =
            parse().map_err(|error| Error::crypto(format!("{what}: not a certificate with an RSA key"), error))?;
        Ok(Self { pem, der, key: PublicKey(key) })
    }

    /// The PEM file.
    pub fn pem(&self) -> &[u8] {
        &self.pem
    }

    /// The certificate without PEM around it, and its subject in the same form.
    #[cfg(feature = "token")]
    pub(super) fn der_and_subject(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        let subject = || X509::from_der(&self.der)?.subject_name().to_der();
        let subject = subject().map_err(|error| Error::crypto("cannot encode a subject", error))?;
        Ok((self.der.clone(), subject))
    }

    /// The key in the certificate.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// What whitelists list.
    pub fn fingerprint(&self, algorithm: Algorithm) -> Fingerprint {
        Fingerprint(algorithm.hash(&self.der))
    }

    /// Checks that a private key belongs to the certificate.
    ///
    /// # Errors
    /// `Untrusted` if it is another one.
    pub fn check_key(&self, key: &PrivateKey) -> Result<()> {
        let probe = b"do these belong together?";
        if self.key.verifies_sha1(probe, &key.sign_sha1(probe)?) {
            Ok(())
        } else {
            Err(Error::untrusted("repository key", "it does not belong to the certificate"))
        }
    }
}

/// The hash of a certificate, in the notation of whitelists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(ContentHash);

impl Fingerprint {
    /// The algorithm to hash a certificate with for comparison.
    pub fn algorithm(&self) -> Algorithm {
        self.0.algorithm()
    }

    /// Parses a whitelist line; what follows a blank or `#` is a comment. `None` for lines that are no fingerprint.
    pub fn parse_line(line: &str) -> Option<Self> {
        let text = line.split([' ', '\t', '#']).next().unwrap_or_default();
        text.replace(':', "").to_lowercase().parse().ok().map(Self)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.digest().iter().enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02X}")?;
        }
        let text = self.0.to_string();
        f.write_str(&text[2 * crate::hash::DIGEST_SIZE..].to_uppercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_one_key_and_text() {
        let (key, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let public = key.public().unwrap();
        let hash = "5cf2559cd1a9124cc4af9b56f8c9a691756f2eb4".as_bytes();
        let raw = key.sign_raw(hash).unwrap();
        let sha1 = key.sign_sha1(hash).unwrap();
        assert!(public.verifies_raw(hash, &raw));
        assert!(public.verifies_sha1(hash, &sha1));
        assert!(!public.verifies_sha1(hash, &raw));
        assert!(!public.verifies_raw(hash, &sha1));
        assert!(!public.verifies_raw(&hash[1..], &raw));
        assert!(!other.public().unwrap().verifies_raw(hash, &raw));
        assert!(!public.verifies_raw(hash, b""));
        assert!(!public.verifies_raw(hash, &[0xff; 256]));
    }

    /// The padded block of the format description: `00 01 ff...ff 00 text`.
    #[test]
    fn the_whitelist_signature_pads_the_text_itself() {
        let key = PrivateKey::generate().unwrap();
        let text = [b'a'; 40];
        let signature = key.sign_raw(&text).unwrap();
        let mut block = vec![0; 256];
        key.public().unwrap().0.public_decrypt(&signature, &mut block, Padding::NONE).unwrap();
        assert_eq!(block, [&[0, 1][..], &[0xff; 213], &[0], &text].concat());
    }

    #[test]
    fn keys_and_certificates_read_back() {
        let key = PrivateKey::generate().unwrap();
        let name: RepositoryName = "a-very-long-repository-name.software.example.org".parse().unwrap();
        let certificate = Certificate::create(&name, &key).unwrap();
        certificate.check_key(&PrivateKey::from_pem("key", &key.to_pem().unwrap()).unwrap()).unwrap();
        assert!(certificate.check_key(&PrivateKey::generate().unwrap()).is_err());
        let public = PublicKey::from_pem("pub", &key.public().unwrap().to_pem().unwrap()).unwrap();
        assert!(public.verifies_raw(b"x", &key.sign_raw(b"x").unwrap()));
        assert!(PrivateKey::from_pem("junk", b"junk").is_err());
    }

    #[test]
    fn fingerprints_have_the_notation_of_whitelists() {
        let line = "8B:4D:0F:91:2E:33:6A:C7:55:10:9B:FE:42:D8:71:0C:AA:3E:5F:66";
        let fingerprint = Fingerprint::parse_line(line).unwrap();
        assert_eq!(fingerprint.to_string(), line);
        assert_eq!(Fingerprint::parse_line(&format!("{line} # old key")), Some(fingerprint));
        let rmd160 = Fingerprint::parse_line(&format!("{line}-RMD160")).unwrap();
        assert_eq!(rmd160.algorithm(), Algorithm::Rmd160);
        assert_eq!(rmd160.to_string(), format!("{line}-RMD160"));
        assert_eq!(Fingerprint::parse_line("# comment"), None);
    }
}
