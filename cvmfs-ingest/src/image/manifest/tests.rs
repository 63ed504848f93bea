use std::collections::HashMap;
use std::io::{Cursor, Read};

use super::*;

/// The SHA-256 of nothing, as FIPS 180-4 test vectors have it.
const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const OTHER: &str = "sha256:0139c1c77468f75e6763a4612262743bd47a36b26cb2863d662756b3377bb029";

/// What a test put into it.
#[derive(Debug, Default)]
struct Memory {
    blobs: HashMap<String, Vec<u8>>,
    tags: HashMap<String, (Vec<u8>, Option<String>)>,
}

impl Memory {
    fn add(&mut self, text: &str) -> String {
        let digest = Digest::of(text.as_bytes()).to_string();
        self.blobs.insert(digest.clone(), text.as_bytes().to_vec());
        digest
    }

    fn tag(&mut self, text: &str) {
        self.tags.insert("tag".into(), (text.as_bytes().to_vec(), None));
    }

    /// Adds an image with so many layers in its manifest and its configuration; gives the manifest.
    fn image(&mut self, platform: &str, layers: usize, diff_ids: usize) -> String {
        let diff_ids = vec![format!("\"{OTHER}\""); diff_ids].join(",");
        let config = format!("{{{platform},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[{diff_ids}]}}}}");
        let digest = self.add(&config);
        let layer = format!(
            "{{\"mediaType\":\"{}\",\"digest\":\"{EMPTY}\",\"size\":0}}",
            "application/vnd.oci.image.layer.v1.tar+gzip"
        );
        let layers = vec![layer; layers].join(",");
        let size = config.len();
        format!(
            "{{\"schemaVersion\":2,\"config\":{{\"mediaType\":\"{}\",\"digest\":\"{digest}\",\"size\":{size}}},\"layers\":[{layers}]}}",
            media_type::OCI_CONFIG
        )
    }

    /// An index with an entry for each of these documents, each with more fields.
    fn index(&mut self, entries: &[(&str, &str)]) -> String {
        let entries: Vec<_> = entries
            .iter()
            .map(|(document, more)| {
                let (digest, size) = (self.add(document), document.len());
                format!("{{\"digest\":\"{digest}\",\"size\":{size}{more}}}")
            })
            .collect();
        format!("{{\"schemaVersion\":2,\"manifests\":[{}]}}", entries.join(","))
    }
}

impl ImageStore for Memory {
    fn describe(&self) -> String {
        "memory".into()
    }

    fn digest(&self, _: &str) -> Result<Option<Digest>> {
        Ok(None)
    }

    fn manifest(&self, reference: &str) -> Result<(Document, Option<String>)> {
        let missing = || Error::not_found(reference);
        let (bytes, content_type) = match self.tags.get(reference) {
            Some(tagged) => tagged.clone(),
            None => (self.blobs.get(reference).cloned().ok_or_else(missing)?, None),
        };
        Ok((Document { digest: EMPTY.parse()?, bytes }, content_type))
    }

    fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>> {
        let bytes = self.blobs.get(&blob.digest.to_string()).cloned();
        Ok(Box::new(Cursor::new(bytes.ok_or_else(|| Error::not_found(blob.digest.to_string()))?)))
    }
}

const AMD64: &str = "\"os\":\"linux\",\"architecture\":\"amd64\"";
const ARM64: &str = "\"os\":\"linux\",\"architecture\":\"arm64\"";

fn platform(text: &str) -> String {
    format!(",\"platform\":{{{text}}}")
}

fn failure(result: Result<impl fmt::Debug>) -> String {
    result.expect_err("must fail").to_string()
}

#[test]
fn a_manifest_and_its_configuration_make_an_image() {
    let mut store = Memory::default();
    let config = format!(
        "{{\"os\":\"linux\",\"architecture\":\"amd64\",\"created\":\"2026-01-31T12:00:00Z\",\"unknown\":[1],\
         \"config\":{{\"Entrypoint\":null,\"Cmd\":[\"sh\"],\"Env\":[\"A=1=2\"],\"Labels\":{{\"a\":\"b\"}}}},\
         \"rootfs\":{{\"diff_ids\":[\"{OTHER}\"]}}}}"
    );
    let digest = store.add(&config);
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{}\",\"config\":{{\"mediaType\":\"{}\",\"digest\":\"{digest}\",\"size\":{}}},\
         \"layers\":[{{\"mediaType\":\"{}\",\"digest\":\"{EMPTY}\",\"size\":7,\"urls\":[\"https://x/y\"]}}]}}",
        media_type::DOCKER_MANIFEST,
        media_type::DOCKER_CONFIG,
        config.len(),
        media_type::DOCKER_FOREIGN_LAYER
    );
    store.tag(&manifest);
    let images = resolve(&store, "tag", &Platforms::default()).unwrap();
    let [image] = &images[..] else { panic!("{images:?}") };
    assert_eq!(image.manifest.bytes, manifest.as_bytes());
    assert_eq!(image.manifest.digest, Digest::of(manifest.as_bytes()));
    assert_eq!(image.config.digest.to_string(), digest);
    assert_eq!(image.platform.to_string(), "linux/amd64");
    let settings = Settings {
        command: vec!["sh".into()],
        environment: vec!["A=1=2".into()],
        labels: BTreeMap::from([("a".into(), "b".into())]),
        created: Some("2026-01-31T12:00:00Z".into()),
        ..Settings::default()
    };
    assert_eq!(image.settings, settings);
    let blob = Descriptor {
        media_type: media_type::DOCKER_FOREIGN_LAYER.into(),
        digest: EMPTY.parse().unwrap(),
        size: 7,
        urls: vec!["https://x/y".into()],
    };
    assert_eq!(image.layers, [Layer { blob, diff_id: OTHER.parse().unwrap() }]);
}

