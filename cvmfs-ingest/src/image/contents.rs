//! What images mean for a repository, as changes: everything that has to be there for all who read it there.
//!
//! For each image, in this order: its layers that are not unpacked yet; the tree that they make together, with what
//! Apptainer wants in it; what is written down about it; its links; podman's store.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, Cursor, Read as _};
use std::rc::Rc;
use std::time::Duration;

use cvmfs_core::catalog::MARKER;
use cvmfs_core::change::{Change, ChangeSource, Content, Metadata};
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::entry::{EntryKind, Mtime};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::lock::FileLock;
use cvmfs_core::path::RepoPath;
use cvmfs_core::progress::Cancel;
use cvmfs_core::tree::Tree;
use cvmfs_core::xattr::Xattrs;

use super::digest::Digest;
use super::layer::{Facts, Layers};
use super::layout::apptainer::{self, Found};
use super::layout::bookkeeping::{self, Permissions, PodmanMode, Policy, Record, Whiteouts};
use super::layout::podman::{self, Links};
use super::layout::{self, FlatPlace, Generated, LayerPlace, NamePlace};
use super::library::{Library, exists, flat_permissions, layer_form, platforms, read_document};
use super::reference::Reference;
use super::unpack::{Flatten, Unpack};
use super::{Image, Layer, Platform};

/// An image, or several of one name for different platforms, that a repository is to have. Their layers are at hand.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What it is called in the repository.
    pub name: Reference,
    /// What the name resolved to: the digest of a manifest or of an index.
    pub resolved: Digest,
    /// One image a platform.
    pub images: Vec<Image>,
    /// The name of its thin image, if there is one.
    pub thin: Option<String>,
}

impl Wanted {
    /// The image that is meant where there can be only one.
    pub fn main(&self) -> Option<&Image> {
        let usual = Platform::linux_amd64();
        self.images.iter().find(|image| image.platform == usual).or(self.images.first())
    }

    /// Where an image is found by name: beside those for other platforms if there are any.
    pub fn place(&self, image: &Image) -> Result<NamePlace> {
        let place = NamePlace::of(&self.name)?;
        if self.images.len() > 1 { place.on(&image.platform) } else { Ok(place) }
    }
}

/// Choices that hold for all images of a repository.
#[derive(Debug, Clone)]
pub struct Options {
    /// What is made of an image.
    pub policy: Policy,
    /// Where links of podman's store lead.
    pub links: Links,
    /// The metadata of what is not in an image.
    pub owned: Owned,
}

/// Metadata of what is made here.
#[derive(Debug, Clone, Copy)]
pub struct Owned {
    /// User and group.
    pub owner: (u32, u32),
    /// The time.
    pub now: UnixSeconds,
}

/// Takes the right to publish images of a repository, or to remove them: what is decided from the newest revision must
/// still hold when it is done.
///
/// # Errors
/// `Conflict` if another process of this machine keeps it for longer than a commit waits.
pub fn lock(publisher: &Publisher, patience: Duration, cancel: &Cancel) -> Result<FileLock> {
    let path = publisher.config.spool.join("images.lock");
    FileLock::acquire(&path, patience, cancel)?
        .ok_or_else(|| Error::conflict(path.display().to_string(), "another process publishes images"))
}

/// The changes that bring images into a repository.
#[derive(Debug)]
pub struct ImageSource<'a> {
    library: Option<Library<'a>>,
    stages: VecDeque<Stage>,
    owned: Owned,
    /// The changes of the stage at work that wait for their turn, and the bytes that come with them.
    ready: VecDeque<(Change, Vec<u8>)>,
    /// Content of the last change.
    content: Cursor<Vec<u8>>,
    warnings: Vec<String>,
}

#[derive(Debug)]
enum Stage {
    Generated(Vec<Generated>),
    /// A layer of an image.
    Unpack(Rc<Image>, usize, Whiteouts),
    Unpacking(Box<Unpack>, LayerPlace),
    /// The tree of an image, and what Apptainer wants in it.
    Flatten(Rc<Image>, Permissions),
    Flattening(Box<Flatten>),
    Apptainer(Rc<Image>),
}

