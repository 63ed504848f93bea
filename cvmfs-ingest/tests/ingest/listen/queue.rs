//! The queue: what it joins, how often it tries, what of it survives.

use std::fs;
use std::path::Path;
use std::time::Duration;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{Error, Result};
use cvmfs_ingest::image::listen::payload::{Action, Hint};
use cvmfs_ingest::image::listen::queue::{Added, Durability, Fate, Job, Options, Queue, State};

const SOON: Duration = Duration::ZERO;

fn hint(image: &str) -> Hint {
    Hint { action: Action::Push, image: image.parse().unwrap() }
}

fn options() -> Options {
    Options {
        length_max: 4,
        attempts_max: 3,
        backoff_initial: Duration::from_hours(1),
        backoff_max: Duration::from_hours(9),
    }
}

fn open(directory: &Path, options: Options) -> Queue {
    Queue::open(directory, options).unwrap()
}

fn add(queue: &Queue, images: &[&str], now: i64) -> Result<Added> {
    let hints: Vec<_> = images.iter().map(|image| hint(image)).collect();
    queue.add(&hints, Durability::Durable, UnixSeconds(now))
}

fn take(queue: &Queue) -> Option<Job> {
    queue.take(SOON).unwrap()
}

const DONE: Result<()> = Ok(());

fn failure() -> Result<()> {
    Err(Error::not_found("the image"))
}

/// Image, state and attempts of all entries.
fn entries(queue: &Queue) -> Vec<(String, State, u32)> {
    queue.shown().into_iter().map(|entry| (entry.image, entry.state, entry.attempts)).collect()
}

/// Files of the queue, apart from its lock.
fn files(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().filter(|file| file.as_ref().unwrap().file_name() != "lock").count()
}

#[test]
fn hints_are_joined_and_survive_until_they_are_done() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path(), options());
    assert_eq!(add(&queue, &["r/a:1", "r/b:1", "r/a:1"], 7).unwrap(), Added { queued: 2, joined: 1 });
    // How the registry is spoken to makes no other image; what happened does.
    assert_eq!(add(&queue, &["http://r/a:1"], 8).unwrap(), Added { queued: 0, joined: 1 });
    let deleted = Hint { action: Action::Delete, image: "r/a".parse().unwrap() };
    queue.add(std::slice::from_ref(&deleted), Durability::Durable, UnixSeconds(9)).unwrap();
    assert_eq!(files(directory.path()), 3);
    assert!(Queue::open(directory.path(), options()).is_err_and(|error| matches!(error, Error::Conflict { .. })));
    drop(queue);

    // What was being written when the process ended, and what somebody else left.
    fs::write(directory.path().join("1.new"), "{").unwrap();
    fs::write(directory.path().join("2.json"), "{").unwrap();
    let queue = open(directory.path(), options());
    assert_eq!((queue.lengths().waiting, files(directory.path())), (3, 4));
    let mut jobs: Vec<_> = std::iter::from_fn(|| take(&queue)).collect();
    assert_eq!(queue.lengths().running, 3);
    jobs.sort_by(|one, other| one.hint.cmp(&other.hint));
    let hints: Vec<_> = jobs.iter().map(|job| job.hint.clone()).collect();
    assert_eq!(hints, [hint("r/a:1"), hint("r/b:1"), deleted]);
    assert!(jobs.iter().all(|job| job.attempt == 1 && job.durability == Durability::Durable));
    for job in &jobs {
        assert_eq!(queue.finish(job, &DONE, false).unwrap(), Fate::Done);
    }
    assert_eq!((entries(&queue), files(directory.path())), (Vec::new(), 1));
    drop(queue);
    assert!(open(directory.path(), options()).shown().is_empty());
}

#[test]
fn what_is_running_runs_once_more_if_it_is_hinted_at() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path(), options());
    add(&queue, &["r/a:1"], 7).unwrap();
    for result in [DONE, failure(), Err(Error::Cancelled)] {
        let job = take(&queue).unwrap();
        for _ in 0..3 {
            assert_eq!(add(&queue, &["r/a:1"], 8).unwrap(), Added { queued: 0, joined: 1 });
            assert_eq!(take(&queue), None);
        }
        assert!(queue.shown()[0].again);
        assert_eq!(queue.finish(&job, &result, false).unwrap(), Fate::Again(Duration::ZERO), "{result:?}");
        assert_eq!(entries(&queue)[0], ("https://r/a:1".to_owned(), State::Waiting, 0));
        assert!(!queue.shown()[0].again);
    }
    let job = take(&queue).unwrap();
    assert_eq!(queue.finish(&job, &DONE, false).unwrap(), Fate::Done);
    assert_eq!(take(&queue), None);
}

