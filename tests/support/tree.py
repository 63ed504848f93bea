#!/usr/bin/env python3
"""Makes directory trees for tests: the same bytes, names and times on every run.

  tree.py rich DIR          one of everything that a file system can hold
  tree.py many DIR COUNT    COUNT small files and a large one

What needs privileges that the caller lacks is left out and reported on standard error.
"""

import errno
import os
import stat
import struct
import sys

TIME = 1_600_000_000_123_456_789


def attempt(action, *arguments, **named):
    try:
        action(*arguments, **named)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP):
            raise
        print("left out: %s %s: %s" % (action.__name__, arguments[0], error), file=sys.stderr)


def noise(size, seed):
    """Bytes that do not compress: upper halves of a linear congruential generator."""
    out, state = bytearray(), seed * 2654435761 + 12345 & 0xFFFFFFFF
    while len(out) < size:
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        out += struct.pack("<H", state >> 16)
    return bytes(out[:size])


class Tree:
    def __init__(self, root):
        self.root = os.fsencode(root)
        os.makedirs(self.root, exist_ok=True)
        self.times = {}

    def path(self, name):
        return os.path.join(self.root, name if isinstance(name, bytes) else name.encode())

    def dir(self, name, mode=0o755, **named):
        path = self.path(name)
        os.makedirs(path, exist_ok=True)
        return self.finish(path, mode, **named)

    def file(self, name, content=b"", mode=0o644, **named):
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as handle:
            handle.write(content)
        return self.finish(path, mode, **named)

    def symlink(self, name, target, **named):
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(target if isinstance(target, bytes) else target.encode(), path)
        return self.finish(path, None, **named)

    def node(self, name, mode, device=0, **named):
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        attempt(os.mknod, path, mode, device)
        return self.finish(path, stat.S_IMODE(mode), **named) if os.path.lexists(path) else None

    def link(self, target, name):
        if os.path.lexists(self.path(target)):
            os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
            os.link(self.path(target), self.path(name), follow_symlinks=False)

    def finish(self, path, mode, time=TIME, owner=None, xattrs=()):
        self.times[path] = time
        if owner is not None:
            attempt(os.chown, path, *owner, follow_symlinks=False)
        if mode is not None:
            os.chmod(path, mode)
        # After the owner, whose change drops capabilities.
        for name, value in dict(xattrs).items():
            attempt(os.setxattr, path, name, value)

    def settle(self):
        """Sets all times, the deepest first: everything below a directory changes its time."""
        everything = []
        for directory, names, files in os.walk(self.root):
            everything += [os.path.join(directory, name) for name in names + files]
        for path in sorted(everything, key=lambda p: p.count(b"/"), reverse=True):
            time = self.times.get(path, TIME)
            os.utime(path, ns=(time, time), follow_symlinks=False)


