//! Tests of the pipeline as a whole.

use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::change::{Change, Content, Metadata};
use crate::changeset::Op;
use crate::compression::Compression;
use crate::entry::Mtime;
use crate::entry::{EntryKind, FileContent, FileObjects};
use crate::hash::ContentHash;
use crate::hash::ObjectId;
use crate::object;
use crate::progress::Silent;
use crate::storage::Put;
use crate::storage::{Key, MemoryStore, NamedFile, ReadStore, StagedObject};
use crate::xattr::Xattrs;

/// Gives files of these contents, by name; fails where `None` stands.
struct Files {
    contents: Vec<(String, Option<Vec<u8>>)>,
    next: usize,
    at: usize,
    announced: Option<u64>,
}

impl Files {
    fn new(files: Vec<(String, Option<Vec<u8>>)>) -> Self {
        Self { contents: files, next: 0, at: 0, announced: None }
    }
}

impl ChangeSource for Files {
    fn next(&mut self) -> Result<Option<Change>> {
        let Some((name, content)) = self.contents.get(self.next) else { return Ok(None) };
        (self.next, self.at) = (self.next + 1, 0);
        let content = content.as_ref().ok_or_else(|| Error::invalid("source", "broken"))?;
        let metadata = Metadata { permissions: 0o644, uid: 0, gid: 0, mtime: Mtime::seconds(0), xattrs: Xattrs::new() };
        let size = self.announced.unwrap_or(content.len() as u64);
        Ok(Some(Change::Put { path: name.parse()?, metadata, content: Content::Read { size } }))
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let content = self.contents[self.next - 1].1.as_deref().unwrap_or_default();
        let size = buffer.len().min(content.len() - self.at).min(1000);
        buffer[..size].copy_from_slice(&content[self.at..self.at + size]);
        self.at += size;
        Ok(size)
    }
}

/// A store that fails at the n-th object.
#[derive(Debug)]
struct Failing(MemoryStore, AtomicUsize);

impl ReadStore for Failing {
    fn describe(&self, key: &Key) -> String {
        self.0.describe(key)
    }
    fn read(&self, key: &Key) -> Result<Vec<u8>> {
        self.0.read(key)
    }
    fn open(&self, key: &Key) -> Result<Box<dyn Read + Send>> {
        self.0.open(key)
    }
    fn size(&self, key: &Key) -> Result<Option<u64>> {
        self.0.size(key)
    }
}

impl WriteStore for Failing {
    fn put(&self, id: &ObjectId, stored: &[u8]) -> Result<Put> {
        if self.1.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Err(Error::Unavailable { what: "store".into(), reason: "full".into() });
        }
        self.0.put(id, stored)
    }
    fn reuse(&self, id: &ObjectId, stored_size: u64) -> Result<bool> {
        self.0.reuse(id, stored_size)
    }
    fn stage(&self) -> Result<Box<dyn StagedObject>> {
        self.0.stage()
    }
    fn discard(&self, id: &ObjectId) -> Result<()> {
        self.0.discard(id)
    }
    fn write(&self, file: NamedFile, bytes: &[u8]) -> Result<()> {
        self.0.write(file, bytes)
    }
    fn remove(&self, file: NamedFile) -> Result<()> {
        self.0.remove(file)
    }
    fn put_shortcut(&self, id: &ObjectId) -> Result<()> {
        self.0.put_shortcut(id)
    }
    fn flush(&self) -> Result<()> {
        self.0.flush()
    }
    fn remove_abandoned(&self, before: crate::clock::UnixSeconds) -> Result<u64> {
        self.0.remove_abandoned(before)
    }
}

fn noise(seed: u32, size: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(size).collect()
}

