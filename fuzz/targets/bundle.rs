//! Answers with many objects: only what was asked for comes out, verified, however the answer is cut.
#![no_main]

use std::collections::HashSet;

use cvmfs_core::fetch::bundle::{BundleOffer, BundleParser};
use cvmfs_core::hash::{Algorithm, ObjectId, ObjectKind};
use cvmfs_fuzz::Input;
use libfuzzer_sys::fuzz_target;

/// The objects that are asked for.
const CONTENTS: [&[u8]; 4] = [b"", b"a", b"first\n", b"second 5\n"];

fn parse(ids: &[ObjectId], mut pieces: impl Iterator<Item = Vec<u8>>) -> (bool, Vec<ObjectId>, HashSet<ObjectId>) {
    let mut parser = BundleParser::new(ids.iter().copied());
    let mut found = Vec::new();
    let result = pieces.try_for_each(|piece| {
        parser.push(&piece, &mut |id, stored| {
            assert_eq!(id.hash.algorithm().hash(&stored), id.hash);
            assert!(ids.contains(&id) && !found.contains(&id), "not asked for, or twice");
            found.push(id);
        })
    });
    let missing = parser.into_missing();
    assert_eq!(missing.len() + found.len(), ids.len());
    (result.is_ok(), found, missing)
}

fuzz_target!(|data: &[u8]| {
    let ids: Vec<_> = CONTENTS
        .iter()
        .zip([Algorithm::Sha1, Algorithm::Rmd160, Algorithm::Shake128, Algorithm::Sha1])
        .map(|(content, algorithm)| ObjectId::of(algorithm, ObjectKind::File, content))
        .collect();
    let mut input = Input(data);
    let size = usize::from(input.byte()).max(1);
    // Names cannot be guessed, so a byte stands for each.
    let mut bundle = Vec::new();
    for &byte in input.0 {
        match byte {
            0x80..=0x83 => bundle.extend(ids[usize::from(byte - 0x80)].to_string().bytes()),
            _ => bundle.push(byte),
        }
    }
    let whole = parse(&ids, std::iter::once(bundle.clone()));
    let cut = parse(&ids, bundle.chunks(size).map(<[u8]>::to_vec));
    assert_eq!(whole, cut);
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(offer) = BundleOffer::parse(text)
    {
        assert_eq!(BundleOffer::parse(&offer.to_string()), Some(offer));
    }
});
