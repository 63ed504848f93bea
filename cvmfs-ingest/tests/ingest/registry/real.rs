//! Debian's docker-registry, with what skopeo pushes to it and reads from it.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use cvmfs_core::error::Error;
use cvmfs_ingest::image::Descriptor;
use cvmfs_ingest::image::digest::Digest;
use cvmfs_ingest::image::manifest::{Platforms, media_type, resolve};
use cvmfs_ingest::image::registry::{HostPattern, Mirror, Registries, RegistryOptions, Repository};
use cvmfs_ingest::image::source::ImageStore as _;
use serde_json::json;

use super::servers::{BASIC, IDENTITY, PASSWORD, PLAIN, TOKEN, TOKENS, USER};
use super::support::{MULTI, SAMPLE, SCRATCH, assert_layers, push, skopeo, zstd_sample};

fn repository(options: RegistryOptions, name: &str) -> Repository {
    Registries::new(options).unwrap().repository(&name.parse().unwrap()).unwrap()
}

/// Options as a user's environment makes them.
fn environment(pairs: &[(&str, &str)]) -> RegistryOptions {
    let variables: HashMap<_, _> = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    RegistryOptions::from_environment(&|name| variables.get(name).cloned()).unwrap()
}

/// Resolves an image of the plain registry to one that must be the sample.
fn assert_sample(store: &Repository, reference: &str) -> cvmfs_ingest::image::Image {
    let mut images = resolve(store, reference, &Platforms::default()).unwrap();
    assert_eq!(images.len(), 1);
    assert_layers(store, &images[0], &SAMPLE.tars);
    images.remove(0)
}

#[test]
fn images_in_all_formats() {
    let address = &PLAIN.address;
    let (gzip, zstd) = (SAMPLE.name(), zstd_sample("to-push"));
    for (tag, source, more, manifest, layer) in [
        ("oci", &gzip, &["--format", "oci"][..], media_type::OCI_MANIFEST, "tar+gzip"),
        ("v2s2", &gzip, &["--format", "v2s2"], media_type::DOCKER_MANIFEST, "diff.tar.gzip"),
        ("zstd", &zstd, &["--preserve-digests"], media_type::OCI_MANIFEST, "tar+zstd"),
    ] {
        let name = format!("formats/{tag}:{tag}");
        push(source, address, &name, more);
        let store = repository(RegistryOptions::default(), &format!("http://{address}/{name}"));
        let image = assert_sample(&store, tag);
        let raw = skopeo(&["inspect", "--tls-verify=false", "--raw", &format!("docker://{address}/{name}")]);
        assert_eq!(image.manifest.bytes, raw);
        assert_eq!(image.manifest.digest, Digest::of(&raw));
        assert_eq!(store.digest(tag).unwrap(), Some(image.manifest.digest));
        assert_eq!(store.manifest(tag).unwrap().1.as_deref(), Some(manifest));
        assert!(image.layers[0].blob.media_type.ends_with(layer), "{image:?}");
        // By digest as well.
        assert_eq!(assert_sample(&store, &image.manifest.digest.to_string()), image);
        assert_eq!(store.describe(), format!("http://{address}/formats/{tag}"));
    }
}

#[test]
fn an_index_of_two_platforms() {
    let address = &PLAIN.address;
    push(&MULTI[0].name(), address, "multi/app:1", &["--all"]);
    let store = repository(RegistryOptions::default(), &format!("http://{address}/multi/app:1"));
    let all = resolve(&store, "1", &Platforms::All).unwrap();
    assert_eq!(all.len(), 2);
    for (image, sample) in all.iter().zip(MULTI.iter()) {
        assert_eq!(image.manifest.digest, sample.manifest);
        assert_eq!(image.config.bytes, sample.config);
        assert_layers(&store, image, &sample.tars);
    }
    let arm = resolve(&store, "1", &Platforms::One("arm64".parse().unwrap())).unwrap();
    assert_eq!(arm, all[1..]);
    let error = resolve(&store, "1", &Platforms::One("s390x".parse().unwrap())).unwrap_err();
    assert!(error.to_string().contains("there are: linux/amd64, linux/arm64"), "{error}");
}

