#!/usr/bin/env python3
"""Tests of the verifier: the reference repository is clean, and every check is seen failing.

    python3 -m unittest discover -s tests/verifier      (or run this file)

Each function marked with @damage changes a copy of the repository - hashed and signed again where the damage would
not be reached otherwise - and names exactly the kinds of findings that have to appear.
"""

import contextlib
import functools
import http.server
import io
import json
import os
import shutil
import sys
import tempfile
import threading
import unittest
import zlib

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import fixture                                             # noqa: E402
import vcheck                                              # noqa: E402
import verify                                              # noqa: E402
import vformat                                             # noqa: E402
import vlist                                               # noqa: E402
from fixture import CHUNKING, FQRN, NOW, Repo, add_row, at, count, execute, rename, update   # noqa: E402
from vformat import hash_text, object_path, parse_hash     # noqa: E402
from vstore import HttpStore, LocalStore                   # noqa: E402

KEYS = [vformat.public_key(fixture.read(fixture.key_file("pub")))]
EXPIRY_HOUR = 2110658400            # 2036-11-18 22:00 UTC; the whitelist says 22:55:56
SCRATCH = None
PRISTINE = None
WORKING = None                # a copy that is put in order again after each test


def setUpModule():
    global SCRATCH, PRISTINE, WORKING
    SCRATCH = tempfile.mkdtemp(prefix="cvmfs-verify-test-")
    PRISTINE = fixture.unpack(SCRATCH)
    WORKING = os.path.join(SCRATCH, "working", FQRN)
    Repo.copy(PRISTINE, WORKING)


def tearDownModule():
    shutil.rmtree(SCRATCH)


def check(store, **options):
    options.setdefault("now", NOW)
    # symlinks of revision 4 came through the reference's ingest and have size 0
    options.setdefault("allowed", {"symlink-size"})
    if isinstance(store, str):
        store = LocalStore(store)
    return vcheck.check(store, FQRN, KEYS, **options)


class Case(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(dir=SCRATCH)
        self.addCleanup(shutil.rmtree, self.directory)

    def copy(self):
        self.addCleanup(fixture.restore, WORKING, PRISTINE)
        return Repo(WORKING)

    def assert_clean(self, report):
        self.assertEqual(report.findings, [])

    def assert_codes(self, report, codes):
        self.assertEqual(report.codes(), set(codes), report.findings)


# --------------------------------------------------------------------------- damages

DAMAGES = []


def damage(*codes, **options):
    def mark(function):
        DAMAGES.append((function, codes, options))
        return function
    return mark


def ticket(repo, kind):
    """Name of some object of HEAD."""
    return object_path(repo.hash(kind), kind)


def data_of(repo, path, catalog=b""):
    """Object name of an unchunked file."""
    digest, = repo.query(repo.catalog(catalog), "SELECT hash FROM catalog" + fixture.HERE, *at(path))[0]
    return object_path((0, digest), "")


CHUNKED = b"/big/random1M5.bin"


def chunk_of(repo, number):
    rows = repo.query(repo.catalog(b""), "SELECT hash FROM chunks" + fixture.HERE + " ORDER BY offset", *at(CHUNKED))
    return object_path((0, rows[number][0]), "P")


# storage

@damage("data-dir")
def missing_data_directory(repo):
    empty = [n for n in sorted(os.listdir(repo.path("data"))) if n != "txn" and not os.listdir(repo.path("data/" + n))]
    os.rmdir(repo.path("data/" + empty[0]))


@damage("data-unexpected")
def temporary_file_left_behind(repo):
    repo.write("data/00/tmp.12345", b"x")


@damage("data-unexpected")
def unknown_suffix(repo):
    repo.write("data/00/" + "0" * 38 + "Q", b"x")


@damage("data-unexpected")
def upper_case_name(repo):
    repo.write("data/00/" + "A" * 38, b"x")


@damage("data-unexpected")
def file_in_data(repo):
    repo.write("data/file", b"x")


@damage("data-unexpected")
def directory_in_data(repo):
    os.mkdir(repo.path("data/quarantaine"))


@damage("data-unexpected")
def symlink_among_objects(repo):
    os.symlink("nowhere", repo.path("data/00/" + "0" * 38))


@damage("permission")
def object_not_readable(repo):
    name = data_of(repo, b"/docs/readme.txt")
    repo.write(name, repo.get(name))
    os.chmod(repo.path(name), 0o600)


@damage("permission")
def manifest_not_readable(repo):
    repo.write(".cvmfspublished", repo.get(".cvmfspublished"))
    os.chmod(repo.path(".cvmfspublished"), 0o640)


@damage("permission")
def directory_not_readable(repo):
    os.chmod(repo.path("data/00"), 0o700)


@damage("master-replica")
def no_master_replica(repo):
    repo.remove(".cvmfs_master_replica")


@damage("alt-link")
def no_alternative_links(repo):
    repo.set("A", "yes")
    repo.write_manifest()


def alternative_links(repo):
    for key in "XCHM":
        os.symlink(ticket(repo, key), repo.path(".cvmfsalt-%s%s" % (repo.value(key), key)))
    repo.set("A", "yes")
    repo.write_manifest()


@damage("alt-link")
def wrong_alternative_link(repo):
    alternative_links(repo)
    name = repo.path(".cvmfsalt-%sC" % repo.value("C"))
    os.unlink(name)
    os.symlink("data/00/0C", name)


# whitelist

def whitelist_lines(repo):
    return vformat.split_letter(repo.get(".cvmfswhitelist"))[0].decode().splitlines()


@damage("whitelist-missing")
def no_whitelist(repo):
    repo.remove(".cvmfswhitelist")


@damage("whitelist-format")
def whitelist_without_issue_time(repo):
    repo.write_whitelist(whitelist_lines(repo)[1:])


@damage("whitelist-format")
def whitelist_without_fingerprint(repo):
    repo.write_whitelist(whitelist_lines(repo)[:3] + ["# nobody"])


@damage("whitelist-format")
def whitelist_without_separator(repo):
    repo.write(".cvmfswhitelist", repo.get(".cvmfswhitelist").replace(b"\n--\n", b"\n"))


@damage("whitelist-name")
def whitelist_of_another_repository(repo):
    lines = whitelist_lines(repo)
    repo.write_whitelist(lines[:2] + ["Nother.ref.org"] + lines[3:])


@damage("whitelist-expired")
def whitelist_expired(repo):
    lines = whitelist_lines(repo)
    repo.write_whitelist([lines[0], "E20261121225556"] + lines[2:])


@damage("whitelist-expired", now=EXPIRY_HOUR + 3600)
def whitelist_expires_with_time(repo):
    pass


@damage("whitelist-expired", now=EXPIRY_HOUR)
def whitelist_expires_within_the_hour(repo):
    pass


@damage("whitelist-hash")
def whitelist_with_other_hash(repo):
    repo.write_whitelist(printed="0" * 40)


@damage("whitelist-hash")
def whitelist_changed_after_signing(repo):
    repo.write(".cvmfswhitelist", repo.get(".cvmfswhitelist").replace(b"E2036", b"E2037"))


@damage("whitelist-signature")
def whitelist_signature_damaged(repo):
    repo.flip(".cvmfswhitelist", -1)


@damage("whitelist-signature")
def whitelist_signature_with_newline(repo):
    repo.write(".cvmfswhitelist", repo.get(".cvmfswhitelist") + b"\n")


@damage("whitelist-signature")
def whitelist_signed_by_repository_key(repo):
    repo.write_whitelist(key=repo.key)


@damage("certificate-not-listed")
def foreign_fingerprint(repo):
    repo.write_whitelist(whitelist_lines(repo)[:3] + [":".join(["00"] * 20)])


# manifest

@damage("manifest-missing")
def no_manifest(repo):
    repo.remove(".cvmfspublished")


@damage("manifest-format")
def manifest_lines_swapped(repo):
    repo.lines[3], repo.lines[4] = repo.lines[4], repo.lines[3]
    repo.write_manifest()


@damage("manifest-format")
def manifest_line_missing(repo):
    repo.drop("G")
    repo.write_manifest()


@damage("manifest-format")
def manifest_line_twice(repo):
    repo.lines.insert(1, repo.lines[0])
    repo.write_manifest()


@damage("manifest-format")
def manifest_line_unknown(repo):
    repo.lines.append(("Q", "1"))
    repo.write_manifest()


@damage("manifest-format")
def manifest_bad_number(repo):
    repo.set("D", "0240")
    repo.write_manifest()


@damage("manifest-format")
def manifest_suffix_in_hash(repo):
    repo.set("C", repo.value("C") + "C")
    repo.write_manifest()


@damage("manifest-format", "manifest-size")
def manifest_too_large(repo):
    repo.lines.append(("Q", "x" * 4096))
    repo.write_manifest()


@damage("manifest-name")
def manifest_of_another_repository(repo):
    repo.set("N", "other.ref.org")
    repo.write_manifest()


@damage("manifest-root-path")
def manifest_with_other_root_path(repo):
    repo.set("R", "0" * 32)
    repo.write_manifest()


@damage("manifest-hash")
def manifest_with_other_hash(repo):
    repo.write_manifest(printed="0" * 40)


@damage("manifest-hash")
def manifest_changed_after_signing(repo):
    repo.write(".cvmfspublished", repo.get(".cvmfspublished").replace(b"\nGyes\n", b"\nGno\n"))


@damage("manifest-signature")
def manifest_signature_damaged(repo):
    repo.flip(".cvmfspublished", -1)


@damage("manifest-signature")
def manifest_signed_by_masterkey(repo):
    repo.write_manifest(key=repo.masterkey)


@damage("manifest-signature")
def manifest_signed_without_digest_info(repo):
    data = repo.get(".cvmfspublished")
    _, printed, _ = vformat.split_letter(data)
    repo.write(".cvmfspublished", data[:-256] + fixture.sign(repo.key, printed.encode()))


@damage("manifest-revision", "tag-trunk")
def manifest_with_other_revision(repo):
    repo.set("S", "6")
    repo.write_manifest()


@damage("manifest-ttl")
def manifest_with_other_ttl(repo):
    repo.set("D", "241")
    repo.write_manifest()


@damage("manifest-catalog-size")
def manifest_with_other_size(repo):
    repo.set("B", "49151")
    repo.write_manifest()


@damage("manifest-time")
def manifest_too_old(repo):
    repo.set("T", "1795301721")
    repo.write_manifest()


@damage("hash-algorithm")
def reflog_checksum_of_another_algorithm(repo):
    repo.set("Y", hash_text(vformat.hash_of(2, repo.get(".cvmfsreflog"))))
    repo.write_manifest()


@damage("hash-algorithm")
def metainfo_of_another_algorithm(repo):
    repo.replace("M", repo.store(repo.get(ticket(repo, "M")), "M", algorithm=2))


@damage("hash-algorithm")
def manifest_hashed_with_another_algorithm(repo):
    text = vformat.Manifest(repo.get(".cvmfspublished")).text
    repo.write_manifest(printed=hash_text(vformat.hash_of(1, text)))


@damage("certificate-format")
def certificate_is_none(repo):
    repo.replace("X", repo.put(b"not a certificate\n", "X"))


@damage("not-stock-zlib")
def certificate_compressed_otherwise(repo):
    repo.replace("X", repo.put(repo.plain(repo.hash("X"), "X"), "X", level=9))


@damage("not-stock-zlib")
def metainfo_compressed_otherwise(repo):
    repo.replace("M", repo.put(repo.plain(repo.hash("M"), "M"), "M", level=1))


@damage("metainfo-format")
def metainfo_is_no_json(repo):
    repo.replace("M", repo.put(b"{]", "M"))


@damage("metainfo-format")
def metainfo_is_no_object(repo):
    repo.replace("M", repo.put(b"[]", "M"))


# databases

@damage("db-open")
def history_is_no_database(repo):
    repo.replace("H", repo.put(b"hello\n", "H"))


@damage("db-open")
def nested_catalog_is_no_database(repo):
    repo.edit_catalog(b"/auto/a", lambda c: b"hello\n" * 1000)


@damage("db-open")
def nested_catalog_with_broken_schema(repo):
    raw = bytearray(repo.catalog(b"/auto/a"))
    raw[100:200] = bytes(100)
    repo.edit_catalog(b"/auto/a", lambda c: bytes(raw))


def wal(raw):
    return raw[:18] + b"\2\2" + raw[20:]


@damage("db-wal")
def nested_catalog_in_wal_mode(repo):
    raw = wal(repo.catalog(b"/auto/a"))
    repo.edit_catalog(b"/auto/a", lambda c: raw)


@damage("db-wal")
def root_catalog_in_wal_mode(repo):
    raw = wal(repo.catalog(b""))
    repo.edit_catalog(b"", lambda c: raw)


@damage("db-wal")
def history_in_wal_mode(repo):
    repo.replace("H", repo.put(wal(repo.plain(repo.hash("H"), "H")), "H"))


@damage("db-wal")
def reflog_in_wal_mode(repo):
    repo.write(".cvmfsreflog", wal(repo.get(".cvmfsreflog")))
    repo.seal()


@damage("db-header")
def catalog_with_user_version(repo):
    repo.edit_catalog(b"/auto/a", execute("PRAGMA user_version = 7"))


@damage("db-header")
def catalog_with_application_id(repo):
    repo.edit_catalog(b"/auto/a", execute("PRAGMA application_id = 7"))


@damage("db-header")
def catalog_with_surplus_page(repo):
    raw = repo.catalog(b"/auto/a") + bytes(1024)
    repo.edit_catalog(b"/auto/a", lambda c: raw)


def repage(connection):
    connection.execute("PRAGMA page_size = 4096")
    connection.execute("VACUUM")


@damage("db-page-size")
def catalog_with_large_pages(repo):
    repo.edit_catalog(b"/auto/a", repage)


@damage("db-page-size")
def reflog_with_large_pages(repo):
    repo.edit_reflog(repage)
    repo.seal()


@damage("db-integrity")
def index_without_rows(repo):
    def edit(connection):
        connection.execute("DROP INDEX idx_catalog_parent")
        connection.execute("CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2) WHERE uid = 99")
        connection.execute("PRAGMA writable_schema = 1")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'idx_catalog_parent'",
                           ("CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2)",))
    repo.edit_catalog(b"/auto/a", edit)


