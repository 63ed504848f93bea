"""The checks.  `check()` returns a Report; every kind of finding has a code listed in CODES."""

import collections
import json
import os
import re
import sqlite3
import stat
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import vformat
from vformat import FormatError, hash_text, object_path, percent
from vstore import Scratch, StoreError, inflate

CODES = {
    # storage
    "data-dir": "one of data/00 ... data/ff is missing",
    "data-unexpected": "something in data/ that is not an object",
    "permission": "an object, directory or root file is not readable for everyone",
    "master-replica": "no .cvmfs_master_replica",
    "alt-link": "A=yes, but a .cvmfsalt- link is missing or wrong",
    # whitelist
    "whitelist-missing": "no .cvmfswhitelist",
    "whitelist-format": "whitelist cannot be parsed",
    "whitelist-name": "whitelist is for another repository",
    "whitelist-expired": "whitelist has expired",
    "whitelist-hash": "hash line of the whitelist is wrong",
    "whitelist-signature": "no given public key verifies the whitelist",
    # manifest and what it names
    "manifest-missing": "no .cvmfspublished",
    "manifest-format": "lines of the manifest: missing, repeated, out of order, unknown, bad value",
    "manifest-size": "manifest of 4096 bytes or more (the C++ tools cannot read it from a directory)",
    "manifest-name": "N is another repository",
    "manifest-root-path": "R is not MD5 of the empty path",
    "manifest-hash": "hash line of the manifest is wrong",
    "manifest-signature": "signature does not belong to the certificate",
    "manifest-revision": "S differs from the root catalog's revision",
    "manifest-ttl": "D differs from the root catalog's TTL",
    "manifest-catalog-size": "B differs from the size of the root catalog",
    "manifest-time": "T is older than the root catalog's last_modified",
    "hash-algorithm": "manifest hash, Y, X, H, M or reflog use another hash algorithm than C",
    "certificate-format": "certificate object is not a PEM certificate with an RSA key",
    "certificate-not-listed": "fingerprint is not in the whitelist",
    "not-stock-zlib": "certificate or metainfo is not what stock zlib at level 6 produces",
    "metainfo-format": "metainfo is not a JSON object",
    # databases
    "db-open": "not a readable SQLite database",
    "db-wal": "database left in WAL mode",
    "db-header": "page count, encoding, user_version, application_id or auto_vacuum unusual",
    "db-page-size": "page size is not 1024",
    "db-integrity": "PRAGMA integrity_check",
    "db-foreign-key": "PRAGMA foreign_key_check",
    "db-schema": "tables and indexes are not exactly those of the format",
    # reflog
    "reflog-missing": "no .cvmfsreflog although the manifest or a checksum file says so",
    "reflog-checksum": "reflog does not match Y",
    "reflog-checksum-file": "reflog does not match the checksum file",
    "reflog-property": "properties of the reflog",
    "reflog-row": "a row of the reflog is malformed or of the wrong type",
    "reflog-incomplete": "a root catalog, certificate, history or metainfo in use is not in the reflog",
    "reflog-dangling": "an object in the reflog does not exist",
    # history
    "history-missing": "no history database although the repository has been published",
    "history-property": "properties of the history database",
    "history-row": "NULL, wrong type or illegal value in a row of the history",
    "history-branch": "branches: unknown, unused, wrong initial revision",
    "tag-trunk": "tag trunk is missing or differs from the manifest",
    "tag-previous": "tag trunk-previous is not the root catalog before this one",
    "tag-root": "a tag's root catalog cannot be loaded or is not a root catalog",
    "tag-row": "a tag's size, revision or timestamp differs from its root catalog",
    # catalogs
    "catalog-version": "schema is not 2.5 revision 7",
    "catalog-property": "a property is missing, unknown, misplaced or malformed",
    "catalog-prefix": "root_prefix is not the path of the catalog",
    "catalog-root": "root entry missing, no directory, or with wrong parent, name or flags",
    "catalog-previous": "revision or root_prefix do not follow previous_revision",
    "catalog-waste": "free pages or rowid gaps that should have been compacted away",
    "counter-set": "not exactly the 24 counters",
    "counter": "a counter differs from what was counted",
    "row-type": "NULL, wrong storage class or wrong length in table catalog",
    "entry-flags": "illegal combination of flags",
    "entry-mode": "mode does not fit the flags",
    "entry-name": "name empty, reserved, too long or with NUL or slash",
    "entry-path": "path hash is not that of the path",
    "entry-dangling": "row not reachable from the root entry",
    "entry-hash": "content hash missing or present where it must not be",
    "entry-size": "size is negative, or not 0 for a FIFO or socket",
    "entry-owner": "uid or gid is out of range",
    "entry-mtimens": "mtimens is not in 0...999999999",
    "entry-links": "link count of a file is 0, or above 1 without group",
    "dir-links": "link count of a directory is not 2 + sub-directories, or it has a group",
    "hardlink-group": "members of a hard link group disagree",
    "symlink-target": "empty target of a symlink, or target of something else",
    "symlink-size": "stored size of a symlink is not the length of its target",
    "xattr": "xattr blob malformed or unsorted",
    "chunk-layout": "chunks do not cover the file exactly, in order",
    "chunk-row": "a chunk row is malformed or belongs to no chunked file",
    "chunk-cut": "chunk boundaries differ from the cut mark algorithm",
    "marker-missing": "nested catalog without .cvmfscatalog",
    "marker-misplaced": ".cvmfscatalog that is not at the root of a nested catalog",
    "nested-registration": "mountpoints and rows of nested_catalogs / bind_mountpoints do not match",
    "nested-row": "hash or size in nested_catalogs is malformed",
    "nested-size": "size in nested_catalogs differs from the nested catalog",
    "nested-not-empty": "the parent catalog has entries below a mountpoint",
    "transition": "mountpoint row in the parent and root row in the child differ",
    "bind-mountpoint": "snapshot directory does not match the tags",
    # objects
    "object-missing": "an object in use does not exist",
    "object-hash": "stored bytes do not hash to the name",
    "object-inflate": "zlib stream malformed, unterminated or followed by something",
    "object-size": "content is not as long as its row says",
}

COUNTERS = ("regular", "symlink", "special", "dir", "nested", "chunked", "chunks", "file_size", "chunked_size",
            "xattr", "external", "external_file_size")

PROPERTIES_SQL = "CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key))"
CATALOG_SCHEMA = {
    ("table", "properties"): PROPERTIES_SQL,
    ("table", "catalog"):
        "CREATE TABLE catalog (md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER, "
        "hardlinks INTEGER, hash BLOB, size INTEGER, mode INTEGER, mtime INTEGER, mtimens INTEGER, "
        "flags INTEGER, name TEXT, symlink TEXT, uid INTEGER, gid INTEGER, xattr BLOB, "
        "CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2))",
    ("index", "idx_catalog_parent"): "CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2)",
    ("table", "chunks"):
        "CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER, hash BLOB, "
        "CONSTRAINT pk_chunks PRIMARY KEY (md5path_1, md5path_2, offset, size), "
        "FOREIGN KEY (md5path_1, md5path_2) REFERENCES catalog(md5path_1, md5path_2))",
    ("table", "nested_catalogs"):
        "CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT, size INTEGER, "
        "CONSTRAINT pk_nested_catalogs PRIMARY KEY (path))",
    ("table", "bind_mountpoints"):
        "CREATE TABLE bind_mountpoints (path TEXT, sha1 TEXT, size INTEGER, "
        "CONSTRAINT pk_bind_mountpoints PRIMARY KEY (path))",
    ("table", "statistics"):
        "CREATE TABLE statistics (counter TEXT, value INTEGER, CONSTRAINT pk_statistics PRIMARY KEY (counter))",
}
HISTORY_SCHEMA = {
    ("table", "properties"): PROPERTIES_SQL,
    ("table", "branches"):
        "CREATE TABLE branches (branch TEXT, parent TEXT, initial_revision INTEGER, "
        "CONSTRAINT pk_branch PRIMARY KEY (branch), FOREIGN KEY (parent) REFERENCES branches (branch), "
        "CHECK ((branch <> '') OR (parent IS NULL)), CHECK ((branch = '') OR (parent IS NOT NULL)))",
    ("table", "tags"):
        "CREATE TABLE tags (name TEXT, hash TEXT, revision INTEGER, timestamp INTEGER, channel INTEGER, "
        "description TEXT, size INTEGER, branch TEXT, CONSTRAINT pk_tags PRIMARY KEY (name), "
        "FOREIGN KEY (branch) REFERENCES branches (branch))",
    ("table", "recycle_bin"):
        "CREATE TABLE recycle_bin (hash TEXT, flags INTEGER, CONSTRAINT pk_hash PRIMARY KEY (hash))",
}
REFLOG_SCHEMA = {
    ("table", "properties"): PROPERTIES_SQL,
    ("table", "refs"):
        "CREATE TABLE refs (hash TEXT, type INTEGER, timestamp INTEGER, CONSTRAINT pk_refs PRIMARY KEY (hash))",
}
REFLOG_SUFFIX = "CXHM"                                     # index == type

