//! A storage that fails once, at the operation that it is told to.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::hash::ObjectId;
use cvmfs_core::storage::{Key, LocalStore, NamedFile, Put, ReadStore, StagedObject, WriteStore};

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing was done.
    Before,
    /// It was done, and nobody is told.
    After,
    /// The disk is full after half of it: the half stays under a temporary name, as after a crash.
    Torn,
    /// Not a failure: fewer bytes are read or written than asked for.
    Short,
}

/// Where and how to fail, and whether it happened.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The operation that fails, from 1; 0 for none.
    at: u64,
    fault: Fault,
    /// Operations so far.
    count: AtomicU64,
    /// The operation that failed.
    struck: Mutex<Option<&'static str>>,
}

/// What happens to one operation.
#[derive(PartialEq, Eq)]
enum Fate {
    Good,
    Bad(Fault),
}

impl Plan {
    pub(crate) fn new(at: u64, fault: Fault) -> Arc<Self> {
        Arc::new(Self { at, fault, count: AtomicU64::new(0), struck: Mutex::new(None) })
    }

    /// Operations that were asked for.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// The operation that failed, if it was reached.
    pub(crate) fn struck(&self) -> Option<&'static str> {
        *self.struck.lock().unwrap()
    }

    fn fate(&self, operation: &'static str) -> Fate {
        if self.count.fetch_add(1, Ordering::SeqCst) + 1 != self.at {
            return Fate::Good;
        }
        *self.struck.lock().unwrap() = Some(operation);
        Fate::Bad(self.fault)
    }

    /// Runs an operation that has no halves.
    fn run<T>(&self, operation: &'static str, run: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.fate(operation) {
            Fate::Good | Fate::Bad(Fault::Short) => run(),
            Fate::Bad(Fault::After) => run().and_then(|_| Err(failure(operation))),
            Fate::Bad(Fault::Before | Fault::Torn) => Err(failure(operation)),
        }
    }
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(28)
}

fn failure(operation: &str) -> Error {
    Error::io(format!("injected into {operation}"), no_space())
}

/// A local storage with a plan.
#[derive(Debug)]
pub(crate) struct FaultStore {
    pub(crate) store: LocalStore,
    pub(crate) plan: Arc<Plan>,
}

impl FaultStore {
    /// Leaves half of some bytes as a process that died does.
    fn tear(&self, bytes: &[u8]) {
        let path = self.store.root().join("data/txn/torn");
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    }
}

impl ReadStore for FaultStore {
    fn describe(&self, key: &Key) -> String {
        self.store.describe(key)
    }

    fn read(&self, key: &Key) -> Result<Vec<u8>> {
        self.plan.run("read", || self.store.read(key))
    }

    fn open(&self, key: &Key) -> Result<Box<dyn Read + Send>> {
        let reader = self.plan.run("open", || self.store.open(key))?;
        Ok(Box::new(FaultReader { reader, plan: Arc::clone(&self.plan) }))
    }

    fn size(&self, key: &Key) -> Result<Option<u64>> {
        self.plan.run("size", || self.store.size(key))
    }
}

impl WriteStore for FaultStore {
    fn put(&self, id: &ObjectId, stored: &[u8]) -> Result<Put> {
        match self.plan.fate("put") {
            Fate::Good | Fate::Bad(Fault::Short) => self.store.put(id, stored),
            Fate::Bad(Fault::Before) => Err(failure("put")),
            Fate::Bad(Fault::After) => self.store.put(id, stored).and_then(|_| Err(failure("put"))),
            Fate::Bad(Fault::Torn) => {
                self.tear(stored);
                Err(failure("put"))
            }
        }
    }

    fn reuse(&self, id: &ObjectId, stored_size: u64) -> Result<bool> {
        self.plan.run("reuse", || self.store.reuse(id, stored_size))
    }

    fn stage(&self) -> Result<Box<dyn StagedObject>> {
        let staged = self.plan.run("stage", || self.store.stage())?;
        Ok(Box::new(FaultStaged { staged, plan: Arc::clone(&self.plan) }))
    }

    fn discard(&self, id: &ObjectId) -> Result<()> {
        self.plan.run("discard", || self.store.discard(id))
    }

    fn write(&self, file: NamedFile, bytes: &[u8]) -> Result<()> {
        let operation = match file {
            NamedFile::Manifest => "write manifest",
            NamedFile::Reflog => "write reflog",
            _ => "write",
        };
        match self.plan.fate(operation) {
            Fate::Good | Fate::Bad(Fault::Short) => self.store.write(file, bytes),
            Fate::Bad(Fault::Before) => Err(failure(operation)),
            Fate::Bad(Fault::After) => self.store.write(file, bytes).and_then(|()| Err(failure(operation))),
            Fate::Bad(Fault::Torn) => {
                self.tear(bytes);
                Err(failure(operation))
            }
        }
    }

    fn remove(&self, file: NamedFile) -> Result<()> {
        self.plan.run("remove", || self.store.remove(file))
    }

    fn put_shortcut(&self, id: &ObjectId) -> Result<()> {
        self.plan.run("put shortcut", || self.store.put_shortcut(id))
    }

    fn flush(&self) -> Result<()> {
        // The real one flushes the whole machine's file system, which is of no use here and takes long.
        self.plan.run("flush", || Ok(()))
    }

    fn remove_abandoned(&self, before: UnixSeconds) -> Result<u64> {
        self.plan.run("remove abandoned", || self.store.remove_abandoned(before))
    }
}

struct FaultReader {
    reader: Box<dyn Read + Send>,
    plan: Arc<Plan>,
}

impl Read for FaultReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.plan.fate("read of an open file") {
            Fate::Good => self.reader.read(buffer),
            Fate::Bad(Fault::Short) => {
                let half = buffer.len().div_ceil(2);
                self.reader.read(&mut buffer[..half])
            }
            Fate::Bad(_) => Err(io::Error::from_raw_os_error(5)),
        }
    }
}

#[derive(Debug)]
struct FaultStaged {
    staged: Box<dyn StagedObject>,
    plan: Arc<Plan>,
}

impl Write for FaultStaged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let half = &bytes[..bytes.len().div_ceil(2)];
        match self.plan.fate("staged write") {
            Fate::Good => self.staged.write(bytes),
            Fate::Bad(Fault::Short) => self.staged.write(half),
            Fate::Bad(Fault::Before) => Err(no_space()),
            Fate::Bad(Fault::After) => self.staged.write_all(bytes).and(Err(no_space())),
            Fate::Bad(Fault::Torn) => self.staged.write_all(half).and(Err(no_space())),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.staged.flush()
    }
}

impl StagedObject for FaultStaged {
    fn finish(self: Box<Self>, id: &ObjectId) -> Result<Put> {
        let Self { staged, plan } = *self;
        plan.run("staged finish", || staged.finish(id))
    }
}

/// Copies a directory tree.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy_tree(&entry.path(), &target);
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path()).unwrap(), target).unwrap();
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
