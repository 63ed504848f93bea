//! The manifest `.cvmfspublished`: the signed entry point of a revision.
//!
//! One line a field, key letter first; see [`Manifest`] for the letters. A manifest that was fetched keeps its exact
//! bytes, so a replica serves lines that it does not know.
//!
//! Source: `cvmfs/manifest.cc`.

use std::fmt::Write as _;

use crate::clock::UnixSeconds;
use crate::error::{Error, Result};
use crate::hash::{ContentHash, ObjectId, ObjectKind};
use crate::path::{RepoPath, RepositoryName};
use crate::trust::Letter;
use crate::trust::keys::{Certificate, PrivateKey};

/// Lifetime that a manifest without `TTL` property has, in seconds.
pub const DEFAULT_TTL: u32 = 240;

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// `C`: the root catalog. Its algorithm is the one for everything that the manifest names.
    pub root_catalog: ContentHash,
    /// `B`: bytes of the root catalog's database, uncompressed.
    pub root_catalog_size: Option<u64>,
    /// `D`: seconds that a client may wait before it asks again.
    pub ttl: u32,
    /// `S`: the revision.
    pub revision: u64,
    /// `G`: whether old revisions may be collected.
    pub garbage_collectable: bool,
    /// `A`: whether root objects have shortcuts outside `data/`.
    pub shortcuts: bool,
    /// `N`: the repository.
    pub name: RepositoryName,
    /// `X`: the certificate whose key signed the manifest.
    pub certificate: ContentHash,
    /// `H`: the tag database, if there are tags.
    pub history: Option<ContentHash>,
    /// `T`: when the revision was signed.
    pub timestamp: Option<UnixSeconds>,
    /// `M`: the descriptive JSON.
    pub metainfo: Option<ContentHash>,
    /// `Y`: hash of the Stratum 0's reflog.
    pub reflog_checksum: Option<ContentHash>,
}

/// A manifest with its signature, as read: not to be believed before [`verify`](Self::verify).
#[derive(Debug, Clone)]
pub struct SignedManifest {
    bytes: Vec<u8>,
    letter: Letter,
    manifest: Manifest,
}

impl Manifest {
    /// The root catalog's object.
    pub fn root_object(&self) -> ObjectId {
        ObjectId::catalog(self.root_catalog)
    }

    /// The certificate's object.
    pub fn certificate_object(&self) -> ObjectId {
        ObjectId::new(self.certificate, ObjectKind::Certificate)
    }

    /// The tag database's object.
    pub fn history_object(&self) -> Option<ObjectId> {
        self.history.map(|hash| ObjectId::new(hash, ObjectKind::History))
    }

    /// The descriptive JSON's object.
    pub fn metainfo_object(&self) -> Option<ObjectId> {
        self.metainfo.map(|hash| ObjectId::new(hash, ObjectKind::Metainfo))
    }

    /// Signs the manifest with the repository key.
    pub fn sign(&self, key: &PrivateKey) -> Result<SignedManifest> {
        let text = self.to_text().into_bytes();
        let letter = Letter::sign(text, self.root_catalog.algorithm(), |hash| key.sign_sha1(hash))?;
        Ok(SignedManifest { bytes: letter.to_bytes(), letter, manifest: self.clone() })
    }

