//! Removing a repository from this server.
//!
//! ```text
//! nobody at work? ─► configuration set aside ─► storage ─► keys, if asked ─► spool directory ─► configuration
//!                    (unknown from here on)
//! ```
//!
//! Killed at any instant, the repository is there as a whole, or it is unknown and the same call goes on where the first
//! one stopped: the configuration that says where everything lies goes last.
//!
//! Source: `cvmfs/server/cvmfs_server_rmfs.sh`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cvmfs_core::commit::Activity;
use cvmfs_core::durable;
use cvmfs_core::error::{Error, IoContext as _, Result, remove_if_there};
use cvmfs_core::info;
use cvmfs_core::lock::FileLock;
use cvmfs_core::path::RepositoryName;
use cvmfs_core::progress::{Cancel, Progress};
use cvmfs_core::server::{RepositoryConfig, ServerRoot, Variables};
use cvmfs_core::storage::StoragePlace;
use rustix::fs::Access;
use serde::Serialize;

/// What a repository may have in the directory of keys.
const KEYS: [&str; 8] = ["masterkey", "pub", "key", "crt", "gw", "key.new", "crt.new", "crt.draft"];

/// Choices for a removal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Leave the storage as it is.
    pub keep_storage: bool,
    /// Remove the keys as well, the master key among them.
    pub keys: bool,
    /// Remove it although a transaction is open, whose changes are lost.
    pub drop_transaction: bool,
}

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The repository.
    pub name: String,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// What went: directories, files, the storage.
    pub removed: Vec<String>,
    /// What is left on purpose: the storage, keys.
    pub kept: Vec<String>,
    /// Objects of the storage that went.
    pub objects: u64,
    /// Their stored bytes, if somebody counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// What the operator should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Finds out what a removal would remove, and whether it would be refused.
///
/// # Errors
/// Those of [`remove`].
pub fn rehearse(
    root: &ServerRoot,
    name: &RepositoryName,
    options: Options,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Outcome> {
    let subject = Subject::find(root, name)?;
    subject.refuse(options)?;
    let mut outcome = Outcome { dry_run: true, ..subject.outline(options) };
    if !options.keep_storage {
        let (objects, bytes) = subject.config.storage.measure(progress, cancel)?;
        (outcome.objects, outcome.bytes) = (objects, Some(bytes));
    }
    Ok(outcome)
}

/// Removes a repository.
///
/// # Errors
/// `NotFound` if there is none of that name; `Conflict` if somebody works on it, a transaction is open, it is mounted, or
/// another repository has the same storage; `InvalidInput` if its configuration names places that cannot be its own.
pub fn remove(
    root: &ServerRoot,
    name: &RepositoryName,
    options: Options,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Outcome> {
    let subject = Subject::find(root, name)?;
    subject.refuse(options)?;
    let spool = &subject.config.spool;
    fs::create_dir_all(spool).at(spool)?;
    let locks = ["is_publishing.lock", "is_collecting.lock"]
        .map(|lock| take(&spool.join(lock), cancel))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    // Somebody may have begun since, or removed it.
    let subject = match Subject::find(root, name) {
        Err(error) if error.is_not_found() => {
            drop(locks);
            // Made again for the locks; whatever else is in it is not ours.
            let _ = fs::remove_dir(spool);
            return Err(error);
        }
        subject => subject?,
    };
    subject.refuse(options)?;
    let mut outcome = subject.outline(options);

    // 1. From here on nobody begins to work on it.
    if subject.is_whole {
        fs::rename(root.server_conf(name), root.removed_conf(name)).at(root.server_conf(name))?;
        durable::sync_directory(&root.config_dir(name))?;
        outcome.warnings.extend(info::refresh_warnings(root));
    }
    // 2. Content and keys.
    if !options.keep_storage {
        let removed = subject.config.storage.remove(progress, cancel)?;
        outcome.objects = removed.objects;
        let left = removed.left.iter().map(|path| format!("{} is not of a repository and was left", path.display()));
        outcome.warnings.extend(left);
    }
    if options.keys {
        KEYS.iter().try_for_each(|extension| remove_if_there(&root.key_file(name, extension)))?;
    }
    // 3. What is known of it; the file that says where everything is comes last.
    remove_directory(spool)?;
    let config = root.config_dir(name);
    let last = root.removed_conf(name);
    for entry in fs::read_dir(&config).at(&config)? {
        let path = entry.at(&config)?.path();
        if path == last {
            continue;
        }
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(&path).at(&path)?;
        } else {
            remove_if_there(&path)?;
        }
    }
    remove_directory(&config)?;
    Ok(outcome)
}

/// A repository that is to go.
struct Subject<'a> {
    root: &'a ServerRoot,
    config: RepositoryConfig,
    /// Whether this is the first attempt to remove it.
    is_whole: bool,
    /// Where the reference mounts it.
    union: PathBuf,
}

