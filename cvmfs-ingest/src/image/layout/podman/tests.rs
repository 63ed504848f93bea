use super::*;
use crate::image::{Descriptor, Document, Platform, Settings};

/// Of `diff-one`, `diff-two`, `diff-three`: what podman makes of these layers, one on the other.
const IDS: [&str; 3] = [
    "217564a4e62060d2b6ebae8032e8d492174a25802b17df7666b4c90886e6fd8b",
    "dc8789702adc67c7487e1d26ae693a74139fd20bed89b00fb2a21defb0fd2cc7",
    "6bab8d4f2ff35e988b30869df1d05db2b40806db250d0781cdf1c76e6b6edc3d",
];
/// `base32(sha256("lid:" + id))`, 26 characters, by Python.
const SHORT: [&str; 3] = ["HP44DXICDAU6EEKQO3NCAC3NLF", "7GQUGYY7322UZXG73CKLMU6YNK", "2KXTH6L6SGECHS57YJ26KMC2UM"];

const NOW: UnixSeconds = UnixSeconds(1_730_000_800);

fn layer(name: &str) -> Layer {
    let blob = Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        digest: Digest::of(format!("blob of {name}").as_bytes()),
        size: 10,
        urls: Vec::new(),
    };
    Layer { blob, diff_id: Digest::of(name.as_bytes()) }
}

fn image(name: &str, layers: &[&str]) -> Image {
    let document = |kind: &str| {
        let bytes = format!("{kind} of {name}").into_bytes();
        Document { digest: Digest::of(&bytes), bytes }
    };
    Image {
        manifest: document("manifest"),
        config: document("config"),
        platform: Platform::default(),
        settings: Settings { created: Some("2024-01-02T03:04:05.678+01:00".into()), ..Settings::default() },
        layers: layers.iter().map(|name| layer(name)).collect(),
    }
}

fn open(images: &str, layers: &str) -> Store {
    let links = Links::absolute(&"images.example.org".parse().unwrap());
    Store::open(Some(images.as_bytes()), Some(layers.as_bytes()), links).unwrap()
}

fn add(store: &mut Store, image: &Image, names: &[&str]) {
    let sizes = vec![4096; image.layers.len()];
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    store.add(&Addition { image, names: &names, content: Content::Layers { sizes: &sizes } }, NOW).unwrap();
}

/// The entries of the store by path below it, in words.
fn lines(entries: &[Generated]) -> BTreeMap<String, String> {
    let line = |entry: &Generated| {
        let path = entry.path().to_string().replace("/podmanStore", "");
        let text = match entry {
            Generated::Directory { .. } => "directory".to_owned(),
            Generated::Catalog { .. } => "catalog".to_owned(),
            Generated::File { bytes, permissions: 0o644, .. } => format!("file {}", String::from_utf8_lossy(bytes)),
            Generated::Symlink { target, .. } => format!("-> {}", String::from_utf8_lossy(target)),
            Generated::Remove { .. } => "gone".to_owned(),
            Generated::File { .. } => panic!("{path}"),
        };
        (path, text)
    };
    entries.iter().map(line).collect()
}

/// Takes the lists out of the entries.
fn lists(entries: &[Generated]) -> [String; 2] {
    let lines = lines(entries);
    ["/overlay-images/images.json", "/overlay-layers/layers.json"]
        .map(|path| lines[path].strip_prefix("file ").unwrap().to_owned())
}

fn parsed(text: &str) -> Vec<serde_json::Map<String, serde_json::Value>> {
    serde_json::from_str(text).unwrap()
}

fn hex(text: &str) -> String {
    Digest::of(text.as_bytes()).hex()
}