@damage("db-foreign-key")
def chunk_without_file(repo):
    def edit(connection):
        connection.execute("INSERT INTO chunks SELECT 1, 2, offset, size, hash FROM chunks LIMIT 1")
        count(connection, self_chunks=1)
    repo.edit_catalog(b"", edit)


@damage("db-schema")
def catalog_without_index(repo):
    repo.edit_catalog(b"/auto/a", execute("DROP INDEX idx_catalog_parent"))


@damage("db-schema")
def catalog_with_additional_column(repo):
    repo.edit_catalog(b"/auto/a", execute("ALTER TABLE catalog ADD extra INTEGER"))


@damage("db-schema")
def catalog_with_additional_table(repo):
    repo.edit_catalog(b"/auto/a", execute("CREATE TABLE more (x INTEGER)"))


@damage("db-schema")
def catalog_with_mtimens_at_the_end(repo):
    def edit(connection):
        connection.execute("ALTER TABLE catalog DROP COLUMN mtimens")
        connection.execute("ALTER TABLE catalog ADD mtimens INTEGER")
    repo.edit_catalog(b"/auto/a", edit)


@damage("db-schema")
def catalog_without_statistics(repo):
    repo.edit_catalog(b"/auto/a", execute("DROP TABLE statistics"))


@damage("db-schema")
def history_with_additional_index(repo):
    repo.edit_history(execute("CREATE INDEX more ON tags (revision)"))


@damage("db-schema")
def reflog_with_additional_column(repo):
    repo.edit_reflog(execute("ALTER TABLE refs ADD extra INTEGER"))
    repo.seal()


# reflog

@damage("reflog-missing")
def no_reflog(repo):
    repo.remove(".cvmfsreflog")


@damage("reflog-checksum")
def reflog_changed(repo):
    repo.edit_reflog(execute("UPDATE refs SET timestamp = timestamp + 1"))


@damage("reflog-checksum-file", checksum="0" * 40)
def other_reflog_checksum_file(repo):
    pass


@damage("reflog-checksum-file", checksum="rubbish")
def malformed_reflog_checksum_file(repo):
    pass


def reflog_damage(code, name, sql, *values):
    def apply(repo):
        repo.edit_reflog(execute(sql, *[v(repo) if callable(v) else v for v in values]))
        repo.seal()
    apply.__name__ = name
    damage(code)(apply)


def line_of(key):
    return lambda repo: repo.value(key)


reflog_damage("reflog-property", "reflog_of_another_repository", "UPDATE properties SET value = 'x' WHERE key = 'fqrn'")
reflog_damage("reflog-property", "reflog_of_another_revision",
              "UPDATE properties SET value = '1' WHERE key = 'schema_revision'")
reflog_damage("reflog-property", "reflog_with_unknown_property", "INSERT INTO properties VALUES ('a', 'b')")
reflog_damage("reflog-row", "reflog_with_unknown_type", "INSERT INTO refs VALUES (?, 9, 1795301722)", "1" * 40)
reflog_damage("reflog-row", "reflog_with_bad_hash", "INSERT INTO refs VALUES (?, 0, 1795301722)", "1" * 41)
reflog_damage("reflog-row", "reflog_without_timestamp", "UPDATE refs SET timestamp = NULL WHERE rowid = 1")
for _key in "CXHM":
    reflog_damage("reflog-incomplete", "reflog_without_" + _key, "DELETE FROM refs WHERE hash = ?", line_of(_key))
