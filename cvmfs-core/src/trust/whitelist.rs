//! The whitelist `.cvmfswhitelist`: which certificates may sign the manifest, signed by the master key.
//!
//! Source: `cvmfs/whitelist.cc`.

use crate::clock::UnixSeconds;
use crate::error::{Error, Result};
use crate::hash::Algorithm;
use crate::path::RepositoryName;
use crate::trust::keys::{Certificate, Fingerprint, PublicKey, SignRaw};
use crate::trust::letter::Letter;

/// Days that a whitelist is valid by default.
pub const DEFAULT_DAYS: u32 = 30;

/// Days below which a whitelist should be signed again in haste.
pub const LOW_DAYS: u32 = 7;

/// What a whitelist says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whitelist {
    /// When it was signed.
    pub issued: UnixSeconds,
    /// From when on clients refuse it.
    pub expires: UnixSeconds,
    /// The repository.
    pub name: RepositoryName,
    /// Certificates that may sign the manifest.
    pub fingerprints: Vec<Fingerprint>,
}

/// A whitelist with its signature, as read: not to be believed before [`verify`](Self::verify).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedWhitelist {
    letter: Letter,
    whitelist: Whitelist,
}

impl Whitelist {
    /// Signs the list with the master key.
    pub fn sign(&self, algorithm: Algorithm, master_key: &dyn SignRaw) -> Result<SignedWhitelist> {
        let Self { issued, expires, name, fingerprints } = self;
        let mut text = format!("{}\nE{}\nN{name}\n", issued.compact(), expires.compact());
        for fingerprint in fingerprints {
            text.push_str(&format!("{fingerprint}\n"));
        }
        let letter = Letter::sign(text.into_bytes(), algorithm, |hash| master_key.sign_raw(hash))?;
        Ok(SignedWhitelist { letter, whitelist: self.clone() })
    }

    /// What to tell whoever works on the repository, if few days are left.
    pub fn warning(&self, now: UnixSeconds) -> Option<String> {
        let days = (self.expires.0 - now.0).div_euclid(86_400);
        (days < i64::from(LOW_DAYS)).then(|| format!("the whitelist expires in {days} days, on {}", self.expires))
    }

    /// Checks that a certificate is listed.
    ///
    /// # Errors
    /// `Untrusted` if it is not.
    pub fn check_certificate(&self, certificate: &Certificate) -> Result<()> {
        if self.fingerprints.iter().any(|listed| certificate.fingerprint(listed.algorithm()) == *listed) {
            return Ok(());
        }
        let fingerprint = certificate.fingerprint(Algorithm::Sha1);
        Err(Error::untrusted(
            format!("certificate {fingerprint}"),
            format!("the whitelist of {} does not list it", self.name),
        ))
    }
}