#[test]
fn ids_and_names_are_those_of_podman() {
    let layers: Vec<_> = ["diff-one", "diff-two", "diff-three"].map(layer).into();
    assert_eq!(layer_ids(&layers), IDS);
    assert_eq!(IDS.map(short_name), SHORT);
    let config = "sha256:b79606fb3afea5bd1609ed40b622142f1c98125abcfe89a76a661b0e8e343910";
    let flat = flat_layer_id(&config.parse().unwrap());
    assert_eq!(flat, "f8f1b0c7a23b59f76c99087bb4e7dbc58838e77f2e19e2d7e1f2b9307aaba301");
    for (name, file) in [
        ("manifest", "manifest"),
        (config, "=c2hhMjU2OmI3OTYwNmZiM2FmZWE1YmQxNjA5ZWQ0MGI2MjIxNDJmMWM5ODEyNWFiY2ZlODlhNzZhNjYxYjBlOGUzNDM5MTA="),
        (
            "manifest-sha256:05b3abf2579a5eb66403cd78be557fd860633a1fe2103c7642030defe32c657f",
            "=bWFuaWZlc3Qtc2hhMjU2OjA1YjNhYmYyNTc5YTVlYjY2NDAzY2Q3OGJlNTU3ZmQ4NjA2MzNhMWZlMjEwM2M3NjQyMDMwZGVmZTMyYzY1N2Y=",
        ),
    ] {
        assert_eq!(blob_file_name(name), file);
    }
}

#[test]
fn an_image_of_layers_is_stored_with_everything_it_needs() {
    let mut store = open("", "");
    let image = image("a", &["diff-one", "diff-two", "diff-three"]);
    add(&mut store, &image, &["r.org/a:1"]);
    let entries = store.finish(NOW);
    let mut lines = lines(&entries);
    let paths: Vec<_> = entries.iter().map(|entry| entry.path().clone()).collect();
    for entry in entries.iter().filter(|entry| !matches!(entry, Generated::Remove { .. })) {
        let at = paths.iter().position(|path| path == entry.path()).unwrap();
        let parent = entry.path().parent().unwrap();
        assert!(parent.is_root() || paths[..at].contains(&parent), "{entry:?}");
    }

    for name in ["", "/overlay", "/overlay-images", "/overlay-layers"] {
        assert_eq!(lines.remove(name).unwrap(), "catalog", "{name}");
    }
    assert_eq!(lines.remove("/overlay/l").unwrap(), "directory");
    for (at, name) in ["diff-one", "diff-two", "diff-three"].iter().enumerate() {
        let (id, blob) = (IDS[at], hex(&format!("blob of {name}")));
        let mut of = |name: &str| lines.remove(&format!("/overlay/{id}{name}"));
        assert_eq!(of("").unwrap(), "directory");
        assert_eq!(of("/merged").unwrap(), "directory");
        let target = format!("/cvmfs/images.example.org/.layers/{}/{blob}/layerfs", &blob[..2]);
        assert_eq!(of("/diff").unwrap(), format!("-> {target}"));
        assert_eq!(of("/link").unwrap(), format!("file {}", SHORT[at]));
        let [one, two, _] = SHORT;
        let lower = ["gone".to_owned(), format!("file l/{one}"), format!("file l/{two}:l/{one}")];
        assert_eq!(of("/lower").unwrap(), lower[at]);
        assert_eq!(lines.remove(&format!("/overlay/l/{}", SHORT[at])).unwrap(), format!("-> ../{id}/diff"));
    }

    let (config, manifest) = (hex("config of a"), hex("manifest of a"));
    let mut of = |name: &str| lines.remove(&format!("/overlay-images/{config}{name}"));
    assert_eq!(of("").unwrap(), "directory");
    assert_eq!(of("/manifest").unwrap(), "file manifest of a");
    let encoded = |name: &str| format!("/={}", openssl::base64::encode_block(name.as_bytes()));
    assert_eq!(of(&encoded(&format!("sha256:{config}"))).unwrap(), "file config of a");
    assert_eq!(of(&encoded(&format!("manifest-sha256:{manifest}"))).unwrap(), "file manifest of a");

    let [images, layers] = lists(&entries);
    let (c, m) = (format!("sha256:{config}"), format!("manifest-sha256:{manifest}"));
    let expected = json!([{
        "id": config,
        "digest": format!("sha256:{manifest}"),
        "names": ["r.org/a:1"],
        "layer": IDS[2],
        "created": "2024-01-02T03:04:05.678+01:00",
        "big-data-names": [&c, &m, "manifest"],
        "big-data-sizes": { &c: 11, &m: 13, "manifest": 13 },
        "big-data-digests": { &c: &c, &m: format!("sha256:{manifest}"), "manifest": format!("sha256:{manifest}") },
    }]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&images).unwrap(), expected);
    let record = |at: usize, name: &str| {
        json!({
            "id": IDS[at],
            "created": "2024-10-27T03:46:40Z",
            "compressed-diff-digest": format!("sha256:{}", hex(&format!("blob of {name}"))),
            "compressed-size": 10,
            "diff-digest": format!("sha256:{}", hex(name)),
            "diff-size": 4096,
        })
    };
    let mut expected = ["diff-one", "diff-two", "diff-three"].iter().enumerate().map(|(at, name)| record(at, name));
    let mut expected: Vec<_> = expected.by_ref().collect();
    expected[1]["parent"] = json!(IDS[0]);
    expected[2]["parent"] = json!(IDS[1]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&layers).unwrap(), json!(expected));

    for name in ["/overlay-images/images", "/overlay-layers/layers"] {
        lines.remove(&format!("{name}.json")).unwrap();
        assert_eq!(lines.remove(&format!("{name}.lock")).unwrap().len(), "file ".len() + 64 - 8 + lossy_length(NOW));
    }
    assert_eq!(lines, BTreeMap::new());
}

