//! Layers that are in the repository already, and images that share them.

use super::fidelity::{MOUNT_POINTS, layers, without_apptainer};
use super::image::{Layer, Layout, command, convert, listing, site};
use super::odd;
use crate::mounted::Place;
use crate::support::{Site, run, source_listing};
use crate::tarball::Tar;

/// A repository that splits its catalogs early.
fn splitting_site() -> (Site, Layout) {
    let (site, layout) = site();
    for (key, value) in [("", "true"), ("_MIN_WEIGHT", "2"), ("_MAX_WEIGHT", "8")] {
        site.configure(&format!("CVMFS_AUTOCATALOGS{key}"), value);
    }
    (site, layout)
}

/// A tree without marks of catalogs, which depend on what else is in the repository.
fn tree(site: &Site, flat: &str) -> crate::support::Listing {
    let mut tree = listing(site, flat);
    tree.take(|path| path.ends_with(".cvmfscatalog") || path.ends_with(".cvmfsautocatalog"));
    // The time when it was made.
    tree.take(|path| path.starts_with(".singularity.d") || path.starts_with("var"));
    tree.take(|path| [".exec", ".run", ".shell", ".test", "environment", "singularity"].contains(&path));
    tree.take(|path| ["etc/hosts", "etc/resolv.conf", "home", "proc", "sys"].contains(&path));
    tree
}

#[test]
fn layers_of_the_repository_make_the_same_trees() {
    let tars = odd::all();
    let layers = layers(&tars);
    for form in ["aufs", "overlay"] {
        let form = ["--whiteouts", form];
        let (alone, layout) = splitting_site();
        let flat = layout.image("all", &layers);
        convert(&alone, &layout.name("all"), "odd:all", &form).json();
        let expected = tree(&alone, &flat);

        let (site, layout) = splitting_site();
        let first = layout.image("two", &layers[..2]);
        convert(&site, &layout.name("two"), "odd:two", &form).json();
        layout.image("all", &layers);
        let converted = convert(&site, &layout.name("all"), "odd:all", &form).json();
        assert_eq!((&converted["layers"], &converted["layers_fetched"]), (&6.into(), &4.into()));
        tree(&site, &flat).assert_is(&expected);
        site.check(&[]);

        // Only from what is in the repository.
        let before = tree(&site, &first);
        run(site.command("cvmfs-ingest").args(["--delete", &flat, "--delete", &first])).ok();
        for tag in ["all", "two"] {
            let again = [&form[..], &["--convert-again"]].concat();
            let converted = convert(&site, &layout.name(tag), &format!("odd:{tag}"), &again).json();
            assert_eq!(converted["layers_fetched"], 0);
        }
        tree(&site, &flat).assert_is(&expected);
        tree(&site, &first).assert_is(&before);
        site.check(&[]);
        assert!(site.catalogs() > 20, "{} catalogs", site.catalogs());
    }
}

/// Layers that are mounted on top of each other show the tree.
#[test]
fn overlay_mounts_show_the_tree() {
    let Some(place) = Place::mounted() else { return };
    let (site, layout) = site();
    let layers = layers(&odd::all());
    let flat = layout.image("1", &layers);
    convert(&site, &layout.name("1"), "odd:1", &["--whiteouts", "overlay"]).json();
    let mut lower = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let directory = place.path().join(number.to_string());
        export(&site, &layer.root(), &directory);
        lower.insert(0, directory.to_str().expect("UTF-8").to_owned());
    }
    let merged = place.path().join("merged");
    std::fs::create_dir(&merged).expect("mkdir");
    let options = format!("lowerdir={}", lower.join(":"));
    run(std::process::Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&merged)).ok();

    let mut shown = source_listing(&merged);
    let mut expected = without_apptainer(listing(&site, &flat), &MOUNT_POINTS);
    for path in [".cvmfscatalog", "etc/hosts"] {
        assert!(shown.0.remove(path).is_some());
    }
    let plain = |line: &String| {
        let mut columns: Vec<&str> = line.split(' ').collect();
        // Directories of such mounts have one name; files have those that they have in their layer.
        columns[5] = "*";
        // Only one of the attributes of an opaque directory is taken out.
        if columns[10] == "user.overlay.opaque=79" {
            columns[10] = "-";
        }
        columns.join(" ")
    };
    for tree in [&mut shown, &mut expected] {
        tree.0 = tree.0.iter().map(|(path, line)| (path.clone(), plain(line))).collect();
    }
    shown.assert_is(&expected);
}

