#!/usr/bin/env python3
"""Makes the catalogs of a repository's newest revision older, or says what schema they have.

  older.py SITE FQRN make SCHEMA[.REVISION] [OPTION...]
  older.py SITE FQRN rows [ROOT-HASH]

`make` writes all catalogs with the tables of an older schema (0.9, 1.0, 2.0, 2.1, 2.4, 2.5.0 to 2.5.7), and signs the
result as the same revision. 2.5.7 is as an upgrade in place leaves it. Options: `no-revision`, `no-statistics`,
`no-nested-hash`, `dangling` (a mountpoint of nothing), `bulk` (chunked files are stored whole as well).

`rows` prints a line a catalog, and below it all its rows with named columns, in path order.
"""

import collections
import json
import os
import sqlite3
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "verifier"))

import fixture                                             # noqa: E402
import vformat                                             # noqa: E402
from vformat import hash_text, parse_hash                  # noqa: E402

KEY = "md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER, "
ENTRY = "hash BLOB, size INTEGER, mode INTEGER, mtime INTEGER, flags INTEGER, name TEXT, symlink TEXT"
FIRST = ["regular", "symlink", "dir", "nested"]
CHUNKED = ["chunked", "chunks", "file_size", "chunked_size"]


class Repo(fixture.Repo):
    """A repository of one of our own sites."""

    def __init__(self, site, fqrn):
        # The same fields as of the fixture, with other keys.
        self.root = os.path.join(site, "srv/cvmfs", fqrn)
        self.key = vformat.private_key(fixture.read(os.path.join(site, "etc/cvmfs/keys", fqrn + ".key")))
        self.lines = list(vformat.Manifest(self.get(".cvmfspublished")).lines)
        self.algorithm = parse_hash(self.value("C"))[0]
        self.checksum = os.path.join(site, "var/spool/cvmfs", fqrn, "reflog.chksum")

    def catalogs(self, value=None, path=b""):
        """(path, hash, database) of all catalogs of the head, parents first."""
        value = value or self.hash("C")
        raw = self.plain(value, "C")
        yield path, value, raw
        for child, text in sorted(self.query(raw, "SELECT path, sha1 FROM nested_catalogs")):
            yield from self.catalogs(parse_hash(text), child)

    def replace_head(self, value, size):
        old = self.value("C")
        self.set("C", hash_text(value))
        self.set("B", str(size))
        self.add_ref(value, 0)
        self.edit_history(lambda c: c.execute("UPDATE tags SET hash = ?, size = ? WHERE hash = ?",
                                              (hash_text(value), size, old)))
        with open(self.checksum, "w", encoding="ascii") as handle:
            handle.write(self.value("Y"))


