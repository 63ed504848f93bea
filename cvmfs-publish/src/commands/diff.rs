use std::io::{self, BufWriter, Write as _};
use std::time::Duration;

use cvmfs_core::catalog::Counters;
use cvmfs_core::cli::{GlobalArgs, OUTPUT, cancel_on_signals, now};
use cvmfs_core::commit::{Publisher, Rehearsal};
use cvmfs_core::diff::{self, Aspect, Difference, Options, Report, Side, Summary, Version};
use cvmfs_core::entry::{EntryKind, FileObjects};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::RepoPath;
use cvmfs_core::repository::Selector;
use cvmfs_core::tree::Tree;
use cvmfs_publish::inspect;
use serde::Serialize;

/// Show what differs between two revisions
///
/// Lines begin with + (added), - (removed) or M (changed, followed by what changed). A change of metadata is told apart from
/// one of content, and one of content from the places where a file is cut (`chunks`) and the way it is stored (`storage`).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish diff
  cvmfs-publish diff v1.0 v2.0 --path /software
  cvmfs-publish diff --pending
  cvmfs-publish diff 17 --ignore mtime,owner --json | jq .summary")]
pub(super) struct Arguments {
    /// The revision before: a tag, number or root hash
    #[arg(default_value = "trunk-previous")]
    from: String,
    /// The revision after
    #[arg(default_value = "trunk")]
    to: String,
    /// Compare the newest revision with what it would be if the open transaction were published
    #[arg(long, conflicts_with_all = ["from", "to", "url", "public_key"])]
    pending: bool,
    /// Compare what is at this path
    #[arg(long, value_name = "PATH", default_value = "/")]
    path: RepoPath,
    /// Do not show changes of these alone: mode, owner, mtime, xattrs, links, chunks, storage
    #[arg(long, value_name = "ASPECTS", value_delimiter = ',', value_parser = aspect)]
    ignore: Vec<Aspect>,
    /// Show which directories became, or ceased to be, nested catalogs
    #[arg(long)]
    nesting: bool,
    /// Show the counts only
    #[arg(long)]
    summary: bool,
    /// Begin with a line that tells the revisions
    #[arg(long)]
    header: bool,
    /// Lines as those of `cvmfs_server diff -m`
    #[arg(short = 'm', long, conflicts_with = "summary")]
    machine_readable: bool,
    #[command(flatten)]
    source: super::SourceArgs,
}

#[derive(Serialize)]
struct Document {
    from: inspect::RevisionInfo,
    to: inspect::RevisionInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Vec<Report>>,
    summary: Summary,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let repository = arguments.source.open(global)?;
    // Holds the tree that would be.
    let rehearsal = arguments.pending.then(|| rehearse(global, arguments)).transpose()?;
    let (from, after_repository, to) = match &rehearsal {
        Some(rehearsal) => (Selector::Head, &rehearsal.head(now()?)?, Selector::Head),
        None => (repository.selector(&arguments.from)?, &repository, repository.selector(&arguments.to)?),
    };
    let (before, after) = (inspect::revision(&repository, &from)?, inspect::revision(after_repository, &to)?);
    let mut trees = (repository.tree(&from)?, after_repository.tree(&to)?);
    let mut out = BufWriter::new(io::stdout().lock());
    let mut print = |line: &str| {
        let line = if global.json { "" } else { line };
        out.write_all(line.as_bytes()).map_err(|error| Error::io(OUTPUT, error))
    };
    if arguments.header && arguments.machine_readable {
        print(MACHINE_HEADER)?;
    } else if arguments.header {
        print(&format!("from {before} to {after}\n"))?;
    }
    if arguments.machine_readable {
        let counters = statistics(&mut trees.0, &mut trees.1)?;
        print(&counters)?;
    }
    let mut reports = (!arguments.summary).then(Vec::new);
    let mut summary = Summary::default();
    let sides = (Side::at(&mut trees.0, arguments.path.clone()), Side::at(&mut trees.1, arguments.path.clone()));
    let options = Options { nesting: arguments.nesting };
    diff::diff(sides.0, sides.1, options, &mut |mut difference| {
        if !difference.ignore(&arguments.ignore) {
            return Ok(());
        }
        summary.add(&difference);
        match &mut reports {
            Some(reports) if global.json => reports.push(Report::from(&difference)),
            Some(_) if arguments.machine_readable => print(&machine_line(&difference))?,
            Some(_) => print(&format!("{difference}\n"))?,
            None => {}
        }
        Ok(())
    })?;
    out.flush().map_err(|error| Error::io(OUTPUT, error))?;
    drop(out);
    let text = if arguments.machine_readable { String::new() } else { format!("{summary}\n") };
    global.print(&Document { from: before, to: after, changes: reports, summary }, &text)
}

