//! Services that look after repositories.

use std::time::Duration;

use crate::clock::parse_duration;
use crate::error::{Error, Result};

/// Arguments of services that look after repositories: nothing happens on its own unless it is asked for.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Jobs")]
pub struct UpkeepArgs {
    /// Collect garbage this often, such as `1 day`, where the configuration allows it; what is kept is said there, too
    /// (CVMFS_GARBAGE_COLLECTION, CVMFS_AUTO_GC, CVMFS_AUTO_GC_TIMESPAN)
    #[arg(long, value_name = "TIME", value_parser = parse_interval)]
    pub gc_every: Option<Duration>,
    /// Check this often, such as `1 week`
    #[arg(long, value_name = "TIME", value_parser = parse_interval)]
    pub check_every: Option<Duration>,
    /// Have checks read every object, and compare its bytes with its name
    #[arg(long, requires = "check_every")]
    pub check_data: bool,
}

/// Parses how often something is done: a number of seconds, or a length of time such as `1 day`.
///
/// # Errors
/// `InvalidInput` for anything else, and for no time at all.
pub fn parse_interval(text: &str) -> Result<Duration> {
    let interval = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => parse_duration(text)?,
    };
    if interval.is_zero() {
        return Err(Error::invalid(format!("{text:?}"), "no interval such as 180 (seconds), 12h or 1 week"));
    }
    Ok(interval)
}
