//! Several statistics databases of one repository become one.
//!
//! Source: `cvmfs/server/cvmfs_server_merge_stats.sh`.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, params_from_iter};
use serde::Serialize;

use super::rows::open_read_only;
use super::{About, RENAMED, Table, columns_of, create};
use crate::error::{DatabaseContext as _, Error, IoContext as _, Result};

/// What became of a merge.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Merged {
    /// The repository.
    pub name: String,
    /// Rows about publications.
    pub publications: u64,
    /// Rows about collections of garbage.
    pub collections: u64,
    /// Rows that several files had, and that are there once.
    pub repeated: u64,
}

/// Puts the rows of some files, in the order of their times, into a new one.
///
/// Files may be of different revisions of the form. `output` may be one of `inputs`; it is replaced as a whole when all
/// is done.
///
/// # Errors
/// `NotFound` for a missing file, `InvalidInput` if they are not all of one repository, `Conflict` if `output` is
/// something else than a statistics database.
pub fn merge(inputs: &[PathBuf], output: &Path) -> Result<Merged> {
    let mut sources = Vec::new();
    for path in inputs {
        let connection = open_read_only(path)?;
        let about = About::read(&connection, path)?;
        sources.push((path, connection, about));
    }
    let Some((first, _, About { name, .. })) = sources.first() else {
        return Err(Error::invalid("statistics to merge", "no file is named"));
    };
    if let Some((other, _, about)) = sources.iter().find(|(_, _, about)| about.name != *name) {
        let reason = format!("it is about {}, and {} about {name}", about.name, first.display());
        return Err(Error::invalid(other.display().to_string(), reason));
    }
    refuse_other_content(output)?;

    let directory = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let scratch = tempfile::Builder::new().prefix(".merged-stats-").tempdir_in(directory).at(directory)?;
    let file = scratch.path().join("stats.db");
    let mut merged = Merged { name: name.clone(), ..Merged::default() };
    {
        let connection = Connection::open(&file).in_database(&file.display())?;
        create(&connection, name).in_database(&file.display())?;
        for table in Table::ALL {
            let (rows, repeated) = merge_table(&sources, table)?;
            write(&connection, table, &rows).in_database(&file.display())?;
            merged.repeated += repeated;
            match table {
                Table::Publications => merged.publications = rows.len() as u64,
                Table::Collections => merged.collections = rows.len() as u64,
            }
        }
    }
    fs::rename(&file, output).at(output)?;
    Ok(merged)
}

fn refuse_other_content(output: &Path) -> Result<()> {
    let is_empty = fs::metadata(output).map_or(true, |metadata| metadata.is_file() && metadata.len() == 0);
    let is_ours = || open_read_only(output).and_then(|connection| About::read(&connection, output)).is_ok();
    if is_empty || is_ours() {
        return Ok(());
    }
    Err(Error::conflict(output.display().to_string(), "it exists, and is no statistics database"))
}

/// The rows that the files have together, without keys, and how many are left out because an earlier file has them.
fn merge_table(sources: &[(&PathBuf, Connection, About)], table: Table) -> Result<(Vec<Vec<SqlValue>>, u64)> {
    let (mut merged, mut repeated, mut known) = (Vec::<Vec<SqlValue>>::new(), 0, HashSet::new());
    for (path, connection, _) in sources {
        let rows = read(connection, table).in_database(&path.display())?;
        let earlier = merged.len();
        for row in rows {
            if known.contains(&format!("{row:?}")) {
                repeated += 1;
            } else {
                merged.push(row);
            }
        }
        known.extend(merged[earlier..].iter().map(|row| format!("{row:?}")));
    }
    let start = |row: &Vec<SqlValue>| match row.first() {
        Some(SqlValue::Text(text)) => text.clone(),
        _ => String::new(),
    };
    merged.sort_by_key(start);
    Ok((merged, repeated))
}

/// The rows of a file in the columns of today.
fn read(connection: &Connection, table: Table) -> rusqlite::Result<Vec<Vec<SqlValue>>> {
    let present = columns_of(connection, table)?;
    let has = |wanted: &str| present.iter().any(|column| column == wanted);
    let columns: Vec<&str> = table
        .columns()
        .into_iter()
        .map(|column| match RENAMED.iter().find(|(_, new)| *new == column) {
            _ if has(column) => column,
            Some((old, _)) if has(old) => old,
            _ => "NULL",
        })
        .collect();
    let sql = format!("SELECT {} FROM {} ORDER BY {}", columns.join(", "), table.name(), table.key());
    let mut statement = connection.prepare(&sql)?;
    let row = |row: &rusqlite::Row<'_>| (0..columns.len()).map(|at| row.get(at)).collect();
    statement.query_map([], row)?.collect()
}

fn write(connection: &Connection, table: Table, rows: &[Vec<SqlValue>]) -> rusqlite::Result<()> {
    let columns = table.columns();
    let marks = vec!["?"; columns.len()].join(", ");
    connection.execute_batch("BEGIN")?;
    let sql = format!("INSERT INTO {} ({}) VALUES ({marks})", table.name(), columns.join(", "));
    let mut statement = connection.prepare(&sql)?;
    for row in rows {
        statement.execute(params_from_iter(row))?;
    }
    connection.execute_batch("COMMIT")
}
