//! The statistics database of a repository: one row a publication, one row a collection of garbage.
//!
//! ```text
//! commit, gc ─► StatisticsFile ─► rows, for people        several files ─► merge ─► one
//! ```
//!
//! It is a record for people, in the reference's form: failing to write it costs nothing but the row. Files of older
//! revisions of the form are brought up to date when a row is added.
//!
//! Source: `cvmfs/statistics_database.{h,cc}`.

mod merge;
mod rows;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _};

use crate::clock::UnixSeconds;
use crate::error::{DatabaseContext as _, Error, Result};
use crate::path::RepositoryName;
use crate::server::{ServerRoot, Variables};

pub use merge::{Merged, merge};
pub use rows::{Rows, Value};

/// How long another process may keep the file.
const PATIENCE: Duration = Duration::from_secs(1);
/// The form that is written, and its revision.
const SCHEMA: (&str, u32) = ("1.0", 4);
/// Days that a row stays unless the configuration says otherwise.
const DEFAULT_DAYS: u32 = 365;

/// What a column was called in revision 1 of the form, and what it is called since.
const RENAMED: [(&str, &str); 2] = [("finished_time", "finish_time"), ("duplicated_files", "chunks_duplicated")];

/// One of the two tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// `publish_statistics`: a row a publication.
    Publications,
    /// `gc_statistics`: a row a collection of garbage.
    Collections,
}

impl Table {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Publications, Self::Collections];

    /// The one that is called so: by its name, or the first word of that.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|table| table.name() == name || table.name().strip_suffix("_statistics") == Some(name))
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Publications => "publish_statistics",
            Self::Collections => "gc_statistics",
        }
    }

    const fn key(self) -> &'static str {
        match self {
            Self::Publications => "publish_id",
            Self::Collections => "gc_id",
        }
    }

    /// The columns with numbers, behind key and times.
    const fn numbers(self) -> &'static [&'static str] {
        match self {
            Self::Publications => &[
                "revision",
                "files_added",
                "files_removed",
                "files_changed",
                "chunks_added",
                "chunks_duplicated",
                "catalogs_added",
                "directories_added",
                "directories_removed",
                "directories_changed",
                "symlinks_added",
                "symlinks_removed",
                "symlinks_changed",
                "sz_bytes_added",
                "sz_bytes_removed",
                "sz_bytes_uploaded",
                "sz_catalog_bytes_uploaded",
                "success",
            ],
            Self::Collections => &[
                "n_preserved_catalogs",
                "n_condemned_catalogs",
                "n_condemned_objects",
                "sz_condemned_bytes",
                "n_duplicate_delete_requests",
                "success",
            ],
        }
    }

    /// All columns but the key.
    fn columns(self) -> Vec<&'static str> {
        ["start_time", "finish_time"].iter().chain(self.numbers()).copied().collect()
    }

    fn definition(self) -> String {
        let numbers: String = self.numbers().iter().map(|column| format!(", {column} INTEGER")).collect();
        let (name, key) = (self.name(), self.key());
        format!("CREATE TABLE {name} ({key} INTEGER PRIMARY KEY, start_time TEXT, finish_time TEXT{numbers});")
    }
}

/// The statistics database of a repository, which need not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatisticsFile {
    /// `CVMFS_STATISTICS_DB`: where it is.
    pub path: PathBuf,
    /// The repository.
    pub name: RepositoryName,
    /// `CVMFS_STATS_DB_DAYS_TO_KEEP`: how long a row stays; 0 for ever.
    pub days_to_keep: u32,
}

/// What a row is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) start: UnixSeconds,
    pub(crate) took: Duration,
}

impl StatisticsFile {
    /// A file that exists.
    ///
    /// # Errors
    /// `NotFound`; `Malformed` if it is something else.
    pub fn open(path: &Path) -> Result<Self> {
        let about = About::read(&rows::open_read_only(path)?, path)?;
        Ok(Self { path: path.to_owned(), name: about.name.parse()?, days_to_keep: DEFAULT_DAYS })
    }

    /// The usual place in a spool directory.
    pub fn in_spool(spool: &Path, name: &RepositoryName) -> Self {
        Self { path: spool.join("stats.db"), name: name.clone(), days_to_keep: DEFAULT_DAYS }
    }

