//! Ports for programs that cannot choose their own.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::net::TcpListener;

/// A port that nobody listens on now. No connection gets it either: Linux gives those ports from 32768 on.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = 10_000 + u16::try_from(RandomState::new().hash_one(()) % 20_000).expect("it is below 20,000");
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}
