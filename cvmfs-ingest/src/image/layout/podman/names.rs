//! Names of images, as podman takes them.

use crate::image::layout::Reference;

/// Hosts that are the registry that podman knows as the first of them.
const DOCKER_HUB: [&str; 4] = ["docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];

/// The name under which podman finds an image; `None` if podman would not take it: users then have to name the image by its id.
pub fn name(registry: &str, repository: &str, reference: Reference<'_>) -> Option<String> {
    let reference = match reference {
        Reference::Tag(tag) => format!(":{tag}"),
        Reference::Digest(digest) => format!("@{digest}"),
    };
    Some(format!("{registry}/{repository}{reference}")).filter(|name| is_reference(name))
}

/// What users of Docker Hub type for one of its repositories, as registry and repository; `None` if that is what it is called.
pub fn alias(registry: &str, repository: &str) -> Option<(&'static str, String)> {
    let library = if repository.contains('/') { "" } else { "library/" };
    let is_other = registry != DOCKER_HUB[0] || !library.is_empty();
    (DOCKER_HUB.contains(&registry) && is_other).then(|| (DOCKER_HUB[0], format!("{library}{repository}")))
}

/// Longest name without tag and digest, in bytes.
const MAX_NAME: usize = 255;
/// Longest tag, in bytes.
const MAX_TAG: usize = 128;

/// Whether podman takes it for a reference with a host. One image with another name in a store, and no image of that store
/// is listed any more.
///
/// Source: `reference/regexp.go` of `distribution`.
pub(super) fn is_reference(name: &str) -> bool {
    let (name, digest) = name.split_once('@').map_or((name, None), |(name, digest)| (name, Some(digest)));
    let Some((host, rest)) = name.split_once('/') else { return false };
    let (repository, tag) = rest.split_once(':').map_or((rest, None), |(repository, tag)| (repository, Some(tag)));
    host.len() + 1 + repository.len() <= MAX_NAME
        && is_host(host)
        && repository.split('/').all(is_component)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(|digest| digest.parse::<crate::image::digest::Digest>().is_ok())
}

fn is_host(host: &str) -> bool {
    let (host, port) = host.split_once(':').map_or((host, None), |(host, port)| (host, Some(port)));
    let is_label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

/// Lower-case letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let separators = component.split(|character: char| u8::try_from(character).is_ok_and(is_word));
    let good =
        |separator: &str| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-');
    component.bytes().next().is_some_and(is_word)
        && component.bytes().last().is_some_and(is_word)
        && separators.into_iter().all(good)
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest::Digest;

    #[test]
    fn images_of_docker_hub_have_two_names() {
        let digest = Digest::of(b"diff-one");
        let long = "r.org/a@sha256:217564a4e62060d2b6ebae8032e8d492174a25802b17df7666b4c90886e6fd8b";
        for (registry, repository, reference, expected, other) in [
            ("r.org", "a/b", Reference::Tag("1"), Some("r.org/a/b:1"), None),
            ("localhost:5000", "a", Reference::Tag("v-1.0_x"), Some("localhost:5000/a:v-1.0_x"), None),
            (
                "registry.hub.docker.com",
                "library/debian",
                Reference::Tag("stable"),
                Some("registry.hub.docker.com/library/debian:stable"),
                Some("library/debian"),
            ),
            ("docker.io", "debian", Reference::Tag("1"), Some("docker.io/debian:1"), Some("library/debian")),
            ("docker.io", "atlas/x", Reference::Tag("1"), Some("docker.io/atlas/x:1"), None),
            ("docker.io", "library/x", Reference::Tag("1"), Some("docker.io/library/x:1"), None),
            ("r.org", "Upper", Reference::Tag("1"), None, None),
            ("r.org", "a", Reference::Digest(&digest), Some(long), None),
        ] {
            assert_eq!(name(registry, repository, reference).as_deref(), expected);
            assert_eq!(alias(registry, repository), other.map(|other| ("docker.io", other.to_owned())));
        }
    }

    #[test]
    fn only_references_are_names() {
        let digest = Digest::of(b"");
        let (tag, long_tag) = ("x".repeat(128), "x".repeat(129));
        let (name, long_name) = ("y".repeat(250), "y".repeat(252));
        for (name, expected) in [
            ("r.org/a".to_owned(), true),
            ("r.org/a__b/c--d/e.f_g:1".to_owned(), true),
            (format!("r.org/a:{tag}"), true),
            (format!("r.org/a:{long_tag}"), false),
            (format!("r.o/{name}"), true),
            (format!("r.o/{long_name}"), false),
            (format!("r.org/a:1@{digest}"), true),
            (format!("r.org/a@{digest}"), true),
            (format!("r.org/a:{digest}"), false),
            ("r.org/a@sha256:12".to_owned(), false),
            ("https://r.org/a:1".to_owned(), false),
            ("r.org/A:1".to_owned(), false),
            ("r.org/a b:1".to_owned(), false),
            ("r.org/a_-b".to_owned(), false),
            ("r.org/-a".to_owned(), false),
            ("r.org/a.".to_owned(), false),
            ("r.org//a".to_owned(), false),
            ("r.org/a:".to_owned(), false),
            ("r.org/a:.x".to_owned(), false),
            ("r.org:/a".to_owned(), false),
            ("r..org/a".to_owned(), false),
            ("-r.org/a".to_owned(), false),
            ("a".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(is_reference(&name), expected, "{name}");
        }
    }
}
