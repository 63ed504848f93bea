//! What a repository has of images, and what of it nobody refers to.
//!
//! Everything is computed from catalogs and from the documents under `.metadata`. What cannot be read ends the work:
//! garbage is what is known not to be needed, never what is not known to be.

use std::collections::{BTreeMap, BTreeSet};

use cvmfs_core::catalog::{AUTO_MARKER, MARKER};
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::entry::EntryKind;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::{RepoPath, RepositoryName, display};
use cvmfs_core::tree::Tree;
use serde::Serialize;

use super::Platform;
use super::digest::Digest;
use super::layout::bookkeeping::Record;
use super::layout::podman::{self, Links, Store};
use super::layout::{self, FlatPlace, Generated, LayerPlace, NamePlace};
use super::library::read_document;
use super::manifest::{self, Content};

/// An image that the repository has under a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Named {
    /// The name: `registry/repository:tag`, with a directory of its platform in front if there are several.
    pub name: String,
    /// The digest of the manifest.
    pub digest: String,
    /// The digest of the configuration.
    pub config: String,
    /// The platform; empty if another program converted it.
    pub platform: String,
    /// Number of layers.
    pub layers: usize,
    /// Bytes of the layers without compression; unknown if another program converted it.
    pub size: Option<u64>,
    /// When it was converted; unknown if another program did.
    pub converted: Option<String>,
    /// The blobs of the layers.
    #[serde(skip)]
    blobs: Vec<Digest>,
    /// Where it is written down.
    #[serde(skip)]
    metadata: RepoPath,
}

/// What a repository has of images.
#[derive(Debug)]
pub struct Inventory {
    /// Images by name, in tree order.
    pub images: Vec<Named>,
    /// Trees by the digests of configurations.
    flat: BTreeMap<String, RepoPath>,
    /// Layers by the digests of their blobs.
    layers: BTreeMap<String, RepoPath>,
    /// Trees that links lead to.
    linked: BTreeSet<RepoPath>,
    podman: Option<(Vec<u8>, Vec<u8>)>,
}

/// Trees and layers that nothing refers to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Garbage {
    /// Root file systems.
    pub flat: Vec<String>,
    /// Layers.
    pub layers: Vec<String>,
    /// Images of podman's store.
    pub podman: Vec<String>,
}

impl Inventory {
    /// Looks through a tree.
    pub fn read(tree: &mut Tree, repository: &RepositoryName) -> Result<Self> {
        let images = named(tree)?;
        let (flat, layers) = (numbered(tree, &FlatPlace::all())?, numbered(tree, &LayerPlace::all())?);
        let linked = linked(tree, repository)?;
        let lists = (read_document(tree, &podman::images_file())?, read_document(tree, &podman::layers_file())?);
        let podman = lists.0.zip(lists.1);
        Ok(Self { images, flat, layers, linked, podman })
    }

    /// The images that have one of the names, and those of its platforms.
    pub fn named<'a>(&'a self, names: &'a BTreeSet<String>) -> impl Iterator<Item = &'a Named> {
        self.images.iter().filter(|image| names.contains(image.plain_name()))
    }

    /// Takes images away from those who look for them by name: their links, what is written down about them, and their
    /// names in podman's store.
    pub fn unname(&self, gone: &[&Named], tree: &mut Tree, now: UnixSeconds) -> Result<Vec<Generated>> {
        let mut paths = Vec::new();
        let mut podman_names = Vec::new();
        let stays = |name: &str| {
            self.images
                .iter()
                .any(|image| image.plain_name() == name && !gone.iter().any(|gone| gone.name == image.name))
        };
        for image in gone {
            let plain = image.plain_name();
            let place = NamePlace::at(plain.parse()?);
            paths.extend([image.metadata.clone(), image.name.parse()?]);
            // The links that lead to several platforms.
            paths.extend(place.aliases().chain([place.link().clone()]));
            podman_names.extend(podman_names_of(plain, &stays));
        }
        let mut entries = removals(paths, tree)?;
        if let Some(mut store) = self.store()? {
            store.remove_names(&podman_names);
            entries.extend(store.finish(now));
        }
        Ok(entries)
    }

