use std::path::PathBuf;

use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::progress::Cancel;
use cvmfs_ingest::image::registry::{HostPattern, Mirror, Registries, RegistryOptions};

/// How registries are reached.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Registries")]
pub(super) struct RegistryArgs {
    /// File with credentials, as podman and Docker have them, to look in before the usual ones
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Speak to this registry (HOST[:PORT]) without TLS; may be repeated
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<String>,
    /// Ask a cache instead of a registry, or of all in a domain: HOST=[SCHEME://]HOST[:PORT][/PATH]; may be repeated
    #[arg(long, value_name = "HOST=CACHE", value_parser = parse_mirror)]
    mirror: Vec<Mirror>,
    /// Trust these certificates, too (PEM)
    #[arg(long, value_name = "FILE")]
    registry_ca: Option<PathBuf>,
    /// Most requests to one registry at a time
    #[arg(long, value_name = "NUMBER", default_value_t = RegistryOptions::default().requests_per_host)]
    registry_requests: usize,
}

impl RegistryArgs {
    /// Takes the arguments, and what the environment says of credentials, mirrors and proxies.
    pub(super) fn registries(&self, cancel: &Cancel) -> Result<Registries> {
        let mut options = RegistryOptions::from_environment(&|name| std::env::var(name).ok())?;
        if let Some(file) = &self.authfile {
            // Others may be missing; this one was asked for.
            file.metadata().at(file)?;
            options.credentials.prefer_file(file.clone());
        }
        options.mirrors.splice(0..0, self.mirror.iter().cloned());
        options.plain_http.clone_from(&self.plain_http);
        options.ca_bundle.clone_from(&self.registry_ca);
        options.requests_per_host = self.registry_requests;
        options.cancel = cancel.clone();
        Registries::new(options)
    }
}

fn parse_mirror(text: &str) -> Result<Mirror> {
    let (host, mirror) = text.split_once('=').ok_or_else(|| Error::invalid(format!("{text:?}"), "not HOST=CACHE"))?;
    Mirror::new(HostPattern::new(host)?, mirror)
}
