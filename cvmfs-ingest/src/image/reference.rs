//! Names of images, and what they are called in a repository.
//!
//! ```text
//! [scheme://]registry[:port]/repository[:tag][@sha256:hex]
//! ```
//!
//! Nothing is added to a name: no registry, no `library/`, no `latest`. Names become paths of the repository, so only
//! those that are safe there are accepted. A tag may be a pattern; such a name stands for all tags that match.
//!
//! Source: `ducc/lib/parse.go`, `ducc/lib/image.go`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use cvmfs_core::error::{Error, Result};
use cvmfs_core::glob::Pattern;
use cvmfs_core::path::NAME_MAX;

use super::digest::Digest;

/// The longest tag, in bytes.
///
/// Source: OCI distribution specification, "Pulling manifests".
const TAG_MAX: usize = 128;

/// Directories of the repository that a registry must not be called like.
const RESERVED: [&str; 1] = ["podmanStore"];

/// The registry of names without one, where the rules of Docker hold.
pub const DOCKER_HUB: &str = "docker.io";

/// How a registry is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Scheme {
    /// Without encryption: whoever writes it wants it.
    Http,
    /// With TLS.
    #[default]
    Https,
}

/// The name of an image in a registry, or of several if the tag is a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// How the registry is spoken to.
    pub scheme: Scheme,
    /// Host, with a port if there is one.
    pub registry: String,
    /// Path of the images in the registry, without slash at either end.
    pub repository: String,
    /// The tag, or a pattern of tags.
    pub tag: Option<String>,
    /// The digest of the manifest or index.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Whether the tag is a pattern: `*` is any text, `?` any character, `[…]` one of these.
    pub fn is_pattern(&self) -> bool {
        self.tag.as_deref().is_some_and(|tag| tag.contains(['*', '?', '[']))
    }

    /// Registry, repository and tag: what the image's metadata is filed under.
    pub fn simple_name(&self) -> String {
        let tag = self.tag.as_ref().map_or_else(String::new, |tag| format!(":{tag}"));
        format!("{}/{}{tag}", self.registry, self.repository)
    }

    /// Everything.
    pub fn whole_name(&self) -> String {
        format!("{}://{}/{}{}", self.scheme, self.registry, self.repository, self.reference())
    }

    /// Tag and digest with their separators: `:tag`, `@digest`, `:tag@digest`, or nothing.
    pub fn reference(&self) -> String {
        let tag = self.tag.as_ref().map_or_else(String::new, |tag| format!(":{tag}"));
        let digest = self.digest.map_or_else(String::new, |digest| format!("@{digest}"));
        format!("{tag}{digest}")
    }

    /// The tag, or else the digest: how the public link ends.
    pub fn simple_reference(&self) -> Option<String> {
        self.tag.clone().or_else(|| self.digest.map(|digest| digest.to_string()))
    }

    /// Registry, repository, and tag or else digest: where the public link is. Images of the same one exclude each other.
    pub fn public_name(&self) -> String {
        let reference = self.simple_reference().map_or_else(String::new, |reference| format!(":{reference}"));
        format!("{}/{}{reference}", self.registry, self.repository)
    }

    /// The digest, or else the tag: what a registry is asked for.
    ///
    /// # Errors
    /// `InvalidInput` if there is neither, or only a pattern.
    pub fn fetch_reference(&self) -> Result<String> {
        let what = || self.whole_name();
        match (&self.digest, &self.tag) {
            (Some(digest), _) => Ok(digest.to_string()),
            (None, Some(_)) if self.is_pattern() => Err(Error::invalid(what(), "a pattern names no single image")),
            (None, Some(tag)) => Ok(tag.clone()),
            (None, None) => Err(Error::invalid(what(), "has neither a tag nor a digest")),
        }
    }

    /// The same repository with this tag, and no digest.
    ///
    /// # Errors
    /// `InvalidInput` if the tag is none.
    pub fn with_tag(&self, tag: &str) -> Result<Self> {
        let reference = Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() };
        reference
            .check()
            .map_err(|reason| Error::invalid(format!("the tag {tag:?} of {}", self.repository), reason))?;
        if reference.is_pattern() {
            return Err(Error::invalid(format!("the tag {tag:?} of {}", self.repository), "it is a pattern"));
        }
        Ok(reference)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
            Some((scheme, _)) => return Err(format!("the scheme {scheme:?} is neither http nor https")),
            None => (Scheme::default(), text),
        };
        let (registry, path) = rest.split_once('/').ok_or("it names no repository of a registry")?;
        let (path, digest) = match path.split_once('@') {
            Some((_, digest)) if digest.contains('@') => return Err("there is more than one '@'".to_owned()),
            Some((path, digest)) => (path, Some(digest.parse::<Digest>().map_err(|error| error.to_string())?)),
            None => (path, None),
        };
        let (repository, tag) = match path.split_once(':') {
            Some((_, tag)) if tag.contains(':') => return Err("there are too many ':'".to_owned()),
            Some((repository, tag)) => (repository, Some(tag.to_owned())),
            None => (path, None),
        };
        let repository = repository.trim_matches('/').to_owned();
        let reference = Self { scheme, registry: registry.to_owned(), repository, tag, digest };
        reference.check()?;
        Ok(reference)
    }

    /// Finds what no registry has, or what would be no safe path.
    fn check(&self) -> Result<(), String> {
        check_registry(&self.registry)?;
        if self.repository.is_empty() {
            return Err("the repository is empty".to_owned());
        }
        self.repository.split('/').try_for_each(check_component)?;
        if let Some(tag) = &self.tag {
            check_tag(tag, self.is_pattern())?;
        }
        if self.is_pattern() && self.digest.is_some() {
            return Err("a pattern of tags and a digest exclude each other".to_owned());
        }
        if self.public_name().split('/').any(|name| name.len() > NAME_MAX) {
            return Err(format!("a part of it is longer than {NAME_MAX} bytes"));
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;

    /// # Errors
    /// `InvalidInput`, with the reason.
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text).map_err(|reason| Error::invalid(format!("the image {text:?}"), reason))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.whole_name())
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

