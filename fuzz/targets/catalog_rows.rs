//! Rows with anything in their columns: those that are read as entries survive being written by us.
#![no_main]

use std::sync::OnceLock;

use cvmfs_core::catalog::{Catalog, Finish, Row, WritableCatalog};
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::hash::{Algorithm, ContentHash};
use cvmfs_core::path::{PathHash, RepoPath};
use cvmfs_fuzz::{Input, scratch};
use libfuzzer_sys::fuzz_target;
use rusqlite::Connection;
use rusqlite::types::Value;

fn finish() -> Finish {
    Finish {
        now: UnixSeconds(1_800_000_000),
        previous: ContentHash::null(Algorithm::Sha1),
        revision: Some(1),
        subtree: Default::default(),
    }
}

/// An empty catalog of ours.
fn template() -> &'static [u8] {
    static TEMPLATE: OnceLock<Vec<u8>> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let catalog = WritableCatalog::create(RepoPath::root(), scratch()).expect("a catalog");
        let finished = catalog.finish(&finish()).expect("a finished catalog");
        std::fs::read(&finished.file).expect("its file")
    })
}

fn value(input: &mut Input<'_>) -> Value {
    match input.byte() % 8 {
        0 => Value::Null,
        1 => Value::Real(f64::from_bits(input.number().cast_unsigned())),
        2 => Value::Text(String::from_utf8_lossy(input.bytes()).into_owned()),
        3 => Value::Blob(input.bytes().to_vec()),
        4 => Value::Integer(input.number()),
        _ => Value::Integer(i64::from(input.byte())),
    }
}

/// What sane catalogs have in a column, most of the time.
fn sane(column: &str, input: &mut Input<'_>) -> Value {
    let choice = input.byte();
    if choice % 16 == 15 {
        return value(input);
    }
    match column {
        "hash" if choice % 2 == 0 => Value::Blob(vec![choice; 20]),
        "hash" | "mtimens" | "xattr" if choice % 3 == 0 => Value::Null,
        "xattr" => Value::Blob(input.bytes().to_vec()),
        "mode" => Value::Integer(match choice % 7 {
            0 => 0o040_755,
            1 => 0o120_777,
            2 => 0o010_644,
            3 => 0o140_644,
            4 => 0o020_600,
            _ => 0o100_644,
        }),
        "flags" => Value::Integer(match choice % 8 {
            0 => 1,
            1 => 4 | 8,
            2 => 4 | 16,
            3 => 4 | 64,
            4 => 33,
            5 => 3,
            _ => 4 | i64::from(input.byte()) << 8,
        }),
        "size" if choice % 4 == 0 => Value::Integer(2 * i64::from(choice)),
        "symlink" => Value::Blob(input.bytes().to_vec()),
        _ => Value::Integer(i64::from(choice)),
    }
}

fn fill(connection: &Connection, input: &mut Input<'_>) -> rusqlite::Result<()> {
    let columns = ["hash", "size", "mode", "mtime", "mtimens", "flags", "symlink", "uid", "gid", "xattr", "hardlinks"];
    let sql = format!(
        "INSERT OR REPLACE INTO catalog (name, md5path_1, md5path_2, parent_1, parent_2, {}) \
         VALUES (?, ?, ?, ?, ?{})",
        columns.join(", "),
        ", ?".repeat(columns.len())
    );
    let root = RepoPath::root().path_hash();
    for row in 0..20 {
        if input.is_empty() {
            break;
        }
        let name = if row == 0 { Vec::new() } else { input.bytes().to_vec() };
        let path = RepoPath::root().child(&name).unwrap_or_default().path_hash();
        let parent = if row == 0 { PathHash::NULL } else { root };
        let mut values = vec![Value::Blob(name)];
        values.extend([path.first, path.second, parent.first, parent.second].map(Value::Integer));
        values.extend(columns.iter().map(|column| sane(column, input)));
        connection.execute(&sql, rusqlite::params_from_iter(values))?;
        let mut offset = 0;
        for _ in 0..input.byte() % 4 {
            let size = i64::from(input.byte());
            let values = match input.byte() % 8 {
                0 => [value(input), value(input), value(input)],
                choice => [Value::Integer(offset), Value::Integer(size), Value::Blob(vec![choice; 20])],
            };
            offset += size;
            let [offset, size, hash] = values;
            let sql = "INSERT OR REPLACE INTO chunks (md5path_1, md5path_2, offset, size, hash) VALUES (?, ?, ?, ?, ?)";
            connection.execute(sql, (path.first, path.second, offset, size, hash))?;
        }
    }
    if input.byte() % 4 == 0 {
        let sql = "INSERT OR REPLACE INTO nested_catalogs (path, sha1, size) VALUES (?, ?, ?)";
        connection.execute(sql, [value(input), value(input), value(input)])?;
        connection.execute("INSERT OR REPLACE INTO statistics VALUES (?, ?)", [value(input), value(input)])?;
        connection.execute("INSERT OR REPLACE INTO properties VALUES (?, ?)", [value(input), value(input)])?;
    }
    Ok(())
}

/// What is lost or set right by writing a row.
fn normalised(mut row: Row) -> Row {
    row.entry.xattrs.split_oversized();
    row
}

fuzz_target!(|data: &[u8]| {
    let path = scratch().join("catalog");
    std::fs::write(&path, template()).expect("room for a catalog");
    {
        let connection = Connection::open(&path).expect("our own file");
        let pragmas = "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN;";
        connection.execute_batch(pragmas).expect("an open database");
        if fill(&connection, &mut Input(data)).is_err() {
            return;
        }
        connection.execute_batch("COMMIT").expect("room for the rows");
    }
    let catalog = Catalog::open(&path).expect("a catalog, whatever its rows");
    let root = RepoPath::root();
    let _ = (catalog.statistics(), catalog.recount(), catalog.nested(), catalog.nested_at(&root));
    let _ = (catalog.revision(), catalog.last_modified(), catalog.ttl(), catalog.root(), catalog.previous());
    // One impossible row is an error of the directory.
    let (Ok(found), Ok(mut rows)) = (catalog.find(&root), catalog.list(&root)) else { return };
    // It may say that it is in itself.
    if !rows.iter().any(|row| row.path == root.path_hash()) {
        rows.extend(found);
    }
    rows.sort_by_key(|row| row.path);
    let mut copy = WritableCatalog::create(root.clone(), scratch()).expect("a catalog");
    let rows: Vec<Row> = rows.into_iter().map(normalised).collect();
    for row in &rows {
        copy.add(row).expect("what was read can be written");
    }
    let finished = copy.finish(&finish()).expect("a finished catalog");
    let copy = Catalog::open(&finished.file).expect("our own catalog");
    let found = copy.find(&root).expect("our own row");
    let mut again = copy.list(&root).expect("our own rows");
    if !again.iter().any(|row| row.path == root.path_hash()) {
        again.extend(found);
    }
    again.sort_by_key(|row| row.path);
    assert_eq!(again, rows);
});
