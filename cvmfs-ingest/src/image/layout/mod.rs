//! What images look like in a repository, for every program that reads them there: paths and bytes, no I/O.
//!
//! ```text
//! .layers/<xx>/<blob>/layerfs          one layer, unpacked: for containerd, Docker, podman
//! .layers/<xx>/<blob>/.metadata        what is known of it          bookkeeping
//! .flat/<xx>/<config>                  all layers as one tree       apptainer
//! <registry>/<repository>:<tag>        link to that tree
//! .multiarch/<platform>/<registry>/…   such links for each platform
//! .metadata/<name>                     manifest and record          bookkeeping
//! podmanStore                          an additional image store    podman
//! images of a registry that stand for those in the repository      thin
//! ```
//!
//! `<xx>` are the first two digits of the name that follows. What a layout wants is a list of [`Generated`], in the order
//! in which it has to be done.

pub mod apptainer;
pub mod bookkeeping;
pub mod podman;
pub mod thin;

use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::RepoPath;

use super::digest::Digest;
use super::{Image, Layer, Platform};

/// Permissions of directories that layouts make.
pub const DIRECTORY_PERMISSIONS: u32 = 0o755;
/// Permissions of files that are no programs.
pub const FILE_PERMISSIONS: u32 = 0o644;
/// Permissions of scripts.
pub const SCRIPT_PERMISSIONS: u32 = 0o755;

/// The directory of unpacked layers.
const LAYERS: &str = ".layers";
/// The directory of merged trees.
const FLAT: &str = ".flat";
/// Manifests and records.
const METADATA: &str = ".metadata";
/// A directory of names for each platform.
const MULTIARCH: &str = ".multiarch";
/// The directory of the additional image store.
const PODMAN: &str = "podmanStore";

/// One thing that a layout wants to be in the repository, or to be gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Generated {
    /// A directory with [`DIRECTORY_PERMISSIONS`]. One that exists stays as it is.
    Directory {
        /// Where.
        path: RepoPath,
    },
    /// A directory as above that is the root of a nested catalog: with the marker in it.
    Catalog {
        /// The directory.
        path: RepoPath,
    },
    /// A regular file; whatever else is there gives way.
    File {
        /// Where.
        path: RepoPath,
        /// Its content.
        bytes: Vec<u8>,
        /// Its permission bits.
        permissions: u32,
    },
    /// A symbolic link; whatever else is there gives way.
    Symlink {
        /// Where.
        path: RepoPath,
        /// Its target, as it is.
        target: Vec<u8>,
    },
    /// Nothing is here any more, nor below; fine if there was nothing.
    Remove {
        /// Where.
        path: RepoPath,
    },
}

impl Generated {
    /// Where it is.
    pub fn path(&self) -> &RepoPath {
        match self {
            Self::Directory { path }
            | Self::Catalog { path }
            | Self::File { path, .. }
            | Self::Symlink { path, .. }
            | Self::Remove { path } => path,
        }
    }

    /// The same, in `directory` instead of the root.
    #[must_use]
    pub fn below(mut self, directory: &RepoPath) -> Self {
        let (Self::Directory { path }
        | Self::Catalog { path }
        | Self::File { path, .. }
        | Self::Symlink { path, .. }
        | Self::Remove { path }) = &mut self;
        *path = directory.join(path);
        self
    }

    /// A file with [`FILE_PERMISSIONS`].
    pub fn file(path: RepoPath, bytes: impl Into<Vec<u8>>) -> Self {
        Self::File { path, bytes: bytes.into(), permissions: FILE_PERMISSIONS }
    }

    /// A link with the relative target that leads from it to `target`, both in the repository.
    pub fn link(path: RepoPath, target: &RepoPath) -> Self {
        let target = relative(&path, target);
        Self::Symlink { path, target }
    }
}

/// Puts the directories in front that the entries need, each once: nothing of the list has a parent that is missing then.
pub fn with_parents(entries: Vec<Generated>) -> Vec<Generated> {
    let mut there = std::collections::BTreeSet::from([RepoPath::root()]);
    let mut complete = Vec::with_capacity(entries.len());
    for entry in entries {
        if let Generated::Remove { path } = &entry {
            there.retain(|other| !other.starts_with(path));
        } else {
            let missing = entry.path().ancestors().into_iter().filter(|path| there.insert(path.clone()));
            complete.extend(missing.map(|path| Generated::Directory { path }));
        }
        if let Generated::Directory { path } | Generated::Catalog { path } = &entry {
            there.insert(path.clone());
        }
        complete.push(entry);
    }
    complete
}

