//! Apptainer's files, run by the shells of containers in a root of their own.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use cvmfs_core::path::RepoPath;
use cvmfs_ingest::image::Settings;
use cvmfs_ingest::image::layout::apptainer::{Found, generate};

use super::support::mounted::Place;
use super::support::{on_disk, put};

/// Prints its name and arguments, each with a NUL behind it.
const PROBE: &str = "#!/bin/sh\nprintf '%s\\0' \"${0##*/}\" \"$@\"\n";

/// Words in which every character that means something to a shell is.
const ODD: [&str; 12] = [
    "two words",
    "'single' \"double\"",
    "$HOME ${x} $(echo x) `echo y`",
    "back\\slash\\",
    "line\nbreak\n",
    "*?[a]~",
    "a;b&c|d>e<f",
    "",
    "-n",
    "#no comment",
    "!{x,y}",
    "t\ta\u{e9}",
];

/// A root file system with one shell and the probe.
fn root(place: &Place, shell: &str) -> std::path::PathBuf {
    let root = place.path().join(shell);
    let copy = |file: &str, to: &str| {
        let to = root.join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    };
    copy(&format!("/bin/{shell}"), "bin/sh");
    let libraries = Command::new("ldd").arg(format!("/bin/{shell}")).output().unwrap();
    for library in String::from_utf8(libraries.stdout).unwrap().split_whitespace().filter(|word| word.starts_with('/'))
    {
        copy(library, library);
    }
    for name in ["probe", "other"] {
        script(&root, &format!("bin/{name}"), PROBE);
    }
    root
}

