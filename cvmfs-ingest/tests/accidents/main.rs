//! Every accident: the command ends with the right code and a message that says where, no revision is made, nothing
//! is lost, and the next ingest works. What the verifier of `tests/verifier` says counts, not what we say.
#![allow(
    clippy::unwrap_used,
    clippy::duration_suboptimal_units,
    clippy::cast_possible_truncation,
    clippy::items_after_statements,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

mod archives;
mod hardlinks;
mod layers;
mod limits;
mod owners;
mod place;
mod rehearsal;
mod repository;
mod resume;
mod signals;
mod support;
mod together;
mod tree;
