"""Listings: of a repository (from its catalogs and objects), of a directory tree; and their comparison.

One line an entry, columns separated by one blank:

    path type mode size sha256 mtime linkcount target uid gid rdev xattrs

Rules (found by matching what the reference client shows):

* The root is `.`, all other paths are relative to it.  Order: root first, then by the raw bytes of the path.
* path and target: bytes <= 0x20, >= 0x7f, `%` and backslash as `%xx`, lower case.
* type: d directory, f regular, l symlink, p FIFO, s socket, c and b devices.  mode: permission bits, four octal digits.
* size: directories and regular files as in their row (the client passes the directory size of the row on);
  symlinks: length of the target *after* variant expansion, whatever the row says; everything else 0.
* sha256 of the content of regular files, `-` for the rest.
* mtime: seconds `.` nanoseconds with nine digits; `mtimens` NULL is 000000000, values above the range are cut.
* linkcount: low half of `hardlinks`.  target: expanded target, `-` for anything but symlinks.
* rdev: `major:minor` of devices from the row's `size`, else `-`.
* xattrs: `name=hex` joined by commas, sorted by name; `-` if there are none.  Names are percent-encoded.
* Hidden entries and all below are not listed.  Bind mountpoints appear as a directory without contents.
"""

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import vcheck
import vformat
from vformat import FormatError, expand_variant, object_path, percent
from vstore import Scratch, inflate

COLUMNS = ("path", "type", "mode", "size", "sha256", "mtime", "linkcount", "target", "uid", "gid", "rdev", "xattrs")
# column, condition on the type, replacement
PARTIAL = {
    "dirsize": ("size", "d"), "linksize": ("size", "l"), "dirlinkcount": ("linkcount", "d"),
    "filelinkcount": ("linkcount", "flpscb"), "dirmtime": ("mtime", "d"), "linkmtime": ("mtime", "l"),
    "linkmode": ("mode", "l"), "dirxattrs": ("xattrs", "d"),
}
HEADER = ("# " + " ".join(COLUMNS) + "   (mtime = seconds.nanoseconds; path/target percent-encoded: "
          "bytes <=0x20, >=0x7f, % and \\; xattrs name=hex,...)")
TYPES = {stat.S_IFDIR: "d", stat.S_IFREG: "f", stat.S_IFLNK: "l", stat.S_IFIFO: "p", stat.S_IFSOCK: "s",
         stat.S_IFCHR: "c", stat.S_IFBLK: "b"}


class ListError(Exception):
    pass


def parse_columns(text):
    names = [name for name in (text or "").split(",") if name]
    for name in names:
        if name not in COLUMNS[1:] and name not in PARTIAL and name != "mtimens":
            raise ListError("unknown column %r (known: %s)" % (name, ", ".join(
                COLUMNS[1:] + tuple(PARTIAL) + ("mtimens",))))
    return names


def blank(fields, ignored):
    """Put `*` where columns are to be ignored."""
    for name in ignored:
        if name == "mtimens":
            fields[5] = fields[5].partition(".")[0] + ".*"
            continue
        column, types = PARTIAL.get(name, (name, None))
        if types is None or fields[1] in types:
            fields[COLUMNS.index(column)] = "*"
    return fields


def line(path, kind, mode, size, sha256, seconds, nanos, links, target, uid, gid, rdev, xattrs):
    return [percent(path) if path else ".", kind, "%04o" % stat.S_IMODE(mode), str(size), sha256 or "-",
            "%d.%09d" % (seconds, nanos), str(links), percent(target) if target is not None else "-",
            str(uid), str(gid), rdev or "-",
            ",".join("%s=%s" % (percent(k), v.hex()) for k, v in sorted(xattrs)) or "-"]


# --------------------------------------------------------------------------- repository


def resolve_root(store, fqrn, keys, tag=None, root=None, now=None):
    """Hash of the root catalog to list; verifies what is signed if keys are given."""
    if root is not None:
        return vformat.parse_hash(root)
    report = vcheck.Report()
    checker = vcheck.Checker(store, fqrn, keys or [], report, now=now, strict=False)
    try:
        if keys:
            checker.check_whitelist()
        checker.check_manifest()
        if keys:
            checker.check_certificate()
        if tag is not None:
            checker.check_history()
    except vcheck.Fatal:
        pass
    finally:
        checker.scratch.close()
    if report.findings:
        raise ListError("; ".join("%s: %s %s" % finding for finding in report.findings))
    if tag is None:
        return checker.hashes["C"]
    name = os.fsencode(tag)
    if name not in checker.tags:
        raise ListError("no such tag: %s" % tag)
    return checker.tags[name][0]


