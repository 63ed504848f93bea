//! Deflate (libdeflate, level 6, as an ingest by default) and SHA-1 of every file of a tree, on all cores, from memory to
//! nowhere: what an ingest cannot avoid, unless it knows better than to deflate noise.
//!
//! `cargo bench --bench floor -- DIRECTORY [OBJECTS]` prints a line of JSON with the plain bytes, the compressed bytes, the
//! seconds and the CPU seconds. Reading the files is not part of these.
//!
//! With a directory for the objects, the same once more with each result written there as a file (`files`), and what
//! cannot be avoided for content that is known: BLAKE3 of it, and a look at its file (`known`).
#![expect(clippy::print_stdout, reason = "the result of a benchmark")]

use std::error::Error;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;
use std::{fs, io, thread};

use cvmfs_core::chunking::ChunkSizes;
use cvmfs_core::hash::Algorithm;
use libdeflater::{CompressionLvl, Compressor};
use walkdir::WalkDir;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let directory = arguments.next().ok_or("usage: floor DIRECTORY [OBJECTS]")?;
    let files = read(&directory)?;
    let pieces: Vec<&[u8]> = files.iter().flat_map(|file| cut(file)).collect();

    let stored = AtomicU64::new(0);
    let count = |compressed: &[u8]| {
        std::hint::black_box(Algorithm::Sha1.hash(compressed));
        stored.fetch_add(compressed.len() as u64, Ordering::Relaxed);
    };
    let floor = measure(|| {
        compress(&pieces, |compressed| {
            count(compressed);
            Ok(())
        })
    })?;
    let mut result = serde_json::json!({
        "plain": files.iter().map(Vec::len).sum::<usize>(), "stored": stored.into_inner(), "seconds": floor.0, "cpu_seconds": floor.1
    });
    if let Some(objects) = arguments.next() {
        let paths = Mutex::new(Vec::new());
        let (seconds, cpu_seconds) =
            measure(|| compress(&pieces, |compressed| write(compressed, objects.as_ref(), &paths)))?;
        result["files"] = serde_json::json!({ "seconds": seconds, "cpu_seconds": cpu_seconds });
        let paths = paths.into_inner()?;
        let (seconds, cpu_seconds) = measure(|| recognise(&pieces, &paths))?;
        result["known"] = serde_json::json!({ "seconds": seconds, "cpu_seconds": cpu_seconds });
    }
    println!("{result}");
    Ok(())
}

/// Seconds and CPU seconds of some work.
fn measure(work: impl FnOnce() -> io::Result<()>) -> Result<(f64, f64), Box<dyn Error>> {
    let (start, start_cpu) = (Instant::now(), cpu_seconds()?);
    work()?;
    Ok((start.elapsed().as_secs_f64(), cpu_seconds()? - start_cpu))
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

/// Deflates all pieces and does something with each result.
fn compress(pieces: &[&[u8]], keep: impl Fn(&[u8]) -> io::Result<()> + Sync) -> io::Result<()> {
    on_all_cores(pieces, || {
        let (mut compressor, mut compressed, keep) = (Compressor::new(CompressionLvl::default()), Vec::new(), &keep);
        move |piece| {
            let bound = compressor.zlib_compress_bound(piece.len());
            if compressed.len() < bound {
                compressed = vec![0; bound];
            }
            let size = compressor.zlib_compress(piece, &mut compressed).map_err(io::Error::other)?;
            keep(&compressed[..size])
        }
    })
}

/// Writes an object as a storage does, in one of 256 directories, unless it is there.
fn write(compressed: &[u8], objects: &Path, paths: &Mutex<Vec<PathBuf>>) -> io::Result<()> {
    let name = Algorithm::Sha1.hash(compressed).to_string();
    let path = objects.join(&name[..2]).join(&name[2..]);
    match File::options().write(true).create_new(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(objects.join(&name[..2]))?;
            File::create(&path)?.write_all(compressed)?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        file => file?.write_all(compressed)?,
    }
    paths.lock().expect("no thread has failed").push(path);
    Ok(())
}

/// Hashes all pieces and looks at a file for each.
fn recognise(pieces: &[&[u8]], paths: &[PathBuf]) -> io::Result<()> {
    let next = AtomicUsize::new(0);
    on_all_cores(pieces, || {
        |piece| {
            std::hint::black_box(blake3::hash(piece));
            fs::metadata(&paths[next.fetch_add(1, Ordering::Relaxed)]).map(drop)
        }
    })
}

/// Does something with all pieces, on all cores.
fn on_all_cores<W: FnMut(&[u8]) -> io::Result<()>>(pieces: &[&[u8]], worker: impl Fn() -> W + Sync) -> io::Result<()> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut work = worker();
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(piece)?;
        }
        Ok(())
    };
    thread::scope(|threads| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..cores).map(|_| threads.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no thread panics"))
    })
}
