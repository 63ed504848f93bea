use cvmfs_core::cli::{GlobalArgs, UpkeepArgs, now};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::trust::whitelist::DEFAULT_DAYS;
use cvmfs_publish::resign::Renewal;
use cvmfs_publish::service::{self, Options};
use cvmfs_replica::cli::ServerArgs;

/// Serve all repositories below srv/cvmfs over HTTP, and look after those that are published here, until interrupted
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish --root ./site serve --listen 127.0.0.1:8000
  cvmfs-publish serve --listen 0.0.0.0:8000 --gc-every '1 day' --check-every '1 week'
  cvmfs-publish serve --listen 0.0.0.0:8000 --resign-when-days-left 10

SIGHUP makes it read configuration, geographic database and certificate again; SIGINT and SIGTERM end it. Others publish
meanwhile.")]
pub(super) struct Arguments {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    upkeep: UpkeepArgs,
    /// Sign whitelists again as soon as fewer days than this are left, where the master key is on this machine; where it is
    /// not, the log tells
    #[arg(long, value_name = "NUMBER", help_heading = "Jobs")]
    resign_when_days_left: Option<u32>,
    /// Days that such a whitelist is valid
    #[arg(long, value_name = "NUMBER", default_value_t = DEFAULT_DAYS, requires = "resign_when_days_left", help_heading = "Jobs")]
    resign_days: u32,
    #[command(flatten)]
    token: super::TokenArgs,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let days = arguments.resign_days;
    // Nobody is there to type a PIN.
    let token = arguments.token.settings(true);
    let renewal = arguments.resign_when_days_left.map(|when_days_left| Renewal { when_days_left, days, token });
    if renewal.as_ref().is_some_and(|renewal| renewal.when_days_left >= renewal.days) {
        let reason =
            format!("a new whitelist is valid for {days} days (--resign-days), so it would be signed all the time");
        return Err(Error::invalid("--resign-when-days-left", reason));
    }
    let options = Options {
        gc_every: arguments.upkeep.gc_every,
        check_every: arguments.upkeep.check_every,
        check_data: arguments.upkeep.check_data,
        renewal,
    };
    arguments.server.run(global, false, |beside| {
        if !options.is_any() {
            return Ok(None);
        }
        service::start(beside.root, options, now, beside.cancel).map(Some)
    })
}