# flags
DIR, MOUNTPOINT, FILE, LINK, SPECIAL, NESTED_ROOT, CHUNKED, EXTERNAL = 1, 2, 4, 8, 16, 32, 64, 128
BIND, HIDDEN, DIRECT_IO = 0x4000, 0x8000, 0x10000

ROW = collections.namedtuple(
    "ROW", "m1 m2 p1 p2 hardlinks hash size mode mtime mtimens flags name symlink uid gid xattr")
ROW_SQL = ("SELECT md5path_1, md5path_2, parent_1, parent_2, hardlinks, hash, size, mode, mtime, mtimens, "
           "flags, name, symlink, uid, gid, xattr FROM catalog")
ROW_TYPES = {"md5path_1": "integer", "md5path_2": "integer", "parent_1": "integer", "parent_2": "integer",
             "hardlinks": "integer", "size": "integer", "mode": "integer", "mtime": "integer",
             "flags": "integer", "name": "text", "symlink": "text", "uid": "integer", "gid": "integer"}
ROW_NULLABLE = {"hash": "blob", "mtimens": "integer", "xattr": "blob"}


# the second: SQLite quotes garbage from the file in its error message
UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)


class Fatal(Exception):
    """Nothing more can be checked; the reason has been reported."""


class Report:
    def __init__(self, allowed=()):
        self.findings = []
        self.infos = []
        self.allowed = set(allowed)
        self.numbers = {}

    def add(self, code, where, message):
        assert code in CODES, code
        if isinstance(where, bytes):
            where = percent(where) or "/"
        if code in self.allowed:
            self.infos.append(("allowed:" + code, where, message))
        else:
            self.findings.append((code, where, message))

    def info(self, code, where, message):
        if isinstance(where, bytes):
            where = percent(where) or "/"
        self.infos.append((code, where, message))

    def codes(self):
        return {code for code, _, _ in self.findings}


class Catalog:
    """What stays in memory of a catalog once it has been checked."""
    __slots__ = ("hash", "path", "size", "properties", "root", "nested", "mounts", "binds", "counters",
                 "subtree", "revision", "modified", "entries")


