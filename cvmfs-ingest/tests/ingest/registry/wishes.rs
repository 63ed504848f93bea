//! Wish lists: what of them is converted, at what cost, what is said about it, and how images go again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cvmfs_core::commit::Publisher;
use cvmfs_core::entry::{EntryKind, Mount};
use cvmfs_core::repository::Selector;
use cvmfs_core::server::ServerRoot;
use cvmfs_ingest::image::digest::Digest;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::servers::{Reply, Request, Server};
use super::support::{MULTI, SAMPLE, Sample};
use crate::listen::parties::{NAME, now, repository, wait_for};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry of this process: manifests by name, and the blobs of the samples.
struct Registry {
    server: Server,
    names: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// A blob that it gives other bytes for.
    damaged: Arc<Mutex<String>>,
}

impl Registry {
    fn start() -> Self {
        let (names, damaged) = (Arc::<Mutex<BTreeMap<String, Vec<u8>>>>::default(), Arc::<Mutex<String>>::default());
        let (known, wrong) = (Arc::clone(&names), Arc::clone(&damaged));
        let server = Server::start(move |request| answer(request, &known.lock().unwrap(), &wrong.lock().unwrap()));
        Self { server, names, damaged }
    }

    /// Gives a name, `REPOSITORY:TAG`, to an image.
    fn name(&self, name: &str, sample: &Sample) {
        let blob = |digest: &Digest| fs::read(sample.directory.join("blobs/sha256").join(digest.hex())).unwrap();
        self.names.lock().unwrap().insert(name.to_owned(), blob(&sample.manifest));
    }

    fn damage(&self, digest: &str) {
        digest.clone_into(&mut self.damaged.lock().unwrap());
    }

    /// What was asked while something was done, without digests and queries.
    fn during(&self, work: impl FnOnce()) -> Vec<String> {
        let before = self.server.requests().len();
        work();
        let shown = |Request { method, target, .. }: &Request| {
            let target = target.trim_start_matches("/v2/").split('?').next().unwrap_or_default();
            format!("{method} {}", target.split("sha256:").next().unwrap_or_default())
        };
        let mut asked: Vec<_> = self.server.requests()[before..].iter().map(shown).collect();
        asked.sort();
        asked
    }
}

fn answer(request: &Request, names: &BTreeMap<String, Vec<u8>>, damaged: &str) -> Reply {
    let path = request.target.trim_start_matches("/v2/");
    if let Some((repository, _)) = path.split_once("/tags/list") {
        let prefix = format!("{repository}:");
        let tags: Vec<_> = names.keys().filter_map(|name| name.strip_prefix(&prefix)).collect();
        return Reply::json(&json!({"name": repository, "tags": tags}));
    }
    if let Some((repository, reference)) = path.split_once("/manifests/") {
        let is_meant = |(name, bytes): &(&String, &Vec<u8>)| {
            **name == format!("{repository}:{reference}") || Digest::of(bytes).to_string() == reference
        };
        let Some((_, manifest)) = names.iter().find(is_meant) else { return Reply::status(404) };
        let digest = Digest::of(manifest).to_string();
        return Reply::bytes(manifest.clone()).with("Content-Type", MANIFEST).with("Docker-Content-Digest", digest);
    }
    let digest = path.rsplit_once("sha256:").map_or("", |(_, digest)| digest);
    let places = [&SAMPLE.directory, &MULTI[0].directory];
    let blob = places.iter().find_map(|place| fs::read(place.join("blobs/sha256").join(digest)).ok());
    match blob {
        Some(blob) if digest == damaged => Reply::bytes(vec![b'x'; blob.len()]),
        Some(blob) => Reply::bytes(blob),
        None => Reply::status(404),
    }
}

/// A repository and a wish list for it.
struct Site {
    root: TempDir,
}

impl Site {
    fn new() -> Self {
        Self { root: repository() }
    }

    fn recipe(&self) -> String {
        self.root.path().join("recipe.yaml").display().to_string()
    }

    fn wish(&self, registry: &Registry, lines: &[&str], more: &str) {
        let address = &registry.server.address;
        let lines: String = lines.iter().map(|line| format!("  - 'http://{address}/{line}'\n")).collect();
        fs::write(self.recipe(), format!("version: 1\ncvmfs_repo: {NAME}\ninput:\n{lines}{more}")).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cvmfs-ingest"));
        command.arg("--root").arg(self.root.path()).args(arguments);
        command
    }