impl<'a> ImageSource<'a> {
    /// Plans what has to change in a tree.
    ///
    /// # Errors
    /// `NotFound` if a layer is not at hand; those of reading the tree.
    pub fn new(tree: Tree, layers: &'a Layers<'a>, wanted: &[Wanted], options: &Options) -> Result<Self> {
        let mut plan = Plan::new(Library::new(tree, layers), options)?;
        wanted.iter().try_for_each(|wanted| plan.add(wanted))?;
        let (library, stages, warnings) = plan.finish()?;
        let (ready, content) = (VecDeque::new(), Cursor::default());
        Ok(Self { library: Some(library), stages, owned: options.owned, ready, content, warnings })
    }

    /// Changes that are known already.
    pub fn generated(entries: Vec<Generated>, owned: Owned) -> Self {
        let stages = VecDeque::from([Stage::Generated(entries)]);
        let (ready, content) = (VecDeque::new(), Cursor::default());
        Self { library: None, stages, owned, ready, content, warnings: Vec::new() }
    }

    /// Goes on from a stage that is next, or at its end. Layers are opened no earlier: images have many of them, and
    /// processes few files.
    fn turn(&mut self, stage: Stage) -> Result<()> {
        match (stage, &mut self.library) {
            (Stage::Generated(entries), _) => entries.into_iter().try_for_each(|entry| self.queue(entry))?,
            (Stage::Unpack(image, index, form), Some(library)) => {
                let layer = &image.layers[index];
                let place = LayerPlace::of(layer);
                let unpack = Unpack::new(library.rows(layer)?, library.lookups(&image)?, index, place.root(), form);
                self.stages.push_front(Stage::Unpacking(Box::new(unpack), place));
            }
            (Stage::Unpacking(unpack, place), _) if !unpack.unnamed().is_empty() => {
                let unnamed = serde_json::to_vec(unpack.unnamed()).expect("strings can be written as JSON");
                self.queue(Generated::file(place.implied(), unnamed))?;
            }
            (Stage::Flatten(image, permissions), Some(library)) => {
                let place = FlatPlace::of(&image);
                let flatten = Flatten::new(library.stack(&image)?, place.root().clone(), permissions);
                self.stages.push_front(Stage::Apptainer(image));
                self.stages.push_front(Stage::Flattening(Box::new(flatten)));
            }
            (Stage::Flattening(mut flatten), _) => {
                let covered = |path: RepoPath| {
                    format!(
                        "{path} is a symbolic link in one layer, and a directory because a higher one has entries below it"
                    )
                };
                self.warnings.extend(flatten.take_covered().into_iter().map(covered));
            }
            (Stage::Apptainer(image), Some(library)) => {
                let stack = library.lookups(&image)?;
                let find = |path: &RepoPath| {
                    Ok(match stack.borrow_mut().find(path)?.map(|entry| entry.kind) {
                        None => Found::Absent,
                        Some(EntryKind::Directory(_)) => Found::Directory,
                        Some(EntryKind::Symlink { target }) => Found::Symlink(target),
                        Some(_) => Found::Other,
                    })
                };
                let place = FlatPlace::of(&image);
                let entries = apptainer::generate(&image.settings, &find)?;
                entries.into_iter().try_for_each(|entry| self.queue(entry.below(place.root())))?;
            }
            // Done. Without layers at hand there are only changes that are known already.
            _ => {}
        }
        Ok(())
    }

