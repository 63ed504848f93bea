//! A manifest: reading, signing and reading gives the same.
#![no_main]

use cvmfs_core::hash::Algorithm;
use cvmfs_core::manifest::SignedManifest;
use cvmfs_fuzz::{check_letter, key, sealed};
use libfuzzer_sys::fuzz_target;

fn check(bytes: &[u8]) {
    check_letter(bytes);
    let Ok(signed) = SignedManifest::parse(bytes) else { return };
    assert_eq!(signed.bytes(), bytes);
    let manifest = signed.unverified();
    let again = manifest.sign(key()).expect("it is ours");
    let read = SignedManifest::parse(again.bytes()).expect("written by us");
    let mut expected = manifest.clone();
    // The writer has no way to leave the size out.
    expected.root_catalog_size = expected.root_catalog_size.or(Some(0));
    assert_eq!(*read.unverified(), expected);
}

fuzz_target!(|data: &[u8]| {
    check(data);
    check(&sealed(data, Algorithm::Sha1));
});
