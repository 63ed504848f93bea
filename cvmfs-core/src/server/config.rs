//! The configuration of a Stratum 0 repository: `server.conf`, checked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ServerRoot, Variables};
use crate::chunking::ChunkSizes;
use crate::clock::UnixSeconds;
use crate::compression::Compression;
use crate::error::{Error, Result};
use crate::gc::Keep;
use crate::hash::Algorithm;
use crate::path::RepositoryName;
use crate::statistics::StatisticsFile;
use crate::storage::StoragePlace;

/// The checked configuration of a Stratum 0 repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryConfig {
    /// The repository.
    pub name: RepositoryName,
    /// `CVMFS_UPSTREAM_STORAGE`.
    pub storage: StoragePlace,
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
    /// The database with one row a publication.
    pub statistics: StatisticsFile,
    /// `CVMFS_NOTIFICATION_SERVER`: who is told of new manifests.
    pub notification_server: Option<reqwest::Url>,
    /// `CVMFS_GC_DELETION_LOG`: the file with a list of collected objects.
    pub deletion_log: Option<PathBuf>,
    /// Collection of garbage on its own.
    pub auto_gc: AutoGc,
}

/// How garbage is collected by a service, if one does.
///
/// Source: `is_due_auto_garbage_collection` in `cvmfs/server/cvmfs_server_common.sh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoGc {
    /// `CVMFS_AUTO_GC`; a service collects unless it is switched off.
    pub is_enabled: bool,
    /// `CVMFS_AUTO_GC_LAPSE`: days between two collections, at least.
    pub lapse_days: Option<u32>,
    /// `CVMFS_AUTO_GC_TIMESPAN`: age in days from which former revisions without tags go.
    pub timespan_days: u32,
}

impl Default for AutoGc {
    fn default() -> Self {
        Self { is_enabled: true, lapse_days: None, timespan_days: 3 }
    }
}

impl AutoGc {
    /// Takes the policy from configuration files.
    ///
    /// # Errors
    /// `InvalidInput` naming file and variable.
    pub fn of(variables: &Variables) -> Result<Self> {
        let default = Self::default();
        Ok(Self {
            is_enabled: variables.flag("CVMFS_AUTO_GC", default.is_enabled),
            lapse_days: variables.days_ago("CVMFS_AUTO_GC_LAPSE")?,
            timespan_days: variables.days_ago("CVMFS_AUTO_GC_TIMESPAN")?.unwrap_or(default.timespan_days),
        })
    }

    /// The interval of a service that collects every so often; `None` if it is not to collect here.
    pub fn interval(&self, every: Duration) -> Option<Duration> {
        let lapse = Duration::from_hours(24 * u64::from(self.lapse_days.unwrap_or(0)));
        self.is_enabled.then(|| every.max(lapse))
    }

