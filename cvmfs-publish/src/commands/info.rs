use cvmfs_core::cli::{GlobalArgs, human_bytes, now};
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::About;
use cvmfs_core::error::Result;
use cvmfs_core::server::RepositoryConfig;
use cvmfs_publish::inspect;
use serde::Serialize;

/// Show the newest revision, verified from the master key down
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish --root ./site info
  cvmfs-publish info --repo software.example.org --url http://stratum1.example.org/cvmfs/software.example.org --public-key software.example.org.pub")]
pub(super) struct Arguments {
    #[command(flatten)]
    source: super::SourceArgs,
}

/// What is known of a repository, and of what goes on in it if it is one of this server.
#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    info: inspect::Info,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction: Option<About>,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let info = inspect::info(&arguments.source.open(global)?, now()?)?;
    let transaction = match &arguments.source.url {
        Some(_) => None,
        None => {
            let root = global.server_root()?;
            About::read(&RepositoryConfig::load(&root, &arguments.source.repo.resolve(&root)?)?.spool)?
        }
    };
    let mut text = format!(
        "repository      {}\nrevision        {}\nroot catalog    {}\npublished       {}\nTTL             {} s\n\
         collectable     {}\nwhitelist until {} ({} days)\ncertificate     {}\ntags            {}\nentries         {}\n\
         catalogs        {}\nfile content    {}\n",
        info.name,
        info.revision,
        info.root_hash,
        info.published.as_deref().unwrap_or("unknown"),
        info.ttl,
        if info.garbage_collectable { "yes" } else { "no" },
        info.whitelist_expires,
        info.whitelist_days_left,
        info.certificate,
        info.tags,
        info.entries,
        info.catalogs,
        human_bytes(info.file_bytes)
    );
    if let Some(About { opened, opened_by, revision, .. }) = &transaction {
        let opened = UnixSeconds(*opened).iso();
        text.push_str(&format!("transaction     opened by {opened_by} at {opened}, at revision {revision}\n"));
    }
    global.print(&Document { info, transaction }, &text)
}
