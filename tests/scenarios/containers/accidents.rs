//! Images that are not what they say, and runs that do not come to their end: the old state or the new one.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cvmfs_core::lock::FileLock;
use cvmfs_core::progress::Cancel;

use super::fidelity::layers;
use super::image::{Layer, Layout, command, convert, listing, site};
use super::odd;
use crate::support::{Site, run};
use crate::tarball::Tar;

/// Bytes that do not shrink.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next()).take(length).collect()
}

/// An image that cannot be converted, and what is said about it.
struct Refused {
    case: &'static str,
    layers: Vec<Layer>,
    damage: fn(&Layout, &Layer),
    code: i32,
    says: &'static [&'static str],
}

fn refused() -> Vec<Refused> {
    let good = || Layer::gzip(&Tar::new().file("a", &noise(1, 100_000)).end());
    let nothing: fn(&Layout, &Layer) = |_, _| ();
    let tar = |tar: Tar| vec![good(), Layer::gzip(&tar.end())];
    let case = |case, layers, damage, code, says| Refused { case, layers, damage, code, says };
    vec![
        case(
            "another blob",
            vec![good()],
            |layout, layer| {
                let mut blob = layer.blob.clone();
                *blob.last_mut().expect("bytes") ^= 1;
                fs::write(layout.blob_file(&layer.blob), blob).expect("blob");
            },
            3,
            &["sha256:"],
        ),
        case(
            "a blob in part",
            vec![good()],
            |layout, layer| {
                fs::write(layout.blob_file(&layer.blob), &layer.blob[..layer.blob.len() / 2]).expect("blob");
            },
            3,
            &["sha256:"],
        ),
        case(
            "a blob and more",
            vec![good()],
            |layout, layer| {
                fs::write(layout.blob_file(&layer.blob), [&layer.blob[..], b"more"].concat()).expect("blob");
            },
            3,
            &["sha256:"],
        ),
        case(
            "no blob",
            vec![good()],
            |layout, layer| fs::remove_file(layout.blob_file(&layer.blob)).expect("blob"),
            1,
            &[],
        ),
        case(
            "another archive",
            vec![Layer { diff_id: format!("sha256:{}", "1".repeat(64)), ..good() }],
            nothing,
            3,
            &["uncompressed"],
        ),
        case(
            "gzip in part",
            {
                let blob = good().blob;
                vec![Layer { blob: blob[..blob.len() - 100].to_vec(), size: blob.len() - 100, ..good() }]
            },
            nothing,
            3,
            &["layer sha256:"],
        ),
        case("another size", vec![Layer { size: 5, ..good() }], nothing, 3, &["of 5 bytes"]),
        case("no archive", vec![Layer::gzip(&[b'x'; 2000])], nothing, 3, &["not a tar archive"]),
        case("out of the tree", tar(Tar::new().file("a/../../b", b"")), nothing, 1, &["a/../../b"]),
        case(
            "through links",
            tar(Tar::new().symlink("l", "l").file("l/passwd", b"")),
            nothing,
            1,
            &["l/passwd", "links"],
        ),
        case("below a file", tar(Tar::new().file("l", b"").file("l/passwd", b"")), nothing, 1, &["l/passwd"]),
        case("link to nothing", tar(Tar::new().link("b", "none")), nothing, 1, &["none"]),
        case("removal of nothing", tar(Tar::new().file(".wh.", b"")), nothing, 1, &[".wh."]),
    ]
}

/// Nothing is published, and what was right about the image is not fetched again.
#[test]
fn images_that_are_not_what_they_say_are_refused() {
    let (site, _) = site();
    let first = site.manifest();
    for (number, Refused { case, layers, damage, code, says }) in refused().into_iter().enumerate() {
        let layout = Layout::new(site.path(&format!("layout-{number}")));
        layout.image("1", &layers);
        damage(&layout, &layers[0]);
        let done = convert(&site, &layout.name("1"), "a:1", &[]);
        assert_eq!(done.status.code(), Some(code), "{case}: {}{}", done.stdout, done.stderr);
        for text in says {
            assert!(done.stderr.contains(text), "{case}: {}", done.stderr);
        }
        assert!(site.manifest() == first, "{case}: there is a new revision");
        let partial =
            fs::read_dir(site.spool().join("layers")).expect("layers").map(|entry| entry.expect("entry").path());
        let partial: Vec<_> = partial.filter(|path| path.to_string_lossy().contains("partial")).collect();
        assert!(partial.is_empty(), "{case}: {partial:?}");
    }
    site.check(&[]);
}

/// Files of a layer.
const FILES: usize = 40;

