//! Everything that is parsed from a short text: paths, names, hashes, times, server lists.
#![no_main]

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::fetch::parse_servers;
use cvmfs_core::hash::{ContentHash, ObjectId};
use cvmfs_core::history::TagName;
use cvmfs_core::idmap::IdMap;
use cvmfs_core::path::{NAME_MAX, RepoPath, RepositoryName, display};
use cvmfs_core::trust::keys::Fingerprint;
use libfuzzer_sys::fuzz_target;

fn check_path(data: &[u8]) {
    let shown = display(data);
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
    let Ok(path) = RepoPath::from_bytes(data) else {
        let bad = |name: &[u8]| name == b".." || name.len() > NAME_MAX || name.contains(&0);
        assert!(data.split(|&byte| byte == b'/').any(bad), "refused without reason");
        return;
    };
    let names: Vec<&[u8]> = path.components().collect();
    let wanted: Vec<&[u8]> =
        data.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
    assert_eq!(names, wanted);
    assert_eq!(path.as_bytes(), names.join(&b"/"[..]));
    assert_eq!(RepoPath::from_bytes(path.as_bytes()).expect("canonical"), path);
    assert_eq!(RepoPath::from_bytes(&path.to_catalog_text()).expect("canonical"), path);
    assert_eq!(path.name(), names.last().copied().unwrap_or_default());
    assert_eq!(path.ancestors().len(), names.len());
    match path.parent() {
        None => assert!(path.is_root()),
        Some(parent) => {
            assert_eq!(parent.child(path.name()).expect("its name"), path);
            assert!(path.starts_with(&parent) && parent < path && !parent.starts_with(&path));
        }
    }
    assert_eq!(path.join(&path).components().count(), 2 * names.len());
}

fn check_text(text: &str) {
    if let Ok(hash) = text.parse::<ContentHash>() {
        assert_eq!(hash.to_string(), text);
    }
    if let Ok(id) = text.parse::<ObjectId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(name) = text.parse::<RepositoryName>() {
        assert_eq!(name.as_str(), text);
        assert!(!text.contains('/') && !text.starts_with('.'), "{text}");
    }
    if let Ok(name) = text.parse::<TagName>() {
        assert_eq!(name.as_str(), text);
        let _ = name.is_automatic();
    }
    if let Some(time) = UnixSeconds::parse_compact(text) {
        assert_eq!(time.compact(), text);
    }
    if let Some(fingerprint) = Fingerprint::parse_line(text) {
        assert_eq!(Fingerprint::parse_line(&fingerprint.to_string()), Some(fingerprint));
    }
    if let Ok(map) = text.parse::<IdMap>() {
        assert!(map.map(u64::MAX).is_none() || text.contains('*'));
    }
    if let Ok(servers) = parse_servers(text) {
        assert!(servers.iter().all(|url| matches!(url.scheme(), "http" | "https") && url.has_host()));
    }
}

fuzz_target!(|data: &[u8]| {
    check_path(data);
    if let Ok(text) = std::str::from_utf8(data) {
        check_text(text);
    }
});
