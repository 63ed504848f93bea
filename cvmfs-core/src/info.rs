//! What a server and its repositories say about themselves: JSON for people and monitors.
//!
//! | document | is | from |
//! | --- | --- | --- |
//! | `info/v1/repositories.json` | what a server has | its configuration |
//! | `info/v1/meta.json` | who runs the server | its administrator |
//! | meta information, line `M` of the manifest | what a repository is | its maintainers |
//!
//! Source: `cvmfs/server/cvmfs_server_json.sh`, `cvmfs/server/cvmfs_server_common.sh`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde_json::{Map, Value, json};

use crate::clock::UnixSeconds;
use crate::durable;
use crate::error::{Error, IoContext as _, Result};
use crate::repository::SMALL_OBJECT_MAX;
use crate::server::{ServerRoot, Variables};

/// `repositories.json`, in the directory of [`ServerRoot::info_dir`].
pub const REPOSITORIES: &str = "repositories.json";
/// `meta.json`, in the same directory.
pub const META: &str = "meta.json";

/// A repository in `repositories.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The repository.
    pub name: String,
    /// Its name on this server.
    pub alias: String,
    /// Whether requests are passed on to the source.
    pub pass_through: bool,
}

/// What `repositories.json` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repositories {
    /// When the database for the order of servers was made.
    pub last_geodb_update: Option<UnixSeconds>,
    /// What is told about the operating system; see [`system`].
    pub system: Map<String, Value>,
    /// Those that are published here.
    pub repositories: Vec<Entry>,
    /// Replicas.
    pub replicas: Vec<Entry>,
}

impl Repositories {
    /// What the configuration of a server says. What cannot be read of it is left out.
    pub fn configured(root: &ServerRoot) -> Result<Self> {
        let geo = fs::metadata(root.path().join("var/lib/cvmfs-server/geo/GeoLite2-City.mmdb"));
        let updated = geo.and_then(|metadata| metadata.modified()).ok();
        let seconds = updated.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map(|time| time.as_secs());
        let local = Variables::load(&root.path().join("etc/cvmfs/server.local")).unwrap_or_default();
        // The reference's name and default.
        let tells_system = local.flag("CVMFS_PUBLISH_VERSIONS_IN_META_FILE", true);
        let mut document = Self {
            last_geodb_update: seconds.map(|seconds| UnixSeconds(seconds.cast_signed())),
            system: if tells_system { system(root.path()) } else { Map::new() },
            ..Self::default()
        };
        for alias in root.repositories()? {
            let Ok(mut variables) = Variables::load(&root.server_conf(&alias)) else { continue };
            let replica = Variables::load(&root.config_dir(&alias).join("replica.conf"));
            let is_replica = replica.is_ok() || variables.get("CVMFS_REPOSITORY_TYPE") == Some("stratum1");
            variables.extend(replica.unwrap_or_default());
            let entry = Entry {
                name: variables.get("CVMFS_REPOSITORY_NAME").unwrap_or(alias.as_str()).to_owned(),
                pass_through: variables.flag("CVMFS_PASSTHROUGH", false),
                alias: alias.to_string(),
            };
            if is_replica { &mut document.replicas } else { &mut document.repositories }.push(entry);
        }
        Ok(document)
    }

    /// The document.
    pub fn to_json(&self) -> String {
        let mut document = Map::from_iter([("schema".to_owned(), json!(1))]);
        if let Some(updated) = self.last_geodb_update {
            document.insert("last_geodb_update".to_owned(), json!(updated.date_command()));
        }
        document.extend(self.system.clone());
        let entries = |entries: &[Entry]| entries.iter().map(Entry::to_json).collect();
        document.insert("repositories".to_owned(), Value::Array(entries(&self.repositories)));
        document.insert("replicas".to_owned(), Value::Array(entries(&self.replicas)));
        format!("{:#}\n", Value::Object(document))
    }
}

impl Entry {
    fn to_json(&self) -> Value {
        let mut entry = Map::from_iter([("name".to_owned(), json!(self.name))]);
        if self.alias != self.name {
            entry.insert("alias".to_owned(), json!(self.alias));
        }
        if self.pass_through {
            entry.insert("pass-through".to_owned(), json!(true));
        }
        entry.insert("url".to_owned(), json!(format!("/cvmfs/{}", self.alias)));
        Value::Object(entry)
    }
}

/// What `etc/os-release` says of the system.
pub fn system(root: &Path) -> Map<String, Value> {
    let text = fs::read_to_string(root.join("etc/os-release")).unwrap_or_default();
    let value = |line: &str| {
        let (key, value) = line.split_once('=')?;
        let key = match key {
            "ID" => "os_id",
            "VERSION_ID" => "os_version_id",
            "PRETTY_NAME" => "os_pretty_name",
            _ => return None,
        };
        Some((key.to_owned(), json!(value.trim_matches(['"', '\'']))))
    };
    text.lines().filter_map(value).collect()
}

/// `meta.json` to be filled in by the administrator.
pub fn meta_template() -> String {
    let document = json!({ "administrator": "", "email": "", "organisation": "", "custom": {} });
    format!("{document:#}\n")
}

/// The meta information of a repository to be filled in by its maintainers.
pub fn repository_template() -> String {
    let document = json!({
        "administrator": "", "email": "", "organisation": "", "description": "", "url": "",
        "recommended-stratum0": "", "recommended-stratum1s": [], "custom": {},
    });
    format!("{document:#}\n")
}

