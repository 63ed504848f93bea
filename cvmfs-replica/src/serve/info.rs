//! The documents below `/cvmfs/info/v1/`.
//!
//! The reference writes `repositories.json` whenever it adds or removes a repository, from the configuration. Here it is made
//! from the same configuration for each request, so that it is never behind; a file is served only where nothing is
//! configured, such as from a copy of the storages alone. `meta.json` is the administrator's to edit; without a file there is
//! one to be filled in.
//!
//! Source: `cvmfs/server/cvmfs_server_json.sh`.

use cvmfs_core::info::{Entry, Repositories, system};

use super::connection::Shared;
use super::state::{RepositoryState, Role};

/// The list of repositories, below the directory of documents.
pub(super) const REPOSITORIES: &str = "v1/repositories.json";

/// `repositories.json` for these repositories.
pub(super) fn repositories_json(shared: &Shared, states: &[RepositoryState]) -> String {
    let mut document = Repositories {
        last_geodb_update: shared.geo().map(|geo| super::unix_seconds(geo.updated())),
        system: shared.repositories.root().map(system).unwrap_or_default(),
        ..Repositories::default()
    };
    for state in states {
        let entry = |name: &str, pass_through| Entry { name: name.to_owned(), alias: state.name.clone(), pass_through };
        match &state.role {
            Role::Replica(source) => {
                document.replicas.push(entry(source.replica.name.as_str(), source.replica.is_pass_through));
            }
            // A storage without configuration is a copy of what is published elsewhere.
            Role::Storage => {
                let name = state.manifest.as_ref().map_or(state.name.as_str(), |manifest| manifest.name.as_str());
                document.replicas.push(entry(name, false));
            }
            Role::Publisher => document.repositories.push(entry(&state.name, false)),
        }
    }
    document.to_json()
}
