//! The S3 server of the tests as a program, for benchmarks and soaks: `s3_server DIRECTORY [ADDRESS]`.
//!
//! Prints the configuration of a client, then an empty line; serves until its standard input ends.

#![allow(dead_code, clippy::print_stdout, reason = "the tests use all of the server, this program does not")]

mod server;

use std::io::Read as _;
use std::path::Path;

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or_else(|| std::io::Error::other("usage: s3_server DIRECTORY [ADDRESS]"))?;
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1".to_owned());
    let server = server::Server::start_in(Path::new(&directory), &address);
    println!("{}", server.configuration(""));
    std::io::stdin().read_to_end(&mut Vec::new()).map(drop)
}