/// Checks a document that a person wrote, and returns what looks wrong without being so. `what` names it in errors.
///
/// # Errors
/// `InvalidInput` if it is no JSON object, with line and column, or larger than readers take.
pub fn check_document(what: &str, text: &[u8]) -> Result<Vec<String>> {
    let invalid = |reason: String| Err(Error::invalid(what, reason));
    if text.len() as u64 > SMALL_OBJECT_MAX {
        return invalid(format!("{} bytes are more than the {SMALL_OBJECT_MAX} that readers take", text.len()));
    }
    if text.iter().all(u8::is_ascii_whitespace) {
        return invalid("it is empty; the least is {}".into());
    }
    let document = match serde_json::from_slice(text) {
        Ok(Value::Object(document)) => document,
        Ok(_) => return invalid("it is JSON, but no object: it must begin with { and end with }".into()),
        Err(error) => return invalid(format!("it is no JSON: {error}")),
    };
    let texts = ["administrator", "email", "organisation", "description", "url", "recommended-stratum0"];
    let is_texts = |value: &Value| value.as_array().is_some_and(|values| values.iter().all(Value::is_string));
    let mut warnings = Vec::new();
    for (key, value) in &document {
        let expected = match key.as_str() {
            key if texts.contains(&key) => (!value.is_string()).then_some("a text"),
            "recommended-stratum1s" => (!is_texts(value)).then_some("a list of texts"),
            "custom" => (!value.is_object()).then_some("an object"),
            _ => None,
        };
        warnings.extend(expected.map(|expected| format!("{key:?} is usually {expected}")));
    }
    Ok(warnings)
}

/// Writes `repositories.json` anew if the server has its directory, and returns whether it has.
///
/// To be called when a repository came or went. A server of ours needs no file.
pub fn refresh(root: &ServerRoot) -> Result<bool> {
    if !root.info_dir().is_dir() {
        return Ok(false);
    }
    write(root, REPOSITORIES, Repositories::configured(root)?.to_json().as_bytes()).map(|_| true)
}

/// [`refresh`] where failing is not worth more than a warning.
pub fn refresh_warnings(root: &ServerRoot) -> Vec<String> {
    let warning = |error| format!("{REPOSITORIES} is not up to date: {error}");
    refresh(root).err().map(warning).into_iter().collect()
}

/// Replaces a document, as a whole; makes the directory if there is none.
pub fn write(root: &ServerRoot, name: &str, text: &[u8]) -> Result<PathBuf> {
    let directory = root.info_dir();
    fs::create_dir_all(&directory).at(&directory)?;
    let path = directory.join(name);
    // It is served.
    durable::replace_public(&path, text)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn documents_are_checked() {
        for text in ["{}", " {\"email\": \"a@b\"}\n", &repository_template(), &meta_template()] {
            assert_eq!(check_document("x", text.as_bytes()).unwrap(), Vec::<String>::new(), "{text}");
        }
        for (text, complaint) in [
            ("", "empty"),
            (" \n", "empty"),
            ("[]", "no object"),
            ("\"x\"", "no object"),
            ("{\n \"a\": 1,\n}", "line 3 column 1"),
            ("{} {}", "trailing"),
            ("{\"a\": \u{1}}", "column 7"),
            ("\u{feff}{}", "no JSON"),
        ] {
            let error = check_document("x", text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(complaint), "{text}: {error}");
        }
        assert!(check_document("x", b"{\"a\": \"\xff\"}").is_err());
        let large = format!("{{\"a\": \"{}\"}}", "x".repeat(1 << 20));
        assert!(check_document("x", large.as_bytes()).unwrap_err().to_string().contains("more than"));
        let odd = r#"{"email": 1, "custom": [], "recommended-stratum1s": "x", "colour": 3}"#;
        assert_eq!(check_document("x", odd.as_bytes()).unwrap().len(), 3);
    }

    #[test]
    fn the_list_is_that_of_the_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let root = ServerRoot::new(directory.path()).unwrap();
        assert!(!refresh(&root).unwrap());
        let configure = |name: &str, files: &[(&str, &str)]| {
            let config = root.config_dir(&name.parse().unwrap());
            fs::create_dir_all(&config).unwrap();
            for (file, text) in files {
                fs::write(config.join(file), text).unwrap();
            }
        };
        configure("a.example.org", &[("server.conf", "CVMFS_REPOSITORY_TYPE=stratum0\n")]);
        let mirror = ("server.conf", "CVMFS_REPOSITORY_TYPE=stratum1\nCVMFS_REPOSITORY_NAME=b.example.org\n");
        configure("m.example.org", &[mirror, ("replica.conf", "CVMFS_PASSTHROUGH=true\n")]);
        configure("half.example.org", &[("client.conf", "")]);
        fs::create_dir_all(root.info_dir()).unwrap();
        assert!(refresh(&root).unwrap());
        let file = root.info_dir().join(REPOSITORIES);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
        let document: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let expected = json!({
            "schema": 1,
            "repositories": [{ "name": "a.example.org", "url": "/cvmfs/a.example.org" }],
            "replicas": [{ "name": "b.example.org", "alias": "m.example.org", "pass-through": true,
                           "url": "/cvmfs/m.example.org" }],
        });
        assert_eq!(document, expected);
        assert_eq!(fs::read_dir(root.info_dir()).unwrap().count(), 1);
    }
}
