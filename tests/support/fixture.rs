//! The repository that the reference server made.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::{Site, run, test_file};

/// Its name.
pub(crate) const FQRN: &str = "fixture.ref.org";

/// After the last revision and before the whitelist expires.
pub(crate) const NOW: i64 = 1_795_500_000;

/// A file of the fixture.
pub(crate) fn fixture(name: &str) -> PathBuf {
    test_file("fixtures/reference-repository").join(name)
}

/// The fixture as an installed server.
pub(crate) fn unpacked() -> Site {
    let mut site = Site::empty(FQRN);
    site.environment.push(("SOURCE_DATE_EPOCH", NOW.to_string()));
    let storages = site.root().join("srv/cvmfs");
    let configuration = site.server_conf();
    let configuration = configuration.parent().expect("parent");
    let keys = site.root().join("etc/cvmfs/keys");
    for directory in [&storages, configuration, &keys, &site.spool()] {
        fs::create_dir_all(directory).expect("mkdir");
    }
    let mut tar = Command::new("tar");
    run(tar.arg("-C").arg(&storages).arg("-xzf").arg(fixture(&format!("{FQRN}.tar.gz")))).ok();
    for key in fs::read_dir(fixture("keys")).expect("keys") {
        let key = key.expect("key");
        fs::copy(key.path(), keys.join(key.file_name())).expect("copy");
    }
    let root = site.root();
    let text = fs::read_to_string(fixture("server.conf")).expect("server.conf");
    let here = |place: &str| format!("{}/{place}", root.display());
    let text = text.replace("/srv/", &here("srv/")).replace("/var/spool/", &here("var/spool/"));
    fs::write(site.server_conf(), text).expect("server.conf");
    fs::write(site.spool().join("reflog.chksum"), site.manifest_field('Y')).expect("checksum");
    site
}
