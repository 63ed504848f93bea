//! Storages that do not answer, as those on a network do at times: here a manifest that is a FIFO nobody writes to.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode};

use crate::harness::{Client, Site};

/// A server in a process of its own.
struct Process {
    child: Child,
    address: String,
}

impl Process {
    fn start(site: &Site, more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cvmfs-replica"));
        command.arg("--root").arg(site.root()).arg("serve").args(more);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a process");
        let mut output = BufReader::new(child.stderr.take().expect("its output"));
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        // Whatever else it says, it can.
        std::thread::spawn(move || output.read_to_end(&mut Vec::new()));
        let address = line.split("://").nth(1).and_then(|rest| rest.split('/').next()).expect("an address").to_owned();
        Self { child, address }
    }

    fn health(&self) -> String {
        let mut client = Client::connect(self.address.parse().expect("an address"));
        client.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client.reply().text()
    }

    fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("threads").count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hang(site: &Site) {
    fs::create_dir_all(site.storage().join("data")).expect("directory");
    let manifest = site.storage().join(".cvmfspublished");
    fs::remove_file(&manifest).expect("removed");
    rustix::fs::mknodat(CWD, &manifest, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
}

#[test]
fn a_look_at_a_storage_that_hangs_takes_one_thread() {
    let site = Site::new();
    let server = Process::start(&site, &["--listen", "127.0.0.1:0"]);
    assert!(server.health().starts_with("ok"));
    hang(&site);
    // What is known is believed for two seconds.
    std::thread::sleep(Duration::from_millis(2100));
    let mut threads = Vec::new();
    for _ in 0..5 {
        assert_eq!(server.health(), "ok\nthe storages do not answer\n");
        threads.push(server.threads());
    }
    assert!(threads[4] <= threads[0], "{threads:?}");
}

#[test]
fn a_server_ends_though_a_storage_hangs() {
    let site = Site::new();
    hang(&site);
    let mut server = Process::start(&site, &["--listen", "127.0.0.1:0", "--grace", "1"]);
    assert_eq!(server.health(), "ok\nthe storages do not answer\n");
    let id = rustix::process::Pid::from_child(&server.child);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("a signal");
    let asked = Instant::now();
    while server.child.try_wait().expect("a process").is_none() {
        assert!(asked.elapsed() < Duration::from_secs(10), "it does not end");
        std::thread::sleep(Duration::from_millis(50));
    }
}
