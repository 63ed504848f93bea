use std::path::PathBuf;

use cvmfs_core::cli::{GlobalArgs, now};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::fetch::{Url, parse_servers};
use cvmfs_core::path::RepositoryName;
use cvmfs_core::server::SystemUser;
use cvmfs_replica::replica::{self, AddOptions, Replica};
use serde::Serialize;

/// Configure a replica of a repository
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-replica add-replica --stratum0 http://s0.example.org/cvmfs/software.example.org --public-key example.org.pub
  cvmfs-replica add-replica --stratum0 URL --public-key /etc/cvmfs/keys/example.org --group nightly --name mirror.example.org
  cvmfs-replica add-replica --stratum0 URL --public-key FILE -s /etc/cvmfs/s3.conf -w http://bucket.s3.example.org
  cvmfs-replica add-replica --stratum0 URL --pass-through")]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) source: SourceArgs,
    /// Name of the replica on this server [default: that of the repository]
    #[arg(long, value_name = "ALIAS")]
    name: Option<RepositoryName>,
    /// Where the replica is stored: local, or s3, which needs --s3
    #[arg(long, value_name = "KIND", value_parser = ["local", "s3"])]
    upstream: Option<String>,
    /// Keep the replica in a bucket of S3, described by CVMFS_S3_... in this file
    #[arg(short, long, value_name = "FILE", requires = "url", conflicts_with_all = ["storage", "pass_through"])]
    s3: Option<PathBuf>,
    /// Store nothing; requests are passed on to the source
    #[arg(long)]
    pass_through: bool,
}

/// Arguments that both ways to a new replica have.
#[derive(Debug, clap::Args)]
pub(super) struct SourceArgs {
    /// URL of the repository at the source; may be repeated, the best first
    #[arg(long, value_name = "URL", required = true)]
    stratum0: Vec<String>,
    /// Public master key, or a directory of such files; may be repeated
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present = "pass_through")]
    public_key: Vec<PathBuf>,
    /// URL under which this server's own tools find the replica [default: http://localhost/cvmfs/<ALIAS>]; in a bucket the
    /// URL of that, without the name of the replica
    #[arg(short = 'w', long, value_name = "URL")]
    url: Option<String>,
    /// Directory of the storage [default: srv/cvmfs/<ALIAS>]
    #[arg(long, value_name = "DIR")]
    storage: Option<PathBuf>,
    /// System user who owns the replica [default: the one that runs this]
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Group of replicas to which it belongs
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    group: String,
    /// Proxies on the way to the source, as in CVMFS_HTTP_PROXY
    #[arg(long, value_name = "PROXIES")]
    proxy: Option<String>,
    /// Certificates in PEM form that are trusted for https besides those of the system
    #[arg(long, value_name = "FILE")]
    ca_bundle: Option<PathBuf>,
    /// Most bytes a second to fetch, such as 20M
    #[arg(long, value_name = "BYTES")]
    bandwidth: Option<String>,
    /// Replicate only what a path specification in this file selects
    #[arg(long, value_name = "FILE")]
    paths: Option<PathBuf>,
    /// Replicate only revisions with tags like this, and the newest; may be repeated
    #[arg(long, value_name = "PATTERN")]
    tags: Vec<String>,
    /// Replicate only revisions of so many days, and the newest
    #[arg(long, value_name = "DAYS")]
    days: Option<u32>,
    /// Have the reference's tools collect garbage after their snapshots
    #[arg(long)]
    auto_gc: bool,
}

impl SourceArgs {
    pub(super) fn options(&self) -> Result<AddOptions> {
        let sources = self.stratum0.iter().map(|url| parse_servers(url)).collect::<Result<Vec<Vec<Url>>>>()?.concat();
        let mut settings = Vec::new();
        if let Some(bandwidth) = &self.bandwidth {
            cvmfs_core::cli::parse_bytes(bandwidth)?;
            settings.push(("CVMFS_REPLICA_BANDWIDTH".into(), bandwidth.clone()));
        }
        if let Some(paths) = &self.paths {
            let absolute = std::path::absolute(paths).map_err(|error| Error::io(paths, error))?;
            settings.push(("CVMFS_REPLICA_PATHS".into(), absolute.display().to_string()));
        }
        if !self.tags.is_empty() {
            settings.push(("CVMFS_REPLICA_TAGS".into(), self.tags.join(" ")));
        }
        if let Some(days) = self.days {
            settings.push(("CVMFS_REPLICA_DAYS".into(), days.to_string()));
        }
        let owner = match &self.owner {
            Some(name) => SystemUser::named(name)?.name,
            None => SystemUser::current()?.name,
        };
        Ok(AddOptions {
            url: self.url.clone(),
            storage: self.storage.clone(),
            owner,
            group: self.group.clone(),
            auto_gc: self.auto_gc,
            proxy: self.proxy.clone(),
            ca_bundle: self.ca_bundle.clone(),
            settings,
            ..AddOptions::new(now()?, sources, self.public_key.clone())
        })
    }
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    match (arguments.upstream.as_deref(), &arguments.s3) {
        (Some("s3"), None) => return Err(Error::invalid("--upstream s3", "describe the bucket with --s3 FILE")),
        (Some("local"), Some(_)) => return Err(Error::invalid("--upstream local", "a bucket is given with --s3")),
        _ => {}
    }
    let options = AddOptions {
        s3: arguments.s3.clone(),
        alias: arguments.name.clone(),
        pass_through: arguments.pass_through,
        ..arguments.source.options()?
    };
    let replica = replica::add(&global.server_root()?, &options)?;
    let todo = if replica.is_pass_through { "" } else { "; `cvmfs-replica snapshot` fills it" };
    print(global, &replica, &format!("replica {} is configured{todo}\n", replica.alias))
}

/// Prints what a replica is.
pub(super) fn print(global: &GlobalArgs, replica: &Replica, text: &str) -> Result<()> {
    #[derive(Serialize)]
    struct Document<'a> {
        alias: String,
        name: String,
        storage: String,
        spool: &'a PathBuf,
        sources: Vec<String>,
        group: &'a str,
        pass_through: bool,
    }
    let Replica { alias, name, storage, spool, sources, group, is_pass_through, .. } = replica;
    let document = Document {
        alias: alias.to_string(),
        name: name.to_string(),
        storage: storage.to_string(),
        spool,
        sources: sources.iter().map(cvmfs_core::fetch::shown_url).collect(),
        group,
        pass_through: *is_pass_through,
    };
    global.print(&document, text)
}
