//! A source that notes every request, and replicas of it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Done, Site, objects, run, verifier};

/// A server of a site's repositories that logs requests.
pub(crate) struct Source {
    child: Child,
    log: PathBuf,
    /// URL of the repository.
    pub(crate) url: String,
    name: String,
    /// Bytes of the log that were looked at.
    seen: usize,
}

impl Source {
    /// Serves the repository of a site.
    pub(crate) fn start(site: &Site) -> Self {
        let log = (0..100).map(|number| site.path(&format!("requests-{number}"))).find(|path| !path.exists());
        let log = log.expect("a free name");
        let mut command = site.command("cvmfs-replica");
        command
            .args(["-v", "serve", "--listen", "127.0.0.1:0", "--access-log", "--max-bundles", "0"])
            .env("NO_COLOR", "1");
        command.stdout(Stdio::null()).stderr(File::create(&log).expect("log"));
        let child = command.spawn().expect("server");
        let deadline = Instant::now() + Duration::from_mins(1);
        let address = loop {
            let text = fs::read_to_string(&log).expect("log");
            if let Some(line) = text.lines().find(|line| line.starts_with("serving ") && text.contains('\n')) {
                break line.split_whitespace().nth(1).expect("an address").to_owned();
            }
            assert!(Instant::now() < deadline, "no address: {text}");
            thread::sleep(Duration::from_millis(5));
        };
        let url = format!("{}/{}", address.trim_end_matches('/'), site.name);
        Self { child, log, url, name: site.name.clone(), seen: 0 }
    }

    /// The requests since the last call, sorted: method unless it is GET, and path below the repository.
    pub(crate) fn requests(&mut self) -> Vec<String> {
        let text = self.complete_log();
        let new = text[self.seen..].to_owned();
        self.seen = text.len();
        let field = |line: &str, key: &str| {
            let rest = line.split_once(&format!("{key}="))?.1;
            Some(rest.split_whitespace().next()?.trim_matches('"').to_owned())
        };
        let request = |line: &str| {
            let (method, path) = (field(line, "method")?, field(line, "path")?);
            let path = path.splitn(4, '/').nth(3)?.to_owned();
            Some(if method == "GET" { path } else { format!("{method} {path}") })
        };
        let mut requests: Vec<String> = new.lines().filter_map(request).collect();
        requests.sort();
        requests
    }

    /// The log with all that was answered until now: a response is counted before it is sent, and logged after that.
    fn complete_log(&self) -> String {
        let server = self.url.strip_suffix(&format!("/cvmfs/{}", self.name)).expect("a URL of the server");
        let metrics =
            run(Command::new("curl").args(["--noproxy", "*", "--silent", "--fail"]).arg(format!("{server}/metrics")));
        let answered: usize = metrics
            .ok()
            .lines()
            .filter(|line| line.starts_with("cvmfs_replica_responses_total{") && !line.contains("kind=\"metrics\""))
            .map(|line| line.rsplit(' ').next().and_then(|count| count.parse::<usize>().ok()).expect("a number"))
            .sum();
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let text = fs::read_to_string(&self.log).expect("log");
            let end = text.rfind('\n').map_or(0, |position| position + 1);
            let is_request = |line: &&str| line.contains(" access: ") && !line.contains("path=\"/metrics\"");
            if text[..end].lines().filter(is_request).count() >= answered {
                return text[..end].to_owned();
            }
            assert!(Instant::now() < deadline, "{answered} answers, but in the log: {text}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server with one replica.
pub(crate) struct Replica {
    pub(crate) site: Site,
}

impl Replica {
    /// Configures a replica of a source.
    pub(crate) fn of(original: &Site, source: &Source, more: &[&str]) -> Self {
        let mut site = Site::empty(&original.name);
        site.environment.clone_from(&original.environment);
        let replica = Self { site };
        replica.add(original, source, more).ok();
        replica
    }

    pub(crate) fn add(&self, original: &Site, source: &Source, more: &[&str]) -> Done {
        let key = self.site.key_file("pub");
        fs::create_dir_all(key.parent().expect("parent")).expect("mkdir");
        fs::copy(original.key_file("pub"), &key).expect("key");
        let key = key.to_str().expect("UTF-8");
        self.run(&[&["add-replica", "--stratum0", &source.url, "--public-key", key], more].concat())
    }

    /// Runs a command on the server.
    pub(crate) fn run(&self, arguments: &[&str]) -> Done {
        run(self.site.command("cvmfs-replica").args(arguments))
    }

    /// A snapshot, ready to be started.
    pub(crate) fn snapshot_command(&self, more: &[&str]) -> Command {
        let mut command = self.site.command("cvmfs-replica");
        command.args(["--json", "snapshot"]).args(more);
        command
    }

    /// A snapshot that must end well; what it prints of the replica.
    #[track_caller]
    pub(crate) fn snapshot(&self) -> serde_json::Value {
        run(&mut self.snapshot_command(&[])).json()[0].take()
    }

    /// Sets a variable of `replica.conf`.
    pub(crate) fn configure(&self, key: &str, value: &str) {
        let file = self.site.server_conf().with_file_name("replica.conf");
        let text = fs::read_to_string(&file).expect("replica.conf");
        fs::write(&file, format!("{text}{key}='{value}'\n")).expect("replica.conf");
    }

    /// Has everything of the replica verified.
    #[track_caller]
    pub(crate) fn check(&self, more: &[&str]) -> serde_json::Value {
        self.site.check(&[&["--replica"], more].concat())
    }

    /// Asserts that the replica has the objects of the original but for superseded tag databases, byte by byte.
    #[track_caller]
    pub(crate) fn assert_equals(&self, original: &Site) {
        let current = format!("{}H", original.manifest_field('H'));
        let expected: Vec<String> =
            original.objects().into_iter().filter(|object| !object.ends_with('H') || *object == current).collect();
        assert_eq!(without_old_histories(&self.site, &current), expected);
        for object in &expected {
            let path = object_path(object);
            let read = |site: &Site| fs::read(site.storage().join(&path)).expect("object");
            assert!(read(&self.site) == read(original), "{object}");
        }
        for file in [".cvmfspublished", ".cvmfswhitelist"] {
            let read = |site: &Site| fs::read(site.storage().join(file)).expect("file");
            assert!(read(&self.site) == read(original), "{file}");
        }
    }
}

fn without_old_histories(site: &Site, current: &str) -> Vec<String> {
    objects(&site.storage()).into_iter().filter(|object| !object.ends_with('H') || object == current).collect()
}

/// The place of an object below a storage.
pub(crate) fn object_path(object: &str) -> PathBuf {
    Path::new("data").join(&object[..2]).join(&object[2..])
}

/// The objects that one revision needs and another one does not, as the independent reader sees them.
#[track_caller]
pub(crate) fn listing(site: &Site, tag: &str) -> super::Listing {
    let text = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
    let (storage, key) = (text(site.storage()), text(site.key_file("pub")));
    let arguments = ["list", "--store", &storage, "--fqrn", &site.name, "--pub", &key, "--raw-links", "--tag", tag];
    super::Listing::parse(&verifier(arguments).ok())
}