def acl(named_user=None, mask=7, other=5):
    """Binary access control list: version 2, then tag, permissions, id."""
    none = 0xFFFFFFFF
    entries = [(1, 7, none)] + ([(2, 6, named_user)] if named_user is not None else [])
    entries += [(4, 5, none), (16, mask, none), (32, other, none)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def rich(root):
    tree = Tree(root)
    # Chunk limits of the tests: 4096, 8192, 16384.
    for size in (0, 1, 4095, 4096, 4097, 8192, 16383, 16384, 16385, 65536, 300_001):
        tree.file("sizes/%d" % size, noise(size, size))
    tree.file("sizes/zeros", bytes(100_000))
    tree.file("sizes/text", b"All work and no play makes Jack a dull boy.\n" * 5000)
    tree.file("sizes/same as 4097", noise(4097, 4097))

    for mode in (0o4755, 0o2755, 0o1644, 0o6711, 0o7777, 0o400):
        tree.file("modes/%04o" % mode, b"%o" % mode, mode)
    for mode in (0o1777, 0o2775, 0o700, 0o3777):
        tree.dir("modes/dir-%04o" % mode, mode)
    if os.geteuid() == 0:
        tree.file("modes/0000", b"nobody", 0)
        tree.dir("modes/dir-0000", 0)
        tree.file("modes/dir-0000/in", b"in")
    for uid, gid in ((1000, 1000), (0, 12), (65534, 65534), (4_000_000_000, 3_000_000_000)):
        tree.file("owners/%d-%d" % (uid, gid), b"mine", owner=(uid, gid))
        tree.dir("owners/dir-%d-%d" % (uid, gid), owner=(uid, gid))
        tree.symlink("owners/link-%d-%d" % (uid, gid), "x", owner=(uid, gid))

    for number, target in enumerate((
            "../sizes/1", "/etc/passwd", "nowhere", ".", "..", "/", "a" * 1000, "with blank", "Grüße", b"\xff\xfe",
            "line\nbreak", "$(HOME)/x", "pre$(UNSET_BY_TESTS:-default)post", "$()", "%41\\")):
        tree.symlink("symlinks/%02d" % number, target)

    tree.file("hard/a", b"three names here")
    for name in ("hard/b", "hard/c"):
        tree.link("hard/a", name)
    tree.file("hard/two", b"two here, two there, one beyond")
    for name in ("hard/too", "hard2/two", "hard2/too", "hard3/lone"):
        tree.link("hard/two", name)
    tree.file("hard/large", noise(60_000, 7))
    tree.link("hard/large", "hard/large too")
    tree.symlink("hard/symlink", "a")
    tree.link("hard/symlink", "hard/symlink too")
    tree.file("hard/with xattr", b"x", xattrs={"user.of": b"both"})
    tree.link("hard/with xattr", "hard/with xattr too")

    tree.node("special/fifo", stat.S_IFIFO | 0o600)
    tree.node("special/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    tree.node("special/disk", stat.S_IFBLK | 0o660, os.makedev(8, 17), owner=(0, 6))
    tree.node("special/wide", stat.S_IFCHR | 0o600, os.makedev(4095, 1048575))

    tree.file("xattrs/user", b"", xattrs={
        "user.a": b"1", "user.empty": b"", "user.binary": bytes(range(256))[:255], "user.Grüße": b"utf-8",
        "user.with=equals": b"=", "user.100%": b"%3D", "user.line\nbreak": b"\n"})
    tree.file("xattrs/limits", b"", xattrs={"user.255": b"x" * 255, "user." + "n" * 250: b"long name"})
    tree.file("xattrs/many", b"", xattrs={"user.%03d" % number: b"%d" % number for number in range(100)})
    tree.file("xattrs/capable", b"", 0o755, xattrs={
        "security.capability": struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0), "trusted.note": b"t"})
    tree.file("xattrs/acl", b"", 0o775, xattrs={"system.posix_acl_access": acl(1234)})
    tree.dir("xattrs/acl dir", 0o775, xattrs={
        "system.posix_acl_default": acl(99, 5, 0), "system.posix_acl_access": acl(77)})
    tree.dir("xattrs/dir", xattrs={"user.dir": b"yes"})

    second = 10**9
    for name, time in (("epoch", 0), ("one ns", 1), ("last ns", second - 1), ("before", -1),
                       ("one and a half before", -1_500_000_000), ("1910", -1_893_456_000 * second + 5),
                       ("2038", 2**31 * second), ("2106", 2**32 * second + 999_999_999), ("2400", 13_569_465_600 * second)):
        tree.file("times/" + name, name.encode(), time=time)
        tree.symlink("times/link " + name, "x", time=time)
        tree.dir("times/dir " + name, time=time)

    for name in (b"new\nline", b"tab\t", b" blank ", "Grüße 你好".encode(), b"\xff\xfe\x80", b"back\\slash", b"%41",
                 b"'\"`$", b"*?[]{}", b"-dash", b".hidden", b"n" * 255, b"\x01\x7f", b"a:b", b"Case", b"case", b"..."):
        tree.file(b"names/" + name, name)
        tree.dir(b"names/dirs/" + name)
        tree.file(b"names/dirs/" + name + b"/file", name)

    deep = "deep" + "".join("/level %d" % level for level in range(60))
    tree.file(deep + "/bottom", b"deep")
    tree.file("deep/" + "/".join(("w" * 200,) * 10) + "/bottom", b"long path")
    tree.dir("empty/dir/in dir")

    for number in range(20):
        for place in ("nested", "nested/a", "nested/a/b/c", "nested/d"):
            tree.file("%s/file %d" % (place, number), b"%d" % number)
    for place in ("nested", "nested/a", "nested/a/b/c", "nested/only marker", "nested/d"):
        tree.file(place + "/.cvmfscatalog")
    tree.dir("nested", 0o2750, owner=(7, 8), time=-7_000_000_001)
    tree.dir("nested/a", 0o755, xattrs={"user.of": b"a mountpoint"})
    tree.file("nested/a/large", noise(100_000, 3))
    tree.link("nested/a/file 1", "nested/a/also 1")
    tree.link("nested/a/file 2", "nested/d/also 2")
    tree.dir("nested/d/e/f/g")
    tree.settle()


def many(root, count):
    tree = Tree(root)
    tree.file("large", noise(3_000_000, count))
    for number in range(count):
        tree.file("%02d/%d" % (number % 40, number), noise(number * 37 % 5000, number))
    for number in range(0, 40, 8):
        tree.file("%02d/.cvmfscatalog" % number)
    tree.settle()


if __name__ == "__main__":
    if sys.argv[1] == "rich":
        rich(sys.argv[2])
    else:
        many(sys.argv[2], int(sys.argv[3]))
