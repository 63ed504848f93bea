//! Commands that write all catalogs anew: `migrate`, `catalog-chown`, `eliminate-hardlinks`, `eliminate-bulk-hashes`.

use std::path::PathBuf;

use cvmfs_core::cli::{GlobalArgs, RepoArg, cancel_on_signals, human_bytes, now};
use cvmfs_core::commit::{self, Publisher, Rewrite, Rewritten};
use cvmfs_core::diff;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::history::TagName;
use cvmfs_core::idmap::IdMap;
use cvmfs_core::server::SystemUser;
use serde::Serialize;

use super::edit::Owner;

/// What all of them take.
#[derive(Debug, clap::Args)]
pub(super) struct RewriteArgs {
    #[command(flatten)]
    repo: RepoArg,
    /// Name the new revision
    #[arg(long, value_name = "NAME")]
    tag: Option<TagName>,
    /// Description of that name
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, requires = "tag")]
    message: String,
    /// Show how much would change, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Show every entry that would change as well
    #[arg(long, requires = "dry_run")]
    list: bool,
    /// Threads that work on catalogs [default: one a core]
    #[arg(long, value_name = "NUMBER", default_value_t = 0, hide_default_value = true)]
    threads: usize,
}

/// Bring catalogs of older schemas to the newest one
///
/// All catalogs of the newest revision are looked at, and those that are not as today's schema makes them are written
/// anew, with those above them. Older revisions stay as they are.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish migrate --dry-run
  cvmfs-publish migrate --tag before-3.0 --message 'catalogs of schema 2.5'
  cvmfs-publish migrate --owner 1000:1000")]
pub(super) struct Migrate {
    /// USER:GROUP of entries in catalogs of schema 1, which know no owners [default: the repository's]
    #[arg(long)]
    owner: Option<Owner>,
    #[command(flatten)]
    rewrite: RewriteArgs,
}

/// Map owners and groups of all entries
///
/// A map file has a rule a line, FROM TO, two numbers; `*` for FROM means all that have no rule. What has no rule stays.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish catalog-chown -u uid.map -g gid.map
  cvmfs-publish catalog-chown --uid-map uid.map --dry-run --list")]
#[group(skip)]
pub(super) struct MapOwners {
    /// Map of owners
    #[arg(short, long, value_name = "FILE", required_unless_present = "gid_map")]
    uid_map: Option<PathBuf>,
    /// Map of groups
    #[arg(short, long, value_name = "FILE")]
    gid_map: Option<PathBuf>,
    #[command(flatten)]
    rewrite: RewriteArgs,
}

/// Make files of their own of all names of hard links
///
/// The names keep sharing their objects; clients show them as different files with one link each.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish eliminate-hardlinks --dry-run
  cvmfs-publish eliminate-hardlinks")]
pub(super) struct SeparateHardLinks {
    #[command(flatten)]
    rewrite: RewriteArgs,
}

/// Forget the objects of whole files for those that have chunks
///
/// Only clients older than 2.1.7 need them. They are removed by the next `gc` that removes the revisions before.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish eliminate-bulk-hashes --dry-run
  cvmfs-publish eliminate-bulk-hashes")]
pub(super) struct DropBulkHashes {
    #[command(flatten)]
    rewrite: RewriteArgs,
}

pub(super) fn migrate(global: &GlobalArgs, arguments: &Migrate) -> Result<()> {
    run(global, &arguments.rewrite, |publisher| {
        let user = SystemUser::named(&publisher.config.owner).or_else(|_| SystemUser::current())?;
        let (uid, gid) = arguments.owner.map_or((None, None), |owner| (owner.uid, owner.gid));
        Ok(Rewrite::Migrate { owner: (uid.unwrap_or(user.uid), gid.unwrap_or(user.gid)) })
    })
}

pub(super) fn map_owners(global: &GlobalArgs, arguments: &MapOwners) -> Result<()> {
    run(global, &arguments.rewrite, |_| {
        let [users, groups] = [&arguments.uid_map, &arguments.gid_map].map(|file| {
            let Some(file) = file else { return Ok(IdMap::default()) };
            let map = IdMap::read(file)?;
            if map.is_empty() { Err(Error::invalid(file.display().to_string(), "it has no rules")) } else { Ok(map) }
        });
        Ok(Rewrite::Owners { users: users?, groups: groups? })
    })
}

pub(super) fn separate_hard_links(global: &GlobalArgs, arguments: &SeparateHardLinks) -> Result<()> {
    run(global, &arguments.rewrite, |_| Ok(Rewrite::SeparateHardLinks))
}

pub(super) fn drop_bulk_hashes(global: &GlobalArgs, arguments: &DropBulkHashes) -> Result<()> {
    run(global, &arguments.rewrite, |_| Ok(Rewrite::DropBulkHashes))
}

/// What a dry run came to.
#[derive(Debug, Serialize)]
struct Rehearsed {
    dry_run: bool,
    changes: Vec<diff::Report>,
    outcome: Rewritten,
}

fn run(global: &GlobalArgs, arguments: &RewriteArgs, what: impl FnOnce(&Publisher) -> Result<Rewrite>) -> Result<()> {
    let root = global.server_root()?;
    let publisher = Publisher::open(&root, &arguments.repo.resolve(&root)?)?;
    let mut options = commit::Options::new(now()?);
    options.tag.clone_from(&arguments.tag);
    options.message.clone_from(&arguments.message);
    options.threads = arguments.threads;
    let (what, cancel) = (what(&publisher)?, cancel_on_signals()?);

    if arguments.dry_run {
        let rehearsal = publisher.rehearsal(options.now)?;
        let outcome = rehearsal.rewrite(&what, &options, &*global.progress(), &cancel)?;
        global.warn(&outcome.warnings);
        let mut changes = Vec::new();
        if arguments.list {
            global.list_differences(&rehearsal, options.now, &mut changes)?;
        }
        let text = summary("would write", &outcome);
        return global.print(&Rehearsed { dry_run: true, changes, outcome }, &text);
    }
    let before = publisher.head(options.now)?.manifest().revision;
    let outcome = global.publish(&publisher, Some(before), |progress| {
        let outcome = publisher.rewrite(&what, &options, progress, &cancel)?;
        let revision = outcome.revision;
        Ok((outcome, Some(revision)))
    })?;
    global.warn(&outcome.warnings);
    let tag = outcome.tag.as_ref().map_or_else(String::new, |tag| format!(", tag {tag}"));
    let text = if outcome.changed {
        format!("revision {}{tag}: {}", outcome.revision, summary("wrote", &outcome))
    } else {
        format!("unchanged: {} catalogs of revision {} are as they should be\n", outcome.catalogs, outcome.revision)
    };
    global.print(&outcome, &text)
}

fn summary(verb: &str, outcome: &Rewritten) -> String {
    let Rewritten { catalogs, catalogs_written, catalog_bytes, entries, .. } = outcome;
    let bytes = human_bytes(*catalog_bytes);
    format!("{verb} {catalogs_written} of {catalogs} catalogs ({bytes}), {entries} entries changed\n")
}
