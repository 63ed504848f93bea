//! Images from files and registries: real programs write them, we read them and check every byte.

mod commands;
mod local;
mod misbehaving;
mod real;
pub(crate) mod servers;
pub(crate) mod support;
mod wishes;