    fn queue(&mut self, generated: Generated) -> Result<()> {
        let metadata = |permissions| {
            let Owned { owner: (uid, gid), now } = self.owned;
            Metadata { permissions, uid, gid, mtime: Mtime::seconds(now.0), xattrs: Xattrs::new() }
        };
        let directory = |path| Change::Ensure { path, metadata: metadata(layout::DIRECTORY_PERMISSIONS) };
        let file = |path, size, permissions| Change::Put {
            path,
            metadata: metadata(permissions),
            content: Content::Read { size },
        };
        let (change, bytes) = match generated {
            Generated::Directory { path } => (directory(path), Vec::new()),
            Generated::Catalog { path } => {
                let marker = path.child(MARKER)?;
                self.ready.push_back((directory(path), Vec::new()));
                (file(marker, 0, layout::FILE_PERMISSIONS), Vec::new())
            }
            Generated::File { path, bytes, permissions } => (file(path, bytes.len() as u64, permissions), bytes),
            Generated::Symlink { path, target } => {
                (Change::Put { path, metadata: metadata(0o777), content: Content::Symlink { target } }, Vec::new())
            }
            Generated::Remove { path } => (Change::Remove { path }, Vec::new()),
        };
        self.ready.push_back((change, bytes));
        Ok(())
    }
}

impl ChangeSource for ImageSource<'_> {
    fn next(&mut self) -> Result<Option<Change>> {
        loop {
            if let Some((change, bytes)) = self.ready.pop_front() {
                self.content = Cursor::new(bytes);
                return Ok(Some(change));
            }
            let change = match self.stages.front_mut() {
                None => return Ok(None),
                Some(Stage::Unpacking(unpack, _)) => unpack.next_change()?,
                Some(Stage::Flattening(flatten)) => flatten.next_change()?,
                Some(_) => None,
            };
            if let Some(change) = change {
                return Ok(Some(change));
            }
            if let Some(stage) = self.stages.pop_front() {
                self.turn(stage)?;
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.content.read(buffer)
    }

    fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }
}

/// Collects the stages of all images.
struct Plan<'a, 'o> {
    library: Library<'a>,
    options: &'o Options,
    stages: VecDeque<Stage>,
    /// What earlier images of the same revision bring: catalogs, layers and trees.
    planned: HashSet<RepoPath>,
    /// What goes before something else comes in its place.
    removed: Vec<RepoPath>,
    /// The images of this revision that have a layer.
    origins: HashMap<Digest, Vec<Digest>>,
    podman: podman::Store,
    /// The names of the images of this revision so far.
    named: HashSet<NamePlace>,
    warnings: Vec<String>,
}

impl<'a, 'o> Plan<'a, 'o> {
    fn new(mut library: Library<'a>, options: &'o Options) -> Result<Self> {
        let images = read_document(&mut library.tree, &podman::images_file())?;
        let layers = read_document(&mut library.tree, &podman::layers_file())?;
        let podman = podman::Store::open(images.as_deref(), layers.as_deref(), options.links.clone())?;
        let (stages, planned, removed, origins, named, warnings) = Default::default();
        Ok(Self { library, options, stages, planned, removed, origins, podman, named, warnings })
    }

    /// What remains when all images are planned: podman has lists of them. Returns warnings, too.
    fn finish(mut self) -> Result<(Library<'a>, VecDeque<Stage>, Vec<String>)> {
        let empty = podman::Store::open(None, None, Links::Relative)?;
        let entries = std::mem::replace(&mut self.podman, empty).finish(self.options.owned.now);
        self.generate(entries)?;
        Ok((self.library, self.stages, self.warnings))
    }

    fn add(&mut self, wanted: &Wanted) -> Result<()> {
        for image in &wanted.images {
            let image = &Rc::new(image.clone());
            if self.options.policy.layers.is_some() {
                self.unpack_layers(image)?;
            }
            if self.options.policy.flat {
                self.flatten(image)?;
            }
            self.write_down(wanted, image)?;
        }
        self.forget_platforms(wanted)?;
        self.link(wanted)?;
        self.tell_podman(wanted)
    }

    /// Whether something is in the repository, or will be.
    fn has(&mut self, path: &RepoPath) -> Result<bool> {
        let was_removed = self.removed.iter().any(|removed| path.starts_with(removed));
        Ok(self.planned.contains(path) || !was_removed && exists(&mut self.library.tree, path)?)
    }

