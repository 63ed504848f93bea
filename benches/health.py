#!/usr/bin/env python3
"""Times what looks at everything in a repository, beside tools that anybody can run on the same files.

Repositories of 10^5, 10^6 and 10^7 entries, or as many as arguments say: files that all differ, 10,000 a nested catalog
(benches/synthetic.rs). The rows of each:

  check      cvmfs-publish check: every row of every catalog, and whether every object is there
  find       find -size of all objects: what it takes to look at them in the order of the directories
  sqlite     Python inflates all catalogs and has its SQLite read every row, on one core
  gc -n      cvmfs-publish gc --dry-run where a tenth of the catalogs is to go
  gc         the same for good
  gc, half   the same once more, where half of the catalogs go
  rm         find -delete of all objects that are left: what it takes to remove them without looking who needs them

Then check --data of 1 GB in large files and of 10^5 small objects, beside `openssl sha1` of all objects on all cores.

Objects up to 10^6 are files of their own, in memory (/dev/shm) if there is room. More are names of a few files, on disk
(TMPDIR says where), for which nothing has as many inodes; they are looked at without their bytes.

Times are medians of three runs, of one run from 10^7 on; CPU includes the system's, peak memory is the largest.

`./dev bench health [ENTRIES...]` runs it; BIN is the directory of the programs, SYNTHETIC the program of
benches/synthetic.rs.
"""

import glob
import os
import shutil
import sqlite3
import sys
import tempfile
import zlib

from whole_program import FQRN, MEGABYTE, RUNS, Rows, Site, heading, make_large, make_tarball, remove, run

ENTRIES = (10**5, 10**6, 10**7)
FILES_IN_CATALOG = 10_000
# Up to so many objects are files of their own, each of a page at least.
MOST_FILES = 10**6
DATA_ENTRIES = 10**5
SHA1 = "find %s -type f -print0 | xargs -0 -n 1000 -P $(nproc) openssl sha1"


def main(arguments):
    for entries in map(int, arguments) if arguments else ENTRIES:
        in_directory(entries > MOST_FILES, bench_entries, entries)
    in_directory(False, bench_data)
    return 0


def in_directory(on_disk, bench, *arguments):
    memory = "/dev/shm"
    place = memory if not on_disk and os.path.isdir(memory) and shutil.disk_usage(memory).free > 8000 * MEGABYTE else None
    directory = tempfile.mkdtemp(prefix="cvmfs-bench.", dir=place)
    try:
        bench(directory, *arguments)
    finally:
        remove(directory)


class Health(Site):
    """A repository with its storage."""

    def __init__(self, directory):
        super().__init__(directory)
        self.data = os.path.join(self.root, "srv/cvmfs", FQRN, "data")

    def fill(self, entries, linked):
        remove(self.root)
        self.publish("mkfs", "--gc", "--no-autotags", FQRN)
        run([os.environ["SYNTHETIC"], self.root, FQRN, str(entries), *["--linked"] * linked])

    def publish(self, *arguments):
        return self.run("cvmfs-publish", "-q", *arguments)

    def objects(self):
        """The number of files below data/."""
        return sum(len(names) for _, _, names in os.walk(self.data))


def bench_entries(directory, entries):
    linked = entries > MOST_FILES
    site, rows, runs = Health(directory), Rows(), 1 if linked else RUNS
    site.fill(entries, linked)
    for _ in range(runs):
        rows.add("check", site.publish("check"))
        rows.add("find", run(["find", site.data, "-size", "+1000000"]))
        rows.add("sqlite", run([sys.executable, __file__, "--scan", site.data]))
    keep = ("--keep-revisions", "0", "--grace-period", "0")
    number = (entries + FILES_IN_CATALOG - 1) // FILES_IN_CATALOG
    delete_catalogs(site, 0, max(number // 10, 1))
    for _ in range(runs):
        rows.add("gc -n", site.publish("gc", "--dry-run", *keep))
    objects = [site.objects()]
    rows.add("gc", site.publish("gc", *keep))
    objects.append(site.objects())
    delete_catalogs(site, max(number // 10, 1), number // 2)
    rows.add("gc, half", site.publish("gc", *keep))
    objects.append(site.objects())
    rows.add("check again", site.publish("check"))
    rows.add("rm", run(["find", site.data, "-type", "f", "-delete"]))
    heading("%d entries%s" % (entries, ", whose objects are names of a few files on disk" * linked))
    table(rows, {"check": entries, "find": objects[0], "sqlite": entries, "gc -n": objects[0], "gc": objects[0],
                 "gc, half": objects[1], "rm": objects[2]})
    print("\nOf %d objects, %d went, and then %d." % (objects[0], objects[0] - objects[1], objects[1] - objects[2]))
    sys.stdout.flush()


def delete_catalogs(site, begin, end):
    """Two commits: the second one takes the tag `trunk-previous` off those that go with the first."""
    for numbers in (range(begin, end - 1), [end - 1]):
        site.run("cvmfs-ingest", "-q", *["--delete=c%05d" % number for number in numbers])


def table(rows, things):
    """Prints the rows, with how many things each looked at in a second, and in a second of all cores' time."""
    print("| work | seconds | CPU seconds | peak memory | a second | a CPU second |\n|%s" % (" --- |" * 6))
    for row, number in things.items():
        rates = ["%.0f" % (number / rows.median(row, kind)) for kind in (0, 1)]
        print("| %s |" % " | ".join([row, rows.columns(row), *rates]))


def scan(data):
    """Inflates every catalog and reads every row, as somebody would do it with Python."""
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(data)) as scratch:
        for path in sorted(glob.glob(os.path.join(data, "??", "*C"))):
            with open(path, "rb") as stored:
                scratch.truncate(0)
                scratch.seek(0)
                scratch.write(zlib.decompress(stored.read()))
                scratch.flush()
            catalog = sqlite3.connect(scratch.name)
            catalog.execute("SELECT total(md5path_1 + parent_1 + size + mode + mtime + flags + uid + gid), "
                            "total(length(hash) + length(name) + length(symlink)) FROM catalog").fetchall()
            catalog.close()


def bench_data(directory):
    tree, tarball = make_tarball(make_large, directory)
    remove(tree)
    site, rows = Health(directory), Rows()
    site.publish("mkfs", FQRN)
    site.ingest(tarball, "large")
    os.remove(tarball)
    heading("data: bytes of objects")
    compare_with_sha1(site, rows, "large")
    site.fill(DATA_ENTRIES, False)
    compare_with_sha1(site, rows, "small")


def compare_with_sha1(site, rows, what):
    sizes = [os.path.getsize(os.path.join(path, name)) for path, _, names in os.walk(site.data) for name in names]
    check, openssl = "check --data, " + what, "openssl sha1, " + what
    for _ in range(RUNS):
        rows.add(check, site.publish("check", "--data"))
        rows.add(openssl, run(["sh", "-c", SHA1 % site.data]))
    print("\n%d objects, %.0f MB, of which so many in a second:\n" % (len(sizes), sum(sizes) / MEGABYTE))
    table(rows, dict.fromkeys((check, openssl), sum(sizes) / MEGABYTE))


if __name__ == "__main__":
    sys.exit(scan(sys.argv[2]) if sys.argv[1:2] == ["--scan"] else main(sys.argv[1:]))
