//! One file a command: arguments, conversion to library options, call, print.

mod abort;
mod cat;
mod check;
mod checkout;
mod diff;
mod document;
mod edit;
mod export;
mod find;
mod gc;
mod import;
mod index;
mod info;
mod list;
mod list_catalogs;
mod log;
mod ls;
mod masterkeycard;
mod merge_stats;
mod mkfs;
mod print_stats;
mod publish;
mod resign;
mod rewrite;
mod rmfs;
mod rollback;
mod serve;
mod tag;
mod transaction;
mod update_info;
mod update_repoinfo;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use cvmfs_core::cli::{EXIT_CODES, GlobalArgs, RepoArg, now};
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::fetch::{HttpOptions, HttpStore, ProxyChain, parse_servers};
use cvmfs_core::hash::ContentHash;
use cvmfs_core::repository::{Repository, Selector};
use cvmfs_core::server::{RepositoryConfig, load_master_keys};
use cvmfs_core::storage::ReadStore;
use cvmfs_core::tree::Tree;
use cvmfs_core::trust::keys::PublicKey;
use cvmfs_core::trust::token::{DEFAULT_PIN, TokenSettings};
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
    #[command(name = "masterkeycard")]
    MasterKeyCard(masterkeycard::Arguments),
    List(list::Arguments),
    Import(import::Arguments),
    Rmfs(rmfs::Arguments),
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
    Check(check::Arguments),
    Checkout(checkout::Arguments),
    Index(index::Arguments),
    #[command(name = "gc")]
    Collect(gc::Arguments),
    Resign(resign::Arguments),
    Serve(Box<serve::Arguments>),
    PrintStats(print_stats::Arguments),
    MergeStats(merge_stats::Arguments),
    UpdateInfo(update_info::Arguments),
    UpdateRepoinfo(update_repoinfo::Arguments),
    Migrate(rewrite::Migrate),
    CatalogChown(rewrite::MapOwners),
    EliminateHardlinks(rewrite::SeparateHardLinks),
    EliminateBulkHashes(rewrite::DropBulkHashes),
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
        Command::MasterKeyCard(arguments) => masterkeycard::run(global, arguments),
        Command::List(arguments) => list::run(global, arguments),
        Command::Import(arguments) => import::run(global, arguments),
        Command::Rmfs(arguments) => rmfs::run(global, arguments),
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
        Command::Check(arguments) => check::run(global, arguments),
        Command::Checkout(arguments) => checkout::run(global, arguments),
        Command::Index(arguments) => index::run(global, arguments),
        Command::Collect(arguments) => gc::run(global, arguments),
        Command::Resign(arguments) => resign::run(global, arguments),
        Command::Serve(arguments) => serve::run(global, arguments),
        Command::PrintStats(arguments) => print_stats::run(global, arguments),
        Command::MergeStats(arguments) => merge_stats::run(global, arguments),
        Command::UpdateInfo(arguments) => update_info::run(global, arguments),
        Command::UpdateRepoinfo(arguments) => update_repoinfo::run(global, arguments),
        Command::Migrate(arguments) => rewrite::migrate(global, arguments),
        Command::CatalogChown(arguments) => rewrite::map_owners(global, arguments),
        Command::EliminateHardlinks(arguments) => rewrite::separate_hard_links(global, arguments),
        Command::EliminateBulkHashes(arguments) => rewrite::drop_bulk_hashes(global, arguments),
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

/// The token with the master key.
#[derive(Debug, clap::Args)]
struct TokenArgs {
    /// The library that speaks with the smartcard or token of the master key, such as opensc-pkcs11.so
    #[arg(long, value_name = "FILE", env = "CVMFS_MASTERKEYCARD_MODULE")]
    module: Option<PathBuf>,
    /// The label of the token; needed only if there are several
    #[arg(long, value_name = "LABEL", env = "CVMFS_MASTERKEYCARD_TOKEN")]
    token: Option<String>,
}

impl TokenArgs {
    /// The token, if one is to be used. `is_unattended` is that of [`TokenSettings`].
    fn settings(&self, is_unattended: bool) -> Option<TokenSettings> {
        // What is an argument can be read by everybody on this machine.
        let pin = std::env::var("CVMFS_MASTERKEYCARD_PIN").unwrap_or_else(|_| DEFAULT_PIN.to_owned());
        let (module, label) = (self.module.clone()?, self.token.clone());
        Some(TokenSettings { module, label, pin, is_unattended })
    }

    /// The token.
    fn required(&self) -> Result<TokenSettings> {
        let reason = "name the library that speaks with the token (CVMFS_MASTERKEYCARD_MODULE)";
        self.settings(false).ok_or_else(|| Error::invalid("--module", reason))
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
            None => RepositoryConfig::load(&root, &name)?.storage.open()?,
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
