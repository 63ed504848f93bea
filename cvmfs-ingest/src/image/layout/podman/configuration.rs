//! What podman reads of an image's configuration, and in which form.
//!
//! podman reads the configuration of each image that it lists, in Go, whose types are strict: one image with a number where
//! a text should be, and it lists none.
//!
//! Source: `specs-go/v1/config.go` of `image-spec`, `manifest/docker_schema2.go` of `containers/image`.

#![expect(dead_code, reason = "fields are there for their types")]

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::image::Image;

/// Why podman could not read an image's configuration; `None` if it could.
pub fn problem(image: &Image) -> Option<String> {
    // Of a field that is there twice Go takes the last one, and so does this.
    let value: serde_json::Value = match serde_json::from_slice(&image.config.bytes) {
        Ok(value) => value,
        Err(error) => return Some(error.to_string()),
    };
    serde_json::from_value::<Configuration>(value).err().map(|error| error.to_string())
}

type Texts = Option<Vec<Option<String>>>;
type Names = Option<BTreeMap<String, Option<Nothing>>>;

#[derive(Deserialize)]
struct Configuration {
    created: Option<Time>,
    author: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    os: Option<String>,
    #[serde(rename = "os.version")]
    os_version: Option<String>,
    #[serde(rename = "os.features")]
    os_features: Texts,
    config: Option<Settings>,
    container_config: Option<Settings>,
    container: Option<String>,
    docker_version: Option<String>,
    comment: Option<String>,
    history: Option<Vec<Option<Step>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    hostname: Option<String>,
    domainname: Option<String>,
    user: Option<String>,
    image: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    stop_timeout: Option<i64>,
    attach_stdin: Option<bool>,
    attach_stdout: Option<bool>,
    attach_stderr: Option<bool>,
    tty: Option<bool>,
    open_stdin: Option<bool>,
    stdin_once: Option<bool>,
    args_escaped: Option<bool>,
    network_disabled: Option<bool>,
    env: Texts,
    cmd: Texts,
    entrypoint: Texts,
    on_build: Texts,
    shell: Texts,
    exposed_ports: Names,
    volumes: Names,
    labels: Option<BTreeMap<String, Option<String>>>,
    healthcheck: Option<Check>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    test: Texts,
    interval: Option<i64>,
    timeout: Option<i64>,
    start_period: Option<i64>,
    retries: Option<i64>,
}

#[derive(Deserialize)]
struct Step {
    created: Option<Time>,
    created_by: Option<String>,
    author: Option<String>,
    comment: Option<String>,
    empty_layer: Option<bool>,
}

/// An object, whatever is in it.
#[derive(Deserialize)]
struct Nothing {}

/// A time in RFC 3339, with a `T` in its middle.
struct Time;

impl<'d> Deserialize<'d> for Time {
    fn deserialize<D: Deserializer<'d>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let is_time = text.as_bytes().get(10) == Some(&b'T') && OffsetDateTime::parse(&text, &Rfc3339).is_ok();
        if is_time { Ok(Self) } else { Err(D::Error::custom(format!("{text:?} is no time"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest::Digest;
    use crate::image::{Document, Platform, Settings};

    fn problem_of(config: &str) -> Option<String> {
        let document = |bytes: &[u8]| Document { digest: Digest::of(bytes), bytes: bytes.to_vec() };
        problem(&Image {
            manifest: document(b"{}"),
            config: document(config.as_bytes()),
            platform: Platform::linux_amd64(),
            settings: Settings::default(),
            layers: Vec::new(),
        })
    }

    /// With each of the bad ones in a store, podman 4.3.1 was seen to list nothing of it.
    #[test]
    fn podman_reads_only_what_has_the_right_types() {
        for good in [
            r"{}",
            r#"{"created":"2024-10-27T03:46:40.123456789Z","author":null,"history":[{"created":"2024-10-27T03:46:40+01:00"}]}"#,
            r#"{"created":null,"config":{"ExposedPorts":{"80/tcp":{}},"Labels":{"a":"b"},"Unknown":7},"unknown":[1]}"#,
            r#"{"config":{"Healthcheck":{"Test":["CMD","true"],"Interval":30000000000,"Retries":3}}}"#,
        ] {
            assert_eq!(problem_of(good), None, "{good}");
        }
        for bad in [
            r#"{"created":"yesterday"}"#,
            r#"{"created":""}"#,
            r#"{"created":"2024-10-27 03:46:40Z"}"#,
            r#"{"history":"none"}"#,
            r#"{"history":[{"created":"then"}]}"#,
            r#"{"author":5}"#,
            r#"{"config":{"User":0}}"#,
            r#"{"config":{"WorkingDir":1}}"#,
            r#"{"config":{"ExposedPorts":["80/tcp"]}}"#,
            r#"{"config":{"Healthcheck":"true"}}"#,
            "none",
        ] {
            assert!(problem_of(bad).is_some(), "{bad}");
        }
    }
}
