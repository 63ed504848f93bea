//! Small files that are replaced as a whole and survive the end of the machine's power.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::error::{Error, IoContext as _, Result};

/// Replaces a file, or makes it. At every instant it has the old content or the new one; when this returns, the new one, even
/// if power fails. The umask says who may read it.
///
/// # Errors
/// `Io` if the directory does not exist or cannot be written.
pub fn replace(file: &Path, content: &[u8]) -> Result<()> {
    write(file, content, 0o666, false)
}

/// The same for a file that everybody may read, whatever the umask says.
///
/// # Errors
/// Those of [`replace`].
pub fn replace_public(file: &Path, content: &[u8]) -> Result<()> {
    write(file, content, 0o644, true)
}

fn write(file: &Path, content: &[u8], mode: u32, is_exact: bool) -> Result<()> {
    let directory = directory_of(file);
    let permissions = Permissions::from_mode(mode);
    let new = tempfile::Builder::new().prefix(".new-").permissions(permissions.clone()).tempfile_in(directory);
    let mut new = new.at(directory)?;
    new.write_all(content).at(file)?;
    if is_exact {
        new.as_file().set_permissions(permissions).at(file)?;
    }
    new.as_file().sync_all().at(file)?;
    new.persist(file).map_err(|error| Error::io(file, error.error))?;
    sync_directory(directory)
}

/// Makes durable which files a directory has, and what they are called.
///
/// # Errors
/// `Io` if that is not possible.
pub fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory).and_then(|directory| directory.sync_all()).at(directory)
}

fn directory_of(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_else_stays() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        for content in [&b"first"[..], b"second"] {
            replace(&file, content).unwrap();
            assert_eq!(std::fs::read(&file).unwrap(), content);
        }
        replace_public(&file, b"third").unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
        // Nothing of a failure stays, either.
        assert!(replace(directory.path(), b"no file").is_err());
        assert!(replace(&directory.path().join("none/file"), b"").is_err());
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
    }
}
