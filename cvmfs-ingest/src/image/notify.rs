//! Telling others what happens to images: one JSON object a line, all values strings.
//!
//! Source: `ducc/notification/notification.go`.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use cvmfs_core::error::{IoContext as _, Result};
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

use super::digest::Digest;

/// Something that happened. What an action has nothing to say about is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Event {
    /// When: a day, a month, a year and the time of the day, in UTC.
    pub time: String,
    /// What: one of [`action`].
    pub action: &'static str,
    /// Shared by a beginning and its end.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The image, as `registry/repository:tag`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// The layer's blob, in hexadecimal digits.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub layer: String,
    /// Where users find it, from the root of the repository.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub public_path: String,
    /// Where it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub private_path: String,
    /// Bytes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub size_bytes: String,
    /// Seconds since the beginning.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub time_elapsed_s: String,
    /// `ok` or `error`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// What went wrong.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// What events are called. The first two of each pair share an id.
pub mod action {
    /// A layer is fetched.
    pub const LAYER_BEGINS: &str = "start_layer_conversion";
    /// It was fetched, or could not be.
    pub const LAYER_ENDS: &str = "end_layer_conversion";
    /// The repository has it.
    pub const LAYER_PUBLISHED: &str = "publish_layer";
    /// An image is converted.
    pub const IMAGE_BEGINS: &str = "start_flat_conversion";
    /// It was converted, or could not be.
    pub const IMAGE_ENDS: &str = "end_flat_conversion";
    /// The repository has it, under its name.
    pub const IMAGE_PUBLISHED: &str = "publish_flat_image";
}

/// Whoever wants to know what happens.
pub trait Listener: fmt::Debug + Send + Sync {
    /// Hears of an event. Converting goes on whatever becomes of it.
    fn hear(&self, event: &Event);
}

impl Event {
    /// Something that happens now.
    pub fn now(action: &'static str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = OffsetDateTime::UNIX_EPOCH + now;
        let format = format_description!(
            "[day padding:space] [month repr:short] [year] - [hour]:[minute]:[second].[subsecond digits:3]"
        );
        Self { time: time.format(&format).unwrap_or_default(), action, ..Self::default() }
    }

    /// The same, with what ties it to others.
    #[must_use]
    pub fn with_id(self, id: &str) -> Self {
        Self { id: id.to_owned(), ..self }
    }

    /// The same, with how it ended.
    #[must_use]
    pub fn with_result<T>(self, seconds: f64, result: &Result<T>) -> Self {
        let (status, error) = match result {
            Ok(_) => ("ok".to_owned(), String::new()),
            Err(error) => ("error".to_owned(), error.to_string()),
        };
        Self { time_elapsed_s: format!("{seconds:.6}"), status, error, ..self }
    }
}

/// An id that no other pair of events has, in the form of a UUID.
pub fn new_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let seed = format!("{now} {} {}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let hex = Digest::of(seed.as_bytes()).hex();
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}

/// Appends events to a file, which several processes may share.
#[derive(Debug)]
pub struct EventFile(PathBuf);

impl EventFile {
    /// Makes the file if there is none.
    pub fn open(path: &Path) -> Result<Self> {
        Self::append(path, b"").at(path)?;
        Ok(Self(path.to_owned()))
    }

    fn append(path: &Path, line: &[u8]) -> std::io::Result<()> {
        OpenOptions::new().append(true).create(true).mode(0o660).open(path)?.write_all(line)
    }
}

impl Listener for EventFile {
    fn hear(&self, event: &Event) {
        let mut line = serde_json::to_vec(event).expect("strings can be written as JSON");
        line.push(b'\n');
        if let Err(error) = Self::append(&self.0, &line) {
            tracing::warn!(path = %self.0.display(), %error, "an event was not written");
        }
    }
}

/// Tells all of them.
impl Listener for Vec<Box<dyn Listener>> {
    fn hear(&self, event: &Event) {
        for listener in self {
            listener.hear(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_objects_of_strings() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let file = EventFile::open(&path).unwrap();
        let id = new_id();
        assert_ne!(id, new_id());
        file.hear(&Event { layer: "ab".into(), ..Event::now(action::LAYER_BEGINS).with_id(&id) });
        let failed: Result<()> = Err(cvmfs_core::Error::not_found("blob"));
        file.hear(&Event::now(action::LAYER_ENDS).with_id(&id).with_result(1.5, &failed));
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["action"], "start_layer_conversion");
        assert_eq!((lines[0]["layer"].as_str(), lines[0].get("error")), (Some("ab"), None));
        assert_eq!(lines[1]["id"], *id);
        assert_eq!(lines[1]["time_elapsed_s"], "1.500000");
        assert_eq!((lines[1]["status"].as_str(), lines[1]["error"].as_str()), (Some("error"), Some("blob not found")));
        // ` 3 Feb 2026 - 09:05:07.042`
        let time = lines[0]["time"].as_str().unwrap();
        assert_eq!((time.len(), &time[11..14], &time[22..23]), (26, " - ", "."), "{time}");
        assert!(lines.iter().all(|line| line.as_object().unwrap().values().all(serde_json::Value::is_string)));
    }
}