    /// Runs a command; gives exit code, what it prints as JSON, and what else it says.
    fn run(&self, arguments: &[&str]) -> (i32, Value, String) {
        let output = self.command(&[&["--json"], arguments].concat()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let printed = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
        (output.status.code().unwrap(), printed, said)
    }

    fn convert(&self, more: &[&str]) -> (i32, Value, String) {
        let recipe = self.recipe();
        self.run(&[&["convert"], more, &[&*recipe]].concat())
    }

    /// The names of images, without their registry.
    fn images(&self) -> Vec<String> {
        let (code, images, _) = self.run(&["images"]);
        assert_eq!(code, 0);
        let name = |image: &Value| image["name"].as_str().unwrap().split_once('/').unwrap().1.to_owned();
        images.as_array().unwrap().iter().map(name).collect()
    }

    fn manifest(&self) -> Vec<u8> {
        fs::read(self.root.path().join("srv/cvmfs").join(NAME).join(".cvmfspublished")).unwrap()
    }

    /// Finished layers that no revision has.
    fn spooled(&self) -> usize {
        let layers = self.root.path().join("var/spool/cvmfs").join(NAME).join("layers");
        let is_finished = |path: &Path| path.extension().is_some_and(|extension| extension == "changes");
        fs::read_dir(layers).map_or(0, |files| files.filter(|file| is_finished(&file.as_ref().unwrap().path())).count())
    }
}

/// Name without registry, state or what is planned, of each image.
fn states(report: &Value) -> Vec<(String, String)> {
    let state = |image: &Value| {
        let name = image["name"].as_str().unwrap().splitn(4, '/').nth(3).unwrap().to_owned();
        let planned = || {
            let does = if image["moves"] == true { "move" } else { "add" };
            let does = if image["current"] == true { "unchanged" } else { does };
            format!("{does} {}", image["layers"])
        };
        let state = image["state"].as_str().unwrap();
        (name, if state == "planned" { planned() } else { state.to_owned() })
    };
    report["images"].as_array().unwrap().iter().map(state).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, state)| ((*name).to_owned(), (*state).to_owned())).collect()
}