    /// Makes room.
    fn remove(&mut self, path: &RepoPath) -> Result<()> {
        self.removed.push(path.clone());
        self.generate([Generated::Remove { path: path.clone() }])
    }

    /// Adds entries, with the directories that they need. Catalogs that are there already are left alone.
    fn generate(&mut self, entries: impl IntoIterator<Item = Generated>) -> Result<()> {
        let mut wanted = Vec::new();
        for entry in entries {
            if let Generated::Catalog { path } = &entry {
                let marker = path.child(MARKER)?;
                if self.has(&marker)? {
                    continue;
                }
                self.planned.insert(marker);
            }
            wanted.push(entry);
        }
        self.stages.push_back(Stage::Generated(layout::with_parents(wanted)));
        Ok(())
    }

    fn unpack_layers(&mut self, image: &Rc<Image>) -> Result<()> {
        let Some(form) = self.options.policy.layers else { return Ok(()) };
        match layer_form(&mut self.library.tree)? {
            Some(present) if present != form => {
                let reason = format!("the layers of this repository are in the form `{}`, all of them", present.name());
                return Err(Error::invalid(format!("the form `{}` of whiteouts", form.name()), reason));
            }
            Some(_) => {}
            None if !self.planned.insert(LayerPlace::form()) => {}
            None => self.generate([bookkeeping::layer_form(form)])?,
        }
        for (index, layer) in image.layers.iter().enumerate() {
            let place = LayerPlace::of(layer);
            if !self.planned.insert(place.directory().clone()) || self.library.unpacked(layer)?.is_some() {
                continue;
            }
            let size = self.at_hand(layer)?.size;
            if exists(&mut self.library.tree, place.directory())? {
                // Somebody did not finish it.
                self.remove(place.directory())?;
            }
            self.generate(place.catalogs())?;
            self.stages.push_back(Stage::Unpack(Rc::clone(image), index, form));
            self.generate([bookkeeping::layer_description(layer, size, self.options.owned.now)])?;
        }
        Ok(())
    }

    fn flatten(&mut self, image: &Rc<Image>) -> Result<()> {
        let place = FlatPlace::of(image);
        if !self.planned.insert(place.root().clone()) {
            return Ok(());
        }
        let permissions = self.options.policy.permissions;
        match flat_permissions(&mut self.library.tree, &place)? {
            Some(present) if present == permissions => return Ok(()),
            Some(_) => self.remove(place.root())?,
            None => {}
        }
        self.generate(place.catalogs())?;
        self.stages.push_back(Stage::Flatten(Rc::clone(image), permissions));
        Ok(())
    }

    /// The manifest, the record, and that the layers belong to the image.
    fn write_down(&mut self, wanted: &Wanted, image: &Image) -> Result<()> {
        let place = wanted.place(image)?;
        let sizes = self.sizes(image)?;
        let mut entries = vec![Generated::Catalog { path: layout::metadata_root() }];
        for layer in &image.layers {
            if self.options.policy.layers.is_some() {
                let images = self.origins.entry(layer.blob.digest).or_default();
                images.push(image.config.digest);
                let present = read_document(&mut self.library.tree, &LayerPlace::of(layer).origin())?;
                entries.extend(bookkeeping::layer_origin(layer, present.as_deref(), images));
            }
        }
        let Options { policy, owned: Owned { now, .. }, .. } = self.options;
        let policy = Policy { thin: wanted.thin.clone(), ..policy.clone() };
        let record = Record::new(wanted.name.whole_name(), wanted.resolved, image, &sizes, policy, *now);
        entries.extend([bookkeeping::manifest(&place, image), record.generate(&place)]);
        self.generate(entries)
    }

    /// Bytes of an image's layers, without compression.
    fn sizes(&mut self, image: &Image) -> Result<Vec<u64>> {
        image.layers.iter().map(|layer| Ok(self.at_hand(layer)?.size)).collect()
    }