class Checker:
    def __init__(self, store, fqrn, keys, report, now=None, strict=True, data=True, replica=False, stale_y=False,
                 checksum=None, all_tags=False, chunking=None, threads=4):
        self.store, self.fqrn, self.keys, self.report = store, fqrn, keys, report
        self.now = time.time() if now is None else now
        self.strict, self.data, self.replica = strict, data, replica
        self.stale_y = stale_y or replica
        self.checksum, self.all_tags, self.chunking, self.threads = checksum, all_tags, chunking, threads
        self.scratch = Scratch()
        self.listing = None                # object name -> size, local storage only
        self.objects = {}                  # (algorithm, digest, suffix) -> {(compression, size): path}
        self.good = set()                  # object names already read and found in order
        self.bad = set()                   # databases that cannot be used, reported
        self.catalogs = {}                 # hash -> Catalog or None
        self.light = {}                    # hash -> (size, properties) or None
        self.contents = {}                 # for the chunk boundaries: key -> (path, size, compression, objects)
        self.manifest = None
        self.refs = None
        self.tags = {}

    # ------------------------------------------------------------------ top level

    def run(self):
        try:
            self.scan_storage()
            self.check_whitelist()
            self.check_manifest()
            self.check_certificate()
            self.check_metainfo()
            self.check_reflog()
            self.check_history()
            self.check_trees()
            self.check_chain()
            self.check_objects()
            if self.chunking:
                self.check_cuts()
            self.check_orphans()
        except Fatal:
            pass
        finally:
            self.scratch.close()
        numbers = self.report.numbers
        numbers["catalogs"] = sum(1 for c in self.catalogs.values() if c)
        numbers["entries"] = sum(c.entries for c in self.catalogs.values() if c)
        numbers["objects"] = len(self.objects)
        numbers["tags"] = len(self.tags)

    def finding(self, code, where, message):
        self.report.add(code, where, message)

    # ------------------------------------------------------------------ storage

    def scan_storage(self):
        if not self.store.local:
            if not self.store.exists(".cvmfs_master_replica") and not self.replica:
                self.finding("master-replica", ".cvmfs_master_replica", "does not exist")
            return
        root = self.store.root
        self.listing = {}
        total = 0
        for entry in sorted(os.scandir(root), key=lambda e: e.name):
            if entry.name.startswith(".cvmfs") and entry.is_file(follow_symlinks=False):
                if not entry.stat().st_mode & 0o004:
                    self.finding("permission", entry.name, "not readable for others")
            if entry.name.startswith(".cvmfs") or entry.name in ("data", "stats"):
                continue
            self.report.info("root-unknown", entry.name, "unknown entry in the repository root")
        if not self.replica and not self.store.exists(".cvmfs_master_replica"):
            self.finding("master-replica", ".cvmfs_master_replica", "does not exist")
        data = os.path.join(root, "data")
        if not os.path.isdir(data):
            self.finding("data-dir", "data", "does not exist")
            raise Fatal
        present = set()
        for entry in sorted(os.scandir(data), key=lambda e: e.name):
            name = "data/" + entry.name
            if entry.is_symlink() or not entry.is_dir():
                self.finding("data-unexpected", name, "not a directory")
                continue
            if entry.name == "txn":
                left = sorted(os.listdir(entry.path))
                if left and left != ["receiver"]:
                    self.report.info("txn", name, "%d entries: %s" % (len(left), " ".join(left[:5])))
                continue
            if not re.fullmatch("[0-9a-f]{2}", entry.name):
                self.finding("data-unexpected", name, "unexpected directory")
                continue
            present.add(entry.name)
            if entry.stat().st_mode & 0o005 != 0o005:
                self.finding("permission", name, "directory mode %04o" % stat.S_IMODE(entry.stat().st_mode))
            for item in os.scandir(entry.path):
                if not item.is_file(follow_symlinks=False) or not vformat.OBJECT_NAME.match(item.name):
                    self.finding("data-unexpected", name + "/" + item.name, "not an object")
                    continue
                status = item.stat(follow_symlinks=False)
                if not status.st_mode & 0o004:
                    self.finding("permission", name + "/" + item.name, "mode %04o" % stat.S_IMODE(status.st_mode))
                self.listing[name + "/" + item.name] = status.st_size
                total += status.st_size
        for number in range(256):
            if "%02x" % number not in present:
                self.finding("data-dir", "data/%02x" % number, "does not exist")
        self.report.numbers["stored_objects"] = len(self.listing)
        self.report.numbers["stored_bytes"] = total

    def exists(self, name):
        return name in self.listing if self.listing is not None else self.store.exists(name)

    # ------------------------------------------------------------------ whitelist, manifest, certificate

    def check_whitelist(self):
        self.fingerprints = None
        data = self.store.get(".cvmfswhitelist")
        where = ".cvmfswhitelist"
        if data is None:
            self.finding("whitelist-missing", where, "does not exist")
            return
        try:
            whitelist = vformat.Whitelist(data)
            expected = vformat.parse_hash(whitelist.hash_text)
        except FormatError as error:
            self.finding("whitelist-format", where, str(error))
            return
        self.fingerprints = whitelist.fingerprints
        if whitelist.pkcs7:
            self.finding("whitelist-format", where, "PKCS#7 whitelists do not work with the reference client")
        if whitelist.name != self.fqrn:
            self.finding("whitelist-name", where, "is for %r" % whitelist.name)
        if whitelist.expired(self.now):
            self.finding("whitelist-expired", where, "expired %d hours ago" %
                         (int(self.now) // 3600 - whitelist.expiry_hour))
        if vformat.hash_of(expected[0], whitelist.text) != expected:
            self.finding("whitelist-hash", where, "text does not hash to %s" % whitelist.hash_text)
        payload = whitelist.hash_text.encode()
        if not any(vformat.rsa_open(key, whitelist.signature) == payload for key in self.keys):
            self.finding("whitelist-signature", where, "signature does not verify")

    def check_manifest(self):
        where = ".cvmfspublished"
        data = self.store.get(where)
        if data is None:
            self.finding("manifest-missing", where, "does not exist")
            raise Fatal
        try:
            manifest = self.manifest = vformat.Manifest(data)
            expected = vformat.parse_hash(manifest.hash_text)
        except FormatError as error:
            self.finding("manifest-format", where, str(error))
            raise Fatal
        if len(data) >= 4096:
            self.finding("manifest-size", where, "%d bytes" % len(data))
        for problem in manifest.format_problems():
            self.finding("manifest-format", where, problem)
        if manifest.get("N") not in (None, self.fqrn):
            self.finding("manifest-name", where, "N is %r" % manifest.get("N"))
        if manifest.get("R") not in (None, vformat.ROOT_PATH_HASH):
            self.finding("manifest-root-path", where, "R is %r" % manifest.get("R"))
        if vformat.hash_of(expected[0], manifest.text) != expected:
            self.finding("manifest-hash", where, "text does not hash to %s" % manifest.hash_text)
        try:
            hashes = {key: manifest.hash(key) for key in "CXHMY"}
        except FormatError:
            raise Fatal
        if hashes["C"] is None:
            raise Fatal
        algorithm = hashes["C"][0]
        if expected[0] != algorithm:
            self.finding("hash-algorithm", where, "manifest hash %s, C %s" % (manifest.hash_text, manifest.get("C")))
        for key in "XHMY":
            if hashes[key] is not None and hashes[key][0] != algorithm and (self.strict or key == "Y"):
                self.finding("hash-algorithm", where, "%s is %s, C %s" % (key, manifest.get(key), manifest.get("C")))
        self.hashes = hashes
        if manifest.get("A") == "yes":
            self.check_alt_links()

    def check_alt_links(self):
        for key in "XCHM":
            value = self.hashes[key]
            if value is None:
                continue
            name, target = ".cvmfsalt-%s%s" % (hash_text(value), key), object_path(value, key)
            if not self.store.local:
                if not self.store.exists(name):
                    self.finding("alt-link", name, "does not exist")
                continue
            try:
                found = os.readlink(os.path.join(self.store.root, name))
            except OSError as error:
                self.finding("alt-link", name, error.strerror)
                continue
            if found != target:
                self.finding("alt-link", name, "points to %r" % found)

    def load(self, value, suffix, needed=True):
        """Plain bytes of a small zlib object that is checked on the way; None after reporting."""
        name = object_path(value, suffix)
        if name in self.bad:
            return None
        data = self.store.get(name) if self.listing is None or name in self.listing else None
        if data is None:
            if needed:
                self.finding("object-missing", name, "does not exist")
                self.bad.add(name)
            return None
        if vformat.digest_of(value[0], data) != value[1]:
            self.finding("object-hash", name, "stored bytes do not hash to the name")
            self.bad.add(name)
            return None
        try:
            plain = inflate(data)
        except FormatError as error:
            self.finding("object-inflate", name, str(error))
            self.bad.add(name)
            return None
        self.good.add(name)
        if suffix in "XM" and zlib.compress(plain, 6) != data:
            self.finding("not-stock-zlib", name, "recompresses to other bytes")
        return plain

    def use(self, value, suffix, path):
        self.objects.setdefault((value[0], value[1], suffix), {}).setdefault((0, None), path)

    def check_certificate(self):
        value = self.hashes["X"]
        if value is None:
            return
        self.use(value, "X", b"")
        pem = self.load(value, "X")
        if pem is None:
            return
        where = object_path(value, "X")
        try:
            der, key = vformat.certificate_key(pem)
        except (FormatError, IndexError) as error:
            self.finding("certificate-format", where, str(error))
            return
        if self.fingerprints is not None:
            if not any(vformat.digest_of(algorithm, der) == digest for algorithm, digest in self.fingerprints):
                self.finding("certificate-not-listed", where, "fingerprint not in the whitelist")
        payload = vformat.rsa_open(key, self.manifest.signature)
        if payload != vformat.SHA1_DIGEST_INFO + vformat.digest_of(0, self.manifest.hash_text.encode()):
            self.finding("manifest-signature", ".cvmfspublished", "signature does not verify")

    def check_metainfo(self):
        value = self.hashes["M"]
        if value is None:
            return
        self.use(value, "M", b"")
        text = self.load(value, "M")
        if text is None:
            return
        try:
            if not isinstance(json.loads(text.decode("utf-8")), dict):
                raise ValueError("not an object")
        except ValueError as error:
            self.finding("metainfo-format", object_path(value, "M"), str(error))

    # ------------------------------------------------------------------ databases in general

    def open_database(self, raw, where, schema):
        """Connection to a database whose general properties have been checked, None if unusable."""
        if raw[:16] != b"SQLite format 3\0" or len(raw) < 512:
            self.finding("db-open", where, "not an SQLite database")
            return None
        if raw[18:20] != b"\1\1":
            self.finding("db-wal", where, "read/write version %d/%d in the header" % (raw[18], raw[19]))
        page_size = struct.unpack(">H", raw[16:18])[0]
        page_size = 65536 if page_size == 1 else page_size
        if self.strict and page_size != 1024:
            self.finding("db-page-size", where, "page size %d" % page_size)
        pages, = struct.unpack(">I", raw[28:32])
        if pages * page_size != len(raw):
            self.finding("db-header", where, "%d pages of %d bytes in a file of %d" % (pages, page_size, len(raw)))
        values = dict(zip(("auto_vacuum", "encoding", "user_version"), struct.unpack(">III", raw[52:64])),
                      application_id=struct.unpack(">I", raw[68:72])[0])
        for key, value in values.items():
            if value != (key == "encoding") and (self.strict or key == "encoding"):
                self.finding("db-header", where, "%s is %d" % (key, value))
        try:
            connection = self.scratch.connect(raw)
            for row in connection.execute("PRAGMA integrity_check(3)").fetchall():
                if row[0] != b"ok":
                    self.finding("db-integrity", where, row[0].decode("utf-8", "replace").replace("\n", " "))
            broken = connection.execute("PRAGMA foreign_key_check").fetchall()
            if broken:
                self.finding("db-foreign-key", where, "%d rows, first in table %s" % (len(broken), broken[0][0].decode()))
            found = {(kind.decode(), name.decode("latin-1")): sql for kind, name, sql in
                     connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
                     if not name.startswith(b"sqlite_")}
        except UNREADABLE as error:
            self.finding("db-open", where, str(error))
            return None
        usable = True
        for key, sql in sorted(schema.items()):
            if key not in found:
                if self.strict or key[0] == "table":
                    self.finding("db-schema", where, "no %s %s" % key)
                usable = usable and key[0] != "table"
            elif vformat.normal_sql(found[key]) != vformat.normal_sql(sql):
                if self.strict:
                    self.finding("db-schema", where, "%s %s: %s" % (key + (found[key].decode("utf-8", "replace"),)))
                if key[0] == "table":
                    wanted = re.findall(r"(\w+) (?:INTEGER|TEXT|BLOB)", sql)
                    there = [row[1].decode("latin-1") for row in connection.execute("PRAGMA table_info(%s)" % key[1])]
                    missing = [column for column in wanted if column not in there]
                    if missing:
                        usable = False
                        if not self.strict:
                            self.finding("db-schema", where, "%s has no column %s" % (key[1], missing[0]))
        for key in sorted(set(found) - set(schema)):
            if self.strict:
                self.finding("db-schema", where, "additional %s %s" % key)
        return connection if usable else None

    @staticmethod
    def properties(connection):
        out = {}
        for key, value in connection.execute("SELECT key, value FROM properties"):
            out[key.decode("latin-1") if isinstance(key, bytes) else str(key)] = value
        return out

    # ------------------------------------------------------------------ reflog

    def check_reflog(self):
        where = ".cvmfsreflog"
        raw = self.store.get(where)
        y = self.hashes["Y"]
        if raw is None:
            if not self.replica or self.checksum is not None:
                self.finding("reflog-missing", where, "does not exist")
            return
        algorithm = self.hashes["C"][0]
        if self.checksum is not None:
            try:
                expected = vformat.parse_hash(self.checksum)
                if vformat.hash_of(expected[0], raw) != expected:
                    self.finding("reflog-checksum-file", where, "does not hash to %s" % self.checksum)
                if expected[0] != algorithm and self.strict:
                    self.finding("hash-algorithm", where, "checksum file has %s" % self.checksum)
            except FormatError as error:
                self.finding("reflog-checksum-file", where, str(error))
        if y is not None and vformat.hash_of(y[0], raw) != y:
            if self.stale_y:
                self.report.info("reflog-checksum", where, "does not match Y of the manifest")
            else:
                self.finding("reflog-checksum", where, "does not hash to %s" % hash_text(y))
        connection = self.open_database(raw, where, REFLOG_SCHEMA)
        if connection is None:
            return
        properties = self.properties(connection)
        expected = {"schema": b"1.0", "schema_revision": b"0", "fqrn": self.fqrn.encode()}
        for key in sorted(set(properties) | set(expected)):
            if properties.get(key) != expected.get(key):
                self.finding("reflog-property", where, "%s is %r" % (key, properties.get(key)))
        self.refs = {}
        for text, kind, timestamp in connection.execute("SELECT hash, type, timestamp FROM refs"):
            try:
                value = vformat.parse_hash(text)
            except FormatError as error:
                self.finding("reflog-row", where, str(error))
                continue
            if kind not in (0, 1, 2, 3) or not isinstance(timestamp, int) or timestamp <= 0:
                self.finding("reflog-row", where, "%s: type %r, timestamp %r" % (text.decode(), kind, timestamp))
            if kind not in (0, 1, 2, 3):
                continue
            self.refs[value] = kind
            if not self.exists(object_path(value, REFLOG_SUFFIX[kind])):
                self.finding("reflog-dangling", where, "%s does not exist" % object_path(value, REFLOG_SUFFIX[kind]))
        connection.close()
        for kind, key in enumerate("CXHM"):
            if self.hashes[key] is not None:
                self.need_ref(self.hashes[key], kind, "manifest " + key)

    def need_ref(self, value, kind, what):
        if self.refs is None:
            return
        if value not in self.refs:
            self.finding("reflog-incomplete", ".cvmfsreflog", "%s: %s%s not listed" %
                         (what, hash_text(value), REFLOG_SUFFIX[kind]))
        elif self.refs[value] != kind:
            self.finding("reflog-row", ".cvmfsreflog", "%s: %s has type %d" % (what, hash_text(value), self.refs[value]))

    # ------------------------------------------------------------------ history

    def check_history(self):
        value = self.hashes["H"]
        if value is None:
            if self.manifest.number("S") != 0 and self.strict:
                self.finding("history-missing", ".cvmfspublished", "no H")
            return
        self.use(value, "H", b"")
        raw = self.load(value, "H")
        if raw is None:
            return
        where = object_path(value, "H")
        connection = self.open_database(raw, where, HISTORY_SCHEMA)
        if connection is None:
            return
        properties = self.properties(connection)
        expected = {"schema": b"1.0", "schema_revision": b"3", "fqrn": self.fqrn.encode()}
        for key in sorted(set(properties) | set(expected) | {"previous_revision"}):
            if key == "previous_revision":
                try:
                    previous = vformat.parse_hash(properties.get(key))
                    if not vformat.is_null(previous) and self.exists(object_path(previous, "H")):
                        self.need_ref(previous, 2, "previous history")
                except FormatError as error:
                    self.finding("history-property", where, "previous_revision: %s" % error)
            elif properties.get(key) != expected.get(key):
                self.finding("history-property", where, "%s is %r" % (key, properties.get(key)))
        if connection.execute("SELECT count(*) FROM recycle_bin").fetchone()[0]:
            self.finding("history-row", where, "recycle_bin is not empty")
        branches = {}
        for branch, parent, initial in connection.execute("SELECT branch, parent, initial_revision FROM branches"):
            if not isinstance(branch, bytes) or not isinstance(initial, int) or \
                    not re.fullmatch(rb"[A-Za-z0-9._@/-]*", branch):
                self.finding("history-row", where, "branch %r, initial revision %r" % (branch, initial))
                continue
            branches[branch] = initial
        used = set()
        for row in connection.execute("SELECT name, hash, revision, timestamp, channel, description, size, branch, "
                                      "typeof(name) || typeof(hash) || typeof(revision) || typeof(timestamp) || "
                                      "typeof(channel) || typeof(description) || typeof(size) || typeof(branch) "
                                      "FROM tags ORDER BY timestamp, revision"):
            name, text, revision, timestamp, channel, description, size, branch, types = row
            shown = "tag %s" % (percent(name) if isinstance(name, bytes) else repr(name))
            if types != b"texttextintegerintegerintegertextintegertext":
                self.finding("history-row", where, "%s: NULL or wrong type in a column" % shown)
                continue
            if not name or re.search(rb"[\s\0]", name) or channel != 0 or revision < 0 or size <= 0:
                self.finding("history-row", where, "%s: bad name, channel, revision or size" % shown)
            try:
                root = vformat.parse_hash(text)
            except FormatError as error:
                self.finding("history-row", where, "%s: %s" % (shown, error))
                continue
            if branch not in branches:
                self.finding("history-branch", where, "%s is on the unknown branch %r" % (shown, branch))
            elif revision < branches[branch]:
                self.finding("history-branch", where, "%s is older than its branch" % shown)
            used.add(branch)
            self.tags[name] = (root, revision, timestamp, size, branch)
        for branch in sorted(set(branches) - used):
            self.finding("history-branch", where, "branch %r is not used by any tag" % branch)
        connection.close()
        self.check_tags(where)

    def check_tags(self, where):
        for name, (root, revision, timestamp, size, _) in self.tags.items():
            self.need_ref(root, 0, "tag " + percent(name))
            found = self.glance(root)
            if found is None and self.load(root, "C") is None:
                continue                                    # reported, if for the first time
            if found is None or "root_prefix" in found[1]:
                self.bad.add(object_path(root, "C"))
                self.finding("tag-root", where, "tag %s: %s is no root catalog" %
                             (percent(name), object_path(root, "C")))
                continue
            recorded = (size, b"%d" % revision, b"%d" % timestamp)
            actual = (found[0], found[1].get("revision"), found[1].get("last_modified"))
            for what, left, right in zip(("size", "revision", "timestamp"), recorded, actual):
                if left != right:
                    self.finding("tag-row", where, "tag %s: %s %s, its catalog has %s" %
                                 (percent(name), what, _text(left), _text(right)))
        trunk = self.tags.get(b"trunk")
        if trunk is None:
            self.finding("tag-trunk", where, "no tag trunk")
            return
        if trunk[0] != self.hashes["C"]:
            self.finding("tag-trunk", where, "trunk is %s, C is %s" % (hash_text(trunk[0]), self.manifest.get("C")))
        elif trunk[1] != self.manifest.number("S"):
            self.finding("tag-trunk", where, "trunk has revision %d, S is %s" % (trunk[1], self.manifest.get("S")))
        if trunk[4] != b"":
            self.finding("tag-trunk", where, "trunk is on branch %r" % trunk[4])
        previous = self.tags.get(b"trunk-previous")
        if previous is not None:
            # after a rollback there is none
            head = self.glance(self.hashes["C"])
            if head and self.strict and head[1].get("previous_revision") != hash_text(previous[0]).encode():
                self.finding("tag-previous", where, "trunk-previous is %s, previous_revision of the root catalog %s" %
                             (hash_text(previous[0]), _text(head[1].get("previous_revision"))))
            if previous[1] >= trunk[1]:
                self.finding("tag-previous", where, "trunk-previous has revision %d, trunk %d" %
                             (previous[1], trunk[1]))
        elif len(self.tags) > 1:
            self.report.info("tag-previous", where, "no tag trunk-previous")

    def glance(self, value):
        """(size, properties) of a catalog that exists and can be read, without checking or reporting anything."""
        if value not in self.light:
            self.light[value] = None
            name = object_path(value, "C")
            data = self.store.get(name) if self.listing is None or name in self.listing else None
            if data is not None and vformat.digest_of(value[0], data) == value[1]:
                try:
                    raw = inflate(data)
                    connection = self.scratch.connect(raw)
                    self.light[value] = (len(raw), self.properties(connection))
                    connection.close()
                except (FormatError,) + UNREADABLE:
                    pass
        return self.light[value]

    # ------------------------------------------------------------------ trees

    def check_trees(self):
        head = self.visit_tree(self.hashes["C"])
        if head is not None:
            manifest = self.manifest
            if manifest.number("S") is not None and head.revision != manifest.number("S"):
                self.finding("manifest-revision", ".cvmfspublished", "S is %s, the root catalog has revision %s" %
                             (manifest.get("S"), head.revision))
            ttl = _number(head.properties.get("TTL", b"240"))
            if manifest.number("D") is not None and ttl != manifest.number("D"):
                self.finding("manifest-ttl", ".cvmfspublished", "D is %s, TTL %s" % (manifest.get("D"), ttl))
            if manifest.number("B") is not None and head.size != manifest.number("B"):
                self.finding("manifest-catalog-size", ".cvmfspublished", "B is %s, the root catalog has %d bytes" %
                             (manifest.get("B"), head.size))
            if manifest.number("T") is not None and (head.modified or 0) > manifest.number("T"):
                self.finding("manifest-time", ".cvmfspublished", "T is %s, last_modified %s" %
                             (manifest.get("T"), head.modified))
            self.check_snapshots(head)
        if self.all_tags:
            for name, (root, _, _, _, _) in sorted(self.tags.items()):
                if object_path(root, "C") not in self.bad:
                    self.visit_tree(root)

    def visit_tree(self, root_hash):
        """Check the catalog and everything below it that has not been checked yet."""
        top = self.visit(root_hash, b"")
        todo = [top] if top else []
        order, seen = [], set()
        while todo:
            catalog = todo.pop()
            if catalog.hash in seen:
                continue
            seen.add(catalog.hash)
            order.append(catalog)
            for path, (child_hash, _) in catalog.nested.items():
                if child_hash is None:
                    continue
                child = self.visit(child_hash, path)
                if child is not None:
                    todo.append(child)
        for catalog in reversed(order):
            if catalog.subtree is None:
                self.check_children(catalog)
        return top

    def visit(self, value, path):
        if value in self.catalogs:
            known = self.catalogs[value]
            if known is not None and known.path != path:
                self.finding("catalog-prefix", path, "catalog %s is also mounted at %s" %
                             (hash_text(value), percent(known.path)))
                return None
            return known
        self.catalogs[value] = None
        self.use(value, "C", path)
        raw = self.load(value, "C")
        if raw is None:
            return None
        where = "%s (%s)" % (percent(path) or "/", object_path(value, "C"))
        connection = self.open_database(raw, where, CATALOG_SCHEMA)
        if connection is None:
            self.bad.add(object_path(value, "C"))
            return None
        try:
            self.catalogs[value] = self.check_catalog(connection, value, raw, path, where)
        except UNREADABLE as error:
            self.finding("db-open", where, str(error))
        connection.close()
        return self.catalogs[value]

    def check_properties(self, catalog, where):
        properties, nested = catalog.properties, catalog.path != b""
        if properties.get("schema") != b"2.5" or \
                (properties.get("schema_revision") != b"7" if self.strict else "schema_revision" not in properties):
            self.finding("catalog-version", where, "schema %s revision %s" %
                         (_text(properties.get("schema")), _text(properties.get("schema_revision"))))
        allowed = {"schema", "schema_revision", "revision", "last_modified", "previous_revision"}
        allowed |= {"root_prefix"} if nested else {"TTL", "volatile", "voms_authz", "branch"}
        for key in sorted(set(properties) - allowed):
            if key == "root_prefix":
                self.finding("catalog-prefix", where, "root catalog with root_prefix %s" % _text(properties[key]))
            elif self.strict:
                self.finding("catalog-property", where, "unexpected property %s" % key)
        catalog.revision = _number(properties.get("revision"))
        catalog.modified = _number(properties.get("last_modified"))
        for key in ("revision", "last_modified"):
            if _number(properties.get(key)) is None:
                self.finding("catalog-property", where, "%s is %s" % (key, _text(properties.get(key))))
        if not nested and "TTL" in properties and _number(properties["TTL"]) is None:
            self.finding("catalog-property", where, "TTL is %s" % _text(properties["TTL"]))
        if nested and properties.get("root_prefix") != catalog.path:
            self.finding("catalog-prefix", where, "root_prefix is %s" % _text(properties.get("root_prefix")))
        if "previous_revision" not in properties:
            if catalog.revision or nested:
                self.finding("catalog-property", where, "no previous_revision")
            return
        try:
            previous = vformat.parse_hash(properties["previous_revision"])
        except FormatError as error:
            self.finding("catalog-property", where, "previous_revision: %s" % error)
            return
        if vformat.is_null(previous):
            if nested and catalog.revision not in (None, 1) and self.strict:
                self.finding("catalog-previous", where, "revision %d without predecessor" % catalog.revision)
            return
        before = self.glance(previous)
        if before is None:
            return                                          # collected
        old = _number(before[1].get("revision"))
        if old is not None and catalog.revision is not None:
            # a root catalog may be given a revision by hand
            if catalog.revision <= old or (nested and self.strict and catalog.revision != old + 1):
                self.finding("catalog-previous", where, "revision %d follows revision %d" % (catalog.revision, old))
        if before[1].get("root_prefix") != properties.get("root_prefix"):
            self.finding("catalog-previous", where, "previous revision is a catalog of %s" %
                         _text(before[1].get("root_prefix")))

    def check_catalog(self, connection, value, raw, path, where):
        catalog = Catalog()
        catalog.hash, catalog.path, catalog.size = value, path, len(raw)
        catalog.properties = self.properties(connection)
        catalog.subtree = None
        self.light[value] = (len(raw), catalog.properties)
        self.check_properties(catalog, where)
        catalog.counters = dict(connection.execute("SELECT counter, value FROM statistics"))
        self.read_registrations(connection, catalog, where)
        bad_rows = self.check_row_types(connection, path)
        rows = {}
        children = collections.defaultdict(list)
        unusable = 0
        for row in map(ROW._make, connection.execute(ROW_SQL)):
            if bad_rows and (row.m1, row.m2) in bad_rows:
                if not all(isinstance(v, int) for v in (
                        row.m1, row.m2, row.p1, row.p2, row.flags, row.hardlinks, row.size, row.mode)):
                    unusable += 1
                    continue
                row = row._replace(**{f: v if isinstance(v, bytes) else None for f, v in (
                    ("name", row.name), ("symlink", row.symlink), ("hash", row.hash), ("xattr", row.xattr))})
            rows[row.m1, row.m2] = row
            children[row.p1, row.p2].append(row)
        catalog.entries = len(rows) + unusable
        if self.strict:
            highest = connection.execute("SELECT max(rowid), count(*) FROM catalog").fetchone()
            pages, free = struct.unpack(">I", raw[28:32])[0], struct.unpack(">I", raw[36:40])[0]
            if highest[0] and 1 - highest[1] / highest[0] > 0.25:
                self.finding("catalog-waste", where, "%d rows, highest rowid %d" % (highest[1], highest[0]))
            if pages and free / pages > 0.20:
                self.finding("catalog-waste", where, "%d of %d pages are free" % (free, pages))
        chunks = self.read_chunks(connection, rows, path)

        key = vformat.path_hash(path)
        root = catalog.root = rows.get(key)
        catalog.mounts = {}
        if root is None:
            self.finding("catalog-root", where, "no root entry")
            return catalog
        self.check_root(root, path)
        counted = dict.fromkeys(COUNTERS, 0)
        counted["chunks"] = sum(len(c) for c in chunks.values())
        counted["nested"] = len(catalog.nested)
        groups = collections.defaultdict(list)
        seen = {key}
        stack = [(root, path)]
        while stack:
            row, here = stack.pop()
            entry_key = (row.m1, row.m2)
            if entry_key not in bad_rows:
                self.check_entry(row, here, chunks, row is root)
            flags = row.flags
            if row.xattr is not None:
                counted["xattr"] += 1
            if not flags & DIR:
                self.count_file(row, counted)
                group = row.hardlinks >> 32
                if group:
                    groups[group].append((row, here))
                continue
            counted["dir"] += 1
            below = children.get(entry_key, ())
            if flags & (MOUNTPOINT | BIND):
                catalog.mounts[here] = row
                if below:
                    self.finding("nested-not-empty", here, "%d entries below the mountpoint in %s" % (len(below), where))
                    seen.update((r.m1, r.m2) for r in below)
                continue
            directories, marker = 0, None
            for child in below:
                child_key = (child.m1, child.m2)
                if child_key in seen:
                    continue
                seen.add(child_key)
                name = child.name or b""
                child_path = here + b"/" + name
                if child_key not in bad_rows and vformat.path_hash(child_path) != child_key:
                    self.finding("entry-path", child_path, "path hash %d, %d" % child_key)
                if child.flags & DIR:
                    directories += 1
                if name == b".cvmfscatalog":
                    marker = child
                stack.append((child, child_path))
            self.check_directory(row, here, directories, marker, row is root and path != b"", entry_key in bad_rows)
        for entry_key in set(rows) - seen:
            self.finding("entry-dangling", where, "row %d, %d (%s) is not below the root entry" %
                         (entry_key + (percent(rows[entry_key].name or b""),)))
        self.check_groups(groups, chunks)
        self.check_registrations(catalog, where)
        self.check_counters(catalog, "self_", counted, where)
        catalog.subtree = None
        # counted values are what parents add up
        catalog.counters["counted"] = counted
        return catalog

    def read_registrations(self, connection, catalog, where):
        catalog.nested, catalog.binds = {}, {}
        for table, target in (("nested_catalogs", catalog.nested), ("bind_mountpoints", catalog.binds)):
            for path, text, size, kind in connection.execute("SELECT path, sha1, size, typeof(path) FROM %s" % table):
                if kind != b"text":
                    self.finding("nested-row", where, "%s: path %r" % (table, path))
                    continue
                value = None
                try:
                    value = vformat.parse_hash(text)
                except FormatError as error:
                    self.finding("nested-row", path, "%s: %s" % (table, error))
                if not isinstance(size, int) or size <= 0:
                    if self.strict or (size is not None and not isinstance(size, int)):
                        self.finding("nested-row", path, "%s: size %r" % (table, size))
                    size = None
                target[path] = (value, size)

    def check_row_types(self, connection, path):
        """Reports wrong storage classes; returns the keys of rows not to look at any closer."""
        conditions = ["typeof(%s) <> '%s'" % item for item in ROW_TYPES.items()]
        conditions += ["typeof(%s) NOT IN ('%s', 'null')" % item for item in ROW_NULLABLE.items()]
        conditions += ["length(hash) <> 20"]
        columns = list(ROW_TYPES) + list(ROW_NULLABLE)
        bad = set()
        for row in connection.execute("SELECT md5path_1, md5path_2, name, %s, length(hash) FROM catalog WHERE %s" % (
                ", ".join("typeof(%s)" % c for c in columns), " OR ".join(conditions))):
            wrong = []
            for column, kind in zip(columns, row[3:]):
                wanted = ROW_TYPES.get(column) or ROW_NULLABLE[column]
                if kind.decode() != wanted and not (kind == b"null" and column in ROW_NULLABLE):
                    wrong.append("%s is %s" % (column, kind.decode()))
            if row[-1] not in (None, 20):
                wrong.append("hash of %d bytes" % row[-1])
            bad.add((row[0], row[1]))
            name = row[2] if isinstance(row[2], bytes) else b"?"
            self.finding("row-type", path, "entry %s (%s, %s): %s" % (percent(name), row[0], row[1], ", ".join(wrong)))
        return bad

    def read_chunks(self, connection, rows, path):
        chunks = collections.defaultdict(list)
        for m1, m2, offset, size, value in connection.execute(
                "SELECT md5path_1, md5path_2, offset, size, hash FROM chunks ORDER BY md5path_1, md5path_2, offset"):
            row = rows.get((m1, m2))
            if not isinstance(offset, int) or not isinstance(size, int) or not isinstance(value, bytes) or \
                    len(value) != 20 or size <= 0:
                self.finding("chunk-row", path, "%s: offset %r, size %r, hash %r" %
                             (percent(row.name) if row and row.name else "?", offset, size, value))
                value = None
            elif row is not None and not row.flags & CHUNKED:
                self.finding("chunk-row", path, "%s is not a chunked file" % percent(row.name or b"?"))
            chunks[m1, m2].append((offset, size, value))
        return chunks

    def check_root(self, row, path):
        if path == b"":
            if (row.p1, row.p2) != (0, 0):
                self.finding("catalog-root", path, "parent hash of the root entry is not 0, 0")
            if row.flags != DIR:
                self.finding("catalog-root", path, "flags 0x%x" % row.flags)
            if row.name:
                self.finding("catalog-root", path, "name %s" % percent(row.name))
            return
        parent, _, name = path.rpartition(b"/")
        if (row.p1, row.p2) != vformat.path_hash(parent):
            self.finding("catalog-root", path, "parent hash is not that of %s" % (percent(parent) or "/"))
        if row.flags & ~HIDDEN != DIR | NESTED_ROOT:
            self.finding("catalog-root", path, "flags 0x%x" % row.flags)
        if row.name != name:
            self.finding("catalog-root", path, "name %s" % percent(row.name or b""))

    def check_flags(self, row, is_root):
        flags = row.flags
        kind = flags & (DIR | FILE | LINK | SPECIAL)
        if kind == DIR:
            extra = flags & ~(DIR | HIDDEN)
            return extra in (0, MOUNTPOINT, BIND) or (extra == NESTED_ROOT and is_root)
        if kind in (FILE | LINK, FILE | SPECIAL):
            return not flags & ~(kind | HIDDEN)
        if kind != FILE or flags & ~(FILE | CHUNKED | EXTERNAL | 0x700 | 0x3800 | HIDDEN | DIRECT_IO):
            return False
        return (flags >> 8) & 7 <= 2 and (flags >> 11) & 7 <= 1

    def check_entry(self, row, path, chunks, is_root):
        flags, mode, size = row.flags, row.mode, row.size
        if not self.check_flags(row, is_root):
            self.finding("entry-flags", path, "flags 0x%x" % flags)
            return
        if not is_root:
            name = row.name
            if not name or name in (b".", b"..") or b"/" in name or b"\0" in name or len(name) > 255:
                self.finding("entry-name", path, "name %r" % name)
        kind = mode & 0o170000
        if flags & DIR:
            fits = kind == stat.S_IFDIR
        elif flags & LINK:
            fits = kind == stat.S_IFLNK
        elif flags & SPECIAL:
            fits = kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
        else:
            fits = kind == stat.S_IFREG
        if not fits or mode & ~0o177777:
            self.finding("entry-mode", path, "mode 0%o with flags 0x%x" % (mode, flags))
        if not (0 <= row.uid < 1 << 32 and 0 <= row.gid < 1 << 32):
            self.finding("entry-owner", path, "uid %d, gid %d" % (row.uid, row.gid))
        if row.mtimens is not None and not 0 <= row.mtimens <= 999999999:
            self.finding("entry-mtimens", path, "mtimens %d" % row.mtimens)
        if row.xattr is not None:
            try:
                vformat.parse_xattrs(row.xattr)
            except FormatError as error:
                self.finding("xattr", path, str(error))
        if size < 0 or (kind in (stat.S_IFIFO, stat.S_IFSOCK) and size != 0 and self.strict):
            self.finding("entry-size", path, "size %d" % size)
        if flags & LINK:
            if not row.symlink or b"\0" in row.symlink:
                self.finding("symlink-target", path, "target %r" % row.symlink)
            elif size != len(row.symlink) and self.strict:
                self.finding("symlink-size", path, "size %d, target of %d bytes" % (size, len(row.symlink)))
        elif row.symlink:
            self.finding("symlink-target", path, "not a symlink, but with target %r" % row.symlink)
        group, links = row.hardlinks >> 32, row.hardlinks & 0xFFFFFFFF
        if not flags & DIR and (links < 1 or (links > 1 and group == 0) or group < 0):
            self.finding("entry-links", path, "link count %d, group %d" % (links, group))
        if flags & (DIR | LINK | SPECIAL):
            if row.hash is not None:
                self.finding("entry-hash", path, "content hash for something without content")
            return
        # regular files
        parts = chunks.get((row.m1, row.m2))
        algorithm, compression = (flags >> 8) & 7, (flags >> 11) & 7
        external = flags & EXTERNAL
        if not flags & CHUNKED:
            if row.hash is None:
                self.finding("entry-hash", path, "regular file without content hash")
            elif not external:
                self.use_data((algorithm, row.hash, ""), compression, size, path)
        else:
            if row.hash is not None and not external:
                self.use_data((algorithm, row.hash, ""), compression, size, path)
            position = 0
            for offset, length, digest in parts or ():
                if digest is None:
                    return
                if offset != position:
                    break
                position += length
                if not external:
                    self.use_data((algorithm, digest, "P"), compression, length, path)
            else:
                offset = None
            if not parts:
                self.finding("chunk-layout", path, "chunked file without chunks")
            elif offset is not None:
                self.finding("chunk-layout", path, "chunk at %d where %d is expected" % (offset, position))
                for _, length, digest in parts:
                    if not external and digest is not None:
                        self.use_data((algorithm, digest, "P"), compression, length, path)
                return
            elif position != size:
                self.finding("chunk-layout", path, "chunks end at %d, the file at %d" % (position, size))
                return
        if self.chunking and not external and (row.hash is not None or parts):
            if flags & CHUNKED:
                objects = tuple((algorithm, digest, "P") for _, _, digest in parts)
            else:
                objects = ((algorithm, row.hash, ""),)
            self.contents.setdefault((size, compression, objects), (path, bool(flags & CHUNKED)))

    def use_data(self, key, compression, size, path):
        self.objects.setdefault(key, {}).setdefault((compression, size), path)

    @staticmethod
    def count_file(row, counted):
        flags = row.flags
        if flags & LINK:
            counted["symlink"] += 1
        elif flags & SPECIAL:
            counted["special"] += 1
        else:
            counted["regular"] += 1
            counted["file_size"] += row.size
            if flags & CHUNKED:
                counted["chunked"] += 1
                counted["chunked_size"] += row.size
            if flags & EXTERNAL:
                counted["external"] += 1
                counted["external_file_size"] += row.size

    def check_directory(self, row, path, directories, marker, nested_root, skip):
        if marker is not None and marker.flags & (DIR | LINK | SPECIAL):
            self.finding("marker-misplaced", path + b"/.cvmfscatalog", "not a regular file")
        elif marker is not None and not nested_root:
            self.finding("marker-misplaced", path + b"/.cvmfscatalog", "directory is not a nested catalog")
        elif marker is None and nested_root:
            self.finding("marker-missing", path, "nested catalog without .cvmfscatalog")
        if not skip and row.hardlinks != 2 + directories:
            self.finding("dir-links", path, "hardlinks %d (group %d), %d sub-directories" %
                         (row.hardlinks & 0xFFFFFFFF, row.hardlinks >> 32, directories))

    def check_groups(self, groups, chunks):
        for group, members in groups.items():
            row, path = members[0]
            if row.hardlinks & 0xFFFFFFFF != len(members):
                self.finding("hardlink-group", path, "group %d has %d members, link count %d" %
                             (group, len(members), row.hardlinks & 0xFFFFFFFF))
                continue
            for other, other_path in members[1:]:
                left, right = (r._replace(m1=0, m2=0, name=b"") for r in (row, other))
                if left != right or chunks.get((row.m1, row.m2)) != chunks.get((other.m1, other.m2)):
                    differing = [f for f in ROW._fields if getattr(left, f) != getattr(right, f)]
                    self.finding("hardlink-group", other_path, "differs from %s in %s" %
                                 (percent(path), ", ".join(differing) or "chunks"))

    def check_registrations(self, catalog, where):
        for path, row in catalog.mounts.items():
            table, name = (catalog.binds, "bind_mountpoints") if row.flags & BIND else (catalog.nested, "nested_catalogs")
            if path not in table:
                self.finding("nested-registration", path, "mountpoint has no row in %s" % name)
        for name, table, flag in (("nested_catalogs", catalog.nested, MOUNTPOINT), ("bind_mountpoints", catalog.binds, BIND)):
            for path in table:
                row = catalog.mounts.get(path)
                if row is None or not row.flags & flag:
                    self.finding("nested-registration", path, "row of %s without mountpoint entry in %s" % (name, where))

    def check_counters(self, catalog, prefix, counted, where):
        for name in COUNTERS:
            key = (prefix + name).encode()
            if key not in catalog.counters:
                self.finding("counter-set", where, "no counter %s%s" % (prefix, name))
            elif catalog.counters[key] != counted[name]:
                self.finding("counter", where, "%s%s is %s, counted %d" %
                             (prefix, name, catalog.counters[key], counted[name]))
        if prefix == "self_" and self.strict:
            known = {(p + n).encode() for p in ("self_", "subtree_") for n in COUNTERS}
            for key in sorted(set(catalog.counters) - known):
                self.finding("counter-set", where, "unknown counter %s" % _text(key))

    def check_children(self, catalog):
        """Transition points, sizes and subtree counters; children have been through this already."""
        total = dict.fromkeys(COUNTERS, 0)
        complete = True
        for path, (value, size) in catalog.nested.items():
            child = self.catalogs.get(value) if value else None
            if child is None or child.path != path or child.subtree is False:
                complete = False
                if child is None or child.path != path:
                    continue
            if size is not None and size != child.size:
                self.finding("nested-size", path, "nested_catalogs says %d, the catalog has %d bytes" % (size, child.size))
            mount = catalog.mounts.get(path)
            if mount is not None and child.root is not None:
                left = mount._replace(flags=mount.flags & ~MOUNTPOINT)
                right = child.root._replace(flags=child.root.flags & ~NESTED_ROOT)
                differing = [f for f in ROW._fields if getattr(left, f) != getattr(right, f)]
                if differing:
                    self.finding("transition", path, "parent and nested catalog differ in %s" % ", ".join(
                        "%s (%r, %r)" % (f, getattr(left, f), getattr(right, f)) for f in differing))
            counted = child.counters.get("counted")
            if counted is None or not child.subtree:
                complete = False
                continue
            for name in COUNTERS:
                total[name] += counted[name] + child.subtree[name]
        if complete and catalog.root is not None:
            catalog.subtree = total
            where = "%s (%s)" % (percent(catalog.path) or "/", object_path(catalog.hash, "C"))
            self.check_counters(catalog, "subtree_", total, where)
        else:
            catalog.subtree = False

    def check_snapshots(self, head):
        """Bind mountpoints of HEAD are the tags, nothing else."""
        found = {}
        for catalog in list(self.catalogs.values()):
            if catalog is not None:
                found.update({path: (catalog, entry) for path, entry in catalog.binds.items()})
        virtual = [c for c in self.catalogs.values() if c is not None and c.path == b"/.cvmfs"]
        prefix = b"/.cvmfs/snapshots/"
        for path, (catalog, (value, size)) in sorted(found.items()):
            tag = self.tags.get(path[len(prefix):]) if path.startswith(prefix) else None
            if tag is None or path.endswith((b"/trunk", b"/trunk-previous")):
                self.finding("bind-mountpoint", path, "no such tag")
                continue
            if tag[0] != value or tag[3] != size:
                self.finding("bind-mountpoint", path, "hash or size differ from the tag")
        if virtual:
            for name in sorted(self.tags):
                if name not in (b"trunk", b"trunk-previous") and b"/" not in name and prefix + name not in found:
                    self.finding("bind-mountpoint", prefix + name, "tag has no snapshot directory")

    def check_chain(self):
        """Former root catalogs that still exist have to be in the reflog."""
        value, seen = self.hashes["C"], set()
        while value is not None and value not in seen:
            seen.add(value)
            known = self.glance(value)
            if known is None:
                break
            if value != self.hashes["C"] and not any(value == tag[0] for tag in self.tags.values()):
                self.need_ref(value, 0, "previous root catalog")
            try:
                value = vformat.parse_hash(known[1].get("previous_revision"))
            except FormatError:
                break
            if vformat.is_null(value):
                break
        self.report.numbers["root_catalogs_in_chain"] = len(seen)

    # ------------------------------------------------------------------ data objects

    def check_objects(self):
        todo = []
        for key in self.objects:
            name = object_path(key[:2], key[2])
            if name not in self.good and name not in self.bad:
                todo.append((key, name))
        self.report.numbers["checked_bytes"] = 0
        with ThreadPoolExecutor(self.threads) as pool:
            for problems, size in pool.map(self.check_object, todo, chunksize=64):
                self.report.numbers["checked_bytes"] += size
                for problem in problems:
                    self.finding(*problem)

    def check_object(self, item):
        key, name = item
        expected = self.objects[key]
        first = percent(next(iter(expected.values()))) or "/"
        missing = [("object-missing", name, "does not exist (%s)" % first)]
        if not self.data:
            return ([] if self.exists(name) else missing), 0
        handle = self.store.open(name) if self.listing is None or name in self.listing else None
        if handle is None:
            return missing, 0
        hasher = vformat.new_hasher(key[0])
        modes = {compression for compression, _ in expected}
        engine = zlib.decompressobj() if 0 in modes else None
        plain = stored = 0
        trouble = None
        with handle:
            while True:
                block = handle.read(1 << 20)
                if not block:
                    break
                hasher.update(block)
                stored += len(block)
                if engine is not None and trouble is None:
                    try:
                        while block:
                            plain += len(engine.decompress(block, 1 << 22))
                            block = engine.unconsumed_tail
                            if engine.eof and engine.unused_data:
                                trouble = "bytes after the end of the zlib stream"
                                break
                    except zlib.error as error:
                        trouble = str(error)
        if hasher.digest() != key[1]:
            return [("object-hash", name, "stored bytes do not hash to the name (%s)" % first)], stored
        if engine is not None and trouble is None and not engine.eof:
            try:
                plain += len(engine.flush())
            except zlib.error as error:
                trouble = str(error)
            if not engine.eof:
                trouble = trouble or "zlib stream is not complete"
        problems = []
        if trouble is not None:
            problems.append(("object-inflate", name, "%s (%s)" % (trouble, first)))
        for (compression, size), path in expected.items():
            length = plain if compression == 0 else stored
            if size is not None and length != size and not (compression == 0 and trouble):
                problems.append(("object-size", name, "content has %d bytes, %s says %d" % (length, percent(path), size)))
        return problems, stored

    def check_cuts(self):
        """Chunk boundaries of all files against the xor32 cut marks."""
        low, average, high = self.chunking
        for (size, compression, objects), (path, chunked) in self.contents.items():
            if size <= low:
                if chunked:
                    self.finding("chunk-cut", path, "file of %d bytes is chunked" % size)
                continue
            if chunked and len(objects) == 1:
                self.finding("chunk-cut", path, "chunked file with a single chunk")
            pieces = []
            for key in objects:
                data = self.store.get(object_path(key[:2], key[2]))
                try:
                    pieces.append(data if compression else inflate(data or b""))
                except FormatError:
                    break
            if len(pieces) != len(objects):
                continue
            position = 0
            for number, piece in enumerate(pieces):
                follower = pieces[number + 1][:1] if number + 1 < len(pieces) else None
                problem = cut_problem(piece, follower, low, average, high)
                if problem:
                    self.finding("chunk-cut", path, "chunk at %d of %d bytes: %s" % (position, len(piece), problem))
                    break
                position += len(piece)

    # ------------------------------------------------------------------ what is not reachable

    def check_orphans(self):
        if self.listing is None:
            return
        used = {object_path(key[:2], key[2]) for key in self.objects}
        if not self.all_tags:
            for tag in self.tags.values():
                self.gather(tag[0], used)
        reachable = len(used)
        collectable = set(used)
        for value, kind in (self.refs or {}).items():
            if kind == 0:
                self.gather(value, collectable)
            else:
                collectable.add(object_path(value, REFLOG_SUFFIX[kind]))
        numbers = self.report.numbers
        numbers["reachable_objects"] = reachable
        numbers["collectable_objects"] = len((collectable - used) & set(self.listing))
        orphans = sorted(set(self.listing) - collectable)
        numbers["orphans"] = len(orphans)
        for name in orphans:
            if name[-1] == "C":
                text = name[5:7] + name[8:-1]
                known = self.glance(vformat.parse_hash(text))
                if known is not None and "root_prefix" not in known[1] and self.refs is not None:
                    self.report.info("orphan-root", name, "root catalog that is not in the reflog")
                    continue
            self.report.info("orphan", name, "not reachable from HEAD, a tag or the reflog")

    def gather(self, value, names):
        todo = [value]
        while todo:
            value = todo.pop()
            name = object_path(value, "C")
            if name in names or name not in self.listing or name in self.bad:
                continue
            names.add(name)
            try:
                connection = self.scratch.connect(inflate(self.store.get(name)))
                for digest, flags in connection.execute("SELECT DISTINCT hash, (flags >> 8) & 7 FROM catalog "
                                                        "WHERE hash IS NOT NULL AND NOT flags & 128"):
                    names.add(object_path((min(flags, 2), digest), ""))
                for digest, flags in connection.execute(
                        "SELECT DISTINCT chunks.hash, (flags >> 8) & 7 FROM chunks JOIN catalog USING "
                        "(md5path_1, md5path_2) WHERE NOT flags & 128"):
                    names.add(object_path((min(flags, 2), digest), "P"))
                for text, in connection.execute("SELECT sha1 FROM nested_catalogs"):
                    todo.append(vformat.parse_hash(text))
                connection.close()
            except (FormatError, TypeError) + UNREADABLE:
                continue


def cut_problem(piece, follower, low, average, high):
    """Why `piece`, followed by the byte `follower` (None at the end of the file), is no correct chunk."""
    threshold = 4294967295 // average
    bottom, top = 0x7FFFFFFF - (threshold - 1), 0x7FFFFFFF + (threshold - 1)
    if len(piece) > high:
        return "longer than the maximum"
    if follower is not None and len(piece) < low:
        return "shorter than the minimum"
    x = 0
    for byte in piece[low - 32:low]:
        x = ((x << 1) ^ byte) & 0xFFFFFFFF
    for position, byte in enumerate(piece[low:], low):
        x = ((x << 1) ^ byte) & 0xFFFFFFFF
        if bottom <= x <= top or x == 0xFFFFFFFF:
            return "cut mark at %d missed" % position
    if follower is not None and len(piece) < high:
        x = ((x << 1) ^ follower[0]) & 0xFFFFFFFF
        if not (bottom <= x <= top or x == 0xFFFFFFFF):
            return "ends without cut mark"
    return None


def _number(value):
    return int(value) if isinstance(value, bytes) and re.fullmatch(rb"[0-9]+", value) else None


def _text(value):
    return percent(value) if isinstance(value, bytes) else str(value)


def check(store, fqrn, keys, allowed=(), **options):
    report = Report(allowed)
    Checker(store, fqrn, keys, report, **options).run()
    return report


__all__ = ["CODES", "Checker", "Report", "StoreError", "check"]