reflog_damage("reflog-incomplete", "reflog_without_tag", "DELETE FROM refs WHERE hash LIKE '67112c69%'")
reflog_damage("reflog-incomplete", "reflog_without_ancestor", "DELETE FROM refs WHERE hash LIKE '184052e8%'")
reflog_damage("reflog-incomplete", "reflog_without_previous_history", "DELETE FROM refs WHERE hash LIKE '84e6e10e%'")
reflog_damage("reflog-dangling", "reflog_with_missing_object", "INSERT INTO refs VALUES (?, 0, 1795301722)", "1" * 40)


@damage("reflog-row", "reflog-dangling")
def reflog_with_wrong_type(repo):
    repo.edit_reflog(execute("UPDATE refs SET type = 0 WHERE hash = ?", repo.value("M")))
    repo.seal()


# history

def history_damage(codes, name, sql):
    def apply(repo):
        repo.edit_history(execute(sql))
    apply.__name__ = name
    damage(*codes.split())(apply)


@damage("history-missing")
def no_history(repo):
    repo.drop("H")
    repo.write_manifest()


history_damage("history-property", "history_of_another_repository", "UPDATE properties SET value = 'x' WHERE key = 'fqrn'")
history_damage("history-property", "history_of_another_revision",
               "UPDATE properties SET value = '2' WHERE key = 'schema_revision'")
history_damage("history-property", "history_without_predecessor", "DELETE FROM properties WHERE key = 'previous_revision'")
history_damage("history-row", "tag_without_description", "UPDATE tags SET description = NULL WHERE name = 'v1'")
history_damage("history-row", "tag_with_channel", "UPDATE tags SET channel = 4 WHERE name = 'v1'")
history_damage("history-row", "tag_with_blank", "UPDATE tags SET name = 'v 1' WHERE name = 'v1'")
history_damage("history-row", "tag_with_bad_hash", "UPDATE tags SET hash = hash || 'C' WHERE name = 'v1'")
history_damage("history-row", "tag_without_size", "UPDATE tags SET size = NULL WHERE name = 'v1'")
history_damage("history-row", "used_recycle_bin", "INSERT INTO recycle_bin VALUES ('x', 1)")
history_damage("history-branch", "unused_branch", "INSERT INTO branches VALUES ('b', '', 3)")
history_damage("history-branch", "tag_older_than_branch", "UPDATE branches SET initial_revision = 3")
history_damage("history-branch db-foreign-key", "unknown_branch", "UPDATE tags SET branch = 'b' WHERE name = 'v1'")
history_damage("tag-trunk", "no_trunk", "DELETE FROM tags WHERE name = 'trunk'")
history_damage("tag-trunk tag-previous", "old_trunk",
               "UPDATE tags SET (hash, revision, timestamp, size) = (SELECT hash, revision, timestamp, size FROM tags "
               "WHERE name = 'v3') WHERE name = 'trunk'")
history_damage("tag-previous", "other_trunk_previous",
               "UPDATE tags SET (hash, revision, timestamp, size) = (SELECT hash, revision, timestamp, size FROM tags "
               "WHERE name = 'v2') WHERE name = 'trunk-previous'")
history_damage("tag-row", "tag_with_other_size", "UPDATE tags SET size = size + 1 WHERE name = 'v2'")
history_damage("tag-row", "tag_with_other_revision", "UPDATE tags SET revision = 9 WHERE name = 'v2'")
history_damage("tag-row", "tag_with_other_time", "UPDATE tags SET timestamp = 9 WHERE name = 'v2'")


@damage("tag-root")
def tag_of_nested_catalog(repo):
    path, value = repo.chain(b"/auto/a")[-1]
    repo.add_ref(value, 0)
    repo.edit_history(execute("INSERT INTO tags VALUES ('n', ?, 1, 1795301656, 0, '', 16384, '')", hash_text(value)))


# catalogs: properties and statistics

def catalog_damage(codes, name, path, edit, **options):
    def apply(repo):
        repo.edit_catalog(path, edit)
    apply.__name__ = name
    damage(*codes.split(), **options)(apply)


def set_property(key, value):
    return execute("INSERT OR REPLACE INTO properties VALUES (?, ?)", key, value)


catalog_damage("catalog-version", "older_schema_revision", b"/auto/a", set_property("schema_revision", "6"))
catalog_damage("catalog-version", "other_schema", b"/auto/a", set_property("schema", "2.6"))
catalog_damage("catalog-property", "unknown_property", b"/auto/a", set_property("colour", "blue"))
catalog_damage("catalog-property", "ttl_in_nested_catalog", b"/auto/a", set_property("TTL", "240"))
catalog_damage("catalog-property", "no_last_modified", b"/auto/a",
               execute("DELETE FROM properties WHERE key = 'last_modified'"))
catalog_damage("catalog-property", "no_previous_revision", b"/auto/a",
               execute("DELETE FROM properties WHERE key = 'previous_revision'"))
catalog_damage("catalog-property", "malformed_previous_revision", b"/auto/a", set_property("previous_revision", ""))
catalog_damage("catalog-prefix", "other_root_prefix", b"/auto/a", set_property("root_prefix", "/auto/b"))
catalog_damage("catalog-prefix", "no_root_prefix", b"/auto/a", execute("DELETE FROM properties WHERE key = 'root_prefix'"))
catalog_damage("catalog-previous", "revision_without_predecessor", b"/auto/a", set_property("revision", "2"))
catalog_damage("catalog-previous", "skipped_nested_revision", b"/sw", set_property("revision", "4"))
catalog_damage("catalog-previous tag-row manifest-revision", "revision_not_advanced", b"", set_property("revision", "4"))
catalog_damage("catalog-previous", "predecessor_of_another_path", b"/sw",
               set_property("previous_revision", "5c3d70d92120d39faaedb39800610e7cdb8b1551"))
catalog_damage("catalog-waste", "rowid_gap", b"/auto/a", execute("UPDATE catalog SET rowid = 1000 WHERE name = 'f'"))


@functools.partial(catalog_damage, "catalog-waste", "free_pages", b"/auto/a")
def _free_pages(connection):
    connection.execute("CREATE TABLE more (x BLOB)")
    connection.execute("INSERT INTO more VALUES (zeroblob(16384))")
    connection.execute("DROP TABLE more")


catalog_damage("counter-set", "counter_missing", b"/auto/a", execute("DELETE FROM statistics WHERE counter = 'self_special'"))
catalog_damage("counter-set", "counter_unknown", b"/auto/a", execute("INSERT INTO statistics VALUES ('self_more', 0)"))
for _name in vcheck.COUNTERS:
    catalog_damage("counter", "counter_self_" + _name, b"/sw",
                   execute("UPDATE statistics SET value = value + 1 WHERE counter = ?", "self_" + _name))
    catalog_damage("counter", "counter_subtree_" + _name, b"/sw",
                   execute("UPDATE statistics SET value = value - 1 WHERE counter = ?", "subtree_" + _name))

# catalogs: rows

README = b"/docs/readme.txt"
catalog_damage("row-type", "name_is_null", b"", update(README, "name = NULL"))
catalog_damage("row-type", "symlink_is_null", b"", update(README, "symlink = NULL"))
catalog_damage("row-type", "name_is_blob", b"", update(README, "name = CAST(name AS BLOB)"))
catalog_damage("row-type", "mtime_is_null", b"", update(README, "mtime = NULL"))
catalog_damage("row-type", "uid_is_text", b"", update(README, "uid = 'root'"))
catalog_damage("row-type", "short_hash", b"", update(README, "hash = substr(hash, 1, 19)"))
catalog_damage("row-type", "hash_is_text", b"", update(README, "hash = hex(hash)"))
catalog_damage("row-type counter", "path_hash_is_text", b"", update(README, "md5path_1 = 'x'"))
catalog_damage("row-type", "xattr_is_number", b"", update(README, "xattr = 5"))
catalog_damage("row-type counter dir-links entry-dangling", "flags_of_directory_are_null", b"", update(b"/docs", "flags = NULL"))
for _flags in (0, 4 | 2, 4 | 32, 4 | 0x300, 4 | 0x1000, 4 | 0x20000, 4 | 0x4000):
    catalog_damage("entry-flags", "flags_%x" % _flags, b"", update(README, "flags = ?", _flags))
for _flags in (4 | 8 | 16, 4 | 8 | 64, 4 | 16 | 128, 8, 16):
    catalog_damage("entry-flags counter", "flags_%x" % _flags, b"", update(README, "flags = ?", _flags))
