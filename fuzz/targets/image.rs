//! What users and registries write about images: names, wish lists, manifests, configurations.
#![no_main]

use cvmfs_core::path::RepoPath;
use cvmfs_ingest::image::Platform;
use cvmfs_ingest::image::manifest::{Content, parse, parse_config};
use cvmfs_ingest::image::recipe::{IgnoreList, Recipe};
use cvmfs_ingest::image::reference::{Reference, Transport};
use libfuzzer_sys::fuzz_target;

/// Tags of a registry, as a pattern meets them.
const TAGS: [&str; 6] = ["1", "1.0", "a*b", "../x", "latest", ""];

fn check_name(text: &str) {
    let Ok(reference) = text.parse::<Reference>() else { return };
    let whole = reference.whole_name();
    assert_eq!(whole.parse::<Reference>().expect("its own name"), reference);
    // Names become paths: each component as it is, none hidden, none of ours.
    let link = reference.public_name();
    let path = RepoPath::from_bytes(link.as_bytes()).expect("a path");
    assert_eq!(path.as_bytes(), link.as_bytes());
    assert!(path.components().all(|name| !name.starts_with(b".")), "{link}");
    assert!(!path.is_generated() && !link.starts_with("podmanStore/"));
}

fn check_document(data: &[u8]) {
    if let Ok(Content::Manifest(manifest)) = parse("fuzz", data, None) {
        assert!(manifest.layers.iter().all(|layer| !layer.media_type.ends_with("+encrypted")));
    }
    if let Ok(config) = parse_config("fuzz", data) {
        assert!(config.diff_ids.len() <= data.len() / 71);
    }
}

fn check_recipe(text: &str) {
    let _ = IgnoreList::default().add_file("fuzz", text);
    let Ok(recipe) = Recipe::parse("fuzz", text) else { return };
    let expansion = recipe.expand(&|_| Ok(TAGS.map(str::to_owned).to_vec()));
    for wish in &expansion.images {
        assert!(!wish.image.is_pattern() && wish.image.fetch_reference().is_ok());
        let _ = recipe.ignore_errors.has(&wish.image);
        let _ = recipe.output_format.name(&wish.image);
    }
}

fuzz_target!(|data: &[u8]| {
    check_document(data);
    if let Ok(text) = std::str::from_utf8(data) {
        check_name(text);
        check_recipe(text);
        let _ = text.parse::<Transport>();
        if let Ok(platform) = text.parse::<Platform>() {
            assert_eq!(platform.to_string().parse::<Platform>().expect("its own text"), platform);
        }
    }
});
