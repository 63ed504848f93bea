//! What registries send when something happens to their images: JSON of several forms, read as hints where to look.
//!
//! | form | known by | hints |
//! | --- | --- | --- |
//! | Harbor | `type` and `event_data` | `PUSH_ARTIFACT`, `DELETE_ARTIFACT`, `REPLICATION`, `TAG_RETENTION` |
//! | Harbor, as CloudEvents | `specversion` and `type` | `harbor.artifact.pushed` and the like |
//! | Docker distribution, GitLab | `events` | `push` and `mount` of a tag, `delete` |
//! | Quay | `docker_url` | each of `updated_tags` |
//! | ours | `image` | `action`: `push`, which is what it is if it is missing, or `delete` |
//!
//! Several of them may be in one list. Everything else that has one of these forms says nothing of interest here.
//!
//! A push without a tag is a piece of an image, such as the manifest of one platform, and its index follows with a tag. A
//! deletion hints at the whole repository of the registry, because registries do not say all tags that are gone.
//!
//! Source: `src/pkg/notifier/{model,formats}` of Harbor; "Notifications" of the Docker distribution's documentation;
//! "Repository notifications" of Quay's.

use cvmfs_core::error::{Error, Result};
use serde_json::Value;

use crate::image::reference::Reference;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// There may be something new.
    Push,
    /// Something may be gone.
    Delete,
}

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hint {
    /// What may have happened there.
    pub action: Action,
    /// An image; or all of its repository if there is neither tag nor digest, as for deletions. Never a pattern. How the
    /// registry is spoken to is not known from here.
    pub image: Reference,
}

/// Who uses a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// Harbor's own.
    Harbor,
    /// Harbor's events as CloudEvents.
    CloudEvents,
    /// Docker distribution, and registries made of it.
    Distribution,
    /// GitLab's hooks of projects.
    GitLab,
    /// Quay.
    Quay,
    /// Ours, for scripts.
    Plain,
    /// A list of any of them.
    List,
}

/// What a notification says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// Its form.
    pub form: Form,
    /// Where to look, in the order of the notification.
    pub hints: Vec<Hint>,
    /// What is wrong with names that are no names of images.
    pub refused: Vec<String>,
}

impl Form {
    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Harbor => "harbor",
            Self::CloudEvents => "cloudevents",
            Self::Distribution => "distribution",
            Self::GitLab => "gitlab",
            Self::Quay => "quay",
            Self::Plain => "plain",
            Self::List => "list",
        }
    }
}

/// Reads a notification.
///
/// # Errors
/// `Malformed` if it is no JSON, or of no known form.
pub fn parse(body: &[u8]) -> Result<Notification> {
    let document: Value = serde_json::from_slice(body).map_err(|error| malformed(error.to_string()))?;
    let Value::Array(list) = document else { return read_one(&document) };
    let mut all = Notification::new(Form::List);
    for document in &list {
        let Notification { hints, refused, .. } = read_one(document)?;
        all.hints.extend(hints);
        all.refused.extend(refused);
    }
    Ok(all)
}

fn malformed(reason: impl Into<String>) -> Error {
    Error::malformed("notification", reason)
}

fn read_one(document: &Value) -> Result<Notification> {
    let has = |name: &str| document.get(name).is_some();
    let mut notification;
    if has("specversion") && has("type") {
        notification = Notification::new(Form::CloudEvents);
        notification.read_harbor(harbor_type(text(document, "/type")), &document["data"]);
    } else if has("event_data") && has("type") {
        notification = Notification::new(Form::Harbor);
        notification.read_harbor(text(document, "/type"), &document["event_data"]);
    } else if let Some(Value::Array(events)) = document.get("events") {
        notification = Notification::new(Form::Distribution);
        for event in events {
            notification.read_distribution(event);
        }
    } else if has("docker_url") {
        notification = Notification::new(Form::Quay);
        notification.read_quay(document);
    } else if let Some(Value::String(image)) = document.get("image") {
        notification = Notification::new(if has("object_kind") { Form::GitLab } else { Form::Plain });
        let action = match document.get("action") {
            None => Some(Action::Push),
            Some(action) if action == "push" => Some(Action::Push),
            Some(action) if action == "delete" => Some(Action::Delete),
            Some(_) => None,
        };
        if let Some(action) = action {
            notification.hint(action, image);
        }
    } else if has("object_kind") {
        notification = Notification::new(Form::GitLab);
    } else {
        return Err(malformed("it has no known form"));
    }
    Ok(notification)
}

