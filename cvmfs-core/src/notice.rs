//! Change notices: a notification server is told of a new manifest, and tells the clients that listen.
//!
//! Source: `cvmfs/notify/messages.cc`, `gateway/internal/gateway/frontend/notifications.go`.

use std::time::Duration;

use reqwest::Url;
use serde::Serialize;

use crate::clock::UnixSeconds;
use crate::error::{Error, IoContext as _, Result};
use crate::path::RepositoryName;

/// How long a server may take. Nobody waits for notices: clients look for new revisions by themselves.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What is sent.
#[derive(Debug, Serialize)]
struct Notice<'a> {
    version: u32,
    timestamp: String,
    #[serde(rename = "type")]
    kind: &'static str,
    repository: &'a str,
    /// The signed manifest in Base64.
    manifest: String,
}

/// Tells a server, such as `http://gateway.example.org:4929/api/v1`, of a signed manifest.
///
/// # Errors
/// `Unavailable` if the server does not take it.
pub fn send(server: &Url, name: &RepositoryName, manifest: &[u8], now: UnixSeconds) -> Result<()> {
    let notice = Notice {
        version: 1,
        timestamp: now.date_and_time(),
        kind: "activity",
        repository: name.as_str(),
        manifest: openssl::base64::encode_block(manifest),
    };
    let body = serde_json::to_vec(&notice).map_err(|error| Error::invalid("JSON", error.to_string()))?;
    let url = format!("{}/notifications/publish", server.as_str().trim_end_matches('/'));
    let unavailable = |error: reqwest::Error| Error::Unavailable { what: url.clone(), reason: error.to_string() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().at("tokio runtime")?;
    runtime.block_on(async {
        let client = reqwest::Client::builder().timeout(TIMEOUT).build().map_err(unavailable)?;
        let answer = client.post(&url).body(body).send().await.map_err(unavailable)?;
        answer.error_for_status().map(drop).map_err(unavailable)
    })
}
