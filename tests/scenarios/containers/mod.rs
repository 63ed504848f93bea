//! Container images in repositories: beside what other programs make of the same images, and under attack.

mod accidents;
mod ducc;
mod fidelity;
mod image;
mod odd;
mod podman;
mod programs;
mod sharing;
