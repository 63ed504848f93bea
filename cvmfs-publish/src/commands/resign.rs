use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use cvmfs_core::cli::{GlobalArgs, RepoArg, cancel_on_signals, now};
use cvmfs_core::commit::Publisher;
use cvmfs_core::error::{IoContext as _, Result};
use cvmfs_core::trust::keys::Certificate;
use cvmfs_core::trust::whitelist::SignedWhitelist;
use cvmfs_publish::resign::{self, Signed};

/// Sign the whitelist again, before it expires
///
/// Certificates that are on the list stay on it, unless --only-this says otherwise.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish resign
  cvmfs-publish resign --days 7 --also new-release-manager.crt
  cvmfs-publish resign --whitelist signed-on-another-machine.whitelist
  cvmfs-publish resign --new-key                  # some weeks later: resign --only-this")]
pub(super) struct Arguments {
    #[command(flatten)]
    repo: RepoArg,
    /// Days that the whitelist is valid [default: 30; 7 with a token]
    #[arg(short, long, value_name = "NUMBER")]
    days: Option<u32>,
    /// List this certificate, too; may be repeated
    #[arg(long, value_name = "FILE")]
    also: Vec<PathBuf>,
    /// List no certificates but that of the repository, and those of --also
    #[arg(long)]
    only_this: bool,
    /// Put this whitelist in place, signed by a master key that is kept elsewhere
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["days", "also", "only_this"])]
    whitelist: Option<PathBuf>,
    /// Sign the manifest again, with the repository's key as it is now
    #[arg(short = 'p', long)]
    manifest: bool,
    /// Make a new key and certificate for the repository and sign the manifest with it
    #[arg(long, conflicts_with_all = ["whitelist", "manifest", "only_this"])]
    new_key: bool,
    /// Seconds to wait for another publisher
    #[arg(short, long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    #[command(flatten)]
    token: super::TokenArgs,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let root = global.server_root()?;
    let name = arguments.repo.resolve(&root)?;
    let also = arguments.also.iter().map(|file| {
        let pem = fs::read(file).at(file)?;
        Certificate::from_pem(&file.display().to_string(), pem)
    });
    let mut options = resign::Options::new(now()?);
    options.keep_others = !arguments.only_this;
    options.also = also.collect::<Result<_>>()?;
    let (patience, cancel) = (Duration::from_secs(arguments.timeout), cancel_on_signals()?);
    let signed = if let Some(file) = &arguments.whitelist {
        let signed = SignedWhitelist::parse(&fs::read(file).at(file)?)?;
        resign::place_whitelist(&Publisher::open(&root, &name)?, &signed, options.now)?
    } else {
        let master_key = resign::master_key(&root, &name, arguments.token.settings(false).as_ref())?;
        options.days = arguments.days.unwrap_or_else(|| master_key.usual_days());
        if arguments.new_key {
            resign::new_key(&root, &name, &master_key, &options, patience, &cancel)?
        } else {
            resign::sign_whitelist(&Publisher::open(&root, &name)?, &master_key, &options)?
        }
    };
    if arguments.manifest {
        Publisher::open(&root, &name)?.sign_again(options.now, patience, &cancel)?;
    }
    global.warn(&signed.warnings);
    global.print(&signed, &summary(&signed))
}

fn summary(Signed { whitelist_expires, fingerprints, .. }: &Signed) -> String {
    let mut text = format!("whitelist valid until {whitelist_expires}\n");
    text.extend(fingerprints.iter().map(|fingerprint| format!("certificate {fingerprint}\n")));
    text
}
