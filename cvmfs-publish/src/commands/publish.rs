use std::path::PathBuf;

use cvmfs_core::cli::{GlobalArgs, PublicationArgs, RepoArg, cancel_on_signals, now, revision_summary};
use cvmfs_core::commit::{self, Publisher};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::RepoPath;
use cvmfs_publish::publish::{self, Exclude, From, Options};

/// Publish a directory, the upper directory of an overlay, or the open transaction, as one revision
///
/// With --from the base directory becomes equal to the directory. Only what differs is read: a file is taken for
/// unchanged if its size and modification time are. With --upper the changes that an overlay file system kept in its
/// upper directory are made. Owners, permissions, times and extended attributes are those of the files.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish publish --tag v1.0
  cvmfs-publish publish --from /data/software
  cvmfs-publish publish --from build/1.0 --base-dir software/1.0 --catalog --tag v1.0
  cvmfs-publish publish --from /data --exclude '*.tmp' --exclude /scratch --uid 0 --gid 0
  mount -t overlay overlay -o lowerdir=/cvmfs/software.example.org,upperdir=/w/upper,workdir=/w/work /mnt
  cvmfs-publish publish --upper /w/upper

What stays, though the directory does not have it: what --exclude names, as long as its directory stays, and the marker
.cvmfscatalog of a nested catalog that was made by --catalog at the base directory, for .cvmfsdirtab, or by automatic
splitting. An overlay whose upper directory was published must be mounted anew, with an empty one, over the new revision.")]
pub(super) struct Arguments {
    #[command(flatten)]
    repo: RepoArg,
    /// Directory that the base directory becomes equal to
    #[arg(short, long, value_name = "DIR", conflicts_with = "upper")]
    from: Option<PathBuf>,
    /// Upper directory of an overlay (kernel or fuse-overlayfs) that was mounted over the base directory
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
    /// The overlay was mounted with `userxattr`, or by fuse-overlayfs without root
    #[arg(long, requires = "upper")]
    userxattr: bool,
    /// Directory of the repository that it is for [default: the root, whose own owner and permissions stay]
    #[arg(short, long, value_name = "PATH", default_value = "", hide_default_value = true)]
    base_dir: RepoPath,
    /// Remove nothing
    #[arg(long, conflicts_with = "upper")]
    no_delete: bool,
    /// Leave out, and do not remove, what matches: a name anywhere, or a path from DIR if there is a slash in it; may be
    /// repeated
    #[arg(short = 'x', long, value_name = "GLOB", conflicts_with = "upper")]
    exclude: Vec<Exclude>,
    /// Do not go into other file systems that are mounted below
    #[arg(long, conflicts_with = "upper")]
    one_file_system: bool,
    /// Compare files of the same size byte by byte, not by their modification time
    #[arg(long)]
    checksum: bool,
    /// Make the base directory a nested catalog
    #[arg(short, long)]
    catalog: bool,
    /// Owner of everything [default: as in the directory]
    #[arg(short, long)]
    uid: Option<u32>,
    /// Group of everything [default: as in the directory]
    #[arg(short, long)]
    gid: Option<u32>,
    /// Number of the revision [default: the next]
    #[arg(long, value_name = "NUMBER")]
    revision: Option<u64>,
    /// Mark new files as kept on an external data server
    #[arg(long, conflicts_with = "native")]
    external: bool,
    /// Do not, though it is the repository's default
    #[arg(long)]
    native: bool,
    /// Seconds that clients wait before they ask for a new revision, from now on
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u32>,
    #[command(flatten)]
    publication: PublicationArgs,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let mut publisher = Publisher::open(&root, &arguments.repo.resolve(&root)?)?;
    publisher.config.ttl = arguments.ttl.or(publisher.config.ttl);
    let is_open = publisher.transaction()?.is_some();
    if arguments.from.is_none() && arguments.upper.is_none() {
        return publish_transaction(global, arguments, &publisher);
    }
    if is_open && !arguments.publication.transaction && !arguments.publication.dry_run {
        return Err(Error::invalid("publish", "a transaction is open: add to it with --transaction, or end it first"));
    }
    let options = options(arguments, &publisher)?;
    let now = options.publication.commit.now;
    arguments.publication.run(global, &publisher, now, |publisher, progress, cancel| {
        publish::publish(publisher, &options, progress, cancel)
    })
}

fn publish_transaction(global: &GlobalArgs, arguments: &Arguments, publisher: &Publisher) -> Result<()> {
    if arguments.publication.dry_run || arguments.publication.transaction {
        return Err(Error::invalid("publish", "this is for directories; see `diff --pending` for an open transaction"));
    }
    let mut options = commit::Options::new(now()?);
    arguments.publication.apply_to_commit(&mut options);
    options.revision = arguments.revision;
    let cancel = cancel_on_signals()?;
    let transaction = publisher.join_transaction(options.patience, &cancel).map_err(|error| match error {
        Error::NotFound { .. } => {
            Error::invalid("publish", "give a directory with --from or --upper, or open a transaction first")
        }
        other => other,
    })?;
    let outcome = global.publish(publisher, Some(transaction.about().revision), |progress| {
        let outcome = transaction.publish(&options, progress, &cancel)?;
        let revision = outcome.revision;
        Ok((outcome, Some(revision)))
    })?;
    global.warn(&outcome.warnings);
    global.print(&outcome, &format!("{}\n", revision_summary(&outcome)))
}

fn options(arguments: &Arguments, publisher: &Publisher) -> Result<Options> {
    let from = match (&arguments.upper, &arguments.from) {
        (Some(upper), _) => From::Upper { path: upper.clone(), userxattr: arguments.userxattr },
        (None, from) => From::Directory {
            path: from.clone().unwrap_or_default(),
            delete: !arguments.no_delete,
            exclude: arguments.exclude.clone(),
            one_file_system: arguments.one_file_system,
        },
    };
    let mut options = Options::new(publisher, from, arguments.base_dir.clone(), now()?);
    arguments.publication.apply(&mut options.publication);
    options.catalog = arguments.catalog;
    options.source.threads = arguments.publication.threads;
    options.source.policy.uid = arguments.uid;
    options.source.policy.gid = arguments.gid;
    options.source.policy.checksum = arguments.checksum;
    options.source.external = (options.source.external || arguments.external) && !arguments.native;
    let pipeline = &mut options.publication.pipeline;
    pipeline.external = options.source.external;
    options.publication.commit.revision = arguments.revision;
    Ok(options)
}
