//! `serve` as one service: it collects, checks and signs on its own, tells how that goes, and leaves things whole.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use cvmfs_core::notice;
use cvmfs_core::progress::Cancel;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::replica::{Replica, Source};
use crate::support::{NAME, Site, make_tree, pack, run};

const PATIENCE: Duration = Duration::from_mins(2);
const DAY: i64 = 86_400;

/// A running service.
pub(super) struct Service {
    child: Child,
    log: PathBuf,
    address: String,
}

impl Service {
    pub(super) fn start(site: &Site, program: &str, arguments: &[&str]) -> Self {
        let log = (0..100).map(|number| site.path(&format!("log-{number}"))).find(|log| !log.exists()).expect("a name");
        let mut command = site.command(program);
        command.args(["-v", "serve", "--listen", "127.0.0.1:0"]).args(arguments).env("NO_COLOR", "1");
        let child = command.stdout(Stdio::null()).stderr(File::create(&log).expect("log")).spawn().expect("service");
        let mut service = Self { child, log, address: String::new() };
        service.address = service.wait_for("an address", |service| {
            let log = service.log();
            let line = log.lines().find(|line| line.starts_with("serving ") && log.contains('\n'))?;
            Some(line.strip_prefix("serving http://")?.split('/').next()?.to_owned())
        });
        service
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("log")
    }

