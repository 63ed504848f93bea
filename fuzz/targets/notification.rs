//! Notifications of registries: whatever they say, what comes out names images, and their names are paths.
#![no_main]

use cvmfs_core::path::RepoPath;
use cvmfs_ingest::image::listen::payload::{Action, parse};
use cvmfs_ingest::image::listen::{Allowed, Place};
use cvmfs_ingest::image::recipe::Recipe;
use cvmfs_ingest::image::reference::Reference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = text.parse::<Place>();
    }
    let Ok(notification) = parse(data) else { return };
    let places: Vec<Place> = ["r.example.org", "http://localhost:5000/team"].map(|text| text.parse().expect("a place")).to_vec();
    let recipes = vec![Recipe::parse("wishes", "input: ['r.example.org/a:1*']").expect("a wish list")];
    let allowed = [Allowed { places, recipes: Vec::new() }, Allowed { places: Vec::new(), recipes }];
    assert!(notification.hints.len() + notification.refused.len() <= data.len());
    for hint in &notification.hints {
        let image = &hint.image;
        assert!(!image.is_pattern());
        assert!(hint.action == Action::Push || image.tag.is_none() && image.digest.is_none());
        assert_eq!(image.whole_name().parse::<Reference>().expect("its own name"), *image);
        let path = RepoPath::from_bytes(format!("{}/{}", image.registry, image.repository).as_bytes()).expect("a path");
        assert!(path.components().all(|name| !name.starts_with(b".")), "{path}");
        for allowed in &allowed {
            let Some(admitted) = allowed.admit(hint) else { continue };
            assert_eq!(admitted.repository, image.repository);
            assert!(!admitted.is_pattern() && admitted.tag == image.tag);
            assert!(["r.example.org", "localhost:5000"].contains(&&admitted.registry[..]));
        }
    }
});
