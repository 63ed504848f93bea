//! A small repository for examples that read one.

use std::error::Error;
use std::io::Cursor;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::path::RepositoryName;
use cvmfs_core::progress::{Cancel, Silent};
use cvmfs_core::server::ServerRoot;
use cvmfs_ingest::source::Input;
use cvmfs_publish::mkfs::{self, mkfs};

/// Makes a repository below `directory` with one file, `/tools/hello`, in its second revision.
pub(crate) fn publish(directory: &Path) -> Result<(ServerRoot, RepositoryName, UnixSeconds), Box<dyn Error>> {
    let root = ServerRoot::new(directory)?;
    let name: RepositoryName = "software.example.org".parse()?;
    let now = UnixSeconds(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().try_into()?);
    mkfs(&root, &name, &mkfs::Options::new(now))?;

    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(6);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, "hello", &b"hello\n"[..])?;
    let input = Input::stream("hello.tar", Cursor::new(tar.into_inner()?));

    let publisher = Publisher::open(&root, &name)?;
    let options = cvmfs_ingest::Options::new(&publisher.config, "tools".parse()?, now)?;
    cvmfs_ingest::ingest(&publisher, vec![input], &options, &Silent, &Cancel::new())?;
    Ok((root, name, now))
}
