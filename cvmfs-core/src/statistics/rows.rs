//! The rows of a statistics database, for whoever prints them.

use std::fmt;
use std::path::Path;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;

use super::{PATIENCE, StatisticsFile, Table};
use crate::error::{DatabaseContext as _, Error, Result};

/// The rows of a table.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rows {
    /// Names of the columns, in the order of the file.
    pub columns: Vec<String>,
    /// The rows, the oldest first; a value a column.
    pub rows: Vec<Vec<Value>>,
}

/// A value in a row.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// Not known.
    Null,
    /// A number.
    Integer(i64),
    /// A time, or other text.
    Text(String),
}

impl fmt::Display for Value {
    /// As SQLite's shell prints it: nothing for what is not known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => Ok(()),
            Self::Integer(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl StatisticsFile {
    /// Reads a table; no rows if there is no file yet.
    ///
    /// # Errors
    /// `Database` if it cannot be read.
    pub fn rows(&self, table: Table) -> Result<Rows> {
        let what = self.path.display();
        let connection = match open_read_only(&self.path) {
            Err(Error::NotFound { .. }) => return Ok(Rows::default()),
            connection => connection?,
        };
        let read = || -> rusqlite::Result<Rows> {
            let mut statement = connection.prepare(&format!("SELECT * FROM {} ORDER BY 1", table.name()))?;
            let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
            let (mut found, mut rows) = (statement.query([])?, Vec::new());
            while let Some(row) = found.next()? {
                rows.push((0..columns.len()).map(|at| Ok(value(row.get_ref(at)?))).collect::<rusqlite::Result<_>>()?);
            }
            drop(found);
            Ok(Rows { columns, rows })
        };
        read().in_database(&what)
    }
}

/// Opens a file that is only read.
///
/// # Errors
/// `NotFound` if there is none.
pub(super) fn open_read_only(path: &Path) -> Result<Connection> {
    if !path.exists() {
        return Err(Error::not_found(path.display().to_string()));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(PATIENCE)?;
        Ok(connection)
    };
    open().in_database(&path.display())
}

pub(super) fn value(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Integer(number) => Value::Integer(number),
        ValueRef::Real(number) => Value::Text(number.to_string()),
        ValueRef::Text(text) | ValueRef::Blob(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Null => Value::Null,
    }
}
