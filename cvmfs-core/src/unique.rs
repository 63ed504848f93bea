//! File names that nobody else uses.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A name that no other call gives, in this process or another.
///
/// Process ids alone do not tell processes apart: those in containers have the same ones and may share a storage.
pub(crate) fn unique_name() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    format!("{:016x}-{}", *PROCESS, COUNTER.fetch_add(1, Ordering::Relaxed))
}