impl SignedWhitelist {
    /// Parses the file.
    ///
    /// # Errors
    /// `Malformed`, or `HashMismatch` if the text was changed; `Unsupported` for the PKCS#7 variant.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let malformed = |reason: &str| Error::malformed("whitelist", reason);
        let letter = Letter::parse("whitelist", bytes)?;
        let text = std::str::from_utf8(letter.text()).map_err(|_| malformed("not text"))?;
        let mut lines = text.lines();
        let issued =
            lines.next().and_then(UnixSeconds::parse_compact).ok_or_else(|| malformed("line 1 is no time stamp"))?;
        let expires = lines
            .next()
            .and_then(|line| line.strip_prefix('E'))
            .and_then(UnixSeconds::parse_compact)
            .ok_or_else(|| malformed("line 2 is no expiry"))?;
        let name = lines
            .next()
            .and_then(|line| line.strip_prefix('N'))
            .ok_or_else(|| malformed("line 3 is no repository name"))?
            .parse()?;
        let mut fingerprints = Vec::new();
        for line in lines {
            // Both ask for checks that we do not make; going on without them would be less than what is asked for.
            match line {
                "Vpkcs7" => return Err(Error::Unsupported { what: "a whitelist with PKCS#7 signature".into() }),
                "Wcachain" => return Err(Error::Unsupported { what: "a whitelist that asks for a CA chain".into() }),
                _ => {}
            }
            fingerprints.extend(Fingerprint::parse_line(line));
        }
        Ok(Self { letter, whitelist: Whitelist { issued, expires, name, fingerprints } })
    }

    /// The file.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.letter.to_bytes()
    }

    /// Returns the list if it is for `name`, not expired at `now`, and signed by one of the master keys.
    ///
    /// Upstream: clients compare the expiry to the hour, so a whitelist is refused from the hour of its expiry on.
    ///
    /// # Errors
    /// `Untrusted` or `Expired`.
    pub fn verify(&self, name: &RepositoryName, master_keys: &[PublicKey], now: UnixSeconds) -> Result<&Whitelist> {
        self.verify_signature(name, master_keys)?;
        let hour = |time: UnixSeconds| time.0.div_euclid(3600);
        if hour(now) >= hour(self.whitelist.expires) {
            let what = format!("whitelist of {name}");
            return Err(Error::Expired { what, expiry: self.whitelist.expires.to_string() });
        }
        Ok(&self.whitelist)
    }

    /// Returns the list if it is for `name` and signed by one of the master keys, even if it has expired: what to sign again.
    ///
    /// # Errors
    /// `Untrusted`.
    pub fn verify_signature(&self, name: &RepositoryName, master_keys: &[PublicKey]) -> Result<&Whitelist> {
        let what = format!("whitelist of {name}");
        if self.whitelist.name != *name {
            return Err(Error::untrusted(what, format!("it is for {}", self.whitelist.name)));
        }
        let hash = self.letter.hash_text();
        if !master_keys.iter().any(|key| key.verifies_raw(hash.as_bytes(), self.letter.signature())) {
            return Err(Error::untrusted(what, "it is not signed by a master key that we were given"));
        }
        Ok(&self.whitelist)
    }

    /// What the list says, unchecked; for display.
    pub fn unverified(&self) -> &Whitelist {
        &self.whitelist
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::keys::PrivateKey;

    const NOW: UnixSeconds = UnixSeconds(1_730_000_800);

    fn name() -> RepositoryName {
        "example.org".parse().unwrap()
    }

    fn sample() -> (PrivateKey, Certificate, Whitelist) {
        let key = PrivateKey::generate().unwrap();
        let certificate = Certificate::create(&name(), &key).unwrap();
        let fingerprints = vec![certificate.fingerprint(Algorithm::Sha1)];
        (key, certificate, Whitelist { issued: NOW, expires: NOW.plus_days(30), name: name(), fingerprints })
    }

    #[test]
    fn the_text_is_that_of_the_format() {
        let (key, _, whitelist) = sample();
        let bytes = whitelist.sign(Algorithm::Sha1, &key).unwrap().to_bytes();
        let expected = format!("20241027034640\nE20241126034640\nNexample.org\n{}\n--\n", whitelist.fingerprints[0]);
        assert!(bytes.starts_with(expected.as_bytes()));
        assert_eq!(bytes.len(), expected.len() + 41 + 256);
        assert_eq!(SignedWhitelist::parse(&bytes).unwrap().unverified(), &whitelist);
    }

    #[test]
    fn few_days_are_told() {
        let (_, _, whitelist) = sample();
        assert_eq!(whitelist.warning(NOW.plus_days(23)), None);
        let warning = "the whitelist expires in 6 days, on 2024-11-26T03:46:40Z";
        assert_eq!(whitelist.warning(UnixSeconds(NOW.plus_days(23).0 + 1)).as_deref(), Some(warning));
    }

    #[test]
    fn only_the_right_name_key_and_time_verify() {
        let (key, certificate, whitelist) = sample();
        let keys = [PrivateKey::generate().unwrap().public().unwrap(), key.public().unwrap()];
        let signed = whitelist.sign(Algorithm::Shake128, &key).unwrap();
        let verified = signed.verify(&name(), &keys, NOW).unwrap();
        verified.check_certificate(&certificate).unwrap();

        let stranger = Certificate::create(&name(), &PrivateKey::generate().unwrap()).unwrap();
        assert!(matches!(verified.check_certificate(&stranger), Err(Error::Untrusted { .. })));
        assert!(matches!(signed.verify(&name(), &keys[..1], NOW), Err(Error::Untrusted { .. })));
        let other = "other.example.org".parse().unwrap();
        assert!(matches!(signed.verify(&other, &keys, NOW), Err(Error::Untrusted { .. })));
        // 2024-11-26 03:46:40 is the expiry: 02:59:59 is good, 03:00:00 is not.
        let last_good = UnixSeconds(1_732_589_999);
        assert_eq!(last_good.compact(), "20241126025959");
        assert!(signed.verify(&name(), &keys, last_good).is_ok());
        assert!(matches!(signed.verify(&name(), &keys, UnixSeconds(last_good.0 + 1)), Err(Error::Expired { .. })));
    }

    #[test]
    fn a_whitelist_that_asks_for_other_checks_is_refused() {
        let key = PrivateKey::generate().unwrap();
        for line in ["Vpkcs7", "Wcachain"] {
            let text = format!("20241027034640\nE20241126034640\nNexample.org\n{line}\n");
            let letter = Letter::sign(text.into_bytes(), Algorithm::Sha1, |hash| key.sign_raw(hash)).unwrap();
            assert!(matches!(SignedWhitelist::parse(&letter.to_bytes()), Err(Error::Unsupported { .. })), "{line}");
        }
    }

    #[test]
    fn comments_and_several_fingerprints_are_read() {
        let (key, certificate, whitelist) = sample();
        let second = certificate.fingerprint(Algorithm::Rmd160);
        let text = format!(
            "20241027034640\nE20241126034640\nNexample.org\n# a comment\n{} # old\n{second}\n",
            whitelist.fingerprints[0]
        );
        let letter = Letter::sign(text.into_bytes(), Algorithm::Sha1, |hash| key.sign_raw(hash)).unwrap();
        let signed = SignedWhitelist::parse(&letter.to_bytes()).unwrap();
        assert_eq!(signed.unverified().fingerprints, [whitelist.fingerprints[0], second]);
    }
}
