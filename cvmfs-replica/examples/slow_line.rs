//! Puts a long way before a server, for measuring: `slow_line SERVER MILLISECONDS` prints its address and stays.
#![expect(clippy::print_stdout, reason = "says where it listens")]

#[path = "../tests/replica/harness/slow_line.rs"]
mod slow_line;

use std::error::Error;
use std::time::Duration;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [server, milliseconds] = &arguments[..] else { return Err("SERVER MILLISECONDS".into()) };
    let round_trip = Duration::from_millis(milliseconds.parse()?);
    println!("{}", slow_line::start(server.parse()?, round_trip)?);
    loop {
        std::thread::park();
    }
}