/// The repository as it would be if the open transaction were published now.
fn rehearse(global: &GlobalArgs, arguments: &Arguments) -> Result<Rehearsal> {
    let root = global.server_root()?;
    let publisher = Publisher::open(&root, &arguments.source.repo.resolve(&root)?)?;
    publisher.join_transaction(Duration::from_mins(1), &cancel_on_signals()?)?.rehearse(now()?)
}

fn aspect(text: &str) -> Result<Aspect> {
    let ignorable =
        [Aspect::Mode, Aspect::Owner, Aspect::Mtime, Aspect::Xattrs, Aspect::Links, Aspect::Chunks, Aspect::Storage];
    let found = ignorable.into_iter().find(|aspect| aspect.name() == text);
    found.ok_or_else(|| Error::invalid(format!("{text:?}"), "it cannot be ignored"))
}

const MACHINE_HEADER: &str = "# line descriptor: A - add, R - remove, M - modify, S - statistics; \
     modify flags: S - size, M - mode, T - timestamp, C - content, L - symlink target; \
     entry types: F - regular file, S - symbolic link, D - directory, N - nested catalog\n";

/// The lines of the reference that say by how many entries the trees differ.
fn statistics(before: &mut Tree, after: &mut Tree) -> Result<String> {
    let total = |tree: &mut Tree| Ok::<Counters, Error>(tree.root_catalog()?.statistics()?.total());
    let (before, after) = (total(before)?, total(after)?);
    let counts = |counters: Counters| {
        let [files, links, directories, nested] =
            [counters.regular, counters.symlink, counters.directory, counters.nested].map(i128::from);
        // Each nested root stands in its parent, too.
        [files, links, directories - nested, nested]
    };
    let grown = counts(after).into_iter().zip(counts(before));
    Ok(grown.zip("FSDN".chars()).map(|((after, before), letter)| format!("S {letter} {}\n", after - before)).collect())
}

/// A line of `cvmfs_server diff -m`.
fn machine_line(difference: &Difference) -> String {
    let Difference { path, before, after, aspects } = difference;
    let size = |version: &Version, sign: char| {
        if version.entry.is_directory() { String::new() } else { format!(" {sign}{}", version.entry.size_column()) }
    };
    match (before, after) {
        (Some(before), Some(after)) => {
            let flags: String = aspects.iter().map(|aspect| flag(*aspect, before, after)).collect();
            let (from, to) = (type_letter(before), type_letter(after));
            let kind = if from == to { from.to_string() } else { format!("{from}{to}") };
            format!("M[{flags}] {kind} {path}\n")
        }
        (None, Some(after)) => format!("A {} {path}{}\n", type_letter(after), size(after, '+')),
        (Some(before), None) => format!("R {} {path}{}\n", type_letter(before), size(before, '-')),
        (None, None) => String::new(),
    }
}

/// The letters of the reference.
fn flag(aspect: Aspect, before: &Version, after: &Version) -> &'static str {
    let is_chunked = |version: &Version| matches!(&version.entry.kind, EntryKind::File(file) if matches!(file.objects, FileObjects::Chunked { .. }));
    match aspect {
        Aspect::Links => "I",
        Aspect::Size | Aspect::Device => "S",
        Aspect::Type | Aspect::Mode => "M",
        Aspect::Mtime => "T",
        Aspect::Target => "L",
        Aspect::Content => "C",
        Aspect::Nesting => "N",
        Aspect::Chunks if is_chunked(before) != is_chunked(after) => "P",
        Aspect::Xattrs => "X",
        Aspect::Storage => "E",
        // It has no letter for these.
        Aspect::Owner | Aspect::Chunks => "",
    }
}

fn type_letter(version: &Version) -> char {
    match &version.entry.kind {
        EntryKind::File(_) => 'F',
        EntryKind::Symlink { .. } => 'S',
        EntryKind::Directory(_) => 'D',
        EntryKind::Special(_) => 'U',
    }
}
