//! The counters of a catalog: of itself, and of all catalogs below it.

use std::fmt;
use std::ops::{Add, AddAssign};

use super::schema::Shape;
use crate::database::Database;
use crate::entry::{flag, type_bits};
use crate::error::{Error, Result};

/// Number of counters of each kind.
const COUNT: usize = 12;

/// Names in the order of the fields of [`Counters`]; in the database with `self_` or `subtree_` before them.
const NAMES: [&str; COUNT] = [
    "regular",
    "symlink",
    "special",
    "dir",
    "nested",
    "chunked",
    "chunks",
    "file_size",
    "chunked_size",
    "xattr",
    "external",
    "external_file_size",
];

/// Counters that catalogs of older schema revisions lack: extended attributes, external files, special files.
const OPTIONAL: [&str; 4] = ["special", "xattr", "external", "external_file_size"];

/// Twelve counts of entries, catalogs and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Regular files, chunked and external ones included.
    pub regular: u64,
    /// Symbolic links.
    pub symlink: u64,
    /// FIFOs, sockets and devices.
    pub special: u64,
    /// Directories, the catalog's root included.
    pub directory: u64,
    /// Nested catalogs.
    pub nested: u64,
    /// Files in chunks.
    pub chunked: u64,
    /// Chunks.
    pub chunks: u64,
    /// Plain bytes of regular files.
    pub file_size: u64,
    /// Plain bytes of files in chunks.
    pub chunked_size: u64,
    /// Entries with extended attributes.
    pub xattr: u64,
    /// External files.
    pub external: u64,
    /// Plain bytes of external files.
    pub external_file_size: u64,
}

impl Counters {
    /// Entries of all types.
    pub fn entries(&self) -> u64 {
        self.regular + self.symlink + self.special + self.directory
    }

    fn to_array(self) -> [u64; COUNT] {
        [
            self.regular,
            self.symlink,
            self.special,
            self.directory,
            self.nested,
            self.chunked,
            self.chunks,
            self.file_size,
            self.chunked_size,
            self.xattr,
            self.external,
            self.external_file_size,
        ]
    }

    fn from_array(values: [u64; COUNT]) -> Self {
        let [
            regular,
            symlink,
            special,
            directory,
            nested,
            chunked,
            chunks,
            file_size,
            chunked_size,
            xattr,
            external,
            external_file_size,
        ] = values;
        Self {
            regular,
            symlink,
            special,
            directory,
            nested,
            chunked,
            chunks,
            file_size,
            chunked_size,
            xattr,
            external,
            external_file_size,
        }
    }

    /// Reads what [`Display`](fmt::Display) prints.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let values: Vec<u64> = text.split(' ').map(str::parse).collect::<std::result::Result<_, _>>().ok()?;
        values.try_into().ok().map(Self::from_array)
    }

    /// Counts the rows of a catalog.
    pub(super) fn recount(database: &Database, shape: &Shape) -> Result<Self> {
        let mut counters = Self::default();
        // Every catalog that is stored is counted: adding up here takes half the time that it takes the database.
        let sql = format!("SELECT mode, flags, size, {} IS NOT NULL FROM catalog", shape.xattr_column);
        database.visit(&sql, |row| {
            // What is no number is wrong, and counts as 0.
            let number = |column| -> rusqlite::Result<u64> {
                Ok(row.get_ref(column)?.as_i64().map_or(0, |number| number.max(0).unsigned_abs()))
            };
            let (mode, flags, size) = (number(0)?, number(1)?, number(2)?);
            let is = |bit: u32| flags & u64::from(bit) != 0;
            // By mode: the flag for special files came late, and older rows do not have it.
            let file_type = u32::try_from(mode & u64::from(type_bits::MASK)).unwrap_or(0);
            match file_type {
                type_bits::FILE => {
                    counters.regular += 1;
                    counters.file_size = counters.file_size.saturating_add(size);
                }
                type_bits::SYMLINK => counters.symlink += 1,
                type_bits::DIRECTORY => counters.directory += 1,
                _ => counters.special += 1,
            }
            if is(flag::CHUNKED) {
                counters.chunked += 1;
                counters.chunked_size = counters.chunked_size.saturating_add(size);
            }
            if is(flag::EXTERNAL) {
                counters.external += 1;
                counters.external_file_size = counters.external_file_size.saturating_add(size);
            }
            counters.xattr += u64::from(row.get::<_, bool>(3)?);
            Ok(())
        })?;
        let count = |table: &str| -> Result<u64> {
            let sql = format!("SELECT count(*) FROM {table}");
            Ok(database.query_one(&sql, [], |row| row.get::<_, i64>(0))?.unwrap_or(0).unsigned_abs())
        };
        counters.nested = count("nested_catalogs")?;
        counters.chunks = if shape.chunks { count("chunks")? } else { 0 };
        Ok(counters)
    }
}

