//! Random trees, random edits: what is published reads back equal, and is unchanged when it is published again.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::support::{Site, source_listing};
use super::{is_root, publish};

/// A linear congruential generator: the same edits on every run.
struct Chance(u64);

impl Chance {
    /// A number below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % bound
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = [0, 1, 100, 5000, 40_000][self.below(5)];
        (0..length).map(|_| self.below(256).to_le_bytes()[0]).collect()
    }

    fn pick<'a>(&mut self, paths: &'a [PathBuf]) -> &'a Path {
        &paths[self.below(paths.len())]
    }

    /// A new or existing name in some directory.
    fn place(&mut self, directories: &[PathBuf]) -> PathBuf {
        let directory = self.pick(directories).to_owned();
        directory.join(format!("n{}", self.below(12)))
    }
}

/// All paths below a directory that are directories, and all others.
fn walk(top: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut directories, mut others) = (vec![top.to_owned()], Vec::new());
    let mut at = 0;
    while at < directories.len() {
        let mut found: Vec<PathBuf> =
            fs::read_dir(&directories[at]).expect("directory").map(|entry| entry.expect("entry").path()).collect();
        found.sort();
        for path in found {
            if path.symlink_metadata().expect("metadata").is_dir() { directories.push(path) } else { others.push(path) }
        }
        at += 1;
    }
    (directories, others)
}

fn remove(path: &Path) {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path).expect("remove"),
        Ok(_) => fs::remove_file(path).expect("remove"),
        Err(_) => {}
    }
}

fn edit(chance: &mut Chance, top: &Path) {
    let (directories, others) = walk(top);
    let place = chance.place(&directories);
    match chance.below(14) {
        0..=2 => {
            remove(&place);
            fs::write(place, chance.bytes()).expect("write");
        }
        3 | 4 => {
            remove(&place);
            fs::create_dir(place).expect("mkdir");
        }
        5 => {
            remove(&place);
            symlink(format!("target {}", chance.below(5)), place).expect("symlink");
        }
        6 | 7 if !others.is_empty() => {
            let target = chance.pick(&others).to_owned();
            if target != place {
                remove(&place);
                if target.exists() {
                    fs::hard_link(target, place).expect("link");
                }
            }
        }
        8 if !others.is_empty() => remove(chance.pick(&others)),
        9 if directories.len() > 1 && chance.below(3) == 0 => remove(chance.pick(&directories[1..])),
        10 if !others.is_empty() => {
            let path = chance.pick(&others);
            if path.is_file() {
                let mode = [0o644, 0o4755, 0o600, 0o1777][chance.below(4)];
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
            }
        }
        11 if !others.is_empty() => {
            let from = chance.pick(&others).to_owned();
            if !place.starts_with(&from) {
                remove(&place);
                if from.symlink_metadata().is_ok() {
                    fs::rename(from, place).expect("rename");
                }
            }
        }
        12 if directories.len() > 1 => {
            let marker = chance.pick(&directories[1..]).join(".cvmfscatalog");
            if marker.exists() { remove(&marker) } else { fs::write(marker, "").expect("write") }
        }
        13 if is_root() && !others.is_empty() => {
            let path = chance.pick(&others);
            std::os::unix::fs::lchown(path, Some(7), Some(u32::try_from(chance.below(3)).expect("small")))
                .expect("chown");
        }
        _ => {}
    }
}

fn check(seed: u64, more: &[&str]) {
    let mut chance = Chance(seed);
    let site = Site::with_repository(&["--no-autotags"]);
    let top = site.path("tree");
    fs::create_dir(&top).expect("mkdir");
    for round in 0..3 {
        for _ in 0..[60, 1, 3, 10, 25][chance.below(5)] {
            edit(&mut chance, &top);
        }
        publish(&site, "tree", more);
        site.check(&[]);
        let expected = source_listing(&top);
        site.list(&[]).below("").assert_is(&expected);
        let again = publish(&site, "tree", more);
        assert_eq!(again["changed"].as_bool(), Some(false), "seed {seed}, round {round}: {again}");
        assert_eq!(again["content"]["bytes_read"].as_u64(), Some(0), "seed {seed}, round {round}: {again}");
        // One catalog for each marker.
        assert_eq!(site.catalogs(), 1 + expected.directories_with(".cvmfscatalog").len(), "seed {seed}, round {round}");
    }
}

#[test]
fn random_edits_read_back_equal() {
    for seed in 1..=4 {
        check(seed, &[]);
    }
}

#[test]
fn random_edits_read_back_equal_on_one_thread_with_checksums() {
    check(100, &["--threads", "1", "--checksum"]);
}
