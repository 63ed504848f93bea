//! Configuration files: `KEY=value` lines, as shells read them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, IoContext as _, Result};
use crate::storage::StoragePlace;

/// Variables of configuration files.
#[derive(Debug, Clone, Default)]
pub struct Variables {
    /// Each with the file that it is from.
    values: BTreeMap<String, (Arc<Path>, String)>,
}

impl Variables {
    /// Reads `KEY=value` lines; values may be quoted, lines may be comments or begin with `export`.
    ///
    /// # Errors
    /// `NotFound` if there is no such file.
    pub fn load(file: &Path) -> Result<Self> {
        let text = match fs::read_to_string(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::not_found(format!("configuration file {}", file.display())));
            }
            result => result.at(file)?,
        };
        let (mut values, origin) = (BTreeMap::new(), Arc::from(file));
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let line = line.strip_prefix("export ").unwrap_or(line);
            if let Some((key, value)) = line.split_once('=') {
                values.insert(key.trim().to_owned(), (Arc::clone(&origin), unquote(value.trim()).to_owned()));
            }
        }
        Ok(Self { values })
    }

    /// Adds the variables of another file, which win over those of this one.
    pub fn extend(&mut self, other: Self) {
        self.values.extend(other.values);
    }

    /// The value of a variable; `None` if it is not set, or empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.raw(key).filter(|value| !value.is_empty())
    }

    /// The value of a variable, also if it is empty.
    pub fn raw(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(|(_, value)| value.as_str())
    }

    /// The value of a variable as a number or other parsable value.
    ///
    /// # Errors
    /// `InvalidInput` naming file and variable.
    pub fn parse<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>> {
        let parse = |text: &str| text.parse().map_err(|_| self.invalid(key, text));
        self.get(key).map(parse).transpose()
    }

    /// Whether a variable is switched on.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        self.get(key).map_or(default, |value| matches!(value, "true" | "yes" | "on" | "1"))
    }

    /// The days of an age such as `4 weeks ago`.
    ///
    /// # Errors
    /// `InvalidInput` if the value is not of that form.
    pub fn days_ago(&self, key: &str) -> Result<Option<u32>> {
        let days = |text: &str| parse_timespan(text).ok_or_else(|| self.invalid(key, text));
        self.get(key).map(days).transpose()
    }

    /// The storage that `CVMFS_UPSTREAM_STORAGE` defines; `None` if it is not set.
    ///
    /// # Errors
    /// `InvalidInput` if it is no definition, `Unsupported` for other kinds of storage.
    pub fn storage(&self) -> Result<Option<StoragePlace>> {
        let key = "CVMFS_UPSTREAM_STORAGE";
        let Some(definition) = self.get(key) else { return Ok(None) };
        StoragePlace::parse(definition)?.map(Some).ok_or_else(|| self.invalid(key, definition))
    }

    pub(super) fn invalid(&self, key: &str, value: &str) -> Error {
        let file = self.values.get(key).map(|(file, _)| format!("{}: ", file.display())).unwrap_or_default();
        Error::invalid(format!("{file}{key}"), format!("impossible value {value:?}"))
    }
}

/// The value without its quotes or the comment behind it.
fn unquote(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(rest) = value.strip_prefix(quote) {
            return rest.split(quote).next().unwrap_or(rest);
        }
    }
    value.split(" #").next().unwrap_or(value).trim_end()
}

/// The days of an age such as `4 weeks ago`; `None` if it is not of that form.
fn parse_timespan(text: &str) -> Option<u32> {
    let mut words = text.split_whitespace();
    let (number, unit) = (words.next()?.parse::<u32>().ok()?, words.next()?);
    if words.next() != Some("ago") || words.next().is_some() {
        return None;
    }
    let days = match unit.strip_suffix('s').unwrap_or(unit) {
        "day" => 1,
        "week" => 7,
        "month" => 30,
        "year" => 365,
        _ => return None,
    };
    number.checked_mul(days)
}