    fn at_hand(&mut self, layer: &Layer) -> Result<Facts> {
        self.library.facts(layer)?.ok_or_else(|| Error::not_found(format!("layer {}", layer.blob.digest)))
    }

    /// Takes away what an earlier image of the name had for platforms that this one has not: an index may lose some, or
    /// become a single image, or the reverse.
    fn forget_platforms(&mut self, wanted: &Wanted) -> Result<()> {
        let plain = NamePlace::of(&wanted.name)?;
        let present: Vec<_> = wanted.images.iter().map(|image| wanted.place(image)).collect::<Result<_>>()?;
        let tree = &mut self.library.tree;
        let mut gone = Vec::new();
        for place in platforms(tree)?.iter().map(|platform| plain.below(platform)).chain([plain.clone()]) {
            if present.contains(&place) {
                continue;
            }
            // Of several platforms there is a link with the plain name, too.
            if place != plain && tree.find(place.link())?.is_some() {
                gone.push(Generated::Remove { path: place.link().clone() });
            }
            if tree.find(&place.metadata())?.is_some() {
                gone.push(Generated::Remove { path: place.metadata() });
            }
        }
        self.generate(gone)
    }

    /// The links that users follow.
    fn link(&mut self, wanted: &Wanted) -> Result<()> {
        if !self.options.policy.flat {
            return Ok(());
        }
        let mut links = Vec::new();
        for image in &wanted.images {
            let place = wanted.place(image)?;
            links.extend([place.catalog()?, place.public(&FlatPlace::of(image))]);
        }
        if let (Some(main), 2..) = (wanted.main(), wanted.images.len()) {
            let names: Vec<_> = wanted.images.iter().map(|image| layout::platform_name(&image.platform)).collect();
            let place = NamePlace::of(&wanted.name)?;
            links.extend(place.alias_links(&names));
            links.extend([place.catalog()?, place.variant_link(&layout::platform_name(&main.platform))]);
        }
        self.generate(links)
    }

    /// podman has one image of a name.
    fn tell_podman(&mut self, wanted: &Wanted) -> Result<()> {
        let (Some(mode), Some(image)) = (self.options.policy.podman, wanted.main()) else { return Ok(()) };
        let names = self.podman_names(&wanted.name)?;
        if let Some(problem) = podman::problem(image) {
            self.warnings.push(format!("not in podman's store, because podman could not read it: {problem}"));
            self.podman.remove_names(&names);
            return Ok(());
        }
        if names.is_empty() {
            self.warnings.push("podman takes the name for none: it has the image without a name".to_owned());
        }
        let sizes = self.sizes(image)?;
        let mode = if mode == PodmanMode::Layers && image.layers.len() > podman::MAX_LAYERS && self.options.policy.flat
        {
            let (layers, most) = (image.layers.len(), podman::MAX_LAYERS);
            self.warnings.push(format!("{layers} layers, of which podman mounts {most}: it gets the merged tree"));
            PodmanMode::Flat
        } else {
            mode
        };
        let content = match mode {
            PodmanMode::Layers => podman::Content::Layers { sizes: &sizes },
            PodmanMode::Flat => podman::Content::Flat { size: sizes.iter().sum() },
        };
        self.podman.add(&podman::Addition { image, names: &names, content }, self.options.owned.now)
    }

    /// What podman calls an image. A name that users type for it is not taken from an image that is really called so.
    fn podman_names(&mut self, name: &Reference) -> Result<Vec<String>> {
        let Reference { registry, repository, .. } = name;
        let reference = layout::Reference::of(name)?;
        self.named.insert(NamePlace::of(name)?);
        let mut names = Vec::from_iter(podman::name(registry, repository, reference));
        if let Some((registry, repository)) = podman::alias(registry, repository) {
            let place = NamePlace::new(registry, &repository, reference)?;
            if !self.named.contains(&place) && self.library.tree.find(&place.metadata())?.is_none() {
                names.extend(podman::name(registry, &repository, reference));
            }
        }
        Ok(names)
    }
}
