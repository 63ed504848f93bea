//! The state of a walk: which catalogs are not complete, and what each of them waits for.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use cvmfs_core::catalog::NeededObject;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::fetch::queue::Fetched;
use cvmfs_core::hash::{ContentHash, ObjectId};

use super::super::failures::Failures;
use super::{Counts, Ending, Shared};

#[derive(Default)]
pub(super) struct State {
    pub(super) nodes: HashMap<u64, Node>,
    pub(super) by_catalog: HashMap<ContentHash, u64>,
    pub(super) last_node: u64,
    pub(super) jobs: Vec<Job>,
    /// Catalogs whose trees are in the target, as far as this walk saw.
    pub(super) complete: HashSet<ContentHash>,
    /// Those among them that are not entered as proven.
    pub(super) fresh: Vec<ContentHash>,
    /// Catalogs whose trees cannot be completed.
    pub(super) broken: HashMap<ContentHash, Ending>,
    /// Objects on their way, each with the nodes that wait for it.
    pub(super) asked: HashMap<ObjectId, Vec<u64>>,
    /// Objects that cannot be had.
    pub(super) lost: HashMap<ObjectId, Ending>,
    pub(super) endings: HashMap<ContentHash, Ending>,
    pub(super) failures: Failures,
    pub(super) counts: Counts,
    /// What makes going on impossible.
    pub(super) fatal: Option<Error>,
    pub(super) is_over: bool,
}

/// A catalog that is not complete.
pub(super) struct Node {
    pub(super) catalog: ContentHash,
    pub(super) size: Option<u64>,
    pub(super) base: Option<ContentHash>,
    pub(super) is_root: bool,
    /// Whether its object is in the target already.
    pub(super) is_stored: bool,
    /// Whether a damaged copy of it was found and thrown away.
    pub(super) was_damaged: bool,
    pub(super) parents: Vec<u64>,
    /// Objects and nested catalogs that are not there yet, and one for the scan.
    pub(super) waits_for: u64,
    pub(super) ending: Ending,
}

pub(super) enum Job {
    /// Open the catalog, or have it fetched.
    Scan(u64),
    /// All that it reaches is there.
    Store(u64),
}

impl Shared {
    /// Makes a node for a catalog that is not complete; its parent waits for it.
    pub(super) fn enter(
        &self,
        parent: Option<u64>,
        catalog: ContentHash,
        size: Option<u64>,
        base: Option<ContentHash>,
    ) -> Result<()> {
        let is_complete = self.is_complete(catalog)?;
        let mut state = self.state();
        let state = &mut *state;
        let known = if is_complete { Some(Ending::Complete) } else { state.broken.get(&catalog).copied() };
        if let Some(ending) = known {
            match parent.and_then(|parent| state.nodes.get_mut(&parent)) {
                Some(parent) => parent.ending = parent.ending.max(ending),
                None => drop(state.endings.insert(catalog, ending)),
            }
            return Ok(());
        }
        if let Some(parent) = parent.and_then(|parent| state.nodes.get_mut(&parent)) {
            parent.waits_for += 1;
        }
        if let Some(node) = state.by_catalog.get(&catalog).and_then(|node| state.nodes.get_mut(node)) {
            node.parents.extend(parent);
            node.is_root |= parent.is_none();
            return Ok(());
        }
        state.last_node += 1;
        let number = state.last_node;
        let node = Node {
            catalog,
            size,
            base,
            is_root: parent.is_none(),
            is_stored: false,
            was_damaged: false,
            parents: parent.into_iter().collect(),
            waits_for: 1,
            ending: Ending::Complete,
        };
        state.nodes.insert(number, node);
        state.by_catalog.insert(catalog, number);
        state.endings.remove(&catalog);
        state.jobs.push(Job::Scan(number));
        self.changed.notify_all();
        Ok(())
    }

    /// Has a node wait for objects, and returns those for which nobody did: from here on nobody else looks for them.
    pub(super) fn ask(&self, number: u64, needed: &[NeededObject]) -> Vec<NeededObject> {
        let mut state = self.state();
        let State { nodes, asked, lost, counts, .. } = &mut *state;
        counts.looked_up += needed.len() as u64;
        let Some(node) = nodes.get_mut(&number) else { return Vec::new() };
        let mut new = Vec::with_capacity(needed.len());
        for object in needed {
            if let Some(ending) = lost.get(&object.id) {
                node.ending = node.ending.max(*ending);
                continue;
            }
            node.waits_for += 1;
            match asked.entry(object.id) {
                Entry::Occupied(mut askers) => askers.get_mut().push(number),
                Entry::Vacant(free) => {
                    free.insert(vec![number]);
                    new.push(*object);
                }
            }
        }
        new
    }

    /// Takes what became of a request.
    pub(super) fn take(&self, fetched: Fetched, is_catalog: bool) {
        let Fetched { id, token, result } = fetched;
        let mut state = self.state();
        match result {
            Ok(bytes) => {
                state.counts.objects += 1;
                state.counts.bytes += bytes;
                state.counts.catalogs += u64::from(is_catalog);
                if is_catalog {
                    state.jobs.push(Job::Scan(token));
                    drop(state);
                    self.changed.notify_all();
                    return;
                }
                let askers = state.asked.remove(&id).unwrap_or_default();
                drop(state);
                self.arrived(askers.into_iter().map(|node| (node, Ending::Complete)).collect());
            }
            Err(error @ (Error::Io { .. } | Error::Cancelled)) => {
                state.fatal.get_or_insert(error);
                drop(state);
                self.changed.notify_all();
            }
            Err(error) => {
                let ending = if error.is_not_found() { Ending::Missing } else { Ending::Failed };
                state.lost.insert(id, ending);
                state.failures.add(id, &error);
                let askers = if is_catalog { vec![token] } else { state.asked.remove(&id).unwrap_or_default() };
                drop(state);
                self.arrived(askers.into_iter().map(|node| (node, ending)).collect());
            }
        }
    }

    /// For each of these nodes, one thing that it waited for has come, or will not come.
    pub(super) fn arrived(&self, mut arrived: Vec<(u64, Ending)>) {
        let mut state = self.state();
        let state = &mut *state;
        // Whoever waits is woken for what concerns him, not for each object.
        let mut is_news = false;
        while let Some((number, ending)) = arrived.pop() {
            let Some(node) = state.nodes.get_mut(&number) else { continue };
            node.ending = node.ending.max(ending);
            node.waits_for -= 1;
            if node.waits_for > 0 {
                continue;
            }
            if node.ending == Ending::Complete && !node.is_stored && !node.is_root {
                node.waits_for = 1;
                state.jobs.push(Job::Store(number));
                is_news = true;
                continue;
            }
            let Some(node) = state.nodes.remove(&number) else { continue };
            state.by_catalog.remove(&node.catalog);
            if node.ending == Ending::Complete {
                state.complete.insert(node.catalog);
                if node.is_stored {
                    state.fresh.push(node.catalog);
                }
            } else {
                state.broken.insert(node.catalog, node.ending);
            }
            if node.is_root {
                state.endings.insert(node.catalog, node.ending);
                is_news = true;
            }
            arrived.extend(node.parents.into_iter().map(|parent| (parent, node.ending)));
        }
        if is_news {
            self.changed.notify_all();
        }
    }
}
