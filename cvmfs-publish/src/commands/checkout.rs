use cvmfs_core::cli::{GlobalArgs, RepoArg, cancel_on_signals, now};
use cvmfs_core::commit::{Checkout, Publisher};
use cvmfs_core::error::Result;
use cvmfs_publish::history::{self, CheckedOut};

/// Choose what the next revision goes on from: an older one, as a branch
///
/// The next revision that is published, which needs a tag, belongs to the branch; the trunk stays as it is, and clients see
/// the new revision only by its tag. After that the repository is back at the trunk. Without arguments, shows what is
/// checked out.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish checkout v1.0 --branch v1-fixes     # a new branch
  cvmfs-ingest --tar fix.tar --base-dir tools --tag v1.1
  cvmfs-publish checkout --branch v1-fixes          # its newest revision
  cvmfs-publish checkout --trunk                    # never mind")]
pub(super) struct Arguments {
    /// A tag, number or root hash, for a new branch
    #[arg(requires = "branch")]
    revision: Option<String>,
    /// The branch: a new one, or without a revision one that exists
    #[arg(short, long, value_name = "NAME")]
    branch: Option<String>,
    /// Go back to the newest revision of the trunk
    #[arg(long, conflicts_with_all = ["revision", "branch"])]
    trunk: bool,
    #[command(flatten)]
    repo: RepoArg,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let publisher = Publisher::open(&root, &arguments.repo.resolve(&root)?)?;
    let options = history::Options::new(now()?);
    let state = match &arguments.branch {
        Some(branch) => {
            let revision = arguments.revision.as_deref();
            history::check_out(&publisher, revision, branch, &options, &cancel_on_signals()?)?
        }
        None => {
            if arguments.trunk {
                publisher.set_checkout(None, options.patience, &cancel_on_signals()?)?;
            }
            CheckedOut { checkout: publisher.checkout()?, new_branch: false }
        }
    };
    let text = match &state.checkout {
        Some(Checkout { tag, root_hash, branch, .. }) => {
            let new = if state.new_branch { "new " } else { "" };
            format!("checked out: {tag} ({root_hash}) on {new}branch {branch}\n")
        }
        None => "checked out: the newest revision of the trunk\n".into(),
    };
    global.print(&state, &text)
}
