//! A whitelist: reading, signing and reading gives the same.
#![no_main]

use cvmfs_core::hash::Algorithm;
use cvmfs_core::trust::whitelist::SignedWhitelist;
use cvmfs_fuzz::{check_letter, key, sealed};
use libfuzzer_sys::fuzz_target;

fn check(bytes: &[u8]) {
    let letter = check_letter(bytes);
    let Ok(signed) = SignedWhitelist::parse(bytes) else { return };
    assert_eq!(signed.to_bytes(), letter.expect("it is a letter, too").to_bytes());
    let whitelist = signed.unverified();
    let again = whitelist.sign(Algorithm::Rmd160, key()).expect("it is ours").to_bytes();
    assert_eq!(SignedWhitelist::parse(&again).expect("written by us").unverified(), whitelist);
}

fuzz_target!(|data: &[u8]| {
    check(data);
    check(&sealed(data, Algorithm::Shake128));
});