def list_repository(store, root, environment=None, expand=True, hidden=False, content=True, threads=4):
    """Rows of columns, sorted."""
    scratch = Scratch()
    entries = []
    contents = {}
    try:
        todo = [(root, b"", None)]
        while todo:
            value, path, _ = todo.pop()
            try:
                data = store.get(object_path(value, "C"))
                if data is None:
                    raise ListError("%s does not exist" % object_path(value, "C"))
                connection = scratch.connect(inflate(data))
                _list_catalog(connection, path, entries, contents, todo, hidden)
                connection.close()
            except (FormatError, TypeError) + vcheck.UNREADABLE as error:
                raise ListError("%s: %s" % (object_path(value, "C"), error))
    finally:
        scratch.close()
    digests = {}
    if content:
        with ThreadPoolExecutor(threads) as pool:
            items = list(contents)
            digests = dict(zip(items, pool.map(lambda item: _content(store, *item), items, chunksize=16)))
    out = []
    for path, row, key in entries:
        try:
            out.append((path, _columns(path, row, digests.get(key, "*") if key is not None else "-", environment, expand)))
        except (TypeError, AttributeError, OverflowError, FormatError) as error:
            raise ListError("%s: %s" % (percent(path), error))
    out.sort(key=lambda item: item[0])
    return [fields for _, fields in out]


def _columns(path, row, digest, environment, expand):
    kind = TYPES.get(row.mode & 0o170000, "?")
    size, target, rdev = row.size, None, None
    if kind == "l":
        target = expand_variant(row.symlink, environment or {}) if expand else row.symlink
        size = len(target)
    elif kind in "psbc":
        if kind in "bc":
            rdev = "%d:%d" % (os.major(size), os.minor(size))
        size = 0
    xattrs = vformat.parse_xattrs(row.xattr) if row.xattr is not None else ()
    return line(path[1:], kind, row.mode, size, digest, row.mtime, min(row.mtimens or 0, 999999999),
                row.hardlinks & 0xFFFFFFFF, target, row.uid, row.gid, rdev, xattrs)


def _list_catalog(connection, path, entries, contents, todo, hidden):
    children, rows = {}, {}
    for row in map(vcheck.ROW._make, connection.execute(vcheck.ROW_SQL)):
        rows[row.m1, row.m2] = row
        children.setdefault((row.p1, row.p2), []).append(row)
    chunks = {}
    for m1, m2, size, value in connection.execute(
            "SELECT md5path_1, md5path_2, size, hash FROM chunks ORDER BY md5path_1, md5path_2, offset"):
        chunks.setdefault((m1, m2), []).append((value, size))
    nested = {}
    for where, text in connection.execute("SELECT path, sha1 FROM nested_catalogs"):
        nested[where] = vformat.parse_hash(text)
    top = rows.get(vformat.path_hash(path))
    if top is None:
        raise ListError("catalog of %s has no root entry" % (percent(path) or "/"))
    stack = [(top, path)]
    while stack:
        row, here = stack.pop()
        if row.flags & vcheck.HIDDEN and not hidden:
            continue
        if row.flags & vcheck.MOUNTPOINT:
            if here not in nested:
                raise ListError("%s is not registered" % percent(here))
            todo.append((nested[here], here, None))
            continue                       # its own root entry tells the same
        key = None
        if row.flags & vcheck.FILE and not row.flags & (vcheck.LINK | vcheck.SPECIAL):
            algorithm, compression = (row.flags >> 8) & 7, (row.flags >> 11) & 7
            if row.flags & vcheck.EXTERNAL:
                key = ("external", here)
            elif row.flags & vcheck.CHUNKED:
                key = (compression, row.size, tuple(
                    ((algorithm, value), "P", size) for value, size in chunks.get((row.m1, row.m2), ())))
            else:
                key = (compression, row.size, (((algorithm, row.hash), "", row.size),))
            if key[0] != "external":
                contents[key] = None
        entries.append((here, row, key))
        if row.flags & vcheck.DIR and not row.flags & vcheck.BIND:
            for child in children.get((row.m1, row.m2), ()):
                stack.append((child, here + b"/" + child.name))