/// Unpacks a part of the repository.
pub(crate) fn export(site: &Site, path: &str, to: &std::path::Path) {
    let archive = site.path("export.tar");
    let archive = archive.to_str().expect("UTF-8");
    site.publish(&["export", &format!("/{path}"), "--output", archive]).ok();
    std::fs::create_dir_all(to).expect("mkdir");
    let mut tar = std::process::Command::new("tar");
    tar.args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", archive, "-C"]).arg(to);
    run(&mut tar).ok();
}

#[test]
fn what_is_there_is_neither_fetched_nor_published_again() {
    let (site, layout) = site();
    let layers = layers(&[odd::base(), odd::upper()]);
    let flat = layout.image("1", &layers);
    let name = layout.name("1");
    convert(&site, &name, "a:1", &[]).json();
    let before = site.manifest();
    let converted = convert(&site, &name, "a:1", &[]).json();
    assert_eq!((converted.get("revision"), &converted["layers_fetched"]), (Some(&serde_json::Value::Null), &0.into()));
    assert!(site.manifest() == before);
    // One more name of it.
    let converted = convert(&site, &name, "b:latest", &[]).json();
    assert_eq!(converted["layers_fetched"], 0);
    let target = format!("../{flat}");
    let links = site.list(&[]).below("r.example.org");
    for link in ["a:1", "b:latest"] {
        assert!(links.0[link].contains(&format!(" {target} ")), "{}", links.0[link]);
    }
    // The name moves.
    let other = layout.image("1", &layers[..1]);
    let converted = convert(&site, &name, "a:1", &[]).json();
    assert_eq!(converted["layers_fetched"], 0);
    let links = site.list(&[]).below("r.example.org");
    assert!(links.0["a:1"].contains(&format!(" ../{other} ")), "{}", links.0["a:1"]);
    assert!(links.0["b:latest"].contains(&format!(" {target} ")));
    site.check(&[]);
}

/// What a layer removes is said in one form in all of a repository: it is part of what its digest names.
#[test]
fn the_form_of_removals_is_that_of_the_repository() {
    let (site, layout) = site();
    layout.image("1", &layers(&[odd::base(), odd::upper()]));
    let name = layout.name("1");
    convert(&site, &name, "a:1", &["--whiteouts", "overlay"]).json();
    let before = site.manifest();
    let error = convert(&site, &name, "b:1", &["--whiteouts", "aufs"]).fails(1);
    assert!(error.contains("`aufs`") && error.contains("`overlay`"), "{error}");
    assert!(site.manifest() == before);
    // It need not be said again.
    convert(&site, &name, "b:1", &[]).json();
}