/// Reads a pattern of tags.
///
/// # Errors
/// `InvalidInput` if it is none.
pub fn tag_pattern(text: &str) -> Result<Pattern> {
    Pattern::parse_shell(text.as_bytes())
        .ok_or_else(|| Error::invalid(format!("the pattern {text:?}"), "a bracket is not closed"))
}

fn check_registry(registry: &str) -> Result<(), String> {
    let wrong = |reason: &str| Err(format!("the registry {registry:?} {reason}"));
    if registry.contains('@') {
        return wrong("has a user name: credentials belong elsewhere");
    }
    // An address of IPv6 is in brackets, and has colons.
    let (host, port) = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, behind)) if address.parse::<std::net::Ipv6Addr>().is_ok() => match behind.strip_prefix(':') {
            None if !behind.is_empty() => return wrong("has something behind its address"),
            port => ("ipv6", port),
        },
        Some(_) => return wrong("is no address"),
        None => registry.split_once(':').map_or((registry, None), |(host, port)| (host, Some(port))),
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_label = |label: &str| !label.is_empty() && !label.starts_with('-') && label.bytes().all(is_plain);
    if host.is_empty() {
        return wrong("is empty");
    }
    if !host.split('.').all(is_label) {
        return wrong("is no host name");
    }
    let is_digit = |byte: u8| byte.is_ascii_digit();
    if port.is_some_and(|port| !port.bytes().all(is_digit) || !port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return wrong("has no sensible port");
    }
    if RESERVED.contains(&registry) {
        return wrong("is called like a directory that every repository of images has");
    }
    Ok(())
}

fn check_component(component: &str) -> Result<(), String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let starts_well = component.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match component {
        "" => Err("the repository has an empty component".to_owned()),
        _ if starts_well && component.bytes().all(is_plain) => Ok(()),
        _ => Err(format!("{component:?} cannot be a part of a repository's name")),
    }
}

fn check_tag(tag: &str, is_pattern: bool) -> Result<(), String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_allowed = |byte: u8| is_plain(byte) || is_pattern && b"*?[]!^".contains(&byte);
    match tag {
        "" => Err("the tag is empty".to_owned()),
        _ if tag.len() > TAG_MAX => Err(format!("the tag is longer than {TAG_MAX} bytes")),
        _ if tag.starts_with(['.', '-']) || !tag.bytes().all(is_allowed) => Err(format!("{tag:?} cannot be a tag")),
        _ if is_pattern => tag_pattern(tag).map(drop).map_err(|error| error.to_string()),
        _ => Ok(()),
    }
}

/// Where an image is taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// A registry.
    Registry(Reference),
    /// A directory with an OCI layout, and the tag in it unless it holds a single image.
    OciLayout(PathBuf, Option<String>),
    /// A tar archive of such a directory, and the tag in it.
    OciArchive(PathBuf, Option<String>),
    /// What `docker save` writes, and the name in it, such as `debian:stable`, unless it holds a single image.
    DockerArchive(PathBuf, Option<String>),
}

impl FromStr for Transport {
    type Err = Error;