/// A text somewhere in a document; empty if there is none.
fn text<'a>(document: &'a Value, pointer: &str) -> &'a str {
    document.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A list somewhere in a document; empty if there is none.
fn list<'a>(document: &'a Value, pointer: &str) -> &'a [Value] {
    document.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The name of an event in Harbor's own form.
fn harbor_type(cloud_event: &str) -> &str {
    match cloud_event {
        "harbor.artifact.pushed" => "PUSH_ARTIFACT",
        "harbor.artifact.deleted" => "DELETE_ARTIFACT",
        "harbor.replication.status.changed" => "REPLICATION",
        "harbor.tag_retention.finished" => "TAG_RETENTION",
        other => other,
    }
}

impl Notification {
    fn new(form: Form) -> Self {
        Self { form, hints: Vec::new(), refused: Vec::new() }
    }

    /// Adds a hint at an image, unless its name is none, or the hint is there.
    fn hint(&mut self, action: Action, name: &str) {
        let image = match name.parse::<Reference>() {
            Ok(image) if image.is_pattern() => {
                return self.refused.push(format!("the image {name:?}: a pattern names no single image"));
            }
            Ok(image) => image,
            Err(error) => return self.refused.push(error.to_string()),
        };
        let image = match action {
            Action::Push => image,
            Action::Delete => Reference { tag: None, digest: None, ..image },
        };
        let hint = Hint { action, image };
        if self.hints.last() != Some(&hint) {
            self.hints.push(hint);
        }
    }

    fn read_harbor(&mut self, kind: &str, data: &Value) {
        match kind {
            "PUSH_ARTIFACT" => {
                let urls = list(data, "/resources").iter().map(|resource| text(resource, "/resource_url"));
                urls.filter(|url| !url.contains('@')).for_each(|url| self.hint(Action::Push, url));
            }
            "DELETE_ARTIFACT" => {
                let urls = list(data, "/resources").iter().map(|resource| text(resource, "/resource_url"));
                urls.for_each(|url| self.hint(Action::Delete, url));
            }
            "TAG_RETENTION" => {
                let host = text(data, "/retention/harbor_hostname");
                for deleted in list(data, "/retention/deleted_artifact") {
                    self.hint(Action::Delete, &format!("{host}/{}", text(deleted, "/name_tag")));
                }
            }
            "REPLICATION" => self.read_replication(&data["replication"]),
            _ => {}
        }
    }

    /// Harbor says which repository something was copied to, and how many tags, but not which: `app [2 item(s) in total]`.
    fn read_replication(&mut self, replication: &Value) {
        let host = match text(replication, "/dest_resource/endpoint") {
            "" => text(replication, "/harbor_hostname"),
            endpoint => endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest).trim_end_matches('/'),
        };
        let namespace = text(replication, "/dest_resource/namespace");
        for artifact in list(replication, "/successful_artifact") {
            let name = text(artifact, "/name_tag").split_whitespace().next().unwrap_or_default();
            // Older ones list tags: `app:[1,2]`.
            let name = name.split_once(":[").map_or(name, |(name, _)| name);
            let separator = if namespace.is_empty() { "" } else { "/" };
            self.hint(Action::Push, &format!("{host}/{namespace}{separator}{name}"));
        }
    }

    fn read_distribution(&mut self, event: &Value) {
        let action = match text(event, "/action") {
            "push" | "mount" => Action::Push,
            "delete" => Action::Delete,
            _ => return,
        };
        let tag = text(event, "/target/tag");
        if action == Action::Push && tag.is_empty() {
            return;
        }
        let host = match text(event, "/request/host") {
            "" => {
                let url = text(event, "/target/url");
                let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
                rest.split('/').next().unwrap_or_default()
            }
            host => host,
        };
        let repository = text(event, "/target/repository");
        let tag = if action == Action::Push { format!(":{tag}") } else { String::new() };
        self.hint(action, &format!("{host}/{repository}{tag}"));
    }

    fn read_quay(&mut self, document: &Value) {
        for tag in list(document, "/updated_tags").iter().filter_map(Value::as_str) {
            self.hint(Action::Push, &format!("{}:{tag}", text(document, "/docker_url")));
        }
    }
}