catalog_damage("entry-flags", "nested_root_flag_elsewhere", b"", update(b"/docs", "flags = 33"))
catalog_damage("entry-flags", "chunked_directory", b"", update(b"/docs", "flags = 65"))
catalog_damage("entry-mode", "file_with_directory_mode", b"", update(README, "mode = ?", 0o040644))
catalog_damage("entry-mode", "directory_with_file_mode", b"", update(b"/docs", "mode = ?", 0o100755))
catalog_damage("entry-mode", "symlink_without_type", b"", update(b"/links/rel", "mode = ?", 0o777))
catalog_damage("entry-mode", "mode_with_surplus_bits", b"", update(README, "mode = ?", 0o1100644))
for _number, _name in enumerate((b"..", b".", b"a/b", b"n" * 256)):
    catalog_damage("entry-name", "name_%d" % _number, b"", rename(README, _name))
catalog_damage("entry-name", "empty_name", b"", rename(README, b""))
catalog_damage("entry-path", "other_name", b"", update(README, "name = 'other'"))
catalog_damage("entry-hash", "file_without_hash", b"", update(README, "hash = NULL"))
catalog_damage("entry-hash", "directory_with_hash", b"", update(b"/docs", "hash = zeroblob(20)"))
catalog_damage("entry-hash", "symlink_with_hash", b"", update(b"/links/rel", "hash = zeroblob(20)"))
catalog_damage("entry-size", "fifo_with_size", b"", update(b"/special/fifo", "size = 5"))
catalog_damage("entry-size", "negative_size", b"", update(b"/docs", "size = -1"))
catalog_damage("entry-owner", "negative_uid", b"", update(README, "uid = -1"))
catalog_damage("entry-owner", "large_gid", b"", update(README, "gid = ?", 1 << 32))
catalog_damage("entry-mtimens", "large_mtimens", b"", update(README, "mtimens = 1000000000"))
catalog_damage("entry-links", "no_link", b"", update(README, "hardlinks = 0"))
catalog_damage("entry-links", "links_without_group", b"", update(README, "hardlinks = 2"))
catalog_damage("dir-links", "directory_with_surplus_link", b"", update(b"/docs", "hardlinks = 3"))
catalog_damage("dir-links", "root_with_surplus_link", b"", update(b"", "hardlinks = hardlinks + 1"))
catalog_damage("dir-links", "directory_in_a_group", b"", update(b"/docs", "hardlinks = ?", 1 << 40 | 2))
catalog_damage("hardlink-group", "group_with_other_count", b"",
               execute("UPDATE catalog SET hardlinks = hardlinks + 1 WHERE hardlinks >> 32 = 1"))
catalog_damage("hardlink-group", "group_of_one", b"", update(README, "hardlinks = ?", 9 << 32 | 2))
catalog_damage("hardlink-group", "group_with_different_times", b"", update(b"/hard4/b", "mtime = 5"))
catalog_damage("hardlink-group", "group_with_different_counts", b"", update(b"/hard4/b", "hardlinks = hardlinks - 1"))
catalog_damage("hardlink-group", "group_across_directories", b"", execute(
    "UPDATE catalog SET hardlinks = ? WHERE name = 'cross' AND mtime = 1730000000", 9 << 32 | 2))
catalog_damage("symlink-target", "symlink_without_target", b"", update(b"/links/rel", "symlink = '', size = 0"))
catalog_damage("symlink-target", "file_with_target", b"", update(README, "symlink = 'x'"))
catalog_damage("symlink-size", "symlink_with_other_size", b"", update(b"/links/rel", "size = 1"), allowed=())
for _number, _blob in enumerate((b"", b"\2\0", b"\1\0", b"\1\1\1", b"\1\1\1\1a", b"\1\1\1\1abc", b"\1\2\1\0b\1\0a",
                                 b"\1\2\1\0a\1\0a", b"\1\1\0\1x", b"\1\1\1\0\0")):
    catalog_damage("xattr", "xattr_%d" % _number, b"", update(b"/xattr/file", "xattr = ?", _blob))
catalog_damage("catalog-root", "root_with_parent", b"", update(b"", "parent_1 = ?, parent_2 = ?", *at(b"")))
catalog_damage("catalog-root", "root_with_name", b"", update(b"", "name = 'root'"))
catalog_damage("catalog-root", "root_with_nested_flag", b"", update(b"", "flags = 33"))
catalog_damage("catalog-root", "no_root_entry", b"/auto/a", update(b"/auto/a", "md5path_1 = 1"))
catalog_damage("catalog-root", "nested_root_without_flag", b"/auto/a", update(b"/auto/a", "flags = 1"))
catalog_damage("catalog-root transition", "nested_root_with_other_name", b"/auto/a", update(b"/auto/a", "name = 'b'"))


@functools.partial(catalog_damage, "entry-dangling", "row_without_parent", b"")
def _dangling(connection):
    add_row(connection, b"/nowhere/file", README)


@functools.partial(catalog_damage, "nested-not-empty", "row_below_mountpoint", b"")
def _not_empty(connection):
    add_row(connection, b"/auto/a/file", README)


# chunks

CHUNK_ROW = " WHERE md5path_1 = ? AND md5path_2 = ? AND offset = 351795"
catalog_damage("chunk-layout", "chunk_gap", b"",
               execute("UPDATE chunks SET offset = offset + 1" + CHUNK_ROW, *at(CHUNKED)))


@functools.partial(catalog_damage, "chunk-layout", "chunk_missing", b"")
def _chunk_missing(connection):
    connection.execute("DELETE FROM chunks" + CHUNK_ROW, at(CHUNKED))
    count(connection, self_chunks=-1)


@functools.partial(catalog_damage, "chunk-layout", "last_chunk_missing", b"")
def _last_chunk_missing(connection):
    connection.execute("DELETE FROM chunks WHERE offset = 1244164")
    count(connection, self_chunks=-1)


@functools.partial(catalog_damage, "chunk-layout", "all_chunks_missing", b"")
def _all_chunks_missing(connection):
    count(connection, self_chunks=-connection.execute("DELETE FROM chunks" + fixture.HERE, at(CHUNKED)).rowcount)


@functools.partial(catalog_damage, "chunk-row", "chunks_of_unchunked_file", b"")
def _chunk_row(connection):
    connection.execute("INSERT INTO chunks SELECT ?, ?, 0, 12, hash FROM chunks LIMIT 1", at(README))
    count(connection, self_chunks=1)


catalog_damage("chunk-row", "chunk_without_hash", b"", execute("UPDATE chunks SET hash = NULL" + CHUNK_ROW, *at(CHUNKED)))


@damage("chunk-cut", chunking=CHUNKING)
def chunk_cut_in_two(repo):
    first = zlib.decompress(repo.get(chunk_of(repo, 0)))
    left, right = repo.put(first[:300000], "P"), repo.put(first[300000:], "P")

    def edit(connection):
        connection.execute("DELETE FROM chunks" + fixture.HERE + " AND offset = 0", at(CHUNKED))
        for offset, size, value in ((0, 300000, left), (300000, len(first) - 300000, right)):
            connection.execute("INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", at(CHUNKED) + (offset, size, value[1]))
        count(connection, self_chunks=1)
    repo.edit_catalog(b"", edit)


@damage("chunk-cut", chunking=(262144, 1000000, 1048576))
def chunks_of_another_average(repo):
    pass


@damage("chunk-cut", chunking=(100000, 524288, 1048576))
def unchunked_file_above_minimum(repo):
    pass


# markers and nested catalogs

catalog_damage("marker-missing", "no_marker", b"/auto/a", rename(b"/auto/a/.cvmfscatalog", b"marker"))
catalog_damage("marker-misplaced", "marker_in_ordinary_directory", b"", rename(b"/docs/empty", b".cvmfscatalog"))
catalog_damage("marker-misplaced", "marker_in_repository_root", b"", update(
    b"/.cvmfsdirtab", "name = '.cvmfscatalog', md5path_1 = ?, md5path_2 = ?", *at(b"/.cvmfscatalog")))
catalog_damage("marker-misplaced counter", "marker_is_no_file", b"/auto/a", update(
    b"/auto/a/.cvmfscatalog", "flags = 20, mode = ?, hash = NULL", 0o010644))


def set_nested(assignment, *values):
    return execute("UPDATE nested_catalogs SET " + assignment + " WHERE path = '/auto/a'", *values)


@functools.partial(catalog_damage, "nested-registration", "mountpoint_not_registered", b"")
def _not_registered(connection):
    connection.execute("DELETE FROM nested_catalogs WHERE path = '/auto/a'")
    count(connection, self_nested=-1, subtree_dir=-1, subtree_regular=-2, subtree_file_size=-1)


