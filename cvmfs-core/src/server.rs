//! Where a server keeps things: the reference's own places below a root directory, and its configuration files.
//!
//! With the root `/` an installed server is used as it stands; with another directory everything is below that.
//!
//! Source: `cvmfs/server/cvmfs_server_common.sh`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::chunking::ChunkSizes;
use crate::compression::Compression;
use crate::error::{Error, IoContext as _, Result};
use crate::hash::Algorithm;
use crate::path::RepositoryName;
use crate::trust::keys::{Certificate, PrivateKey, PublicKey};

/// The directory tree of a server.
#[derive(Debug, Clone)]
pub struct ServerRoot(PathBuf);

impl ServerRoot {
    /// Uses the tree below a directory, made absolute so that configuration files hold absolute paths.
    pub fn new(root: &Path) -> Result<Self> {
        std::path::absolute(root).map(Self).at(root)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Configuration files of a repository.
    pub fn config_dir(&self, name: &RepositoryName) -> PathBuf {
        self.configs().join(name.as_str())
    }

    /// Keys of all repositories.
    pub fn keys_dir(&self) -> PathBuf {
        self.0.join("etc/cvmfs/keys")
    }

    /// Storages of all repositories.
    pub fn storages(&self) -> PathBuf {
        self.0.join("srv/cvmfs")
    }

    /// Storage of a repository.
    pub fn storage_dir(&self, name: &RepositoryName) -> PathBuf {
        self.storages().join(name.as_str())
    }

    /// Working files of a repository.
    pub fn spool_dir(&self, name: &RepositoryName) -> PathBuf {
        self.0.join("var/spool/cvmfs").join(name.as_str())
    }

    /// A key file of a repository: `masterkey`, `pub`, `key` or `crt`.
    pub fn key_file(&self, name: &RepositoryName, extension: &str) -> PathBuf {
        self.keys_dir().join(format!("{name}.{extension}"))
    }

    fn configs(&self) -> PathBuf {
        self.0.join("etc/cvmfs/repositories.d")
    }

    /// The configured repositories, sorted.
    pub fn repositories(&self) -> Result<Vec<RepositoryName>> {
        let configs = self.configs();
        let mut names = Vec::new();
        let entries = match fs::read_dir(&configs) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(names),
            result => result.at(&configs)?,
        };
        for entry in entries {
            let entry = entry.at(&configs)?;
            if entry.path().join("server.conf").is_file() {
                names.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
            }
        }
        names.sort();
        Ok(names)
    }

    /// The repository that is meant when none is named: the only one that is configured.
    ///
    /// # Errors
    /// `InvalidInput` if there are several, `NotFound` if there is none.
    pub fn only_repository(&self) -> Result<RepositoryName> {
        let mut names = self.repositories()?;
        match (names.pop(), names.is_empty()) {
            (Some(only), true) => Ok(only),
            (None, _) => Err(Error::not_found(format!("a repository configured below {}", self.configs().display()))),
            (Some(last), false) => {
                let names: Vec<String> = names.iter().chain([&last]).map(ToString::to_string).collect();
                Err(Error::invalid("repository", format!("name one of {}", names.join(", "))))
            }
        }
    }
}

/// Variables of configuration files.
#[derive(Debug, Clone, Default)]
pub struct Variables {
    file: PathBuf,
    values: BTreeMap<String, String>,
}