#[test]
fn a_wish_list_is_converted_and_what_is_wrong_with_it_told() {
    let (site, registry) = (Site::new(), Registry::start());
    registry.name("app:1", &SAMPLE);
    registry.name("app:2", &SAMPLE);
    registry.name("base:1", &MULTI[0]);
    site.wish(&registry, &["app:*", "../x:1", "base:1", "gone:1"], "");

    // 1. What would be done. Three layers, two of which are the same.
    let before = site.manifest();
    let (code, planned, said) = site.convert(&["--dry-run"]);
    let expected = [("app:1", "add 2"), ("app:2", "add 2"), ("base:1", "add 1"), ("gone:1", "failed")];
    assert_eq!((code, states(&planned)), (1, pairs(&expected)), "{said}");
    assert_eq!((planned["faults"][0]["line"].as_u64(), site.manifest() == before, site.spooled()), (Some(5), true, 0));
    let size = |name: &str| -> u64 {
        let manifest: Value = serde_json::from_slice(&registry.names.lock().unwrap()[name]).unwrap();
        manifest["layers"].as_array().unwrap().iter().map(|layer| layer["size"].as_u64().unwrap()).sum()
    };
    let all = size("app:1") + size("base:1");
    let text = site.command(&["-q", "convert", "--dry-run", &site.recipe()]).output().unwrap().stdout;
    let last = String::from_utf8(text).unwrap().lines().last().unwrap().to_owned();
    assert_eq!(last, format!("3 to convert, 0 unchanged, 1 failed; {} to fetch", cvmfs_core::cli::human_bytes(all)));

    // 2. Done; what cannot be stops nobody else.
    let events = site.root.path().join("events");
    let (code, report, said) = site.convert(&["--notification-file", events.to_str().unwrap()]);
    let expected = [("app:1", "done"), ("app:2", "done"), ("base:1", "done"), ("gone:1", "failed")];
    assert_eq!((code, states(&report)), (1, pairs(&expected)), "{said}");
    assert_eq!(site.images(), ["app:1", "app:2", "base:1"]);
    // The root catalog does not grow with the names of a registry.
    let mut tree = publisher(&site).head(now()).unwrap().tree(&Selector::Head).unwrap();
    let row = tree.find(&registry.server.address.parse().unwrap()).unwrap().unwrap();
    assert!(matches!(row.entry.kind, EntryKind::Directory(Mount::Mountpoint | Mount::Root)), "{row:?}");
    let fetched: u64 = (0..3).map(|image| report["images"][image]["layers_fetched"].as_u64().unwrap()).sum();
    assert_eq!((fetched, site.spooled()), (3, 0));
    let lines = fs::read_to_string(events).unwrap();
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = |action: &str, status: Option<&str>| {
        events.iter().filter(|event| event["action"] == action && event["status"].as_str() == status).count()
    };
    assert_eq!((count("publish_flat_image", None), count("publish_layer", None)), (3, 3));
    assert_eq!((count("end_flat_conversion", Some("ok")), count("end_flat_conversion", Some("error"))), (3, 1));
    // Two images may want the same layer at the same time: one fetches it.
    assert!((3..=5).contains(&count("end_layer_conversion", Some("ok"))));

    // 3. Once more: one request an image, and one for the tags.
    let before = site.manifest();
    let asked = registry.during(|| {
        assert_eq!(states(&site.convert(&[]).1), pairs(&expected));
    });
    let heads = ["app/manifests/1", "app/manifests/2", "base/manifests/1", "gone/manifests/1"];
    let mut expected: Vec<_> = heads.iter().map(|head| format!("HEAD {head}")).collect();
    expected.insert(0, "GET app/tags/list".to_owned());
    assert_eq!((asked, site.manifest() == before), (expected, true));

    // 4. A failure that was to be expected is none, and a name that moves moves.
    registry.name("app:1", &MULTI[0]);
    site.wish(&registry, &["app:1", "gone:1"], "ignoreErrors: ['http://*/gone:*']\n");
    let (code, planned, _) = site.convert(&["--dry-run"]);
    assert_eq!((code, states(&planned)), (0, pairs(&[("app:1", "move 0"), ("gone:1", "failed")])));
    let unlisted = planned["unlisted"].as_array().unwrap();
    assert_eq!(unlisted.len(), 2, "{planned}");
    let (code, report, said) = site.convert(&[]);
    assert_eq!((code, states(&report)), (0, pairs(&[("app:1", "done"), ("gone:1", "failed")])), "{said}");
    assert_eq!(report["images"][1]["ignored"], true);

    // 5. So it is for patterns. Each image has one name, also for readers who take the first of two.
    site.wish(&registry, &["app:1", "gone:*", "gone:1"], "ignoreErrors: ['http://*/gone:*']\n");
    let output = site.command(&["--json", "convert", &site.recipe()]).output().unwrap();
    let (text, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!((output.status.code(), text.matches("\"name\":").count()), (Some(0), 2), "{text}{said}");
    assert!(said.contains("recipe.yaml:5: ") && said.contains("(ignored)"), "{said}");
    let text = site.command(&["-q", "convert", &site.recipe()]).output().unwrap().stdout;
    let last = String::from_utf8(text).unwrap().lines().last().unwrap().to_owned();
    assert_eq!(last, "0 converted, 1 unchanged, 1 failed (1 ignored); 0 B fetched");
}

#[test]
fn a_list_that_wants_nothing_says_so_and_takes_nothing_away() {
    let (site, registry) = (Site::new(), Registry::start());
    registry.name("app:1", &SAMPLE);
    site.wish(&registry, &["app:1"], "");
    assert_eq!(site.convert(&[]).0, 0);
    // A slip: the key is `input`.
    let recipe = site.recipe();
    fs::write(&recipe, fs::read_to_string(&recipe).unwrap().replace("input:", "inputs:")).unwrap();
    for arguments in [&["convert"][..], &["convert", "--dry-run"], &["expand"]] {
        let output = site.command(&[&["-vv"], arguments, &[&*recipe]].concat()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && said.contains("wants no images"), "{arguments:?}: {said}");
        assert!(!said.contains('\u{1b}'), "colours in a file: {said:?}");
    }
    let refused = site.command(&["prune", &recipe]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(site.images(), ["app:1"]);
    // What is no list is no damage of the repository.
    fs::write(&recipe, "input: [").unwrap();
    for command in ["convert", "expand", "prune"] {
        assert_eq!(site.command(&[command, &recipe]).output().unwrap().status.code(), Some(1));
    }
}

#[test]
fn one_revision_may_have_all_images_of_a_list() {
    let (site, registry) = (Site::new(), Registry::start());
    registry.name("app:1", &SAMPLE);
    registry.name("base:1", &MULTI[0]);
    site.wish(&registry, &["app:1", "base:1", "gone:1"], "");
    let (code, report, _) = site.convert(&["--one-revision"]);
    assert_eq!(code, 1);
    let revisions: Vec<_> = (0..2).map(|image| report["images"][image]["revision"].as_u64()).collect();
    assert_eq!(revisions, [Some(2), Some(2)]);
    assert_eq!(site.images(), ["app:1", "base:1"]);
}

/// What a registry damages is not published, and what it did not is not fetched again.
#[test]
fn a_damaged_layer_publishes_nothing_and_costs_only_itself() {
    let (site, registry) = (Site::new(), Registry::start());
    registry.name("app:1", &SAMPLE);
    site.wish(&registry, &["app:1"], "");
    let manifest: Value = serde_json::from_slice(&registry.names.lock().unwrap()["app:1"]).unwrap();
    let large = manifest["layers"][0]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    registry.damage(&large);
    let before = site.manifest();
    let (code, report, _) = site.convert(&["--parallel", "1"]);
    let error = report["images"][0]["error"].as_str().unwrap();
    assert!(code == 1 && error.contains(&large), "{error}");
    assert_eq!((site.manifest() == before, site.images().len(), site.spooled()), (true, 0, 0));
    // Now the one behind it is damaged.
    let small = manifest["layers"][1]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    registry.damage(&small);
    assert_eq!(site.convert(&["--parallel", "1"]).0, 1);
    assert_eq!((site.manifest() == before, site.spooled()), (true, 1));
    registry.damage("");
    let asked = registry.during(|| {
        let (code, report, _) = site.convert(&[]);
        assert_eq!((code, &report["images"][0]["layers_fetched"]), (0, &json!(1)));
    });
    // The configuration, and the layer.
    assert_eq!(asked.iter().filter(|asked| **asked == "GET app/blobs/").count(), 2, "{asked:?}");
    assert_eq!(site.images(), ["app:1"]);
}

/// A process that ends with its value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_loop_sees_what_is_new_until_it_is_told_to_end() {
    let (site, registry) = (Site::new(), Registry::start());
    registry.name("app:1", &SAMPLE);
    site.wish(&registry, &["app:*"], "");
    let recipe = site.recipe();
    let mut command = site.command(&["-q", "convert", "--loop", "--interval", "1", &recipe]);
    let mut running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    wait_for("the first image", || (site.images() == ["app:1"]).then_some(()));
    registry.name("app:2", &MULTI[0]);
    wait_for("the second image", || (site.images().len() == 2).then_some(()));
    // A list that is damaged for a moment does not end it.
    fs::write(&recipe, "version: [").unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    registry.name("more:1", &SAMPLE);
    site.wish(&registry, &["app:*", "more:1"], "");
    wait_for("the third image", || (site.images().len() == 3).then_some(()));
    assert!(Command::new("kill").args(["-TERM", &running.0.id().to_string()]).status().unwrap().success());
    assert!(running.0.wait().unwrap().success());
}

#[test]
fn a_registry_that_is_down_is_waited_for_once() {
    let (site, registry) = (Site::new(), Registry::start());
    registry.name("app:1", &SAMPLE);
    let down: String = (0..20).map(|number| format!("  - 'http://127.0.0.1:1/app:{number}'\n")).collect();
    let input = format!("{down}  - 'http://{}/app:1'\n", registry.server.address);
    fs::write(site.recipe(), format!("version: 1\ncvmfs_repo: {NAME}\ninput:\n{input}")).unwrap();
    let begin = Instant::now();
    let (_, report, _) = site.convert(&["--images", "1"]);
    let failed = report["images"].as_array().unwrap().iter().filter(|image| image["state"] == "failed").count();
    assert_eq!((failed, &site.images()[..]), (20, &["app:1".to_owned()][..]));
    // Six attempts take some 20 seconds; 20 times that would be six minutes.
    assert!(begin.elapsed() < Duration::from_mins(2), "{:?}", begin.elapsed());
}

#[test]
fn a_thin_image_does_not_take_the_place_of_its_image() {
    let (site, registry) = (Site::new(), Registry::start());
    registry.name("app:1", &SAMPLE);
    let name = format!("http://{}/app:1", registry.server.address);
    let refused = site.command(&["-q", "image", &name, "--name", "r.org/other:1", "--thin", &name]).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("take the place"), "{said}");
    assert!(site.images().is_empty());
}

