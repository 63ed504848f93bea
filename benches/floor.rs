//! The work that an ingest cannot avoid: deflate and SHA-1 of every file of a tree, on all cores, from memory to nowhere.
//!
//! `cargo bench --bench floor -- DIRECTORY` prints a line of JSON with the plain bytes, the compressed bytes and the
//! seconds. Reading the files is not part of these.
#![expect(clippy::print_stdout, reason = "the result of a benchmark")]

use std::error::Error;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;
use std::{fs, thread};

use cvmfs_core::chunking::ChunkSizes;
use cvmfs_core::compression::{Compressor, Effort};
use cvmfs_core::hash::Algorithm;
use walkdir::WalkDir;

fn main() -> Result<(), Box<dyn Error>> {
    let Some(directory) = std::env::args().skip(1).find(|argument| !argument.starts_with('-')) else {
        return Err("usage: floor DIRECTORY".into());
    };
    let files = read(&directory)?;
    let pieces: Vec<&[u8]> = files.iter().flat_map(|file| cut(file)).collect();

    let start = Instant::now();
    let stored = compress_and_hash(&pieces);
    let seconds = start.elapsed().as_secs_f64();
    let plain: usize = files.iter().map(Vec::len).sum();
    println!("{}", serde_json::json!({ "plain": plain, "stored": stored, "seconds": seconds }));
    Ok(())
}

/// Reads all regular files below a directory.
fn read(directory: &str) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in WalkDir::new(directory) {
        let entry = entry?;
        if entry.file_type().is_file() {
            files.push(fs::read(entry.path())?);
        }
    }
    Ok(files)
}

/// Cuts a file as an ingest does, roughly: where exactly makes no difference here.
fn cut(file: &[u8]) -> std::slice::Chunks<'_, u8> {
    let largest = usize::try_from(ChunkSizes::default().max()).expect("some megabytes");
    file.chunks(largest)
}

/// Returns the number of compressed bytes.
fn compress_and_hash(pieces: &[&[u8]]) -> u64 {
    let (next, stored) = (AtomicUsize::new(0), AtomicU64::new(0));
    let work = || {
        let mut compressor = Compressor::new(Effort::default());
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let compressed = compressor.compress(piece);
            std::hint::black_box(Algorithm::Sha1.hash(compressed));
            stored.fetch_add(compressed.len() as u64, Ordering::Relaxed);
        }
    };
    thread::scope(|threads| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            threads.spawn(work);
        }
    });
    stored.into_inner()
}