    /// Reads `docker://NAME`, `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME]`, or a plain
    /// [`Reference`]. Like in other programs, `docker://` completes names as Docker does; paths cannot have colons.
    fn from_str(text: &str) -> Result<Self> {
        if let Some(name) = text.strip_prefix("docker://").filter(|name| !name.is_empty() && !name.contains("://")) {
            return docker_name(name).map(Self::Registry);
        }
        let file = |rest: &str| {
            let (path, tag) = rest.split_once(':').map_or((rest, None), |(path, tag)| (path, Some(tag.to_owned())));
            if path.is_empty() || tag.as_deref() == Some("") {
                return Err(Error::invalid(format!("the image {text:?}"), "its path or its tag is empty"));
            }
            Ok((PathBuf::from(path), tag))
        };
        match text.split_once(':') {
            Some(("oci", rest)) => file(rest).map(|(path, tag)| Self::OciLayout(path, tag)),
            Some(("oci-archive", rest)) => file(rest).map(|(path, tag)| Self::OciArchive(path, tag)),
            Some(("docker-archive", rest)) => file(rest).map(|(path, tag)| Self::DockerArchive(path, tag)),
            _ => text.parse().map(Self::Registry),
        }
    }
}

/// Reads a name as Docker completes it: `debian` is `docker.io/library/debian:latest`.
///
/// # Errors
/// `InvalidInput` if it is no name of an image.
pub fn docker_name(name: &str) -> Result<Reference> {
    let is_host = |first: &str| first.contains(['.', ':']) || first == "localhost";
    let whole = match name.split_once('/') {
        Some((first, _)) if is_host(first) => name.to_owned(),
        Some(_) => format!("{DOCKER_HUB}/{name}"),
        None => format!("{DOCKER_HUB}/library/{name}"),
    };
    let mut reference = Reference::parse(&whole)
        .map_err(|reason| Error::invalid(format!("the image {:?}", format!("docker://{name}")), reason))?;
    if reference.tag.is_none() && reference.digest.is_none() {
        reference.tag = Some("latest".to_owned());
    }
    Ok(reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0139c1c77468f75e6763a4612262743bd47a36b26cb2863d662756b3377bb029";

    fn parts(text: &str) -> (String, String, String, String, String) {
        let Reference { scheme, registry, repository, tag, digest } = text.parse().unwrap();
        let digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
        (scheme.to_string(), registry, repository, tag.unwrap_or_default(), digest)
    }

    fn reason(text: &str) -> String {
        text.parse::<Reference>().expect_err(text).to_string()
    }

    #[test]
    fn names_come_apart() {
        let owned = |a: &str, b: &str, c: &str, d: &str, e: &str| (a.into(), b.into(), c.into(), d.into(), e.into());
        for (text, expected) in [
            ("https://hub.docker.com/library/redis:5", owned("https", "hub.docker.com", "library/redis", "5", "")),
            ("hub.docker.com/library/redis:5", owned("https", "hub.docker.com", "library/redis", "5", "")),
            ("http://localhost:5000/a", owned("http", "localhost:5000", "a", "", "")),
            ("localhost:5000/a/b:1.0", owned("https", "localhost:5000", "a/b", "1.0", "")),
            ("https://r.example.org//a/b/", owned("https", "r.example.org", "a/b", "", "")),
            ("[::1]:5000/a:x", owned("https", "[::1]:5000", "a", "x", "")),
            ("r.example.org/a:21.2.1*", owned("https", "r.example.org", "a", "21.2.1*", "")),
            (&format!("ghcr.io/o/t@{DIGEST}"), owned("https", "ghcr.io", "o/t", "", DIGEST)),
            (&format!("ghcr.io/o/t:1@{DIGEST}"), owned("https", "ghcr.io", "o/t", "1", DIGEST)),
        ] {
            assert_eq!(parts(text), expected, "{text}");
        }
    }

    #[test]
    fn names_that_are_no_safe_paths_are_refused() {
        let long_tag = format!("r/a:{}", "x".repeat(129));
        let long_name = format!("r/{}:{}", "x".repeat(140), "y".repeat(120));
        let long_directory = format!("r/{}/a:1", "x".repeat(256));
        for (text, expected) in [
            ("", "names no repository"),
            ("debian", "names no repository"),
            ("https://r.example.org", "names no repository"),
            ("https://r.example.org/", "repository is empty"),
            ("https:///a", "registry \"\" is empty"),
            ("ftp://r.example.org/a:1", "neither http nor https"),
            ("r/a:1:2", "too many ':'"),
            (&format!("r/a@{DIGEST}@{DIGEST}"), "more than one '@'"),
            ("r/a@sha256:aaabbbccc", "not 64 lower-case hex digits"),
            ("r/a@sha512:00", "its algorithm"),
            ("r/a:", "tag is empty"),
            ("r/../a:1", "\"..\" cannot be a part"),
            ("r/a//b:1", "empty component"),
            ("r/.layers:1", "\".layers\" cannot be a part"),
            ("r/a b:1", "\"a b\" cannot be a part"),
            (".flat/a:1", "no host name"),
            ("../a:1", "no host name"),
            ("r..example/a:1", "no host name"),
            ("podmanStore/a:1", "called like a directory"),
            ("user@r/a:1", "credentials belong elsewhere"),
            ("r:0/a:1", "no sensible port"),
            ("r:+1/a:1", "no sensible port"),
            ("r:/a:1", "no sensible port"),
            ("[::zz]/a:1", "no address"),
            ("[::1]x\0/a:1", "something behind its address"),
            ("[::1]x:1/a:1", "something behind its address"),
            ("r/a:.x", "\".x\" cannot be a tag"),
            ("r/a:1/2", "\"1/2\" cannot be a tag"),
            ("r/a:[0-9", "not closed"),
            (&format!("r/a:1*@{DIGEST}"), "exclude each other"),
            (&long_tag, "longer than 128 bytes"),
            (&long_name, "longer than 255 bytes"),
            (&long_directory, "longer than 255 bytes"),
        ] {
            assert!(reason(text).contains(expected), "{text}: {}", reason(text));
        }
    }

    #[test]
    fn names_derived_from_tag_and_digest() {
        let both: Reference = format!("r.example.org/a/b:1.0@{DIGEST}").parse().unwrap();
        assert_eq!(both.simple_name(), "r.example.org/a/b:1.0");
        assert_eq!(both.whole_name(), format!("https://r.example.org/a/b:1.0@{DIGEST}"));
        assert_eq!(both.reference(), format!(":1.0@{DIGEST}"));
        assert_eq!(both.simple_reference().unwrap(), "1.0");
        assert_eq!(both.fetch_reference().unwrap(), DIGEST);

        let digest: Reference = format!("http://r.example.org:5000/a/b@{DIGEST}").parse().unwrap();
        assert_eq!(digest.simple_name(), "r.example.org:5000/a/b");
        assert_eq!(digest.simple_reference().unwrap(), DIGEST);
        assert_eq!(digest.reference(), format!("@{DIGEST}"));

        let neither: Reference = "r.example.org/a/b".parse().unwrap();
        assert_eq!((neither.simple_reference(), neither.reference()), (None, String::new()));
        assert!(neither.fetch_reference().is_err());

        let pattern: Reference = "r.example.org/a/b:1.*".parse().unwrap();
        assert!(pattern.is_pattern() && !both.is_pattern());
        assert!(pattern.fetch_reference().is_err());
        assert_eq!(pattern.with_tag("1.2").unwrap().whole_name(), "https://r.example.org/a/b:1.2");
        assert!(pattern.with_tag("../x").is_err() && pattern.with_tag("1*").is_err());
    }

    #[test]
    fn transports_and_names_of_docker() {
        let parse = |text: &str| text.parse::<Transport>().unwrap();
        let file = |path: &str, tag: &str| (PathBuf::from(path), Some(tag.to_owned()));
        let (path, tag) = file("/tmp/layout", "v1");
        assert_eq!(parse("oci:/tmp/layout:v1"), Transport::OciLayout(path, tag));
        assert_eq!(parse("oci:layout"), Transport::OciLayout("layout".into(), None));
        let (path, tag) = file("a.tar", "v1");
        assert_eq!(parse("oci-archive:a.tar:v1"), Transport::OciArchive(path, tag));
        let (path, tag) = file("a.tar", "r.example.org/a:1");
        assert_eq!(parse("docker-archive:a.tar:r.example.org/a:1"), Transport::DockerArchive(path, tag));
        for wrong in ["oci:", "oci::x", "oci:x:", "docker://", "docker://https://r/a", "x"] {
            assert!(wrong.parse::<Transport>().is_err(), "{wrong}");
        }
        for (name, expected) in [
            ("docker://debian", "https://docker.io/library/debian:latest"),
            ("docker://debian:stable", "https://docker.io/library/debian:stable"),
            ("docker://atlas/base:1", "https://docker.io/atlas/base:1"),
            ("docker://localhost/a", "https://localhost/a:latest"),
            ("docker://r:5000/a:1", "https://r:5000/a:1"),
            ("r:5000/a:1", "https://r:5000/a:1"),
        ] {
            let Transport::Registry(reference) = parse(name) else { panic!("{name}") };
            assert_eq!(reference.whole_name(), expected);
        }
    }
}
