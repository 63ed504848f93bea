//! Where arriving bytes go.

use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};

use tempfile::SpooledTempFile;

use crate::error::{IoContext as _, Result};

/// Objects up to this many bytes wait for their verification in memory, larger ones in a file.
const SPOOL_SIZE: usize = 1 << 20;

/// Takes the bytes of a file or object as they arrive.
///
/// The bytes are **not verified** until the fetch returns `Ok`; before that they must not be handed on. The methods
/// are called from asynchronous code, so they should be as quick as writing to a local file is.
pub trait Sink: Send {
    /// Forgets all bytes written so far; called before each attempt, the first included.
    fn restart(&mut self) -> Result<()>;

    /// Takes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;
}

impl Sink for Vec<u8> {
    fn restart(&mut self) -> Result<()> {
        self.clear();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.extend_from_slice(bytes);
        Ok(())
    }
}

/// Memory that becomes an unnamed file when it grows.
#[derive(Debug)]
pub(super) struct Spool {
    file: SpooledTempFile,
    directory: PathBuf,
}

impl Spool {
    pub(super) fn new(directory: Option<&Path>) -> Self {
        let directory = directory.map_or_else(std::env::temp_dir, Path::to_owned);
        Self { file: tempfile::spooled_tempfile_in(SPOOL_SIZE, &directory), directory }
    }

    /// Gives out what was written, from its start.
    pub(super) fn into_reader(mut self) -> Result<SpooledTempFile> {
        self.file.rewind().at(&self.directory)?;
        Ok(self.file)
    }
}

impl Sink for Spool {
    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).at(&self.directory)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).at(&self.directory)
    }
}
