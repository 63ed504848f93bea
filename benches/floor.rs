//! The work that an ingest cannot avoid: deflate and SHA-1 of every file of a tree, on all cores, from memory to nowhere.
//!
//! `cargo bench --bench floor -- DIRECTORY` prints a line of JSON with the plain bytes, the compressed bytes, the
//! seconds and the CPU seconds. Reading the files is not part of these.
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

    let (start, start_cpu) = (Instant::now(), cpu_seconds()?);
    let stored = compress_and_hash(&pieces);
    let (seconds, cpu_seconds) = (start.elapsed().as_secs_f64(), cpu_seconds()? - start_cpu);
    let plain: usize = files.iter().map(Vec::len).sum();
    let result =
        serde_json::json!({ "plain": plain, "stored": stored, "seconds": seconds, "cpu_seconds": cpu_seconds });
    println!("{result}");
    Ok(())
}

/// What this process has used so far, as Linux counts it: in hundredths of a second.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/stat")?;
    // The name of the program, in brackets, may hold anything; user and system time are the 12th and 13th field after it.
    let fields = status.rsplit(')').next().unwrap_or_default().split_whitespace();
    let times: Vec<f64> = fields.skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(times.iter().sum::<f64>() / 100.0)
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
