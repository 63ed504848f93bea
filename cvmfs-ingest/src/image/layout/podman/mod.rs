//! The additional image store of podman: `podmanStore`.
//!
//! ```text
//! overlay/<layer id>/{diff, link, lower, merged}     where a layer is, its short name, those of the layers below it
//! overlay/l/<short name>                             link back to the layer
//! overlay-layers/{layers.json, layers.lock}          all layers
//! overlay-images/{images.json, images.lock}          all images
//! overlay-images/<image id>/                         documents of an image
//! ```
//!
//! podman fails for *all* images of a store if one name is there twice or is no name, if an image's document or a layer's
//! parent is missing, or if a lock file is. So the two lists are changed as a whole: [`Store`] reads them, keeps what it
//! does not know, and says what has to change on disk.
//!
//! Source: `images.go`, `layers.go`, `drivers/overlay/overlay.go`, `pkg/lockfile` of `containers/storage`;
//! `ducc/lib/podman_store.go`.

mod configuration;
mod names;
mod records;

use std::collections::{BTreeMap, BTreeSet};

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::{RepoPath, RepositoryName};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub use configuration::problem;
pub use names::{alias, name};

use self::records::{Record, Records};
use super::{FlatPlace, Generated, LayerPlace, PODMAN, indented, path, relative};
use crate::image::digest::Digest;
use crate::image::{Image, Layer};

/// Where the links to layers and trees lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Links {
    /// To an absolute path: podman then does everything that it can do with a store, if the repository is mounted there.
    Absolute {
        /// Where clients mount the repository.
        mountpoint: String,
    },
    /// To a path from the link: images can be listed, looked at and run, wherever the repository is mounted.
    Relative,
}

impl Links {
    /// To where clients mount a repository.
    pub fn absolute(repository: &RepositoryName) -> Self {
        Self::Absolute { mountpoint: format!("/cvmfs/{repository}") }
    }

    fn target(&self, link: &RepoPath, target: &RepoPath) -> Vec<u8> {
        match self {
            Self::Absolute { mountpoint } => [mountpoint.as_bytes(), target.as_bytes()].join(&b'/'),
            Self::Relative => relative(link, target),
        }
    }
}

/// Most layers of an image that podman mounts.
///
/// Source: `drivers/overlay/overlay.go` of `containers/storage`, `maxDepth`.
pub const MAX_LAYERS: usize = 128;

/// What podman takes for the layers of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// The layers: users can build on the image. Needs layers with overlayfs' whiteouts, unless it is read with
    /// fuse-overlayfs. podman 4 runs images of up to [`MAX_LAYERS`] layers, without fuse-overlayfs up to about 50.
    Layers {
        /// Bytes of each layer's archive.
        sizes: &'a [u64],
    },
    /// The merged tree as its only layer: runs everywhere, whatever the number of layers.
    Flat {
        /// Bytes of its files.
        size: u64,
    },
}

/// An image that is to be in the store.
#[derive(Debug, Clone)]
pub struct Addition<'a> {
    /// The image.
    pub image: &'a Image,
    /// Its names; other images lose them. See [`name`] and [`alias`].
    pub names: &'a [String],
    /// Its content.
    pub content: Content<'a>,
}

/// The lists of a store, and what is to be done to the files around them.
#[derive(Debug)]
pub struct Store {
    links: Links,
    images: Records,
    layers: Records,
    before: (Records, Records),
    /// What was put, by path: what several images share is put once.
    put: BTreeMap<RepoPath, Generated>,
    /// Layers that may have lost their last image.
    released: BTreeSet<String>,
    removed: BTreeSet<String>,
}

impl Store {
    /// Reads the lists that a repository has: [`images_file`] and [`layers_file`].
    ///
    /// # Errors
    /// `Malformed` if they are no lists of records.
    pub fn open(images: Option<&[u8]>, layers: Option<&[u8]>, links: Links) -> Result<Self> {
        let images = Records::parse("podmanStore/overlay-images/images.json", images)?;
        let layers = Records::parse("podmanStore/overlay-layers/layers.json", layers)?;
        let before = (images.clone(), layers.clone());
        let (put, released, removed) = Default::default();
        Ok(Self { links, images, layers, before, put, released, removed })
    }

