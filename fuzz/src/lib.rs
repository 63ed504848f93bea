//! What fuzz targets share: a limit on memory, a place for databases, and inputs taken apart.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use cvmfs_core::hash::Algorithm;
use cvmfs_core::path::RepositoryName;
use cvmfs_core::trust::Letter;
use cvmfs_core::trust::keys::PrivateKey;

/// Bytes of all allocations at one time beyond which a target fails. Parsers must not take sizes from their input.
pub const MEMORY_LIMIT: usize = 128 << 20;

/// The system's allocator with a limit.
struct Limited;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator; refusing is allowed.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size() > MEMORY_LIMIT {
            // The caller aborts, which the fuzzer reports with the input.
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises are those that `System` wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// A directory for databases, in memory if possible. It lasts as long as the process.
pub fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<PathBuf> = OnceLock::new();
    SCRATCH.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let name = format!("cvmfs-fuzz.{}", std::process::id());
        let directory = parent.join(name);
        std::fs::create_dir_all(&directory).expect("a directory for databases");
        directory
    })
}

/// The repository of all inputs.
pub fn name() -> RepositoryName {
    "fixture.ref.org".parse().expect("a name")
}

/// Signs documents; only the target decides whether anybody verifies.
pub fn key() -> &'static PrivateKey {
    static KEY: OnceLock<PrivateKey> = OnceLock::new();
    KEY.get_or_init(|| PrivateKey::generate().expect("a key"))
}

/// The envelope around a text, with the right hash and a signature that is none: so that changed texts are looked at.
pub fn sealed(text: &[u8], algorithm: Algorithm) -> Vec<u8> {
    let text = [text, if text.ends_with(b"\n") { b"" } else { b"\n" }].concat();
    Letter::sign(text, algorithm, |_| Ok(vec![0; 256])).expect("nothing fails").to_bytes()
}

/// Checks an envelope: what is read is what is written.
pub fn check_letter(bytes: &[u8]) -> Option<Letter> {
    let letter = Letter::parse("letter", bytes).ok()?;
    let written = letter.to_bytes();
    assert_eq!(Letter::parse("letter", &written).expect("written by us"), letter);
    assert_eq!(written, bytes, "another way to write the same letter");
    Some(letter)
}

/// Takes values from an input, zeros behind its end.
#[derive(Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Whether everything was taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// A number of 64 bits.
    pub fn number(&mut self) -> i64 {
        let bytes = self.take(8);
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        i64::from_le_bytes(whole)
    }

    /// A number of 32 bits.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "any bits will do")]
    pub fn small_number(&mut self) -> u32 {
        let bytes = self.take(4);
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        i64::from_le_bytes(whole) as u32
    }

    /// At most this many bytes.
    pub fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Bytes with their length before them.
    pub fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte());
        self.take(length)
    }
}
