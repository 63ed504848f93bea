//! Maps of owners: which number becomes which.
//!
//! ```text
//! # one rule a line: from, to
//! 101 5
//! * 1000
//! ```
//!
//! Numbers without a rule become what `*` says, or stay as they are if there is no such rule.
//!
//! Source: `cvmfs/uid_map.h`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use crate::error::{Error, IoContext as _, Result};

/// A map of user or group numbers. The default one leaves all numbers as they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdMap {
    rules: BTreeMap<u32, u32>,
    others: Option<u32>,
}

impl IdMap {
    /// Reads a map file.
    ///
    /// # Errors
    /// `InvalidInput` with file and line for what is no rule.
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).at(file)?;
        text.parse().map_err(|error: Error| Error::invalid(file.display().to_string(), error.to_string()))
    }

    /// Whether there are no rules at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Every number becomes `id`.
    pub fn constant(id: u32) -> Self {
        Self { rules: BTreeMap::new(), others: Some(id) }
    }

    /// What a number becomes; `None` if it has no rule and is too large for a repository.
    pub fn map(&self, id: u64) -> Option<u32> {
        let id = u32::try_from(id);
        let rule = id.ok().and_then(|id| self.rules.get(&id).copied());
        rule.or(self.others).or(id.ok())
    }
}

impl FromStr for IdMap {
    type Err = Error;

    /// Parses the text of a map file; of several rules for a number the last one counts.
    fn from_str(text: &str) -> Result<Self> {
        let mut map = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let rule = match words[..] {
                [] => continue,
                [first, ..] if first.starts_with('#') => continue,
                [from, to] => {
                    to.parse().ok().zip((from == "*").then_some(None).or_else(|| from.parse().ok().map(Some)))
                }
                _ => None,
            };
            let (to, from) = rule.ok_or_else(|| {
                Error::malformed(format!("map, line {number}"), format!("{line:?} is not of the form FROM TO"))
            })?;
            match from {
                Some(from) => drop(map.rules.insert(from, to)),
                None => map.others = Some(to),
            }
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_come_before_the_wildcard_and_others_stay() {
        let map: IdMap = "# comment\n\n101  5\n 5 101 \n0 1\n0 2\n".parse().unwrap();
        assert_eq!([101, 5, 0, 7].map(|id| map.map(id)), [Some(5), Some(101), Some(2), Some(7)]);
        assert_eq!(map.map(1 << 32), None);
        let map: IdMap = "* 0\n101 5".parse().unwrap();
        assert_eq!([101, 7, 1 << 40].map(|id| map.map(id)), [Some(5), Some(0), Some(0)]);
        assert_eq!(IdMap::default().map(7), Some(7));
        assert_eq!(IdMap::constant(3).map(7), Some(3));
    }

    #[test]
    fn anything_else_is_refused_with_its_line() {
        for text in ["1", "1 2 3", "1 x", "x 1", "-1 2", "1 *", "4294967296 1"] {
            let error = format!("1 1\n{text}").parse::<IdMap>().unwrap_err().to_string();
            assert!(error.starts_with("map, line 2:"), "{error}");
        }
    }
}
