//! What the binaries share: common arguments, output, progress and exit codes (feature `cli`).
//!
//! Data goes to standard output, everything else to standard error. With `--json` standard output is one JSON document.

use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::clock::UnixSeconds;
use crate::commit::{self, Publisher, Rehearsal};
use crate::compression::{Effort, Engine, Policy};
use crate::diff;
use crate::error::{Error, IoContext as _, Result};
use crate::history::TagName;
use crate::hooks::{Hooks, Operation};
use crate::path::RepositoryName;
use crate::progress::{Cancel, Progress, Silent, Unit};
use crate::publication::{Destination, Finished, Options, Outcome};
use crate::server::ServerRoot;

/// Section of `--help` that every binary ends with.
pub const EXIT_CODES: &str = "Exit codes:
  0  done, or nothing to do
  1  failed
  2  wrong usage
  3  the repository is damaged
  4  busy, or in conflict with another change
  5  not trusted: signature, whitelist or expiry";

/// How errors name standard output.
pub const OUTPUT: &str = "standard output";

/// How often a report is printed where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

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

/// Arguments of all commands that make a revision out of an input.
#[derive(Debug, Clone, clap::Args)]
pub struct PublicationArgs {
    /// Name the new revision
    #[arg(long, value_name = "NAME")]
    pub tag: Option<TagName>,
    /// Description of that name
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true, requires = "tag")]
    pub message: String,
    /// Show what would change, and change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Add the changes to the open transaction instead of publishing them
    #[arg(long, conflicts_with_all = ["dry_run", "tag"])]
    pub transaction: bool,
    /// Compress everything, also what is known to be stored already
    #[arg(long)]
    pub no_index: bool,
    /// Threads that compress and hash [default: one a core]
    #[arg(long, value_name = "NUMBER", default_value_t = 0, hide_default_value = true)]
    pub threads: usize,
    /// How new files are stored: `zlib`, `none`, or `auto`, which leaves what does not shrink as it is [default: as the
    /// repository is configured]
    #[arg(long, value_name = "KIND")]
    pub compression: Option<Policy>,
    /// Program that compresses: `libdeflate` or `zlib-rs`
    #[arg(long, value_name = "NAME", default_value_t = Engine::default())]
    pub engine: Engine,
    /// Effort of compression, 1 (fast) to 9 (small)
    #[arg(long, value_name = "LEVEL", default_value_t = Effort::default().level, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub level: u8,
}

impl PublicationArgs {
    /// Takes the arguments over.
    pub fn apply(&self, options: &mut Options) {
        options.pipeline.compression = self.compression.unwrap_or(options.pipeline.compression);
        options.pipeline.effort = Effort { engine: self.engine, level: self.level };
        options.pipeline.threads = self.threads;
        options.use_index = !self.no_index;
        self.apply_to_commit(&mut options.commit);
        options.destination = if self.transaction { Destination::Transaction } else { Destination::Revision };
    }

    /// Takes over what a commit without new content needs.
    pub fn apply_to_commit(&self, options: &mut commit::Options) {
        options.effort = Effort { engine: self.engine, level: self.level };
        options.threads = self.threads;
        options.tag.clone_from(&self.tag);
        options.message.clone_from(&self.message);
    }

    /// Publishes, or rehearses that, and prints what came of it.
    pub fn run(
        &self,
        global: &GlobalArgs,
        publisher: &Publisher,
        now: UnixSeconds,
        publish: impl FnOnce(&Publisher, &dyn Progress, &Cancel) -> Result<Outcome>,
    ) -> Result<()> {
        let cancel = cancel_on_signals()?;
        if self.dry_run {
            let rehearsal = publisher.rehearsal(now)?;
            let outcome = publish(&rehearsal, &*global.progress(), &cancel)?;
            global.warn(&outcome.warnings);
            return global.print_rehearsal(&rehearsal, now, &outcome);
        }
        let before = (!self.transaction).then(|| publisher.head(now)).transpose()?;
        let before = before.map(|head| head.manifest().revision);
        let outcome = global.publish(publisher, before, |progress| {
            let outcome = publish(publisher, progress, &cancel)?;
            let revision = outcome.finished.revision().map(|commit| commit.revision);
            Ok((outcome, revision))
        })?;
        global.warn(&outcome.warnings);
        global.print(&outcome, &summary(&outcome))
    }
}

impl GlobalArgs {
    /// The server's directory tree.
    pub fn server_root(&self) -> Result<ServerRoot> {
        ServerRoot::new(&self.root)
    }