#[test]
fn podmans_names_are_those_of_the_images_that_are_called_so() {
    let (site, layouts): (_, [&Sample; 2]) = (Site::new(), [&SAMPLE, &MULTI[0]]);
    let convert = |sample: &Sample, name: &str| {
        let image = sample.name();
        let (code, report, said) = site.run(&["image", &image, "--name", name]);
        assert_eq!(code, 0, "{said}");
        report["revision"].is_null()
    };
    let names = || {
        let images = read(&site, "podmanStore/overlay-images/images.json");
        let images: Vec<Value> = serde_json::from_slice(&images).unwrap();
        let names = images.into_iter().map(|image| image["names"].clone());
        let mut names: Vec<_> = names.filter(|names| names != &json!([])).collect();
        names.sort_by_key(Value::to_string);
        names
    };
    convert(layouts[0], "docker.io/debian:q");
    assert_eq!(names(), [json!(["docker.io/debian:q", "docker.io/library/debian:q"])]);
    convert(layouts[1], "docker.io/library/debian:q");
    let expected = [json!(["docker.io/debian:q"]), json!(["docker.io/library/debian:q"])];
    assert_eq!(names(), expected);
    let (_, _, said) = site.run(&["image", "-g", &layouts[0].name(), "--name", "docker.io/debian:q"]);
    assert_eq!(names(), expected, "{said}");
    site.run(&["prune", "--image", "docker.io/debian:q"]);
    assert_eq!(names(), [json!(["docker.io/library/debian:q"])]);
    assert!(convert(layouts[1], "docker.io/library/debian:q"));
}