#[test]
fn what_is_not_there() {
    let address = &PLAIN.address;
    push(&SAMPLE.name(), address, "missing/app:1", &[]);
    let store = repository(RegistryOptions::default(), &format!("http://{address}/missing/app"));
    assert!(store.manifest("2").unwrap_err().is_not_found());
    assert!(store.digest("2").unwrap_err().is_not_found());
    let blob = Descriptor { media_type: String::new(), digest: Digest::of(b"?"), size: 1, urls: Vec::new() };
    assert!(store.blob(&blob).is_err_and(|error| error.is_not_found()));
    let nowhere = repository(RegistryOptions::default(), &format!("http://{address}/missing/other"));
    assert!(nowhere.tags().unwrap_err().is_not_found());
    assert_eq!(store.tags().unwrap(), ["1"]);
    // A registry without TLS that is asked with it.
    let options = RegistryOptions { retries: 0, ..RegistryOptions::default() };
    let secure = repository(options.clone(), &format!("https://{address}/missing/app"));
    let error = secure.manifest("1").unwrap_err();
    assert!(matches!(&error, Error::Refused { reason, .. } if reason.contains("http://")), "{error}");
    let allowed = RegistryOptions { plain_http: vec![address.clone()], ..options };
    assert_sample(&repository(allowed, &format!("https://{address}/missing/app")), "1");
}

/// Writes a file of Docker's or podman's kind.
fn auth_file(name: &str, value: &serde_json::Value) -> String {
    let file = SCRATCH.path().join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, value.to_string()).unwrap();
    file.display().to_string()
}

fn encoded() -> String {
    openssl::base64::encode_block(format!("{USER}:{PASSWORD}").as_bytes())
}

#[test]
fn passwords_from_all_places() {
    let address = &BASIC.address;
    push(&SAMPLE.name(), address, "team/app:1", &[]);
    let name = format!("http://{address}/team/app:1");
    let with = |pairs: &[(&str, &str)]| repository(environment(pairs), &name);

    let ducc = [
        ("DUCC_AUTH_REGISTRIES", "X"),
        ("DUCC_X_IDENT", "127.0.0.1"),
        ("DUCC_X_USER", USER),
        ("DUCC_X_PASS", PASSWORD),
    ];
    assert_sample(&with(&ducc), "1");

    let entry = json!({"auths": {address.clone(): {"auth": encoded()}}});
    let docker = PathBuf::from(auth_file("docker/config.json", &entry));
    assert_sample(&with(&[("DOCKER_CONFIG", docker.parent().unwrap().to_str().unwrap())]), "1");
    let home = PathBuf::from(auth_file("home/.docker/config.json", &entry));
    assert_sample(&with(&[("HOME", home.ancestors().nth(2).unwrap().to_str().unwrap())]), "1");

    let deep = json!({"auths": {
        format!("{address}/team/app"): {"auth": encoded()},
        address.clone(): {"auth": openssl::base64::encode_block(b"other:wrong")},
    }});
    assert_sample(&with(&[("REGISTRY_AUTH_FILE", &auth_file("deep.json", &deep))]), "1");
    let runtime = PathBuf::from(auth_file("run/containers/auth.json", &entry));
    assert_sample(&with(&[("XDG_RUNTIME_DIR", runtime.ancestors().nth(2).unwrap().to_str().unwrap())]), "1");

    // What podman and skopeo write themselves.
    let file = SCRATCH.path().join("skopeo-auth.json");
    let file = file.to_str().unwrap();
    skopeo(&["login", "--tls-verify=false", "--authfile", file, "-u", USER, "-p", PASSWORD, address]);
    assert_sample(&with(&[("REGISTRY_AUTH_FILE", file)]), "1");

    let refused = |pairs: &[(&str, &str)]| with(pairs).manifest("1").unwrap_err();
    let error = refused(&[]);
    assert!(matches!(&error, Error::Refused { reason, .. } if reason.contains("(without credentials)")), "{error}");
    let wrong = json!({"auths": {address.clone(): {"auth": openssl::base64::encode_block(b"robot:wrong")}}});
    let error = refused(&[("REGISTRY_AUTH_FILE", &auth_file("false.json", &wrong))]);
    assert!(
        matches!(&error, Error::Refused { reason, .. } if reason.contains("401") && reason.contains("/false.json")),
        "{error}"
    );
    assert!(!format!("{error:?}").contains("wrong"), "{error:?}");
    assert!(matches!(refused(&[("REGISTRY_AUTH_FILE", &auth_file("bad.json", &json!([])))]), Error::Malformed { .. }));
}

/// Options for the registry with tokens.
fn trusted() -> RegistryOptions {
    RegistryOptions { ca_bundle: Some(IDENTITY.certificate_file.clone()), ..RegistryOptions::default() }
}

fn with_password() -> RegistryOptions {
    let file = auth_file("token.json", &json!({"auths": {TOKEN.address.clone(): {"auth": encoded()}}}));
    RegistryOptions { ca_bundle: trusted().ca_bundle, ..environment(&[("REGISTRY_AUTH_FILE", &file)]) }
}