    /// Adds an image, or more names to one that is there.
    ///
    /// # Errors
    /// `InvalidInput` for a name that podman would not take.
    ///
    /// # Panics
    /// If there are not as many sizes as layers.
    pub fn add(&mut self, addition: &Addition<'_>, now: UnixSeconds) -> Result<()> {
        let Addition { image, names, content } = *addition;
        if let Some(wrong) = names.iter().find(|name| !names::is_reference(name)) {
            return Err(Error::invalid(format!("image name {wrong:?}"), "podman does not take it for a reference"));
        }
        let top = match content {
            Content::Layers { sizes } => self.put_layers(&image.layers, sizes, now),
            Content::Flat { size } => self.put_flat(image, size, now),
        };
        self.put_documents(image);
        self.record(image, names, &top, now);
        Ok(())
    }

    /// Takes names away from whichever images have them.
    pub fn remove_names(&mut self, names: &[String]) {
        self.images.retain_names(|name| !names.iter().any(|gone| gone == name));
    }

    /// Removes images, named by their configurations, and the layers that no other image has.
    pub fn remove(&mut self, images: &[Digest]) {
        for id in images.iter().map(Digest::hex) {
            for record in self.images.take(&id) {
                self.released.extend(record.layers());
                self.removed.insert(id.clone());
            }
        }
    }

    /// The images, by their configurations, with their names; several images may have none.
    pub fn images(&self) -> Vec<(Digest, Vec<String>)> {
        let image = |record: &Record| Some((format!("sha256:{}", record.id()?).parse().ok()?, record.names()));
        self.images.iter().filter_map(image).collect()
    }

    /// What has to be done, with parents first; nothing if nothing changed.
    pub fn finish(mut self, now: UnixSeconds) -> Vec<Generated> {
        self.images.make_names_unique();
        let mut removals = self.remove_layers();
        for id in self.removed.iter().filter(|id| !self.images.contains(id)) {
            removals.extend(directory("overlay-images").child(id.as_bytes()));
        }
        self.put.retain(|path, _| !removals.iter().any(|gone| path.starts_with(gone)));
        if self.put.is_empty() && (&self.images, &self.layers) == (&self.before.0, &self.before.1) {
            return Vec::new();
        }
        let mut entries: Vec<_> = ["", "overlay", "overlay-images", "overlay-layers"]
            .map(|name| Generated::Catalog { path: directory(name) })
            .into();
        entries.extend(removals.into_iter().map(|path| Generated::Remove { path }));
        entries.extend(self.put.into_values());
        let lists = [
            (layers_file(), "overlay-layers/layers.lock", &self.layers),
            (images_file(), "overlay-images/images.lock", &self.images),
        ];
        for (list, lock, records) in lists {
            let bytes = indented(records);
            entries.push(Generated::file(directory(lock), lock_content(now, &bytes)));
            entries.push(Generated::file(list, bytes));
        }
        super::with_parents(entries)
    }

    fn put(&mut self, entry: Generated) {
        self.put.insert(entry.path().clone(), entry);
    }

    /// The layers of an image, each on those below it; returns the id of the uppermost.
    fn put_layers(&mut self, layers: &[Layer], sizes: &[u64], now: UnixSeconds) -> String {
        assert_eq!(layers.len(), sizes.len(), "each layer has a size");
        let mut below: Vec<String> = Vec::new();
        for (index, ((layer, size), id)) in layers.iter().zip(sizes).zip(layer_ids(layers)).enumerate() {
            // An overlay takes no directory twice. Whatever a layer says, the uppermost of its places says it last.
            let is_repeated =
                |at: usize| layers[at + 1..=index].iter().any(|above| above.blob.digest == layers[at].blob.digest);
            let lower: Vec<&String> =
                below.iter().enumerate().filter(|(at, _)| !is_repeated(*at)).map(|(_, id)| id).collect();
            self.put_layer(&id, &LayerPlace::of(layer).root(), &lower);
            let record = self.layers.first_or_new(&id);
            record.set_optional("parent", below.last().map(|parent| json!(parent)));
            record.set_default("created", json!(now.iso()));
            record.set("compressed-diff-digest", json!(layer.blob.digest.to_string()));
            record.set("compressed-size", json!(layer.blob.size));
            record.set("diff-digest", json!(layer.diff_id.to_string()));
            record.set("diff-size", json!(size));
            below.push(id);
        }
        below.pop().unwrap_or_default()
    }