impl Variables {
    /// Reads `KEY=value` lines; values may be quoted, lines may be comments or begin with `export`.
    ///
    /// # Errors
    /// `NotFound` if there is no such file.
    pub fn load(file: &Path) -> Result<Self> {
        let text = match fs::read_to_string(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::not_found(format!("configuration file {}", file.display())));
            }
            result => result.at(file)?,
        };
        let mut values = BTreeMap::new();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let line = line.strip_prefix("export ").unwrap_or(line);
            if let Some((key, value)) = line.split_once('=') {
                values.insert(key.trim().to_owned(), unquote(value.trim()).to_owned());
            }
        }
        Ok(Self { file: file.to_owned(), values })
    }

    /// Adds the variables of another file, which win over those of this one.
    pub fn extend(&mut self, other: Self) {
        self.values.extend(other.values);
    }

    /// The value of a variable; `None` if it is not set, or empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The value of a variable as a number or other parsable value.
    ///
    /// # Errors
    /// `InvalidInput` naming file and variable.
    pub fn parse<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>> {
        let parse = |text: &str| text.parse().map_err(|_| self.invalid(key, text));
        self.get(key).map(parse).transpose()
    }

    /// Whether a variable is switched on.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        self.get(key).map_or(default, |value| matches!(value, "true" | "yes" | "on" | "1"))
    }

    /// The days of an age such as `4 weeks ago`.
    ///
    /// # Errors
    /// `InvalidInput` if the value is not of that form.
    pub fn days_ago(&self, key: &str) -> Result<Option<u32>> {
        let days = |text: &str| parse_timespan(text).ok_or_else(|| self.invalid(key, text));
        self.get(key).map(days).transpose()
    }

    /// The directory of the local storage that `CVMFS_UPSTREAM_STORAGE` defines; `None` if it is not set.
    ///
    /// # Errors
    /// `Unsupported` for other kinds of storage.
    pub fn local_storage(&self) -> Result<Option<PathBuf>> {
        let key = "CVMFS_UPSTREAM_STORAGE";
        let Some(definition) = self.get(key) else { return Ok(None) };
        // `local,<directory for temporary files>,<directory>`
        match definition.split(',').collect::<Vec<_>>()[..] {
            ["local", _, directory] => Ok(Some(directory.into())),
            [kind, _, _] => Err(Error::Unsupported { what: format!("storage of type {kind:?}") }),
            _ => Err(self.invalid(key, definition)),
        }
    }

    fn invalid(&self, key: &str, value: &str) -> Error {
        Error::invalid(format!("{}: {key}", self.file.display()), format!("impossible value {value:?}"))
    }
}

/// The value without its quotes or the comment behind it.
fn unquote(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(rest) = value.strip_prefix(quote) {
            return rest.split(quote).next().unwrap_or(rest);
        }
    }
    value.split(" #").next().unwrap_or(value).trim_end()
}

/// The checked configuration of a Stratum 0 repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryConfig {
    /// The repository.
    pub name: RepositoryName,
    /// Directory of the storage.
    pub storage: PathBuf,
    /// Directory for working files.
    pub spool: PathBuf,
    /// `CVMFS_USER`: the system user who owns the repository.
    pub owner: String,
    /// `CVMFS_HASH_ALGORITHM`.
    pub algorithm: Algorithm,
    /// `CVMFS_COMPRESSION_ALGORITHM`.
    pub compression: Compression,
    /// `CVMFS_USE_FILE_CHUNKING` with the three sizes; `None` if off.
    pub chunking: Option<ChunkSizes>,
    /// `CVMFS_GARBAGE_COLLECTION`.
    pub garbage_collectable: bool,
    /// `CVMFS_CATALOG_ALT_PATHS`.
    pub shortcuts: bool,
    /// `CVMFS_AUTO_TAG`.
    pub auto_tag: bool,
    /// Age in days from which automatic tags go; `CVMFS_AUTO_TAG_TIMESPAN`.
    pub auto_tag_days: Option<u32>,
    /// `CVMFS_REPOSITORY_TTL` in seconds.
    pub ttl: Option<u32>,
    /// `CVMFS_EXTERNAL_DATA`.
    pub external: bool,
    /// `CVMFS_ENABLE_MTIME_NS`: whether times are recorded to the nanosecond.
    pub mtime_nanoseconds: bool,
    /// `CVMFS_INCLUDE_XATTRS`; on unless switched off, because leaving attributes out would lose data in silence.
    pub xattrs: bool,
    /// Nesting and limits.
    pub nesting: NestingConfig,
    /// `CVMFS_STATISTICS_DB`: the database with one row a publication.
    pub statistics: PathBuf,
    /// `CVMFS_STATS_DB_DAYS_TO_KEEP`: how long a row stays there.
    pub statistics_days: u32,
    /// `CVMFS_NOTIFICATION_SERVER`: who is told of new manifests.
    pub notification_server: Option<reqwest::Url>,
}