impl<'a> Subject<'a> {
    fn find(root: &'a ServerRoot, name: &RepositoryName) -> Result<Self> {
        if root.config_dir(name).join("replica.conf").exists() {
            let reason = "it is a replica; `cvmfs-replica remove` removes it";
            return Err(Error::conflict(format!("repository {name}"), reason));
        }
        let (whole, removed) = (root.server_conf(name), root.removed_conf(name));
        let is_whole = whole.exists() || !removed.exists();
        let file = if is_whole { whole } else { removed };
        let config = RepositoryConfig::load_from(&file, root, name)?;
        let union = Variables::load(&file)?.get("CVMFS_UNION_DIR").map(PathBuf::from);
        let union = union.unwrap_or_else(|| Path::new("/cvmfs").join(name.as_str()));
        Ok(Self { root, config, is_whole, union })
    }

    /// What will be removed, as far as it is there.
    fn outline(&self, options: Options) -> Outcome {
        let RepositoryConfig { name, storage, spool, .. } = &self.config;
        let is_there = match storage {
            StoragePlace::Local(directory) => directory.is_dir(),
            StoragePlace::S3 { .. } => true,
        };
        let storage = is_there.then(|| storage.to_string());
        let keys = KEYS.iter().map(|extension| self.root.key_file(name, extension));
        let keys: Vec<String> = keys.filter(|file| file.exists()).map(|file| file.display().to_string()).collect();
        let mut outcome = Outcome { name: name.to_string(), ..Outcome::default() };
        if options.keep_storage { &mut outcome.kept } else { &mut outcome.removed }.extend(storage);
        if options.keys { &mut outcome.removed } else { &mut outcome.kept }.extend(keys);
        let directories = [spool.clone(), self.root.config_dir(name)];
        let directories = directories.iter().filter(|directory| directory.exists());
        outcome.removed.extend(directories.map(|directory| directory.display().to_string()));
        outcome
    }

    /// # Errors
    /// `Conflict` if something speaks against the removal.
    fn refuse(&self, options: Options) -> Result<()> {
        self.refuse_odd_places(options)?;
        self.refuse_unwritable(options)?;
        let RepositoryConfig { name, spool, storage, .. } = &self.config;
        let conflict = |reason: String| Err(Error::conflict(format!("repository {name}"), reason));
        if !options.keep_storage
            && let Some(other) = self.root.other_with_storage(name, storage)?
        {
            return conflict(format!("{other} has the same storage; it can be kept with --keep-storage"));
        }
        let mounts = mounts()?;
        let is_in_the_way = |mount: &&PathBuf| {
            let inside = |place: &Path| mount.starts_with(place) && *mount != place;
            let in_storage = match storage {
                StoragePlace::Local(directory) => !options.keep_storage && inside(directory),
                StoragePlace::S3 { .. } => false,
            };
            inside(spool) || in_storage || **mount == self.union
        };
        if let Some(mount) = mounts.iter().find(is_in_the_way) {
            return conflict(format!("{} is mounted; unmount it first", mount.display()));
        }
        Activity::refuse_work(spool)?;
        if options.drop_transaction {
            return Ok(());
        }
        let Activity { transaction, foreign_transaction, .. } = Activity::of(spool)?;
        match transaction {
            Some(about) => conflict(format!(
                "{} has a transaction open; publish or abort it first, or drop it with --drop-transaction",
                about.opened_by
            )),
            None if foreign_transaction => {
                conflict("a transaction of cvmfs_server is open; publish or abort it first".into())
            }
            None => Ok(()),
        }
    }

