//! From notifications to revisions.

use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cvmfs_core::commit::Publisher;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::hooks::Hooks;
use cvmfs_core::progress::Cancel;
use cvmfs_core::server::ServerRoot;
use cvmfs_ingest::image::convert;
use cvmfs_ingest::image::digest::Digest;
use cvmfs_ingest::image::layout::bookkeeping::{Permissions, Policy};
use cvmfs_ingest::image::listen::{Allowed, Options, Plan, Registry as Source, Service, listen, queue};
use cvmfs_ingest::image::local::OciLayout;
use cvmfs_ingest::image::manifest::Platforms;
use cvmfs_ingest::image::reference::Reference;
use cvmfs_ingest::image::source::ImageStore;
use cvmfs_ingest::image::{Descriptor, Document, clean};
use serde_json::{Value, json};

use super::attacks::drip;
use super::parties::{Client, NAME, Process, Registry, SECRET, Sink, free_address, now, repository, wait_for};
use crate::registry::servers::{BASIC, PASSWORD, PLAIN, USER};
use crate::registry::support::{MULTI, SAMPLE, push, skopeo};

/// Names and manifests of the images of a repository.
fn images(root: &Path) -> Vec<(String, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_cvmfs-ingest"))
        .arg("--root")
        .arg(root)
        .args(["--json", "images"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    list.as_array().unwrap().iter().map(|image| (text(&image["name"]), text(&image["digest"]))).collect()
}

fn revision(root: &Path) -> u64 {
    publisher(root).head(now()).unwrap().manifest().revision
}

fn publisher(root: &Path) -> Publisher {
    Publisher::open(&ServerRoot::new(root).unwrap(), &NAME.parse().unwrap()).unwrap()
}

#[test]
fn what_is_pushed_is_published_and_what_is_deleted_goes() {
    let root = repository();
    let sink = Sink::start(2);
    let address = free_address();
    let allowed = format!("http://{address}/team");
    let service = Process::start(root.path(), &["--allow", &allowed, "--webhook", &sink.url, "--podman", "off"]);
    let client = service.client();
    let registry = Registry::start(&address, &service.address);
    let mut events = BufReader::new(client.connect());
    write!(events.get_mut(), "GET /events HTTP/1.1\r\nHost: x\r\nAuthorization: {SECRET}\r\n\r\n").unwrap();
    wait_for("a listener", || (client.metric("event_listeners") > 0).then_some(()));

    let name = |image: &str| format!("{}/{image}", registry.address);
    let push = |source: &str, image: &str| {
        skopeo(&["copy", "-q", "--dest-tls-verify=false", source, &format!("docker://{}", name(image))]);
    };
    // 1. New.
    push(&SAMPLE.name(), "team/app:1");
    client.wait_for_attempts("published", 1);
    assert_eq!(images(root.path()), [(name("team/app:1"), SAMPLE.manifest.to_string())]);
    assert_eq!(client.queue(), json!({"waiting": 0, "running": 0, "failed": 0, "ignored": 0, "entries": []}));
    assert!(client.metric("last_success_timestamp_seconds") >= now().0.unsigned_abs() - 60);
    assert_eq!(client.metric("fetched_layers_total"), 2);
    assert!(client.metric("notifications_total{form=\"distribution\"}") >= 1);

    // 2. Known, and what nobody asked for.
    let before = revision(root.path());
    push(&SAMPLE.name(), "other/app:1");
    wait_for("a refusal", || (client.metric("rejected_total{reason=\"not_allowed\"}") >= 1).then_some(()));
    push(&SAMPLE.name(), "team/app:1");
    client.wait_for_attempts("unchanged", 1);
    assert_eq!(revision(root.path()), before);

    // 3. The tag moves, and there is another one.
    push(&MULTI[0].name(), "team/app:1");
    client.wait_for_attempts("published", 2);
    push(&SAMPLE.name(), "team/app:2");
    client.wait_for_attempts("published", 3);
    let found = images(root.path());
    assert_eq!((found.len(), &found[1]), (2, &(name("team/app:2"), SAMPLE.manifest.to_string())));
    assert_ne!(found[0].1, SAMPLE.manifest.to_string());

    // 4. Deleted; and said to be, and is not.
    skopeo(&["delete", "--tls-verify=false", &format!("docker://{}", name("team/app:1"))]);
    client.wait_for_attempts("removed", 1);
    assert_eq!(images(root.path()), [(name("team/app:2"), SAMPLE.manifest.to_string())]);
    let before = revision(root.path());
    assert_eq!(client.notify(&format!(r#"{{"image": "{}", "action": "delete"}}"#, name("team/app:2"))), 202);
    client.wait_for_attempts("unchanged", 2);
    assert_eq!(revision(root.path()), before);

    // 5. All tags of a repository.
    push(&SAMPLE.name(), "team/many:1");
    push(&SAMPLE.name(), "team/many:2");
    client.wait_for_attempts("published", 5);
    assert_eq!(client.notify(&format!(r#"{{"image": "{}"}}"#, name("team/many"))), 202);
    client.wait_for_attempts("queued", 1);
    client.wait_for_attempts("unchanged", 4);

    // 6. Whoever listened heard of it.
    let published = json!({"action": "publish_flat_image", "image": name("team/app:1"), "public_path": format!("/{}", name("team/app:1"))});
    let is_told = |event: &Value| {
        ["action", "image"].iter().all(|key| event[key] == published[key])
            && event["public_path"].as_str().unwrap().trim_start_matches('/') == name("team/app:1")
    };
    let mut lines = events.lines().map(Result::unwrap);
    lines.find(|line| line == "event: publish_flat_image").unwrap();
    let data = lines.next().unwrap();
    assert!(is_told(&serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap()), "{data}");
    let bodies = || sink.bodies.lock().unwrap().clone();
    wait_for("the webhook", || bodies().iter().any(|body| is_told(&serde_json::from_str(body).unwrap())).then_some(()));
    // The first of them were refused, and sent again.
    let first: Value = serde_json::from_str(&bodies()[0]).unwrap();
    assert_eq!((&first["action"], &first["image"]), (&json!("start_flat_conversion"), &json!(name("team/app:1"))));
    let said = service.said.lock().unwrap().clone();
    assert!(!said.contains("panicked") && !said.contains("secret=1"), "{said}");
    assert_eq!(service.end("-TERM"), Some(0));
}

#[test]
fn a_recipe_says_what_is_wanted_without_notifications() {
    let root = repository();
    let address = free_address();
    let registry = Registry::start(&address, "127.0.0.1:1");
    for image in ["team/app:1.0", "team/app:1.1", "team/app:2.0", "team/base:7"] {
        let target = format!("docker://{}/{image}", registry.address);
        skopeo(&["copy", "-q", "--dest-tls-verify=false", &SAMPLE.name(), &target]);
    }
    let recipe = root.path().join("recipe.yaml");
    let wish = |lines: &[&str]| {
        let lines: String = lines.iter().map(|line| format!("  - 'http://{address}/{line}'\n")).collect();
        fs::write(&recipe, format!("version: 1\ncvmfs_repo: {NAME}\ninput:\n{lines}")).unwrap();
    };
    wish(&["team/app:1.*"]);
    let arguments = ["--recipe", recipe.to_str().unwrap(), "--interval", "1", "--podman", "off"];
    let service = Process::start(root.path(), &arguments);
    let client = service.client();
    client.wait_for_attempts("published", 2);
    let names = || -> Vec<String> {
        let cut = |name: String| name.strip_prefix(&format!("{address}/")).unwrap().to_owned();
        images(root.path()).into_iter().map(|(name, _)| cut(name)).collect()
    };
    assert_eq!(names(), ["team/app:1.0", "team/app:1.1"]);
    // Notifications are believed if they are about one of its lines.
    for image in ["team/app:1.0", "team/app:2.0", "team/base:7"] {
        assert_eq!(client.notify(&format!(r#"{{"image": "{address}/{image}"}}"#)), 202);
    }
    assert_eq!(client.metric("rejected_total{reason=\"not_allowed\"}"), 2);
    // It is read again.
    wish(&["team/app:1.*", "team/base:7"]);
    client.wait_for_attempts("published", 3);
    assert_eq!(names(), ["team/app:1.0", "team/app:1.1", "team/base:7"]);
    assert_eq!(client.metric("queue_length{state=\"failed\"}"), 0);
    assert_eq!(service.end("-INT"), Some(0));
}

#[test]
fn thin_images_are_pushed_and_failures_ignored_whoever_converts() {
    let root = repository();
    let (source, output) = (&PLAIN.address, &BASIC.address);
    for image in ["thin/app:1", "thin/app:2"] {
        push(&SAMPLE.name(), source, image, &[]);
    }
    let recipe = root.path().join("recipe.yaml");
    let wish = |tags: &str| {
        let text = format!(
            "cvmfs_repo: {NAME}\nuser: {USER}\noutput_format: 'http://{output}/images/$(repository):$(tag)'\n\
             input:\n  - 'http://{source}/thin/app:{tags}'\n  - 'http://{source}/thin/missing:1'\n\
             ignoreErrors:\n  - 'http://{source}/thin/missing:*'\n"
        );
        fs::write(&recipe, text).unwrap();
    };
    let thin = |tag: &str| {
        let credentials = format!("{USER}:{PASSWORD}");
        let image = format!("docker://{output}/images/thin/app:{tag}");
        let manifest = skopeo(&["inspect", "--raw", "--tls-verify=false", "--creds", &credentials, &image]);
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        manifest["layers"].as_array().unwrap().len()
    };
    // 1. Once.
    wish("1");
    let mut convert = Command::new(env!("CARGO_BIN_EXE_cvmfs-ingest"));
    convert.arg("--root").arg(root.path()).args(["--json", "convert", "--thin"]).arg(&recipe);
    let said = convert.env("DUCC_OUTPUT_REGISTRY_PASS", PASSWORD).output().unwrap();
    assert!(said.status.success(), "{said:?}");
    assert_eq!(thin("1"), 1);
    // 2. As a service, which finds the first one converted and pushed.
    wish("?");
    let arguments = ["--recipe", recipe.to_str().unwrap(), "--thin", "--attempts", "1"];
    let service = Process::start(root.path(), &arguments);
    let client = service.client();
    client.wait_for_attempts("ignored", 1);
    client.wait_for_attempts("published", 1);
    client.wait_for_attempts("unchanged", 1);
    assert_eq!(thin("2"), 1);
    let queue = client.queue();
    assert_eq!(
        (&queue["failed"], &queue["ignored"], &queue["entries"][0]["state"]),
        (&json!(0), &json!(1), &json!("ignored"))
    );
    assert_eq!(
        (client.metric("queue_length{state=\"failed\"}"), client.metric("queue_length{state=\"ignored\"}")),
        (0, 1)
    );
    assert_eq!(client.metric("attempts_total{result=\"given_up\"}"), 0);
}

/// A registry with one image under one tag, which fails so many times.
#[derive(Debug)]
struct Flaky {
    layout: OciLayout,
    failures: Arc<AtomicU32>,
    /// Blobs never end.
    is_stuck: bool,
}

impl Flaky {
    fn new(failures: u32, is_stuck: bool) -> Arc<Self> {
        let layout = OciLayout::directory(&SAMPLE.directory).unwrap();
        Arc::new(Self { layout, failures: Arc::new(AtomicU32::new(failures)), is_stuck })
    }
}

impl ImageStore for Flaky {
    fn describe(&self) -> String {
        "flaky".to_owned()
    }

    fn digest(&self, reference: &str) -> Result<Option<Digest>> {
        let left = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match left {
            Ok(_) => Err(Error::Unavailable { what: "flaky".to_owned(), reason: "not now".to_owned() }),
            Err(_) => self.layout.digest(reference),
        }
    }

    fn manifest(&self, reference: &str) -> Result<(Document, Option<String>)> {
        self.layout.manifest(reference)
    }

    fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>> {
        if self.is_stuck {
            // A byte at a time, for ever.
            struct Slow;
            impl Read for Slow {
                fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                    std::thread::sleep(Duration::from_millis(5));
                    buffer[..1].fill(0);
                    Ok(1)
                }
            }
            return Ok(Box::new(Slow));
        }
        self.layout.blob(blob)
    }
}

#[derive(Debug)]
struct Everywhere(Arc<Flaky>);

impl Source for Everywhere {
    fn open(&self, _image: &Reference) -> Result<Arc<dyn ImageStore>> {
        Ok(Arc::clone(&self.0) as Arc<dyn ImageStore>)
    }

    fn tags(&self, _image: &Reference) -> Result<Vec<String>> {
        Ok(vec![SAMPLE.tag.to_owned()])
    }
}

/// Runs a service within this process while something is tried on it.
fn with_service(root: &Path, source: &Arc<Flaky>, options: Options, attempt: impl FnOnce(&Client)) {
    let publisher = publisher(root);
    let plan = || {
        let now = now();
        let policy = Policy {
            platforms: Platforms::default(),
            permissions: Permissions::Keep,
            layers: None,
            flat: true,
            podman: None,
            thin: None,
        };
        let convert = convert::Options::new(&publisher, policy, now)?;
        let clean = clean::Options { publication: convert.publication.clone(), owner: (0, 0), now, dry_run: false };
        Ok(Plan { convert, clean })
    };
    let root = ServerRoot::new(root).unwrap();
    let service = Service {
        publisher: &publisher,
        registry: &Everywhere(Arc::clone(source)),
        outputs: None,
        hooks: &Hooks::new(&root, &publisher.config.name),
        listener: &Vec::new(),
        plan: &plan,
        allowed: &|| Ok(Allowed { places: vec!["r.example.org".parse()?], recipes: Vec::new() }),
        clock: || Ok(now()),
        ready: &|_| {},
    };
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Client { address: socket.local_addr().unwrap().to_string() };
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| listen(socket, &service, options, &cancel));
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| attempt(&client)));
        cancel.cancel();
        let ended = running.join().unwrap();
        if let Err(panic) = tried {
            std::panic::resume_unwind(panic);
        }
        ended.unwrap();
    });
}

fn quick(attempts_max: u32) -> Options {
    let queue = queue::Options {
        attempts_max,
        backoff_initial: Duration::from_millis(20),
        backoff_max: Duration::from_millis(40),
        ..queue::Options::default()
    };
    Options { queue, ..Options::default() }
}

#[test]
fn failures_are_tried_again_until_they_are_given_up() {
    let root = repository();
    let source = Flaky::new(3, false);
    let body = format!(r#"{{"image": "r.example.org/app:{}"}}"#, SAMPLE.tag);
    with_service(root.path(), &source, quick(4), |client| {
        assert_eq!(client.notify(&body), 202);
        client.wait_for_attempts("published", 1);
        assert_eq!(client.metric("attempts_total{result=\"failed\"}"), 3);
        assert_eq!(images(root.path()).len(), 1);
        // For good, until there are news.
        source.failures.store(4, Ordering::SeqCst);
        assert_eq!(client.notify(&body), 202);
        client.wait_for_attempts("given_up", 1);
        let entry = &client.queue()["entries"][0];
        assert_eq!((&entry["state"], &entry["attempts"]), (&json!("failed"), &json!(4)));
        assert_eq!(entry["error"], "flaky: not now");
        assert_eq!(client.notify(&body), 202);
        client.wait_for_attempts("unchanged", 1);
        assert_eq!(client.queue()["entries"], json!([]));
        // Not there, says the registry.
        assert_eq!(client.notify(r#"{"image": "r.example.org/app:other"}"#), 202);
        client.wait_for_attempts("given_up", 2);
        // It does not say so of what is only said to be gone.
        source.failures.store(1, Ordering::SeqCst);
        assert_eq!(client.notify(r#"{"image": "r.example.org/app:1", "action": "delete"}"#), 202);
        client.wait_for_attempts("unchanged", 2);
        assert_eq!(images(root.path()).len(), 1);
    });
}

#[test]
fn what_runs_at_the_end_is_cancelled_and_stays_queued() {
    let root = repository();
    let source = Flaky::new(0, true);
    let options = || Options { grace: Duration::from_millis(500), ..quick(4) };
    with_service(root.path(), &source, options(), |client| {
        assert_eq!(client.notify(&format!(r#"{{"image": "r.example.org/app:{}"}}"#, SAMPLE.tag)), 202);
        wait_for("it to run", || (client.queue()["running"] == 1).then_some(()));
        // Those who listen do not keep it from ending.
        let mut stream = client.connect();
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    });
    assert_eq!(revision(root.path()), 1);
    let layers = publisher(root.path()).config.spool.join("layers");
    assert!(fs::read_dir(layers).unwrap().next().is_none(), "nothing half is left");
    let queue = publisher(root.path()).config.spool.join("image-queue");
    let file = fs::read_dir(queue).unwrap().next().unwrap().unwrap().path();
    let entry: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert_eq!(entry["attempts"], 0, "what was cancelled is no attempt");
    let source = Flaky::new(0, false);
    with_service(root.path(), &source, options(), |client| {
        client.wait_for_attempts("published", 1);
        assert_eq!(client.metric("attempts_total{result=\"failed\"}"), 0);
    });
}

#[test]
fn clients_that_are_slow_are_left() {
    let root = repository();
    let timeout = Duration::from_millis(400);
    let options = Options { request_timeout: timeout, connections_max: 4, ..quick(1) };
    with_service(root.path(), &Flaky::new(0, false), options, |client| {
        let every = Duration::from_millis(40);
        let bound = Duration::from_secs(15);
        // More of them than there may be connections.
        std::thread::scope(|scope| {
            for begin in [
                "",
                "POST / HTTP/1.1\r\nX: ",
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
                "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n100\r\n",
                "GET / HTTP/1.1\r\n",
                "GET / HTTP/1.1\r\nHost: ",
            ] {
                scope.spawn(move || {
                    let took = drip(client, begin, every);
                    assert!(took < bound, "{begin:?}: {took:?}");
                });
            }
        });
        assert_eq!(client.get("/healthz"), "ok\n");
        assert_eq!(client.metric("rejected_total{reason=\"too_slow\"}"), 2);
        // Without a secret, pages that a browser shows are strangers.
        let body = br#"{"image": "r.example.org/app:1"}"#;
        assert_eq!(client.ask("POST", "/", &["Origin: http://evil.example.org"], body).0, 401);
    });
}
