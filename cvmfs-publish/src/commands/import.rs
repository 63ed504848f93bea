use std::path::PathBuf;
use std::time::Duration;

use cvmfs_core::cli::{GlobalArgs, cancel_on_signals, now};
use cvmfs_core::compression::Compression;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::RepositoryName;
use cvmfs_core::storage::StoragePlace;
use cvmfs_publish::import::{self, Options, Outcome};

/// Take over the storage of a repository that exists
///
/// The storage stays where it is, and as it is. With the repository's keys publishing goes on; with the public key alone the
/// repository can be read, verified and replicated; with the master key new keys can be made.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish import --keys /backup/keys software.example.org
  cvmfs-publish import --storage /data/software --keys /backup/keys --recreate-whitelist software.example.org
  cvmfs-publish import --new-keys --keys /media/stick software.example.org       # needs the master key
  cvmfs-publish import --s3 /etc/cvmfs/s3.conf -w http://bucket.s3.example.org software.example.org")]
pub(super) struct Arguments {
    /// Fully qualified repository name
    name: RepositoryName,
    /// Directory of the storage [default: srv/cvmfs/<NAME>]
    #[arg(long, value_name = "DIR", conflicts_with = "s3")]
    storage: Option<PathBuf>,
    /// The storage is in a bucket of S3, described by CVMFS_S3_... in this file
    #[arg(long, value_name = "FILE", requires = "url")]
    s3: Option<PathBuf>,
    /// The storage as CVMFS_UPSTREAM_STORAGE defines it: local,DIR/data/txn,DIR or S3,TMP,ALIAS@FILE
    #[arg(short, long, value_name = "DEFINITION", conflicts_with_all = ["storage", "s3"], value_parser = parse_place)]
    upstream: Option<StoragePlace>,
    /// URL of the storage for clients of this server [default: http://localhost/cvmfs/<NAME>]; with --s3 the URL of the
    /// bucket, without the name of the repository
    #[arg(short = 'w', long, value_name = "URL")]
    url: Option<String>,
    /// Directory with the keys: <NAME>.pub or .masterkey, and .key with .crt to publish [default: etc/cvmfs/keys]
    #[arg(short, long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// System user who owns the repository [default: whoever owns the storage]
    #[arg(short, long, value_name = "USER")]
    owner: Option<String>,
    /// Give the storage to that user
    #[arg(short = 'g', long)]
    chown: bool,
    /// Sign the whitelist again, with the master key, or take <NAME>.whitelist from the directory of keys
    #[arg(short, long)]
    recreate_whitelist: bool,
    /// Make a new key and certificate; sign whitelist and manifest with master key and new key
    #[arg(short = 't', long)]
    new_keys: bool,
    /// Days that a new whitelist is valid
    #[arg(long, value_name = "DAYS", default_value_t = cvmfs_core::trust::whitelist::DEFAULT_DAYS)]
    whitelist_days: u32,
    /// Allow Stratum 1 servers to replicate
    #[arg(short = 'm', long)]
    replicable: bool,
    /// Compression of file content from now on: zlib or none
    #[arg(long, value_name = "NAME", default_value = "zlib")]
    compression: Compression,
    /// Seconds to wait for another publisher
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Show what would be done, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    needless: Needless,
}

/// Options of the reference's command that nothing here needs, accepted for scripts that have them.
#[derive(Debug, clap::Args)]
struct Needless {
    #[arg(short = 'l', long, hide = true)]
    legacy: bool,
    #[arg(short = 's', hide = true)]
    show_statistics: bool,
    #[arg(short = 'p', hide = true)]
    no_apache: bool,
    #[arg(short = 'f', value_name = "NAME", hide = true)]
    union_file_system: Option<String>,
    #[arg(short = 'c', value_name = "UID:GID", hide = true)]
    file_ownership: Option<String>,
    #[arg(short = 'x', value_name = "URL", hide = true)]
    proxy: Option<String>,
}

fn parse_place(text: &str) -> Result<StoragePlace> {
    StoragePlace::parse(text)?.ok_or_else(|| Error::invalid(text, "it is no definition of a storage"))
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let options = Options {
        storage: arguments.storage.clone(),
        upstream: arguments.upstream.clone(),
        s3: arguments.s3.clone(),
        url: arguments.url.clone(),
        keys: arguments.keys.clone(),
        owner: arguments.owner.clone(),
        chown: arguments.chown,
        recreate_whitelist: arguments.recreate_whitelist,
        new_keys: arguments.new_keys,
        whitelist_days: arguments.whitelist_days,
        replicable: arguments.replicable,
        compression: arguments.compression,
        patience: Duration::from_secs(arguments.timeout),
        ..Options::new(now()?)
    };
    let (root, cancel) = (global.server_root()?, cancel_on_signals()?);
    let outcome = if arguments.dry_run {
        import::rehearse(&root, &arguments.name, &options)?
    } else {
        import::import(&root, &arguments.name, &options, &cancel)?
    };
    global.warn(&outcome.warnings);
    global.print(&outcome, &summary(&outcome))
}

fn summary(outcome: &Outcome) -> String {
    let Outcome { name, revision, storage, owner, .. } = outcome;
    let verb = if outcome.dry_run { "would be imported" } else { "is imported" };
    let mut text = format!("repository {name} {verb}: revision {revision}, storage {storage}, owner {owner}\n");
    text.push_str(match (outcome.can_publish, outcome.new_keys) {
        (true, true) => {
            "new key and certificate; the old certificate stays on the whitelist until `resign --only-this`\n"
        }
        (true, false) => "publishing can go on\n",
        (false, _) => "no key to publish with: it can be read, verified and replicated\n",
    });
    if let Some(expires) = &outcome.whitelist_expires {
        let signed = if outcome.whitelist_recreated { "signed again, " } else { "" };
        text.push_str(&format!("whitelist {signed}valid until {expires}\n"));
    }
    text
}