    /// Status code and body.
    pub(super) fn get(&self, path: &str) -> (u16, String) {
        let mut connection = TcpStream::connect(&self.address).expect("the service answers");
        connection.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).expect("sent");
        let mut reply = String::new();
        connection.read_to_string(&mut reply).expect("an answer");
        let (head, body) = reply.split_once("\r\n\r\n").expect("a head");
        (head.split(' ').nth(1).expect("a status").parse().expect("a number"), body.to_owned())
    }

    /// The value of a metric, by its name and labels.
    fn metric<T: FromStr>(&self, name: &str) -> Option<T> {
        let page = self.get("/metrics").1;
        page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// How often a job ended well, of a repository.
    fn runs(&self, repository: &str, job: &str) -> u64 {
        let labels = format!("{{repository=\"{repository}\",job=\"{job}\",result=\"succeeded\"}}");
        self.metric(&format!("cvmfs_job_runs_total{labels}")).unwrap_or_default()
    }

    /// Waits until a job has run once more, from begin to end.
    pub(super) fn wait_for_run(&self, repository: &str, job: &str) {
        // One may be running already.
        let before = self.runs(repository, job);
        self.wait_for(job, |service| (service.runs(repository, job) >= before + 2).then_some(()));
    }

    #[track_caller]
    pub(super) fn wait_for<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(started.elapsed() < PATIENCE, "no {what}: {}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks it to end; returns how it did.
    pub(super) fn end(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("status") {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "it does not end: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a number")).expect("a process");
        kill_process(pid, signal).expect("a signal");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes all objects of a storage some days old.
fn make_old(storage: &Path, days: u32) {
    let mut find = Command::new("find");
    find.arg(storage.join("data")).args(["-type", "f", "-exec", "touch", "-d", &format!("{days} days ago"), "{}", "+"]);
    run(&mut find).ok();
}

/// A repository of which revisions 3 and 4 are garbage, but for a tag `garbage`, and all objects of them are old.
fn site_with_garbage() -> (Site, Vec<String>) {
    site_with_garbage_in(|site| site.mkfs(&["--gc", "--no-autotags"]))
}

/// The same where `mkfs` makes the repository.
pub(super) fn site_with_garbage_in(mkfs: impl FnOnce(&Site)) -> (Site, Vec<String>) {
    let mut site = Site::empty(NAME);
    // Long enough ago for a service that keeps what is of this second, and one after the other.
    let at = |site: &mut Site, ago: i64| site.environment = vec![("SOURCE_DATE_EPOCH", (now() - ago).to_string())];
    at(&mut site, 100);
    mkfs(&site);
    site.configure("CVMFS_AUTO_GC_TIMESPAN", "'0 days ago'");
    // Every commit stores the empty file.
    site.publish(&["mkdir", "/first"]).ok();
    let first = site.objects();
    make_tree("many", &site.path("many"), &["100"]);
    pack(&site.path("many"), &site.path("many.tar"), &["."]);
    at(&mut site, 80);
    site.ingest_tar("many.tar", &["--base-dir", "many", "--catalog", "--tag", "garbage"]);
    at(&mut site, 60);
    site.publish(&["mkdir", "/other"]).ok();
    let garbage = site.objects().into_iter().filter(|object| !first.contains(object)).collect();
    at(&mut site, 40);
    site.publish(&["rm", "-r", "/many", "/other"]).ok();
    // The revision before the newest one has a tag.
    at(&mut site, 20);
    site.publish(&["mkdir", "/last"]).ok();
    make_old(&site.storage(), 2);
    site.environment.clear();
    (site, garbage)
}

/// How many of these objects a site has.
pub(super) fn left(site: &Site, objects: &[String]) -> usize {
    let there = site.objects();
    objects.iter().filter(|object| there.contains(object)).count()
}

fn now() -> i64 {
    run(Command::new("date").arg("+%s")).ok().trim().parse().expect("a number")
}

/// Seconds since 1970 until when the whitelist is valid, as its second line says.
fn whitelist_expiry(site: &Site) -> i64 {
    let whitelist = fs::read(site.storage().join(".cvmfswhitelist")).expect("whitelist");
    let text = String::from_utf8_lossy(&whitelist);
    let line = text.lines().nth(1).expect("a second line").to_owned();
    let digits = line.strip_prefix('E').expect("an expiry");
    let (date, time) = digits.split_at(8);
    let time = format!("{date} {}:{}:{} UTC", &time[..2], &time[2..4], &time[4..]);
    run(Command::new("date").args(["+%s", "-d", &time])).ok().trim().parse().expect("a number")
}

#[test]
fn a_whitelist_about_to_expire_is_signed_where_the_master_key_is() {
    let site = Site::with_repository(&[]);
    site.publish(&["resign", "--days", "3"]).ok();
    let days_left = format!("cvmfs_repository_whitelist_days_left{{repository=\"{NAME}\"}}");

    // Without the master key, and without being asked, it only tells.
    let (key, elsewhere) = (site.key_file("masterkey"), site.path("elsewhere"));
    fs::rename(&key, &elsewhere).expect("rename");
    let service = Service::start(&site, "cvmfs-publish", &["--resign-when-days-left", "5"]);
    service.wait_for("warning", |service| service.log().contains("the master key is not here").then_some(()));
    let (status, body) = service.get("/healthz");
    assert_eq!((status, body.lines().next()), (200, Some("ok")));
    assert!(body.contains(&format!("{NAME}: expires soon: the whitelist expires in ")), "{body}");
    assert_eq!(service.get(&format!("/healthz/{NAME}")).0, 200);
    assert!(service.get("/").1.contains("expires soon"));
    let left: f64 = service.metric(&days_left).expect("days");
    assert!((2.9..=3.0).contains(&left), "{left}");
    assert!(service.log().contains("the whitelist expires in "));
    assert!(service.end().success());
    fs::rename(&elsewhere, &key).expect("rename");
    let service = Service::start(&site, "cvmfs-publish", &["--gc-every", "1", "--check-every", "1"]);
    service.wait_for_run(NAME, "check");
    assert!(whitelist_expiry(&site) < now() + 4 * DAY);
    assert!(service.end().success());

    // Three days are enough for who wants two.
    let service = Service::start(&site, "cvmfs-publish", &["--resign-when-days-left", "2"]);
    service.wait_for("look", |service| (service.runs(NAME, "resign") == 1).then_some(()));
    assert!(whitelist_expiry(&site) < now() + 4 * DAY);
    assert!(service.end().success());

    let service = Service::start(&site, "cvmfs-publish", &["--resign-when-days-left", "5", "--resign-days", "12"]);
    service.wait_for("signature", |_| (whitelist_expiry(&site) > now() + 11 * DAY).then_some(()));
    assert!(whitelist_expiry(&site) <= now() + 12 * DAY);
    service.wait_for("health", |service| (service.get("/healthz") == (200, "ok".to_owned())).then_some(()));
    let left: f64 = service.metric(&days_left).expect("days");
    assert!((11.9..=12.0).contains(&left), "{left}");
    site.check(&[]);

    // What would be signed at every look is refused.
    site.publish(&["serve", "--resign-when-days-left", "30"]).fails(1);
}

#[test]
fn garbage_goes_on_its_own_while_others_publish() {
    let (site, garbage) = site_with_garbage();
    site.publish(&["tag", "remove", "garbage"]).ok();
    let orphan = site.storage().join("data/00").join("1".repeat(38));
    fs::write(&orphan, "junk").expect("orphan");
    make_old(&site.storage(), 2);
    site.configure("CVMFS_AUTO_GC", "false");
    let service = Service::start(&site, "cvmfs-publish", &["--gc-every", "1", "--check-every", "1"]);
    service.wait_for_run(NAME, "check");
    assert!(orphan.exists() && service.runs(NAME, "gc") == 0, "the configuration forbids it");
    assert!(service.end().success());

    site.configure("CVMFS_AUTO_GC", "true");
    let service = Service::start(&site, "cvmfs-publish", &["--gc-every", "1", "--check-every", "1"]);
    let mut revisions = 0;
    service.wait_for("collection", |service| {
        site.publish(&["mkdir", &format!("/new-{revisions}")]).ok();
        revisions += 1;
        // What a publication began on stays while it goes on: that may take a second collection.
        (revisions > 5 && service.runs(NAME, "gc") >= 1 && left(&site, &garbage) == 0).then_some(())
    });
    assert!(!orphan.exists());
    let removed = service.metric::<usize>(&format!("cvmfs_job_objects_total{{repository=\"{NAME}\",job=\"gc\"}}"));
    assert!(removed.expect("a number") >= garbage.len());
    let last = format!("cvmfs_repository_last_gc_timestamp_seconds{{repository=\"{NAME}\"}}");
    let is_new = |time: &i64| (now() - 30..=now()).contains(time);
    service.wait_for("time of a collection", |service| service.metric(&last).filter(is_new));
    service.wait_for_run(NAME, "check");
    let failed = format!("cvmfs_repository_check_failed{{repository=\"{NAME}\"}}");
    service.wait_for("a verdict", |service| service.metric(&failed).filter(|&failed: &u8| failed == 0));
    assert_eq!(site.list(&[]).take(|path| path.starts_with("new-")).len(), revisions);
    assert!(service.end().success());
    // A collection a second after the last publication takes former histories out of the reflog; their files are too young
    // to go.
    site.check(&["--stale-y", "--allow", "reflog-incomplete"]);
}

#[test]
fn damage_is_found_and_told_until_it_is_mended() {
    let site = Site::with_repository(&[]);
    make_tree("many", &site.path("many"), &["5"]);
    site.publish(&["publish", "--from", site.path("many").to_str().expect("UTF-8")]).ok();
    let service = Service::start(&site, "cvmfs-publish", &["--check-every", "1", "--check-data"]);
    let health = format!("/healthz/{NAME}");
    service.wait_for_run(NAME, "check");
    assert_eq!(service.get(&health), (200, "ok".to_owned()));
    assert_eq!(service.get("/healthz/other.example.org").0, 404);

    // One byte of a file, which leaves its size as it is.
    let object = site.objects().into_iter().find(|object| object.len() == 40).expect("a file");
    let file = site.storage().join("data").join(&object[..2]).join(&object[2..]);
    let whole = fs::read(&file).expect("object");
    let mut damaged = whole.clone();
    *damaged.last_mut().expect("a byte") ^= 1;
    fs::remove_file(&file).expect("object");
    fs::write(&file, damaged).expect("object");
    let (_, body) = service.wait_for("damage", |service| Some(service.get(&health)).filter(|(code, _)| *code == 503));
    assert_eq!(body, format!("{NAME}: damaged: the last check found something wrong\n"));
    // The server itself is well: a balancer must not take away the other repositories.
    assert_eq!(service.get("/healthz"), (200, format!("ok\n{body}")));
    let failed = format!("cvmfs_repository_check_failed{{repository=\"{NAME}\"}}");
    service.wait_for("a verdict", |service| service.metric(&failed).filter(|&failed: &u8| failed == 1));
    assert!(service.get("/").1.contains("damaged") && service.log().contains(&object), "{}", service.log());

    fs::write(&file, whole).expect("object");
    service.wait_for("health", |service| (service.get(&health).0 == 200).then_some(()));
    assert!(service.end().success());
}

#[test]
fn what_was_done_before_a_restart_counts() {
    let (site, garbage) = site_with_garbage();
    site.publish(&["tag", "remove", "garbage"]).ok();
    let all = ["--check-every", "1 week", "--gc-every", "1 day", "--resign-when-days-left", "1"];
    let runs = |service: &Service| ["gc", "check", "resign"].map(|job| service.runs(NAME, job));
    let service = Service::start(&site, "cvmfs-publish", &all);
    service.wait_for("jobs", |service| (runs(service) == [1; 3]).then_some(()));
    assert!(service.end().success());
    let service = Service::start(&site, "cvmfs-publish", &all);
    service.wait_for("look at the whitelist", |service| (service.runs(NAME, "resign") == 1).then_some(()));
    thread::sleep(Duration::from_millis(300));
    assert_eq!(runs(&service), [0, 0, 1]);
    assert!(service.end().success());

    // A check of eight days ago is too old; a collection of the year 2099 is none of the future.
    let date = |text: &str| {
        run(Command::new("date").args(["--utc", "-d", text, "+%a %b %e %H:%M:%S UTC %Y"])).ok().trim().to_owned()
    };
    let status = site.storage().join(".cvmfs_status.json");
    let mut values: serde_json::Value = serde_json::from_slice(&fs::read(&status).expect("status")).expect("JSON");
    values["last_check"] = date("8 days ago").into();
    values["last_gc"] = date("2099-01-01").into();
    fs::write(&status, values.to_string()).expect("status");
    let service = Service::start(&site, "cvmfs-publish", &all);
    service.wait_for("check", |service| (service.runs(NAME, "check") == 1).then_some(()));
    assert_eq!(service.runs(NAME, "gc"), 0);
    assert!(service.end().success());
    assert_eq!(left(&site, &garbage), 0);
}

#[test]
fn a_service_that_is_asked_to_end_leaves_things_whole() {
    let (site, garbage) = site_with_garbage();
    site.publish(&["tag", "remove", "garbage"]).ok();
    for pause in [0, 5, 10, 20, 40, 80] {
        let service = Service::start(&site, "cvmfs-publish", &["--gc-every", "1", "--check-every", "1"]);
        thread::sleep(Duration::from_millis(pause));
        assert!(service.end().success());
        site.publish(&["check"]).ok();
    }
    site.check(&["--stale-y", "--no-strict", "--allow", "reflog-incomplete"]);
    // However often it was interrupted, what is garbage goes in the end.
    site.publish(&["gc", "--keep-revisions", "0"]).ok();
    assert_eq!(left(&site, &garbage), 0);
}

#[test]
fn those_who_listen_are_told_of_revisions_that_others_publish() {
    let site = Site::with_repository(&[]);
    let service = Service::start(&site, "cvmfs-publish", &[]);
    let (sender, told) = mpsc::channel();
    let url = format!("http://{}/api/v1", service.address).parse().expect("URL");
    thread::spawn(move || {
        let mut tell = |manifest| drop(sender.send(manifest));
        drop(notice::subscribe(&url, &NAME.parse().expect("a name"), &Cancel::new(), &mut tell));
    });
    // Whoever listens does so after a moment.
    let started = Instant::now();
    let heard = loop {
        site.publish(&["mkdir", &format!("/new-{}", started.elapsed().as_nanos())]).ok();
        if let Ok(manifest) = told.recv_timeout(Duration::from_secs(2)) {
            break manifest;
        }
        assert!(started.elapsed() < PATIENCE, "nobody is told");
    };
    assert!(heard == site.manifest());
    // Nobody is told twice.
    assert!(told.recv_timeout(Duration::from_millis(1500)).is_err());
}

#[test]
fn what_is_wrong_with_one_repository_does_not_keep_others_from_their_jobs() {
    let site = Site::with_repository(&[]);
    let other = |name: &str| {
        site.publish(&["mkfs", name]).ok();
        site.root().join("etc/cvmfs/repositories.d").join(name).join("server.conf")
    };
    let [unreadable, keyless, gone] =
        ["unreadable.example.org", "keyless.example.org", "gone.example.org"].map(|name| (name, other(name)));
    fs::write(&unreadable.1, "CVMFS_HASH_ALGORITHM=md5\n").expect("configuration");
    for key in ["crt", "key", "pub", "masterkey"] {
        fs::remove_file(site.root().join(format!("etc/cvmfs/keys/{}.{key}", keyless.0))).expect("key");
    }
    fs::remove_dir_all(site.root().join("srv/cvmfs").join(gone.0)).expect("storage");
    let all = ["--check-every", "1", "--gc-every", "1", "--resign-when-days-left", "5"];
    let service = Service::start(&site, "cvmfs-publish", &all);
    service.wait_for_run(NAME, "check");
    let failures = |name: &str| {
        let labels = format!("{{repository=\"{name}\",job=\"check\"}}");
        service.metric::<u64>(&format!("cvmfs_job_failures_in_a_row{labels}"))
    };
    assert_eq!(failures(NAME), Some(0));
    let broken = [unreadable.0, keyless.0, gone.0];
    service.wait_for("failures", |_| broken.iter().all(|name| failures(name) >= Some(1)).then_some(()));
    let log = service.log();
    assert!(log.contains("unreadable.example.org") && log.contains("md5"), "{log}");
    let (status, body) = service.get("/healthz");
    assert!(status == 200 && body.contains("keyless.example.org: failing: check failed: "), "{body}");

    // One that is removed while it is served: the others go on.
    fs::remove_dir_all(site.root().join("etc/cvmfs/repositories.d").join(keyless.0)).expect("configuration");
    fs::remove_dir_all(site.root().join("srv/cvmfs").join(keyless.0)).expect("storage");
    service.signal(Signal::HUP);
    service.wait_for_run(NAME, "check");
    assert_eq!(service.get(&format!("/cvmfs/{}/.cvmfspublished", keyless.0)).0, 404);
    assert!(service.end().success());
}

#[test]
fn a_replica_is_collected_and_checked_on_its_own() {
    let (original, garbage) = site_with_garbage();
    // The first snapshot takes the garbage along, as it has a name.
    let source = Source::start(&original);
    let replica = Replica::of(&original, &source, &[]);
    replica.snapshot();
    original.publish(&["tag", "remove", "garbage"]).ok();
    make_old(&original.storage(), 2);
    replica.snapshot();
    replica.configure("CVMFS_AUTO_GC_TIMESPAN", "0 days ago");
    make_old(&replica.site.storage(), 2);
    assert!(left(&replica.site, &garbage) > garbage.len() / 2);
    let all = ["--snapshot-every", "1", "--gc-every", "1", "--check-every", "1"];
    let service = Service::start(&replica.site, "cvmfs-replica", &all);
    service.wait_for("collection", |_| (left(&replica.site, &garbage) == 0).then_some(()));
    original.publish(&["mkdir", "/new"]).ok();
    service.wait_for("snapshot", |_| (replica.site.manifest() == original.manifest()).then_some(()));
    service.wait_for_run(NAME, "check");
    let failed = format!("cvmfs_repository_check_failed{{repository=\"{NAME}\"}}");
    service.wait_for("a verdict", |service| service.metric(&failed).filter(|&failed: &u8| failed == 0));
    assert!(service.end().success());
}
