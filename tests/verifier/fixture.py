"""Copies of the reference repository, and the means to change them and to sign them again."""

import os
import shutil
import sqlite3
import tarfile
import tempfile
import zlib

import vformat
from vformat import hash_text, object_path, parse_hash

HOME = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures", "reference-repository")
FQRN = "fixture.ref.org"
NOW = 1795400000
CHUNKING = (262144, 524288, 1048576)


def key_file(kind):
    return os.path.join(HOME, "keys", "%s.%s" % (FQRN, kind))


def read(path):
    with open(path, "rb") as handle:
        return handle.read()


def unpack(directory):
    """Unpack the storage; returns its directory."""
    with tarfile.open(os.path.join(HOME, FQRN + ".tar.gz")) as archive:
        archive.extractall(directory)
    return os.path.join(directory, FQRN)


def restore(copy, source):
    """Make `copy` what it was when it was taken from `source`: hard links to the same files."""
    wanted = {entry.name: entry for entry in os.scandir(source)}
    for entry in os.scandir(copy):
        origin = wanted.get(entry.name)
        if origin is not None and origin.is_dir() and entry.is_dir(follow_symlinks=False):
            os.chmod(entry.path, 0o755)
            restore(entry.path, origin.path)
            del wanted[entry.name]
        elif origin is not None and origin.is_file() and entry.inode() == origin.inode():
            del wanted[entry.name]
        elif entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    for origin in wanted.values():
        target = os.path.join(copy, origin.name)
        if origin.is_dir():
            shutil.copytree(origin.path, target, copy_function=os.link)
        else:
            os.link(origin.path, target)


def sign(key, payload):
    """PKCS#1 type 1 block around payload, private key operation."""
    modulus, _, exponent = key
    size = (modulus.bit_length() + 7) // 8
    block = b"\0\1" + b"\xff" * (size - 3 - len(payload)) + b"\0" + payload
    return pow(int.from_bytes(block, "big"), exponent, modulus).to_bytes(size, "big")