/// When catalogs are split, and how large they may become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NestingConfig {
    /// Entries above which a catalog is split, and below which one that was split off is merged back; `None` for no
    /// automatic splitting. `CVMFS_AUTOCATALOGS`.
    pub automatic: Option<AutomaticNesting>,
    /// Most entries of a nested catalog.
    pub nested_limit: u64,
    /// Most entries of the root catalog.
    pub root_limit: u64,
    /// Largest file in bytes.
    pub file_size_limit: u64,
    /// Whether exceeding a limit is an error instead of a warning.
    pub enforce_limits: bool,
}

/// Bounds of automatic splitting, in entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutomaticNesting {
    /// `CVMFS_AUTOCATALOGS_MIN_WEIGHT`.
    pub min_weight: u64,
    /// `CVMFS_AUTOCATALOGS_MAX_WEIGHT`.
    pub max_weight: u64,
}

impl Default for AutomaticNesting {
    fn default() -> Self {
        Self { min_weight: 1000, max_weight: 100_000 }
    }
}

impl Default for NestingConfig {
    fn default() -> Self {
        Self {
            automatic: None,
            nested_limit: 500_000,
            root_limit: 200_000,
            file_size_limit: 1 << 30,
            enforce_limits: false,
        }
    }
}

impl RepositoryConfig {
    /// The configuration that a new repository has.
    pub fn new(root: &ServerRoot, name: &RepositoryName) -> Self {
        Self {
            name: name.clone(),
            storage: root.storage_dir(name),
            spool: root.spool_dir(name),
            owner: "root".into(),
            algorithm: Algorithm::default(),
            compression: Compression::default(),
            chunking: Some(ChunkSizes::default()),
            garbage_collectable: false,
            shortcuts: false,
            auto_tag: true,
            auto_tag_days: None,
            ttl: None,
            external: false,
            mtime_nanoseconds: true,
            xattrs: true,
            nesting: NestingConfig::default(),
            statistics: root.spool_dir(name).join("stats.db"),
            statistics_days: 365,
            notification_server: None,
        }
    }

    /// Reads `server.conf`.
    ///
    /// # Errors
    /// `NotFound` if the repository is not configured here, `InvalidInput` naming file and variable, `Unsupported` for
    /// a replica or a storage that we do not write.
    pub fn load(root: &ServerRoot, name: &RepositoryName) -> Result<Self> {
        let file = root.config_dir(name).join("server.conf");
        let variables = Variables::load(&file)?;
        if variables.get("CVMFS_REPOSITORY_TYPE").is_some_and(|kind| kind != "stratum0") {
            return Err(Error::Unsupported {
                what: format!("{}: publishing to something else than a stratum0", file.display()),
            });
        }
        let default = Self::new(root, name);
        let sizes = ChunkSizes::new(
            variables.parse("CVMFS_MIN_CHUNK_SIZE")?.unwrap_or(4 << 20),
            variables.parse("CVMFS_AVG_CHUNK_SIZE")?.unwrap_or(8 << 20),
            variables.parse("CVMFS_MAX_CHUNK_SIZE")?.unwrap_or(16 << 20),
        )?;
        let weight = |key, otherwise| Ok::<_, Error>(variables.parse(key)?.unwrap_or(otherwise));
        let automatic = AutomaticNesting {
            min_weight: weight("CVMFS_AUTOCATALOGS_MIN_WEIGHT", AutomaticNesting::default().min_weight)?,
            max_weight: weight("CVMFS_AUTOCATALOGS_MAX_WEIGHT", AutomaticNesting::default().max_weight)?,
        };
        let limit = |key, unit: u64, otherwise| {
            let limit = variables.parse::<u64>(key)?.map(|limit| if limit == 0 { u64::MAX } else { limit * unit });
            Ok::<_, Error>(limit.unwrap_or(otherwise))
        };
        let nesting = NestingConfig {
            automatic: variables.flag("CVMFS_AUTOCATALOGS", false).then_some(automatic),
            nested_limit: limit("CVMFS_NESTED_KCATALOG_LIMIT", 1000, default.nesting.nested_limit)?,
            root_limit: limit("CVMFS_ROOT_KCATALOG_LIMIT", 1000, default.nesting.root_limit)?,
            file_size_limit: limit("CVMFS_FILE_MBYTE_LIMIT", 1 << 20, default.nesting.file_size_limit)?,
            enforce_limits: variables.flag("CVMFS_ENFORCE_LIMITS", false),
        };
        let spool = variables.get("CVMFS_SPOOL_DIR").map_or(default.spool.clone(), PathBuf::from);
        Ok(Self {
            name: name.clone(),
            statistics: variables.get("CVMFS_STATISTICS_DB").map_or(spool.join("stats.db"), PathBuf::from),
            statistics_days: variables.parse("CVMFS_STATS_DB_DAYS_TO_KEEP")?.unwrap_or(default.statistics_days),
            notification_server: variables.parse("CVMFS_NOTIFICATION_SERVER")?,
            storage: variables.local_storage()?.unwrap_or(default.storage),
            spool,
            owner: variables.get("CVMFS_USER").map_or(default.owner, str::to_owned),
            algorithm: variables.parse("CVMFS_HASH_ALGORITHM")?.unwrap_or_default(),
            compression: variables.parse("CVMFS_COMPRESSION_ALGORITHM")?.unwrap_or_default(),
            chunking: variables.flag("CVMFS_USE_FILE_CHUNKING", true).then_some(sizes),
            garbage_collectable: variables.flag("CVMFS_GARBAGE_COLLECTION", false),
            shortcuts: variables.flag("CVMFS_CATALOG_ALT_PATHS", false),
            auto_tag: variables.flag("CVMFS_AUTO_TAG", true),
            auto_tag_days: variables.days_ago("CVMFS_AUTO_TAG_TIMESPAN")?,
            ttl: variables.parse("CVMFS_REPOSITORY_TTL")?,
            external: variables.flag("CVMFS_EXTERNAL_DATA", false),
            mtime_nanoseconds: variables.flag("CVMFS_ENABLE_MTIME_NS", true),
            xattrs: variables.flag("CVMFS_INCLUDE_XATTRS", true),
            nesting,
        })
    }
}