/// The target of a relative symbolic link at `link` that leads to `target`.
///
/// Source: `ducc/cvmfs/cvmfs.go`, `CreateSymlinkIntoCVMFS`.
pub fn relative(link: &RepoPath, target: &RepoPath) -> Vec<u8> {
    let directory = link.parent().unwrap_or_default();
    let common = directory.components().zip(target.components()).take_while(|(ours, theirs)| ours == theirs).count();
    let up = directory.components().skip(common).map(|_| &b".."[..]);
    let names: Vec<&[u8]> = up.chain(target.components().skip(common)).collect();
    if names.is_empty() { b".".to_vec() } else { names.join(&b'/') }
}

/// A path that is made of names that are known to be good.
fn path(text: &str) -> RepoPath {
    text.parse().expect("fixed names and hex digits are legal names")
}

fn by_digest(directory: &str, digest: &Digest) -> RepoPath {
    let hex = digest.hex();
    path(&format!("{directory}/{}/{hex}", &hex[..2]))
}

/// JSON, with one blank for each level, and a newline.
fn indented(value: &impl serde::Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b" ");
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, format))
        .expect("what has names for its fields can be written as JSON");
    bytes.push(b'\n');
    bytes
}

/// Where a layer is: named by its blob, as it was transferred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlace(RepoPath);

impl LayerPlace {
    /// The place of a layer.
    pub fn of(layer: &Layer) -> Self {
        Self::of_blob(&layer.blob.digest)
    }

    /// The place of the layer whose blob has this digest.
    pub fn of_blob(blob: &Digest) -> Self {
        Self(by_digest(LAYERS, blob))
    }

    /// The directory of all layers.
    pub fn all() -> RepoPath {
        path(LAYERS)
    }

    /// The file that tells how all layers say what they remove.
    pub fn form() -> RepoPath {
        path(LAYERS).join(&path(".whiteouts"))
    }

    /// The directory of the layer: everything of it.
    pub fn directory(&self) -> &RepoPath {
        &self.0
    }

    /// The unpacked layer.
    pub fn root(&self) -> RepoPath {
        self.0.join(&path("layerfs"))
    }

    /// What is known of the layer.
    pub fn description(&self) -> RepoPath {
        self.0.join(&path(".metadata/layers.json"))
    }

    /// Which of its directories the layer only implies, as hashes of their paths; absent if none.
    pub fn implied(&self) -> RepoPath {
        self.0.join(&path(".metadata/implied.json"))
    }

    /// Which images it was converted for.
    pub fn origin(&self) -> RepoPath {
        self.0.join(&path(".metadata/origin.json"))
    }

    /// The nested catalogs down to the unpacked layer.
    pub fn catalogs(&self) -> [Generated; 3] {
        let above = self.0.parent().unwrap_or_default();
        [path(LAYERS), above, self.root()].map(|path| Generated::Catalog { path })
    }
}

/// Where the merged tree of an image is: named by the image's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlatPlace(RepoPath);

impl FlatPlace {
    /// The place of an image's tree.
    pub fn of(image: &Image) -> Self {
        Self::of_config(&image.config.digest)
    }

    /// The place of the tree of the image whose configuration has this digest.
    pub fn of_config(config: &Digest) -> Self {
        Self(by_digest(FLAT, config))
    }

    /// The directory of all trees.
    pub fn all() -> RepoPath {
        path(FLAT)
    }

    /// The tree.
    pub fn root(&self) -> &RepoPath {
        &self.0
    }

    /// The nested catalogs down to the tree.
    pub fn catalogs(&self) -> [Generated; 2] {
        [path(FLAT), self.0.clone()].map(|path| Generated::Catalog { path })
    }
}

/// A name that an image has, and the places that follow from it.
///
/// An image that was asked for by digest alone has the digest in the place of the tag, everywhere: so two of them from one
/// repository do not take each other's place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamePlace(RepoPath);