    /// The lines in the order in which the reference writes them.
    fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |key: char, value: &dyn std::fmt::Display| {
            writeln!(text, "{key}{value}").expect("writing to a string cannot fail");
        };
        let yes_no = |value| if value { "yes" } else { "no" };
        line('C', &self.root_catalog);
        line('B', &self.root_catalog_size.unwrap_or(0));
        line('R', &RepoPath::root().path_hash().to_hex());
        line('D', &self.ttl);
        line('S', &self.revision);
        line('G', &yes_no(self.garbage_collectable));
        line('A', &yes_no(self.shortcuts));
        line('N', &self.name);
        line('X', &self.certificate);
        if let Some(history) = self.history {
            line('H', &history);
        }
        if let Some(timestamp) = self.timestamp {
            line('T', &timestamp.0);
        }
        if let Some(metainfo) = self.metainfo {
            line('M', &metainfo);
        }
        if let Some(checksum) = self.reflog_checksum {
            line('Y', &checksum);
        }
        text
    }

    fn parse_text(text: &[u8]) -> Result<Self> {
        let fields = Fields(text);
        if fields.text('R')? != RepoPath::root().path_hash().to_hex() {
            return Err(Error::malformed("manifest", "line `R` is not the hash of the root path"));
        }
        Ok(Self {
            root_catalog: fields.parse('C')?,
            root_catalog_size: fields.optional('B')?,
            ttl: fields.parse('D')?,
            revision: fields.parse('S')?,
            garbage_collectable: fields.last('G') == Some(b"yes"),
            shortcuts: fields.last('A') == Some(b"yes"),
            name: fields.parse('N')?,
            certificate: fields.parse('X')?,
            history: fields.hash('H')?,
            timestamp: fields.optional('T')?.map(UnixSeconds),
            metainfo: fields.hash('M')?,
            reflog_checksum: fields.hash('Y')?,
        })
    }
}

impl SignedManifest {
    /// Parses the file.
    ///
    /// # Errors
    /// `Malformed` if a required line is missing or wrong, `HashMismatch` if the text was changed.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let letter = Letter::parse("manifest", bytes)?;
        let manifest = Manifest::parse_text(letter.text())?;
        Ok(Self { bytes: bytes.to_vec(), letter, manifest })
    }

    /// The file, exactly as it was read or signed.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The hash of the certificate that the manifest claims to be signed with.
    pub fn certificate_object(&self) -> ObjectId {
        self.manifest.certificate_object()
    }

    /// Returns the manifest if it is for `name` and signed with the certificate's key.
    ///
    /// That the certificate is the right one and listed is the caller's to check.
    ///
    /// # Errors
    /// `Untrusted`.
    pub fn verify(&self, name: &RepositoryName, certificate: &Certificate) -> Result<&Manifest> {
        let what = format!("manifest of {name}");
        if self.manifest.name != *name {
            return Err(Error::untrusted(what, format!("it is for {}", self.manifest.name)));
        }
        if !certificate.key().verifies_sha1(self.letter.hash_text().as_bytes(), self.letter.signature()) {
            return Err(Error::untrusted(what, "it is not signed with the key of its certificate"));
        }
        Ok(&self.manifest)
    }

    /// What the manifest says, unchecked; for display and comparison only.
    pub fn unverified(&self) -> &Manifest {
        &self.manifest
    }
}