    /// What a run at `now` keeps.
    pub fn keep(&self, now: UnixSeconds) -> Keep {
        let seconds = i64::from(self.timespan_days) * 86_400;
        Keep { revisions: None, since: Some(UnixSeconds(now.0.saturating_sub(seconds))) }
    }
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
            storage: StoragePlace::Local(root.storage_dir(name)),
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
            statistics: StatisticsFile::in_spool(&root.spool_dir(name), name),
            notification_server: None,
            deletion_log: None,
            auto_gc: AutoGc::default(),
        }
    }

    /// Reads `server.conf`.
    ///
    /// # Errors
    /// `NotFound` if the repository is not configured here, `InvalidInput` naming file and variable, `Unsupported` for
    /// a replica or a storage that we do not write.
    pub fn load(root: &ServerRoot, name: &RepositoryName) -> Result<Self> {
        Self::load_from(&root.server_conf(name), root, name)
    }

    /// Reads another file of the form of `server.conf`.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn load_from(file: &Path, root: &ServerRoot, name: &RepositoryName) -> Result<Self> {
        let variables = Variables::load(file)?;
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
        let limit = |key, unit: u64, otherwise| match variables.parse::<u64>(key)? {
            None => Ok(otherwise),
            Some(0) => Ok(u64::MAX),
            Some(limit) => limit.checked_mul(unit).ok_or_else(|| variables.invalid(key, &limit.to_string())),
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
            statistics: StatisticsFile::configured(&variables, &spool, name)?,
            notification_server: variables.parse("CVMFS_NOTIFICATION_SERVER")?,
            deletion_log: variables.get("CVMFS_GC_DELETION_LOG").map(PathBuf::from),
            auto_gc: AutoGc::of(&variables)?,
            storage: variables.storage()?.unwrap_or(default.storage),
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

#[cfg(test)]
mod tests {
    use std::fs;

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
    fn limits_that_no_number_holds_are_refused() {
        let (_directory, root, name) = write_config("CVMFS_FILE_MBYTE_LIMIT=18446744073709551615\n");
        let error = RepositoryConfig::load(&root, &name).unwrap_err().to_string();
        assert!(error.contains("server.conf: CVMFS_FILE_MBYTE_LIMIT: impossible value"), "{error}");
    }

    #[test]
    fn reads_the_variables_of_the_reference() {
        let (_directory, root, name) = write_config(
            "# Created by cvmfs_server.\nCVMFS_REPOSITORY_TYPE=stratum0\nCVMFS_SPOOL_DIR=/var/spool/cvmfs/x\n\
             CVMFS_UPSTREAM_STORAGE=local,/srv/x/data/txn,/srv/x\nCVMFS_MIN_CHUNK_SIZE=262144\n\
             CVMFS_AVG_CHUNK_SIZE=524288\nCVMFS_MAX_CHUNK_SIZE=1048576\nexport CVMFS_HASH_ALGORITHM=\"shake128\"\n\
             CVMFS_COMPRESSION_ALGORITHM='none' # for speed\nCVMFS_AUTO_TAG=false\nCVMFS_AUTO_TAG_TIMESPAN=\"4 weeks ago\"\n\
             CVMFS_AUTOCATALOGS=true\nCVMFS_AUTOCATALOGS_MIN_WEIGHT=5\nCVMFS_REPOSITORY_TTL=61\nCVMFS_NESTED_KCATALOG_LIMIT=7\n\
             CVMFS_AUTO_GC=false\nCVMFS_AUTO_GC_LAPSE='1 week ago'\nCVMFS_AUTO_GC_TIMESPAN='2 days ago'\n",
        );
        let config = RepositoryConfig::load(&root, &name).unwrap();
        assert_eq!(config.storage, StoragePlace::Local("/srv/x".into()));
        assert_eq!(config.spool, PathBuf::from("/var/spool/cvmfs/x"));
        assert_eq!(config.chunking, Some(ChunkSizes::new(262_144, 524_288, 1_048_576).unwrap()));
        assert_eq!((config.algorithm, config.compression), (Algorithm::Shake128, Compression::None));
        assert_eq!((config.auto_tag, config.auto_tag_days, config.ttl), (false, Some(28), Some(61)));
        let automatic = Some(AutomaticNesting { min_weight: 5, max_weight: 100_000 });
        assert_eq!((config.nesting.automatic, config.nesting.nested_limit), (automatic, 7000));
        assert_eq!(config.auto_gc, AutoGc { is_enabled: false, lapse_days: Some(7), timespan_days: 2 });
    }

    #[test]
    fn the_policy_of_a_repository_limits_what_a_service_collects() {
        const DAY: Duration = Duration::from_hours(24);
        let policy = AutoGc { lapse_days: Some(2), ..AutoGc::default() };
        assert_eq!(policy.interval(DAY), Some(2 * DAY));
        assert_eq!(policy.interval(3 * DAY), Some(3 * DAY));
        assert_eq!(AutoGc { is_enabled: false, ..policy }.interval(DAY), None);
        assert_eq!(policy.keep(UnixSeconds(1_000_000)).since, Some(UnixSeconds(740_800)));
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