/// How long the time in a lock file is when shown as text.
fn lossy_length(now: UnixSeconds) -> usize {
    String::from_utf8_lossy(&(now.0 * 1_000_000_000).to_le_bytes()).len()
}

#[test]
fn lock_files_differ_after_each_update() {
    let first = lock_content(NOW, b"[]");
    assert_eq!(first.len(), 64);
    assert_ne!(first, lock_content(UnixSeconds(NOW.0 + 1), b"[]"));
    assert_ne!(first, lock_content(NOW, b"[1]"));
    assert_eq!(first[..8], 1_730_000_800_000_000_000_u64.to_le_bytes());
}

#[test]
fn a_layer_that_comes_again_is_mounted_once_where_it_is_uppermost() {
    let mut store = open("", "");
    let image = image("a", &["base", "empty", "upper", "empty", "empty"]);
    add(&mut store, &image, &["r.org/a:1"]);
    let lines = lines(&store.finish(NOW));
    let ids = layer_ids(&image.layers);
    let lower = |of: usize| lines[&format!("/overlay/{}/lower", ids[of])].clone();
    let expected = |below: &[usize]| {
        let names: Vec<_> = below.iter().map(|at| format!("l/{}", short_name(&ids[*at]))).collect();
        format!("file {}", names.join(":"))
    };
    assert_eq!(lower(1), expected(&[0]));
    assert_eq!(lower(2), expected(&[1, 0]));
    assert_eq!(lower(3), expected(&[2, 0]));
    assert_eq!(lower(4), expected(&[2, 0]));
}

#[test]
fn a_flat_image_has_one_layer() {
    let links = Links::Relative;
    let mut store = Store::open(None, None, links).unwrap();
    let image = image("a", &["diff-one", "diff-two"]);
    store.add(&Addition { image: &image, names: &[], content: Content::Flat { size: 77 } }, NOW).unwrap();
    let entries = store.finish(NOW);
    let config = hex("config of a");
    let id = hex(&format!("cvmfs-flat-layer:{config}"));
    let lines = lines(&entries);
    assert_eq!(lines[&format!("/overlay/{id}/diff")], format!("-> ../../../.flat/{}/{config}", &config[..2]));
    assert_eq!(lines[&format!("/overlay/{id}/lower")], "gone");
    let [images, layers] = lists(&entries);
    let expected = json!([{
        "id": id, "created": "2024-10-27T03:46:40Z", "compressed-diff-digest": format!("sha256:{id}"), "compressed-size": 77,
        "diff-digest": format!("sha256:{id}"), "diff-size": 77
    }]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&layers).unwrap(), expected);
    assert_eq!(parsed(&images)[0]["layer"], json!(id));
    assert_eq!(parsed(&images)[0]["names"], json!([]));
}

