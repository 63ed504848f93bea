//! The service that takes notifications of registries: what it understands, whom it believes, what it keeps, what it does.

mod attacks;
pub(crate) mod parties;
mod payloads;
mod queue;
mod service;
