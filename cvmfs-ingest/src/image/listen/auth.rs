//! Who may notify: whoever knows the secret.
//!
//! | header | value | sent by |
//! | --- | --- | --- |
//! | `Authorization` | the secret, with or without `Bearer` in front | Harbor, Docker distribution |
//! | `X-Gitlab-Token` | the secret | GitLab |
//! | `X-Hub-Signature-256` | `sha256=` and the HMAC-SHA256 of the body, in hexadecimal digits | GitHub and many others |
//! | `X-Signature` | the same, with or without `sha256=` | scripts |

use std::fmt;

use cvmfs_core::error::{Error, Result};
use hyper::HeaderMap;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;

/// Bytes of the shortest secret.
const LENGTH_MIN: usize = 8;

/// Headers with the secret itself.
const SECRET_HEADERS: [&str; 2] = ["authorization", "x-gitlab-token"];
/// Headers with a signature of the body.
const SIGNATURE_HEADERS: [&str; 2] = ["x-hub-signature-256", "x-signature"];

/// What a registry and this service both know.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

/// What the headers of a request prove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Proof {
    /// That its sender knows the secret.
    Known,
    /// That its sender knows the secret if this is the signature of the body.
    Signature(Vec<u8>),
    /// Nothing.
    None,
}

impl Secret {
    /// Takes a secret, as it is in a file: white space around it is none of it.
    ///
    /// # Errors
    /// `InvalidInput` if it is too short to be one, or no header could have it.
    pub fn new(text: &str) -> Result<Self> {
        let secret = text.trim().as_bytes();
        let reason = if secret.len() < LENGTH_MIN {
            format!("it is shorter than {LENGTH_MIN} bytes")
        } else if !secret.iter().all(|byte| (b' '..=b'~').contains(byte)) {
            "it has characters that no header can have".to_owned()
        } else {
            return Ok(Self(secret.to_owned()));
        };
        Err(Error::invalid("the secret", reason))
    }

    /// What the headers of a request prove.
    pub(super) fn look_at(&self, headers: &HeaderMap) -> Proof {
        for value in SECRET_HEADERS.iter().flat_map(|name| headers.get_all(*name)) {
            let value = value.as_bytes();
            let token = value.strip_prefix(b"Bearer ").unwrap_or(value);
            // Both ways, because the secret itself may begin with that word.
            if self.is(value) | self.is(token) {
                return Proof::Known;
            }
        }
        let signature = SIGNATURE_HEADERS.iter().find_map(|name| headers.get(*name));
        let signature = signature.and_then(|value| value.to_str().ok()).and_then(parse_signature);
        signature.map_or(Proof::None, Proof::Signature)
    }

    /// Whether the sender of a request knows the secret.
    ///
    /// # Errors
    /// `Crypto` if OpenSSL cannot tell.
    pub(super) fn verify(&self, proof: &Proof, body: &[u8]) -> Result<bool> {
        match proof {
            Proof::Known => Ok(true),
            Proof::None => Ok(false),
            Proof::Signature(signature) => {
                let expected = self.sign(body)?;
                Ok(signature.len() == expected.len() && openssl::memcmp::eq(signature, &expected))
            }
        }
    }

    /// Compares in a time that tells nothing about the secret: digests have one length, and no part that can be guessed.
    fn is(&self, other: &[u8]) -> bool {
        openssl::memcmp::eq(&openssl::sha::sha256(&self.0), &openssl::sha::sha256(other))
    }

    fn sign(&self, body: &[u8]) -> Result<Vec<u8>> {
        let sign = || {
            let key = PKey::hmac(&self.0)?;
            Signer::new(MessageDigest::sha256(), &key)?.sign_oneshot_to_vec(body)
        };
        sign().map_err(|error| Error::crypto("signature of a notification", error))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

fn parse_signature(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim().strip_prefix("sha256=").unwrap_or(text.trim());
    let value = |digit: u8| (digit as char).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| Some((value(pair[0])? << 4) | value(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn knows(secret: &str, pairs: &[(&'static str, &str)], body: &[u8]) -> bool {
        let secret = Secret::new(secret).unwrap();
        let proof = secret.look_at(&headers(pairs));
        secret.verify(&proof, body).unwrap()
    }

    #[test]
    fn the_secret_in_a_header() {
        for (name, value, expected) in [
            ("authorization", "correct horse", true),
            ("authorization", "Bearer correct horse", true),
            ("x-gitlab-token", "correct horse", true),
            ("authorization", "correct hors", false),
            ("authorization", "correct horse ", true),
            ("authorization", "correct horsee", false),
            ("authorization", "Basic correct horse", false),
            ("authorization", "", false),
            ("x-signature", "correct horse", false),
            ("x-other", "correct horse", false),
        ] {
            // A server trims values; so does this test.
            assert_eq!(knows(" correct horse\n", &[(name, value.trim_end())], b"{}"), expected, "{name}: {value:?}");
        }
        assert!(knows("Bearer token", &[("authorization", "Bearer token")], b""));
        assert!(!knows("correct horse", &[], b"{}"));
    }

    #[test]
    fn signatures_of_the_body() {
        // The example of GitHub's documentation, "Validating webhook deliveries".
        let (secret, body) = ("It's a Secret to Everybody", b"Hello, World!");
        let digits = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let signed = format!("sha256={digits}");
        assert!(knows(secret, &[("x-hub-signature-256", &signed)], body));
        assert!(knows(secret, &[("x-signature", &signed)], body));
        assert!(knows(secret, &[("x-signature", digits)], body));
        assert!(!knows(secret, &[("x-signature", digits)], b"Hello, World"));
        assert!(!knows("another secret", &[("x-signature", digits)], body));
        for wrong in ["", "sha256=", &digits[1..], &digits[2..], &format!("{digits}00"), "sha1=00", "zz"] {
            assert!(!knows(secret, &[("x-signature", wrong)], body), "{wrong}");
        }
    }

    #[test]
    fn secrets_that_are_none() {
        for text in ["", "\n", "1234567", "12345678\u{e9}", "1234\n5678"] {
            assert!(Secret::new(text).is_err(), "{text:?}");
        }
        assert_eq!(format!("{:?}", Secret::new("12345678").unwrap()), "Secret");
    }
}
