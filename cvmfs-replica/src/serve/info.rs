//! The documents below `/cvmfs/info/v1/`.
//!
//! The reference writes `repositories.json` whenever it adds or removes a repository, from the configuration. Here it is made
//! from the same configuration for each request, so that it is never behind; a file is served only where nothing is
//! configured, such as from a copy of the storages alone. `meta.json` is the administrator's to edit; without a file there is
//! one to be filled in.
//!
//! Source: `cvmfs/server/cvmfs_server_json.sh`.

use std::path::Path;
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::connection::Shared;
use super::state::{RepositoryState, Role};

/// The list of repositories, below the directory of documents.
pub(super) const REPOSITORIES: &str = "v1/repositories.json";

/// `repositories.json` for these repositories.
pub(super) fn repositories_json(shared: &Shared, states: &[RepositoryState]) -> String {
    let mut document = Map::new();
    document.insert("schema".to_owned(), json!(1));
    if let Some(modified) = shared.geo().map(|geo| geo.updated()) {
        document.insert("last_geodb_update".to_owned(), json!(date(modified)));
    }
    document.extend(shared.repositories.root().map(system).unwrap_or_default());
    let (mut publishers, mut replicas) = (Vec::new(), Vec::new());
    for state in states {
        let url = format!("/cvmfs/{}", state.name);
        match &state.role {
            Role::Replica(source) => {
                let mut entry = Map::from_iter([("name".to_owned(), json!(source.replica.name.as_str()))]);
                if source.replica.name != source.replica.alias {
                    entry.insert("alias".to_owned(), json!(state.name));
                }
                if source.replica.is_pass_through {
                    entry.insert("pass-through".to_owned(), json!(true));
                }
                entry.insert("url".to_owned(), json!(url));
                replicas.push(Value::Object(entry));
            }
            // A storage without configuration is a copy of what is published elsewhere.
            Role::Storage => {
                let name = state.manifest.as_ref().map_or(state.name.as_str(), |manifest| manifest.name.as_str());
                let mut entry = Map::from_iter([("name".to_owned(), json!(name))]);
                if name != state.name {
                    entry.insert("alias".to_owned(), json!(state.name));
                }
                entry.insert("url".to_owned(), json!(url));
                replicas.push(Value::Object(entry));
            }
            Role::Publisher => publishers.push(json!({ "name": state.name, "url": url })),
        }
    }
    document.insert("repositories".to_owned(), Value::Array(publishers));
    document.insert("replicas".to_owned(), Value::Array(replicas));
    format!("{:#}\n", Value::Object(document))
}

/// `meta.json` as the reference makes it: to be filled in by the administrator.
pub(super) fn meta_json() -> String {
    let document = json!({ "administrator": "", "email": "", "organisation": "", "custom": {} });
    format!("{document:#}\n")
}

/// What `etc/os-release` says of the system.
fn system(root: &Path) -> Map<String, Value> {
    let text = std::fs::read_to_string(root.join("etc/os-release")).unwrap_or_default();
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

fn date(time: SystemTime) -> String {
    super::unix_seconds(time).date_command()
}
