"""Access to the storage of a repository: a directory or a web server."""

import os
import stat
import tempfile
import sqlite3
import urllib.error
import urllib.request
import zlib

import vformat


class StoreError(Exception):
    """The storage as such cannot be used (no finding about the repository)."""


class LocalStore:
    local = True

    def __init__(self, root):
        self.root = os.fspath(root)
        if not os.path.isdir(self.root):
            raise StoreError("no such directory: %s" % self.root)

    def _path(self, name):
        return os.path.join(self.root, name)

    def get(self, name):
        try:
            with open(self._path(name), "rb") as handle:
                return handle.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (IsADirectoryError, PermissionError) as error:
            raise StoreError(str(error))

    def open(self, name):
        try:
            return open(self._path(name), "rb", buffering=0)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(str(error))

    def exists(self, name):
        try:
            return stat.S_ISREG(os.stat(self._path(name)).st_mode)
        except OSError:
            return False


class HttpStore:
    local = False

    def __init__(self, url):
        self.root = url.rstrip("/")

    def open(self, name, method="GET"):
        request = urllib.request.Request(self.root + "/" + name, method=method, headers={"Cache-Control": "no-cache"})
        try:
            return urllib.request.urlopen(request, timeout=30)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (404, 410):
                return None
            raise StoreError("%s: HTTP status %d" % (name, error.code))
        except OSError as error:
            raise StoreError("%s: %s" % (name, error))

    def get(self, name):
        response = self.open(name)
        if response is None:
            return None
        with response:
            return response.read()

    def exists(self, name):
        response = self.open(name, "HEAD")
        if response is None:
            return False
        response.close()
        return True


def open_store(place):
    if place.startswith(("http://", "https://")):
        return HttpStore(place)
    return LocalStore(place[7:] if place.startswith("file://") else place)


def inflate(data):
    """One complete zlib stream and nothing behind it."""
    engine = zlib.decompressobj()
    try:
        plain = engine.decompress(data)
    except zlib.error as error:
        raise vformat.FormatError(str(error))
    if not engine.eof:
        raise vformat.FormatError("zlib stream is not complete")
    if engine.unused_data:
        raise vformat.FormatError("%d bytes after the end of the zlib stream" % len(engine.unused_data))
    return plain


class Scratch:
    """Opens databases from bytes; keeps at most one temporary file each."""

    def __init__(self):
        self._directory = tempfile.TemporaryDirectory(prefix="cvmfs-verify-")
        self._count = 0

    def close(self):
        self._directory.cleanup()

    def connect(self, raw):
        """A read-only connection.  A WAL mark in the header is taken off first, for it hinders reading."""
        self._count += 1
        path = os.path.join(self._directory.name, "%d.db" % self._count)
        if raw[18:20] != b"\1\1" and raw[:16] == b"SQLite format 3\0":
            raw = raw[:18] + b"\1\1" + raw[20:]
        with open(path, "wb") as handle:
            handle.write(raw)
        try:
            connection = sqlite3.connect("file:%s?mode=ro&immutable=1" % path, uri=True)
            connection.text_factory = bytes
            connection.execute("PRAGMA schema_version").fetchone()
        finally:
            os.unlink(path)          # the open file stays readable
        return connection
