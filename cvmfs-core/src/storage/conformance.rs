//! What every backend must do, as functions that a backend's tests call.
//!
//! They panic with the broken promise; a backend outside this crate can use them as well.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::thread;
use std::time::Duration;

use super::{Key, Listed, NamedFile, PruneStore, Put, WriteStore};
use crate::error::Result;
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
    let absent = object(b"absent", ObjectKind::File);
    assert!(!store.reuse(&absent, 6).unwrap());
    assert_eq!(store.reuse_all(&[(absent, 6), (id, 7), (id, 8), (id, 7)]).unwrap(), [false, true, false, true]);
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

    // Sizes of several come in the order in which they were asked for.
    let sizes = store.sizes(&[staged_id, chunk, empty, id, id]).unwrap();
    assert_eq!(sizes, [Some(100_000), None, Some(0), Some(7), Some(7)]);

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

    // A condition is about what is in place.
    let is_absent = |current: Option<&[u8]>| current.is_none();
    let is_one = |current: Option<&[u8]>| current == Some(b"one");
    assert!(!store.write_if(NamedFile::Manifest, b"one", &is_one).unwrap());
    assert!(store.write_if(NamedFile::Manifest, b"one", &is_absent).unwrap());
    assert!(!store.write_if(NamedFile::Manifest, b"other", &is_absent).unwrap());
    assert!(store.write_if(NamedFile::Manifest, b"two", &is_one).unwrap());
    assert!(!store.write_if(NamedFile::Manifest, b"three", &is_one).unwrap());
    assert_eq!(store.read(&NamedFile::Manifest.into()).unwrap(), b"two");

    // Shortcuts lead to their object.
    let certificate = object(b"content", ObjectKind::Certificate);
    store.put(&certificate, b"content").unwrap();
    store.put_shortcut(&certificate).unwrap();
    store.put_shortcut(&certificate).unwrap();
    assert_eq!(store.read(&Key::Shortcut(certificate)).unwrap(), b"content");
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

/// Checks all promises of a [`PruneStore`], those of a [`WriteStore`] among them, on an empty store.
///
/// # Panics
/// On the first broken promise.
#[expect(clippy::unwrap_used, reason = "a failing backend must fail its test")]
pub fn prune_store(store: &dyn PruneStore) {
    prune_alone(store);

    // Whoever puts or reuses while others remove finds it there afterwards, as often as they look.
    let contents: Vec<[u8; 4]> = (0..50_u32).map(u32::to_le_bytes).collect();
    let ids: Vec<ObjectId> =
        contents.iter().map(|content| ObjectId::of(Algorithm::Sha1, ObjectKind::File, content)).collect();
    for _ in 0..5 {
        let began = store.clock().unwrap();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| store.prune(&ids, began).unwrap());
            }
            scope.spawn(|| {
                for (id, content) in ids.iter().zip(&contents) {
                    if !store.reuse(id, 4).unwrap() {
                        store.put(id, content).unwrap();
                    }
                }
            });
        });
        store.flush().unwrap();
        for (id, content) in ids.iter().zip(&contents) {
            assert_eq!(store.read(&(*id).into()).unwrap(), content);
        }
    }
}

/// Checks the promises of a [`PruneStore`] that do not need several threads.
///
/// # Panics
/// On the first broken promise.
#[expect(clippy::unwrap_used, reason = "a failing backend must fail its test")]
pub fn prune_alone(store: &dyn PruneStore) {
    write_store(store);
    let later = Duration::from_secs(1 << 40);
    let list = |wanted: &dyn Fn(&ObjectId) -> bool| -> Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for first in 0..=u8::MAX {
            let begins = |object: Listed| {
                assert_eq!(object.id.hash.digest()[0], first);
                listed.push(object);
                Ok(())
            };
            store.list(first, &mut |id| wanted(id), &mut { begins })?;
        }
        Ok(listed)
    };

    // Everything can be removed, shortcuts included; what is not there is no error.
    let all: Vec<ObjectId> = list(&|_| true).unwrap().iter().map(|object| object.id).collect();
    assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len());
    assert!(all.len() >= 100);
    assert_eq!(store.prune(&all, later).unwrap(), []);
    assert_eq!(store.prune(&all, later).unwrap(), []);
    assert_eq!(list(&|_| true).unwrap(), []);
    let shortcut = ObjectId::of(Algorithm::Sha1, ObjectKind::Certificate, b"content");
    assert!(store.read(&Key::Shortcut(shortcut)).unwrap_err().is_not_found());

    // A listing has names of every form, sizes and ages, and only what is wanted.
    let before = store.clock().unwrap();
    let mut ids = BTreeSet::new();
    for algorithm in Algorithm::ALL {
        for kind in ObjectKind::ALL {
            let id = ObjectId::of(algorithm, kind, b"seven b");
            assert_eq!(store.put(&id, b"seven b").unwrap(), Put::New);
            ids.insert(id);
        }
    }
    let listed = list(&|_| true).unwrap();
    assert_eq!(listed.iter().map(|object| object.id).collect::<BTreeSet<_>>(), ids);
    let after = store.clock().unwrap();
    for Listed { stored_size, modified, .. } in listed {
        assert_eq!(stored_size, 7);
        assert!(before <= modified && modified <= after, "{before:?} {modified:?} {after:?}");
    }
    assert_eq!(list(&|id| id.kind == ObjectKind::Chunk).unwrap().len(), 3);

    // What is young stays, and is named.
    let ids: Vec<ObjectId> = ids.into_iter().collect();
    assert_eq!(store.prune(&ids, before).unwrap(), ids);
    assert!(store.reuse(&ids[0], 7).unwrap());
    assert_eq!(store.prune(&ids[1..], later).unwrap(), []);
    assert_eq!(list(&|_| true).unwrap().len(), 1);
    assert_eq!(store.read(&ids[0].into()).unwrap(), b"seven b");
}