    /// Whoever shows progress on this terminal, or nobody.
    pub fn progress(&self) -> Box<dyn Progress> {
        if self.quiet {
            Box::new(Silent)
        } else if io::stderr().is_terminal() {
            Box::new(Bar(ProgressBar::hidden()))
        } else {
            Box::new(Plain(Mutex::new(PlainState {
                name: "",
                unit: Unit::Bytes,
                done: 0,
                total: None,
                since: Instant::now(),
                last: Instant::now(),
            })))
        }
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
        let written = if self.json {
            let document =
                serde_json::to_string_pretty(value).map_err(|error| Error::invalid("JSON", error.to_string()))?;
            writeln!(out, "{document}")
        } else {
            out.write_all(text.as_bytes())
        };
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
        let mut out = BufWriter::new(io::stdout().lock());
        let mut changes = Vec::new();
        let summary = rehearsal.differences(now, &mut |difference| {
            if self.json {
                changes.push(diff::Report::from(difference));
                return Ok(());
            }
            writeln!(out, "{difference}").map_err(|error| Error::io(OUTPUT, error))
        })?;
        out.flush().map_err(|error| Error::io(OUTPUT, error))?;
        drop(out);
        let text = if summary.is_empty() { "nothing would change\n".into() } else { format!("would be: {summary}\n") };
        self.print(&Document { dry_run: true, changes, summary, outcome }, &text)
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

/// Sets up logging, runs a command, reports its error, and returns the exit code.
pub fn run(global: &GlobalArgs, command: impl FnOnce() -> Result<()>) -> ExitCode {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (_, 0) => "warn",
        (_, 1) => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    // A log that nobody reads any more, as after `2>&1 | head`, must not end a server: reporting that panics.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).log_internal_errors(false);
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
        Error::Conflict { .. } => 4,
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

/// A publication for people.
fn summary(outcome: &Outcome) -> String {
    let Outcome { finished, content, seconds, megabytes_per_second, .. } = outcome;
    let read = format!(
        "{} files, {} directories, {} symlinks, {} hard links, {} special files; {} read at {megabytes_per_second:.0} MB/s\n\
         {} objects stored ({}), {} were there\n",
        content.files,
        content.directories,
        content.symlinks,
        content.hardlinks,
        content.specials,
        human_bytes(content.bytes_read),
        content.objects_new,
        human_bytes(content.bytes_stored),
        content.objects_reused,
    );
    format!("{read}{}; {:.1} s\n", finished_summary(finished), seconds.total)
}

/// What became of changes, for people, without line end.
pub fn finished_summary(finished: &Finished) -> String {
    finished.revision().map_or_else(|| "added to the open transaction".into(), revision_summary)
}

/// A commit for people, without line end.
pub fn revision_summary(commit: &commit::Outcome) -> String {
    if !commit.changed {
        return format!("unchanged: revision {} has all of it already", commit.revision);
    }
    let tag = commit.tag.as_ref().map_or_else(String::new, |tag| format!(", tag {tag}"));
    let entries = commit.entries;
    format!(
        "revision {}{tag}: {} entries added, {} changed, {} removed; root catalog {}",
        commit.revision, entries.added, entries.changed, entries.removed, commit.root_hash
    )
}

/// A bar with rate and remaining time, on a terminal.
#[derive(Debug)]
struct Bar(ProgressBar);

impl Progress for Bar {
    fn phase(&self, name: &'static str, unit: Unit, total: Option<u64>) {
        let template = match (unit, total) {
            (Unit::Bytes, Some(_)) => "{msg:10} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
            (Unit::Bytes, None) => "{msg:10} {spinner} {bytes} {bytes_per_sec} {elapsed}",
            (_, Some(_)) => "{msg:10} [{bar:30}] {pos}/{len} {per_sec} {eta} left",
            (_, None) => "{msg:10} {spinner} {pos} {elapsed}",
        };
        self.0.reset();
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
        match total {
            Some(total) => self.0.set_length(total),
            None => self.0.unset_length(),
        }
        self.0.set_message(name);
        self.0.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        self.0.enable_steady_tick(Duration::from_millis(200));
    }

    fn advance(&self, amount: u64) {
        self.0.inc(amount);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A line now and then, where there is no terminal.
#[derive(Debug)]
struct Plain(Mutex<PlainState>);

#[derive(Debug)]
struct PlainState {
    name: &'static str,
    unit: Unit,
    done: u64,
    total: Option<u64>,
    since: Instant,
    last: Instant,
}

impl Progress for Plain {
    fn phase(&self, name: &'static str, unit: Unit, total: Option<u64>) {
        let now = Instant::now();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            PlainState { name, unit, done: 0, total, since: now, last: now };
    }

    fn advance(&self, amount: u64) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.done += amount;
        if state.last.elapsed() < PLAIN_INTERVAL {
            return;
        }
        state.last = Instant::now();
        let show = |number: u64| match state.unit {
            Unit::Bytes => human_bytes(number),
            Unit::Catalogs => format!("{number} catalogs"),
            Unit::Entries => format!("{number} entries"),
        };
        let of = state.total.map_or_else(String::new, |total| format!(" of {}", show(total)));
        let rate = show(state.done / state.since.elapsed().as_secs().max(1));
        say(&format!("{}: {}{of}, {rate}/s", state.name, show(state.done)));
    }
}