/// The lines of a manifest; if a key occurs twice, the last line counts.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn last(&self, key: char) -> Option<&'a [u8]> {
        let lines = self.0.split(|&byte| byte == b'\n').take_while(|line| *line != b"--");
        lines
            .filter_map(|line| line.split_first())
            .filter(|(first, _)| **first == key as u8)
            .map(|(_, value)| value)
            .last()
    }

    fn text(&self, key: char) -> Result<&'a str> {
        let value = self.last(key).ok_or_else(|| Error::malformed("manifest", format!("line `{key}` is missing")))?;
        std::str::from_utf8(value).map_err(|_| Error::malformed("manifest", format!("line `{key}` is not text")))
    }

    fn parse<T: std::str::FromStr>(&self, key: char) -> Result<T> {
        let text = self.text(key)?;
        text.parse().map_err(|_| Error::malformed("manifest", format!("line `{key}` has an impossible value {text:?}")))
    }

    fn optional<T: std::str::FromStr>(&self, key: char) -> Result<Option<T>> {
        self.last(key).map(|_| self.parse(key)).transpose()
    }

    fn hash(&self, key: char) -> Result<Option<ContentHash>> {
        Ok(self.optional(key)?.filter(|hash: &ContentHash| !hash.is_null()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Algorithm;

    /// The worked example of the format description, with the hash that it states.
    const EXAMPLE: &str = "Cb6ef1ca22d1b3ea26c9a1b5fa4db0dc1b4a4a95f
B20480
Rd41d8cd98f00b204e9800998ecf8427e
D240
S1
Gno
Ano
Nexample.org
Xe6c8a2e9f2d51a2e7b0d8df6b2a4b8a7e0f2b1c3
H0b457ac12225018e0a15330364c20529e15012ab
T1730000000
M7e2f6f1ac5ae32cc34b3f2a56bd3e7b4a8d4cc19
Y4f36c1a2c3f8a2bd90d5a9a8a5b2e7e1f0c9d8b7
";

    fn example() -> Manifest {
        Manifest::parse_text(EXAMPLE.as_bytes()).unwrap()
    }

    #[test]
    fn the_worked_example_reads_and_writes_to_the_byte() {
        let manifest = example();
        assert_eq!(manifest.root_catalog_size, Some(20480));
        assert_eq!(manifest.revision, 1);
        assert_eq!(manifest.timestamp, Some(UnixSeconds(1_730_000_000)));
        assert_eq!(manifest.to_text(), EXAMPLE);
        let key = PrivateKey::generate().unwrap();
        let bytes = manifest.sign(&key).unwrap().bytes().to_vec();
        let signature = bytes.strip_prefix(EXAMPLE.as_bytes()).unwrap();
        let signature = signature.strip_prefix(b"--\n5cf2559cd1a9124cc4af9b56f8c9a691756f2eb4\n").unwrap();
        assert_eq!(signature.len(), 256);
    }

    #[test]
    fn only_the_right_name_and_key_verify() {
        let manifest = example();
        let key = PrivateKey::generate().unwrap();
        let certificate = Certificate::create(&manifest.name, &key).unwrap();
        let signed = SignedManifest::parse(manifest.sign(&key).unwrap().bytes()).unwrap();
        assert_eq!(signed.verify(&manifest.name, &certificate).unwrap(), &manifest);
        assert!(signed.verify(&"other.org".parse().unwrap(), &certificate).is_err());
        let other = Certificate::create(&manifest.name, &PrivateKey::generate().unwrap()).unwrap();
        assert!(matches!(signed.verify(&manifest.name, &other), Err(Error::Untrusted { .. })));
    }

    #[test]
    fn unknown_repeated_and_reordered_lines_are_read_and_kept() {
        let text = format!("Zchannel\nS7\n{EXAMPLE}=future\n");
        let key = PrivateKey::generate().unwrap();
        let letter = Letter::sign(text.clone().into_bytes(), Algorithm::Sha1, |hash| key.sign_sha1(hash)).unwrap();
        let signed = SignedManifest::parse(&letter.to_bytes()).unwrap();
        assert_eq!(signed.unverified(), &example());
        assert!(signed.bytes().starts_with(text.as_bytes()));
    }

    fn without(key: char) -> Vec<u8> {
        let lines: Vec<&str> = EXAMPLE.lines().filter(|line| !line.starts_with(key)).collect();
        (lines.join("\n") + "\n").into_bytes()
    }

    #[test]
    fn missing_and_impossible_lines_are_refused() {
        for key in ['C', 'R', 'D', 'S', 'N', 'X'] {
            assert!(Manifest::parse_text(&without(key)).is_err(), "without {key}");
        }
        for (from, to) in [("S1", "S-1"), ("D240", "D"), ("Cb6", "Cx6"), ("Rd4", "Rd5"), ("Nexample.org", "N../x.org")]
        {
            assert!(Manifest::parse_text(EXAMPLE.replace(from, to).as_bytes()).is_err(), "{to}");
        }
        for key in ['B', 'G', 'A', 'T', 'H', 'M', 'Y'] {
            assert!(Manifest::parse_text(&without(key)).is_ok(), "without {key}");
        }
    }
}