/// A file of the newest revision.
fn read(site: &Site, path: &str) -> Vec<u8> {
    let mut tree = publisher(site).head(now()).unwrap().tree(&Selector::Head).unwrap();
    let path = path.parse().unwrap();
    cvmfs_ingest::image::library::read_document(&mut tree, &path).unwrap().unwrap()
}

#[test]
fn images_that_left_the_list_go_and_later_what_they_were_made_of() {
    let (site, registry) = (Site::new(), Registry::start());
    registry.name("app:1", &SAMPLE);
    registry.name("app:2", &SAMPLE);
    registry.name("base:1", &MULTI[0]);
    site.wish(&registry, &["app:*", "base:1"], "");
    assert_eq!(site.convert(&["--podman", "layers"]).0, 0);
    let recipe = site.recipe();
    let list = |what: &str, garbage: &Value| garbage[what].as_array().unwrap().len();
    let counts = |garbage: &Value| [list("flat", garbage), list("layers", garbage), list("podman", garbage)];

    // 1. What the list has stays; so does all if a registry does not answer for a line.
    assert_eq!(site.run(&["prune", &recipe]).1["names"], json!([]));
    let before = site.manifest();
    fs::write(&recipe, format!("cvmfs_repo: {NAME}\ninput: ['http://127.0.0.1:1/app:*']\n")).unwrap();
    let refused = site.command(&["prune", &recipe, "-q"]).output().unwrap();
    assert!(!refused.status.success() && site.manifest() == before);
    assert_eq!(counts(&site.run(&["gc", "--grace-period", "0"]).1["removed"]), [0, 0, 0]);

    // 2. One name of two leaves: nothing is garbage. Then the other image.
    site.wish(&registry, &["app:1", "base:1"], "");
    let (_, pruned, _) = site.run(&["prune", "--dry-run", &recipe]);
    assert_eq!((list("names", &pruned), site.manifest() == before), (1, true));
    assert_eq!(list("names", &site.run(&["prune", &recipe]).1), 1);
    assert_eq!(site.images(), ["app:1", "base:1"]);
    assert_eq!(counts(&site.run(&["gc", "--grace-period", "0"]).1["removed"]), [0, 0, 0]);
    site.wish(&registry, &["app:1"], "");
    assert_eq!(list("names", &site.run(&["prune", &recipe]).1), 1);

    // 3. It is garbage, of which nothing goes before its time, and then it alone. Whoever only asks begins nothing.
    let ages = site.root.path().join("var/spool/cvmfs").join(NAME).join("image-garbage.json");
    fs::remove_file(&ages).unwrap();
    site.run(&["gc", "--dry-run"]);
    assert!(!ages.exists());
    let (_, collected, _) = site.run(&["gc"]);
    assert_eq!((counts(&collected["removed"]), counts(&collected["waiting"])), ([0, 0, 0], [1, 1, 1]));

    // Its time begins anew if it comes and goes again meanwhile. Say that all of this was long ago.
    let seen: BTreeMap<String, i64> = serde_json::from_slice(&fs::read(&ages).unwrap()).unwrap();
    let long_ago: BTreeMap<_, _> = seen.keys().map(|name| (name, 0)).collect();
    fs::write(&ages, serde_json::to_vec(&long_ago).unwrap()).unwrap();
    let due = |arguments: &[&str]| counts(&site.run(arguments).1["removed"]);
    assert_eq!(due(&["gc", "--dry-run"]), [1, 1, 1]);
    site.wish(&registry, &["app:1", "base:1"], "");
    assert_eq!(site.convert(&["--podman", "layers"]).0, 0);
    site.wish(&registry, &["app:1"], "");
    assert_eq!(list("names", &site.run(&["prune", &recipe]).1), 1);
    assert_eq!(due(&["gc"]), [0, 0, 0]);
    // So it does if the machine stopped while that was written.
    fs::write(&ages, b"").unwrap();
    assert_eq!(due(&["gc"]), [0, 0, 0]);
    let (_, collected, _) = site.run(&["gc", "--grace-period", "0", "--dry-run"]);
    assert_eq!((counts(&collected["removed"]), &collected["revision"]), ([1, 1, 1], &Value::Null));
    let (_, collected, _) = site.run(&["gc", "--grace-period", "0"]);
    assert_eq!(counts(&collected["removed"]), [1, 1, 1]);
    assert_eq!(counts(&site.run(&["gc", "--grace-period", "0"]).1["removed"]), [0, 0, 0]);

    // 4. What stays is whole: nothing has to be fetched for one more name of it.
    registry.name("app:3", &SAMPLE);
    site.wish(&registry, &["app:3"], "");
    let (code, report, _) = site.convert(&["--podman", "layers"]);
    assert_eq!((code, &report["images"][0]["layers_fetched"]), (0, &json!(0)));

    // 5. Trees that links lead to are in use, whoever made them, and whatever is written down; so they are for one platform.
    let flat = || list("flat", &site.run(&["gc", "--grace-period", "0", "--dry-run"]).1["removed"]);
    let edit = |arguments: &[&str]| assert!(site.command(arguments).output().unwrap().status.success());
    edit(&["--delete", ".metadata"]);
    assert_eq!(flat(), 0);
    let link = publisher(&site).head(now()).unwrap().tree(&Selector::Head).unwrap();
    let link = { link }.find(&format!("{}/app:3", registry.server.address).parse().unwrap()).unwrap().unwrap();
    let EntryKind::Symlink { target } = link.entry.kind else { panic!("no link") };
    let target = String::from_utf8(target).unwrap();
    let below = target.trim_start_matches("../");
    let mut place = registry.server.address.clone();
    for (next, target) in [
        (".multiarch/amd64/app:3", format!("../{target}")),
        ("sw/.modules/app", format!("/cvmfs/{NAME}/{below}")),
        ("sw/etc", format!("../{below}/etc")),
    ] {
        let (mut links, mut header) = (tar::Builder::new(Vec::new()), tar::Header::new_gnu());
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        links.append_link(&mut header, next, &target).unwrap();
        let archive = site.root.path().join("links.tar");
        fs::write(&archive, links.into_inner().unwrap()).unwrap();
        edit(&["--delete", &place, "--tar", archive.to_str().unwrap()]);
        assert_eq!(flat(), 0, "{next}");
        next.clone_into(&mut place);
    }
    edit(&["--delete", &place]);
    assert_eq!(flat(), 1);
}

fn publisher(site: &Site) -> Publisher {
    Publisher::open(&ServerRoot::new(site.root.path()).unwrap(), &NAME.parse().unwrap()).unwrap()
}