#[test]
fn tokens_are_fetched_once_and_used_by_all() {
    let address = &TOKEN.address;
    push(&SAMPLE.name(), address, "public/app:1", &[]);
    push(&SAMPLE.name(), address, "private/app:1", &[]);
    let asked = |name: &str| {
        let is_for = |scope: String| scope == format!("repository:{name}:pull");
        let requests = TOKENS.requests();
        // Those with a password are skopeo's.
        let ours = requests.iter().filter(|request| request.header("authorization").is_none());
        ours.filter(|request| request.query("scope").any(is_for)).count()
    };
    let public = repository(trusted(), &format!("{address}/public/app:1"));
    let image = assert_sample(&public, "1");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_layers(&public, &image, &SAMPLE.tars));
        }
    });
    assert_eq!(asked("public/app"), 1);

    let error = repository(trusted(), &format!("{address}/private/app:1")).manifest("1").unwrap_err();
    assert!(matches!(&error, Error::Refused { reason, .. } if reason.contains("401: UNAUTHORIZED")), "{error}");
    assert_sample(&repository(with_password(), &format!("{address}/private/app:1")), "1");
    let wrong = json!({"auths": {address.clone(): {"auth": openssl::base64::encode_block(b"robot:wrong")}}});
    let file = auth_file("token-wrong.json", &wrong);
    let options = RegistryOptions { ca_bundle: trusted().ca_bundle, ..environment(&[("REGISTRY_AUTH_FILE", &file)]) };
    let error = repository(options, &format!("{address}/private/app:1")).manifest("1").unwrap_err();
    assert!(matches!(&error, Error::Refused { reason, .. } if reason.contains(&file)), "{error}");
    // A certificate that nobody vouches for.
    let error = repository(RegistryOptions::default(), &format!("{address}/public/app:1")).manifest("1").unwrap_err();
    assert!(matches!(&error, Error::Refused { reason, .. } if reason.contains("--registry-ca")), "{error}");
}

#[test]
fn mirrors_stand_in_for_others() {
    let address = &PLAIN.address;
    push(&SAMPLE.name(), address, "cache/team/app:1", &[]);
    let name = "registry.invalid/team/app:1";
    let mirror =
        Mirror::new(HostPattern::new("registry.invalid").unwrap(), &format!("http://{address}/cache")).unwrap();
    let options = RegistryOptions { mirrors: vec![mirror], ..RegistryOptions::default() };
    assert_sample(&repository(options, name), "1");
    let proxy = format!("http://{address}/cache");
    let variables = [("DUCC_AUTH_REGISTRIES", "M"), ("DUCC_M_IDENT", "registry.invalid"), ("DUCC_M_PROXY", &proxy[..])];
    assert_sample(&repository(environment(&variables), name), "1");
}

#[test]
fn images_go_up() {
    let config = json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&SAMPLE.tars[1]).to_string()]}});
    for (store, address) in [
        (repository(RegistryOptions::default(), &format!("http://{}/up/thin", PLAIN.address)), &PLAIN.address),
        (repository(with_password(), &format!("https://{}/up/thin", TOKEN.address)), &TOKEN.address),
    ] {
        let layer = SAMPLE.tars[1].clone();
        assert!(!store.has_blob(&Digest::of(&layer)).unwrap());
        let layer_digest = store.put_blob(layer.clone().into()).unwrap();
        assert!(store.has_blob(&layer_digest).unwrap());
        assert_eq!(store.put_blob(layer.clone().into()).unwrap(), layer_digest);
        let config = config.to_string();
        let config_digest = store.put_blob(config.clone().into()).unwrap();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST,
            "config": {"mediaType": media_type::DOCKER_CONFIG, "digest": config_digest.to_string(), "size": config.len()},
            "layers": [{"mediaType": media_type::DOCKER_LAYER, "digest": layer_digest.to_string(), "size": layer.len()}],
        })
        .to_string();
        let digest = store.put_manifest("new", media_type::DOCKER_MANIFEST, manifest.clone().into()).unwrap();
        let credentials = format!("{USER}:{PASSWORD}");
        let raw = skopeo(&[
            "inspect",
            "--tls-verify=false",
            "--creds",
            &credentials,
            "--raw",
            &format!("docker://{address}/up/thin:new"),
        ]);
        assert_eq!(raw, manifest.as_bytes());
        let image = resolve(&store, "new", &Platforms::default()).unwrap().remove(0);
        assert_eq!(image.manifest.digest, digest);
        assert_layers(&store, &image, &SAMPLE.tars[1..2]);
        // A manifest that names what is not there.
        let broken = manifest.replace(&layer_digest.hex(), &Digest::of(b"?").hex());
        let error = store.put_manifest("broken", media_type::DOCKER_MANIFEST, broken.into()).unwrap_err();
        assert!(matches!(&error, Error::Refused { reason, .. } if reason.contains("BLOB_UNKNOWN")), "{error}");
    }
}