class Maker:
    def __init__(self, repo, schema, options):
        numbers = schema.split(".")
        self.version, self.revision = float(".".join(numbers[:2])), int((numbers + ["0"])[2])
        self.repo, self.options, self.inodes = repo, options, 1000

    def since(self, revision):
        return self.version == 2.5 and self.revision >= revision

    def tables(self):
        is_old = self.version < 2.1
        entry = ("inode INTEGER, " if is_old else "hardlinks INTEGER, ") + ENTRY
        if not is_old:
            entry += ", uid INTEGER, gid INTEGER"
        # Columns that an upgrade in place adds come last.
        entry += ", xattr BLOB" * self.since(2) + ", mtimens INTEGER" * self.since(7)
        nested = "path TEXT" + ", sha1 TEXT" * ("no-nested-hash" not in self.options) + ", size INTEGER" * self.since(1)
        tables = {"catalog": KEY + entry + ", CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2)",
                  "nested_catalogs": nested + ", CONSTRAINT pk_nested_catalogs PRIMARY KEY (path)"}
        if self.version >= 1.0:
            tables["properties"] = "key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key)"
        if not is_old:
            tables["chunks"] = ("md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER, hash BLOB, "
                                "CONSTRAINT pk_chunks PRIMARY KEY (md5path_1, md5path_2, offset, size)")
        if not is_old and "no-statistics" not in self.options:
            tables["statistics"] = "counter TEXT, value INTEGER, CONSTRAINT pk_statistics PRIMARY KEY (counter)"
        if self.since(4):
            tables["bind_mountpoints"] = "path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_bind PRIMARY KEY (path)"
        return tables

    def counters(self):
        names = FIRST + CHUNKED * (self.version == 2.5) + ["xattr"] * self.since(2) + ["special"] * self.since(5)
        names += ["external", "external_file_size"] * self.since(3)
        return [(prefix + name) for prefix in ("self_", "subtree_") for name in names]

    def make(self, value, path=b""):
        """Stores an older version of a catalog and of all below it; returns its hash and size."""
        new = self.repo.edit_database(b"", lambda out: self.fill(out, self.repo.plain(value, "C"), path))
        return self.repo.put(new, "C"), len(new)

    def fill(self, out, raw, path):
        columns = {}
        for table, definition in self.tables().items():
            out.execute("CREATE TABLE %s (%s)" % (table, definition))
            columns[table] = [row[1].decode() for row in out.execute("PRAGMA table_info(%s)" % table)]
        out.execute("CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2)")
        self.repo.edit_database(raw, lambda old: self.copy(old, out, columns, path))

    def copy(self, old, out, columns, path):
        old.row_factory = lambda cursor, row: dict(zip([column[0] for column in cursor.description], row))

        def insert(table, row):
            names = columns[table]
            places = ["CAST(? AS TEXT)" if isinstance(row[n], bytes) and n not in ("hash", "xattr") else "?" for n in names]
            sql = "INSERT INTO %s (%s) VALUES (%s)" % (table, ", ".join(names), ", ".join(places))
            out.execute(sql, [row[name] for name in names])

        inodes = {}
        for row in old.execute("SELECT rowid, * FROM catalog ORDER BY rowid"):
            if self.version < 2.1:
                if row["name"] == b".cvmfscatalog":
                    continue
                assert not row["flags"] & 64, "no chunks before 2.1"
                group, self.inodes = row["hardlinks"] >> 32, self.inodes + 1
                row["inode"] = inodes.setdefault((row["parent_1"], group), self.inodes) if group else self.inodes
                # Names of one inode in several directories.
                if row["name"].startswith(b"across"):
                    row["inode"] = inodes.setdefault("across", self.inodes)
            if row["flags"] & 64 and "bulk" in self.options:
                row["hash"] = self.whole(old, row)
            if not self.since(5) and row["flags"] & 16:
                row["flags"] -= 16
            insert("catalog", row)
        if "dangling" in self.options and not path:
            row.update(zip(("md5path_1", "md5path_2"), fixture.at(b"/dangling")), inode=self.inodes + 500, hash=None)
            row.update(zip(("parent_1", "parent_2"), fixture.at(b"")), flags=3, mode=0o40755, size=4096, hardlinks=2)
            insert("catalog", dict(row, name=b"dangling", symlink=b""))
        for table in ("chunks", "bind_mountpoints"):
            if table in columns:
                for row in old.execute("SELECT * FROM " + table):
                    insert(table, row)
        if "statistics" in columns:
            for row in old.execute("SELECT * FROM statistics"):
                if row["counter"].decode() in self.counters():
                    insert("statistics", row)
        for row in old.execute("SELECT * FROM nested_catalogs"):
            child, size = self.make(parse_hash(row["sha1"]), row["path"])
            insert("nested_catalogs", {"path": row["path"], "sha1": hash_text(child).encode(), "size": size})
        if "properties" in columns:
            self.write_properties(old, out, path)

    def whole(self, old, row):
        sql = "SELECT hash FROM chunks WHERE md5path_1 = ? AND md5path_2 = ? ORDER BY offset"
        chunks = [chunk["hash"] for chunk in old.execute(sql, (row["md5path_1"], row["md5path_2"]))]
        return self.repo.put(b"".join(self.repo.plain((self.repo.algorithm, chunk), "P") for chunk in chunks))[1]

    def write_properties(self, old, out, path):
        kept = {row["key"].decode(): row["value"] for row in old.execute("SELECT * FROM properties")}
        kept.update(schema="%.1f" % self.version, schema_revision=str(self.revision))
        if self.version < 2.5 or self.revision == 0:
            del kept["schema_revision"]
        if "no-revision" in self.options and path:
            del kept["revision"]
        out.executemany("INSERT INTO properties VALUES (?, CAST(? AS TEXT))", kept.items())


def show(repo, root=None):
    for path, _, raw in repo.catalogs(root and parse_hash(root)):
        lines = []

        def read(connection):
            connection.row_factory = sqlite3.Row
            properties = {row[0].decode(): row[1].decode() for row in connection.execute("SELECT * FROM properties")}
            columns = [row[1].decode() for row in connection.execute("PRAGMA table_info(catalog)")]
            tables = sorted(row[0].decode() for row in connection.execute(
                "SELECT name FROM sqlite_master WHERE type IN ('table', 'index') AND sql IS NOT NULL"))
            heading = [path.decode(), properties["schema"], properties["schema_revision"], ",".join(columns), tables]
            lines.append(json.dumps(heading))
            for row in connection.execute("SELECT * FROM catalog"):
                named = {key: row[key].hex() if isinstance(row[key], bytes) else row[key] for key in row.keys()}
                lines.append(json.dumps(collections.OrderedDict(sorted(named.items()))))
            for table in ("chunks", "statistics"):
                for row in connection.execute("SELECT * FROM %s" % table):
                    lines.append(table + " " + json.dumps([c.hex() if isinstance(c, bytes) else c for c in row]))

        repo.edit_database(raw, read)
        print(lines[0])
        print("\n".join("  " + line for line in sorted(lines[1:])))


def main(site, fqrn, command, *options):
    repo = Repo(site, fqrn)
    if command == "rows":
        show(repo, *options)
    else:
        repo.replace_head(*Maker(repo, options[0], options[1:]).make(repo.hash("C")))


if __name__ == "__main__":
    main(*sys.argv[1:])
