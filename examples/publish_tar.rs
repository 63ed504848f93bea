//! Makes a repository in a temporary directory and publishes a tarball into it.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::io::{self, Cursor};
use std::time::{SystemTime, UNIX_EPOCH};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::path::RepositoryName;
use cvmfs_core::progress::{Cancel, Silent};
use cvmfs_core::server::ServerRoot;
use cvmfs_ingest::source::Input;
use cvmfs_publish::mkfs::{self, mkfs};

fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let root = ServerRoot::new(directory.path())?;
    let name: RepositoryName = "software.example.org".parse()?;
    let now = UnixSeconds(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().try_into()?);

    let made = mkfs(&root, &name, &mkfs::Options::new(now))?;
    println!("revision {} of {} is empty: {}", made.revision, made.name, made.root_hash);

    let publisher = Publisher::open(&root, &name)?;
    let mut options = cvmfs_ingest::Options::new(&publisher.config, "tools/1.0".parse()?, now)?;
    options.source.catalog = true;
    options.publication.commit.tag = Some("v1.0".parse()?);
    let input = Input::stream("tools.tar", Cursor::new(tarball()?));
    let outcome = cvmfs_ingest::ingest(&publisher, vec![input], &options, &Silent, &Cancel::new())?;
    let commit = outcome.finished.revision().ok_or("the changes did not go to a transaction")?;
    println!("revision {} has {} more entries", commit.revision, commit.entries.added);
    assert_eq!(commit.entries.added, 6);

    // The same again: the tree is as it should be, so there is no new revision.
    let input = Input::stream("tools.tar", Cursor::new(tarball()?));
    let again = cvmfs_ingest::ingest(&publisher, vec![input], &options, &Silent, &Cancel::new())?;
    assert!(again.finished.revision().is_some_and(|commit| !commit.changed));
    Ok(())
}

/// A tarball with a script and a text.
fn tarball() -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, mode, content) in [("bin/hello", 0o755, "#!/bin/sh\necho hello\n"), ("README", 0o644, "Says hello.\n")] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content.as_bytes())?;
    }
    tar.into_inner()
}
