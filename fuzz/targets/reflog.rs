//! A reflog file: entries survive writing.
#![no_main]

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::hash::{Algorithm, ObjectId, ObjectKind};
use cvmfs_core::reflog::Reflog;
use cvmfs_fuzz::{name, scratch};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(mut reflog) = Reflog::open(data, &name(), scratch()) else { return };
    let _ = reflog.entries();
    let id = ObjectId::of(Algorithm::Sha1, ObjectKind::Catalog, data);
    if reflog.add(&id, UnixSeconds(i64::MAX)).is_err() {
        return;
    }
    let Ok(bytes) = reflog.into_bytes() else { return };
    // A damaged file may still be damaged after it was changed.
    let _ = Reflog::open(&bytes, &name(), scratch()).and_then(|reflog| reflog.entries());
});
