//! Many images: several at once, each for itself. What goes wrong with one does not stop the others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use cvmfs_core::error::{Error, Result};
use cvmfs_core::progress::{Cancel, Progress};
use serde::Serialize;

use super::convert::{Converter, Outcome, Planned, Prepared, Request};

/// Choices for many images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Images that are worked on at once.
    pub parallel: usize,
    /// Whether all of them become one revision, and not one each.
    pub one_revision: bool,
}

/// What became of one of them, or would.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Report {
    /// The repository has it; perhaps it had before.
    Done(Outcome),
    /// It would have it.
    Planned(Planned),
    /// It has not.
    Failed {
        /// What it was asked for as.
        name: String,
        /// Why.
        error: String,
        /// Whether that was to be expected.
        ignored: bool,
    },
}

impl Report {
    fn failed(name: &str, error: &Error) -> Self {
        Self::Failed { name: name.to_owned(), error: explain(error), ignored: false }
    }

    /// The revision that it came with, if there is one.
    pub fn revision(&self) -> Option<u64> {
        match self {
            Self::Done(outcome) => outcome.revision,
            Self::Planned(_) | Self::Failed { .. } => None,
        }
    }

    /// Says whether a failure was to be expected.
    pub fn ignore_if(&mut self, expected: bool) {
        if let Self::Failed { ignored, .. } = self {
            *ignored = expected;
        }
    }

    /// Whether it failed, and that was not to be expected.
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Failed { ignored: false, .. })
    }
}

/// An error with its causes.
fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// Converts images; the reports are in the order of the requests. A request that could not even be made is a report of
/// that.
///
/// # Errors
/// `Cancelled`; everything else is in the reports.
pub fn convert(
    converter: &Converter<'_>,
    requests: &[Result<Request, (String, Error)>],
    options: Options,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Vec<Report>> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<Result<Prepared>>>> = Mutex::new(requests.iter().map(|_| None).collect());
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(request) = requests.get(index) else { return };
            let Ok(request) = request else { continue };
            let result = cancel.check().and_then(|()| {
                if options.one_revision {
                    converter.prepare(request, progress, cancel)
                } else {
                    converter.convert(request, progress, cancel).map(Prepared::from)
                }
            });
            results.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(result);
        }
    };
    thread::scope(|scope| {
        for _ in 0..options.parallel.clamp(1, requests.len().max(1)) {
            scope.spawn(work);
        }
    });
    cancel.check()?;
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let unpublished = if options.one_revision { publish_together(converter, &mut results, cancel).err() } else { None };
    cancel.check()?;
    let reports = requests.iter().zip(results).map(|(request, result)| match (request, result) {
        (Ok(request), Some(Ok(prepared))) => match &unpublished {
            Some(error) if prepared.is_wanted() => Report::failed(&request.name.whole_name(), error),
            _ => Report::Done(prepared.outcome),
        },
        (Ok(request), Some(Err(error))) => Report::failed(&request.name.whole_name(), &error),
        (Err((name, error)), _) => Report::failed(name, error),
        (Ok(request), None) => Report::failed(&request.name.whole_name(), &Error::Cancelled),
    });
    Ok(reports.collect())
}

/// Says what converting images would do.
pub fn plan(converter: &Converter<'_>, requests: &[Result<Request, (String, Error)>]) -> Vec<Report> {
    let plan = |request: &Result<Request, (String, Error)>| match request {
        Ok(request) => match converter.plan(request) {
            Ok(planned) => Report::Planned(planned),
            Err(error) => Report::failed(&request.name.whole_name(), &error),
        },
        Err((name, error)) => Report::failed(name, error),
    };
    requests.iter().map(plan).collect()
}

/// Publishes all that could be prepared, and fails for all of it.
fn publish_together(
    converter: &Converter<'_>,
    results: &mut [Option<Result<Prepared>>],
    cancel: &Cancel,
) -> Result<()> {
    let mut prepared: Vec<&mut Prepared> =
        results.iter_mut().flatten().filter_map(|result| result.as_mut().ok()).collect();
    converter.publish(&mut prepared, cancel)?;
    for result in results.iter_mut().flatten() {
        if let Ok(prepared) = result
            && let Err(error) = converter.push_thin(prepared)
        {
            *result = Err(error);
        }
    }
    Ok(())
}