@functools.partial(catalog_damage, "nested-registration", "registration_without_flag", b"")
def _without_flag(connection):
    update(b"/auto/a", "flags = 1")(connection)


catalog_damage("nested-row", "nested_size_is_null", b"", set_nested("size = NULL"))
catalog_damage("nested-row", "nested_hash_is_empty", b"", set_nested("sha1 = ''"))
catalog_damage("nested-row", "nested_hash_with_suffix", b"", set_nested("sha1 = sha1 || 'C'"))
catalog_damage("nested-size", "other_nested_size", b"", set_nested("size = size + 1024"))
for _number, _change in enumerate(("mtime = mtime + 1", "hardlinks = 9", "mode = 16832", "size = 97", "uid = 5", "gid = 5",
                                   "mtimens = 1", "flags = flags | 0x8000")):
    catalog_damage("transition", "transition_%d" % _number, b"", update(b"/auto/a", _change))


@functools.partial(catalog_damage, "transition", "transition_xattr", b"")
def _transition_xattr(connection):
    update(b"/auto/a", "xattr = X'010101016161'")(connection)
    count(connection, self_xattr=1)


@functools.partial(catalog_damage, "bind-mountpoint", "bind_mountpoint_without_tag", b"")
def _bind_mountpoint(connection):
    add_row(connection, b"/docs/snap", b"/emptydir", flags=0x4001)
    update(b"/docs", "hardlinks = hardlinks + 1")(connection)
    count(connection, self_dir=1)
    connection.execute("INSERT INTO bind_mountpoints SELECT '/docs/snap', sha1, size FROM nested_catalogs LIMIT 1")


def virtual_directory(repo, tags):
    """What CVMFS_VIRTUAL_DIR adds: /.cvmfs/snapshots with a bind mountpoint for each tag."""
    known = {row[0].decode(): row[1:] for row in
             repo.query(repo.plain(repo.hash("H"), "H"), "SELECT name, hash, size FROM tags")}
    known["v4"] = known["v3"]          # HEAD cannot contain itself; tests that need it move the tag
    empty = zlib.decompress(repo.get(data_of(repo, b"/docs/empty")))
    repo.put(empty)
    look = {"mode": 0o040555, "size": 97, "mtime": 1795301722, "mtimens": None, "xattr": None, "uid": 0, "gid": 0}

    def child(connection):
        connection.execute("DELETE FROM catalog WHERE name <> 'a'")
        connection.execute("DELETE FROM catalog WHERE name = 'f'")
        add_row(connection, b"/.cvmfs", b"/auto/a", flags=0x8021, hardlinks=3, **look)
        connection.execute("DELETE FROM catalog WHERE name = 'a'")
        add_row(connection, b"/.cvmfs/snapshots", b"/.cvmfs", flags=1, **dict(look, hardlinks=2 + len(tags)))
        add_row(connection, b"/.cvmfs/.cvmfscatalog", b"/.cvmfs", flags=4, hardlinks=1, **dict(
            look, size=0, mode=0o100444, hash=vformat.digest_of(0, zlib.compress(b""))))
        for tag in tags:
            name = b"/.cvmfs/snapshots/" + tag.encode()
            add_row(connection, name, b"/.cvmfs/snapshots", flags=0x4001, hardlinks=20)
            connection.execute("INSERT INTO bind_mountpoints VALUES (CAST(? AS TEXT), ?, ?)", (name,) + known[tag])
        connection.execute("UPDATE statistics SET value = 0")
        count(connection, self_dir=2 + len(tags), self_regular=1)
        connection.execute("UPDATE catalog SET rowid = rowid + 100000")
        for number, (rowid,) in enumerate(connection.execute("SELECT rowid FROM catalog").fetchall(), 1):
            connection.execute("UPDATE catalog SET rowid = ? WHERE rowid = ?", (number, rowid))
        connection.execute("UPDATE properties SET value = '/.cvmfs' WHERE key = 'root_prefix'")

    raw = repo.edit_database(repo.catalog(b"/auto/a"), child)
    value = repo.put(raw, "C")

    def parent(connection):
        add_row(connection, b"/.cvmfs", b"/auto/a", flags=0x8003, hardlinks=3, **look)
        connection.execute("INSERT INTO nested_catalogs VALUES ('/.cvmfs', ?, ?)", (hash_text(value), len(raw)))
        update(b"", "hardlinks = hardlinks + 1")(connection)
        count(connection, self_dir=1, self_nested=1, subtree_dir=2 + len(tags), subtree_regular=1)
    repo.edit_catalog(b"", parent)


@damage("bind-mountpoint")
def snapshot_without_tag(repo):
    repo.edit_history(execute("DELETE FROM tags WHERE name = 'v4'"))
    virtual_directory(repo, ["v1", "v2", "v3"])
    repo.edit_history(execute("DELETE FROM tags WHERE name = 'v2'"))


@damage("bind-mountpoint")
def tag_without_snapshot(repo):
    repo.edit_history(execute("DELETE FROM tags WHERE name = 'v4'"))
    virtual_directory(repo, ["v1", "v2"])


@damage("bind-mountpoint")
def snapshot_with_other_root(repo):
    virtual_directory(repo, ["v1", "v2", "v3", "v4"])


# objects

@damage("object-missing")
def missing_data_object(repo):
    repo.remove(data_of(repo, README))


@damage("object-missing", data=False)
def missing_data_object_without_reading(repo):
    repo.remove(data_of(repo, README))


@damage("object-missing")
def missing_chunk(repo):
    repo.remove(chunk_of(repo, 1))


@damage("object-missing")
def missing_nested_catalog(repo):
    repo.remove(object_path(repo.chain(b"/sw/app/1.0")[-1][1], "C"))


@damage("object-missing", "reflog-dangling")
def missing_root_catalog(repo):
    repo.remove(ticket(repo, "C"))


@damage("object-missing", "reflog-dangling")
def missing_tagged_catalog(repo):
    repo.remove("data/67/112c69c28ca49122d702bc68fc98b05a386ce8C")


for _key in "XHM":
    def _missing(repo, key=_key):
        repo.remove(ticket(repo, key))
    _missing.__name__ = "missing_object_" + _key
    damage("object-missing", "reflog-dangling")(_missing)


@damage("object-missing", all_tags=True)
def missing_object_of_a_tag(repo):
    head, old = set(), repo.plain(parse_hash("67112c69c28ca49122d702bc68fc98b05a386ce8"), "C")
    for path in (b"", b"/sw", b"/sw/app/1.0", b"/sw/app/1.0/lib", b"/sw/app/2.0", b"/auto/a", b"/auto/b", b"/auto/c",
                 "/nested with space/\u00fc".encode(), b"/layers/one"):
        head.update(row[0] for row in repo.query(repo.catalog(path), "SELECT hash FROM catalog"))
    gone = [row[0] for row in repo.query(old, "SELECT hash FROM catalog WHERE hash IS NOT NULL") if row[0] not in head]
    others = set()
    for text in ("81cb0767dd3098c1882ee6a1db77e72fa266671b", "d95b34533b08b5d52c94ccf91f92b1c9e4d35b5b"):
        others.update(row[0] for row in repo.query(repo.plain(parse_hash(text), "C"), "SELECT hash FROM catalog"))
    repo.remove(object_path((0, sorted(set(gone) - others)[0]), ""))


@damage("object-hash")
def damaged_data_object(repo):
    repo.flip(data_of(repo, README))


@damage("object-hash")
def damaged_chunk(repo):
    repo.flip(chunk_of(repo, 2))


@damage("object-hash")
def truncated_chunk(repo):
    name = chunk_of(repo, 2)
    repo.write(name, repo.get(name)[:-1])


@damage("object-hash")
def damaged_nested_catalog(repo):
    repo.flip(object_path(repo.chain(b"/sw/app/1.0")[-1][1], "C"))


@damage("object-hash")
def damaged_tagged_catalog(repo):
    repo.flip("data/67/112c69c28ca49122d702bc68fc98b05a386ce8C")


for _key in "CXHM":
    def _flipped(repo, key=_key):
        repo.flip(ticket(repo, key))
    _flipped.__name__ = "damaged_object_" + _key
    damage("object-hash")(_flipped)


def gzip_wrapper(data):
    engine = zlib.compressobj(6, zlib.DEFLATED, 31)
    return engine.compress(data) + engine.flush()


def cut_short(data):
    return zlib.compress(data)[:-6]


def wrong_adler(data):
    out = zlib.compress(data)
    return out[:-1] + bytes([out[-1] ^ 1])


def without_end(data):
    return zlib.compress(data)[:-4]


def with_tail(data):
    return zlib.compress(data) + b"x"


