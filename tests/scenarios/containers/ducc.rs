//! The reference's own converter on a repository of ours. It finds what it needs, and nothing to do.

use std::fs;
use std::process::{Child, Command, Stdio};

use super::fidelity::layers;
use super::image::{Layout, site};
use super::odd;
use super::sharing::export;
use crate::ports::free_port;
use crate::support::reference::Reference;
use crate::support::{NAME, Site, run};

/// Runs the converter where `/cvmfs` is a directory of ours, and with a server that only notes what it is asked for.
/// `$1` is a place for that, `$2` the repository as a directory, `$3` its name, the others are the command.
const RUN: &str = r#"
mkdir -p "$1/bin" /cvmfs; mount -t tmpfs tmpfs /cvmfs; mkdir "/cvmfs/$3"; mount --bind "$2" "/cvmfs/$3"
printf '#!/bin/sh\necho "$@" >>"%s/calls"; [ "$1" != list ] || echo %s; case " $* " in *" -t "*) cat >/dev/null ;; esac\n' "$1" "$3" >"$1/bin/cvmfs_server"
chmod +x "$1/bin/cvmfs_server"; : >"$1/calls"
PATH=$1/bin:$PATH; place=$1; shift 3
"$@" >"$place/said" 2>&1; echo "exit code $?" >>"$place/said"
grep -v '^list\|^transaction\|^publish' "$place/calls" || true
sed -n 's/^\[cvmfs_server ingest \(.*\)\]$/would: \1/p; s/.*\(panic.*\)/\1/p; s/.*level=error.*/&/p; s/^exit code [1-9]/&/p' "$place/said"
"#;

/// What the converter asks the server for, besides transactions, or would ask it for, and what goes wrong.
fn ducc(reference: &Reference, site: &Site, arguments: &[&str]) -> Vec<String> {
    let (place, tree) = (site.path("ducc"), site.path("tree"));
    let _ = fs::remove_dir_all(&tree);
    export(site, "", &tree);
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-uc", RUN, "bash"]).arg(&place).arg(&tree).arg(NAME);
    let said = run(command.arg(reference.prefix.join("usr/bin/cvmfs_ducc")).args(arguments)).ok();
    said.lines().map(str::to_owned).collect()
}

#[test]
fn the_converter_of_the_reference_agrees() {
    let Some(reference) = Reference::find() else { return };
    if !reference.prefix.join("usr/bin/cvmfs_ducc").exists() {
        return;
    }
    for podman in ["flat", "layers"] {
        let (site, layout) = site();
        let registry = Registry::start(&site);
        let tars = [odd::base(), odd::upper(), odd::removals()];
        let all = layers(&tars);
        for (tag, count) in [("1", 1), ("2", 2), ("3", 3)] {
            layout.image(tag, &all[..count]);
            registry.push(&layout, tag);
        }
        let names: Vec<String> = (1..=3).map(|tag| format!("http://{}/app:{tag}", registry.address)).collect();
        let recipe = site.path("recipe.yaml");
        let list: String = names.iter().map(|name| format!("  - '{name}'\n")).collect();
        fs::write(&recipe, format!("version: 1\nuser: x\ncvmfs_repo: {NAME}\ninput:\n{list}")).expect("a recipe");
        let recipe = recipe.to_str().expect("UTF-8");
        run(site.command("cvmfs-ingest").args(["convert", "--podman", podman, recipe])).ok();

        // Nothing to convert, and nothing to collect.
        assert_eq!(ducc(&reference, &site, &["convert", "-i", recipe]), Vec::<String>::new(), "{podman}");
        let nothing = format!("would: {NAME}");
        assert_eq!(ducc(&reference, &site, &["garbage-collection", "--dry-run", NAME]), [&*nothing], "{podman}");

        // The same garbage as ours.
        let gone = names[2].trim_start_matches("http://");
        run(site.command("cvmfs-ingest").args(["prune", "--image", gone])).ok();
        let ours = run(site.command("cvmfs-ingest").args(["--json", "gc", "--dry-run", "--grace-period", "0"])).json();
        let one = |kind: &str| {
            let names = ours["removed"][kind].as_array().expect("a list");
            assert_eq!(names.len(), 1, "{ours}");
            names[0].as_str().expect("a name").to_owned()
        };
        let (flat, layer) = (one("flat"), one("layers"));
        assert_eq!(layer, all[2].name());
        let theirs = ducc(&reference, &site, &["garbage-collection", "--dry-run", NAME]).concat();
        // It takes podman's link to a root file system for a use of that. What podman has of a layer goes with the layer.
        let of_layer = format!("--delete .layers/{}/{layer} ", &layer[..2]);
        let (of_flat, count) = match podman {
            "layers" => (format!("--delete .flat/{}/{flat} ", &flat[..2]), 3),
            _ => (String::new(), 1),
        };
        assert!(theirs.starts_with(&format!("would: {of_flat}{of_layer}")), "{podman}: {theirs}");
        assert_eq!(theirs.matches("--delete").count(), count, "{theirs}");
    }
}

/// A registry of Debian, as long as it is wanted.
struct Registry {
    process: Child,
    address: String,
}

impl Registry {
    fn start(site: &Site) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let (file, data) = (site.path("registry.yml"), site.path("registry"));
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{address}'}}\nstorage: {{filesystem: {{rootdirectory: '{}'}}}}\n",
            data.display()
        );
        fs::write(&file, text).expect("a configuration");
        let mut command = Command::new("docker-registry");
        let process =
            command.arg("serve").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a registry");
        let registry = Self { process, address };
        for _ in 0..600 {
            if std::net::TcpStream::connect(&registry.address).is_ok() {
                return registry;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("docker-registry does not listen");
    }

    fn push(&self, layout: &Layout, tag: &str) {
        let target = format!("docker://{}/app:{tag}", self.address);
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "-q", "--dest-tls-verify=false", &layout.name(tag), &target]);
        run(&mut skopeo).ok();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
