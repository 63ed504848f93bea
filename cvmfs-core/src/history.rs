//! The tag database of a repository: named revisions.
//!
//! Source: `cvmfs/history_sql.cc`, `cvmfs/swissknife_history.cc`.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use tempfile::TempPath;

use crate::clock::UnixSeconds;
use crate::database::Database;
use crate::error::{Error, Result};
use crate::hash::{ContentHash, ObjectId, ObjectKind};
use crate::path::RepositoryName;
use crate::storage::ReadStore;

const TABLES: &str = "
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE branches (branch TEXT, parent TEXT, initial_revision INTEGER, \
CONSTRAINT pk_branch PRIMARY KEY (branch), FOREIGN KEY (parent) REFERENCES branches (branch), \
CHECK ((branch <> '') OR (parent IS NULL)), CHECK ((branch = '') OR (parent IS NOT NULL)));
INSERT INTO branches (branch, parent, initial_revision) VALUES ('', NULL, 0);
CREATE TABLE tags (name TEXT, hash TEXT, revision INTEGER, timestamp INTEGER, channel INTEGER, description TEXT, \
size INTEGER, branch TEXT, CONSTRAINT pk_tags PRIMARY KEY (name), FOREIGN KEY (branch) REFERENCES branches (branch));
CREATE TABLE recycle_bin (hash TEXT, flags INTEGER, CONSTRAINT pk_hash PRIMARY KEY (hash));
INSERT INTO properties (key, value) VALUES ('schema', '1.0'), ('schema_revision', '3');
";

/// Descriptions of the tags that publishing manages.
const CURRENT_HEAD: &str = "current HEAD";
const UNDO_TARGET: &str = "default undo target";

/// Steps from older schema revisions to the newest.
const UPGRADES: [&str; 3] = [
    "ALTER TABLE tags ADD size INTEGER;",
    "CREATE TABLE recycle_bin (hash TEXT, flags INTEGER, CONSTRAINT pk_hash PRIMARY KEY (hash));",
    "CREATE TABLE branches (branch TEXT, parent TEXT, initial_revision INTEGER, \
     CONSTRAINT pk_branch PRIMARY KEY (branch), FOREIGN KEY (parent) REFERENCES branches (branch), \
     CHECK ((branch <> '') OR (parent IS NULL)), CHECK ((branch = '') OR (parent IS NOT NULL)));
     INSERT INTO branches (branch, parent, initial_revision) VALUES ('', NULL, 0);
     ALTER TABLE tags ADD branch TEXT REFERENCES branches (branch);
     UPDATE tags SET branch = ''; DELETE FROM recycle_bin;",
];

/// The name of a tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TagName(String);

impl TagName {
    /// The newest revision; moved by every publish.
    pub fn trunk() -> Self {
        Self("trunk".into())
    }

    /// The revision before the newest.
    pub fn trunk_previous() -> Self {
        Self("trunk-previous".into())
    }

    /// Whether a name is one of those that publishing moves, and nobody else may.
    pub fn is_managed(name: &str) -> bool {
        name == Self::trunk().0 || name == Self::trunk_previous().0
    }

    /// The name of an automatic tag for a time; `number` tells those of the same second apart.
    pub fn automatic(time: UnixSeconds, number: u32) -> Self {
        Self(if number == 0 { format!("generic-{}", time.iso()) } else { format!("generic_{number}-{}", time.iso()) })
    }

