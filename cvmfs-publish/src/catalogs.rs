//! The catalogs of a revision.

use cvmfs_core::error::Result;
use cvmfs_core::tree::Tree;
use serde::Serialize;

/// One catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CatalogInfo {
    /// Where it is mounted, escaped where it is not printable.
    pub path: String,
    /// Catalogs above it.
    pub depth: usize,
    /// Its hash.
    pub hash: String,
    /// Bytes of its database, uncompressed.
    pub bytes: u64,
    /// Its entries, those of catalogs below it not counted.
    pub entries: u64,
    /// Plain bytes of the files in it.
    pub file_bytes: u64,
    /// Catalogs right below it.
    pub nested: u64,
}

/// Lists all catalogs: one before those below it, those in path order.
pub fn list_catalogs(tree: &mut Tree) -> Result<Vec<CatalogInfo>> {
    let mut catalogs = Vec::new();
    tree.walk_catalogs(&mut |depth, nested, catalog| {
        let own = catalog.statistics()?.own;
        catalogs.push(CatalogInfo {
            path: nested.path.to_string(),
            depth,
            hash: nested.hash.to_string(),
            bytes: catalog.file_size()?,
            entries: own.entries(),
            file_bytes: own.file_size,
            nested: own.nested,
        });
        Ok(())
    })?;
    Ok(catalogs)
}