def _content(store, compression, size, objects):
    digest, total = hashlib.sha256(), 0
    for value, suffix, length in objects:
        name = object_path(value, suffix)
        data = store.get(name)
        if data is None:
            raise ListError("%s does not exist" % name)
        if vformat.digest_of(value[0], data) != value[1]:
            raise ListError("%s: stored bytes do not hash to the name" % name)
        try:
            plain = data if compression else inflate(data)
        except FormatError as error:
            raise ListError("%s: %s" % (name, error))
        if len(plain) != length:
            raise ListError("%s: %d bytes instead of %d" % (name, len(plain), length))
        digest.update(plain)
        total += length
    if total != size:
        raise ListError("chunks have %d bytes instead of %d" % (total, size))
    return digest.hexdigest()


# --------------------------------------------------------------------------- directory


def list_tree(root, uid=None, gid=None, links_per_directory=False, xattr_limit=None, skip_xattrs=(), threads=4):
    """The same columns for a real directory tree."""
    root = os.fsencode(root)
    found = []
    stack = [(b"", root)]
    while stack:
        path, full = stack.pop()
        status = os.lstat(full)
        found.append((path, full, status))
        if stat.S_ISDIR(status.st_mode):
            for name in os.listdir(full):
                stack.append((path + b"/" + name, full + b"/" + name))
    found.sort(key=lambda item: item[0])
    members = {}
    for path, _, status in found:
        key = (path.rpartition(b"/")[0], status.st_dev, status.st_ino)
        members[key] = members.get(key, 0) + 1
    with ThreadPoolExecutor(threads) as pool:
        digests = list(pool.map(
            lambda item: _file_digest(item[1]) if stat.S_ISREG(item[2].st_mode) else None, found, chunksize=16))
    out = []
    for (path, full, status), digest in zip(found, digests):
        kind = TYPES[stat.S_IFMT(status.st_mode)]
        target = os.readlink(full) if kind == "l" else None
        rdev = "%d:%d" % (os.major(status.st_rdev), os.minor(status.st_rdev)) if kind in "bc" else None
        links = status.st_nlink
        if links_per_directory and kind != "d":
            links = members[path.rpartition(b"/")[0], status.st_dev, status.st_ino]
        xattrs = []
        try:
            names = os.listxattr(full, follow_symlinks=False)
        except OSError:
            names = []
        for name in names:
            if name in skip_xattrs:
                continue
            value = os.getxattr(full, name, follow_symlinks=False)
            if xattr_limit is None or len(value) <= xattr_limit:
                xattrs.append((os.fsencode(name), value))
        out.append(line(path[1:], kind, status.st_mode, 0 if kind in "psbc" else status.st_size, digest,
                        status.st_mtime_ns // 10**9, status.st_mtime_ns % 10**9, links, target,
                        status.st_uid if uid is None else uid, status.st_gid if gid is None else gid, rdev, xattrs))
    return out


def _file_digest(full):
    digest = hashlib.sha256()
    with open(full, "rb") as handle:
        while True:
            block = handle.read(1 << 20)
            if not block:
                return digest.hexdigest()
            digest.update(block)


# --------------------------------------------------------------------------- comparison


def read_listing(path):
    out = {}
    with open(path, encoding="ascii") as handle:
        for number, text in enumerate(handle, 1):
            if text.startswith("# path type "):
                continue
            fields = text.rstrip("\n").split(" ")
            if len(fields) != len(COLUMNS):
                raise ListError("%s:%d: %d columns instead of %d" % (path, number, len(fields), len(COLUMNS)))
            if fields[0] in out:
                raise ListError("%s:%d: %s listed twice" % (path, number, fields[0]))
            out[fields[0]] = fields
    return out


def _same(column, left, right):
    if left == right:
        return True
    if column == "target":
        return False
    if "*" in (left, right):
        return True
    return column == "mtime" and (left.endswith(".*") or right.endswith(".*")) and \
        left.partition(".")[0] == right.partition(".")[0]


def compare(left, right, ignored=()):
    """Readable differences between two listings (dicts from read_listing); nothing if they are the same."""
    for path in sorted(set(left) | set(right), key=lambda p: p.encode()):
        if path not in right:
            yield "- " + " ".join(left[path])
        elif path not in left:
            yield "+ " + " ".join(right[path])
        else:
            a, b = blank(list(left[path]), ignored), blank(list(right[path]), ignored)
            wrong = ["%s %s -> %s" % (column, x, y) for column, x, y in zip(COLUMNS, a, b)
                     if not _same(column, x, y)]
            if wrong:
                yield "! %s: %s" % (path, "; ".join(wrong))