    /// What nothing refers to.
    pub fn garbage(&self) -> Result<Garbage> {
        let configs: BTreeSet<&str> = self.images.iter().map(|image| &image.config[..]).collect();
        let is_used = |hex: &str| configs.contains(&*format!("sha256:{hex}"));
        let flat: Vec<String> = self
            .flat
            .iter()
            .filter(|(hex, path)| !is_used(hex) && !self.is_linked(path))
            .map(|(hex, _)| hex.clone())
            .collect();
        let used: BTreeSet<String> = self.images.iter().flat_map(|image| &image.blobs).map(Digest::hex).collect();
        let layers = self.layers.keys().filter(|hex| !used.contains(*hex)).cloned().collect();
        let podman = match self.store()? {
            Some(store) => {
                let unused = store.images().into_iter().filter(|(id, _)| !is_used(&id.hex()));
                unused.map(|(id, _)| id.hex()).collect()
            }
            None => Vec::new(),
        };
        Ok(Garbage { flat, layers, podman })
    }

    /// What removes garbage.
    pub fn remove(&self, garbage: &Garbage, tree: &mut Tree, now: UnixSeconds) -> Result<Vec<Generated>> {
        let flat = garbage.flat.iter().filter_map(|hex| self.flat.get(hex));
        let layers = garbage.layers.iter().filter_map(|hex| self.layers.get(hex));
        let mut entries = removals(flat.chain(layers).cloned().collect(), tree)?;
        if let Some(mut store) = self.store()? {
            let ids: Vec<Digest> =
                garbage.podman.iter().map(|hex| format!("sha256:{hex}").parse()).collect::<Result<_>>()?;
            store.remove(&ids);
            entries.extend(store.finish(now));
        }
        Ok(entries)
    }

    /// Whether a link leads to a directory, or into it.
    fn is_linked(&self, directory: &RepoPath) -> bool {
        self.linked.iter().any(|place| place.starts_with(directory))
    }

    fn store(&self) -> Result<Option<Store>> {
        let open = |(images, layers): &(Vec<u8>, Vec<u8>)| Store::open(Some(images), Some(layers), Links::Relative);
        self.podman.as_ref().map(open).transpose()
    }
}

impl Named {
    /// The name without the directory of its platform.
    pub fn plain_name(&self) -> &str {
        let rest = self.name.strip_prefix(".multiarch/").and_then(|rest| rest.split_once('/'));
        rest.map_or(&self.name, |(_, name)| name)
    }
}

/// What podman calls an image, but for names of images that stay.
fn podman_names_of(name: &str, stays: &dyn Fn(&str) -> bool) -> Vec<String> {
    // A name that has its digest in the place of the tag.
    let name = name.replacen(":sha256:", "@sha256:", 1);
    let Ok(image) = name.parse::<super::reference::Reference>() else { return Vec::new() };
    let Ok(reference) = layout::Reference::of(&image) else { return Vec::new() };
    let mut names = Vec::from_iter(podman::name(&image.registry, &image.repository, reference));
    if let Some((registry, repository)) = podman::alias(&image.registry, &image.repository) {
        let place = NamePlace::new(registry, &repository, reference);
        if place.is_ok_and(|place| !stays(&display(place.link().as_bytes()))) {
            names.extend(podman::name(registry, &repository, reference));
        }
    }
    names
}

/// What removes paths, and the directories that are empty without them.
fn removals(paths: Vec<RepoPath>, tree: &mut Tree) -> Result<Vec<Generated>> {
    let mut gone: BTreeSet<RepoPath> = paths.iter().cloned().collect();
    let mut waiting = paths.clone();
    let mut emptied = Vec::new();
    while let Some(directory) = waiting.pop().and_then(|path| path.parent()) {
        if directory.is_root() || gone.contains(&directory) || tree.find(&directory)?.is_none() {
            continue;
        }
        let mut rows = tree.list(&directory)?.into_iter();
        let is_marker = |name: &[u8]| name == MARKER || name == AUTO_MARKER;
        if rows.all(|row| is_marker(&row.name) || directory.child(&row.name).is_ok_and(|path| gone.contains(&path))) {
            gone.insert(directory.clone());
            waiting.push(directory.clone());
            emptied.push(directory);
        }
    }
    Ok(paths.into_iter().chain(emptied).map(|path| Generated::Remove { path }).collect())
}

