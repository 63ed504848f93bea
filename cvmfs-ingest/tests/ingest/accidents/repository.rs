//! Repositories that cannot be published to: keys, trust, damage, transactions, tags.

use std::fs;

use cvmfs_core::hash::Algorithm;
use cvmfs_core::path::RepositoryName;
use cvmfs_core::trust::keys::{Certificate, PrivateKey};
use cvmfs_core::trust::whitelist::Whitelist;

use super::support::{NAME, Repo, Tar, now};

fn good() -> Vec<u8> {
    Tar::new().file("dir/new", b"x").end()
}

/// Breaks a file, expects the ingest to fail, mends the file, expects everything to work.
#[track_caller]
fn check(repo: &Repo, file: &std::path::Path, broken: Option<&[u8]>, codes: &[i32], fragments: &[&str]) {
    let whole = fs::read(file).unwrap();
    let before = repo.manifest();
    fs::remove_file(file).unwrap();
    if let Some(bytes) = broken {
        fs::write(file, bytes).unwrap();
    }
    let as_broken = fs::read(repo.storage().join(".cvmfspublished")).ok();
    let run = repo.ingest(&good(), &["--base-dir", "dir"]);
    assert!(codes.contains(&run.code.unwrap_or(-1)), "{run:?}");
    let code = run.code.unwrap();
    let run = run.expect(code, fragments);
    assert!(run.err.starts_with("error: ") || run.err.contains("\nerror: "), "{run:?}");
    assert_eq!(fs::read(repo.storage().join(".cvmfspublished")).ok(), as_broken, "there is a new revision");
    assert_eq!(repo.leftovers(), Vec::<std::path::PathBuf>::new());
    let _ = fs::remove_file(file);
    fs::write(file, whole).unwrap();
    assert!(repo.manifest() == before);
    repo.works();
}

fn flipped(file: &std::path::Path, at: usize) -> Vec<u8> {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 1;
    bytes
}

#[test]
fn without_the_right_keys_nothing_is_published() {
    let repo = Repo::with_content();
    let other = PrivateKey::generate().unwrap();
    let name: RepositoryName = NAME.parse().unwrap();
    for extension in ["key", "crt", "pub"] {
        let file = repo.key(extension);
        let text = file.to_str().unwrap();
        let missing = if extension == "pub" { "No such file" } else { "not found" };
        check(&repo, &file, None, &[1], &[text, missing]);
        check(&repo, &file, Some(b"nonsense"), &[1], &[text]);
    }
    // Valid, but of somebody else.
    check(&repo, &repo.key("key"), Some(&other.to_pem().unwrap()), &[5], &["key"]);
    check(&repo, &repo.key("pub"), Some(&other.public().unwrap().to_pem().unwrap()), &[5], &["whitelist"]);
    let certificate = Certificate::create(&name, &other).unwrap();
    check(&repo, &repo.key("crt"), Some(certificate.pem()), &[5], &["key"]);
}

#[test]
fn a_certificate_that_is_not_on_the_whitelist_is_refused_before_anything_is_stored() {
    let repo = Repo::with_content();
    let other = PrivateKey::generate().unwrap();
    let certificate = Certificate::create(&NAME.parse().unwrap(), &other).unwrap();
    let (key, crt) = (fs::read(repo.key("key")).unwrap(), fs::read(repo.key("crt")).unwrap());
    let replace = |extension: &str, bytes: &[u8]| {
        fs::remove_file(repo.key(extension)).unwrap();
        fs::write(repo.key(extension), bytes).unwrap();
    };
    replace("key", &other.to_pem().unwrap());
    replace("crt", certificate.pem());
    let before = repo.manifest();
    repo.ingest(&good(), &[]).expect(5, &["whitelist"]);
    assert!(repo.manifest() == before);
    replace("key", &key);
    replace("crt", &crt);
    repo.works();
}

#[test]
fn an_expired_or_foreign_whitelist_is_refused() {
    let repo = Repo::with_content();
    let master = PrivateKey::from_pem("master key", &fs::read(repo.key("masterkey")).unwrap()).unwrap();
    let certificate = Certificate::from_pem("certificate", fs::read(repo.key("crt")).unwrap()).unwrap();
    let valid = Whitelist {
        issued: now(),
        expires: now().plus_days(1),
        name: NAME.parse().unwrap(),
        fingerprints: vec![certificate.fingerprint(Algorithm::Sha1)],
    };
    let sign = |whitelist: &Whitelist| whitelist.sign(Algorithm::Sha1, &master).unwrap().to_bytes();
    let mut expired = valid.clone();
    (expired.issued.0, expired.expires.0) = (now().0 - 1000, now().0 - 1);
    let foreign = Whitelist { name: "other.example.org".parse().unwrap(), ..valid.clone() };
    let unlisted = Whitelist { fingerprints: Vec::new(), ..valid.clone() };
    let file = repo.storage().join(".cvmfswhitelist");
    check(&repo, &file, Some(&sign(&expired)), &[5], &["whitelist", "expired", "master key"]);
    check(&repo, &file, Some(&sign(&foreign)), &[5], &["whitelist"]);
    check(&repo, &file, Some(&sign(&unlisted)), &[3, 5], &["whitelist"]);
    check(&repo, &file, None, &[1, 3], &[".cvmfswhitelist"]);
    check(&repo, &file, Some(b""), &[3], &["whitelist"]);
    check(&repo, &file, Some(&flipped(&file, 3)), &[3, 5], &["whitelist"]);
    let end = fs::metadata(&file).unwrap().len() as usize - 10;
    check(&repo, &file, Some(&flipped(&file, end)), &[5], &["whitelist"]);
    // What the tests above call valid is valid.
    fs::write(&file, sign(&valid)).unwrap();
    repo.works();
}

