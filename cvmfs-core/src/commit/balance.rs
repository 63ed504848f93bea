//! Automatic splitting of catalogs that have become too large, and merging of those that have become small.

use std::collections::BTreeMap;

use super::apply::{OpenCatalog, Pass, split_off};
use crate::catalog::{AUTO_MARKER, MARKER, Row};
use crate::entry::{Entry, Mount, Mtime};
use crate::error::{Error, Result};
use crate::path::RepoPath;
use crate::xattr::Xattrs;

impl Pass<'_> {
    /// Merges a catalog that automatic splitting had made and that has become small; gives back any other.
    pub(super) fn merge_back_if_small(&mut self, mut open: OpenCatalog) -> Result<Option<OpenCatalog>> {
        let Some(automatic) = self.context.nesting.automatic else { return Ok(Some(open)) };
        let mount = open.catalog.mount().clone();
        let auto_marker = mount.child(AUTO_MARKER)?;
        if open.catalog.count_rows()? >= automatic.min_weight || open.catalog.find(&auto_marker)?.is_none() {
            return Ok(Some(open));
        }
        open.catalog.remove(&auto_marker)?;
        open.catalog.remove(&mount.child(MARKER)?)?;
        self.merge(open)?;
        Ok(None)
    }

    /// Splits subtrees off a catalog that has become too large.
    ///
    /// The directories are visited from the leaves up. While one weighs more than half the maximum, its heaviest
    /// sub-directory becomes a nested catalog, unless that is lighter than the minimum.
    ///
    /// Source: `cvmfs/catalog_balancer_impl.h`.
    pub(super) fn balance(&mut self, open: &mut OpenCatalog) -> Result<()> {
        let Some(automatic) = self.context.nesting.automatic else { return Ok(()) };
        if open.catalog.count_rows()? <= automatic.max_weight {
            return Ok(());
        }
        let mount = open.catalog.mount().clone();
        let mut weights: BTreeMap<RepoPath, u64> = BTreeMap::new();
        for directory in open.catalog.directories(&mount, Mount::Plain)?.into_iter().rev() {
            if directory.mounted {
                weights.insert(directory.path, 1);
                continue;
            }
            let mut weight = 1;
            let mut candidates = Vec::new();
            for (name, is_directory) in open.catalog.names(&directory.path)? {
                let path = directory.path.child(&name)?;
                let child = if is_directory { weights.remove(&path).unwrap_or(1) } else { 1 };
                weight += child;
                if child >= automatic.min_weight.max(2) {
                    candidates.push((child, path));
                }
            }
            candidates.sort();
            while weight > automatic.max_weight / 2
                && let Some((heaviest, path)) = candidates.pop()
            {
                self.split_automatically(open, &path)?;
                weight -= heaviest - 1;
            }
            weights.insert(directory.path, weight);
        }
        Ok(())
    }

    fn split_automatically(&mut self, open: &mut OpenCatalog, path: &RepoPath) -> Result<()> {
        let row = open.catalog.find(path)?.ok_or_else(|| Error::not_found(path.to_string()))?;
        for name in [MARKER, AUTO_MARKER] {
            let marker = Entry {
                kind: self.context.empty_file.clone(),
                permissions: 0o600,
                mtime: Mtime::seconds(self.context.now.0),
                xattrs: Xattrs::new(),
                hidden: false,
                ..row.entry
            };
            let at = path.child(name)?;
            if open.catalog.find(&at)?.is_none() {
                self.applied.entries.add(&marker);
                open.catalog.add(&Row::new(&at, marker))?;
            }
        }
        let child = split_off(open, path, self.context.scratch)?;
        let storing = self.close_catalog(child)?;
        open.stored.extend(storing);
        Ok(())
    }
}