fn script(root: &Path, name: &str, text: &str) {
    use std::os::unix::fs::PermissionsExt;

    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Puts what an image with these settings gets.
fn build(root: &Path, settings: &Settings) {
    let find = |path: &RepoPath| {
        let path = on_disk(root, path);
        Ok(match fs::symlink_metadata(&path) {
            Err(_) => Found::Absent,
            Ok(found) if found.is_dir() => Found::Directory,
            Ok(found) if found.is_symlink() => {
                Found::Symlink(fs::read_link(path).unwrap().into_os_string().into_encoded_bytes())
            }
            Ok(_) => Found::Other,
        })
    };
    // `find` sees to it that parents come first.
    put(root, &generate(settings, &find).unwrap());
}

fn run(root: &Path, program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new("/usr/sbin/chroot");
    command.arg(root).arg(program).args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.envs(environment.iter().copied()).output().unwrap()
}

/// What the probe, or another program, was called with.
#[track_caller]
fn words(output: &Output) -> Vec<String> {
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = str::from_utf8(&output.stdout).unwrap();
    text.split_terminator('\0').map(str::to_owned).collect()
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

const NO_EVAL: [&[(&str, &str)]; 3] = [&[], &[("SINGULARITY_NO_EVAL", "1")], &[("APPTAINER_NO_EVAL", "1")]];

#[test]
fn containers_run_what_their_image_says() {
    let Some(place) = Place::mounted() else { return };
    for shell in ["dash", "bash"] {
        let root = root(&place, shell);
        for (entrypoint, command, arguments, expected) in [
            (&["/bin/probe", "e"][..], &[][..], &[][..], &["probe", "e"][..]),
            (&["/bin/probe", "e"], &[], &["a"], &["probe", "e", "a"]),
            (&[], &["/bin/probe", "c"], &[], &["probe", "c"]),
            (&[], &["/bin/probe", "c"], &["/bin/other", "a"], &["other", "a"]),
            (&[], &[], &["/bin/other", "a"], &["other", "a"]),
            (&["/bin/probe", "e"], &["c"], &[], &["probe", "e", "c"]),
            (&["/bin/probe", "e"], &["c"], &["a", "b"], &["probe", "e", "a", "b"]),
        ] {
            let [entrypoint, command] = [entrypoint, command].map(strings);
            build(&root, &Settings { entrypoint, command, ..Settings::default() });
            for environment in NO_EVAL {
                for program in ["/.singularity.d/runscript", "/.singularity.d/actions/run", "/.run", "/singularity"] {
                    let output = run(&root, program, arguments, environment);
                    assert_eq!(words(&output), expected, "{shell}, {program}, {environment:?}");
                }
            }
        }
    }
}

#[test]
fn words_arrive_as_they_are() {
    let Some(place) = Place::mounted() else { return };
    for shell in ["dash", "bash"] {
        let root = root(&place, shell);
        let odd = strings(&ODD);
        let entrypoint = [&strings(&["/bin/probe"])[..], &odd].concat();
        build(&root, &Settings { entrypoint, command: odd.clone(), ..Settings::default() });
        let expected = [&["probe"][..], &ODD, &ODD].concat();
        for environment in NO_EVAL {
            assert_eq!(words(&run(&root, "/.run", &[], environment)), expected, "{shell}, {environment:?}");
        }
        // Those of the user only on request.
        for environment in &NO_EVAL[1..] {
            assert_eq!(words(&run(&root, "/.run", &ODD, environment)), expected, "{shell}, {environment:?}");
        }
        let output = run(&root, "/.run", &["two  words", "$HOME", "*", "'"], &[("HOME", "/my home")]);
        let expected = [&["probe"][..], &ODD, &["two  words", "/my home", "*", "'"]].concat();
        assert_eq!(words(&output), expected, "{shell}");
    }
}

#[test]
fn an_image_without_a_program_gets_a_shell() {
    let Some(place) = Place::mounted() else { return };
    for shell in ["dash", "bash"] {
        let root = root(&place, shell);
        build(&root, &Settings::default());
        // A shell that says so if it has nothing to do.
        fs::rename(root.join("bin/sh"), root.join("bin/sh.real")).unwrap();
        let text = "#!/bin/sh.real\n[ $# -gt 0 ] || { printf 'shell\\0'; exit; }\nexec /bin/sh.real \"$@\"\n";
        script(&root, "bin/sh", text);
        for environment in NO_EVAL {
            assert_eq!(words(&run(&root, "/.run", &[], environment)), ["shell"], "{shell}, {environment:?}");
        }
    }
}

#[test]
fn the_environment_is_that_of_the_image_and_of_the_user() {
    let Some(place) = Place::mounted() else { return };
    for shell in ["dash", "bash"] {
        let root = root(&place, shell);
        let mut environment: Vec<String> = ODD.iter().enumerate().map(|(at, value)| format!("V{at}={value}")).collect();
        environment.extend(strings(&[
            "PATH=/image/bin:/bin",
            "1BAD=x",
            "BAD-NAME=$(exit 3)",
            "ALONE",
            "SET=image",
            "B=}\"}",
        ]));
        build(&root, &Settings { environment, ..Settings::default() });

        let show = |names: &[String]| {
            let list: String = names.iter().map(|name| format!(" \"${name}\"")).collect();
            format!("#!/bin/sh\nprintf '%s\\0'{list}\n")
        };
        let names: Vec<String> = (0..ODD.len()).map(|at| format!("V{at}")).collect();
        let more = strings(&["PATH", "ALONE", "SET", "B", "LD_LIBRARY_PATH"]);
        script(&root, "bin/show", &show(&[&names[..], &more].concat()));
        let set = [("PATH", "/user"), ("SET", "user's $x"), ("LD_LIBRARY_PATH", "/lib/x")];
        let expected =
            [&ODD[..], &["/image/bin:/bin", "", "user's $x", "}\"}", "/lib/x:/.singularity.d/libs"]].concat();
        for program in ["/.exec", "/.run", "/.singularity.d/actions/exec"] {
            assert_eq!(words(&run(&root, program, &["/bin/show"], &set)), expected, "{shell}, {program}");
        }
        let path = |set: &[(&str, &str)]| words(&run(&root, "/.exec", &["show"], set)).swap_remove(ODD.len());
        assert_eq!(path(&[("SING_USER_DEFINED_PREPEND_PATH", "/first")]), "/first:/image/bin:/bin");
        assert_eq!(path(&[("SING_USER_DEFINED_APPEND_PATH", "/last")]), "/image/bin:/bin:/last");
        assert_eq!(path(&[("SING_USER_DEFINED_PATH", "/bin:/only")]), "/bin:/only");
    }
}

#[test]
fn applications_of_an_image_can_be_chosen() {
    let Some(place) = Place::mounted() else { return };
    for shell in ["dash", "bash"] {
        let root = root(&place, shell);
        build(&root, &Settings::default());
        script(&root, "scif/apps/tool/scif/runscript", "#!/bin/sh\nexec tool \"$SCIF_APPDATA\" \"$OWN\" \"$@\"\n");
        script(&root, "scif/apps/tool/bin/tool", PROBE);
        script(&root, "scif/apps/tool/scif/env/90-environment.sh", "export OWN=1\n");
        script(&root, "scif/apps/tool/scif/test", "#!/bin/sh\nexit 7\n");
        let tool = [("SINGULARITY_APPNAME", "tool")];
        assert_eq!(words(&run(&root, "/.run", &["a b"], &tool)), ["tool", "/scif/data/tool", "1", "a b"], "{shell}");
        assert_eq!(run(&root, "/.test", &[], &tool).status.code(), Some(7), "{shell}");
        assert_eq!(run(&root, "/.run", &[], &[("SINGULARITY_APPNAME", "none")]).status.code(), Some(1), "{shell}");

        assert_eq!(run(&root, "/.test", &[], &[]).status.code(), Some(0), "{shell}");
        script(&root, ".singularity.d/test", "#!/bin/sh\nexit 8\n");
        assert_eq!(run(&root, "/.test", &[], &[]).status.code(), Some(8), "{shell}");
        let output = run(&root, "/.shell", &["-c", "printf '%s\\0' \"$0\" \"$1\"", "x", "y z"], &[]);
        assert_eq!(words(&output), ["x", "y z"], "{shell}");
    }
}