    /// That of a repository of this server, one that is published or a replica.
    ///
    /// # Errors
    /// `NotFound` if the repository is not configured.
    pub fn of_repository(root: &ServerRoot, alias: &RepositoryName) -> Result<Self> {
        let mut variables = Variables::load(&root.server_conf(alias))?;
        let replica = root.config_dir(alias).join("replica.conf");
        if replica.is_file() {
            variables.extend(Variables::load(&replica)?);
        }
        let spool = variables.get("CVMFS_SPOOL_DIR").map_or_else(|| root.spool_dir(alias), PathBuf::from);
        let name = variables.parse("CVMFS_REPOSITORY_NAME")?.unwrap_or_else(|| alias.clone());
        Self::configured(&variables, &spool, &name)
    }

    /// What the configuration says.
    ///
    /// # Errors
    /// `InvalidInput` naming file and variable.
    pub fn configured(variables: &Variables, spool: &Path, name: &RepositoryName) -> Result<Self> {
        let usual = Self::in_spool(spool, name);
        Ok(Self {
            path: variables.get("CVMFS_STATISTICS_DB").map_or(usual.path, PathBuf::from),
            days_to_keep: variables.parse("CVMFS_STATS_DB_DAYS_TO_KEEP")?.unwrap_or(usual.days_to_keep),
            name: usual.name,
        })
    }

    /// Adds a row, and drops those of both tables that are too old. `numbers` are those of the table, in its order.
    ///
    /// # Errors
    /// `InvalidInput` if the file belongs to another repository, `Database` if it cannot be written.
    pub(crate) fn add(&self, table: Table, run: Run, numbers: &[u64]) -> Result<()> {
        let connection = self.connect()?;
        let finish = UnixSeconds(run.start.0.saturating_add_unsigned(run.took.as_secs()));
        // A database has no larger numbers.
        let numbers = numbers.iter().map(|number| i64::try_from(*number).unwrap_or(i64::MAX).to_string());
        let values: Vec<String> = ["?1".to_owned(), "?2".to_owned()].into_iter().chain(numbers).collect();
        let (columns, values) = (table.columns().join(", "), values.join(", "));
        let sql = format!("INSERT INTO {} ({columns}) VALUES ({values})", table.name());
        let oldest = UnixSeconds(run.start.0 - i64::from(self.days_to_keep) * 86_400).date_and_time();
        let write = || -> rusqlite::Result<()> {
            connection.execute(&sql, [run.start.date_and_time(), finish.date_and_time()])?;
            if self.days_to_keep > 0 {
                for table in Table::ALL {
                    connection.execute(&format!("DELETE FROM {} WHERE start_time < ?1", table.name()), [&oldest])?;
                }
            }
            Ok(())
        };
        write().in_database(&self.path.display())
    }

    /// Opens the file to add to it; a new one if there is none.
    fn connect(&self) -> Result<Connection> {
        let what = self.path.display();
        let mut connection = Connection::open(&self.path).in_database(&what)?;
        connection.busy_timeout(PATIENCE).in_database(&what)?;
        create(&connection, self.name.as_str()).in_database(&what)?;
        let about = About::read(&connection, &self.path)?;
        if about.name != self.name.as_str() {
            return Err(Error::invalid(what.to_string(), format!("it has the statistics of {}", about.name)));
        }
        if about.revision < SCHEMA.1 {
            upgrade(&mut connection).in_database(&what)?;
        }
        Ok(connection)
    }
}

/// What the properties of a file say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct About {
    name: String,
    revision: u32,
}

impl About {
    /// # Errors
    /// `Malformed` for other databases, `Unsupported` for forms that nobody knows yet.
    fn read(connection: &Connection, path: &Path) -> Result<Self> {
        let what = || path.display().to_string();
        let tables = "SELECT count(*) FROM sqlite_master WHERE type = 'table' \
                      AND name IN ('properties', 'publish_statistics', 'gc_statistics')";
        let count: u32 = connection.query_row(tables, [], |row| row.get(0)).in_database(&path.display())?;
        if count != 3 {
            return Err(Error::malformed(what(), "it is no statistics database"));
        }
        let property = |key: &str| -> Result<Option<String>> {
            let sql = "SELECT CAST(value AS TEXT) FROM properties WHERE key = ?1";
            connection.query_row(sql, [key], |row| row.get(0)).optional().in_database(&path.display())
        };
        let missing = |key: &str| Error::malformed(what(), format!("property {key} is missing"));
        let schema = property("schema")?.ok_or_else(|| missing("schema"))?;
        // Upstream: written as a floating point number, with more or fewer zeros.
        if schema.parse::<f32>().ok().is_none_or(|schema| (schema - 1.0).abs() >= 0.1) {
            return Err(Error::Unsupported { what: format!("{}: a statistics database of schema {schema}", what()) });
        }
        let revision = property("schema_revision")?.and_then(|text| text.parse().ok());
        Ok(Self {
            name: property("repo_name")?.ok_or_else(|| missing("repo_name"))?,
            revision: revision.ok_or_else(|| missing("schema_revision"))?,
        })
    }
}

