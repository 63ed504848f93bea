//! What layouts generate, put on disk and used by the programs that it is for.

mod apptainer;
mod podman;
mod support;