/// Names by image.
fn names_of(images: &str) -> BTreeMap<String, Vec<String>> {
    let store = open(images, "[]");
    store.images().into_iter().map(|(digest, names)| (digest.hex(), names)).collect()
}

#[test]
fn each_name_belongs_to_one_image() {
    let (old, new) = (image("old", &["diff-one"]), image("new", &["diff-one"]));
    let mut store = open("[]", "[]");
    add(&mut store, &old, &["r.org/a:1", "r.org/a:latest"]);
    let [images, layers] = lists(&store.finish(NOW));
    let mut store = open(&images, &layers);
    add(&mut store, &new, &["r.org/a:2", "r.org/a:latest"]);
    add(&mut store, &old, &["r.org/b:1", "r.org/a:1"]);
    let [images, layers] = lists(&store.finish(NOW));
    let (old, new) = (hex("config of old"), hex("config of new"));
    let expected = BTreeMap::from([
        (old.clone(), vec!["r.org/a:1".to_owned(), "r.org/b:1".to_owned()]),
        (new.clone(), vec!["r.org/a:2".to_owned(), "r.org/a:latest".to_owned()]),
    ]);
    assert_eq!(names_of(&images), expected);

    let mut store = open(&images, &layers);
    store.remove_names(&["r.org/a:1".to_owned(), "r.org/b:1".to_owned()]);
    let [images, _] = lists(&store.finish(NOW));
    assert_eq!(names_of(&images)[&old], [""; 0]);
    assert_eq!(names_of(&images)[&new], expected[&new]);
}

#[test]
fn names_that_podman_would_not_take_are_refused() {
    let mut store = open("[]", "[]");
    let (image, names) = (image("a", &[]), ["https://r.org/a:1".to_owned()]);
    let error = store.add(&Addition { image: &image, names: &names, content: Content::Flat { size: 0 } }, NOW);
    assert_eq!(
        error.unwrap_err().to_string(),
        "image name \"https://r.org/a:1\": podman does not take it for a reference"
    );
    assert_eq!(store.finish(NOW), []);
}

#[test]
fn removing_an_image_takes_what_only_it_had() {
    let mut store = open("[]", "[]");
    add(&mut store, &image("a", &["diff-one", "diff-two"]), &["r.org/a:1"]);
    add(&mut store, &image("b", &["diff-one", "diff-two", "diff-three"]), &["r.org/b:1"]);
    add(&mut store, &image("c", &["other", "diff-two"]), &["r.org/c:1"]);
    let [images, layers] = lists(&store.finish(NOW));
    let other = [hex("other"), hex(&format!("{}+{}", hex("other"), hex("diff-two")))];
    let gone = |entries: &[Generated]| -> Vec<String> {
        lines(entries).into_iter().filter(|(_, text)| text == "gone").map(|(path, _)| path).collect()
    };

    let mut store = open(&images, &layers);
    store.remove(&[Digest::of(b"config of b"), Digest::of(b"config of c"), Digest::of(b"unknown")]);
    let entries = store.finish(NOW);
    let layers_gone = [IDS[2], &other[0], &other[1]];
    let mut expected: Vec<String> = layers_gone.iter().map(|id| format!("/overlay/{id}")).collect();
    expected.extend(layers_gone.iter().map(|id| format!("/overlay/l/{}", short_name(id))));
    expected.extend(["b", "c"].map(|name| format!("/overlay-images/{}", hex(&format!("config of {name}")))));
    expected.sort();
    assert_eq!(gone(&entries), expected);
    let [images_left, layers_left] = lists(&entries);
    assert_eq!(names_of(&images_left).into_values().collect::<Vec<_>>(), [["r.org/a:1"]]);
    let ids: Vec<_> = parsed(&layers_left).iter().map(|layer| layer["id"].clone()).collect();
    assert_eq!(ids, [IDS[0], IDS[1]]);

    // An image that comes back in the same run loses nothing.
    let mut store = open(&images, &layers);
    store.remove(&[Digest::of(b"config of b")]);
    add(&mut store, &image("b", &["diff-one", "diff-two", "diff-three"]), &["r.org/b:1"]);
    assert_eq!(gone(&store.finish(NOW)), [format!("/overlay/{}/lower", IDS[0])]);

    let mut store = open(&images, &layers);
    store.remove(&[Digest::of(b"unknown")]);
    assert_eq!(store.finish(NOW), []);
}

