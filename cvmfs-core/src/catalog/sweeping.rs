//! Changes of all rows of a catalog at once.

use super::WritableCatalog;
use crate::entry::flag;
use crate::error::Result;
use crate::idmap::IdMap;

impl WritableCatalog {
    /// Maps owners and groups; returns the number of entries that have others now.
    pub(crate) fn map_owners(&mut self, users: &IdMap, groups: &IdMap) -> Result<u64> {
        self.database.batch(
            "CREATE TEMP TABLE users (old INTEGER PRIMARY KEY, new INTEGER);
             CREATE TEMP TABLE groups (old INTEGER PRIMARY KEY, new INTEGER);",
        )?;
        for (column, table, map) in [("uid", "users", users), ("gid", "groups", groups)] {
            let sql = format!("SELECT DISTINCT {column} FROM catalog");
            for old in self.database.query(&sql, [], |row| row.get::<_, i64>(0))? {
                let new = u64::try_from(old).ok().and_then(|old| map.map(old)).map(i64::from);
                if let Some(new) = new.filter(|&new| new != old) {
                    self.database.execute(&format!("INSERT INTO temp.{table} VALUES (?1, ?2)"), (old, new))?;
                }
            }
        }
        let rows = self.sweep(
            "UPDATE catalog SET uid = coalesce((SELECT new FROM temp.users WHERE old = uid), uid),
             gid = coalesce((SELECT new FROM temp.groups WHERE old = gid), gid)
             WHERE uid IN (SELECT old FROM temp.users) OR gid IN (SELECT old FROM temp.groups)",
        )?;
        self.database.connection.flush_prepared_statement_cache();
        self.database.batch("DROP TABLE temp.users; DROP TABLE temp.groups;")?;
        Ok(rows)
    }

    /// Makes files of their own of all names of hard links; returns their number.
    pub(crate) fn separate_hard_links(&mut self) -> Result<u64> {
        self.sweep(&format!("UPDATE catalog SET hardlinks = 1 WHERE flags & {} AND hardlinks <> 1", flag::FILE))
    }

    /// Forgets the objects of whole files for those that have chunks; returns their number.
    pub(crate) fn drop_bulk_hashes(&mut self) -> Result<u64> {
        self.sweep(&format!("UPDATE catalog SET hash = NULL WHERE flags & {} AND hash IS NOT NULL", flag::CHUNKED))
    }

    fn sweep(&mut self, sql: &str) -> Result<u64> {
        let rows = self.database.execute(sql, [])?;
        self.changed |= rows > 0;
        Ok(rows as u64)
    }

    /// Has the catalog written anew even if no row changes.
    pub(crate) fn touch(&mut self) {
        self.changed = true;
    }
}
