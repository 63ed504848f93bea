//! Hooks: programs of the operator that run before and after operations.
//!
//! Two forms are run, in this order:
//! - the shell functions of the reference in `etc/cvmfs/cvmfs_server_hooks.sh`, such as `publish_before_hook`, with the
//!   repository's name;
//! - executables `etc/cvmfs/repositories.d/<fqrn>/hooks/<operation>-<before|after>`, with the repository's name and the
//!   revision: the newest one before, the one that was made after.
//!
//! Source: `cvmfs/server/cvmfs_server_coda.sh`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::path::RepositoryName;
use crate::server::ServerRoot;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A transaction is opened.
    Transaction,
    /// A revision is published.
    Publish,
    /// A transaction is aborted.
    Abort,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transaction => "transaction",
            Self::Publish => "publish",
            Self::Abort => "abort",
        })
    }
}

/// The hooks of a repository.
#[derive(Debug, Clone)]
pub struct Hooks {
    name: RepositoryName,
    functions: PathBuf,
    directory: PathBuf,
}

impl Hooks {
    /// Looks for hooks in the server's configuration whenever one is to run.
    pub fn new(root: &ServerRoot, name: &RepositoryName) -> Self {
        let etc = root.path().join("etc/cvmfs");
        Self {
            name: name.clone(),
            functions: etc.join("cvmfs_server_hooks.sh"),
            directory: etc.join("repositories.d").join(name.as_str()).join("hooks"),
        }
    }

    /// Runs what is to run before an operation.
    ///
    /// # Errors
    /// `Refused` if a hook fails: the operation must not begin.
    pub fn before(&self, operation: Operation, revision: u64) -> Result<()> {
        self.run(operation, "before", revision)
    }

    /// Runs what is to run after an operation, and returns what went wrong with that: nothing can be undone any more.
    pub fn after(&self, operation: Operation, revision: u64) -> Vec<String> {
        self.run(operation, "after", revision).err().map(|error| error.to_string()).into_iter().collect()
    }

    fn run(&self, operation: Operation, when: &str, revision: u64) -> Result<()> {
        if self.functions.is_file() {
            let function = format!("{operation}_{when}_hook");
            // A function that the file does not define does nothing.
            let script = "set -e; . \"$1\"; if declare -F \"$2\" >/dev/null; then \"$2\" \"$3\"; fi";
            let mut command = Command::new("bash");
            command.args(["-c", script, "bash"]).arg(&self.functions).args([&function, self.name.as_str()]);
            finish(&mut command, &format!("{function} of {}", self.functions.display()))?;
        }
        let program = self.directory.join(format!("{operation}-{when}"));
        if program.is_file() {
            let mut command = Command::new(absolute(&program));
            command.args([self.name.as_str(), &revision.to_string()]);
            finish(&mut command, &program.display().to_string())?;
        }
        Ok(())
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Runs a hook to its end. Its output goes to standard error: ours is data.
fn finish(command: &mut Command, what: &str) -> Result<()> {
    let refused = |reason: String| Error::Refused { what: format!("hook {what}"), reason };
    let status = command.stdout(io::stderr()).status().map_err(|error| refused(error.to_string()))?;
    if status.success() { Ok(()) } else { Err(refused(status.to_string())) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn functions_and_programs_run_and_can_refuse() {
        let directory = tempfile::tempdir().unwrap();
        let root = ServerRoot::new(directory.path()).unwrap();
        let name: RepositoryName = "hooks.example.org".parse().unwrap();
        let hooks = Hooks::new(&root, &name);
        let log = directory.path().join("log");
        hooks.before(Operation::Publish, 1).unwrap();

        let programs = directory.path().join("etc/cvmfs/repositories.d/hooks.example.org/hooks");
        fs::create_dir_all(&programs).unwrap();
        let functions = format!(
            "publish_before_hook() {{ echo function $1 >>{0}; }}\nabort_before_hook() {{ false; }}",
            log.display()
        );
        fs::write(directory.path().join("etc/cvmfs/cvmfs_server_hooks.sh"), functions).unwrap();
        for (file, text) in
            [("publish-before", format!("echo program $1 $2 >>{}", log.display())), ("publish-after", "exit 7".into())]
        {
            let path = programs.join(file);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        hooks.before(Operation::Publish, 7).unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "function hooks.example.org\nprogram hooks.example.org 7\n");
        let warnings = hooks.after(Operation::Publish, 8);
        assert!(
            warnings.len() == 1 && warnings[0].contains("publish-after") && warnings[0].contains('7'),
            "{warnings:?}"
        );
        assert!(matches!(hooks.before(Operation::Abort, 8), Err(Error::Refused { .. })));
        hooks.before(Operation::Transaction, 8).unwrap();
    }
}