    /// The merged tree of an image as a layer; returns its id.
    fn put_flat(&mut self, image: &Image, size: u64, now: UnixSeconds) -> String {
        let id = flat_layer_id(&image.config.digest);
        self.put_layer(&id, FlatPlace::of(image).root(), &[]);
        let record = self.layers.first_or_new(&id);
        record.set_optional("parent", None);
        record.set_default("created", json!(now.iso()));
        // podman insists on a digest of the archive, the reference's garbage collection on one of the blob. These are of
        // nothing, so it is never taken for a layer of another image.
        record.set("compressed-diff-digest", json!(format!("sha256:{id}")));
        record.set("compressed-size", json!(size));
        record.set("diff-digest", json!(format!("sha256:{id}")));
        record.set("diff-size", json!(size));
        id
    }

    /// The directory of a layer; `below` are the ids of the layers below it, the lowest first.
    fn put_layer(&mut self, id: &str, content: &RepoPath, below: &[&String]) {
        let place = directory(&format!("overlay/{id}"));
        let of = |name: &str| place.join(&path(name));
        let target = self.links.target(&of("diff"), content);
        self.put(Generated::Symlink { path: of("diff"), target });
        // No newline at the end: podman would take it for part of the name.
        self.put(Generated::file(of("link"), short_name(id)));
        let lower: Vec<_> = below.iter().rev().map(|id| format!("l/{}", short_name(id))).collect();
        self.put(match below {
            // Another program may have had the same layer on others.
            [] => Generated::Remove { path: of("lower") },
            _ => Generated::file(of("lower"), lower.join(":")),
        });
        // podman mounts the layer here, where it has to look into it.
        self.put(Generated::Directory { path: of("merged") });
        self.put(Generated::link(short_link(id), &of("diff")));
    }

    fn put_documents(&mut self, image: &Image) {
        let place = directory(&format!("overlay-images/{}", image.config.digest.hex()));
        for (name, bytes) in documents(image) {
            let path = place.join(&path(&blob_file_name(&name)));
            self.put(Generated::file(path, bytes));
        }
    }

    fn record(&mut self, image: &Image, names: &[String], top: &str, now: UnixSeconds) {
        let id = image.config.digest.hex();
        let mut known = self.images.take(&id);
        self.released.extend(known.iter().flat_map(Record::layers));
        let mut all_names: Vec<String> = known.iter().flat_map(Record::names).collect();
        all_names.extend(names.iter().cloned());
        self.remove_names(names);
        let mut record = if known.is_empty() { Record::new(&id) } else { known.swap_remove(0) };
        let documents = documents(image);
        let by_name = |value: fn(&[u8]) -> serde_json::Value| -> serde_json::Value {
            documents.iter().map(|(name, bytes)| (name.clone(), value(bytes))).collect()
        };
        record.set("digest", json!(image.manifest.digest.to_string()));
        record.set("names", json!(all_names));
        record.set("layer", json!(top));
        record.set("created", json!(created(image).unwrap_or_else(|| now.iso())));
        record.set("big-data-names", json!(documents.iter().map(|(name, _)| name).collect::<Vec<_>>()));
        record.set("big-data-sizes", by_name(|bytes| json!(bytes.len())));
        record.set("big-data-digests", by_name(|bytes| json!(Digest::of(bytes).to_string())));
        // At the end: should others have put a name into several records, the last one keeps it.
        self.images.push(record);
    }

