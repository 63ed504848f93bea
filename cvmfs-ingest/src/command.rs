//! Arguments, conversion to library options, call, print.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use clap::Parser;
use cvmfs_core::cli::{EXIT_CODES, GlobalArgs, PublicationArgs, RepoArg, now, summary};
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::path::RepoPath;
use cvmfs_core::progress::Cancel;
use cvmfs_ingest::source::{Input, Ownership};
use cvmfs_ingest::{Options, ingest};

/// Stream tarballs into a CernVM-FS repository and publish them as one revision
#[derive(Debug, Parser)]
#[command(name = "cvmfs-ingest", version, after_help = format!("Examples:
  cvmfs-ingest --tar layer.tar --base-dir software/1.0
  xz -dc layer.tar.xz | cvmfs-ingest --tar - --base-dir software/1.0
  cvmfs-ingest --delete software/1.0 --tar new.tar.gz --base-dir software/1.1 --catalog --tag v1.1

{EXIT_CODES}"))]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
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
    #[arg(short, long, conflicts_with_all = ["uid", "gid"])]
    keep_owner: bool,
    /// Owner of everything
    #[arg(short, long)]
    uid: Option<u32>,
    /// Group of everything
    #[arg(short, long)]
    gid: Option<u32>,
    #[command(flatten)]
    publication: PublicationArgs,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let global = &arguments.global;
    let root = global.server_root()?;
    let publisher = Publisher::open(&root, &arguments.repo.resolve(&root)?)?;
    let options = options(arguments, &publisher)?;
    let inputs = arguments.tar.iter().map(open).collect::<Result<_>>()?;
    let progress = global.progress();
    let outcome = ingest(&publisher, inputs, &options, &*progress, &Cancel::new())?;
    drop(progress);
    global.warn(&outcome.commit.warnings);
    global.print(&outcome, &summary(&outcome))
}

fn options(arguments: &Arguments, publisher: &Publisher) -> Result<Options> {
    let mut options = Options::new(&publisher.config, arguments.base_dir.clone(), now()?)?;
    options.source.delete.clone_from(&arguments.delete);
    options.source.catalog = arguments.catalog;
    options.source.ownership = ownership(arguments, options.source.ownership);
    arguments.publication.apply(&mut options.publication);
    options.publication.total_bytes =
        arguments.tar.iter().map(|path| path.metadata().ok().map(|metadata| metadata.len())).sum();
    Ok(options)
}

fn ownership(arguments: &Arguments, default: Ownership) -> Ownership {
    if arguments.keep_owner {
        return Ownership { uid: None, gid: None, ..default };
    }
    let (uid, gid) = (arguments.uid.unwrap_or(default.implied.0), arguments.gid.unwrap_or(default.implied.1));
    Ownership { uid: Some(uid), gid: Some(gid), implied: (uid, gid) }
}

fn open(path: &PathBuf) -> Result<Input> {
    if path.as_os_str() == "-" {
        return Ok(Input { name: "standard input".into(), reader: Box::new(io::stdin()) });
    }
    let file = File::open(path).at(path)?;
    if file.metadata().at(path)?.is_dir() {
        return Err(Error::invalid(path.display().to_string(), "it is a directory, not a tarball"));
    }
    Ok(Input { name: path.display().to_string(), reader: Box::new(file) })
}