for _wrap in (gzip_wrapper, cut_short, wrong_adler, without_end, with_tail):
    def _inflate_data(repo, wrap=_wrap):
        value = repo.store(wrap(b"hello world\n"))
        repo.edit_catalog(b"", update(README, "hash = ?", value[1]))
    _inflate_data.__name__ = "data_object_" + _wrap.__name__
    damage("object-inflate")(_inflate_data)

    def _inflate_catalog(repo, wrap=_wrap):
        repo.edit_catalog(b"/auto/a", lambda c: None, compress=wrap)
    _inflate_catalog.__name__ = "catalog_" + _wrap.__name__
    damage("object-inflate")(_inflate_catalog)

    def _inflate_history(repo, wrap=_wrap):
        repo.replace("H", repo.store(wrap(repo.plain(repo.hash("H"), "H")), "H"))
    _inflate_history.__name__ = "history_" + _wrap.__name__
    damage("object-inflate")(_inflate_history)


@damage("object-size")
def file_with_other_size(repo):
    def edit(connection):
        update(README, "size = size + 1")(connection)
        count(connection, self_file_size=1)
    repo.edit_catalog(b"", edit)


@damage("object-size")
def chunk_boundary_moved(repo):
    def edit(connection):
        connection.execute("UPDATE chunks SET size = size + 1" + fixture.HERE + " AND offset = 0", at(CHUNKED))
        connection.execute("UPDATE chunks SET size = size - 1, offset = offset + 1" + CHUNK_ROW, at(CHUNKED))
    repo.edit_catalog(b"", edit)


@damage("object-size")
def uncompressed_file_with_other_size(repo):
    value = repo.store(b"hello world!\n")
    repo.edit_catalog(b"", update(README, "hash = ?, flags = ?", value[1], 4 | 0x800))


class TestDamages(Case):
    """One test for each damage."""

    def test_all_codes_are_seen(self):
        self.assertEqual(set(vcheck.CODES) - {code for _, codes, _ in DAMAGES for code in codes}, set())


def _add_test(function, codes, options):
    def test(self):
        repo = self.copy()
        function(repo)
        self.assert_codes(check(repo.root, **options), codes)
    test.__doc__ = None
    name = "test_" + function.__name__
    assert not hasattr(TestDamages, name), name
    setattr(TestDamages, name, test)


for _function, _codes, _options in DAMAGES:
    _add_test(_function, _codes, _options)


# --------------------------------------------------------------------------- what has to be accepted


class TestClean(Case):
    def test_reference_repository(self):
        report = check(PRISTINE, all_tags=True, chunking=CHUNKING)
        self.assert_clean(report)
        self.assertEqual(report.numbers["orphans"], 0)
        self.assertEqual(report.numbers["tags"], 6)
        self.assertEqual(report.numbers["reachable_objects"] + report.numbers["collectable_objects"],
                         report.numbers["stored_objects"])

    def test_reference_repository_without_allowance(self):
        report = check(PRISTINE, allowed=(), all_tags=True)
        self.assertEqual([(code, where) for code, where, _ in report.findings],
                         [("symlink-size", "/layers/one/usr/bin/conf")])
        self.assert_clean(check(PRISTINE, allowed=(), strict=False, all_tags=True))

    def test_rewriting_helpers_are_neutral(self):
        repo = self.copy()
        repo.write_whitelist()
        repo.edit_catalog(b"/sw/app/1.0/lib", lambda c: None)
        repo.edit_catalog(b"", update(b"/docs/readme.txt", "mtime = 5"))
        repo.edit_history(lambda c: None)
        self.assert_clean(check(repo.root, all_tags=True))

    def test_reflog_checksum_file(self):
        self.assert_clean(check(PRISTINE, checksum=Repo(PRISTINE).value("Y")))

    def test_alternative_links(self):
        repo = self.copy()
        alternative_links(repo)
        self.assert_clean(check(repo.root))

    def test_replica(self):
        repo = self.copy()
        repo.remove(".cvmfs_master_replica")
        repo.edit_reflog(execute("UPDATE refs SET timestamp = timestamp + 1"))
        self.assert_codes(check(repo.root), {"master-replica", "reflog-checksum"})
        self.assert_clean(check(repo.root, replica=True))
        repo.remove(".cvmfsreflog")
        self.assert_clean(check(repo.root, replica=True))
        self.assert_codes(check(repo.root, replica=True, checksum="0" * 40), {"reflog-missing"})

    def test_stale_y(self):
        repo = self.copy()
        repo.edit_reflog(execute("UPDATE refs SET timestamp = timestamp + 1"))
        self.assert_clean(check(repo.root, stale_y=True))

    def test_several_keys(self):
        other = vformat.certificate_key(fixture.read(fixture.key_file("crt")))[1]
        report = vcheck.check(LocalStore(PRISTINE), FQRN, [other] + KEYS, {"symlink-size"}, now=NOW)
        self.assert_clean(report)
        report = vcheck.check(LocalStore(PRISTINE), FQRN, [other], {"symlink-size"}, now=NOW)
        self.assert_codes(report, {"whitelist-signature"})

    def test_other_name(self):
        report = vcheck.check(LocalStore(PRISTINE), "other.ref.org", KEYS, {"symlink-size"}, now=NOW)
        self.assert_codes(report, {"whitelist-name", "manifest-name", "reflog-property", "history-property"})

    def test_whitelist_decoration(self):
        repo = self.copy()
        lines = whitelist_lines(repo)
        repo.write_whitelist(lines[:3] + ["# comment", "11:" * 19 + "11 # somebody", lines[3] + " # us"])
        self.assert_clean(check(repo.root))

    def test_whitelist_before_the_last_hour(self):
        self.assert_clean(check(PRISTINE, now=EXPIRY_HOUR - 1))

    def test_fingerprints_of_other_algorithms(self):
        repo = self.copy()
        der, _ = vformat.certificate_key(fixture.read(fixture.key_file("crt")))
        for algorithm in (1, 2):
            text = vformat.digest_of(algorithm, der).hex().upper()
            text = ":".join(text[i:i + 2] for i in range(0, 40, 2)) + vformat.ALGORITHM_TAGS[algorithm].upper()
            repo.write_whitelist(whitelist_lines(repo)[:3] + [text])
            self.assert_clean(check(repo.root))

    def test_orphans_are_information(self):
        repo = self.copy()
        repo.put(b"nobody needs this")
        repo.put(b"nor this", "P")
        raw = repo.edit_database(repo.catalog(b""), update(b"/docs/readme.txt", "mtime = 1"))
        repo.put(raw, "C")
        os.mkdir(repo.path("data/txn/left"))
        repo.write("left-behind", b"")
        report = check(repo.root)
        self.assert_clean(report)
        self.assertEqual(report.numbers["orphans"], 3)
        self.assertEqual(sorted(code for code, _, _ in report.infos if not code.startswith("allowed")),
                         ["orphan", "orphan", "orphan-root", "root-unknown", "txn"])

    def test_uncompressed_file(self):
        repo = self.copy()
        value = repo.store(b"hello world\n")
        repo.edit_catalog(b"", update(README, "hash = ?, flags = ?", value[1], 4 | 0x800))
        self.assert_clean(check(repo.root))

    def test_external_file(self):
        repo = self.copy()

        def edit(connection):
            update(README, "hash = ?, flags = ?", b"\1" * 20, 4 | 0x80 | 0x800)(connection)
            count(connection, self_external=1, self_external_file_size=12)
        repo.edit_catalog(b"", edit)
        self.assert_clean(check(repo.root, chunking=CHUNKING))

    def test_chunked_file_with_bulk_object(self):
        repo = self.copy()
        rows = repo.query(repo.catalog(b""), "SELECT hash FROM chunks" + fixture.HERE + " ORDER BY offset", *at(CHUNKED))
        whole = repo.put(b"".join(repo.plain((0, row[0]), "P") for row in rows))
        repo.edit_catalog(b"", update(CHUNKED, "hash = ?", whole[1]))
        self.assert_clean(check(repo.root, chunking=CHUNKING))

    def test_member_of_a_group_removed(self):
        repo = self.copy()

        def edit(connection):
            connection.execute("UPDATE catalog SET hardlinks = hardlinks - 1 WHERE hardlinks >> 32 = 2")
            connection.execute("DELETE FROM catalog" + fixture.HERE, at(b"/hard4/y"))
            count(connection, self_regular=-1, self_file_size=-18)
        repo.edit_catalog(b"", edit)
        self.assert_clean(check(repo.root))

    def test_virtual_directory(self):
        repo = self.copy()
        repo.edit_history(execute("DELETE FROM tags WHERE name = 'v4'"))
        virtual_directory(repo, ["v1", "v2", "v3"])
        self.assert_clean(check(repo.root, all_tags=True))
        root = repo.hash("C")
        store = LocalStore(repo.root)
        shown = [fields[0] for fields in vlist.list_repository(store, root)]
        self.assertFalse([path for path in shown if path.startswith(".cvmfs/")])
        shown = [fields[0] for fields in vlist.list_repository(store, root, hidden=True)]
        self.assertIn(".cvmfs/snapshots/v2", shown)

    def test_repository_as_after_mkfs(self):
        """Revision 0: no history, no TTL and no previous_revision in the catalog."""
        repo = self.copy()
        first = parse_hash("212e8828930aa7af4cbeb07642d6ecfef252fcb1")
        repo.set("C", hash_text(first))
        repo.set("B", "16384")
        repo.set("S", "0")
        repo.drop("H")
        repo.write_manifest()
        self.assert_clean(check(repo.root))

    def test_tolerated_by_readers(self):
        repo = self.copy()
        repo.edit_catalog(b"/auto/a", repage)
        repo.edit_catalog(b"/auto/b", execute("DROP INDEX idx_catalog_parent"))
        repo.edit_catalog(b"/auto/c", set_property("colour", "blue"))
        repo.edit_catalog(b"", set_nested("size = NULL"))
        self.assert_codes(check(repo.root), {"db-page-size", "db-schema", "catalog-property", "nested-row"})
        self.assert_clean(check(repo.root, strict=False))

    def test_other_hash_algorithms(self):
        for algorithm in (1, 2):
            with self.subTest(vformat.ALGORITHM_NAMES[algorithm]):
                repo = rehashed(os.path.join(self.directory, str(algorithm)), algorithm)
                self.assert_clean(check(repo.root, all_tags=True, chunking=CHUNKING))
                shown = vlist.list_repository(LocalStore(repo.root), repo.hash("C"))
                self.assertEqual([" ".join(fields) for fields in shown], manifest_lines(4))
                repo.flip(chunk_of_algorithm(repo))
                self.assert_codes(check(repo.root), {"object-hash"})

    def test_over_http(self):
        with serve(SCRATCH) as url:
            store = HttpStore(url + "/" + FQRN)
            self.assert_clean(check(store, all_tags=True))
            self.assert_clean(check(store, data=False))
        repo = self.copy()
        repo.remove(data_of(repo, README))
        repo.flip(chunk_of(repo, 1))
        with serve(repo.root) as url:
            store = HttpStore(url)
            self.assert_codes(check(store), {"object-missing", "object-hash"})
            self.assert_codes(check(store, data=False), {"object-missing"})