#[test]
fn failures_wait_longer_and_longer_until_they_are_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let milliseconds = |from: u64, to: u64| Duration::from_millis(from)..=Duration::from_millis(to);
    let quick = Options {
        attempts_max: 5,
        backoff_initial: Duration::from_millis(8),
        backoff_max: Duration::from_millis(20),
        ..options()
    };
    let queue = open(directory.path(), quick.clone());
    add(&queue, &["r/a:1"], 7).unwrap();
    let patience = Duration::from_secs(10);
    for (attempt, range) in
        (1..).zip([milliseconds(4, 8), milliseconds(8, 16), milliseconds(10, 20), milliseconds(10, 20)])
    {
        let job = queue.take(patience).unwrap().unwrap();
        assert_eq!(job.attempt, attempt);
        let fate = queue.finish(&job, &failure(), false).unwrap();
        assert!(matches!(fate, Fate::Again(wait) if range.contains(&wait)), "{attempt}: {fate:?}");
        assert_eq!(queue.shown()[0].error.as_deref(), Some("the image not found"));
    }
    let job = queue.take(patience).unwrap().unwrap();
    assert_eq!(queue.finish(&job, &failure(), false).unwrap(), Fate::Failed);
    assert_eq!(entries(&queue)[0], ("https://r/a:1".to_owned(), State::Failed, 5));
    assert_eq!(queue.take(Duration::from_millis(50)).unwrap(), None);
    drop(queue);
    let queue = open(directory.path(), quick);
    assert_eq!((entries(&queue)[0].1, take(&queue)), (State::Failed, None));
    // Only news bring it back, and then it starts over.
    assert_eq!(add(&queue, &["r/a:1"], 9).unwrap(), Added { queued: 1, joined: 0 });
    assert_eq!(take(&queue).unwrap().attempt, 1);
}

#[test]
fn failures_that_were_to_be_expected_are_given_up_quietly() {
    let directory = tempfile::tempdir().unwrap();
    let once = || Options { attempts_max: 1, ..options() };
    let queue = open(directory.path(), once());
    add(&queue, &["r/a:1", "r/b:1"], 7).unwrap();
    for ignored in [true, false] {
        assert_eq!(queue.finish(&take(&queue).unwrap(), &failure(), ignored).unwrap(), Fate::Failed);
    }
    drop(queue);
    let queue = open(directory.path(), once());
    let lengths = queue.lengths();
    assert_eq!((lengths.waiting, lengths.running, lengths.failed, lengths.ignored), (0, 0, 1, 1));
    assert_eq!(entries(&queue)[1], ("https://r/a:1".to_owned(), State::Ignored, 1));
    assert_eq!(take(&queue), None);
    // It comes back as others do, and makes room as they do.
    assert_eq!(add(&queue, &["r/a:1"], 9).unwrap(), Added { queued: 1, joined: 0 });
    let job = take(&queue).unwrap();
    assert_eq!((&job.hint, job.attempt), (&hint("r/a:1"), 1));
    queue.finish(&job, &failure(), true).unwrap();
    assert_eq!(add(&queue, &["r/c:1", "r/d:1", "r/e:1", "r/f:1"], 9).unwrap().queued, 4);
}

#[test]
fn a_push_and_a_deletion_are_two_things() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path(), options());
    let hints = [Action::Push, Action::Delete].map(|action| Hint { action, ..hint("r/a") });
    let added = queue.add(&hints, Durability::Durable, UnixSeconds(7)).unwrap();
    assert_eq!((added, files(directory.path())), (Added { queued: 2, joined: 0 }, 2));
}

#[test]
fn news_end_the_wait() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path(), options());
    add(&queue, &["r/a:1"], 7).unwrap();
    let job = take(&queue).unwrap();
    assert!(
        matches!(queue.finish(&job, &failure(), false).unwrap(), Fate::Again(wait) if wait > Duration::from_mins(29))
    );
    assert_eq!(take(&queue), None);
    // What looks without news does not.
    queue.add(&[hint("r/a:1")], Durability::Volatile, UnixSeconds(8)).unwrap();
    assert_eq!(take(&queue), None);
    add(&queue, &["r/a:1"], 9).unwrap();
    assert_eq!(take(&queue).unwrap().attempt, 1);
}

