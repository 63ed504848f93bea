//! What every backend must do, as functions that a backend's tests call.
//!
//! They panic with the broken promise; a backend outside this crate can use them as well.

use std::io::Read as _;
use std::thread;

use super::{Key, NamedFile, Put, WriteStore};
use crate::hash::{Algorithm, ObjectId, ObjectKind};

/// Checks all promises of a [`WriteStore`] on an empty store.
///
/// # Panics
/// On the first broken promise.
#[expect(clippy::unwrap_used, reason = "a failing backend must fail its test")]
pub fn write_store(store: &dyn WriteStore) {
    let object = |content: &[u8], kind| ObjectId::of(Algorithm::Sha1, kind, content);

    // What does not exist is `NotFound` to readers and `None` to a size question.
    let id = object(b"content", ObjectKind::File);
    assert_eq!(store.size(&id.into()).unwrap(), None);
    assert!(store.read(&id.into()).unwrap_err().is_not_found());
    assert!(store.open(&id.into()).map(drop).unwrap_err().is_not_found());
    assert!(store.read(&NamedFile::Manifest.into()).unwrap_err().is_not_found());

    // An object reads back, and putting it again changes nothing.
    assert_eq!(store.put(&id, b"content").unwrap(), Put::New);
    assert_eq!(store.put(&id, b"content").unwrap(), Put::Present);
    assert_eq!(store.read(&id.into()).unwrap(), b"content");
    assert_eq!(store.size(&id.into()).unwrap(), Some(7));
    assert!(store.reuse(&id, 7).unwrap());
    assert!(!store.reuse(&id, 8).unwrap());
    assert!(!store.reuse(&object(b"absent", ObjectKind::File), 6).unwrap());
    let mut streamed = Vec::new();
    store.open(&id.into()).unwrap().read_to_end(&mut streamed).unwrap();
    assert_eq!(streamed, b"content");

    // Kinds and algorithms are separate names; an empty object is an object.
    let chunk = object(b"content", ObjectKind::Chunk);
    assert_eq!(store.size(&chunk.into()).unwrap(), None);
    let empty = ObjectId::of(Algorithm::Shake128, ObjectKind::File, b"");
    assert_eq!(store.put(&empty, b"").unwrap(), Put::New);
    assert_eq!(store.size(&empty.into()).unwrap(), Some(0));

    // Staging: nothing is visible before the name is given, and nothing after a drop.
    let large = vec![7; 100_000];
    let staged_id = object(&large, ObjectKind::Catalog);
    let mut staged = store.stage().unwrap();
    staged.write_all(&large[..40_000]).unwrap();
    staged.write_all(&large[40_000..]).unwrap();
    assert_eq!(store.size(&staged_id.into()).unwrap(), None);
    assert_eq!(staged.finish(&staged_id).unwrap(), Put::New);
    assert_eq!(store.read(&staged_id.into()).unwrap(), large);
    let mut again = store.stage().unwrap();
    again.write_all(&large).unwrap();
    assert_eq!(again.finish(&staged_id).unwrap(), Put::Present);

    // What is discarded is gone, and may be put again.
    store.discard(&staged_id).unwrap();
    store.discard(&staged_id).unwrap();
    assert_eq!(store.size(&staged_id.into()).unwrap(), None);
    assert_eq!(store.put(&staged_id, &large).unwrap(), Put::New);

    // Named files are replaced, and what is being read stays whole.
    store.write(NamedFile::Manifest, b"one").unwrap();
    let mut reader = store.open(&NamedFile::Manifest.into()).unwrap();
    store.write(NamedFile::Manifest, b"second").unwrap();
    let mut old = String::new();
    reader.read_to_string(&mut old).unwrap();
    assert_eq!(old, "one");
    assert_eq!(store.read(&NamedFile::Manifest.into()).unwrap(), b"second");
    store.remove(NamedFile::Manifest).unwrap();
    store.remove(NamedFile::Manifest).unwrap();
    assert_eq!(store.size(&NamedFile::Manifest.into()).unwrap(), None);

    // Shortcuts lead to their object.
    store.put_shortcut(&id).unwrap();
    store.put_shortcut(&id).unwrap();
    assert_eq!(store.read(&Key::Shortcut(id)).unwrap(), b"content");
    assert!(store.read(&Key::Shortcut(chunk)).unwrap_err().is_not_found());

    // The same objects from many threads at once.
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for number in 0..100_u32 {
                    let content = number.to_le_bytes();
                    let id = object(&content, ObjectKind::File);
                    store.put(&id, &content).unwrap();
                    assert_eq!(store.read(&id.into()).unwrap(), content);
                }
            });
        }
    });
    store.flush().unwrap();
}