impl NamePlace {
    /// The place of `registry/repository:tag`, or of `registry/repository@digest` if there is no tag.
    ///
    /// # Errors
    /// `InvalidInput` if that cannot be a path, or is one that has another meaning.
    pub fn new(registry: &str, repository: &str, reference: Reference<'_>) -> Result<Self> {
        let reference = match reference {
            Reference::Tag(tag) => tag.to_owned(),
            Reference::Digest(digest) => digest.to_string(),
        };
        let name = format!("{registry}/{repository}:{reference}");
        let invalid = |reason: &str| Err(Error::invalid(format!("image name {name:?}"), reason));
        if registry.is_empty() || repository.is_empty() || reference.is_empty() {
            return invalid("registry, repository and tag cannot be empty");
        }
        if registry.starts_with('.') || registry == PODMAN {
            return invalid("the registry's name has another meaning in repositories");
        }
        if reference.contains('/') || registry.contains('/') {
            return invalid("slash in the name of the registry or in the tag");
        }
        let place: RepoPath = name.parse()?;
        // No `.` and no doubled slashes: one name, one place.
        if place.as_bytes() == name.as_bytes() { Ok(Self(place)) } else { invalid("not a canonical path") }
    }

    /// The place of what a reference is for: a single image.
    ///
    /// # Errors
    /// Those of [`new`](Self::new), and `InvalidInput` if it has neither tag nor digest.
    pub fn of(reference: &super::reference::Reference) -> Result<Self> {
        Self::new(&reference.registry, &reference.repository, Reference::of(reference)?)
    }

    /// The name whose link is at a path.
    pub fn at(link: RepoPath) -> Self {
        Self(link)
    }

    /// The link that users follow: `registry/repository:tag`.
    pub fn link(&self) -> &RepoPath {
        &self.0
    }

    /// The link, to the image's tree.
    pub fn public(&self, flat: &FlatPlace) -> Generated {
        Generated::link(self.0.clone(), flat.root())
    }

    /// The nested catalog of all links of the registry, or of all platforms.
    ///
    /// # Errors
    /// Never, because a name is a path.
    pub fn catalog(&self) -> Result<Generated> {
        let first = self.0.components().next().unwrap_or_default();
        Ok(Generated::Catalog { path: RepoPath::root().child(first)? })
    }

    /// The directory of the manifest and the record.
    pub fn metadata(&self) -> RepoPath {
        path(METADATA).join(&self.0)
    }

    /// The manifest of the image, as it was received.
    pub fn manifest(&self) -> RepoPath {
        self.metadata().join(&path("manifest.json"))
    }

    /// What was done for the image: a [`bookkeeping::Record`].
    pub fn record(&self) -> RepoPath {
        self.metadata().join(&path("image.json"))
    }

    /// The same name among those of one platform.
    ///
    /// # Errors
    /// `InvalidInput` if the platform's name is not a legal name.
    pub fn on(&self, platform: &Platform) -> Result<Self> {
        Ok(self.below(&platforms_root().child(platform_name(platform).as_bytes())?))
    }

    /// The same name in a directory of names.
    #[must_use]
    pub fn below(&self, directory: &RepoPath) -> Self {
        Self(directory.join(&self.0))
    }

    /// The link that leads each client to its own platform, and others to `default`, one of the image's: clients replace
    /// the variable in it.
    pub fn variant_link(&self, default: &str) -> Generated {
        let up = "../".repeat(self.0.components().count() - 1);
        let target = format!("{up}{MULTIARCH}/$(CVMFS_ARCH:-{default})/");
        Generated::Symlink { path: self.0.clone(), target: [target.as_bytes(), self.0.as_bytes()].concat() }
    }

    /// The links for clients that call one of the image's `platforms` by another name.
    pub fn alias_links(&self, platforms: &[String]) -> Vec<Generated> {
        let is_there = |name: &str| platforms.iter().any(|platform| platform == name);
        let link = |(alias, candidates): &(&str, &[&str])| {
            let target = candidates.iter().find(|candidate| is_there(candidate))?;
            Some(Generated::link(self.among(alias).0, self.among(target).link()))
        };
        ALIASES.iter().filter(|(alias, _)| !is_there(alias)).filter_map(link).collect()
    }

    /// Where such links may be.
    pub fn aliases(&self) -> impl Iterator<Item = RepoPath> {
        ALIASES.iter().map(|(alias, _)| self.among(alias).0)
    }

    /// The same name among those of a platform with a legal name.
    fn among(&self, platform: &str) -> Self {
        self.below(&path(&format!("{MULTIARCH}/{platform}")))
    }
}

