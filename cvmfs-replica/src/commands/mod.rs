//! One file a command: arguments, conversion to library options, call, print.

mod add_replica;
mod check;
mod gc;
mod import;
mod list;
mod preload;
mod print_stats;
mod remove;
mod serve;
mod snapshot;
mod status;

use clap::{Parser, Subcommand};
use cvmfs_core::cli::{EXIT_CODES, GlobalArgs};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::RepositoryName;
use cvmfs_core::server::ServerRoot;
use cvmfs_replica::replica::Replica;

/// Replicate and serve CernVM-FS repositories (Stratum 1)
#[derive(Debug, Parser)]
#[command(name = "cvmfs-replica", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    AddReplica(add_replica::Arguments),
    Import(import::Arguments),
    Snapshot(snapshot::Arguments),
    Serve(serve::Arguments),
    Check(check::Arguments),
    #[command(name = "gc")]
    Collect(gc::Arguments),
    Status(status::Arguments),
    List(list::Arguments),
    Remove(remove::Arguments),
    PrintStats(print_stats::Arguments),
    Preload(preload::Arguments),
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let global = &arguments.global;
    match &arguments.command {
        Command::AddReplica(add_replica) => add_replica::run(global, add_replica),
        Command::Import(import) => import::run(global, import),
        Command::Snapshot(snapshot) => snapshot::run(global, snapshot),
        Command::Serve(serve) => serve::run(global, serve),
        Command::Check(check) => check::run(global, check),
        Command::Collect(collect) => gc::run(global, collect),
        Command::Status(status) => status::run(global, status),
        Command::List(list) => list::run(global, list),
        Command::Remove(remove) => remove::run(global, remove),
        Command::PrintStats(print_stats) => print_stats::run(global, print_stats),
        Command::Preload(preload) => preload::run(global, preload),
    }
}

/// Replicas, and those that cannot be used: one with a faulty configuration must not keep a command from the others.
#[derive(Default)]
struct Meant {
    replicas: Vec<Replica>,
    unusable: Vec<(RepositoryName, Error)>,
}

impl Meant {
    /// Leaves out what does not satisfy a condition; a replica of which that cannot be told is unusable.
    fn retain(&mut self, mut condition: impl FnMut(&Replica) -> Result<bool>) {
        for replica in std::mem::take(&mut self.replicas) {
            match condition(&replica) {
                Ok(true) => self.replicas.push(replica),
                Ok(false) => {}
                Err(error) => self.unusable.push((replica.alias, error)),
            }
        }
    }
}

/// The replicas that are meant: those that are named, or all.
///
/// # Errors
/// `NotFound` if there is none.
fn replicas(root: &ServerRoot, names: &[RepositoryName]) -> Result<Meant> {
    let aliases = if names.is_empty() { Replica::aliases(root)? } else { names.to_vec() };
    if aliases.is_empty() {
        let configs = root.path().join("etc/cvmfs/repositories.d");
        return Err(Error::not_found(format!("a replica configured below {}", configs.display())));
    }
    let mut meant = Meant::default();
    for alias in aliases {
        match Replica::load(root, &alias) {
            Ok(replica) => meant.replicas.push(replica),
            Err(error) => meant.unusable.push((alias, error)),
        }
    }
    Ok(meant)
}