/// The days of an age such as `4 weeks ago`; `None` if it is not of that form.
fn parse_timespan(text: &str) -> Option<u32> {
    let mut words = text.split_whitespace();
    let (number, unit) = (words.next()?.parse::<u32>().ok()?, words.next()?);
    if words.next() != Some("ago") || words.next().is_some() {
        return None;
    }
    let days = match unit.strip_suffix('s').unwrap_or(unit) {
        "day" => 1,
        "week" => 7,
        "month" => 30,
        "year" => 365,
        _ => return None,
    };
    number.checked_mul(days)
}

/// A user of this system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemUser {
    /// The name.
    pub name: String,
    /// The number.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
}

impl SystemUser {
    /// Finds a user in `/etc/passwd`.
    ///
    /// # Errors
    /// `InvalidInput` if there is none of that name.
    pub fn named(name: &str) -> Result<Self> {
        Self::find(|user| user.name == name)?
            .ok_or_else(|| Error::invalid(format!("user {name:?}"), "there is no such user"))
    }

    /// The user that this process runs as; named by the number if it has no name.
    pub fn current() -> Result<Self> {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Ok(Self::find(|user| user.uid == uid)?.unwrap_or(Self { name: uid.to_string(), uid, gid }))
    }

    fn find(wanted: impl Fn(&Self) -> bool) -> Result<Option<Self>> {
        let path = "/etc/passwd";
        let text = fs::read_to_string(path).at(path)?;
        let parse = |line: &str| {
            let mut fields = line.split(':');
            let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            Some(Self { name: name.into(), uid: uid.parse().ok()?, gid: gid.parse().ok()? })
        };
        Ok(text.lines().filter_map(parse).find(wanted))
    }
}

/// The keys that a publisher needs.
#[derive(Debug, Clone)]
pub struct PublisherKeys {
    /// Signs manifests.
    pub key: PrivateKey,
    /// Its certificate.
    pub certificate: Certificate,
    /// Verify the whitelist.
    pub master: Vec<PublicKey>,
}

