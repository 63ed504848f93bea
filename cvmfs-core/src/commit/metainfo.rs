//! The descriptive JSON of a repository.
//!
//! Source: `cvmfs/server/cvmfs_server_update_repoinfo.sh`, `cvmfs/signing_tool.cc`.

use std::time::Duration;

use super::{NewRoot, PublishLock, Publisher, store_stock};
use crate::clock::UnixSeconds;
use crate::error::{Error, Result};
use crate::hash::{ContentHash, ObjectKind};
use crate::manifest::Manifest;
use crate::progress::Cancel;
use crate::repository::Selector;

/// Which text is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// Whatever is there.
    Any,
    /// The one of this hash, which somebody read; `None` if there was none.
    Exactly(Option<ContentHash>),
}

impl Publisher {
    /// Publishes a text as the descriptive JSON: the same revision, in a newly signed manifest. `None` if the repository
    /// has that text already.
    ///
    /// # Errors
    /// `Conflict` if the lock is taken for too long, or if another text is there than the one to be replaced.
    pub fn set_metainfo(
        &self,
        text: &[u8],
        replace: Replace,
        now: UnixSeconds,
        patience: Duration,
        cancel: &Cancel,
    ) -> Result<Option<Manifest>> {
        let _lock = PublishLock::acquire(&self.config.spool, patience, cancel)?;
        self.rebasing(|| {
            let head = self.head(now)?;
            let manifest = head.manifest();
            let object = store_stock(&*self.store, manifest.root_catalog.algorithm(), ObjectKind::Metainfo, text)?;
            if manifest.metainfo == Some(object.hash) {
                return Ok(None);
            }
            if let Replace::Exactly(expected) = replace
                && expected != manifest.metainfo
            {
                let what = format!("meta information of {}", self.config.name);
                return Err(Error::conflict(what, "somebody else changed it meanwhile"));
            }
            let root = NewRoot::from(head.revision(&Selector::Head)?);
            self.publish_root(Some(manifest), &root, now, Some(object), |_| Ok(())).map(Some)
        })
    }
}