    /// Whether the name has the form of an automatic tag.
    pub fn is_automatic(&self) -> bool {
        let Some(rest) = self.0.strip_prefix("generic") else { return false };
        let rest = match rest.strip_prefix('_') {
            Some(numbered) if numbered.starts_with(|c: char| c.is_ascii_digit()) => {
                numbered.trim_start_matches(|c: char| c.is_ascii_digit())
            }
            Some(_) => return false,
            None => rest,
        };
        let Some(time) = rest.strip_prefix('-') else { return false };
        let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        matches!(
            shape.as_str(),
            "0000-00-00T00:00:00Z" | "0000-00-00T00:00:00.0Z" | "0000-00-00T00:00:00.00Z" | "0000-00-00T00:00:00.000Z"
        )
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TagName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TagName {
    type Err = Error;

    /// Accepts letters, digits and `._/:-`; the two names that publishing manages are refused.
    fn from_str(text: &str) -> Result<Self> {
        let invalid = |reason: &str| Err(Error::invalid(format!("tag name {text:?}"), reason));
        match text {
            "" => invalid("empty"),
            "trunk" | "trunk-previous" => invalid("this tag is managed by publishing"),
            _ if !text.chars().all(|c| c.is_ascii_alphanumeric() || "._/:-".contains(c)) => {
                invalid("only letters, digits, dots, dashes, underscores, colons and slashes are allowed")
            }
            _ => Ok(Self(text.into())),
        }
    }
}

/// A named revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Its name.
    pub name: String,
    /// The root catalog.
    pub root: ContentHash,
    /// The revision of that catalog.
    pub revision: u64,
    /// When that catalog was written.
    pub timestamp: UnixSeconds,
    /// Free text.
    pub description: String,
    /// Bytes of the root catalog's database, uncompressed.
    pub root_size: u64,
    /// The branch; empty for the trunk.
    pub branch: String,
}

impl Tag {
    /// Whether a rollback to a revision, named by the tag `target` if it was one, removes this tag for good.
    pub fn is_lost_by_rollback(&self, revision: u64, target: Option<&str>) -> bool {
        let stays = TagName::is_managed(&self.name) || Some(&self.name[..]) == target;
        self.revision > revision && self.branch.is_empty() && !stays
    }
}

/// A line of revisions beside the trunk.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Branch {
    /// Its name; empty for the trunk.
    pub name: String,
    /// The branch that it left; `None` for the trunk.
    pub parent: Option<String>,
    /// The first revision on it.
    pub initial_revision: u64,
}

/// A tag database, opened for reading or editing.
#[derive(Debug)]
pub struct History {
    database: Database,
}

impl History {
    /// Creates the database of a repository that has no tags.
    pub fn create(name: &RepositoryName, scratch: &Path) -> Result<Self> {
        let database = Database::create(scratch, "new history", TABLES)?;
        database.set_property("fqrn", name)?;
        Ok(Self { database })
    }

    /// Fetches a history object for reading.
    pub fn fetch(store: &dyn ReadStore, hash: ContentHash, scratch: &Path) -> Result<Self> {
        let id = ObjectId::new(hash, ObjectKind::History);
        Ok(Self { database: Database::fetch_read_only(store, &id, scratch, u64::MAX)? })
    }

    /// Fetches a history object for editing and brings its schema to the newest revision.
    ///
    /// # Errors
    /// Also `Malformed` if it belongs to another repository.
    pub fn fetch_writable(
        store: &dyn ReadStore,
        hash: ContentHash,
        name: &RepositoryName,
        scratch: &Path,
    ) -> Result<Self> {
        let id = ObjectId::new(hash, ObjectKind::History);
        let database = Database::fetch(store, &id, scratch)?;
        let fqrn = database.property("fqrn")?.unwrap_or_default();
        if fqrn != name.as_str() {
            return Err(Error::malformed(database.what(), format!("it is the history of {fqrn:?}")));
        }
        let revision: usize = database.parse_property("schema_revision")?.unwrap_or(0);
        for step in UPGRADES.iter().skip(revision) {
            database.batch(step)?;
        }
        database.set_property("schema_revision", &revision.max(UPGRADES.len()))?;
        Ok(Self { database })
    }

    /// The repository that it says it is of.
    pub fn repository(&self) -> Result<String> {
        Ok(self.database.property("fqrn")?.unwrap_or_default())
    }

    /// The tag database that this one replaced; `None` for the first.
    pub fn previous(&self) -> Result<Option<ContentHash>> {
        let hash = self.database.parse_property::<ContentHash>("previous_revision")?;
        Ok(hash.filter(|hash| !hash.is_null()))
    }

    /// All tags, the newest revision first.
    pub fn tags(&self) -> Result<Vec<Tag>> {
        self.select("1 ORDER BY timestamp DESC, revision DESC, name", [])
    }

    /// The tag of a name.
    pub fn tag(&self, name: &str) -> Result<Option<Tag>> {
        Ok(self.select("name = ?1", [name])?.pop())
    }

