//! A catalog file: everything that readers ask for comes to an end.
#![no_main]

use std::collections::VecDeque;

use cvmfs_core::catalog::Catalog;
use cvmfs_core::path::RepoPath;
use cvmfs_fuzz::scratch;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = scratch().join("catalog");
    std::fs::write(&path, data).expect("room for the input");
    let Ok(catalog) = Catalog::open(&path) else { return };
    let _ = (catalog.revision(), catalog.last_modified(), catalog.previous(), catalog.ttl(), catalog.file_size());
    let _ = (catalog.statistics(), catalog.recount(), catalog.bind_mountpoints());
    for nested in catalog.nested().into_iter().flatten().take(100) {
        let _ = catalog.nested_at(&nested.path);
    }
    let mut todo = VecDeque::from([catalog.root().unwrap_or_default()]);
    for _ in 0..200 {
        let Some(directory) = todo.pop_front() else { break };
        let _ = catalog.find(&directory);
        for row in catalog.list(&directory).into_iter().flatten() {
            assert!(row.entry.permissions <= 0o7777);
            let Ok(path) = directory.child(&row.name) else { continue };
            assert_eq!(RepoPath::from_bytes(path.as_bytes()).expect("canonical"), path);
            if row.entry.is_directory() {
                todo.push_back(path);
            }
        }
    }
});
