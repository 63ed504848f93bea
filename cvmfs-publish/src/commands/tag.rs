use clap::Subcommand;
use cvmfs_core::cli::{GlobalArgs, RepoArg, cancel_on_signals, human_bytes, now};
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::history::{Branch, TagName};
use cvmfs_publish::history::{self, Edited, Named};

/// Name revisions: list, show, add, move and remove tags
///
/// A revision is given by a tag, its number (the newest, or one that has a tag) or the hash of its root catalog. The tags
/// `trunk` and `trunk-previous` are managed by publishing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish tag
  cvmfs-publish tag add v1.0 --message 'first release'
  cvmfs-publish tag add known-good 17
  cvmfs-publish tag move known-good trunk
  cvmfs-publish tag remove v0.1 v0.2")]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    list: ListArguments,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List all tags, the newest revision first
    List(ListArguments),
    /// Show one tag
    #[command(alias = "inspect")]
    Show {
        /// The tag
        name: String,
        /// One line, as `cvmfs_server tag -i NAME -x`
        #[arg(short = 'x', long)]
        machine_readable: bool,
        #[command(flatten)]
        source: super::SourceArgs,
    },
    /// Name a revision; fine if it has that name
    Add {
        /// The new tag
        name: TagName,
        /// A tag, number or root hash
        #[arg(default_value = "trunk")]
        revision: String,
        /// Description
        #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        message: String,
        #[command(flatten)]
        repo: RepoArg,
    },
    /// Make a tag name another revision
    Move {
        /// The tag
        name: TagName,
        /// A tag, number or root hash
        #[arg(default_value = "trunk")]
        revision: String,
        /// New description [default: the old one]
        #[arg(short, long, value_name = "TEXT")]
        message: Option<String>,
        #[command(flatten)]
        repo: RepoArg,
    },
    /// Remove tags; the revisions stay until they are collected
    Remove {
        /// The tags
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        repo: RepoArg,
    },
    /// Show branches and the branches that they left
    Branches {
        /// One line a branch, as `cvmfs_server tag -b -x`
        #[arg(short = 'x', long)]
        machine_readable: bool,
        #[command(flatten)]
        source: super::SourceArgs,
    },
}

#[derive(Debug, clap::Args)]
struct ListArguments {
    /// One line a tag, as `cvmfs_server tag -l -x`: name, hash, catalog size, revision, time, branch, description
    #[arg(short = 'x', long)]
    machine_readable: bool,
    #[command(flatten)]
    source: super::SourceArgs,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    match arguments.action.as_ref() {
        None => list(global, &arguments.list),
        Some(Action::List(arguments)) => list(global, arguments),
        Some(Action::Show { name, machine_readable, source }) => show(global, name, *machine_readable, source),
        Some(Action::Branches { machine_readable, source }) => branches(global, *machine_readable, source),
        Some(Action::Add { name, revision, message, repo }) => edit(global, repo, "names", |publisher, options| {
            history::add_tag(publisher, name, revision, message, options, &cancel_on_signals()?)
        }),
        Some(Action::Move { name, revision, message, repo }) => edit(global, repo, "names", |publisher, options| {
            history::move_tag(publisher, name, revision, message.as_deref(), options, &cancel_on_signals()?)
        }),
        Some(Action::Remove { names, repo }) => edit(global, repo, "no longer names", |publisher, options| {
            history::remove_tags(publisher, names, options, &cancel_on_signals()?)
        }),
    }
}

fn edit(
    global: &GlobalArgs,
    repo: &RepoArg,
    verb: &str,
    edit: impl FnOnce(&Publisher, &history::Options) -> Result<Edited>,
) -> Result<()> {
    let root = global.server_root()?;
    let publisher = Publisher::open(&root, &repo.resolve(&root)?)?;
    let edited = edit(&publisher, &history::Options::new(now()?))?;
    let line = |tag: &Named| format!("{} {verb} revision {} ({})\n", tag.name, tag.revision, tag.root_hash);
    let text = if edited.changed { edited.tags.iter().map(line).collect() } else { "unchanged\n".to_owned() };
    global.print(&edited, &text)
}

fn list(global: &GlobalArgs, arguments: &ListArguments) -> Result<()> {
    let tags = history::list_tags(&arguments.source.open(global)?)?;
    let text = if arguments.machine_readable { tags.iter().map(machine_line).collect() } else { table(&tags) };
    global.print(&tags, &text)
}

fn table(tags: &[Named]) -> String {
    let width = |column: fn(&Named) -> usize, title: &str| {
        tags.iter().map(column).chain([title.len()]).max().unwrap_or_default()
    };
    let names = width(|tag| tag.name.len(), "NAME");
    let branches = width(|tag| tag.branch.len(), "BRANCH");
    let mut text =
        format!("{:names$}  {:>8}  {:23}  {:branches$}  DESCRIPTION\n", "NAME", "REVISION", "TIME", "BRANCH");
    for Named { name, revision, time, branch, description, .. } in tags {
        let line = format!("{name:names$}  {revision:8}  {time:23}  {branch:branches$}  {description}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The reference prints nothing else than this for programs.
fn machine_line(tag: &Named) -> String {
    let Named { name, root_hash, catalog_bytes, revision, timestamp, branch, description, .. } = tag;
    let branch = if branch.is_empty() { "(default)" } else { branch };
    format!("{name} {root_hash} {catalog_bytes} {revision} {timestamp} {branch} {description}\n")
}

fn show(global: &GlobalArgs, name: &str, machine_readable: bool, source: &super::SourceArgs) -> Result<()> {
    let tags = history::list_tags(&source.open(global)?)?;
    let found = tags.iter().find(|tag| tag.name == name);
    let tag = found.ok_or_else(|| Error::not_found(format!("tag {name:?}")))?;
    let Named { name, revision, time, branch, root_hash, catalog_bytes, description, .. } = tag;
    let text = if machine_readable {
        machine_line(tag)
    } else {
        format!(
            "Name:         {name}\nRevision:     {revision}\nTime:         {time}\nBranch:       {branch}\n\
             Root hash:    {root_hash}\nCatalog size: {}\nDescription:  {description}\n",
            human_bytes(*catalog_bytes)
        )
    };
    global.print(tag, &text)
}

fn branches(global: &GlobalArgs, machine_readable: bool, source: &super::SourceArgs) -> Result<()> {
    let branches = source.open(global)?.branches()?;
    let mut text = String::new();
    // Branches to print with their depth, the next one last.
    let mut todo: Vec<(usize, &Branch)> =
        branches.iter().filter(|branch| branch.parent.is_none()).map(|b| (0, b)).collect();
    while let Some((depth, branch)) = todo.pop() {
        let name = if branch.name.is_empty() { "(default)" } else { &branch.name };
        let revision = branch.initial_revision;
        text.push_str(&if machine_readable {
            format!("[{depth}] {:depth$}{name} @{revision}\n", "")
        } else {
            format!("{:indent$}{name} from revision {revision}\n", "", indent = 2 * depth)
        });
        let below = branches.iter().rev().filter(|other| other.parent.as_deref() == Some(&branch.name));
        todo.extend(below.map(|branch| (depth + 1, branch)));
    }
    global.print(&branches, &text)
}