    fn select(&self, condition: &str, parameters: impl rusqlite::Params) -> Result<Vec<Tag>> {
        let columns = self.database.columns("tags")?;
        let column = |name: &'static str, otherwise: &'static str| {
            if columns.iter().any(|column| column == name) { name } else { otherwise }
        };
        let (size, branch) = (column("size", "0"), column("branch", "''"));
        let sql = format!(
            "SELECT name, hash, revision, timestamp, coalesce(description, ''), coalesce({size}, 0), coalesce({branch}, '') \
             FROM tags WHERE {condition}"
        );
        let rows = self.database.query(&sql, parameters, |row| {
            let hash: String = row.get(1)?;
            let tag = Tag {
                name: row.get(0)?,
                root: ContentHash::null(crate::hash::Algorithm::Sha1),
                revision: row.get::<_, i64>(2)?.unsigned_abs(),
                timestamp: UnixSeconds(row.get(3)?),
                description: row.get(4)?,
                root_size: row.get::<_, i64>(5)?.unsigned_abs(),
                branch: row.get(6)?,
            };
            Ok((hash, tag))
        })?;
        rows.into_iter().map(|(hash, tag)| Ok(Tag { root: hash.parse()?, ..tag })).collect()
    }

    /// Adds a tag.
    ///
    /// # Errors
    /// `Conflict` if there is one of that name.
    pub fn add(&mut self, tag: &Tag) -> Result<()> {
        if self.tag(&tag.name)?.is_some() {
            return Err(Error::conflict(format!("tag {}", tag.name), "it exists already"));
        }
        self.database.execute(
            "INSERT INTO tags (name, hash, revision, timestamp, channel, description, size, branch) \
             VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6, ?7)",
            (
                &tag.name,
                tag.root.to_string(),
                tag.revision.cast_signed(),
                tag.timestamp.0,
                &tag.description,
                tag.root_size.cast_signed(),
                &tag.branch,
            ),
        )?;
        Ok(())
    }

    /// Removes a tag; `false` if there was none.
    pub fn remove(&mut self, name: &str) -> Result<bool> {
        Ok(self.database.execute("DELETE FROM tags WHERE name = ?1", [name])? > 0)
    }

    /// Makes `trunk` name a new head, and `trunk-previous` what it named before.
    ///
    /// Only hash, revision, time and size of `head` count.
    pub fn advance_trunk(&mut self, head: &Tag) -> Result<()> {
        let (trunk, previous) = (TagName::trunk().0, TagName::trunk_previous().0);
        if let Some(old) = self.tag(&trunk)? {
            self.remove(&previous)?;
            self.remove(&trunk)?;
            self.add(&Tag { name: previous, description: UNDO_TARGET.into(), ..old })?;
        }
        let branch = String::new();
        self.add(&Tag { name: trunk, description: CURRENT_HEAD.into(), branch, ..head.clone() })
    }

    /// Takes trunk back to an older revision, as which `new` was published again.
    ///
    /// Tags of newer revisions go; the tag `name`, if one was meant, moves to `new`; so does `trunk`. There is no
    /// `trunk-previous` until the next revision. Branches stay. Returns the tags that went.
    ///
    /// Only hash, revision, time and size of `new` count.
    ///
    /// Source: `cvmfs/history_sql.cc`, `cvmfs/swissknife_history.cc` (`CommandRollbackTag`).
    pub fn roll_back(&mut self, revision: u64, name: Option<&str>, new: &Tag) -> Result<Vec<Tag>> {
        let (trunk, previous) = (TagName::trunk().0, TagName::trunk_previous().0);
        let moved = name.filter(|name| !TagName::is_managed(name)).map(|name| self.tag(name)).transpose()?;
        let mut gone = self.tags()?;
        gone.retain(|tag| tag.is_lost_by_rollback(revision, name));
        for tag in gone.iter().map(|tag| &tag.name[..]).chain([&trunk[..], &previous]) {
            self.remove(tag)?;
        }
        if let Some(old) = moved.flatten() {
            self.remove(&old.name)?;
            self.add(&Tag { name: old.name, description: old.description, branch: old.branch, ..new.clone() })?;
        }
        self.add(&Tag { name: trunk, description: CURRENT_HEAD.into(), branch: String::new(), ..new.clone() })?;
        Ok(gone)
    }

