//! What is done with one catalog: it is opened or fetched, what it reaches is looked up, and it is stored in the end.

use std::io::{self, Write as _};

use cvmfs_core::catalog::{Catalog, NeededObject};
use cvmfs_core::compression::Compression;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::hash::{ContentHash, ObjectId};
use cvmfs_core::object::{self, VerifyingReader};
use cvmfs_core::storage::{Key, ReadStore as _, WriteStore};

use super::{Ending, Setting, Shared};

/// Objects that are looked up at a time.
const LOOK_UP: usize = 256;

impl Shared {
    /// Looks up what a catalog reaches and has the rest fetched.
    pub(super) fn scan(&self, number: u64) -> Result<()> {
        let (hash, size, base) = {
            let state = self.state();
            let Some(node) = state.nodes.get(&number) else { return Ok(()) };
            (node.catalog, node.size, node.base)
        };
        let id = ObjectId::catalog(hash);
        let limit = self.size_limit(size);
        let is_stored = self.is_stored(hash)?;
        let opened = if is_stored {
            self.setting.target.open_catalog(hash, limit)
        } else if self.setting.waiting.size(&id.into())?.is_some_and(|size| size > 0) {
            Catalog::fetch_limited(&*self.setting.waiting, hash, &self.setting.scratch, limit)
        } else {
            return self.catalog_queue.request(id, number);
        };
        let scanned = opened.and_then(|catalog| {
            if let Some(node) = self.state().nodes.get_mut(&number) {
                node.is_stored = is_stored;
            }
            self.scan_catalog(number, &catalog, base)
        });
        match scanned {
            Ok(()) => self.arrived(vec![(number, Ending::Complete)]),
            // Our own troubles are not the source's.
            Err(error @ (Error::Io { .. } | Error::Cancelled)) => return Err(error),
            Err(error) => self.throw_away(number, is_stored, &error)?,
        }
        Ok(())
    }

    fn scan_catalog(&self, number: u64, catalog: &Catalog, base: Option<ContentHash>) -> Result<()> {
        let base = self.open_base([base, catalog.previous()?])?;
        for nested in catalog.nested()? {
            if !self.setting.selection.has_path(&nested.path) {
                continue;
            }
            let similar = base.as_ref().map(|base| base.nested_at(&nested.path)).transpose()?.flatten();
            self.enter(Some(number), nested.hash, nested.size, similar.map(|similar| similar.hash))?;
        }
        let mut needed = Vec::with_capacity(LOOK_UP);
        catalog.objects(base.as_ref(), &mut |object| {
            needed.push(object);
            if needed.len() < LOOK_UP { Ok(()) } else { self.look_up(number, &mut needed) }
        })?;
        self.look_up(number, &mut needed)
    }

    /// Opens the first of similar catalogs whose trees are complete.
    fn open_base(&self, similar: [Option<ContentHash>; 2]) -> Result<Option<Catalog>> {
        for hash in similar.into_iter().flatten() {
            if !self.is_complete(hash)? {
                continue;
            }
            let max = self.setting.max_catalog_size;
            let opened = if self.is_stored(hash)? {
                self.setting.target.open_catalog(hash, max)
            } else {
                Catalog::fetch_limited(&*self.setting.waiting, hash, &self.setting.scratch, max)
            };
            match opened {
                Ok(base) => return Ok(Some(base)),
                Err(error @ Error::Io { .. }) => return Err(error),
                // It would only have saved time.
                Err(error) => tracing::warn!(%hash, %error, "cannot read a catalog of the replica"),
            }
        }
        Ok(None)
    }

    /// Looks objects up that a node needs, has those fetched that are missing, and forgets all of them.
    fn look_up(&self, number: u64, needed: &mut Vec<NeededObject>) -> Result<()> {
        self.setting.cancel.check()?;
        let asked = self.ask(number, needed);
        needed.clear();
        let ids: Vec<ObjectId> = asked.iter().map(|object| object.id).collect();
        let have = self.setting.target.have(&ids)?;
        let mut askers = Vec::new();
        {
            let mut state = self.state();
            for (id, _) in ids.iter().zip(&have).filter(|(_, is_there)| **is_there) {
                askers.extend(state.asked.remove(id).unwrap_or_default());
            }
        }
        self.arrived(askers.into_iter().map(|node| (node, Ending::Complete)).collect());
        for (object, _) in asked.into_iter().zip(have).filter(|(_, is_there)| !is_there) {
            let queue = match (&self.plain_queue, object.compression) {
                (Some(plain), Compression::None) => plain,
                _ => &self.compressed_queue,
            };
            queue.request(object.id, number)?;
        }
        Ok(())
    }

    /// Deals with a catalog that cannot be read: a damaged copy is fetched once more, a wrong catalog is a failure.
    fn throw_away(&self, number: u64, is_stored: bool, error: &Error) -> Result<()> {
        let (id, is_second) = {
            let mut state = self.state();
            let Some(node) = state.nodes.get_mut(&number) else { return Ok(()) };
            let is_second = std::mem::replace(&mut node.was_damaged, true);
            node.is_stored = false;
            (ObjectId::catalog(node.catalog), is_second)
        };
        let store = if is_stored { self.setting.target.store(Compression::Zlib) } else { &self.setting.waiting };
        if !is_second && !is_whole(&**store, &id) {
            tracing::warn!(catalog = %id, %error, "fetching a damaged catalog again");
            store.discard(&id)?;
            return self.catalog_queue.request(id, number);
        }
        if !is_stored {
            store.discard(&id)?;
        }
        let url = self.setting.source.describe(&id.into());
        self.state().failures.add(id, &Error::malformed(url, error.to_string()));
        self.arrived(vec![(number, Ending::Failed)]);
        Ok(())
    }

    pub(super) fn store_node(&self, number: u64) -> Result<()> {
        let Some(catalog) = self.state().nodes.get(&number).map(|node| node.catalog) else { return Ok(()) };
        self.store(catalog)?;
        if let Some(node) = self.state().nodes.get_mut(&number) {
            node.is_stored = true;
        }
        self.arrived(vec![(number, Ending::Complete)]);
        Ok(())
    }

    /// Moves a catalog whose tree is complete from where it waited to the target.
    pub(super) fn store(&self, catalog: ContentHash) -> Result<()> {
        let id = ObjectId::catalog(catalog);
        let Setting { waiting, target, .. } = &self.setting;
        if self.is_stored(catalog)? {
            return Ok(());
        }
        let key = Key::Object(id);
        let place = waiting.describe(&key);
        // Invariant: what it reaches is in place before it is.
        target.store(Compression::None).finish_puts().map_err(Error::of_target)?;
        let store = target.store(Compression::Zlib);
        store.finish_puts().map_err(Error::of_target)?;
        let mut from = VerifyingReader::new(waiting.open(&key)?, id, place.clone());
        let mut to = store.stage()?;
        io::copy(&mut from, &mut to).map_err(|error| object::read_error(&place, error))?;
        to.flush().at(&place)?;
        to.finish(&id).map_err(Error::of_target)?;
        waiting.discard(&id)
    }
}

/// Whether a store has an object with the right bytes.
fn is_whole(store: &dyn WriteStore, id: &ObjectId) -> bool {
    let key = Key::Object(*id);
    let verified = |stored| io::copy(&mut VerifyingReader::new(stored, *id, store.describe(&key)), &mut io::sink());
    store.open(&key).is_ok_and(|stored| verified(stored).is_ok())
}
