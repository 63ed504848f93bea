use std::io;
use std::path::{Path, PathBuf};

use cvmfs_core::cli::{GlobalArgs, PublicationArgs, RepoArg, now, parse_bytes};
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::Result;
use cvmfs_core::idmap::IdMap;
use cvmfs_core::path::RepoPath;
use cvmfs_ingest::source::{Input, Ownership};
use cvmfs_ingest::{Options, ingest};

/// What to ingest, and where to.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Arguments {
    #[command(flatten)]
    repo: RepoArg,
    /// Tarball, plain or compressed with gzip, zstd, xz or bzip2; `-` for standard input; may be repeated
    #[arg(short = 't', long, value_name = "FILE", required_unless_present = "delete")]
    tar: Vec<PathBuf>,
    /// Directory of the repository below which the entries go [default: the root]
    #[arg(short, long, value_name = "PATH", default_value = "", hide_default_value = true)]
    base_dir: RepoPath,
    /// Remove this path first, with everything below it; may be repeated
    #[arg(short, long, value_name = "PATH")]
    delete: Vec<RepoPath>,
    /// Make the base directory a nested catalog
    #[arg(short, long)]
    catalog: bool,
    /// Keep the owners that the tarballs name [default: everything belongs to the repository's owner]
    #[arg(short, long)]
    keep_owner: bool,
    /// Owner of everything
    #[arg(short, long, conflicts_with = "keep_owner")]
    uid: Option<u32>,
    /// Group of everything
    #[arg(short, long, conflicts_with = "keep_owner")]
    gid: Option<u32>,
    /// Map the owners that the tarballs name: a file of lines `FROM TO`, `*` for all others
    #[arg(long, value_name = "FILE", conflicts_with_all = ["uid", "keep_owner"])]
    uid_map: Option<PathBuf>,
    /// Map the groups that the tarballs name, in the same way
    #[arg(long, value_name = "FILE", conflicts_with_all = ["gid", "keep_owner"])]
    gid_map: Option<PathBuf>,
    /// Take the tarballs for image layers: `.wh.` entries hide what is in the repository and in tarballs before
    #[arg(long, value_name = "KIND")]
    whiteouts: Option<Whiteouts>,
    /// Refuse a tarball with more bytes than this, uncompressed; K, M, G or T may follow the number
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    max_size: Option<u64>,
    #[command(flatten)]
    publication: PublicationArgs,
}

/// Kinds of entries that hide others.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Whiteouts {
    /// As the OCI image format has them: `.wh.NAME` and `.wh..wh..opq`
    Oci,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let publisher = Publisher::open(&root, &arguments.repo.resolve(&root)?)?;
    let options = options(arguments, &publisher)?;
    let inputs = arguments.tar.iter().map(|path| open(path)).collect::<Result<_>>()?;
    let now = options.publication.commit.now;
    arguments.publication.run(global, &publisher, now, |publisher, progress, cancel| {
        ingest(publisher, inputs, &options, progress, cancel)
    })
}

fn options(arguments: &Arguments, publisher: &Publisher) -> Result<Options> {
    let mut options = Options::new(&publisher.config, arguments.base_dir.clone(), now()?)?;
    options.source.delete.clone_from(&arguments.delete);
    options.source.catalog = arguments.catalog;
    options.source.ownership = ownership(arguments, options.source.ownership.implied)?;
    options.source.whiteouts = arguments.whiteouts.is_some();
    options.source.size_limit = arguments.max_size.unwrap_or(u64::MAX);
    arguments.publication.apply(&mut options.publication);
    options.publication.total_bytes =
        arguments.tar.iter().map(|path| path.metadata().ok().map(|metadata| metadata.len())).sum();
    Ok(options)
}

fn ownership(arguments: &Arguments, (uid, gid): (u32, u32)) -> Result<Ownership> {
    let implied = (arguments.uid.unwrap_or(uid), arguments.gid.unwrap_or(gid));
    let map = |file: &Option<PathBuf>, id| match file {
        Some(file) => IdMap::read(file),
        None if arguments.keep_owner => Ok(IdMap::default()),
        None => Ok(IdMap::constant(id)),
    };
    Ok(Ownership { uid: map(&arguments.uid_map, implied.0)?, gid: map(&arguments.gid_map, implied.1)?, implied })
}

fn open(path: &Path) -> Result<Input> {
    if path.as_os_str() == "-" { Ok(Input::stream("standard input", io::stdin())) } else { Input::file(path) }
}