class Repo:
    """A repository that may be edited.  Files are replaced, never written to, so copies may share them."""

    def __init__(self, root):
        self.root = root
        self.key = vformat.private_key(read(key_file("key")))
        self.masterkey = vformat.private_key(read(key_file("masterkey")))
        self.lines = list(vformat.Manifest(self.get(".cvmfspublished")).lines)
        self.algorithm = parse_hash(self.value("C"))[0]

    @classmethod
    def copy(cls, source, target):
        shutil.copytree(source, target, copy_function=os.link, symlinks=True)
        return cls(target)

    # files and objects

    def path(self, name):
        return os.path.join(self.root, name)

    def get(self, name):
        return read(self.path(name))

    def write(self, name, data):
        with open(self.path(name) + ".new", "wb") as handle:
            handle.write(data)
        os.chmod(self.path(name) + ".new", 0o644)
        os.replace(self.path(name) + ".new", self.path(name))

    def remove(self, name):
        os.unlink(self.path(name))

    def flip(self, name, position=None):
        data = bytearray(self.get(name))
        data[len(data) // 2 if position is None else position] ^= 0x10
        self.write(name, bytes(data))

    def store(self, data, suffix="", algorithm=None):
        value = vformat.hash_of(self.algorithm if algorithm is None else algorithm, data)
        self.write(object_path(value, suffix), data)
        return value

    def put(self, plain, suffix="", level=6):
        return self.store(zlib.compress(plain, level), suffix)

    def plain(self, value, suffix):
        return zlib.decompress(self.get(object_path(value, suffix)))

    # databases

    @staticmethod
    def edit_database(raw, edit):
        descriptor, path = tempfile.mkstemp(suffix=".db")
        try:
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(raw)
            connection = sqlite3.connect(path, isolation_level=None)
            connection.text_factory = bytes
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA journal_mode = MEMORY")
            out = edit(connection)
            connection.close()
            return out if isinstance(out, bytes) else read(path)
        finally:
            os.unlink(path)

    def query(self, raw, sql, *values):
        out = []
        self.edit_database(raw, lambda c: out.extend(c.execute(sql, values).fetchall()))
        return out

    # manifest

    def value(self, key):
        return dict(self.lines).get(key)

    def set(self, key, value):
        self.lines = [(k, value if k == key else v) for k, v in self.lines]

    def drop(self, key):
        self.lines = [(k, v) for k, v in self.lines if k != key]

    def hash(self, key):
        return parse_hash(self.value(key))

    def write_manifest(self, printed=None, key=None):
        text = "".join("%s%s\n" % line for line in self.lines).encode("latin-1")
        printed = printed or hash_text(vformat.hash_of(self.algorithm, text))
        payload = vformat.SHA1_DIGEST_INFO + vformat.digest_of(0, printed.encode())
        self.write(".cvmfspublished", text + b"--\n" + printed.encode() + b"\n" + sign(key or self.key, payload))

    def write_whitelist(self, lines=None, printed=None, key=None):
        if lines is None:
            lines = vformat.split_letter(self.get(".cvmfswhitelist"))[0].decode().splitlines()
        text = "".join(line + "\n" for line in lines).encode()
        printed = printed or hash_text(vformat.hash_of(0, text))
        self.write(".cvmfswhitelist", text + b"--\n" + printed.encode() + b"\n" +
                   sign(key or self.masterkey, printed.encode()))

    # reflog and history

    def edit_reflog(self, edit):
        self.write(".cvmfsreflog", self.edit_database(self.get(".cvmfsreflog"), edit))

    def add_ref(self, value, kind):
        self.edit_reflog(lambda c: c.execute("INSERT OR REPLACE INTO refs VALUES (?, ?, ?)",
                                             (hash_text(value), kind, NOW)))

    def seal(self):
        """Reflog checksum and signature."""
        self.set("Y", hash_text(vformat.hash_of(self.algorithm, self.get(".cvmfsreflog"))))
        self.write_manifest()

    def replace(self, key, value):
        """Another X, H or M, with everything that belongs to it."""
        self.set(key, hash_text(value))
        self.add_ref(value, "CXHM".index(key))
        self.seal()

    def edit_history(self, edit):
        self.replace("H", self.put(self.edit_database(self.plain(self.hash("H"), "H"), edit), "H"))

    # catalogs

    def chain(self, path):
        """[(path, hash)] of the catalogs from the root to the one at path."""
        out = [(b"", self.hash("C"))]
        while out[-1][0] != path:
            for child, text in self.query(self.plain(out[-1][1], "C"), "SELECT path, sha1 FROM nested_catalogs"):
                if path == child or path.startswith(child + b"/"):
                    out.append((child, parse_hash(text)))
                    break
            else:
                raise KeyError(path)
        return out

    def catalog(self, path):
        return self.plain(self.chain(path)[-1][1], "C")

    def edit_catalog(self, path, edit, compress=zlib.compress):
        """Change a catalog of HEAD and register it upwards, up to the signature."""
        chain = self.chain(path)
        raw = self.edit_database(self.plain(chain[-1][1], "C"), edit)
        value = self.store(compress(raw), "C")
        for number in range(len(chain) - 2, -1, -1):
            child = chain[number + 1][0]
            update = (hash_text(value), len(raw), child)
            raw = self.edit_database(self.plain(chain[number][1], "C"), lambda c: c.execute(
                "UPDATE nested_catalogs SET sha1 = ?, size = ? WHERE path = CAST(? AS TEXT)", update))
            value = self.put(raw, "C")
        old = self.value("C")
        self.set("C", hash_text(value))
        self.set("B", str(len(raw)))
        self.add_ref(value, 0)
        if self.value("H"):
            self.edit_history(lambda c: c.execute("UPDATE tags SET hash = ?, size = ? WHERE hash = ?",
                                                  (hash_text(value), len(raw), old)))
        else:
            self.seal()


def at(path):
    """Values for `md5path_1 = ? AND md5path_2 = ?`."""
    return vformat.path_hash(path)


HERE = " WHERE md5path_1 = ? AND md5path_2 = ?"


def update(path, assignment, *values):
    """An edit that changes the row of `path`."""
    def edit(connection):
        done = connection.execute("UPDATE catalog SET " + assignment + HERE, values + at(path)).rowcount
        assert done == 1, (path, done)
    return edit


def rename(path, name):
    """An edit that gives a leaf another name."""
    target = path.rpartition(b"/")[0] + b"/" + name
    return update(path, "md5path_1 = ?, md5path_2 = ?, name = CAST(? AS TEXT)", *at(target), name)


def count(connection, **changes):
    for name, delta in changes.items():
        done = connection.execute("UPDATE statistics SET value = value + ? WHERE counter = ?", (delta, name)).rowcount
        assert done == 1, name


def execute(sql, *values):
    def edit(connection):
        connection.execute(sql, values)
    return edit


def add_row(connection, path, like, parent=None, **changes):
    """Insert a row for `path`, copied from `like`."""
    columns = [row[1].decode() for row in connection.execute("PRAGMA table_info(catalog)")]
    row = dict(zip(columns, connection.execute("SELECT * FROM catalog" + HERE, at(like)).fetchone()))
    above, _, name = path.rpartition(b"/")
    row.update(zip(("md5path_1", "md5path_2", "parent_1", "parent_2"), at(path) + at(above if parent is None else parent)))
    row.update(name=name, **changes)
    places = ["CAST(? AS TEXT)" if c in ("name", "symlink") else "?" for c in columns]
    connection.execute("INSERT INTO catalog (%s) VALUES (%s)" % (", ".join(columns), ", ".join(places)),
                       [row[c] for c in columns])