/// Makes the tables of an empty file.
fn create(connection: &Connection, name: &str) -> rusqlite::Result<()> {
    let is_empty = || Ok::<_, rusqlite::Error>(!connection.prepare("SELECT 1 FROM sqlite_master")?.exists([])?);
    if !is_empty()? {
        return Ok(());
    }
    connection.execute_batch("BEGIN IMMEDIATE")?;
    // Another process may have been faster.
    if !is_empty()? {
        return connection.execute_batch("ROLLBACK");
    }
    let properties = "CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));";
    let tables: String = Table::ALL.iter().map(|table| table.definition()).collect();
    connection.execute_batch(&format!("{properties}{tables}"))?;
    let revision = SCHEMA.1.to_string();
    for property in [("schema", SCHEMA.0), ("schema_revision", &revision), ("repo_name", name)] {
        connection.execute("INSERT INTO properties VALUES (?1, ?2)", property)?;
    }
    connection.execute_batch("COMMIT")
}

/// Gives the tables of an older file the columns of today, as the reference does.
fn upgrade(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for table in Table::ALL {
        let name = table.name();
        for column in columns_of(&transaction, table)? {
            if let Some((old, new)) = RENAMED.iter().find(|(old, _)| *old == column) {
                transaction.execute_batch(&format!("ALTER TABLE {name} RENAME COLUMN {old} TO {new}"))?;
            }
        }
        let present = columns_of(&transaction, table)?;
        for column in table.columns().iter().filter(|column| !present.iter().any(|present| present == *column)) {
            transaction.execute_batch(&format!("ALTER TABLE {name} ADD {column} INTEGER"))?;
        }
    }
    transaction.execute("UPDATE properties SET value = ?1 WHERE key = 'schema_revision'", [SCHEMA.1.to_string()])?;
    transaction.commit()
}

