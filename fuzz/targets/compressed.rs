//! A compressed archive: decoding comes to an end, in bounded memory, with its thread gone.
#![no_main]

use std::io::Read as _;
use std::time::{Duration, Instant};

use cvmfs_ingest::archive::{Archive, ArchiveError, Format, decompress};
use libfuzzer_sys::fuzz_target;

/// Plain bytes that are looked at.
const ENOUGH: u64 = 4 << 20;

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

fuzz_target!(|data: &[u8]| {
    let before = threads();
    let (format, reader) = decompress(Box::new(std::io::Cursor::new(data.to_vec()))).expect("memory can be read");
    let mut plain = Vec::new();
    let result = reader.take(ENOUGH).read_to_end(&mut plain);
    if format == Format::Plain {
        assert!(plain == data && result.is_ok());
    } else if let Err(error) = result {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ArchiveError>());
        assert!(matches!(inner, Some(ArchiveError::Decompression { .. })), "{error:?}");
    }

    let (_, reader) = decompress(Box::new(std::io::Cursor::new(data.to_vec()))).expect("memory can be read");
    let mut archive = Archive::new(reader.take(ENOUGH));
    while let Ok(Some(_)) = archive.next() {}
    drop(archive);

    let patience = Instant::now() + Duration::from_secs(10);
    while threads() > before {
        assert!(Instant::now() < patience, "a decoder thread goes on");
        std::thread::yield_now();
    }
});
