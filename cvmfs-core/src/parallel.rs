//! Work that brings more work, on several threads.

use std::sync::{Mutex, PoisonError};

use rayon::{Scope, ThreadPool};

use crate::error::{Error, Result};

/// Makes a pool of `threads` threads; 0 for one a core.
pub(crate) fn pool(threads: usize) -> Result<ThreadPool> {
    let built = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    built.map_err(|error| Error::invalid("threads", error.to_string()))
}

/// Does jobs and those that they bring, in no particular order, until none is left or one fails.
///
/// # Errors
/// The first one; jobs that have begun by then are done, others are not.
pub(crate) fn work_off<J: Send>(
    pool: &ThreadPool,
    jobs: impl IntoIterator<Item = J, IntoIter: Send>,
    work: impl Fn(J, &mut Vec<J>) -> Result<()> + Sync,
) -> Result<()> {
    let first_error = Mutex::new(None);
    let jobs: Vec<J> = jobs.into_iter().collect();
    pool.scope(|scope| jobs.into_iter().for_each(|job| spawn(scope, job, &work, &first_error)));
    first_error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn spawn<'a, J: Send + 'a>(
    scope: &Scope<'a>,
    job: J,
    work: &'a (impl Fn(J, &mut Vec<J>) -> Result<()> + Sync),
    first_error: &'a Mutex<Option<Error>>,
) {
    scope.spawn(move |scope| {
        let error = || first_error.lock().unwrap_or_else(PoisonError::into_inner);
        if error().is_some() {
            return;
        }
        let mut more = Vec::new();
        match work(job, &mut more) {
            Ok(()) => more.into_iter().for_each(|job| spawn(scope, job, work, first_error)),
            Err(failure) => drop(error().get_or_insert(failure)),
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn all_jobs_are_done_once_and_the_first_error_ends_it() {
        let pool = pool(3).unwrap();
        let sum = AtomicU64::new(0);
        let halve = |number: u64, more: &mut Vec<u64>| {
            if number > 1 {
                more.extend([number / 2, number - number / 2]);
            } else {
                sum.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        work_off(&pool, [1000, 234], halve).unwrap();
        assert_eq!(sum.into_inner(), 1234);

        let done = AtomicU64::new(0);
        let fail_at_ten = |number: u64, more: &mut Vec<u64>| {
            done.fetch_add(1, Ordering::Relaxed);
            if number == 10 {
                return Err(Error::not_found("ten"));
            }
            more.push(number + 1);
            Ok(())
        };
        assert!(work_off(&pool, [0], fail_at_ten).unwrap_err().is_not_found());
        assert_eq!(done.into_inner(), 11);
    }
}