#[test]
fn an_image_that_ends_the_process_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    add(&open(directory.path(), options()), &["r/a:1"], 7).unwrap();
    for attempt in 1..=3 {
        // The queue is dropped while it runs.
        assert_eq!(take(&open(directory.path(), options())).unwrap().attempt, attempt);
    }
    assert_eq!(entries(&open(directory.path(), options())), [("https://r/a:1".to_owned(), State::Failed, 3)]);
    // A hint that came while it was running counts, whatever became of that.
    let queue = open(directory.path(), options());
    add(&queue, &["r/a:1"], 8).unwrap();
    for _ in 0..3 {
        let job = take(&queue).unwrap();
        queue.finish(&job, &Err::<(), _>(Error::Cancelled), false).unwrap();
    }
    let job = take(&queue).unwrap();
    assert_eq!(job.attempt, 1, "what is cancelled is no attempt");
    add(&queue, &["r/a:1"], 9).unwrap();
    drop(queue);
    assert_eq!(take(&open(directory.path(), options())).unwrap().attempt, 1);
}

#[test]
fn what_would_come_again_needs_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path(), options());
    queue.add(&[hint("r/a:1"), hint("r/b:1")], Durability::Volatile, UnixSeconds(7)).unwrap();
    assert_eq!((queue.lengths().waiting, files(directory.path())), (2, 0));
    let job = take(&queue).unwrap();
    assert_eq!((job.durability, files(directory.path())), (Durability::Volatile, 0));
    // Until somebody relies on it.
    add(&queue, &["r/a:1", "r/b:1"], 8).unwrap();
    assert_eq!(files(directory.path()), 2);
    drop(queue);
    let queue = open(directory.path(), options());
    assert_eq!(queue.lengths().waiting, 2);
    // What failed is tried once by each look, and not from the start.
    for _ in 0..3 {
        add(&queue, &["r/a:1"], 8).unwrap();
        queue.add(&[hint("r/c:1")], Durability::Volatile, UnixSeconds(8)).unwrap();
    }
    let jobs: Vec<_> = std::iter::from_fn(|| take(&queue)).collect();
    assert_eq!(jobs.len(), 3);
}

#[test]
fn a_look_without_news_tries_what_failed_once() {
    let directory = tempfile::tempdir().unwrap();
    let once = Options { attempts_max: 1, ..options() };
    let queue = open(directory.path(), once);
    let look = || queue.add(&[hint("r/a:1")], Durability::Volatile, UnixSeconds(7)).unwrap();
    look();
    for attempt in 1..4 {
        let job = take(&queue).unwrap();
        assert_eq!((job.attempt, queue.finish(&job, &failure(), false).unwrap()), (attempt, Fate::Failed));
        assert_eq!(take(&queue), None);
        look();
    }
}

#[test]
fn the_queue_has_an_end() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path(), Options { attempts_max: 1, ..options() });
    add(&queue, &["r/a:2"], 6).unwrap();
    add(&queue, &["r/a:1"], 7).unwrap();
    let full = |result: Result<Added>| matches!(result, Err(Error::Unavailable { .. }));
    assert!(full(add(&queue, &["r/a:3", "r/a:4", "r/a:5"], 8)));
    assert_eq!((queue.lengths().waiting, files(directory.path())), (2, 2), "all of it or nothing");
    add(&queue, &["r/a:3", "r/a:4"], 8).unwrap();
    assert!(full(add(&queue, &["r/a:5"], 9)));
    // What is there takes no room.
    assert_eq!(add(&queue, &["r/a:1", "r/a:4"], 9).unwrap(), Added { queued: 0, joined: 2 });
    // What failed makes room, the oldest first.
    for result in [failure(), DONE, failure()] {
        let job = take(&queue).unwrap();
        queue.finish(&job, &result, false).unwrap();
    }
    assert_eq!((queue.lengths().failed, queue.lengths().waiting), (2, 1));
    let failed: Vec<_> = entries(&queue).into_iter().filter(|entry| entry.1 == State::Failed).collect();
    add(&queue, &["r/b:1", "r/b:2"], 10).unwrap();
    let left: Vec<_> = entries(&queue).into_iter().filter(|entry| entry.1 == State::Failed).collect();
    assert_eq!(left, failed[1..]);
    assert_eq!(files(directory.path()), 4);
}

#[test]
fn a_full_disk_is_no_success() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("queue");
    let queue = open(&path, options());
    fs::remove_dir_all(&path).unwrap();
    assert!(matches!(add(&queue, &["r/a:1"], 7), Err(Error::Io { .. })));
    assert!(queue.shown().is_empty());
}