/// Permissions are chosen for an image, also later.
#[test]
fn trees_can_be_readable_by_everybody() {
    let (site, layout) = site();
    let flat = layout.image("1", &layers(&[odd::base()]));
    let modes = |expected: [&str; 6]| {
        let tree = listing(&site, &flat);
        let paths = ["root", "root/secret", "bin/su", "tmp", "merged", "dev/fifo"];
        let modes = paths.map(|path| tree.0[path].split(' ').nth(1).expect("a column").to_owned());
        assert_eq!(modes, expected);
        assert!(tree.0.contains_key(".cvmfscatalog"));
        site.check(&[]);
    };
    convert(&site, &layout.name("1"), "a:1", &[]).json();
    modes(["0700", "0600", "4755", "1777", "0750", "0620"]);
    let world_readable = ["--permissions", "world-readable"];
    convert(&site, &layout.name("1"), "a:1", &world_readable).json();
    modes(["0755", "0644", "4755", "1777", "0755", "0664"]);

    // The tree belongs to no name: another one of the image asks for something else, and so does one that came back.
    assert!(convert(&site, &layout.name("1"), "a:1", &world_readable).json()["revision"].is_null());
    convert(&site, &layout.name("1"), "a:2", &[]).json();
    modes(["0700", "0600", "4755", "1777", "0750", "0620"]);
    let prune = ["prune", "--image", "r.example.org/a:1", "--image", "r.example.org/a:2"];
    run(site.command("cvmfs-ingest").args(prune)).ok();
    convert(&site, &layout.name("1"), "a:1", &world_readable).json();
    modes(["0755", "0644", "4755", "1777", "0755", "0664"]);
    assert!(convert(&site, &layout.name("1"), "a:1", &world_readable).json()["revision"].is_null());
}

#[test]
fn directories_that_nothing_is_left_in_go() {
    let (site, layout) = site();
    layout.image("1", &layers(&[odd::base()]));
    for name in ["a/b:1", "a/c:1"] {
        convert(&site, &layout.name("1"), name, &[]).json();
    }
    let has = |path: &str| site.list(&[]).0.contains_key(path);
    let prune = |name: &str| run(site.command("cvmfs-ingest").args(["prune", "--image", name])).ok();
    prune("r.example.org/a/b:1");
    assert!(has("r.example.org/a/c:1") && has(".metadata/r.example.org/a/c:1/manifest.json"));
    assert!(!has("r.example.org/a/b:1") && !has(".metadata/r.example.org/a/b:1"));
    prune("r.example.org/a/c:1");
    assert!(!has("r.example.org") && !has(".metadata"));
    run(site.command("cvmfs-ingest").args(["gc", "--grace-period", "0"])).ok();
    let left = site.list(&[]).0.into_keys().filter(|path| path.starts_with(".flat") || path.starts_with(".layers"));
    assert_eq!(left.collect::<Vec<_>>(), [".layers", ".layers/.cvmfscatalog", ".layers/.whiteouts"]);
    site.check(&[]);
    convert(&site, &layout.name("1"), "a/b:1", &[]).json();
    site.check(&[]);
}

#[test]
fn layers_that_no_image_needed_for_long_go() {
    let (site, layout) = site();
    let [kept, late] = ["kept", "late"].map(|name| layers(&[Tar::new().file(name, name.as_bytes()).end()]));
    // The last layer is missing: the first one is fetched and kept.
    let torn = |tag: &str, first: &[Layer]| {
        let missing = Layer::gzip(&Tar::new().file(tag, b"missing").end());
        layout.image(tag, &[first[0].clone(), missing.clone()]);
        let blob = layout.blob_file(&missing.blob);
        let bytes = std::fs::read(&blob).expect("a blob");
        std::fs::remove_file(&blob).expect("a blob");
        convert(&site, &layout.name(tag), &format!("{tag}:1"), &["--parallel", "1"]).fails(1);
        (blob, bytes)
    };
    torn("kept", &kept);
    let (blob, bytes) = torn("late", &late);
    let waiting = || std::fs::read_dir(site.spool().join("layers")).expect("layers").count();
    assert!(waiting() >= 2);
    run(std::process::Command::new("find").arg(site.spool().join("layers")).args([
        "-type",
        "f",
        "-exec",
        "touch",
        "-d",
        "3 days ago",
        "{}",
        "+",
    ]))
    .ok();
    // What is needed now is taken as it is; the rest goes.
    std::fs::write(blob, bytes).expect("a blob");
    let converted = convert(&site, &layout.name("late"), "late:1", &[]).json();
    assert_eq!((&converted["layers"], &converted["layers_fetched"]), (&2.into(), &1.into()));
    let left = std::fs::read_dir(site.spool().join("layers")).expect("layers");
    let left = left.map(|file| file.expect("a file").path());
    let left = left.filter(|path| path.extension().is_none_or(|extension| extension != "lock"));
    assert_eq!(left.count(), 0);
}