/// What names an image in its repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference<'a> {
    /// A tag; also if a digest says which image that is.
    Tag(&'a str),
    /// A digest, without a tag.
    Digest(&'a Digest),
}

/// The directory with a tree of names for each platform.
pub fn platforms_root() -> RepoPath {
    path(MULTIARCH)
}

/// The directory of manifests and records.
pub fn metadata_root() -> RepoPath {
    path(METADATA)
}

impl<'a> Reference<'a> {
    /// What names the image that a reference is for.
    ///
    /// # Errors
    /// `InvalidInput` if it has neither tag nor digest.
    pub fn of(reference: &'a super::reference::Reference) -> Result<Self> {
        match (&reference.tag, &reference.digest) {
            (Some(tag), _) => Ok(Self::Tag(tag)),
            (None, Some(digest)) => Ok(Self::Digest(digest)),
            (None, None) => Err(Error::invalid(reference.whole_name(), "it has neither a tag nor a digest")),
        }
    }
}

/// The platform as directories are called: `arm64`, `arm:v6`.
pub fn platform_name(platform: &Platform) -> String {
    let Platform { architecture, variant, .. } = platform;
    if variant.is_empty() { architecture.clone() } else { format!("{architecture}:{variant}") }
}

/// What clients call their platforms (`uname -m`), and the names of Go that stand for it, the best first.
const ALIASES: [(&str, &[&str]); 8] = [
    ("aarch64", &["arm64", "arm64:v8"]),
    ("arm64", &["arm64:v8"]),
    ("armv6l", &["arm:v6", "arm", "arm:v5"]),
    ("armv7l", &["arm:v7", "arm", "arm:v6"]),
    ("i386", &["386"]),
    ("i686", &["386"]),
    ("loongarch64", &["loong64"]),
    ("x86_64", &["amd64"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn text(entry: &Generated) -> (String, String) {
        match entry {
            Generated::Symlink { path, target } => (path.to_string(), String::from_utf8(target.clone()).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn at(place: &str) -> RepoPath {
        place.parse().unwrap()
    }

    /// `printf diff-one | sha256sum`
    const ONE: &str = "217564a4e62060d2b6ebae8032e8d492174a25802b17df7666b4c90886e6fd8b";

    #[test]
    fn paths_follow_from_digests_and_names() {
        let digest = Digest::of(b"diff-one");
        let layer = LayerPlace::of_blob(&digest);
        assert_eq!(layer.root().to_string(), format!("/.layers/21/{ONE}/layerfs"));
        assert_eq!(layer.description().to_string(), format!("/.layers/21/{ONE}/.metadata/layers.json"));
        assert_eq!(layer.origin().to_string(), format!("/.layers/21/{ONE}/.metadata/origin.json"));
        let catalogs: Vec<_> = layer.catalogs().iter().map(|entry| entry.path().to_string()).collect();
        assert_eq!(catalogs, ["/.layers", "/.layers/21", &format!("/.layers/21/{ONE}/layerfs")]);
        let flat = FlatPlace::of_config(&digest);
        assert_eq!(flat.root().to_string(), format!("/.flat/21/{ONE}"));
        let catalogs: Vec<_> = flat.catalogs().iter().map(|entry| entry.path().to_string()).collect();
        assert_eq!(catalogs, ["/.flat", &format!("/.flat/21/{ONE}")]);

        for (registry, repository, reference, name, target) in [
            (
                "registry.hub.docker.com",
                "library/debian",
                Reference::Tag("stable"),
                "library/debian:stable",
                "../../.flat",
            ),
            ("gitlab.example.org", "group/sub/img", Reference::Tag("v1"), "group/sub/img:v1", "../../../.flat"),
            ("localhost:5000", "img", Reference::Tag("v1"), "img:v1", "../.flat"),
            ("r.org", "img", Reference::Digest(&digest), &format!("img:sha256:{ONE}"), "../.flat"),
        ] {
            let place = NamePlace::new(registry, repository, reference).unwrap();
            let expected = (format!("/{registry}/{name}"), format!("{target}/21/{ONE}"));
            assert_eq!(text(&place.public(&flat)), expected);
            assert_eq!(place.manifest().to_string(), format!("/.metadata/{registry}/{name}/manifest.json"));
            assert_eq!(place.record().to_string(), format!("/.metadata/{registry}/{name}/image.json"));
        }
    }

    #[test]
    fn names_that_mean_something_else_are_refused() {
        for (registry, repository, tag) in [
            (".flat", "a", "b"),
            ("podmanStore", "a", "b"),
            ("", "a", "b"),
            ("r", "", "b"),
            ("r", "a", ""),
            ("r", "a/../b", "c"),
            ("r", "/a", "c"),
            ("r", "a", "c/d"),
            ("r/s", "a", "c"),
        ] {
            let place = NamePlace::new(registry, repository, Reference::Tag(tag));
            assert!(place.is_err(), "{registry} {repository} {tag}");
        }
    }

    #[test]
    fn platforms_have_trees_of_their_own() {
        let place = NamePlace::new("r.org", "group/img", Reference::Tag("v1")).unwrap();
        let arm = Platform { os: "linux".into(), architecture: "arm64".into(), variant: "v8".into() };
        let flat = FlatPlace::of_config(&Digest::of(b"diff-one"));
        let on_arm = place.on(&arm).unwrap();
        let link = ("/.multiarch/arm64:v8/r.org/group/img:v1".to_owned(), format!("../../../../.flat/21/{ONE}"));
        assert_eq!(text(&on_arm.public(&flat)), link);
        assert_eq!(on_arm.manifest().to_string(), "/.metadata/.multiarch/arm64:v8/r.org/group/img:v1/manifest.json");
        let variant = "../../.multiarch/$(CVMFS_ARCH:-amd64)/r.org/group/img:v1";
        assert_eq!(text(&place.variant_link("amd64")), ("/r.org/group/img:v1".into(), variant.into()));
        assert_eq!(platform_name(&Platform { variant: String::new(), ..arm }), "arm64");
    }

    #[test]
    fn aliases_lead_to_the_best_platform_of_the_image() {
        let place = NamePlace::new("r.org", "a/img", Reference::Tag("1")).unwrap();
        let links = |names: &[&str]| -> Vec<(String, String)> {
            place.alias_links(&names.iter().map(ToString::to_string).collect::<Vec<_>>()).iter().map(text).collect()
        };
        let pair = |alias: &str, target: &str| {
            (format!("/.multiarch/{alias}/r.org/a/img:1"), format!("../../../{target}/r.org/a/img:1"))
        };
        assert_eq!(links(&["amd64"]), [pair("x86_64", "amd64")]);
        assert_eq!(links(&["arm64:v8"]), [pair("aarch64", "arm64:v8"), pair("arm64", "arm64:v8")]);
        assert_eq!(links(&["arm64", "arm64:v8"]), [pair("aarch64", "arm64")]);
        assert_eq!(
            links(&["arm:v6", "arm:v7", "386"]),
            [pair("armv6l", "arm:v6"), pair("armv7l", "arm:v7"), pair("i386", "386"), pair("i686", "386")]
        );
        assert_eq!(links(&["aarch64", "arm64"]), []);
        assert_eq!(place.aliases().next().unwrap().to_string(), "/.multiarch/aarch64/r.org/a/img:1");
    }

    #[test]
    fn relative_targets_take_the_shortest_way() {
        for (link, target, expected) in [
            ("a", "b", "b"),
            ("a/b", "a/c", "c"),
            ("a/b/c", "a/d/e", "../d/e"),
            ("a/b/c", "a", ".."),
            ("a/b", "a", "."),
            ("store/l/X", "store/id/diff", "../id/diff"),
        ] {
            let target = relative(&at(link), &at(target));
            assert_eq!(String::from_utf8(target).unwrap(), expected, "{link}");
        }
    }

    #[test]
    fn parents_are_put_in_front_once() {
        let file = |path: &str| Generated::file(at(path), *b"");
        let remove = Generated::Remove { path: at("a") };
        let entries = with_parents(vec![file("a/b/c"), file("a/b/d"), remove.clone(), file("a/e")]);
        let directory = |path: &str| Generated::Directory { path: at(path) };
        let expected =
            [directory("a"), directory("a/b"), file("a/b/c"), file("a/b/d"), remove, directory("a"), file("a/e")];
        assert_eq!(entries, expected);
        let moved: Vec<_> = expected.map(|entry| entry.below(&at("x/y"))).into();
        assert_eq!(moved[2].path().to_string(), "/x/y/a/b/c");
    }
}