/// A layer of many files, large enough to be killed in.
fn large(seed: u64) -> Layer {
    let tar = (0..FILES).fold(Tar::new().dir("d"), |tar, number| {
        tar.file(&format!("d/{seed}-{number}"), &noise(seed * 1000 + number as u64, 30_000))
    });
    Layer::plain(&tar.end())
}

/// How many of these files a tree has.
fn files(site: &Site, flat: &str) -> usize {
    site.list(&["--no-data"]).below(&format!("{flat}/d")).0.len()
}

fn image(layout: &Layout, tag: &str, seeds: std::ops::Range<u64>) -> String {
    let layers: Vec<Layer> = seeds.map(large).collect();
    layout.image(tag, &layers)
}

/// Finished layers that no revision has.
fn spooled(site: &Site) -> usize {
    let Ok(entries) = fs::read_dir(site.spool().join("layers")) else { return 0 };
    entries
        .filter(|entry| entry.as_ref().expect("entry").path().extension().is_some_and(|kind| kind == "changes"))
        .count()
}

#[test]
fn killed_conversions_leave_the_old_revision_and_finished_layers() {
    let (site, layout) = site();
    let mut shares = Vec::new();
    let in_the_middle = |(finished, published): &(usize, bool)| (1..6).contains(finished) && !published;
    // How long it takes.
    image(&layout, "time", 0..6);
    let start = Instant::now();
    convert(&site, &layout.name("time"), "a:time", &["--parallel", "2"]).json();
    let whole = start.elapsed();
    let mut moment = whole;
    for round in 0..25 {
        match [0.2, 0.4, 0.55, 0.7, 0.9].get(round) {
            Some(share) => moment = whole.mul_f64(*share),
            None if shares.iter().any(in_the_middle) => break,
            // The machine has become slower or faster meanwhile.
            None => moment = moment.mul_f64(if shares.last() == Some(&(0, false)) { 1.3 } else { 0.8 }),
        }
        let tag = format!("{round}");
        let first = 10 * (round as u64 + 1);
        let flat = image(&layout, &tag, first..first + 6);
        let before = site.manifest();
        let name = format!("r.example.org/a:{tag}");
        let mut child = command(&site, &layout.name(&tag), &name, &["--parallel", "2"]);
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a process");
        thread::sleep(moment);
        child.kill().expect("kill");
        child.wait().expect("wait");

        let finished = spooled(&site);
        let was_published = site.manifest() != before;
        assert_eq!(site.list(&["--no-data"]).0.contains_key(&format!("r.example.org/a:{tag}")), was_published);
        let converted = convert(&site, &layout.name(&tag), &format!("a:{tag}"), &["--parallel", "2"]).json();
        if was_published {
            assert_eq!(converted["revision"], serde_json::Value::Null);
        } else {
            assert_eq!(converted["layers_fetched"], 6 - finished, "{moment:?}");
        }
        assert_eq!(files(&site, &flat), 6 * FILES);
        shares.push((finished, was_published));
    }
    site.check(&[]);
    assert!(shares.iter().any(in_the_middle), "{shares:?}");
}