#[test]
fn platforms_are_converted_one_by_one_or_all() {
    let (site, layout) = site();
    let one = |name: &str| layers(&[Tar::new().file("platform", name.as_bytes()).end()]);
    let flats = layout.index("1", &[("amd64", &one("amd64")), ("arm64", &one("arm64"))]);
    let name = layout.name("1");
    let link = |path: &str| site.list(&[]).0.get(path).cloned().unwrap_or_default();
    for (platform, flat) in [("linux/amd64", &flats[0]), ("linux/arm64", &flats[1])] {
        for run in 0..2 {
            let converted = convert(&site, &name, "a:1", &["--platform", platform]).json();
            assert_eq!(converted["revision"].is_null(), run == 1, "{platform}");
        }
        assert!(link("r.example.org/a:1").contains(&format!(" ../{flat} ")), "{}", link("r.example.org/a:1"));
    }
    for run in 0..2 {
        let converted = convert(&site, &name, "a:1", &["--platform", "all"]).json();
        assert_eq!(converted["revision"].is_null(), run == 1, "all");
        for (platform, flat) in [("amd64", &flats[0]), ("arm64", &flats[1])] {
            let link = link(&format!(".multiarch/{platform}/r.example.org/a:1"));
            assert!(link.contains(&format!(" ../../../{flat} ")), "{link}");
        }
        assert!(link("r.example.org/a:1").contains(" ../.multiarch/$(CVMFS_ARCH:-amd64)/r.example.org/a:1 "));
    }
    // The permissions of both.
    convert(&site, &name, "a:1", &["--platform", "all", "--permissions", "world-readable"]).json();
    site.check(&[]);
}

/// What clients call themselves is not what images call them, and not always the same.
#[test]
fn clients_find_their_platform_in_each_image() {
    let (site, layout) = site();
    let one = |name: &str| layers(&[Tar::new().file("platform", name.as_bytes()).end()]);
    let index = |tag: &str, platforms: &[&str]| {
        let images: Vec<_> = platforms.iter().map(|platform| (*platform, one(&format!("{tag} {platform}")))).collect();
        let images: Vec<_> = images.iter().map(|(platform, layers)| (*platform, &layers[..])).collect();
        layout.index(tag, &images)
    };
    // The name of the second image's platform was a link for the first one's.
    let flats =
        [index("1", &["amd64", "arm64/v8"]), index("2", &["amd64", "arm64"]), index("3", &["arm/v6", "arm/v7"])];
    for tag in ["1", "2", "3"] {
        for run in 0..2 {
            let converted = convert(&site, &layout.name(tag), &format!("a:{tag}"), &["--platform", "all"]).json();
            assert_eq!(converted["revision"].is_null(), run == 1, "{tag}");
        }
    }
    // Which tree a client sees. What it is called stands for the variable, and what is behind that if nothing does.
    let seen = |tag: &str, machine: Option<&str>| {
        let list = site.list(&[]).0;
        let mut path = format!("r.example.org/a:{tag}");
        for _ in 0..4 {
            let Some((_, target)) = list.get(&path).and_then(|line| line.split_once(" ../")) else { return path };
            let target = target.split(' ').next().expect("a target").trim_start_matches("../");
            let default = target.split_once(":-").and_then(|(_, rest)| rest.split_once(')')).map(|(name, _)| name);
            path = match default {
                Some(default) => target.replace(&format!("$(CVMFS_ARCH:-{default})"), machine.unwrap_or(default)),
                None if target.starts_with(".flat") => target.to_owned(),
                None => format!(".multiarch/{target}"),
            };
        }
        path
    };
    for (tag, machine, flat) in [
        ("1", Some("x86_64"), &flats[0][0]),
        ("1", Some("aarch64"), &flats[0][1]),
        ("1", Some("arm64"), &flats[0][1]),
        ("1", None, &flats[0][0]),
        ("2", Some("aarch64"), &flats[1][1]),
        ("2", Some("arm64"), &flats[1][1]),
        ("3", Some("armv6l"), &flats[2][0]),
        ("3", Some("armv7l"), &flats[2][1]),
        ("3", None, &flats[2][0]),
    ] {
        assert_eq!(seen(tag, machine), *flat, "{tag} {machine:?}");
    }
    site.check(&[]);
    run(site.command("cvmfs-ingest").args(["prune", "--image", "r.example.org/a:1"])).ok();
    let list = site.list(&[]).0;
    assert!(list.keys().all(|path| !path.ends_with("/a:1")), "{list:?}");
    assert!(list.contains_key(".multiarch/aarch64/r.example.org/a:2"));
    site.check(&[]);
}