    /// All branches, the trunk included, sorted by name.
    pub fn branches(&self) -> Result<Vec<Branch>> {
        if self.database.columns("branches")?.is_empty() {
            return Ok(vec![Branch { name: String::new(), parent: None, initial_revision: 0 }]);
        }
        let sql = "SELECT branch, parent, initial_revision FROM branches ORDER BY branch";
        self.database.query(sql, [], |row| {
            let initial_revision = row.get::<_, i64>(2)?.unsigned_abs();
            Ok(Branch { name: row.get(0)?, parent: row.get(1)?, initial_revision })
        })
    }

    /// Adds a branch; fine if it exists.
    pub fn add_branch(&mut self, branch: &Branch) -> Result<()> {
        let sql = "INSERT OR IGNORE INTO branches (branch, parent, initial_revision) VALUES (?1, ?2, ?3)";
        self.database.execute(sql, (&branch.name, &branch.parent, branch.initial_revision.cast_signed()))?;
        Ok(())
    }

    /// The newest tag of a branch.
    pub fn branch_head(&self, branch: &str) -> Result<Option<Tag>> {
        Ok(self.tags()?.into_iter().filter(|tag| tag.branch == branch).max_by_key(|tag| tag.revision))
    }

    /// Removes branches that have no tag; those that left them left their parents instead.
    pub fn prune_branches(&mut self) -> Result<()> {
        let used: BTreeSet<String> = self.tags()?.into_iter().map(|tag| tag.branch).collect();
        for branch in self.branches()? {
            let Some(parent) = branch.parent.filter(|_| !used.contains(&branch.name)) else { continue };
            // One at a time: the parent of the next may just have changed.
            let parent: Option<String> = self
                .database
                .query_one("SELECT parent FROM branches WHERE branch = ?1", [&branch.name], |row| row.get(0))?
                .unwrap_or(Some(parent));
            self.database.execute("UPDATE branches SET parent = ?2 WHERE parent = ?1", (&branch.name, parent))?;
            self.database.execute("DELETE FROM branches WHERE branch = ?1", [&branch.name])?;
        }
        Ok(())
    }