#[test]
fn the_wanted_platform_is_taken() {
    let mut store = Memory::default();
    let (amd64, arm64) = (store.image(AMD64, 1, 1), store.image(ARM64, 0, 0));
    let windows = store.image("\"os\":\"windows\",\"architecture\":\"amd64\"", 2, 2);
    let attestation = format!(
        "{},\"annotations\":{{\"vnd.docker.reference.type\":\"attestation-manifest\"}}",
        platform("\"os\":\"linux\",\"architecture\":\"amd64\"")
    );
    let variant = |variant: &str| format!("{AMD64},\"variant\":\"{variant}\"");
    let (v2, v3) = (store.image(&variant("v2"), 2, 2), store.image(&variant("v3"), 3, 3));
    let inner = store.index(&[(&v2, ""), (&v3, "")]);
    let index = store.index(&[
        (&windows, &platform("\"os\":\"windows\",\"architecture\":\"amd64\"")),
        ("junk", &platform("\"os\":\"unknown\",\"architecture\":\"unknown\"")),
        ("junk", &attestation),
        ("junk", ",\"artifactType\":\"application/x\""),
        ("junk", ",\"mediaType\":\"application/x\""),
        (&arm64, &platform(ARM64)),
        (&amd64, &platform(AMD64)),
        (&inner, ""),
    ]);
    store.tag(&index);
    let taken = |wanted: &str| {
        let images = resolve(&store, "tag", &Platforms::One(wanted.parse().unwrap()))?;
        let [image] = &images[..] else { panic!("{images:?}") };
        Ok((image.platform.to_string(), image.layers.len()))
    };
    let is = |platform: &str, layers| (platform.to_owned(), layers);
    assert_eq!(taken("amd64").unwrap(), is("linux/amd64", 1));
    assert_eq!(taken("linux/amd64/v2").unwrap(), is("linux/amd64/v2", 2));
    assert_eq!(taken("linux/amd64/v4").unwrap(), is("linux/amd64/v3", 3));
    assert_eq!(taken("linux/arm64/v8").unwrap(), is("linux/arm64", 0));
    let expected = "there are: windows/amd64, linux/arm64, linux/amd64, linux/amd64/v2, linux/amd64/v3";
    let error = failure(taken("s390x"));
    assert!(error.contains("linux/s390x") && error.contains(expected), "{error}");
    let all = resolve(&store, "tag", &Platforms::All).unwrap();
    let all: Vec<_> = all.iter().map(|image| image.platform.to_string()).collect();
    assert_eq!(all, ["linux/arm64", "linux/amd64", "linux/amd64/v2", "linux/amd64/v3"]);
}

#[test]
fn a_single_image_for_another_platform_is_refused() {
    let mut store = Memory::default();
    let manifest = store.image(ARM64, 1, 1);
    store.tag(&manifest);
    let error = failure(resolve(&store, "tag", &Platforms::default()));
    assert!(error.contains("linux/amd64") && error.contains("there are: linux/arm64"), "{error}");
    let manifest = store.image("\"architecture\":\"\"", 1, 1);
    store.tag(&manifest);
    assert_eq!(resolve(&store, "tag", &Platforms::default()).unwrap().len(), 1);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let mut store = Memory::default();
    let manifest = store.image(AMD64, 2, 1);
    store.tag(&manifest);
    let error = failure(resolve(&store, "tag", &Platforms::default()));
    assert!(error.contains("2 layers in the manifest, 1 in the configuration"), "{error}");

    // Another document where the digest says this one.
    let manifest = store.image(AMD64, 1, 1);
    let digest = store.add(&manifest);
    store.blobs.insert(digest.clone(), format!("{manifest} ").into_bytes());
    let error = resolve(&store, &digest, &Platforms::default()).unwrap_err();
    assert!(matches!(&error, Error::HashMismatch { expected, .. } if *expected == digest), "{error}");

    // The same within an index, and a size that is wrong.
    let index = store.index(&[(&manifest, &platform(AMD64))]);
    store.blobs.insert(digest.clone(), b"{}".to_vec());
    store.tag(&index);
    let error = resolve(&store, "tag", &Platforms::default()).unwrap_err();
    assert!(matches!(&error, Error::HashMismatch { .. }), "{error}");
    store.add(&manifest);
    store.tag(&index.replace(&format!("\"size\":{}", manifest.len()), "\"size\":3"));
    let error = failure(resolve(&store, "tag", &Platforms::default()));
    assert!(error.contains("where its index says 3"), "{error}");

    // A configuration that is not the one, or longer than it should be.
    store.tag(&manifest);
    let Content::Manifest(parsed) = parse("test", manifest.as_bytes(), None).unwrap() else { panic!() };
    let config = store.blobs[&parsed.config.digest.to_string()].clone();
    let mut other = config.clone();
    *other.last_mut().unwrap() = b' ';
    store.blobs.insert(parsed.config.digest.to_string(), other);
    let error = resolve(&store, "tag", &Platforms::default()).unwrap_err();
    assert!(matches!(&error, Error::HashMismatch { .. }), "{error}");
    store.blobs.insert(parsed.config.digest.to_string(), [&config[..], b" "].concat());
    let error = failure(resolve(&store, "tag", &Platforms::default()));
    assert!(error.contains("bytes that its manifest says"), "{error}");
}