def chunk_of_algorithm(repo):
    digest, = repo.query(repo.catalog(b""), "SELECT hash FROM chunks LIMIT 1")[0]
    return object_path((repo.algorithm, digest), "P")


def rehashed(target, algorithm):
    """HEAD of the repository with all objects under another hash algorithm."""
    source = Repo(PRISTINE)
    os.makedirs(target)
    for number in range(256):
        os.makedirs(os.path.join(target, "data", "%02x" % number))
    for name in (".cvmfs_master_replica", ".cvmfspublished", ".cvmfswhitelist", ".cvmfsreflog"):
        os.link(source.path(name), os.path.join(target, name))
    repo = Repo(target)
    repo.algorithm = algorithm

    def convert(digest, suffix):
        return repo.store(source.get(object_path((0, digest), suffix)), suffix)[1]

    def convert_catalog(value):
        def edit(connection):
            for rowid, digest in connection.execute("SELECT rowid, hash FROM catalog WHERE hash IS NOT NULL").fetchall():
                connection.execute("UPDATE catalog SET hash = ? WHERE rowid = ?", (convert(digest, ""), rowid))
            for rowid, digest in connection.execute("SELECT rowid, hash FROM chunks").fetchall():
                connection.execute("UPDATE chunks SET hash = ? WHERE rowid = ?", (convert(digest, "P"), rowid))
            connection.execute("UPDATE catalog SET flags = flags | ? WHERE hash IS NOT NULL OR flags & 64",
                               (algorithm << 8,))
            for path, text in connection.execute("SELECT path, sha1 FROM nested_catalogs").fetchall():
                child, size = convert_catalog(parse_hash(text))
                connection.execute("UPDATE nested_catalogs SET sha1 = ?, size = ? WHERE path = CAST(? AS TEXT)",
                                   (hash_text(child), size, path))
        raw = repo.edit_database(source.plain(value, "C"), edit)
        return repo.put(raw, "C"), len(raw)

    root, size = convert_catalog(source.hash("C"))
    repo.edit_reflog(execute("DELETE FROM refs"))
    repo.add_ref(root, 0)
    repo.set("C", hash_text(root))
    repo.set("B", str(size))
    for key in "XM":
        repo.replace(key, repo.store(source.get(ticket(source, key)), key))

    def tags(connection):
        connection.execute("DELETE FROM tags WHERE name <> 'trunk'")
        connection.execute("UPDATE tags SET hash = ?, size = ?", (hash_text(root), size))
    repo.replace("H", repo.put(repo.edit_database(source.plain(source.hash("H"), "H"), tags), "H"))
    return repo


@contextlib.contextmanager
def serve(directory):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=directory))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield "http://127.0.0.1:%d" % server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --------------------------------------------------------------------------- listings and command line


def manifest_lines(version):
    with open(os.path.join(fixture.HOME, "MANIFEST.v%d.txt" % version), encoding="ascii") as handle:
        return handle.read().splitlines()[1:]