/// Whoever comes second waits for a layer that the first is fetching.
#[test]
fn processes_share_the_layers_of_their_images() {
    let (site, layout) = site();
    let flats: Vec<String> = (0..3).map(|number| image(&layout, &number.to_string(), number..number + 4)).collect();
    let start = |number: usize| {
        let name = format!("r.example.org/a:{number}");
        let mut command = command(&site, &layout.name(&number.to_string()), &name, &[]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process")
    };
    let children: Vec<_> = (0..3).map(start).collect();
    let mut fetched = 0;
    for child in children {
        let output = child.wait_with_output().expect("output");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let outcome: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        fetched += outcome["layers_fetched"].as_u64().expect("a number");
    }
    // One that has been published meanwhile may be fetched once more.
    assert!((6..=12).contains(&fetched), "{fetched}");
    for flat in flats {
        assert_eq!(files(&site, &flat), 4 * FILES);
    }
    site.check(&[]);
}

/// Nobody but the layer's change set knows of these objects.
#[test]
fn a_collection_leaves_what_is_being_fetched() {
    let site = Site::with_repository(&["--gc"]);
    let layout = Layout::new(site.path("layout"));
    let layer = large(1);
    let flat = layout.image("1", std::slice::from_ref(&layer));
    // A blob that comes in two halves.
    let blob = layout.blob_file(&layer.blob);
    fs::remove_file(&blob).expect("the blob");
    run(Command::new("mkfifo").arg(&blob)).ok();
    let before = site.objects().len();
    let mut child = command(&site, &layout.name("1"), "r.example.org/a:1", &[]);
    let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process");
    let mut pipe = fs::File::options().write(true).open(&blob).expect("a pipe");
    let (first, second) = layer.blob.split_at(layer.blob.len() / 2);
    pipe.write_all(first).expect("it is read");
    let deadline = Instant::now() + Duration::from_mins(1);
    while site.objects().len() < before + FILES / 4 {
        assert!(Instant::now() < deadline, "nothing is stored");
        thread::sleep(Duration::from_millis(20));
    }
    // So that they are old.
    thread::sleep(Duration::from_millis(1100));
    site.publish(&["gc", "--keep-revisions", "0", "--grace-period", "0"]).ok();
    pipe.write_all(second).expect("it is read");
    drop(pipe);
    let output = child.wait_with_output().expect("output");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(files(&site, &flat), FILES);
    site.check(&[]);
}

/// The lock of those who publish images is held while two processes get as far as that.
#[test]
fn processes_with_the_same_image_publish_it_once() {
    let (site, layout) = site();
    image(&layout, "1", 0..2);
    let path = site.spool().join("images.lock");
    let lock = FileLock::acquire(&path, Duration::ZERO, &Cancel::new()).expect("a lock").expect("free");
    let start = |_| {
        let mut command = command(&site, &layout.name("1"), "r.example.org/a:1", &[]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process");
        // What is written may have the time of its process in it.
        thread::sleep(Duration::from_millis(1500));
        child
    };
    let children: Vec<_> = (0..2).map(start).collect();
    drop(lock);
    let mut published = 0;
    for child in children {
        let output = child.wait_with_output().expect("output");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let outcome: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        published += u32::from(!outcome["revision"].is_null());
    }
    assert_eq!((published, &site.manifest_field('S')[..]), (1, "2"));
}

/// No space in the storage, and none for what is kept of layers.
#[test]
fn full_disks_lose_nothing() {
    for (full, size) in [("srv", "2m"), ("var/spool", "1m")] {
        let (site, layout) = site();
        let at = site.root().join(full);
        let saved = site.path("saved");
        run(Command::new("cp").arg("-a").arg(&at).arg(&saved)).ok();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&at).stderr(Stdio::null());
        if !mount.status().is_ok_and(|status| status.success()) {
            return;
        }
        let mounted = Unmount(at.clone());
        run(Command::new("cp").arg("-a").arg(saved.join(".")).arg(&at)).ok();
        let mut tars = vec![Tar::new().file("large", &noise(5, 3 << 20)).end()];
        // Many names.
        tars.push(
            (0..4000).fold(Tar::new(), |tar, number| tar.file(&format!("a-long-name-of-file-{number}"), b"")).end(),
        );
        layout.image("1", &layers(&tars));
        let before = site.manifest();
        let done = convert(&site, &layout.name("1"), "a:1", &[]);
        let message = done.fails(1);
        assert!(message.contains("space") || message.contains("full"), "{full}: {message}");
        assert!(site.manifest() == before);
        run(Command::new("mount").args(["-o", "remount,size=64m"]).arg(&at)).ok();
        convert(&site, &layout.name("1"), "a:1", &[]).json();
        site.check(&[]);
        drop(mounted);
    }
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Nobody writes through a link of the image: neither out of the repository nor out of its tree.
#[test]
fn links_of_images_lead_nobody_astray() {
    let (site, layout) = site();
    let lower = Tar::new().symlink("etc", "/../../../../etc").symlink("lib", "usr/lib").dir("usr/lib").dir("tmp");
    // In one layer: where it leads within the image.
    let lower =
        lower.symlink("leak", "../../../../../tmp").file("leak/leaked", b"").symlink("root", "/").file("root/top", b"");
    let upper = Tar::new().file("lib/x", b"x").end();
    let flat = layout.image("1", &layers(&[lower.end(), upper, odd::nothing()]));
    let warnings = convert(&site, &layout.name("1"), "a:1", &[]).json()["warnings"].to_string();
    for text in ["/lib is a symbolic link in one layer", "through the symbolic link /leak"] {
        assert!(warnings.contains(text), "{warnings}");
    }
    let tree = listing(&site, &flat);
    assert!(
        tree.0["tmp/leaked"].starts_with("f ") && tree.0["top"].starts_with("f ") && tree.0["leak"].starts_with("l ")
    );
    // As overlay mounts have it: a directory in the place of the link.
    assert!(tree.0["lib"].starts_with("d ") && tree.0["lib/x"].starts_with("f "), "{}", tree.0["lib"]);
    assert!(!tree.0.contains_key("usr/lib/x"));
    assert!(tree.0["etc"].starts_with("l "));
    let outside = site.list(&[]).take(|path| path.ends_with("/hosts") && !path.starts_with(&flat));
    assert_eq!(outside, Vec::<String>::new());
    site.check(&[]);
}
