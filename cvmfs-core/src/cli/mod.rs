//! What the binaries share: common arguments, output, progress and exit codes (feature `cli`).
//!
//! Data goes to standard output, everything else to standard error. With `--json` standard output is one JSON document.

mod check;
mod garbage;
mod memory;
mod progress;
mod publication;
mod statistics;
mod upkeep;

use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};

pub use self::check::{CheckArgs, Checked, check_verdict};
pub use self::garbage::{GarbageArgs, garbage_summary};
pub use self::publication::{PublicationArgs, finished_summary, revision_summary};
pub use self::statistics::StatisticsArgs;
pub use self::upkeep::{UpkeepArgs, parse_interval};
use crate::clock::UnixSeconds;
use crate::commit::{Publisher, Rehearsal};
use crate::diff;
use crate::error::{Error, IoContext as _, Result};
use crate::hooks::{Hooks, Operation};
use crate::path::RepositoryName;
use crate::progress::{Cancel, Progress, Silent};
use crate::server::ServerRoot;

/// Section of `--help` that every binary ends with.
pub const EXIT_CODES: &str = "Exit codes:
  0  done, or nothing to do
  1  failed
  2  wrong usage
  3  damaged: the repository, or what was read to put into it
  4  busy, or in conflict with another change
  5  not trusted: signature, whitelist or expiry";

/// How errors name standard output.
pub const OUTPUT: &str = "standard output";

/// Arguments of all commands.
#[derive(Debug, Clone, clap::Args)]
pub struct GlobalArgs {
    /// Directory tree that holds etc/cvmfs, srv/cvmfs and var/spool/cvmfs
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "CVMFS_SERVER_ROOT",
        default_value = "/",
        help_heading = "Common options"
    )]
    pub root: PathBuf,
    /// Print one JSON document instead of text
    #[arg(long, global = true, help_heading = "Common options")]
    pub json: bool,
    /// No progress, no warnings
    #[arg(short, long, global = true, help_heading = "Common options")]
    pub quiet: bool,
    /// Log more (-v: information, -vv: debugging)
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Common options")]
    pub verbose: u8,
}

/// The argument that names the repository.
#[derive(Debug, Clone, clap::Args)]
pub struct RepoArg {
    /// Repository name; needed only if several are configured
    #[arg(long, value_name = "FQRN", env = "CVMFS_REPO")]
    pub repo: Option<RepositoryName>,
}

impl GlobalArgs {
    /// The server's directory tree.
    pub fn server_root(&self) -> Result<ServerRoot> {
        ServerRoot::new(&self.root)
    }

    /// Whoever shows progress on this terminal, or nobody.
    pub fn progress(&self) -> Box<dyn Progress> {
        if self.quiet { Box::new(Silent) } else { progress::on_standard_error() }
    }

    /// Publishes, with progress, and with the hooks of that around it if there is a revision `before` that a new one
    /// may follow. The work returns, beside its result, the revision that it made.
    pub fn publish<T>(
        &self,
        publisher: &Publisher,
        before: Option<u64>,
        work: impl FnOnce(&dyn Progress) -> Result<(T, Option<u64>)>,
    ) -> Result<T> {
        let hooks = Hooks::new(&self.server_root()?, &publisher.config.name);
        if let Some(before) = before {
            hooks.before(Operation::Publish, before)?;
        }
        let (result, revision) = work(&*self.progress())?;
        if let Some(revision) = revision {
            self.warn(&hooks.after(Operation::Publish, revision));
        }
        Ok(result)
    }

    /// Prints a result: `text` for people, or the value as JSON.
    pub fn print(&self, value: &impl Serialize, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        let written = if self.json { writeln!(out, "{}", document(value)?) } else { out.write_all(text.as_bytes()) };
        written.and_then(|()| out.flush()).map_err(|error| Error::io(OUTPUT, error))
    }

    /// Prints what a rehearsal would have changed, and what it came to.
    pub fn print_rehearsal(&self, rehearsal: &Rehearsal, now: UnixSeconds, outcome: &impl Serialize) -> Result<()> {
        #[derive(Serialize)]
        struct Document<'a, T> {
            dry_run: bool,
            changes: Vec<diff::Report>,
            summary: diff::Summary,
            outcome: &'a T,
        }
        let mut changes = Vec::new();
        let summary = self.list_differences(rehearsal, now, &mut changes)?;
        let text = if summary.is_empty() { "nothing would change\n".into() } else { format!("would be: {summary}\n") };
        self.print(&Document { dry_run: true, changes, summary, outcome }, &text)
    }

    /// Prints what a rehearsal changed, or collects it for a document.
    pub fn list_differences(
        &self,
        rehearsal: &Rehearsal,
        now: UnixSeconds,
        changes: &mut Vec<diff::Report>,
    ) -> Result<diff::Summary> {
        let mut out = BufWriter::new(io::stdout().lock());
        let summary = rehearsal.differences(now, &mut |difference| {
            if self.json {
                changes.push(diff::Report::from(difference));
                return Ok(());
            }
            writeln!(out, "{difference}").map_err(|error| Error::io(OUTPUT, error))
        })?;
        out.flush().map_err(|error| Error::io(OUTPUT, error))?;
        Ok(summary)
    }

    /// Prints warnings for people.
    pub fn warn(&self, warnings: &[String]) {
        if !self.quiet {
            for warning in warnings {
                say(&format!("warning: {warning}"));
            }
        }
    }
}

