use std::path::PathBuf;

use cvmfs_core::cli::{GlobalArgs, now};
use cvmfs_core::compression::Compression;
use cvmfs_core::error::Result;
use cvmfs_core::hash::Algorithm;
use cvmfs_core::path::RepositoryName;
use cvmfs_core::server::SystemUser;
use cvmfs_publish::mkfs;

/// Make a repository: keys, whitelist, an empty first revision, configuration files
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish --root ./site mkfs software.example.org
  cvmfs-publish mkfs --hash shake128 --gc --ttl 60 nightlies.example.org
  cvmfs-publish mkfs -s /etc/cvmfs/s3.conf -w http://bucket.s3.example.org software.example.org")]
pub(super) struct Arguments {
    /// Fully qualified repository name
    name: RepositoryName,
    /// Hash algorithm: sha1, rmd160 or shake128
    #[arg(long, value_name = "NAME", default_value = "sha1")]
    hash: Algorithm,
    /// Compression of file content: zlib or none
    #[arg(long, value_name = "NAME", default_value = "zlib")]
    compression: Compression,
    /// Allow old revisions to be collected
    #[arg(long)]
    gc: bool,
    /// Seconds that clients wait before they ask for a new revision [default: 240]
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u32>,
    /// Mark the content as short-lived for client caches
    #[arg(long)]
    volatile: bool,
    /// System user who owns the repository [default: the current one]
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Do not name each revision by its time
    #[arg(long)]
    no_autotags: bool,
    /// Split catalogs that grow too large
    #[arg(long)]
    autocatalogs: bool,
    /// Do not allow Stratum 1 servers to replicate
    #[arg(long)]
    not_replicable: bool,
    /// URL of the storage for clients of this server [default: http://localhost/cvmfs/<NAME>]; with --s3 the URL of the
    /// bucket, without the name of the repository
    #[arg(short = 'w', visible_short_alias = 'u', long, value_name = "URL")]
    url: Option<String>,
    /// Keep the repository in a bucket of S3, described by CVMFS_S3_... in this file
    #[arg(short, long, value_name = "FILE", requires = "url")]
    s3: Option<PathBuf>,
    /// Use the keys in this directory: <NAME>.masterkey (or .pub and .whitelist), .key, .crt
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Days that the whitelist is valid
    #[arg(long, value_name = "DAYS", default_value_t = cvmfs_core::trust::whitelist::DEFAULT_DAYS)]
    whitelist_days: u32,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let owner = arguments.owner.as_deref().map_or_else(SystemUser::current, SystemUser::named)?;
    let options = mkfs::Options {
        algorithm: arguments.hash,
        compression: arguments.compression,
        garbage_collectable: arguments.gc,
        ttl: arguments.ttl,
        volatile: arguments.volatile,
        auto_tag: !arguments.no_autotags,
        auto_catalogs: arguments.autocatalogs,
        replicable: !arguments.not_replicable,
        owner_ids: (owner.uid, owner.gid),
        owner: owner.name,
        url: arguments.url.clone(),
        s3: arguments.s3.clone(),
        keys: arguments.keys.clone(),
        whitelist_days: arguments.whitelist_days,
        ..mkfs::Options::new(now()?)
    };
    let made = mkfs::mkfs(&global.server_root()?, &arguments.name, &options)?;
    let mut text = format!(
        "Repository {} is ready: revision {}, storage {}\nPublic key for clients: {}\nWhitelist valid until {}\n",
        made.name,
        made.revision,
        made.storage,
        made.public_key.display(),
        made.whitelist_expires
    );
    if let Some(master_key) = &made.master_key {
        text.push_str(&format!("Keep the master key safe, best on another machine: {}\n", master_key.display()));
    }
    global.warn(&made.warnings);
    global.print(&made, &text)
}
