//! The lists of a store: records with fields that we know and fields that we keep.

use std::collections::BTreeSet;

use cvmfs_core::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A list, in its order.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Records(Vec<Record>);

/// An image or a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Record(Map<String, Value>);

impl Records {
    /// Reads a list; there may be none yet.
    pub(super) fn parse(what: &str, bytes: Option<&[u8]>) -> Result<Self> {
        match bytes.map(<[u8]>::trim_ascii) {
            // Programs of the reference begin with an empty file.
            None | Some([]) => Ok(Self::default()),
            Some(bytes) => serde_json::from_slice(bytes).map_err(|error| Error::malformed(what, error.to_string())),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.0.iter()
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        self.iter().any(|record| record.id() == Some(id))
    }

    /// Takes out all records of an id: programs of the reference write several.
    pub(super) fn take(&mut self, id: &str) -> Vec<Record> {
        self.0.extract_if(.., |record| record.id() == Some(id)).collect()
    }

    pub(super) fn push(&mut self, record: Record) {
        self.0.push(record);
    }

    pub(super) fn remove(&mut self, ids: &BTreeSet<String>) {
        self.0.retain(|record| record.id().is_none_or(|id| !ids.contains(id)));
    }

    /// The first record of an id, the one that counts; a new one if there is none.
    pub(super) fn first_or_new(&mut self, id: &str) -> &mut Record {
        let at = self.0.iter().position(|record| record.id() == Some(id)).unwrap_or(self.0.len());
        if at == self.0.len() {
            self.0.push(Record::new(id));
        }
        &mut self.0[at]
    }

    /// Layers with all layers below them.
    pub(super) fn with_parents(&self, layers: impl Iterator<Item = String>) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut waiting: Vec<String> = layers.collect();
        while let Some(id) = waiting.pop() {
            if found.insert(id.clone()) {
                let of_id = self.iter().filter(|record| record.id() == Some(&id));
                waiting.extend(of_id.filter_map(|record| record.text("parent")).map(str::to_owned));
            }
        }
        found
    }

    pub(super) fn retain_names(&mut self, mut keep: impl FnMut(&str) -> bool) {
        for record in self.0.iter_mut().rev() {
            if let Some(Value::Array(names)) = record.0.get_mut("names") {
                names.retain(|name| name.as_str().is_some_and(&mut keep));
            }
        }
    }

    /// Leaves each name to the last record that has it: a name that is there twice makes the whole store unreadable.
    pub(super) fn make_names_unique(&mut self) {
        let mut seen = BTreeSet::new();
        self.retain_names(|name| seen.insert(name.to_owned()));
    }
}

impl Record {
    pub(super) fn new(id: &str) -> Self {
        Self(Map::from_iter([("id".to_owned(), json!(id))]))
    }

    pub(super) fn id(&self) -> Option<&str> {
        self.text("id")
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.texts("names")
    }

    /// The uppermost layers of an image.
    pub(super) fn layers(&self) -> Vec<String> {
        let mut layers = self.texts("mapped-layers");
        layers.extend(self.text("layer").map(str::to_owned));
        layers
    }

    fn text(&self, field: &str) -> Option<&str> {
        self.0.get(field).and_then(Value::as_str)
    }

    fn texts(&self, field: &str) -> Vec<String> {
        let values = self.0.get(field).and_then(Value::as_array).into_iter().flatten();
        values.filter_map(Value::as_str).map(str::to_owned).collect()
    }

    pub(super) fn set(&mut self, field: &str, value: Value) {
        self.0.insert(field.to_owned(), value);
    }

    /// Sets a field, or takes it away.
    pub(super) fn set_optional(&mut self, field: &str, value: Option<Value>) {
        match value {
            Some(value) => self.set(field, value),
            None => drop(self.0.remove(field)),
        }
    }

    /// Sets a field that is not there.
    pub(super) fn set_default(&mut self, field: &str, value: Value) {
        self.0.entry(field).or_insert(value);
    }
}
