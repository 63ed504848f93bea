//! Every accident: the command ends with the right code and a message that says where, no revision is made, nothing
//! is lost, and the next ingest works. What the verifier of `tests/verifier` says counts, not what we say.

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
pub(crate) mod support;
mod together;
mod tree;
