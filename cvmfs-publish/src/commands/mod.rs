//! One file a command: arguments, conversion to library options, call, print.

mod abort;
mod cat;
mod checkout;
mod diff;
mod edit;
mod export;
mod find;
mod index;
mod info;
mod list_catalogs;
mod log;
mod ls;
mod mkfs;
mod publish;
mod rollback;
mod tag;
mod transaction;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use cvmfs_core::cli::{EXIT_CODES, GlobalArgs, RepoArg, now};
use cvmfs_core::error::{IoContext as _, Result};
use cvmfs_core::fetch::{HttpOptions, HttpStore, ProxyChain, parse_servers};
use cvmfs_core::hash::ContentHash;
use cvmfs_core::repository::{Repository, Selector};
use cvmfs_core::server::{RepositoryConfig, load_master_keys};
use cvmfs_core::storage::{LocalStore, ReadStore};
use cvmfs_core::tree::Tree;
use cvmfs_core::trust::keys::PublicKey;
use cvmfs_publish::inspect;

/// Create, inspect and publish CernVM-FS repositories (Stratum 0)
#[derive(Debug, Parser)]
#[command(name = "cvmfs-publish", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mkfs(mkfs::Arguments),
    Publish(Box<publish::Arguments>),
    Info(info::Arguments),
    Ls(ls::Arguments),
    Cat(cat::Arguments),
    Verify(verify::Arguments),
    Find(find::Arguments),
    Export(export::Arguments),
    ListCatalogs(list_catalogs::Arguments),
    Log(log::Arguments),
    Diff(diff::Arguments),
    Tag(tag::Arguments),
    Rollback(rollback::Arguments),
    Checkout(checkout::Arguments),
    Index(index::Arguments),
    Transaction(transaction::Arguments),
    Abort(abort::Arguments),
    #[command(name = "rm")]
    Remove(edit::Remove),
    #[command(name = "mkdir")]
    MakeDirectory(edit::MakeDirectory),
    #[command(name = "mv")]
    Move(edit::Move),
    #[command(name = "cp")]
    Copy(edit::Copy),
    #[command(name = "ln")]
    Link(edit::Link),
    #[command(name = "chmod")]
    SetMode(edit::SetMode),
    #[command(name = "chown")]
    SetOwner(edit::SetOwner),
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let global = &arguments.global;
    match &arguments.command {
        Command::Mkfs(arguments) => mkfs::run(global, arguments),
        Command::Publish(arguments) => publish::run(global, arguments),
        Command::Info(arguments) => info::run(global, arguments),
        Command::Ls(arguments) => ls::run(global, arguments),
        Command::Cat(arguments) => cat::run(global, arguments),
        Command::Verify(arguments) => verify::run(global, arguments),
        Command::Find(arguments) => find::run(global, arguments),
        Command::Export(arguments) => export::run(global, arguments),
        Command::ListCatalogs(arguments) => list_catalogs::run(global, arguments),
        Command::Log(arguments) => log::run(global, arguments),
        Command::Diff(arguments) => diff::run(global, arguments),
        Command::Tag(arguments) => tag::run(global, arguments),
        Command::Rollback(arguments) => rollback::run(global, arguments),
        Command::Checkout(arguments) => checkout::run(global, arguments),
        Command::Index(arguments) => index::run(global, arguments),
        Command::Transaction(arguments) => transaction::run(global, arguments),
        Command::Abort(arguments) => abort::run(global, arguments),
        Command::Remove(arguments) => edit::remove(global, arguments),
        Command::MakeDirectory(arguments) => edit::make_directory(global, arguments),
        Command::Move(arguments) => edit::move_to(global, arguments),
        Command::Copy(arguments) => edit::copy(global, arguments),
        Command::Link(arguments) => edit::link(global, arguments),
        Command::SetMode(arguments) => edit::set_mode(global, arguments),
        Command::SetOwner(arguments) => edit::set_owner(global, arguments),
    }
}

/// Which repository to look at: one of this server, or one behind a URL.
#[derive(Debug, clap::Args)]
struct SourceArgs {
    #[command(flatten)]
    repo: RepoArg,
    /// Read over HTTP instead of from this server's storage; several servers separated by `;`
    #[arg(long, value_name = "URL", requires = "repo")]
    url: Option<String>,
    /// Proxies for that: groups separated by `;`, members of a group by `|`
    #[arg(long, value_name = "PROXIES", requires = "url", default_value = "DIRECT", hide_default_value = true)]
    proxy: ProxyChain,
    /// Public master key; default: the one of this server
    #[arg(long, value_name = "FILE")]
    public_key: Vec<PathBuf>,
}

impl SourceArgs {
    fn open(&self, global: &GlobalArgs) -> Result<Repository> {
        let root = global.server_root()?;
        let name = self.repo.resolve(&root)?;
        let keys = if self.public_key.is_empty() {
            load_master_keys(&root, &name)?
        } else {
            let load =
                |file: &PathBuf| PublicKey::from_pem(&file.display().to_string(), &std::fs::read(file).at(file)?);
            self.public_key.iter().map(load).collect::<Result<_>>()?
        };
        let store: Arc<dyn ReadStore> = match &self.url {
            Some(url) => {
                let options = HttpOptions { proxies: self.proxy.clone(), ..HttpOptions::default() };
                Arc::new(HttpStore::new(parse_servers(url)?, options)?)
            }
            None => Arc::new(LocalStore::open(RepositoryConfig::load(&root, &name)?.storage)?),
        };
        inspect::open(store, &name, &keys, now()?)
    }
}

/// Which revision to look at.
#[derive(Debug, clap::Args)]
struct RevisionArgs {
    /// The revision with this tag
    #[arg(long, value_name = "NAME", group = "selector")]
    tag: Option<String>,
    /// The revision of this number (the newest, or one that has a tag)
    #[arg(long, value_name = "NUMBER", group = "selector")]
    revision: Option<u64>,
    /// The revision with this root catalog
    #[arg(long, value_name = "HASH", group = "selector")]
    root_hash: Option<ContentHash>,
}

/// Which tree to look at.
#[derive(Debug, clap::Args)]
struct TreeArgs {
    #[command(flatten)]
    revision: RevisionArgs,
    #[command(flatten)]
    source: SourceArgs,
}

impl TreeArgs {
    fn open(&self, global: &GlobalArgs) -> Result<Tree> {
        self.source.open(global)?.tree(&self.revision.selector())
    }
}

impl RevisionArgs {
    fn selector(&self) -> Selector {
        match (&self.tag, self.revision, self.root_hash) {
            (Some(tag), ..) => Selector::Tag(tag.clone()),
            (_, Some(revision), _) => Selector::Revision(revision),
            (.., Some(hash)) => Selector::Root(hash),
            _ => Selector::Head,
        }
    }
}