/// The columns that a table has, in its order.
fn columns_of(connection: &Connection, table: Table) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT name FROM pragma_table_info(?1)";
    connection.prepare(sql)?.query_map([table.name()], |row| row.get(0))?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixSeconds = UnixSeconds(1_800_000_000);

    /// The tables of revision 1, as the reference's first version made them.
    const REVISION_1: &str = "
        CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
        INSERT INTO properties VALUES ('schema', '1.0'), ('schema_revision', '1'), ('repo_name', 'a.example.org');
        CREATE TABLE publish_statistics (publish_id INTEGER PRIMARY KEY, start_time TEXT, finished_time TEXT,
          files_added INTEGER, files_removed INTEGER, files_changed INTEGER, duplicated_files INTEGER,
          directories_added INTEGER, directories_removed INTEGER, directories_changed INTEGER, sz_bytes_added INTEGER,
          sz_bytes_removed INTEGER, sz_bytes_uploaded INTEGER);
        CREATE TABLE gc_statistics (gc_id INTEGER PRIMARY KEY, start_time TEXT, finished_time TEXT,
          n_preserved_catalogs INTEGER, n_condemned_catalogs INTEGER, n_condemned_objects INTEGER,
          sz_condemned_bytes INTEGER);
        INSERT INTO publish_statistics (start_time, finished_time, files_added, duplicated_files)
          VALUES ('2027-01-01 00:00:00', '2027-01-01 00:00:05', 7, 3);";

    fn file(directory: &tempfile::TempDir, name: &str) -> StatisticsFile {
        StatisticsFile {
            path: directory.path().join(name),
            name: "a.example.org".parse().unwrap(),
            days_to_keep: DEFAULT_DAYS,
        }
    }

    fn collection(file: &StatisticsFile, start: UnixSeconds, numbers: [u64; 6]) -> Result<()> {
        file.add(Table::Collections, Run { start, took: Duration::from_secs(9) }, &numbers)
    }

    fn old_file(path: &Path) {
        Connection::open(path).unwrap().execute_batch(REVISION_1).unwrap();
    }

    #[test]
    fn old_files_get_the_columns_of_today_and_keep_their_rows() {
        let directory = tempfile::tempdir().unwrap();
        let file = file(&directory, "old.db");
        old_file(&file.path);
        collection(&file, NOW, [1, 2, 3, 4, 5, 1]).unwrap();
        let rows = file.rows(Table::Publications).unwrap();
        let row = |column: &str| {
            let at = rows.columns.iter().position(|name| name == column).unwrap();
            rows.rows[0][at].to_string()
        };
        assert_eq!((row("finish_time"), row("chunks_duplicated")), ("2027-01-01 00:00:05".into(), "3".into()));
        assert_eq!((row("files_added"), row("revision"), row("success")), ("7".into(), String::new(), String::new()));
        let row: Vec<String> = file.rows(Table::Collections).unwrap().rows[0].iter().map(ToString::to_string).collect();
        // The columns that came later are behind the others.
        assert_eq!(row, ["1", "2027-01-15 08:00:00", "2027-01-15 08:00:09", "1", "2", "3", "4", "5", "1"]);
    }

    #[test]
    fn rows_go_when_they_are_too_old_unless_they_are_kept_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        for (days, left) in [(10, 1), (0, 2), (11, 2)] {
            let file = StatisticsFile { days_to_keep: days, ..file(&directory, &format!("{days}.db")) };
            collection(&file, NOW, [0; 6]).unwrap();
            let publication = Run { start: UnixSeconds(NOW.0 + 10 * 86_400 + 1), took: Duration::ZERO };
            file.add(Table::Publications, publication, &[0; 18]).unwrap();
            let count = |table| file.rows(table).unwrap().rows.len();
            assert_eq!(count(Table::Collections) + count(Table::Publications), left, "{days}");
        }
    }

    #[test]
    fn what_is_no_such_file_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = file(&directory, "x.db");
        let new = |sql: &str| {
            let _ = std::fs::remove_file(&file.path);
            Connection::open(&file.path).unwrap().execute_batch(sql).unwrap();
        };
        new("CREATE TABLE a (b)");
        assert!(matches!(collection(&file, NOW, [0; 6]), Err(Error::Malformed { .. })));
        new(&REVISION_1.replace("'1.0'", "'2.0'"));
        assert!(matches!(collection(&file, NOW, [0; 6]), Err(Error::Unsupported { .. })));
        new(&REVISION_1.replace("'a.example.org'", "'b.example.org'"));
        assert!(matches!(collection(&file, NOW, [0; 6]), Err(Error::InvalidInput { .. })));
        std::fs::write(&file.path, "no database at all, but long enough to be looked at").unwrap();
        assert!(matches!(collection(&file, NOW, [0; 6]), Err(Error::Database { .. })));
    }

    #[test]
    fn files_are_merged_by_the_names_of_their_columns() {
        let directory = tempfile::tempdir().unwrap();
        let (old, new, out) = (file(&directory, "old.db"), file(&directory, "new.db"), file(&directory, "out.db"));
        old_file(&old.path);
        collection(&new, NOW, [1, 2, 3, 4, 5, 1]).unwrap();
        collection(&new, UnixSeconds(NOW.0 + 60), [6, 2, 3, 4, 5, 0]).unwrap();
        let inputs = [old.path.clone(), new.path.clone(), old.path.clone()];
        let merged = merge(&inputs, &out.path).unwrap();
        assert_eq!((merged.publications, merged.collections, merged.repeated), (1, 2, 1));
        // The result is one of its own inputs as well.
        let merged = merge(&[out.path.clone(), new.path.clone()], &out.path).unwrap();
        assert_eq!((merged.publications, merged.collections, merged.repeated), (1, 2, 2));
        let rows = out.rows(Table::Publications).unwrap();
        assert_eq!(rows.columns.len(), 21);
        let row: Vec<String> = rows.rows[0].iter().map(ToString::to_string).collect();
        assert_eq!(row[..5], ["1", "2027-01-01 00:00:00", "2027-01-01 00:00:05", "", "7"].map(str::to_owned));
        assert_eq!(About::read(&Connection::open(&out.path).unwrap(), &out.path).unwrap().revision, 4);
        collection(&out, NOW, [0; 6]).unwrap();
    }

    #[test]
    fn nothing_else_is_merged_or_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (file(&directory, "one.db"), file(&directory, "other.db"));
        collection(&one, NOW, [0; 6]).unwrap();
        Connection::open(&other.path)
            .unwrap()
            .execute_batch(&REVISION_1.replace("'a.example.org'", "'b.example.org'"))
            .unwrap();
        let out = directory.path().join("out.db");
        let error = merge(&[one.path.clone(), other.path.clone()], &out).unwrap_err();
        assert!(error.to_string().contains("b.example.org"), "{error}");
        assert!(!out.exists());
        std::fs::write(&out, "something precious").unwrap();
        assert!(matches!(merge(std::slice::from_ref(&one.path), &out), Err(Error::Conflict { .. })));
        assert_eq!(std::fs::read(&out).unwrap(), b"something precious");
        assert!(matches!(merge(&[one.path, directory.path().join("no.db")], &out), Err(Error::NotFound { .. })));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
    }
}