    /// Notes which history object this one replaces, and returns the finished file.
    pub fn finish(self, previous: ContentHash) -> Result<TempPath> {
        self.database.set_property("previous_revision", &previous)?;
        self.database.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Algorithm;

    fn tag(name: &str, revision: u64) -> Tag {
        Tag {
            name: name.into(),
            root: Algorithm::Sha1.hash(&revision.to_le_bytes()),
            revision,
            timestamp: UnixSeconds(1000 + revision.cast_signed()),
            description: String::new(),
            root_size: 4096,
            branch: String::new(),
        }
    }

    #[test]
    fn trunk_moves_and_remembers_where_it_was() {
        let scratch = tempfile::tempdir().unwrap();
        let mut history = History::create(&"example.org".parse().unwrap(), scratch.path()).unwrap();
        history.add(&tag("v1", 1)).unwrap();
        for revision in 1..=3 {
            history.advance_trunk(&tag("", revision)).unwrap();
        }
        let names: Vec<_> = history.tags().unwrap().into_iter().map(|tag| (tag.name, tag.revision)).collect();
        assert_eq!(names, [("trunk".into(), 3), ("trunk-previous".into(), 2), ("v1".into(), 1)]);
        assert_eq!(history.tag("trunk").unwrap().unwrap().description, "current HEAD");
        assert!(matches!(history.add(&tag("v1", 2)), Err(Error::Conflict { .. })));
        assert!(history.remove("v1").unwrap());
        assert!(!history.remove("v1").unwrap());
    }

    fn names(history: &History) -> Vec<(String, u64)> {
        history.tags().unwrap().into_iter().map(|tag| (tag.name, tag.revision)).collect()
    }

    /// Expected values are those of the reference on the same tags.
    #[test]
    fn rolling_back_drops_newer_tags_and_moves_the_target() {
        let scratch = tempfile::tempdir().unwrap();
        let make = || {
            let mut history = History::create(&"example.org".parse().unwrap(), scratch.path()).unwrap();
            for name in ["v1", "v2", "v3", "other2"] {
                let revision = name.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
                history.add(&tag(name, revision)).unwrap();
            }
            history
                .add_branch(&Branch { name: "side".into(), parent: Some(String::new()), initial_revision: 3 })
                .unwrap();
            history.add(&Tag { branch: "side".into(), ..tag("side3", 3) }).unwrap();
            history.advance_trunk(&tag("", 3)).unwrap();
            history.advance_trunk(&tag("", 4)).unwrap();
            history
        };
        let mut history = make();
        let gone = history.roll_back(2, Some("v2"), &tag("", 5)).unwrap();
        assert_eq!(gone.into_iter().map(|tag| tag.name).collect::<Vec<_>>(), ["v3"]);
        let expected = [("trunk", 5), ("v2", 5), ("side3", 3), ("other2", 2), ("v1", 1)];
        assert_eq!(names(&history), expected.map(|(name, revision)| (name.to_owned(), revision)));

        let mut history = make();
        let gone = history.roll_back(3, Some("trunk-previous"), &tag("", 5)).unwrap();
        assert_eq!(gone, []);
        let expected = [("trunk", 5), ("side3", 3), ("v3", 3), ("other2", 2), ("v2", 2), ("v1", 1)];
        assert_eq!(names(&history), expected.map(|(name, revision)| (name.to_owned(), revision)));
    }

    #[test]
    fn branches_without_tags_go_and_their_children_move_up() {
        let scratch = tempfile::tempdir().unwrap();
        let mut history = History::create(&"example.org".parse().unwrap(), scratch.path()).unwrap();
        let branch = |name: &str, parent: Option<&str>| Branch {
            name: name.into(),
            parent: parent.map(Into::into),
            initial_revision: if parent.is_some() { 7 } else { 0 },
        };
        for (name, parent) in [("a", ""), ("b", "a"), ("c", "b"), ("d", "c")] {
            history.add_branch(&branch(name, Some(parent))).unwrap();
        }
        history.add(&Tag { branch: "a".into(), ..tag("on-a", 7) }).unwrap();
        history.add(&Tag { branch: "d".into(), ..tag("on-d", 9) }).unwrap();
        history.add(&Tag { branch: "d".into(), ..tag("on-d-too", 8) }).unwrap();
        history.prune_branches().unwrap();
        let expected = [branch("", None), branch("a", Some("")), branch("d", Some("a"))];
        assert_eq!(history.branches().unwrap(), expected);
        assert_eq!(history.branch_head("d").unwrap().unwrap().name, "on-d");
        history.remove("on-a").unwrap();
        history.prune_branches().unwrap();
        assert_eq!(history.branches().unwrap(), [branch("", None), branch("d", Some(""))]);
    }

    #[test]
    fn automatic_names_are_recognised() {
        let time = UnixSeconds(1_730_000_800);
        assert_eq!(TagName::automatic(time, 0).as_str(), "generic-2024-10-27T03:46:40Z");
        assert_eq!(TagName::automatic(time, 2).as_str(), "generic_2-2024-10-27T03:46:40Z");
        for name in
            ["generic-2024-10-27T03:46:40Z", "generic_12-2024-10-27T03:46:40Z", "generic-2024-10-27T03:46:40.123Z"]
        {
            assert!(name.parse::<TagName>().unwrap().is_automatic(), "{name}");
        }
        for name in [
            "generic_-2024-10-27T03:46:40Z",
            "generic",
            "generic-",
            "generic-2024",
            "xgeneric-2024-10-27T03:46:40Z",
            "generic-2024-10-27T03:46:40",
        ] {
            assert!(!name.parse::<TagName>().unwrap().is_automatic(), "{name}");
        }
    }

    #[test]
    fn names_are_checked() {
        assert!("releases/v1.0:x86_64-gcc".parse::<TagName>().is_ok());
        for name in ["", "trunk", "trunk-previous", "a b", "a\nb", "ü"] {
            assert!(name.parse::<TagName>().is_err(), "{name}");
        }
    }
}