def run(*arguments):
    """(exit status, standard output) of the command line."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status = verify.main([str(a) for a in arguments])
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue()


class TestListings(Case):
    def test_tags_as_the_reference_client_shows_them(self):
        for version in (1, 2, 3, 4):
            with self.subTest(version):
                status, text = run("list", "--store", PRISTINE, "--fqrn", FQRN, "--pub", fixture.key_file("pub"),
                                   "--now", NOW, "--tag", "v%d" % version)
                self.assertEqual(status, 0)
                self.assertTrue(text.startswith("# path type mode size sha256 mtime linkcount target uid gid rdev xattrs"))
                self.assertEqual(text.splitlines()[1:], manifest_lines(version))

    def test_head_and_root(self):
        place = ("list", "--store", PRISTINE, "--fqrn", FQRN, "--no-header")
        self.assertEqual(run(*place)[1].splitlines(), manifest_lines(4))
        self.assertEqual(run(*place, "--root", "81cb0767dd3098c1882ee6a1db77e72fa266671b")[1].splitlines(),
                         manifest_lines(2))

    def test_variant_symlinks(self):
        root = Repo(PRISTINE).hash("C")

        def link(**options):
            rows = vlist.list_repository(LocalStore(PRISTINE), root, content=False, **options)
            row, = [fields for fields in rows if fields[0] == "links/variant"]
            return row[3], row[7]
        self.assertEqual(link(), ("18", "../docs/readme.txt"))
        self.assertEqual(link(environment={b"CVMFS_FIXTURE_VARIANT": b"x"}), ("12", "x/readme.txt"))
        self.assertEqual(link(expand=False), ("44", "$(CVMFS_FIXTURE_VARIANT:-../docs)/readme.txt"))

    def test_errors(self):
        place = ("list", "--store", PRISTINE, "--fqrn", FQRN)
        self.assertEqual(run(*place, "--tag", "v9")[0], 1)
        self.assertEqual(run(*place, "--root", "0" * 40)[0], 1)
        self.assertEqual(run(*place, "--ignore", "colour")[0], 1)
        self.assertEqual(run("list", "--store", self.directory + "/none", "--fqrn", FQRN)[0], 1)
        repo = self.copy()
        for change in ("xattr = 5", "symlink = NULL, mode = 41471", "mtime = NULL", "flags = 'x'", "name = NULL"):
            repo.edit_catalog(b"", update(README, change))
            self.assertEqual(run("list", "--store", repo.root, "--fqrn", FQRN)[0], 1)
            repo.edit_catalog(b"", lambda c: Repo(PRISTINE).catalog(b""))
        repo.flip(data_of(repo, README))
        self.assertEqual(run("list", "--store", repo.root, "--fqrn", FQRN)[0], 1)
        repo.flip(".cvmfspublished", -1)
        self.assertEqual(run("list", "--store", repo.root, "--fqrn", FQRN, "--pub", fixture.key_file("pub"))[0], 1)

    def make_tree(self):
        top = os.path.join(os.fsencode(self.directory), b"tree")
        os.makedirs(top + b"/dir with space/sub")
        for name, data in ((b"file", b"hello world\n"), (b"\xff%\\", b""), (b"dir with space/sub/\n", b"x")):
            with open(top + b"/" + name, "wb") as handle:
                handle.write(data)
        os.chmod(top + b"/file", 0o4750)
        os.link(top + b"/file", top + b"/same")
        os.link(top + b"/file", top + b"/dir with space/same")
        os.symlink("$(X)/to where", top + b"/link")
        os.mkfifo(top + b"/fifo", 0o600)
        for path in (b"/file", b"/dir with space"):
            os.utime(top + path, ns=(0, -1500000000))
        with contextlib.suppress(OSError):
            os.setxattr(top + b"/file", "user.b", b"\0\1")
            os.setxattr(top + b"/file", "user.a", b"")
        return top

    def test_tree(self):
        top = self.make_tree()
        rows = vlist.list_tree(top, uid=5, gid=6, links_per_directory=True)
        self.assertEqual([row[0] for row in rows], [
            ".", "dir%20with%20space", "dir%20with%20space/same", "dir%20with%20space/sub", "dir%20with%20space/sub/%0a",
            "fifo", "file", "link", "same", "%ff%25%5c"])
        file = dict((row[0], row) for row in rows)["file"]
        has = bool(os.listxattr(top + b"/file"))
        self.assertEqual(file, [
            "file", "f", "4750", "12", "a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447",
            "-2.500000000", "2", "-", "5", "6", "-", "user.a=,user.b=0001" if has else "-"])
        rows = dict((row[0], row) for row in vlist.list_tree(top))
        self.assertEqual(rows["file"][6], "3")
        self.assertEqual(rows["link"][7], "$(X)/to%20where")
        self.assertEqual(rows["fifo"][1:5], ["p", "0600", "0", "-"])

    def test_tree_and_diff_on_the_command_line(self):
        top = os.fsdecode(self.make_tree())
        one, two = os.path.join(self.directory, "one"), os.path.join(self.directory, "two")

        def tree(to, *more):
            status, text = run("tree", top, *more)
            self.assertEqual(status, 0)
            with open(to, "w", encoding="ascii") as handle:
                handle.write(text)
        tree(one)
        tree(two, "--uid", 7)
        self.assertEqual(run("diff", one, one), (0, ""))
        status, text = run("diff", one, two)
        self.assertEqual(status, 3)
        self.assertIn("! file: uid %d -> 7" % os.getuid(), text)
        self.assertEqual(run("diff", one, two, "--ignore", "uid")[0], 0)
        tree(two, "--no-dir-size", "--ignore", "linkcount,mtimens")
        self.assertEqual(run("diff", one, two)[0], 0)
        os.chmod(top + "/file", 0o700)
        os.unlink(top + "/link")
        os.mkdir(top + "/new")
        tree(two)
        _, text = run("diff", one, two, "--ignore", "dirmtime,dirlinkcount,dirsize,linkcount")
        self.assertEqual([row.split(" ")[:2] for row in text.splitlines()], [
            ["!", "dir%20with%20space/same:"], ["!", "file:"], ["-", "link"], ["+", "new"], ["!", "same:"]])
        self.assertEqual(run("diff", one, self.directory + "/none")[0], 1)


class TestCommandLine(Case):
    def check(self, store, *more):
        return run("check", "--store", store, "--fqrn", FQRN, "--pub", fixture.key_file("pub"), "--now", NOW, *more)

    def test_exit_status(self):
        self.assertEqual(self.check(PRISTINE, "--allow", "symlink-size")[0], 0)
        self.assertEqual(self.check(PRISTINE, "--no-strict", "--no-data")[0], 0)
        self.assertEqual(self.check(PRISTINE)[0], 3)
        self.assertEqual(self.check(PRISTINE, "--allow", "colour")[0], 1)
        self.assertEqual(self.check(self.directory + "/none")[0], 1)
        self.assertEqual(self.check("http://127.0.0.1:9/nothing")[0], 1)
        self.assertEqual(run("check")[0], 1)
        self.assertEqual(run("nothing")[0], 1)

    def test_json(self):
        status, text = self.check(PRISTINE, "--json", "--all-tags", "--chunks", "262144,524288,1048576")
        self.assertEqual(status, 3)
        lines = text.splitlines()
        self.assertEqual(lines[0], "symlink-size: /layers/one/usr/bin/conf: size 0, target of 14 bytes")
        summary = json.loads(lines[-1])
        self.assertEqual(summary["codes"], {"symlink-size": 1})
        self.assertEqual(summary["numbers"]["tags"], 6)
        self.assertFalse(summary["clean"])

    def test_reflog_checksum_file(self):
        path = os.path.join(self.directory, "reflog.chksum")
        with open(path, "w", encoding="ascii") as handle:
            handle.write(Repo(PRISTINE).value("Y"))
        self.assertEqual(self.check(PRISTINE, "--no-strict", "--reflog-checksum", path)[0], 0)
        with open(path, "w", encoding="ascii") as handle:
            handle.write("0" * 40)
        self.assertEqual(self.check(PRISTINE, "--no-strict", "--reflog-checksum", path)[0], 3)

    def test_codes(self):
        status, text = run("codes")
        self.assertEqual(status, 0)
        self.assertEqual(len(text.splitlines()), len(vcheck.CODES))


class TestFormats(unittest.TestCase):
    """Worked examples of the format description."""

    def test_hashes(self):
        data = bytes.fromhex("789ccb48cdc9c95728cf2fca49e102001e720467")
        self.assertEqual(zlib.compress(b"hello world\n", 6), data)
        for algorithm, text in enumerate((
                "ff049c626904064d641feca0e9936e5b211807c6", "100b60cb4cda089e58ccc0544cf55f7f3a543a87-rmd160",
                "ff338ab3cdd35a16eaf746dbbf97ca8b715f478a-shake128")):
            self.assertEqual(hash_text(vformat.hash_of(algorithm, data)), text)
            self.assertEqual(parse_hash(text), vformat.hash_of(algorithm, data))
        self.assertEqual(object_path(parse_hash(text), "C"), "data/ff/338ab3cdd35a16eaf746dbbf97ca8b715f478a-shake128C")
        for wrong in ("", "0" * 39, "0" * 41, "A" * 40, "0" * 40 + "C", "0" * 40 + "\n", "0" * 40 + "-sha1", None, 5):
            self.assertRaises(vformat.FormatError, parse_hash, wrong)

    def test_path_hashes(self):
        self.assertEqual(at(b""), (338333539836370388, 9098107892288553193))
        self.assertEqual(at(b"/a/b"), (-79414819578584146, 8517581007188477988))

    def test_xattrs(self):
        blob = bytes.fromhex("01021314") + b"security.capability" + bytes.fromhex(
            "0100000200040000000000000000000000000000") + b"\x06\x01user.a1"
        self.assertEqual([key for key, _ in vformat.parse_xattrs(blob)], [b"security.capability", b"user.a"])

    def test_variants(self):
        for target, expanded in ((b"a/$(X)/b", b"a/1/b"), (b"$(Y:-d e)", b"d e"), (b"$(Y)", b""), (b"$(X:-2)", b"1"),
                                 (b"$(X", b"$(X"), (b"x)$(X)$(Y:-)", b"x)1"), (b"plain", b"plain")):
            self.assertEqual(vformat.expand_variant(target, {b"X": b"1"}), expanded)

    def test_cut_marks(self):
        state, data = 1, bytearray()
        for _ in range(65536):
            state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
            data.append(state >> 24)
        self.assertEqual(data[:16].hex(), "3c5e81b40c5ec68e04a3406c97d63cfb")
        for sizes, cuts in (
                ((1024, 2048, 4096), "1860 5956 7356 9493 10651 12772 14161 15354 16885 17952 19473 20563 21766 22964 24210 "
                 "26136 27408 30121 31211 34552 37038 39105 43201 47247 48441 49614 50777 54059 55643 58964 60915 62454 "
                 "63689 65006"),
                ((4096, 8192, 16384), "6177 17952 23571 30121 35285 39763 47876 59614")):
            marks = [0] + [int(cut) for cut in cuts.split()] + [len(data)]
            for start, end in zip(marks, marks[1:]):
                follower = data[end:end + 1] or None
                piece = data[start:end]
                self.assertIsNone(vcheck.cut_problem(piece, follower, *sizes))
                if follower:
                    self.assertIsNotNone(vcheck.cut_problem(piece[:-1], piece[-1:], *sizes))
                    self.assertIsNotNone(vcheck.cut_problem(piece + follower, data[end + 1:end + 2], *sizes))

    def test_rsa(self):
        key = vformat.private_key(fixture.read(fixture.key_file("masterkey")))
        self.assertEqual(key[:2], KEYS[0])
        self.assertEqual(vformat.rsa_open(KEYS[0], fixture.sign(key, b"x" * 40)), b"x" * 40)
        self.assertIsNone(vformat.rsa_open(KEYS[0], bytes(256)))
        self.assertIsNone(vformat.rsa_open(KEYS[0], b""))


if __name__ == "__main__":
    unittest.main()