#[test]
fn another_mode_releases_the_layers_of_the_former() {
    let mut store = open("[]", "[]");
    let image = image("a", &["diff-one", "diff-two"]);
    add(&mut store, &image, &["r.org/a:1"]);
    let [images, layers] = lists(&store.finish(NOW));
    let mut store = open(&images, &layers);
    store.add(&Addition { image: &image, names: &[], content: Content::Flat { size: 7 } }, NOW).unwrap();
    let entries = store.finish(NOW);
    assert_eq!(lines(&entries)[&format!("/overlay/{}", IDS[1])], "gone");
    let [images, layers] = lists(&entries);
    assert_eq!(parsed(&layers).len(), 1);
    assert_eq!(names_of(&images).into_values().collect::<Vec<_>>(), [["r.org/a:1"]]);
}

/// What programs of the reference wrote: layers by the digests of their archives, several times, with any parent.
#[test]
fn records_of_others_are_kept() {
    let (one, two) = (hex("diff-one"), hex("diff-two"));
    let foreign = hex("foreign");
    let images = json!([
        { "id": foreign, "names": ["r.org/f:1", "r.org/a:1"], "layer": two, "created": "2020-01-01T00:00:00+01:00",
          "flags": { "x": 1.5 } },
        { "id": hex("another"), "names": ["r.org/f:1"], "layer": two },
    ]);
    let layers = json!([
        { "id": two, "parent": one, "diff-digest": format!("sha256:{two}"), "own": true },
        { "id": one, "parent": two, "compression": 2, "created": "2020-01-01T00:00:00Z" },
        { "id": one },
    ]);
    let mut store = open(&images.to_string(), &layers.to_string());
    let image = image("a", &["diff-one", "diff-two"]);
    add(&mut store, &image, &["r.org/a:1"]);
    let [images, layers] = lists(&store.finish(NOW));
    let found = parsed(&images);
    assert_eq!(found[0]["flags"], json!({ "x": 1.5 }));
    let names: Vec<_> = found.iter().map(|image| image["names"].clone()).collect();
    assert_eq!(names, [json!([]), json!(["r.org/f:1"]), json!(["r.org/a:1"])]);
    let found = parsed(&layers);
    assert_eq!(found[0]["own"], json!(true));
    let (compression, created) = (found[1]["compression"].clone(), found[1]["created"].clone());
    assert_eq!((compression, created, found[1].get("parent")), (json!(2), json!("2020-01-01T00:00:00Z"), None));
    assert_eq!(found[1]["diff-size"], json!(4096));
    assert_eq!(found[2], *json!({ "id": one }).as_object().unwrap());
    assert_eq!(found[3]["id"], json!(IDS[1]));

    // The layers of images that were removed stay while any other record leads to them.
    let mut store = open(&images, &layers);
    store.remove(&[image.config.digest]);
    let [_, layers] = lists(&store.finish(NOW));
    assert_eq!(parsed(&layers).len(), 3);
}