/// Those who take images away tell it as those who publish do, and what is without a name is so for podman.
#[test]
fn taking_away_runs_hooks_and_forgets_names_with_digests() {
    let (site, layout) = site();
    layout.image("1", &layers(&[odd::base()]));
    let digest = convert(&site, &layout.name("1"), "a:1", &[]).json()["digest"].as_str().expect("text").to_owned();
    let name = format!("a@{digest}");
    convert(&site, &layout.name("1"), &name, &["--podman", "layers"]).json();
    let store = || site.publish(&["cat", "/podmanStore/overlay-images/images.json"]).ok();
    assert!(store().contains(&name), "{}", store());

    let said = site.path("said");
    let hook = format!("publish_after_hook() {{ echo \"$1\" >> {}; }}", said.display());
    std::fs::write(site.root().join("etc/cvmfs/cvmfs_server_hooks.sh"), hook).expect("hooks");
    run(site.command("cvmfs-ingest").args(["prune", "--dry-run", "--image", &format!("r.example.org/{name}")])).ok();
    assert!(!said.exists());
    run(site.command("cvmfs-ingest").args(["prune", "--image", &format!("r.example.org/{name}")])).ok();
    assert!(!store().contains(&name), "{}", store());
    run(site.command("cvmfs-ingest").args(["prune", "--image", "r.example.org/a:1"])).ok();
    run(site.command("cvmfs-ingest").args(["gc", "--grace-period", "0"])).ok();
    assert_eq!(std::fs::read_to_string(&said).expect("said").lines().count(), 3);
    site.check(&[]);
}

/// More layers than there are files that can be open.
#[test]
fn images_may_have_many_layers() {
    let (site, layout) = site();
    let layer = |number: usize| Layer::plain(&Tar::new().file(&format!("{number}"), b"x").end());
    let layers: Vec<Layer> = (0..60).map(layer).collect();
    let flat = layout.image("1", &layers);
    let limited = |tag: &str, limit: &str| {
        let command = command(&site, &layout.name(tag), &format!("r.example.org/a:{tag}"), &[]);
        let mut shell = std::process::Command::new("bash");
        shell
            .args(["-c", &format!("ulimit {limit} 200; exec \"$@\""), "bash"])
            .arg(command.get_program())
            .args(command.get_args());
        shell.env("CVMFS_SERVER_ROOT", site.root());
        run(&mut shell).json()
    };
    let names = |flat: &str| site.list(&["--no-data"]).below(flat).take(|path| path.parse::<u32>().is_ok());
    assert_eq!(limited("1", "-n")["layers_fetched"], 60);
    assert_eq!(names(&flat).len(), 60);
    let more = layout.image("2", &[&layers[..], &[layer(60)]].concat());
    assert_eq!(limited("2", "-Sn")["layers_fetched"], 1);
    assert_eq!(names(&more).len(), 61);
    site.check(&["--no-data"]);
}
