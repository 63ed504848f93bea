//! Names of images, as podman takes them.

use crate::image::layout::Reference;

/// Hosts that are the registry that podman knows as `docker.io`.
const DOCKER_HUB: [&str; 4] = ["docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];

/// The names under which podman finds an image: the one that it has, and the one that users of Docker Hub type. Empty if
/// podman would not take the name; users then have to name the image by its id.
pub fn names(registry: &str, repository: &str, reference: Reference<'_>) -> Vec<String> {
    let reference = match reference {
        Reference::Tag(tag) => format!(":{tag}"),
        Reference::Digest(digest) => format!("@{digest}"),
    };
    let mut names = vec![format!("{registry}/{repository}{reference}")];
    if DOCKER_HUB.contains(&registry) {
        let library = if repository.contains('/') { "" } else { "library/" };
        names.push(format!("docker.io/{library}{repository}{reference}"));
    }
    names.dedup();
    names.retain(|name| is_reference(name));
    names
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
        for (registry, repository, reference, expected) in [
            ("r.org", "a/b", Reference::Tag("1"), &["r.org/a/b:1"][..]),
            ("localhost:5000", "a", Reference::Tag("v-1.0_x"), &["localhost:5000/a:v-1.0_x"]),
            (
                "registry.hub.docker.com",
                "library/debian",
                Reference::Tag("stable"),
                &["registry.hub.docker.com/library/debian:stable", "docker.io/library/debian:stable"],
            ),
            ("docker.io", "debian", Reference::Tag("1"), &["docker.io/debian:1", "docker.io/library/debian:1"]),
            ("docker.io", "atlas/x", Reference::Tag("1"), &["docker.io/atlas/x:1"]),
            ("r.org", "Upper", Reference::Tag("1"), &[]),
            (
                "r.org",
                "a",
                Reference::Digest(&digest),
                &["r.org/a@sha256:217564a4e62060d2b6ebae8032e8d492174a25802b17df7666b4c90886e6fd8b"],
            ),
        ] {
            assert_eq!(names(registry, repository, reference), expected);
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