impl fmt::Display for Counters {
    /// Prints the numbers in the order of the fields.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = self.to_array().map(|number| number.to_string());
        f.write_str(&numbers.join(" "))
    }
}

impl Add for Counters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let (left, right) = (self.to_array(), other.to_array());
        Self::from_array(std::array::from_fn(|index| left[index] + right[index]))
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Counters {
    fn sum<I: Iterator<Item = Self>>(iterator: I) -> Self {
        iterator.fold(Self::default(), Add::add)
    }
}

/// The counters of a catalog as they are, right or wrong: of itself, and of all catalogs below it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredCounters {
    own: [Option<i64>; COUNT],
    subtree: [Option<i64>; COUNT],
    /// Counters that the schema has.
    required: [bool; COUNT],
}

impl StoredCounters {
    pub(super) fn read(database: &Database, shape: &Shape) -> Result<Self> {
        let rows =
            database.query("SELECT CAST(counter AS TEXT), CAST(value AS INTEGER) FROM statistics", [], |row| {
                Ok((row.get::<_, Option<String>>(0)?, row.get::<_, Option<i64>>(1)?))
            })?;
        let find = |prefix: &str| {
            NAMES.map(|name| {
                let key = format!("{prefix}{name}");
                rows.iter().find(|(counter, _)| counter.as_ref() == Some(&key)).and_then(|(_, value)| *value)
            })
        };
        let revision: u32 = database.parse_property("schema_revision")?.unwrap_or(0);
        // The schema revisions that brought what older ones lack.
        let since = |name| match name {
            "xattr" => 2,
            "external" | "external_file_size" => 3,
            "special" => 5,
            _ => 0,
        };
        let required = NAMES.map(|name| shape.counts_everything() && revision >= since(name));
        Ok(Self { own: find("self_"), subtree: find("subtree_"), required })
    }

    /// In words, each counter of the catalog itself that is not what the rows have.
    pub(crate) fn own_differences(&self, expected: &Counters) -> Vec<String> {
        self.differences("self_", &self.own, expected)
    }

    /// In words, each counter of the catalogs below that is not their sum.
    pub(crate) fn subtree_differences(&self, expected: &Counters) -> Vec<String> {
        self.differences("subtree_", &self.subtree, expected)
    }

    fn differences(&self, prefix: &str, stored: &[Option<i64>; COUNT], expected: &Counters) -> Vec<String> {
        let mut words = Vec::new();
        for (index, expected) in expected.to_array().into_iter().enumerate() {
            let name = NAMES[index];
            match stored[index] {
                Some(value) if u64::try_from(value) != Ok(expected) => {
                    words.push(format!("{prefix}{name} is {value}, and should be {expected}"));
                }
                None if self.required[index] => words.push(format!("{prefix}{name} is missing")),
                _ => {}
            }
        }
        words
    }
}

/// All counters of a catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Of the catalog itself.
    pub own: Counters,
    /// Of all catalogs below it.
    pub subtree: Counters,
}

impl Statistics {
    /// Of the whole tree from this catalog down.
    pub fn total(&self) -> Counters {
        self.own + self.subtree
    }

    /// Reads the table.
    ///
    /// # Errors
    /// `Malformed` if a counter is missing that every revision of schema 2.5 has, or negative.
    pub(super) fn read(database: &Database, shape: &Shape) -> Result<Self> {
        let rows = database.query("SELECT counter, value FROM statistics", [], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
        })?;
        let read = |prefix: &str| -> Result<Counters> {
            let mut values = [0; COUNT];
            for (value, name) in values.iter_mut().zip(NAMES) {
                let key = format!("{prefix}{name}");
                *value = match rows.iter().find(|(counter, _)| *counter == key) {
                    Some((_, number)) => u64::try_from(*number).map_err(|_| {
                        Error::malformed(database.what(), format!("counter {key} is negative: {number}"))
                    })?,
                    None if OPTIONAL.contains(&name) || !shape.counts_everything() => 0,
                    None => return Err(Error::malformed(database.what(), format!("counter {key} is missing"))),
                };
            }
            Ok(Counters::from_array(values))
        };
        Ok(Self { own: read("self_")?, subtree: read("subtree_")? })
    }

    /// Writes all 24 rows.
    pub(crate) fn write(&self, database: &Database) -> Result<()> {
        let rows = [("self_", self.own.to_array()), ("subtree_", self.subtree.to_array())];
        for (prefix, values) in rows {
            for (name, value) in NAMES.iter().zip(values) {
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                let sql = "INSERT OR REPLACE INTO statistics (counter, value) VALUES (?1, ?2)";
                database.execute(sql, (format!("{prefix}{name}"), value))?;
            }
        }
        Ok(())
    }
}