#[test]
fn an_index_within_itself_ends() {
    let mut store = Memory::default();
    let mut index = store.index(&[]);
    for _ in 0..5 {
        index = store.index(&[(&index, "")]);
    }
    store.tag(&index);
    assert!(failure(resolve(&store, "tag", &Platforms::default())).contains("nested more than 3 deep"));
}

#[test]
fn the_type_decides_then_the_fields() {
    let config = format!("{{\"mediaType\":\"{}\",\"digest\":\"{EMPTY}\",\"size\":0}}", media_type::DOCKER_CONFIG);
    let manifest = format!("{{\"config\":{config},\"layers\":[]}}");
    let is_index = |text: &str, content_type| match parse("test", text.as_bytes(), content_type) {
        Ok(Content::Index(_)) => Ok(true),
        Ok(Content::Manifest(_)) => Ok(false),
        Err(error) => Err(error.to_string()),
    };
    assert_eq!(is_index(&manifest, None), Ok(false));
    assert_eq!(is_index(&manifest, Some("application/json; charset=utf-8")), Ok(false));
    assert_eq!(is_index("{\"manifests\":[]}", Some("text/plain")), Ok(true));
    let list = format!("{{\"mediaType\":\"{}\",\"manifests\":[]}}", media_type::DOCKER_LIST);
    assert_eq!(is_index(&list, Some(media_type::OCI_INDEX)), Ok(true));
    // As the reference writes it into repositories.
    let own = format!(
        "{{\"SchemaVersion\":2,\"MediaType\":\"{}\",\"Config\":{{\"MediaType\":\"{}\",\"Size\":0,\"Digest\":\"{EMPTY}\"}},\
         \"Layers\":[]}}",
        media_type::OCI_MANIFEST,
        media_type::OCI_CONFIG
    );
    assert_eq!(is_index(&own, None), Ok(false));

    let layer = |kind: &str| {
        format!("{{\"config\":{config},\"layers\":[{{\"mediaType\":\"{kind}\",\"digest\":\"{EMPTY}\",\"size\":0}}]}}")
    };
    for kind in [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ] {
        assert_eq!(is_index(&layer(kind), None), Ok(false), "{kind}");
    }
    let helm = manifest.replace(media_type::DOCKER_CONFIG, "application/vnd.cncf.helm.config.v1+json");
    for (text, content_type, expected) in [
        (&manifest[..], Some("application/vnd.docker.distribution.manifest.v1+prettyjws"), "obsolete schema 1"),
        ("{\"schemaVersion\":1,\"fsLayers\":[]}", None, "obsolete schema 1"),
        (&manifest, Some(media_type::OCI_INDEX), "an index without manifests"),
        (&list, Some(media_type::OCI_MANIFEST), "another type than the one it came with"),
        ("{\"manifests\":[],\"layers\":[]}", None, "for an index and for a manifest"),
        ("{}", None, "neither an index nor a manifest"),
        ("[]", None, "invalid"),
        ("{\"errors\":[]}", Some(media_type::OCI_MANIFEST), "neither an index nor a manifest"),
        ("{\"artifactType\":\"application/x\"}", None, "application/x, which is no image"),
        (&helm, None, "helm.config.v1+json, an artifact and no image"),
        (&layer("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), None, "the encrypted layer sha256:e3b0"),
        (&layer("application/vnd.dev.cosign.simplesigning.v1+json"), None, "of type \"application/vnd.dev.cosign"),
        (&manifest.replace("sha256:e3", "sha256:E3"), None, "not 64 lower-case hex digits"),
        (&manifest.replace("sha256:", "sha512:"), None, "its algorithm is not supported"),
    ] {
        let error = is_index(text, content_type).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn platforms_as_text() {
    for text in ["linux/amd64", "linux/arm64/v8"] {
        assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
    }
    assert_eq!("arm/v7".parse::<Platform>().unwrap().to_string(), "linux/arm/v7");
    for wrong in ["", "/", "linux/", "windows/amd64/x/y", "a b"] {
        assert!(wrong.parse::<Platform>().is_err(), "{wrong}");
    }
}
