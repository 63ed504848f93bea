use cvmfs_core::cli::{GlobalArgs, human_bytes, now};
use cvmfs_core::error::Result;
use cvmfs_publish::inspect;

/// Show the newest revision, verified from the master key down
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish --root ./site info
  cvmfs-publish info --repo software.example.org --url http://stratum1.example.org/cvmfs/software.example.org --public-key software.example.org.pub")]
pub(super) struct Arguments {
    #[command(flatten)]
    source: super::SourceArgs,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let info = inspect::info(&arguments.source.open(global)?, now()?)?;
    let text = format!(
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
    global.print(&info, &text)
}
