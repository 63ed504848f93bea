//! A tag database, read and brought up to date.
#![no_main]

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::compression::{Compressor, Effort};
use cvmfs_core::hash::{Algorithm, ContentHash, ObjectId, ObjectKind};
use cvmfs_core::history::{History, Tag};
use cvmfs_core::storage::{MemoryStore, WriteStore as _};
use cvmfs_fuzz::{name, scratch};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let stored = Compressor::new(Effort::default()).compress(data).to_vec();
    let id = ObjectId::of(Algorithm::Sha1, ObjectKind::History, &stored);
    let store = MemoryStore::new();
    store.put(&id, &stored).expect("memory");
    let Ok(history) = History::fetch(&store, id.hash, scratch()) else { return };
    let tags = history.tags();
    for tag in tags.iter().flatten().take(20) {
        let _ = history.tag(&tag.name);
    }
    let Ok(mut history) = History::fetch_writable(&store, id.hash, &name(), scratch()) else { return };
    let _ = history.remove("v1");
    let tag = Tag {
        name: "added".into(),
        root: ContentHash::null(Algorithm::Sha1),
        revision: 7,
        timestamp: UnixSeconds(8),
        description: "by the fuzzer".into(),
        root_size: 9,
        branch: String::new(),
    };
    // A damaged database may lose what is written to it, but what it gives back is what was written.
    if history.add(&tag).is_ok()
        && let Ok(Some(found)) = history.tag("added")
    {
        assert_eq!(found, tag);
    }
    let _ = history.advance_trunk(&tag);
    let _ = history.tags();
});
