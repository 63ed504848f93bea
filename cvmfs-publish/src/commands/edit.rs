//! Commands that change the tree without data: `rm`, `mkdir`, `mv`, `cp`, `ln`, `chmod`, `chown`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use cvmfs_core::cli::{GlobalArgs, RepoArg, cancel_on_signals, finished_summary, now};
use cvmfs_core::commit::{self, Publisher};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::history::TagName;
use cvmfs_core::path::RepoPath;
use cvmfs_core::server::SystemUser;
use cvmfs_publish::edit::{self, Edit};
use cvmfs_publish::mode::ModeChange;

/// What all of them take.
#[derive(Debug, clap::Args)]
pub(super) struct EditArgs {
    #[command(flatten)]
    repo: RepoArg,
    /// Name the new revision; not while a transaction is open
    #[arg(long, value_name = "NAME")]
    tag: Option<TagName>,
    /// Description of that name
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, requires = "tag")]
    message: String,
}

/// Remove files, or directories with everything below them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish rm /software/README
  cvmfs-publish rm -r /software/1.0 /software/1.1")]
pub(super) struct Remove {
    /// What goes
    #[arg(required = true)]
    paths: Vec<RepoPath>,
    /// Directories, too
    #[arg(short, long)]
    recursive: bool,
    /// Fine if there is nothing
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    edit: EditArgs,
}

/// Make directories
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish mkdir -p /software/1.0/bin")]
pub(super) struct MakeDirectory {
    /// The new directories
    #[arg(required = true)]
    paths: Vec<RepoPath>,
    /// Make parents as well; fine if a directory exists
    #[arg(short, long)]
    parents: bool,
    /// Permissions, octal
    #[arg(short, long, value_name = "MODE", default_value = "755")]
    mode: ModeChange,
    #[command(flatten)]
    edit: EditArgs,
}

/// Move or rename a file or a directory; nothing may be at the new path
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish mv /software/nightly /software/1.0")]
pub(super) struct Move {
    /// The path now
    from: RepoPath,
    /// The new path
    to: RepoPath,
    #[command(flatten)]
    edit: EditArgs,
}

/// Copy a file or a directory, also out of an older revision; no data is read or stored
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish cp /software/1.0 /software/1.1
  cvmfs-publish cp --from-tag v1.0 --replace /software /software")]
pub(super) struct Copy {
    /// The original
    from: RepoPath,
    /// The copy
    to: RepoPath,
    /// Copy from the revision with this tag
    #[arg(long, value_name = "NAME", group = "from_revision")]
    from_tag: Option<String>,
    /// Replace what is there by the copy
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    edit: EditArgs,
}

/// Make a hard link, or a symbolic one
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish ln -s 1.1 /software/current
  cvmfs-publish ln /software/bin/tool /software/bin/tool-1.1")]
pub(super) struct Link {
    /// What it leads to: any text for a symbolic link, a path of the repository for a hard link
    target: OsString,
    /// The new path
    path: RepoPath,
    /// Make a symbolic link
    #[arg(short, long)]
    symbolic: bool,
    #[command(flatten)]
    edit: EditArgs,
}

/// Change permissions
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish chmod 644 /software/README
  cvmfs-publish chmod -R a+rX /software")]
pub(super) struct SetMode {
    /// Octal, or as in u+x,go-w
    mode: ModeChange,
    /// Whose permissions
    #[arg(required = true)]
    paths: Vec<RepoPath>,
    /// Everything below, too
    #[arg(short = 'R', long)]
    recursive: bool,
    #[command(flatten)]
    edit: EditArgs,
}

/// Change owners
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish chown 1000:1000 /software/README
  cvmfs-publish chown -R root /software")]
pub(super) struct SetOwner {
    /// USER, USER:GROUP or :GROUP; users by number or name, groups by number
    owner: Owner,
    /// Whose owners
    #[arg(required = true)]
    paths: Vec<RepoPath>,
    /// Everything below, too
    #[arg(short = 'R', long)]
    recursive: bool,
    #[command(flatten)]
    edit: EditArgs,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

impl std::str::FromStr for Owner {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || Error::invalid(format!("owner {text:?}"), "it is not of the form USER, USER:GROUP or :GROUP");
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let uid = match user {
            "" if group.is_none() => return Err(invalid()),
            "" => None,
            user => Some(user.parse().or_else(|_| SystemUser::named(user).map(|user| user.uid))?),
        };
        let gid = group.map(|group| group.parse().map_err(|_| invalid())).transpose()?;
        Ok(Self { uid, gid })
    }
}