/// A layer whose parent is not listed takes all images away, even if it is of none.
#[test]
fn layers_that_others_stand_on_are_kept() {
    let layers = json!([{ "id": hex("foreign"), "parent": IDS[1] }]);
    let mut store = open("[]", &layers.to_string());
    let image = image("a", &["diff-one", "diff-two", "diff-three"]);
    add(&mut store, &image, &[]);
    let [images, layers] = lists(&store.finish(NOW));
    let mut store = open(&images, &layers);
    store.remove(&[image.config.digest]);
    let [_, layers] = lists(&store.finish(NOW));
    let ids: Vec<_> = parsed(&layers).iter().map(|layer| layer["id"].clone()).collect();
    assert_eq!(ids, [hex("foreign"), IDS[0].to_owned(), IDS[1].to_owned()]);
}

#[test]
fn damaged_lists_are_errors() {
    for text in ["{}", "[1]", "[{", "null"] {
        let links = Links::Relative;
        let error = Store::open(Some(text.as_bytes()), None, links).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{text}: {error}");
    }
}

#[test]
fn times_that_podman_could_not_read_are_replaced() {
    for (created, expected) in [
        (Some("2024-01-02T03:04:05Z"), "2024-01-02T03:04:05Z"),
        (Some("2024-01-02 03:04:05"), "2024-10-27T03:46:40Z"),
        (Some(""), "2024-10-27T03:46:40Z"),
        (None, "2024-10-27T03:46:40Z"),
    ] {
        let mut image = image("a", &[]);
        image.settings.created = created.map(str::to_owned);
        let mut store = open("[]", "[]");
        add(&mut store, &image, &[]);
        let [images, _] = lists(&store.finish(NOW));
        assert_eq!(parsed(&images)[0]["created"], json!(expected), "{created:?}");
        assert_eq!(parsed(&images)[0]["layer"], json!(""));
    }
}

/// One thing that happens to a store of a few images.
#[derive(Debug, Clone)]
enum Step {
    Add {
        image: usize,
        names: Vec<usize>,
        flat: bool,
    },
    RemoveNames(Vec<usize>),
    Remove(Vec<usize>),
    /// The revision ends; another one begins.
    Publish,
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::prelude::*;
    let some = || proptest::collection::vec(0..4usize, 0..3);
    let step = prop_oneof![
        3 => (0..4usize, some(), any::<bool>()).prop_map(|(image, names, flat)| Step::Add { image, names, flat }),
        1 => some().prop_map(Step::RemoveNames),
        1 => some().prop_map(Step::Remove),
        2 => Just(Step::Publish),
    ];
    proptest::collection::vec(step, 1..20)
}

/// The store on disk: what was generated, one after the other.
#[derive(Default)]
struct Disk(BTreeMap<String, Generated>);

impl Disk {
    fn put(&mut self, entries: Vec<Generated>) {
        for entry in entries {
            let path = entry.path().to_string();
            let parent = entry.path().parent().unwrap().to_string();
            if let Generated::Remove { path } = &entry {
                self.0.retain(|_, other| !other.path().starts_with(path));
                continue;
            }
            assert!(parent == "/" || self.0.contains_key(&parent), "{path} has no parent");
            self.0.insert(path, entry);
        }
    }

    fn read(&self, path: &RepoPath) -> Option<Vec<u8>> {
        match self.0.get(&path.to_string())? {
            Generated::File { bytes, .. } => Some(bytes.clone()),
            other => panic!("{other:?}"),
        }
    }

    fn open(&self) -> Store {
        let (images, layers) = (self.read(&images_file()), self.read(&layers_file()));
        Store::open(images.as_deref(), layers.as_deref(), Links::Relative).unwrap()
    }

    /// The names in a directory of the store.
    fn list(&self, name: &str) -> BTreeSet<String> {
        let inside = format!("/podmanStore/{name}/");
        let names = self.0.keys().filter_map(|path| path.strip_prefix(&inside));
        names.filter(|name| !name.contains('/')).map(str::to_owned).collect()
    }