    /// Half a removal helps nobody.
    ///
    /// # Errors
    /// `Io` for the first directory from which nothing may be removed.
    fn refuse_unwritable(&self, options: Options) -> Result<()> {
        let RepositoryConfig { name, spool, storage, .. } = &self.config;
        let mut places = vec![spool.clone(), self.root.config_dir(name)];
        if let StoragePlace::Local(directory) = storage
            && !options.keep_storage
        {
            places.extend([directory.clone(), directory.join("data")]);
        }
        let parents: Vec<PathBuf> = places.iter().filter_map(|place| Some(place.parent()?.to_owned())).collect();
        for place in places.iter().chain(&parents).filter(|place| place.is_dir()) {
            rustix::fs::access(place, Access::WRITE_OK | Access::EXEC_OK)
                .map_err(|error| Error::io(place, error.into()))?;
        }
        Ok(())
    }

    /// Nothing but the repository may be in what is removed.
    ///
    /// # Errors
    /// `InvalidInput` naming the place.
    fn refuse_odd_places(&self, options: Options) -> Result<()> {
        let RepositoryConfig { name, spool, storage, .. } = &self.config;
        let mut precious =
            vec![self.root.path().to_owned(), self.root.storages(), self.root.keys_dir(), self.root.config_dir(name)];
        let mut gone = vec![spool.clone()];
        if let StoragePlace::Local(directory) = storage {
            if options.keep_storage { &mut precious } else { &mut gone }.push(directory.clone());
        }
        for place in &gone {
            let real = fs::canonicalize(place).unwrap_or_else(|_| place.clone());
            let holds = |precious: &PathBuf| {
                let precious = fs::canonicalize(precious).unwrap_or_else(|_| precious.clone());
                precious.starts_with(&real)
            };
            if !place.is_absolute() || precious.iter().any(holds) {
                let what = format!("configuration of {name}");
                return Err(Error::invalid(what, format!("{} cannot be removed with it", place.display())));
            }
        }
        Ok(())
    }
}

fn take(lock: &Path, cancel: &Cancel) -> Result<FileLock> {
    let taken = FileLock::acquire(lock, Duration::ZERO, cancel)?;
    taken.ok_or_else(|| Error::conflict(lock.display().to_string(), "another process is at work"))
}

/// Where file systems are mounted.
fn mounts() -> Result<Vec<PathBuf>> {
    let file = "/proc/self/mountinfo";
    let text = fs::read(file).at(file)?;
    let lines = text.split(|byte| *byte == b'\n');
    let places = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    Ok(places.map(|place| PathBuf::from(OsString::from_vec(unescape(place)))).collect())
}

/// The kernel writes blanks and the like as three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let (mut plain, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((&first, behind)) = rest.split_first() {
        let digits =
            behind.get(..3).filter(|digits| first == b'\\' && digits.iter().all(|digit| (b'0'..b'8').contains(digit)));
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(code.unwrap_or(first));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    plain
}

/// Removes a directory with all that is in it, also behind a link.
fn remove_directory(place: &Path) -> Result<()> {
    let real = match fs::canonicalize(place) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return remove_if_there(place),
        real => real.at(place)?,
    };
    match fs::remove_dir_all(&real) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(real, error)),
        _ => {}
    }
    if place.is_symlink() { remove_if_there(place) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_mounts_are_read_as_they_are() {
        assert_eq!(unescape(br"/a\040b\134c\9\04"), br"/a b\c\9\04");
        assert!(mounts().unwrap().contains(&PathBuf::from("/")));
    }
}
