//! The counters of a catalog: of itself, and of all catalogs below it.

use std::fmt;
use std::ops::{Add, AddAssign};

use super::schema::Shape;
use crate::database::Database;
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
        use crate::entry::type_bits::{DIRECTORY, FILE as REGULAR, MASK, SYMLINK};
        // By mode: the flag for special files came late, and older rows do not have it.
        let file_type = format!("(mode & {MASK})");
        let regular = format!("{file_type} = {REGULAR}");
        let (chunks, xattrs) = (if shape.chunks { "(SELECT count(*) FROM chunks)" } else { "0" }, shape.xattr_column);
        let sql = format!(
            "SELECT
            count(*) FILTER (WHERE {regular}), count(*) FILTER (WHERE {file_type} = {SYMLINK}),
            count(*) FILTER (WHERE {file_type} NOT IN ({REGULAR}, {SYMLINK}, {DIRECTORY})),
            count(*) FILTER (WHERE {file_type} = {DIRECTORY}), (SELECT count(*) FROM nested_catalogs),
            count(*) FILTER (WHERE flags & 64), {chunks},
            coalesce(sum(size) FILTER (WHERE {regular}), 0), coalesce(sum(size) FILTER (WHERE flags & 64), 0),
            count({xattrs}), count(*) FILTER (WHERE flags & 128), coalesce(sum(size) FILTER (WHERE flags & 128), 0)
            FROM catalog"
        );
        let values = database.query_one(&sql, [], |row| {
            let mut values = [0; COUNT];
            for (index, value) in values.iter_mut().enumerate() {
                *value = row.get::<_, i64>(index)?;
            }
            Ok(values)
        })?;
        let values = values.unwrap_or_default().map(|value| u64::try_from(value).unwrap_or(0));
        Ok(Self::from_array(values))
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
    /// `Malformed` if a counter is missing that every schema revision has, or negative.
    pub(crate) fn read(database: &Database) -> Result<Self> {
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
                    None if OPTIONAL.contains(&name) => 0,
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
