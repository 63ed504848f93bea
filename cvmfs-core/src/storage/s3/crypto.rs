//! What signatures of requests are made of, from the library that the formats need anyway.

use object_store::client::{CryptoProvider, DigestAlgorithm, DigestContext, HmacContext, Signer, SigningAlgorithm};
use openssl::sha::Sha256;

type Result<T> = object_store::Result<T>;

/// SHA-256 of OpenSSL.
#[derive(Debug)]
pub(super) struct OpenSsl;

impl CryptoProvider for OpenSsl {
    fn digest(&self, algorithm: DigestAlgorithm) -> Result<Box<dyn DigestContext>> {
        match algorithm {
            DigestAlgorithm::Sha256 => Ok(Box::new(Digest { hasher: Sha256::new(), digest: [0; 32] })),
            _ => Err(unknown("digest")),
        }
    }

    fn hmac(&self, algorithm: DigestAlgorithm, secret: &[u8]) -> Result<Box<dyn HmacContext>> {
        match algorithm {
            DigestAlgorithm::Sha256 => Ok(Box::new(Hmac::new(secret))),
            _ => Err(unknown("message authentication code")),
        }
    }

    fn sign(&self, _algorithm: SigningAlgorithm, _pem: &[u8]) -> Result<Box<dyn Signer>> {
        Err(unknown("signature"))
    }
}

/// The same for the library: its signatures are replaced before they are sent, so its codes need not be right.
#[derive(Debug)]
pub(super) struct DigestsOnly;

impl CryptoProvider for DigestsOnly {
    fn digest(&self, algorithm: DigestAlgorithm) -> Result<Box<dyn DigestContext>> {
        OpenSsl.digest(algorithm)
    }

    fn hmac(&self, _algorithm: DigestAlgorithm, _secret: &[u8]) -> Result<Box<dyn HmacContext>> {
        Ok(Box::new(NoCode))
    }

    fn sign(&self, _algorithm: SigningAlgorithm, _pem: &[u8]) -> Result<Box<dyn Signer>> {
        Err(unknown("signature"))
    }
}

struct NoCode;

impl HmacContext for NoCode {
    fn update(&mut self, _data: &[u8]) {}

    fn finish(&mut self) -> Result<&[u8]> {
        Ok(&[0; 32])
    }
}

fn unknown(what: &str) -> object_store::Error {
    object_store::Error::NotSupported { source: format!("{what} that S3 does not use").into() }
}

struct Digest {
    hasher: Sha256,
    digest: [u8; 32],
}

impl DigestContext for Digest {
    fn update(&mut self, data: &[u8]) {
        self.hasher.update(data);
    }

    fn finish(&mut self) -> Result<&[u8]> {
        self.digest = self.hasher.clone().finish();
        Ok(&self.digest)
    }
}

/// Made of digests, because asking the library for one takes as long as a small request.
struct Hmac {
    inner: Sha256,
    outer: Sha256,
    code: [u8; 32],
}

impl Hmac {
    /// Bytes that SHA-256 takes at a time.
    const BLOCK: usize = 64;

    fn new(secret: &[u8]) -> Self {
        let mut key = [0; Self::BLOCK];
        if secret.len() > Self::BLOCK {
            key[..32].copy_from_slice(&openssl::sha::sha256(secret));
        } else {
            key[..secret.len()].copy_from_slice(secret);
        }
        let begun = |pad: u8| {
            let mut hasher = Sha256::new();
            hasher.update(&key.map(|byte| byte ^ pad));
            hasher
        };
        // RFC 2104
        Self { inner: begun(0x36), outer: begun(0x5c), code: [0; 32] }
    }
}

impl HmacContext for Hmac {
    fn update(&mut self, data: &[u8]) {
        self.inner.update(data);
    }

    fn finish(&mut self) -> Result<&[u8]> {
        let mut outer = self.outer.clone();
        outer.update(&self.inner.clone().finish());
        self.code = outer.finish();
        Ok(&self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test cases 1, 2 and 6.
    #[test]
    fn codes_are_those_of_the_standard() {
        for (key, message, expected) in [
            (&[0x0b; 20][..], "Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
            (
                b"Jefe",
                "what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                &[0xaa; 131],
                "Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ] {
            let mut context = OpenSsl.hmac(DigestAlgorithm::Sha256, key).unwrap();
            context.update(message.as_bytes());
            let code: String = context.finish().unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(code, expected);
        }
    }
}