    /// What podman needs of a store: every rule whose breach takes all images away, and nothing left over.
    fn check(&self, names_of_images: &BTreeMap<String, BTreeSet<String>>) {
        let Some(images) = self.read(&images_file()) else { return };
        let images = parsed(str::from_utf8(&images).unwrap());
        let layers = parsed(str::from_utf8(&self.read(&layers_file()).unwrap()).unwrap());
        let text = |record: &serde_json::Map<String, serde_json::Value>, field: &str| {
            record.get(field).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
        };
        let parents: BTreeMap<String, String> =
            layers.iter().map(|layer| (text(layer, "id"), text(layer, "parent"))).collect();
        assert_eq!(parents.len(), layers.len(), "each layer is listed once");

        let mut used = BTreeSet::new();
        let mut found = BTreeMap::new();
        for image in &images {
            let mut layer = text(image, "layer");
            while !layer.is_empty() {
                let parent = parents.get(&layer).unwrap_or_else(|| panic!("layer {layer} is not listed"));
                used.insert(std::mem::replace(&mut layer, parent.clone()));
            }
            let names = image["names"].as_array().unwrap();
            found.insert(text(image, "id"), names.iter().map(|name| name.as_str().unwrap().to_owned()).collect());
        }
        assert_eq!(found.len(), images.len(), "each image is listed once");
        assert_eq!(&found, names_of_images);
        assert_eq!(used, parents.keys().cloned().collect(), "each layer has an image");

        assert_eq!(self.list("overlay"), used.iter().cloned().chain(["l".to_owned()]).collect());
        assert_eq!(self.list("overlay/l"), used.iter().map(|id| short_name(id)).collect());
        let mut documents = found.keys().cloned().collect::<BTreeSet<_>>();
        documents.extend(["images.json", "images.lock"].map(str::to_owned));
        assert_eq!(self.list("overlay-images"), documents);
        for id in &used {
            let has_lower = self.list(&format!("overlay/{id}")).contains("lower");
            assert_eq!(has_lower, !parents[id].is_empty(), "{id}");
        }
    }
}

fn forget(images: &mut BTreeMap<String, BTreeSet<String>>, names: &[String]) {
    for all in images.values_mut() {
        all.retain(|name| !names.contains(name));
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// Whatever happens in whatever order, a store stays one that podman can read.
    #[test]
    fn stores_stay_whole(steps in steps()) {
        let images = [
            image("a", &["diff-one"]),
            image("b", &["diff-one", "diff-two"]),
            image("c", &["other", "diff-two"]),
            image("d", &["diff-one", "diff-two", "diff-three", "diff-three"]),
        ];
        let of = |names: &[usize]| names.iter().map(|at| format!("r.org/a:{at}")).collect::<Vec<_>>();
        let mut expected: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut disk = Disk::default();
        let mut store = disk.open();
        for step in steps.into_iter().chain([Step::Publish]) {
            match step {
                Step::Add { image, names, flat } => {
                    let (image, names) = (&images[image], of(&names));
                    let sizes = vec![1; image.layers.len()];
                    let content = if flat { Content::Flat { size: 1 } } else { Content::Layers { sizes: &sizes } };
                    store.add(&Addition { image, names: &names, content }, NOW).unwrap();
                    forget(&mut expected, &names);
                    expected.entry(image.config.digest.hex()).or_default().extend(names);
                }
                Step::RemoveNames(names) => {
                    let names = of(&names);
                    store.remove_names(&names);
                    forget(&mut expected, &names);
                }
                Step::Remove(gone) => {
                    let gone: Vec<_> = gone.iter().map(|at| images[*at].config.digest).collect();
                    store.remove(&gone);
                    expected.retain(|id, _| !gone.iter().any(|gone| gone.hex() == *id));
                }
                Step::Publish => {
                    disk.put(store.finish(NOW));
                    disk.check(&expected);
                    store = disk.open();
                }
            }
        }
    }
}