/// Bytes that no compressor shrinks; the generator of `noise` repeats itself too soon.
fn random(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn small_chunks() -> Options {
    Options { chunking: Some(ChunkSizes::new(1024, 2048, 4096).unwrap()), ..Options::default() }
}

fn run_on(source: &mut Files, store: &dyn WriteStore, options: &Options) -> Result<Results> {
    run_with(source, store, None, options)
}

type Results = (Outcome, Vec<(String, FileContent)>);

fn run_with(
    source: &mut Files,
    store: &dyn WriteStore,
    known: Option<&KnownContent>,
    options: &Options,
) -> Result<Results> {
    let directory = tempfile::tempdir().unwrap();
    let mut changes = ChangeSet::create(&directory.path().join("set"), ContentHash::null(Algorithm::Sha1))?;
    let outcome = run(source, store, &mut changes, known, options, &Silent, &Cancel::new())?;
    let mut files = Vec::new();
    changes.for_each(|pending| {
        if let Op::Put(entry) = pending.op
            && let EntryKind::File(file) = entry.kind
        {
            files.push((pending.path.to_string(), file));
        }
        Ok(())
    })?;
    Ok((outcome, files))
}

#[test]
fn content_reads_back_on_any_number_of_threads_and_in_any_form() {
    let contents: Vec<Vec<u8>> =
        (0..40).map(|index| noise(index, [0, 1, 1023, 1024, 1025, 5000, 70_000][index as usize % 7])).collect();
    let mut results = Vec::new();
    for (threads, compression, chunked) in [
        (1, Policy::Zlib, true),
        (2, Policy::Zlib, true),
        (8, Policy::Zlib, true),
        (2, Policy::None, true),
        (2, Policy::Zlib, false),
        (1, Policy::Auto, true),
        (8, Policy::Auto, true),
    ] {
        let options = Options { threads, compression, max_bytes_in_flight: Some(1), ..small_chunks() };
        let options = if chunked { options } else { Options { chunking: None, ..options } };
        let files = contents.iter().enumerate().map(|(index, content)| (format!("f{index:02}"), Some(content.clone())));
        let store = MemoryStore::new();
        let (outcome, files) = run_on(&mut Files::new(files.collect()), &store, &options).unwrap();
        assert_eq!(outcome.files, 40);
        assert_eq!(outcome.bytes_read, contents.iter().map(|content| content.len() as u64).sum::<u64>());
        for ((_, file), content) in files.iter().zip(&contents) {
            let mut plain = Vec::new();
            for (id, size) in file.parts() {
                let before = plain.len();
                object::open(&store, &id, file.compression).unwrap().read_to_end(&mut plain).unwrap();
                assert_eq!((plain.len() - before) as u64, size);
            }
            assert_eq!(plain, *content);
        }
        results.push(files);
    }
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
    assert_eq!(results[5], results[6]);
}

/// Text shrinks, noise does not.
#[test]
fn what_does_not_shrink_is_stored_as_it_is() {
    let text = |size: usize| b"all work and no play ".iter().copied().cycle().take(size).collect::<Vec<u8>>();
    let noise = |size| random(7, size);
    let large = usize::try_from(WHOLE_FILE_MAX).unwrap() + 1;
    let chunked = small_chunks().chunking;
    let directory = tempfile::tempdir().unwrap();
    let known = KnownContent::open(&directory.path().join("known"), 1000).unwrap();
    let store = MemoryStore::new();
    for (content, chunking, expected) in [
        (text(500), chunked, Compression::Zlib),
        (noise(500), chunked, Compression::None),
        (b"short".to_vec(), chunked, Compression::None),
        // Without a cut: zeros would have none, but for the largest size.
        (vec![0; 4096], chunked, Compression::Zlib),
        (text(50_000), chunked, Compression::Zlib),
        (noise(50_000), chunked, Compression::None),
        ([text(5000), noise(50_000)].concat(), chunked, Compression::Zlib),
        ([noise(5000), text(50_000)].concat(), chunked, Compression::None),
        (text(large), None, Compression::Zlib),
        (noise(large), None, Compression::None),
    ] {
        let options = Options { compression: Policy::Auto, chunking, ..Options::default() };
        for known in [None, Some(&known), Some(&known)] {
            let mut source = Files::new(vec![("file".into(), Some(content.clone()))]);
            let (_, files) = run_with(&mut source, &store, known, &options).unwrap();
            let file = &files[0].1;
            assert_eq!(file.compression, expected, "{} bytes", content.len());
            let mut plain = Vec::new();
            for (id, _) in file.parts() {
                object::open(&store, &id, file.compression).unwrap().read_to_end(&mut plain).unwrap();
            }
            assert!(plain == content);
        }
    }
}

/// What was stored for one policy says nothing about another.
#[test]
fn the_result_does_not_depend_on_who_filled_the_index() {
    let directory = tempfile::tempdir().unwrap();
    let known = KnownContent::open(&directory.path().join("known"), 1000).unwrap();
    let store = MemoryStore::new();
    for _ in 0..2 {
        for (compression, expected) in [
            (Policy::Zlib, [Compression::Zlib, Compression::Zlib]),
            (Policy::None, [Compression::None, Compression::None]),
            (Policy::Auto, [Compression::Zlib, Compression::None]),
        ] {
            let contents = vec![("a".into(), Some(vec![0; 500])), ("b".into(), Some(random(7, 500)))];
            let options = Options { compression, ..Options::default() };
            let (_, files) = run_with(&mut Files::new(contents), &store, Some(&known), &options).unwrap();
            assert_eq!([files[0].1.compression, files[1].1.compression], expected, "{compression}");
        }
    }
}

/// The data and boundaries are those of the chunking test vectors.
#[test]
fn large_files_are_cut_and_files_without_a_cut_are_not_chunks() {
    let files = vec![("chunked".into(), Some(noise(1, 65_536))), ("whole".into(), Some(vec![0; 4096]))];
    let (_, files) = run_on(&mut Files::new(files), &MemoryStore::new(), &small_chunks()).unwrap();
    let FileObjects::Chunked { chunks, bulk: None } = &files[0].1.objects else { panic!("not chunked: {files:?}") };
    let offsets: Vec<u64> = chunks.iter().map(|chunk| chunk.offset).collect();
    assert_eq!(offsets[..4], [0, 1860, 5956, 7356]);
    assert_eq!(offsets.len(), 35);
    assert!(matches!(files[1].1.objects, FileObjects::Whole(_)));
}

#[test]
fn a_large_file_without_chunking_is_streamed_into_one_object() {
    let size = usize::try_from(WHOLE_FILE_MAX).unwrap() + 1;
    let files = vec![("large".into(), Some(vec![7; size]))];
    let store = MemoryStore::new();
    let (outcome, files) =
        run_on(&mut Files::new(files), &store, &Options { chunking: None, ..Options::default() }).unwrap();
    let [(id, length)] = files[0].1.parts()[..] else { panic!("more than one object") };
    assert_eq!((length, outcome.objects_new), (size as u64, 1));
    let mut plain = Vec::new();
    object::open(&store, &id, Compression::Zlib).unwrap().read_to_end(&mut plain).unwrap();
    assert!(plain == vec![7; size]);
}

#[test]
fn the_first_failure_ends_the_run_wherever_it_happens() {
    let files = || (0..100).map(|index| (format!("f{index:02}"), Some(noise(index, 3000)))).collect::<Vec<_>>();
    let (_, stored) = run_on(&mut Files::new(files()), &MemoryStore::new(), &small_chunks()).unwrap();
    let objects: usize = stored.iter().map(|(_, file)| file.parts().len()).sum();
    for failing in [0, 1, 50, objects - 1] {
        let store = Failing(MemoryStore::new(), AtomicUsize::new(failing));
        let error = run_on(&mut Files::new(files()), &store, &small_chunks()).unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "object {failing}: {error}");
    }
    for failing in [0, 1, 99] {
        let mut files = files();
        files[failing].1 = None;
        let error = run_on(&mut Files::new(files), &MemoryStore::new(), &small_chunks()).unwrap_err();
        assert!(matches!(error, Error::InvalidInput { .. }), "change {failing}: {error}");
    }
}

#[test]
fn content_shorter_than_announced_is_an_error() {
    for size in [10, 5000] {
        let mut source = Files::new(vec![("short".into(), Some(vec![1; size]))]);
        source.announced = Some(size as u64 + 1);
        let error = run_on(&mut source, &MemoryStore::new(), &small_chunks()).unwrap_err();
        assert!(error.to_string().contains("shorter than announced"), "{error}");
    }
}

#[test]
fn a_cancelled_run_stops() {
    let directory = tempfile::tempdir().unwrap();
    let mut changes = ChangeSet::create(&directory.path().join("set"), ContentHash::null(Algorithm::Sha1)).unwrap();
    let cancel = Cancel::new();
    cancel.cancel();
    let mut source = Files::new(vec![("f".into(), Some(vec![1]))]);
    let result = run(&mut source, &MemoryStore::new(), &mut changes, None, &Options::default(), &Silent, &cancel);
    assert!(matches!(result, Err(Error::Cancelled)));
}
