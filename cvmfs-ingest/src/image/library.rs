//! What a repository has of images: layers, records, other documents.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::Read as _;
use std::rc::Rc;

use cvmfs_core::entry::EntryKind;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::RepoPath;
use cvmfs_core::tree::Tree;
use serde::Deserialize;

use super::digest::Digest;
use super::layer::{Facts, Layers};
use super::layout::bookkeeping::{Permissions, Record, Whiteouts};
use super::layout::{self, FlatPlace, LayerPlace, NamePlace};
use super::rows::{Fetched, Rows, Unpacked};
use super::stack::Stack;
use super::{Image, Layer};

/// Bytes of the largest file that is read to learn something about images.
const DOCUMENT_MAX: u64 = 256 << 20;

/// Layers as they are at hand: in the repository, or fetched.
#[derive(Debug)]
pub struct Library<'a> {
    /// What the repository has.
    pub tree: Tree,
    /// What was fetched.
    pub layers: &'a Layers<'a>,
    /// All layers of the image that was last asked for.
    lookups: Option<(Digest, Rc<RefCell<Stack>>)>,
}

impl<'a> Library<'a> {
    /// What a tree has, and what was fetched.
    pub fn new(tree: Tree, layers: &'a Layers<'a>) -> Self {
        Self { tree, layers, lookups: None }
    }

    /// What is known of a layer that the repository has; `None` if it has not, or only half of it.
    pub fn unpacked(&mut self, layer: &Layer) -> Result<Option<Facts>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Description {
            diff_digest: String,
            diff_size: u64,
        }
        let place = LayerPlace::of(layer);
        if !exists(&mut self.tree, &place.root())? {
            return Ok(None);
        }
        let Some(bytes) = read_document(&mut self.tree, &place.description())? else { return Ok(None) };
        let described = serde_json::from_slice::<Vec<Description>>(&bytes).ok().and_then(|all| all.into_iter().next());
        Ok(described
            .filter(|described| described.diff_digest == layer.diff_id.to_string())
            .map(|Description { diff_digest: diff_id, diff_size: size }| Facts { diff_id, size }))
    }

    /// What is known of a layer that is at hand.
    pub fn facts(&mut self, layer: &Layer) -> Result<Option<Facts>> {
        match self.unpacked(layer)? {
            Some(facts) => Ok(Some(facts)),
            None => Ok(self.layers.open(layer)?.map(|(_, facts)| facts)),
        }
    }

    /// What a layer says.
    pub(super) fn rows(&mut self, layer: &Layer) -> Result<Box<dyn Rows>> {
        if self.unpacked(layer)?.is_some() {
            let place = LayerPlace::of(layer);
            let unnamed = match read_document(&mut self.tree, &place.implied())? {
                Some(bytes) => serde_json::from_slice(&bytes)
                    .map_err(|error| Error::malformed(place.implied().to_string(), error.to_string()))?,
                None => HashSet::new(),
            };
            return Ok(Box::new(Unpacked::new(self.tree.clone(), place.root(), unnamed)));
        }
        match self.layers.open(layer)? {
            Some((changes, _)) => Ok(Box::new(Fetched::new(changes)?)),
            None => Err(Error::not_found(format!("layer {}", layer.blob.digest))),
        }
    }

    /// All layers of an image on top of each other.
    pub(super) fn stack(&mut self, image: &Image) -> Result<Stack> {
        Ok(Stack::new(image.layers.iter().map(|layer| self.rows(layer)).collect::<Result<_>>()?))
    }

    /// The same, to look up paths; whoever asks for the same image shares it.
    pub(super) fn lookups(&mut self, image: &Image) -> Result<Rc<RefCell<Stack>>> {
        if let Some((config, stack)) = &self.lookups
            && *config == image.config.digest
        {
            return Ok(Rc::clone(stack));
        }
        self.lookups = None;
        let stack = Rc::new(RefCell::new(self.stack(image)?));
        self.lookups = Some((image.config.digest, Rc::clone(&stack)));
        Ok(stack)
    }
}

/// Whether the tree has something at a path. Unlike finding it, this does not open a catalog that begins there.
pub fn exists(tree: &mut Tree, path: &RepoPath) -> Result<bool> {
    match path.parent() {
        Some(parent) => Ok(tree.directory(&parent)?.find(path.name())?.is_some()),
        None => Ok(true),
    }
}

/// Reads a file of the tree whole; `None` if there is none.
pub fn read_document(tree: &mut Tree, path: &RepoPath) -> Result<Option<Vec<u8>>> {
    let Some(row) = tree.find(path)? else { return Ok(None) };
    let EntryKind::File(file) = row.entry.kind else { return Ok(None) };
    if file.size > DOCUMENT_MAX {
        return Err(Error::malformed(path.to_string(), format!("a document of {} bytes", file.size)));
    }
    let mut bytes = Vec::new();
    tree.open_file(path, &file)?.read_to_end(&mut bytes).map_err(|error| Error::io(path.to_string(), error))?;
    Ok(Some(bytes))
}

/// How the layers of a repository say what they remove; `None` if it has no layers.
///
/// # Errors
/// `Malformed` if what is written down there is nothing known.
pub fn layer_form(tree: &mut Tree) -> Result<Option<Whiteouts>> {
    let path = LayerPlace::form();
    let forms = [Whiteouts::Aufs, Whiteouts::Overlay];
    match read_document(tree, &path)? {
        Some(text) => {
            let form = forms.into_iter().find(|form| text.trim_ascii() == form.name().as_bytes());
            form.map(Some).ok_or_else(|| Error::malformed(path.to_string(), "neither `aufs` nor `overlay`"))
        }
        // The reference's converter writes nothing down, and keeps the files of the archives.
        None => Ok(exists(tree, &LayerPlace::all())?.then_some(Whiteouts::Aufs)),
    }
}

/// How permissions were kept in the tree of an image; `None` if there is no such tree.
pub fn flat_permissions(tree: &mut Tree, place: &FlatPlace) -> Result<Option<Permissions>> {
    let Some(parent) = place.root().parent() else { return Ok(None) };
    // As in finding whether it exists: the catalog that begins there stays closed.
    let row = tree.directory(&parent)?.find(place.root().name())?;
    Ok(row.map(|row| Permissions::of_tree(&row.entry)))
}

/// The directories of names for single platforms.
pub fn platforms(tree: &mut Tree) -> Result<Vec<RepoPath>> {
    let root = layout::platforms_root();
    if tree.find(&root)?.is_none() {
        return Ok(Vec::new());
    }
    tree.list(&root)?.into_iter().filter(|row| row.entry.is_directory()).map(|row| root.child(&row.name)).collect()
}

/// The record of an image's name; `None` if we did not convert it.
pub fn read_record(tree: &mut Tree, place: &NamePlace) -> Result<Option<Record>> {
    let path = place.record();
    let bytes = read_document(tree, &path)?;
    bytes.map(|bytes| Record::parse(&path.to_string(), &bytes)).transpose()
}