    /// Forgets the layers that nothing needs any more; returns what they leave behind.
    fn remove_layers(&mut self) -> Vec<RepoPath> {
        let candidates = self.layers.with_parents(self.released.iter().cloned());
        let images = self.images.iter().flat_map(Record::layers);
        // A layer whose parent is not listed makes podman fail, even if no image has it.
        let others = self.layers.iter().filter_map(Record::id).filter(|id| !candidates.contains(*id));
        let used = self.layers.with_parents(images.chain(others.map(str::to_owned)));
        let gone: BTreeSet<String> = candidates.difference(&used).cloned().collect();
        self.layers.remove(&gone);
        let places =
            gone.iter().map(|id| directory("overlay").child(id.as_bytes()).map(|place| [place, short_link(id)]));
        places.filter_map(Result::ok).flatten().collect()
    }
}

/// The store.
pub fn root() -> RepoPath {
    path(PODMAN)
}

/// The list of images.
pub fn images_file() -> RepoPath {
    directory("overlay-images/images.json")
}

/// The list of layers.
pub fn layers_file() -> RepoPath {
    directory("overlay-layers/layers.json")
}

/// A path in the store.
fn directory(name: &str) -> RepoPath {
    root().join(&path(name))
}

/// Documents of an image, by the names that podman gives them.
fn documents(image: &Image) -> [(String, &[u8]); 3] {
    let (config, manifest) = (&image.config, &image.manifest);
    [
        (config.digest.to_string(), &config.bytes),
        (format!("manifest-{}", manifest.digest), &manifest.bytes),
        ("manifest".to_owned(), &manifest.bytes),
    ]
}

/// The file of a document: its name, or that in base 64.
fn blob_file_name(name: &str) -> String {
    if name.bytes().all(|byte| byte == b'.' || byte.is_ascii_digit() || byte.is_ascii_lowercase()) {
        name.to_owned()
    } else {
        format!("={}", openssl::base64::encode_block(name.as_bytes()))
    }
}

/// When an image was made. podman reads no list in which one time has another form.
fn created(image: &Image) -> Option<String> {
    let time = OffsetDateTime::parse(image.settings.created.as_deref()?, &Rfc3339).ok()?;
    time.format(&Rfc3339).ok()
}

/// The ids of layers, each for the layer on those below it: the same content on others is another layer.
///
/// Source: `storage/storage_dest.go` of `containers/image`.
pub fn layer_ids(layers: &[Layer]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::with_capacity(layers.len());
    for layer in layers {
        let diff_id = layer.diff_id.hex();
        ids.push(match ids.last() {
            None => diff_id,
            Some(below) => Digest::of(format!("{below}+{diff_id}").as_bytes()).hex(),
        });
    }
    ids
}

/// The id of the only layer of an image whose content is its merged tree.
fn flat_layer_id(config: &Digest) -> String {
    Digest::of(format!("cvmfs-flat-layer:{}", config.hex()).as_bytes()).hex()
}

/// The short name of a layer: of as many characters as those that podman makes up, and always the same.
fn short_name(layer_id: &str) -> String {
    const CHARACTERS: usize = 26;
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest = openssl::sha::sha256(format!("lid:{layer_id}").as_bytes());
    let bit = |at: usize| usize::from(digest[at / 8] >> (7 - at % 8) & 1);
    let character = |at: usize| (at * 5..at * 5 + 5).fold(0, |value, at| value * 2 + bit(at));
    (0..CHARACTERS).map(|at| char::from(ALPHABET[character(at)])).collect()
}

fn short_link(layer_id: &str) -> RepoPath {
    directory(&format!("overlay/l/{}", short_name(layer_id)))
}

/// 64 bytes that differ from those of every other update: programs that run compare them to notice it.
fn lock_content(now: UnixSeconds, list: &[u8]) -> Vec<u8> {
    let nanoseconds = now.0.wrapping_mul(1_000_000_000);
    let mut content = nanoseconds.to_le_bytes().to_vec();
    content.extend(&Digest::of(list).hex().as_bytes()[..56]);
    content
}

#[cfg(test)]
mod tests;