pub(super) fn remove(global: &GlobalArgs, arguments: &Remove) -> Result<()> {
    let edit = |path: &RepoPath| Edit::Remove {
        path: path.clone(),
        recursive: arguments.recursive,
        missing_ok: arguments.force,
    };
    run(global, &arguments.edit, &arguments.paths.iter().map(edit).collect::<Vec<_>>())
}

pub(super) fn make_directory(global: &GlobalArgs, arguments: &MakeDirectory) -> Result<()> {
    let permissions = arguments.mode.apply(0, true);
    let edit = |path: &RepoPath| Edit::MakeDirectory { path: path.clone(), parents: arguments.parents, permissions };
    run(global, &arguments.edit, &arguments.paths.iter().map(edit).collect::<Vec<_>>())
}

pub(super) fn move_to(global: &GlobalArgs, arguments: &Move) -> Result<()> {
    run(global, &arguments.edit, &[Edit::Move { from: arguments.from.clone(), to: arguments.to.clone() }])
}

pub(super) fn copy(global: &GlobalArgs, arguments: &Copy) -> Result<()> {
    let revision = arguments.from_tag.clone().map(cvmfs_core::repository::Selector::Tag);
    let (from, to) = (arguments.from.clone(), arguments.to.clone());
    run(global, &arguments.edit, &[Edit::Copy { from, to, revision, replace: arguments.replace }])
}

pub(super) fn link(global: &GlobalArgs, arguments: &Link) -> Result<()> {
    let (path, target) = (arguments.path.clone(), arguments.target.clone().into_vec());
    let edit = if arguments.symbolic {
        Edit::Symlink { path, target }
    } else {
        Edit::Link { path, target: RepoPath::from_bytes(&target)? }
    };
    run(global, &arguments.edit, &[edit])
}

pub(super) fn set_mode(global: &GlobalArgs, arguments: &SetMode) -> Result<()> {
    let edit = |path: &RepoPath| Edit::SetMode {
        path: path.clone(),
        mode: arguments.mode.clone(),
        recursive: arguments.recursive,
    };
    run(global, &arguments.edit, &arguments.paths.iter().map(edit).collect::<Vec<_>>())
}

pub(super) fn set_owner(global: &GlobalArgs, arguments: &SetOwner) -> Result<()> {
    let Owner { uid, gid } = arguments.owner;
    let edit = |path: &RepoPath| Edit::SetOwner { path: path.clone(), uid, gid, recursive: arguments.recursive };
    run(global, &arguments.edit, &arguments.paths.iter().map(edit).collect::<Vec<_>>())
}

/// Makes edits in the open transaction, or as a revision of their own.
fn run(global: &GlobalArgs, arguments: &EditArgs, edits: &[Edit]) -> Result<()> {
    let root = global.server_root()?;
    let name = arguments.repo.resolve(&root)?;
    let publisher = Publisher::open(&root, &name)?;
    let is_revision = publisher.transaction()?.is_none();
    if !is_revision && arguments.tag.is_some() {
        return Err(Error::invalid("--tag", "a transaction is open: name the revision when you publish it"));
    }
    let mut options = commit::Options::new(now()?);
    options.tag.clone_from(&arguments.tag);
    options.message.clone_from(&arguments.message);
    let owner = SystemUser::named(&publisher.config.owner).or_else(|_| SystemUser::current())?;

    let cancel = cancel_on_signals()?;
    let before = is_revision.then(|| publisher.head(options.now)).transpose()?;
    let before = before.map(|head| head.manifest().revision);
    let finished = global.publish(&publisher, before, |progress| {
        let finished = edit::apply(&publisher, edits, (owner.uid, owner.gid), &options, progress, &cancel)?;
        let revision = finished.revision().map(|commit| commit.revision);
        Ok((finished, revision))
    })?;
    if let Some(commit) = finished.revision() {
        global.warn(&commit.warnings);
    }
    global.print(&finished, &format!("{}\n", finished_summary(&finished)))
}
