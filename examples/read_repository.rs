//! Opens a repository in a local directory, walks its tree and reads a file.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

mod sample;

use std::error::Error;
use std::sync::Arc;

use cvmfs_core::entry::EntryKind;
use cvmfs_core::path::RepoPath;
use cvmfs_core::repository::{Repository, Selector};
use cvmfs_core::server::load_master_keys;
use cvmfs_core::storage::LocalStore;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let (root, name, now) = sample::publish(directory.path())?;

    // Opening verifies whitelist, manifest and certificate; what is read later is verified against these.
    let store = Arc::new(LocalStore::open(root.storage_dir(&name))?);
    let repository = Repository::open(store, &name, &load_master_keys(&root, &name)?, now, directory.path())?;
    for tag in repository.tags()? {
        println!("revision {} is tagged {}", tag.revision, tag.name);
    }

    let mut files = Vec::new();
    let mut tree = repository.tree(&Selector::Head)?;
    tree.walk(&RepoPath::root(), &mut |path, row| {
        match &row.entry.kind {
            EntryKind::Directory(_) => println!("{path}"),
            EntryKind::File(file) => files.push((path.clone(), file.clone())),
            other => println!("{path}: {other:?}"),
        }
        Ok(())
    })?;
    for (path, file) in files {
        let mut content = String::new();
        tree.open_file(&path, &file)?.read_to_string(&mut content)?;
        println!("{path}: {content:?}");
        assert_eq!(content, "hello\n");
    }
    Ok(())
}
