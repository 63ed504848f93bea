//! A dirtab and a path (the first line) that it is asked about, compared with the plainest matcher.
#![no_main]

use cvmfs_core::dirtab::Dirtab;
use cvmfs_core::path::RepoPath;
use libfuzzer_sys::fuzz_target;

/// Whether a pattern with `*`, `?` and backslashes matches, by trying everything.
fn matches(pattern: &[u8], text: &[u8], crosses_slashes: bool) -> bool {
    let may = |byte: u8| crosses_slashes || byte != b'/';
    match (pattern, text) {
        ([], _) => text.is_empty(),
        ([b'*', rest @ ..], _) => {
            matches(rest, text, crosses_slashes)
                || text
                    .split_first()
                    .is_some_and(|(&byte, after)| may(byte) && matches(pattern, after, crosses_slashes))
        }
        ([b'?', rest @ ..], [byte, after @ ..]) => may(*byte) && matches(rest, after, crosses_slashes),
        ([b'\\', escaped, rest @ ..], [byte, after @ ..]) => escaped == byte && matches(rest, after, crosses_slashes),
        ([wanted, rest @ ..], [byte, after @ ..]) => wanted == byte && matches(rest, after, crosses_slashes),
        (_, []) => false,
    }
}

/// A rule without doubled slashes.
fn canonical(rule: &[u8]) -> Vec<u8> {
    let pieces = rule.split(|&byte| byte == b'/').filter(|piece| !piece.is_empty());
    pieces.flat_map(|piece| [b"/", piece].concat()).collect()
}

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |&byte| byte == b'\n');
    let (path, text) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let (Ok(dirtab), Ok(path)) = (Dirtab::parse(text), RepoPath::from_bytes(path)) else { return };
    let found = dirtab.matches(&path);
    if found {
        let ancestors = path.ancestors();
        assert!(ancestors.iter().all(|ancestor| dirtab.may_match_below(ancestor)), "nobody would look there");
    }
    // The plain matcher takes exponential time.
    let stars = text.iter().filter(|&&byte| byte == b'*').count();
    if path.is_root() || path.as_bytes().len() > 40 || text.len() > 60 || stars > 6 {
        return;
    }
    let target = path.to_catalog_text();
    let (mut wanted, mut unwanted) = (false, false);
    for line in text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii) {
        match line {
            [] | [b'#', ..] => {}
            [b'!', rule @ ..] => {
                let rule = rule.trim_ascii();
                unwanted |= matches(rule.strip_suffix(b"/").unwrap_or(rule), &target, true);
            }
            rule => wanted |= matches(&canonical(rule), &target, false),
        }
    }
    assert_eq!(found, wanted && !unwanted);
});