impl RepoArg {
    /// The repository that is meant.
    pub fn resolve(&self, root: &ServerRoot) -> Result<RepositoryName> {
        self.repo.clone().map_or_else(|| root.only_repository(), Ok)
    }
}

/// A value as JSON, for people as well.
fn document(value: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|error| Error::invalid("JSON", error.to_string()))
}

/// The time of this run: the clock, or `SOURCE_DATE_EPOCH` for reproducible results.
///
/// # Errors
/// `InvalidInput` if that variable is no number.
pub fn now() -> Result<UnixSeconds> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text
            .parse()
            .map(UnixSeconds)
            .map_err(|_| Error::invalid("SOURCE_DATE_EPOCH", format!("{text:?} is no number of seconds"))),
        Err(_) => {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            Ok(UnixSeconds(since.as_secs().cast_signed()))
        }
    }
}

/// Allows this process as many open files as the system lets it have, and returns that number.
///
/// Sessions start with a limit of 1024 for programs that cannot deal with more. A server can, and needs a descriptor for
/// every connection; so do images with many layers, all of which are read at once.
pub fn raise_open_file_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let granted = if raised.is_ok() { maximum } else { current };
    granted.unwrap_or(u64::MAX)
}

/// A request to stop that an interrupt or a termination signal makes. A second signal ends the process at once.
///
/// # Errors
/// `Io` if signals cannot be caught.
pub fn cancel_on_signals() -> Result<Cancel> {
    let cancel = Cancel::new();
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, cancel.flag())
            .and_then(|_| signal_hook::flag::register(signal, cancel.flag()))
            .at("signal handler")?;
    }
    Ok(cancel)
}

/// Sets up memory and logging, runs a command, reports its error, and returns the exit code.
pub fn run(global: &GlobalArgs, command: impl FnOnce() -> Result<()>) -> ExitCode {
    memory::share_arenas();
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (_, 0) => "warn",
        (_, 1) => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    // A log that nobody reads any more, as after `2>&1 | head`, must not end a server: reporting that panics.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .log_internal_errors(false);
    // A second call in one process, as in tests, keeps the first subscriber.
    let _ = log.without_time().try_init();
    match command() {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output went away, as `head` does.
        Err(Error::Io { path, source }) if path.as_os_str() == OUTPUT && source.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            report(&error);
            exit_code(&error).into()
        }
    }
}

/// The exit code that tells what kind of error it was; see [`EXIT_CODES`].
pub fn exit_code(error: &Error) -> u8 {
    match error {
        Error::MissingObject { .. } | Error::HashMismatch { .. } | Error::Malformed { .. } => 3,
        Error::Conflict { .. } | Error::Superseded { .. } => 4,
        Error::Untrusted { .. } | Error::Expired { .. } => 5,
        _ => 1,
    }
}

/// Prints an error with its causes and what to do about it.
fn report(error: &Error) {
    let mut text = format!("error: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(&format!(": {inner_text}"));
        }
        cause = inner.source();
    }
    say(&text);
    if let Some(hint) = hint(error) {
        say(&format!("hint: {hint}"));
    }
}

fn hint(error: &Error) -> Option<&'static str> {
    match error {
        Error::Cancelled => Some("nothing was published; run the same command again to go on"),
        Error::Expired { .. } => Some("sign the whitelist again with the master key"),
        Error::NotFound { what }
            if what.starts_with("a repository configured") || what.starts_with("configuration file") =>
        {
            Some("create a repository with `cvmfs-publish mkfs`, or name the directory tree with --root")
        }
        Error::NotFound { what } if what.starts_with("the key to publish") => Some(
            "put key and certificate there, or make new ones: `cvmfs-publish resign --new-key` needs the master key",
        ),
        Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            Some("nothing is lost: free some space and run the same command again")
        }
        Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            Some("run as the owner of the repository")
        }
        _ => None,
    }
}

fn say(line: &str) {
    // Standard error may be closed; there is nobody left to tell.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Parses a number of bytes with an optional binary suffix: `K`, `M`, `G` or `T`.
///
/// # Errors
/// `InvalidInput` for anything else.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => 64,
    };
    let number = digits.parse::<u64>().ok();
    number
        .and_then(|number| number.checked_mul(1_u64.checked_shl(shift)?))
        .ok_or_else(|| Error::invalid(format!("{text:?}"), "not a number of bytes, such as 500M or 20G"))
}

/// A number of bytes for people.
pub fn human_bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