/// All images that are written down.
fn named(tree: &mut Tree) -> Result<Vec<Named>> {
    let root = layout::metadata_root();
    if tree.find(&root)?.is_none() {
        return Ok(Vec::new());
    }
    let mut manifests = Vec::new();
    tree.walk(&root, &mut |path, row| {
        if row.name == b"manifest.json" && !row.entry.is_directory() {
            manifests.push(path.clone());
        }
        Ok(())
    })?;
    manifests.iter().map(|manifest| read_named(tree, &root, manifest)).collect()
}

fn read_named(tree: &mut Tree, root: &RepoPath, path: &RepoPath) -> Result<Named> {
    let place = path.to_string();
    let metadata = path.parent().unwrap_or_default();
    let name = metadata.relative_to(root).unwrap_or_default();
    let bytes = read_document(tree, path)?.ok_or_else(|| Error::not_found(&*place))?;
    let Content::Manifest(parsed) = manifest::parse(&place, &bytes, None)? else {
        return Err(Error::malformed(place, "not the manifest of a single image"));
    };
    let record_path = metadata.child(b"image.json")?;
    let record = read_document(tree, &record_path)?
        .map(|bytes| Record::parse(&record_path.to_string(), &bytes))
        .transpose()?
        .filter(|record| record.config == parsed.config.digest);
    let platform = record.as_ref().map_or_else(String::new, |record| Platform::to_string(&record.platform));
    Ok(Named {
        name: display(name.as_bytes()),
        digest: Digest::of(&bytes).to_string(),
        config: parsed.config.digest.to_string(),
        platform,
        layers: parsed.layers.len(),
        size: record.as_ref().map(|record| record.layers.iter().map(|layer| layer.size).sum()),
        converted: record.map(|record| record.converted.iso()),
        blobs: parsed.layers.iter().map(|layer| layer.digest).collect(),
        metadata,
    })
}

/// The directories `<xx>/<digest>` in a directory, by the digits of the digest.
fn numbered(tree: &mut Tree, root: &RepoPath) -> Result<BTreeMap<String, RepoPath>> {
    let mut found = BTreeMap::new();
    if tree.find(root)?.is_none() {
        return Ok(found);
    }
    for directory in tree.list(root)?.into_iter().filter(|row| row.entry.is_directory()) {
        let directory = root.child(&directory.name)?;
        for row in tree.list(&directory)?.into_iter().filter(|row| row.entry.is_directory()) {
            let name = display(&row.name);
            if format!("sha256:{name}").parse::<Digest>().is_ok() {
                found.insert(name, directory.child(&row.name)?);
            }
        }
    }
    Ok(found)
}

/// The places among the trees that links from elsewhere in the repository lead to.
fn linked(tree: &mut Tree, repository: &RepositoryName) -> Result<BTreeSet<RepoPath>> {
    let mut found = BTreeSet::new();
    let trees = FlatPlace::all();
    // In there are links for programs within images, and those of podman's store, which has its own list.
    let images = [trees.clone(), LayerPlace::all(), podman::root()];
    let mount = format!("/cvmfs/{repository}/");
    tree.walk_into(&RepoPath::root(), &mut |path, row| {
        if let EntryKind::Symlink { target } = &row.entry.kind {
            let place = match target.strip_prefix(mount.as_bytes()) {
                Some(below) => resolve(&RepoPath::root(), below),
                None => resolve(&path.parent().unwrap_or_default(), target),
            };
            found.extend(place.filter(|place| place.starts_with(&trees)));
        }
        Ok(!images.contains(path))
    })?;
    Ok(found)
}

/// Where a relative link in a directory leads to; `None` if out of the repository.
fn resolve(directory: &RepoPath, target: &[u8]) -> Option<RepoPath> {
    if target.starts_with(b"/") {
        return None;
    }
    let mut path = directory.clone();
    for name in target.split(|&byte| byte == b'/') {
        path = match name {
            b"" | b"." => path,
            b".." => path.parent()?,
            _ => path.child(name).ok()?,
        };
    }
    Some(path)
}
