use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cvmfs_core::check::{Means, Subject};
use cvmfs_core::cli::{CheckArgs, GlobalArgs, RepoArg, cancel_on_signals, check_verdict, now};
use cvmfs_core::commit::{self, PublishLock, Publisher, Rewrite};
use cvmfs_core::error::Result;
use cvmfs_core::fetch::{HttpOptions, HttpStore, parse_servers};
use cvmfs_core::path::RepoPath;
use cvmfs_core::progress::Silent;
use cvmfs_core::server::{RepositoryConfig, load_master_keys};
use cvmfs_core::storage::{ReadStore, WriteStore};

/// How long to wait for whoever publishes before the reflog is mended.
const PATIENCE: Duration = Duration::from_mins(10);

/// Look for everything that can be wrong with a repository
///
/// Signatures, tags, reflog, every catalog and every row, counters, and the existence and size of every object. What is
/// wrong is printed, a line a thing; the exit code is 3 then.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish check
  cvmfs-publish check --data
  cvmfs-publish check --incremental --json
  cvmfs-publish check --tag v1.0 --path /software/1.0
  cvmfs-publish check --data --repair --from http://s1.example.org/cvmfs/software.example.org")]
pub(super) struct Arguments {
    #[command(flatten)]
    check: CheckArgs,
    #[command(flatten)]
    repo: RepoArg,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let config = RepositoryConfig::load(&root, &arguments.repo.resolve(&root)?)?;
    let master_keys = load_master_keys(&root, &config.name)?;
    let store = config.storage.open()? as Arc<dyn WriteStore>;
    let subject = Subject {
        store: Arc::clone(&store),
        spool: &config.spool,
        name: &config.name,
        master_keys: &master_keys,
        is_replica: false,
        has_catalog: &|_| true,
    };
    let (now, cancel) = (now()?, cancel_on_signals()?);
    let mirror = arguments.check.from.as_deref().map(|url| HttpStore::new(parse_servers(url)?, HttpOptions::default()));
    let recount = |places: &BTreeSet<RepoPath>| {
        let publisher = Publisher::open(&root, &config.name)?;
        let (what, options) = (Rewrite::Recount(places.clone()), commit::Options::new(now));
        publisher.rewrite(&what, &options, &Silent, &cancel).map(drop)
    };
    let means = Means {
        mirror: mirror.transpose()?.map(|mirror| Arc::new(mirror) as Arc<dyn ReadStore>),
        lock: &|| Ok(Box::new(PublishLock::acquire(&config.spool, PATIENCE, &cancel)?)),
        recount: Some(&recount),
    };
    let checked = arguments.check.run(global, &subject, &means, now, &cancel)?;
    global.print(&checked, &checked.summary())?;
    check_verdict(&config.name, &checked.report)
}