impl PublisherKeys {
    /// Loads `.key`, `.crt` and `.pub` of a repository and checks that key and certificate belong together.
    ///
    /// # Errors
    /// `Io` naming the missing file, `Crypto`, `Untrusted` if they do not belong together.
    pub fn load(root: &ServerRoot, name: &RepositoryName) -> Result<Self> {
        let read = |extension| {
            let file = root.key_file(name, extension);
            fs::read(&file).at(&file).map(|bytes| (file.display().to_string(), bytes))
        };
        let (what, pem) = read("key")?;
        let key = PrivateKey::from_pem(&what, &pem)?;
        let (what, pem) = read("crt")?;
        let certificate = Certificate::from_pem(&what, pem)?;
        certificate.check_key(&key)?;
        Ok(Self { key, certificate, master: load_master_keys(root, name)? })
    }
}

/// Loads the public master key of a repository.
pub fn load_master_keys(root: &ServerRoot, name: &RepositoryName) -> Result<Vec<PublicKey>> {
    let file = root.key_file(name, "pub");
    let pem = fs::read(&file).at(&file)?;
    Ok(vec![PublicKey::from_pem(&file.display().to_string(), &pem)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_config(text: &str) -> (tempfile::TempDir, ServerRoot, RepositoryName) {
        let directory = tempfile::tempdir().unwrap();
        let root = ServerRoot::new(directory.path()).unwrap();
        let name: RepositoryName = "test.example.org".parse().unwrap();
        fs::create_dir_all(root.config_dir(&name)).unwrap();
        fs::write(root.config_dir(&name).join("server.conf"), text).unwrap();
        (directory, root, name)
    }

    #[test]
    fn reads_the_variables_of_the_reference() {
        let (_directory, root, name) = write_config(
            "# Created by cvmfs_server.\nCVMFS_REPOSITORY_TYPE=stratum0\nCVMFS_SPOOL_DIR=/var/spool/cvmfs/x\n\
             CVMFS_UPSTREAM_STORAGE=local,/srv/x/data/txn,/srv/x\nCVMFS_MIN_CHUNK_SIZE=262144\n\
             CVMFS_AVG_CHUNK_SIZE=524288\nCVMFS_MAX_CHUNK_SIZE=1048576\nexport CVMFS_HASH_ALGORITHM=\"shake128\"\n\
             CVMFS_COMPRESSION_ALGORITHM='none' # for speed\nCVMFS_AUTO_TAG=false\nCVMFS_AUTO_TAG_TIMESPAN=\"4 weeks ago\"\n\
             CVMFS_AUTOCATALOGS=true\nCVMFS_AUTOCATALOGS_MIN_WEIGHT=5\nCVMFS_REPOSITORY_TTL=61\nCVMFS_NESTED_KCATALOG_LIMIT=7\n",
        );
        let config = RepositoryConfig::load(&root, &name).unwrap();
        assert_eq!((config.storage, config.spool), ("/srv/x".into(), "/var/spool/cvmfs/x".into()));
        assert_eq!(config.chunking, Some(ChunkSizes::new(262_144, 524_288, 1_048_576).unwrap()));
        assert_eq!((config.algorithm, config.compression), (Algorithm::Shake128, Compression::None));
        assert_eq!((config.auto_tag, config.auto_tag_days, config.ttl), (false, Some(28), Some(61)));
        let automatic = Some(AutomaticNesting { min_weight: 5, max_weight: 100_000 });
        assert_eq!((config.nesting.automatic, config.nesting.nested_limit), (automatic, 7000));
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let (_directory, root, name) = write_config("");
        assert_eq!(RepositoryConfig::load(&root, &name).unwrap(), RepositoryConfig::new(&root, &name));
        assert_eq!(root.only_repository().unwrap(), name);
    }

    #[test]
    fn impossible_values_are_named() {
        for line in [
            "CVMFS_HASH_ALGORITHM=md5",
            "CVMFS_MIN_CHUNK_SIZE=x",
            "CVMFS_UPSTREAM_STORAGE=local,/x",
            "CVMFS_AUTO_TAG_TIMESPAN=yesterday",
            "CVMFS_REPOSITORY_TYPE=stratum1",
            "CVMFS_UPSTREAM_STORAGE=gw,/x,http://example.org",
        ] {
            let (_directory, root, name) = write_config(line);
            let error = RepositoryConfig::load(&root, &name).unwrap_err();
            assert!(matches!(error, Error::InvalidInput { .. } | Error::Unsupported { .. }), "{line}: {error}");
        }
    }
}