#[test]
fn damaged_repositories_are_refused() {
    let repo = Repo::with_content();
    let manifest = repo.storage().join(".cvmfspublished");
    check(&repo, &manifest, Some(&flipped(&manifest, 5)), &[3, 5], &["manifest"]);
    check(&repo, &manifest, Some(b""), &[3], &["manifest"]);
    check(&repo, &manifest, None, &[1, 3], &[".cvmfspublished"]);

    let reflog = repo.storage().join(".cvmfsreflog");
    check(&repo, &reflog, Some(&flipped(&reflog, 2000)), &[3], &["reflog"]);
    check(&repo, &reflog, Some(b""), &[3], &["reflog"]);
    check(&repo, &reflog, None, &[1, 3], &["reflog"]);

    for (letter, suffix) in [('C', "C"), ('H', "H"), ('X', "X")] {
        let hash = repo.manifest_field(letter);
        let object = repo.object(&hash, suffix);
        // The path of an object is its hash with two slashes.
        let place = &hash[2..];
        check(&repo, &object, Some(&flipped(&object, 20)), &[3], &[place]);
        let hash = repo.manifest_field(letter);
        let object = repo.object(&hash, suffix);
        check(&repo, &object, Some(b""), &[3], &[&hash[2..]]);
        let hash = repo.manifest_field(letter);
        let object = repo.object(&hash, suffix);
        check(&repo, &object, None, &[1, 3], &[&hash[2..]]);
    }
}

/// All catalog objects of the storage.
fn catalogs(repo: &Repo) -> Vec<std::path::PathBuf> {
    let all = super::support::files(&repo.storage().join("data"));
    let all = all.iter().flat_map(|directory| super::support::files(directory));
    all.filter(|path| path.to_str().unwrap().ends_with('C')).collect()
}

#[test]
fn a_missing_or_damaged_nested_catalog_is_noticed_where_it_is_needed() {
    let repo = Repo::with_content();
    let before = catalogs(&repo);
    repo.accepts(&Tar::new().file("x/.cvmfscatalog", b"").file("x/y", b"").end(), &[]);
    let root = repo.object(&repo.manifest_field('C'), "C");
    let nested: Vec<_> = catalogs(&repo).into_iter().filter(|path| !before.contains(path) && *path != root).collect();
    let [nested] = &nested[..] else { panic!("{nested:?}") };
    let whole = fs::read(nested).unwrap();
    for damaged in [None, Some(&whole[..20]), Some(&[][..])] {
        let manifest = repo.manifest();
        fs::remove_file(nested).unwrap();
        if let Some(damaged) = damaged {
            fs::write(nested, damaged).unwrap();
        }
        let run = repo.ingest(&good(), &["--base-dir", "x"]);
        let name = nested.file_name().unwrap().to_str().unwrap();
        run.expect(3, &[name.trim_end_matches('C')]);
        assert!(repo.manifest() == manifest);
        fs::write(nested, &whole).unwrap();
        repo.works();
    }
}

#[test]
fn an_open_transaction_of_the_reference_is_respected() {
    let repo = Repo::with_content();
    let marker = repo.spool().join("in_transaction.lock");
    fs::write(&marker, "").unwrap();
    let before = repo.manifest();
    repo.ingest(&good(), &[]).expect(4, &["in_transaction.lock", "transaction"]);
    assert!(repo.manifest() == before);
    fs::remove_file(&marker).unwrap();
    repo.works();
}

#[test]
fn a_tag_is_never_moved() {
    let repo = Repo::with_content();
    repo.accepts(&good(), &["--tag", "v1"]);
    let path = repo.archive(&Tar::new().file("other", b"x").end());
    repo.fails(&["--tar", &path, "--tag", "v1"], 4, &["v1", "exists"]);
    // Now that the head is another revision.
    let before = catalogs(&repo);
    repo.run(&["--tar", &path, "--tag", "v1"]).expect(4, &["v1", "exists"]);
    assert_eq!(catalogs(&repo), before, "it is noticed before catalogs are stored");
    repo.fails(&["--tar", &path, "--tag", "trunk"], 2, &["trunk"]);
    repo.fails(&["--tar", &path, "--tag", "a b"], 2, &["a b"]);
    repo.accepts(&Tar::new().file("another", b"x").end(), &["--tag", "v2"]);
}

#[test]
fn a_repository_that_is_not_there_is_named() {
    let repo = Repo::with_content();
    let path = repo.archive(&good());
    repo.fails(&["--tar", &path, "--repo", "missing.example.org"], 1, &["missing.example.org", "mkfs"]);
    let storage = repo.storage();
    let aside = storage.with_extension("aside");
    fs::rename(&storage, &aside).unwrap();
    repo.ingest(&good(), &[]).expect(1, &[storage.to_str().unwrap()]);
    fs::rename(&aside, &storage).unwrap();
    repo.works();
}
