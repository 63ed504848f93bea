//! Commands that print statistics.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use crate::cli::{GlobalArgs, document};
use crate::error::{IoContext as _, Result};
use crate::statistics::{Rows, StatisticsFile, Table, Value};

/// Arguments of commands that print statistics.
#[derive(Debug, Clone, clap::Args)]
pub struct StatisticsArgs {
    /// Rows about publications (publish) or about collections of garbage (gc)
    #[arg(short, long, value_name = "TABLE", default_value = "publish_statistics", value_parser = parse_table)]
    table: Table,
    /// What stands between two values
    #[arg(short, long, value_name = "TEXT", default_value = "|")]
    separator: String,
    /// Write into a file instead of to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn parse_table(text: &str) -> Result<Table, String> {
    let names = Table::ALL.map(Table::name).join(" or ");
    Table::named(text).ok_or_else(|| format!("there is no such table; it is {names}"))
}

impl StatisticsArgs {
    /// Prints the rows of a database as `sqlite3 -header` does, or as a list of JSON objects.
    pub fn run(&self, global: &GlobalArgs, file: &StatisticsFile) -> Result<()> {
        let Rows { columns, rows } = file.rows(self.table)?;
        if !file.path.exists() {
            global.warn(&[format!("{}: there are no statistics yet", file.path.display())]);
        }
        let heading = (!rows.is_empty()).then(|| columns.join(&self.separator));
        let line = |row: &Vec<Value>| row.iter().map(Value::to_string).collect::<Vec<_>>().join(&self.separator);
        let text: String = heading.into_iter().chain(rows.iter().map(line)).map(|line| line + "\n").collect();
        let objects: Vec<BTreeMap<&String, &Value>> =
            rows.iter().map(|row| columns.iter().zip(row).collect()).collect();
        let Some(output) = &self.output else { return global.print(&objects, &text) };
        let text = if global.json { document(&objects)? + "\n" } else { text };
        fs::write(output, text).at(output)
    }
}
