#!/usr/bin/env python3
"""Times whole programs, beside tools that anybody can run on the same machine.

Three trees, made on the spot: `small` has 60,000 files of at most 1 MB, as software has them; `rootfs` is what debootstrap
installs; `large` has four files of 200 to 300 MB. The rows of each:

  new         cvmfs-ingest of the tarball into an empty repository, as a nested catalog
  known       the same tarball once more, below another directory, as another nested catalog
  unchanged   the same tarball once more, below the same directory
  verify      cvmfs-publish verify: reads every file back
  floor       deflate and SHA-1 of all files on all cores, from memory to nowhere
  files       the same with each result written as a file, as the format wants it
  known files the work that known content needs at least: BLAKE3 of all files, and a look at the file of each
  pigz        pigz -p2 -6 of the tarball, to nowhere

`sizes` has files of software again, by their size: what a file costs, whatever its size, beside what its bytes cost.
`entries` ingests 10^4, 10^5 and 10^6 tiny files in nested catalogs of 10^4; `compressed` ingests the tarball of rootfs as
other programs compress it, beside these programs.

Times are medians of three runs, CPU includes the system's, peak memory is the largest of the three. Trees and repositories
are in memory (/dev/shm) if there is room: disks vary by more than what is measured. No peak is shown where it is below
that of this script.

`./dev bench [NAME...]` runs it; BIN is the directory of the programs, FLOOR the program of benches/floor.rs.
"""

import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

FQRN = "bench.example.org"
RUNS = 3
MEGABYTE = 10**6
# What `small` is made of, until it is large enough.
SOFTWARE = ("/usr/include", "/usr/lib/python3", "/usr/share/doc", "/usr/share/perl", "/usr/share/zoneinfo",
            "/usr/lib/gcc", "/usr/libexec/gcc", "/usr/share/man", "/usr/share/locale", "/usr/share", "/usr/lib")
SMALL_FILES = 60_000
SMALL_SIZES = range(MEGABYTE + 1)
# The trees of `sizes`: files of these sizes, and how many of them.
SIZES = {"1 to 4 kB": range(1000, 4000), "4 to 16 kB": range(4000, 16_000), "16 to 64 kB": range(16_000, 64_000),
         "64 to 256 kB": range(64_000, 256_000)}
SIZES_FILES = 20_000
# What stands for a root file system where debootstrap cannot make one.
SYSTEM = ("/etc", "/usr/bin", "/usr/sbin", "/usr/share/zoneinfo", "/usr/lib")
SYSTEM_FILES = 6_000
LARGE_SIZES = (200, 230, 260, 300)
ENTRIES = (10**4, 10**5, 10**6)
# How each program compresses, and the name that its files have.
COMPRESSORS = {"gzip": "gz", "zstd": "zst", "xz": "xz", "bzip2": "bz2"}


def main(names):
    benches = {"small": bench_tree(make_small), "rootfs": bench_tree(make_rootfs), "large": bench_tree(make_large),
               "sizes": bench_sizes, "entries": bench_entries, "compressed": bench_compressed}
    for name in names:
        if name not in benches:
            sys.exit("bench: no benchmark %r; there are: %s" % (name, ", ".join(benches)))
    memory = "/dev/shm"
    place = memory if os.path.isdir(memory) and shutil.disk_usage(memory).free > 6000 * MEGABYTE else None
    for name in names or benches:
        directory = tempfile.mkdtemp(prefix="cvmfs-bench.", dir=place)
        try:
            benches[name](name, directory)
        finally:
            shutil.rmtree(directory)
    return 0


# --- trees ----------------------------------------------------------------------------------------------------------

def copy_trees(sources, tree, wanted, sizes=range(sys.maxsize)):
    """Copies what everybody may read of some trees: links, and files of some sizes until there are so many; returns their number."""
    copied = 0
    for source in sources:
        for directory, _, names in os.walk(source):
            copy = tree + directory
            if os.path.isdir(copy):
                continue                                         # a tree of above, again
            for name in names:
                path = os.path.join(directory, name)
                is_link = os.path.islink(path)
                is_file = not is_link and os.path.isfile(path) and os.path.getsize(path) in sizes
                if copied < wanted and (is_link or is_file) and os.access(path, os.R_OK):
                    os.makedirs(copy, exist_ok=True)
                    shutil.copy2(path, os.path.join(copy, name), follow_symlinks=False)
                    copied += is_file
            if copied == wanted:
                return copied
    return copied


def make_small(tree):
    copied = copy_trees(SOFTWARE, tree, SMALL_FILES, SMALL_SIZES)
    # A machine with little software: text of the size of sources makes up for it.
    chance = random.Random(1)
    words = made_up_words(chance)
    for number in range(copied, SMALL_FILES):
        directory = os.path.join(tree, "text", "%03d" % (number // 500))
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, "file%d" % number), "wb") as out:
            out.write(b" ".join(chance.choices(words, k=int(chance.expovariate(1 / 1500)))))


def make_rootfs(tree):
    if os.geteuid() == 0 and shutil.which("debootstrap"):
        command = ["debootstrap", "--variant=minbase", "stable", tree]
        if subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
            return
        remove(tree)
        os.mkdir(tree)
    print("# debootstrap did not work: programs and libraries of this machine instead")
    copy_trees(SYSTEM, tree, SYSTEM_FILES)


def make_large(tree):
    """Four files of blocks that are text-like, noise, or zero, always the same ones."""
    chance = random.Random(1)
    words = made_up_words(chance)
    for megabytes in LARGE_SIZES:
        with open(os.path.join(tree, "file%d" % megabytes), "wb") as out:
            for _ in range(megabytes):
                kind = chance.random()
                if kind < 0.6:
                    block = b" ".join(chance.choices(words, k=160_000))[:MEGABYTE]
                elif kind < 0.9:
                    block = chance.randbytes(MEGABYTE)
                else:
                    block = b""
                out.write(block.ljust(MEGABYTE, b"\0"))


def made_up_words(chance):
    return [bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyz", k=chance.randrange(2, 11))) for _ in range(4000)]


def make_tarball(make, directory):
    tree, tarball = os.path.join(directory, "tree"), os.path.join(directory, "tree.tar")
    os.mkdir(tree)
    make(tree)
    subprocess.run(["tar", "-C", tree, "-cf", tarball, "."], check=True)
    return tree, tarball


# --- benchmarks -----------------------------------------------------------------------------------------------------

def bench_tree(make):
    def bench(corpus, directory):
        tree, tarball = make_tarball(make, directory)
        site, rows = Site(directory), Rows()
        for _ in range(RUNS):
            site.make()
            rows.add("new", site.ingest(tarball, "first"))
            rows.add("known", site.ingest(tarball, "second"))
            rows.add("unchanged", site.ingest(tarball, "second"))
            rows.add("verify", site.run("cvmfs-publish", "-q", "verify", "/first"))
            remove(site.root)
            for row, measured in floor(tree, os.path.join(directory, "objects")).items():
                rows.add(row, measured)
            rows.add("pigz", run(["pigz", "-p2", "-6", "-c", tarball]))
        sizes = [os.lstat(os.path.join(path, name)) for path, _, names in os.walk(tree) for name in names]
        heading("%s: %d files and links, %.0f MB" % (corpus, len(sizes), sum(size.st_size for size in sizes) / MEGABYTE))
        rows.print({"x floor": "floor", "x `pigz -p2 -6`": "pigz"})
        new, known = rows.median("new"), rows.median("known")
        print("\nKnown content takes 1/%.1f of the time of new content." % (new / known))
    return bench


def bench_sizes(_, directory):
    heading("sizes: files as found below /usr, by their size")
    print("| size | files | of | new | x floor | x floor with files | known | times faster |\n|" + " --- |" * 8)
    for name, sizes in SIZES.items():
        place, rows = os.path.join(directory, "sizes"), Rows()
        os.mkdir(place)
        tree, tarball = make_tarball(lambda tree: copy_trees(SOFTWARE, tree, SIZES_FILES, sizes), place)
        found = [os.lstat(os.path.join(path, name)).st_size for path, _, names in os.walk(tree) for name in names]
        site = Site(place)
        for _ in range(RUNS):
            site.make()
            rows.add("new", site.ingest(tarball, "first"))
            rows.add("known", site.ingest(tarball, "second"))
            for row, measured in floor(tree, os.path.join(place, "objects")).items():
                rows.add(row, measured)
        new, known, least, files = (rows.median(row) for row in ("new", "known", "floor", "files"))
        print("| %s | %d | %.0f MB | %.2f s | %.2f | %.2f | %.2f s | %.1f |"
              % (name, len(found), sum(found) / MEGABYTE, new, new / least, new / files, known, new / known))
        sys.stdout.flush()
        remove(place)


def bench_entries(_, directory):
    heading("entries: tiny files, nested catalogs of 10,000")
    print("| entries | seconds | CPU seconds | peak memory | seconds for 10,000 |")
    print("| --- | --- | --- | --- | --- |")
    tarball, site = os.path.join(directory, "tree.tar"), Site(directory)
    for entries in ENTRIES:
        pack_entries(tarball, entries)
        rows = Rows()
        for _ in range(RUNS if entries < 10**6 else 1):
            site.make()
            rows.add("new", site.ingest(tarball, "first"))
            remove(site.root)
        seconds = rows.median("new")
        print("| %d | %s | %.2f |" % (entries, rows.columns("new"), seconds / entries * 10**4))
        sys.stdout.flush()


def pack_entries(tarball, entries):
    """Packs so many files of some bytes, 1000 a directory and ten directories a catalog."""
    with open(tarball, "wb") as out:
        for number in range(entries):
            catalog, directory = number // 10_000, number // 1000 % 10
            if number % 10_000 == 0:
                out.write(header(b"c%d/.cvmfscatalog" % catalog, 0))
            content = b"%d\n" % (number % 5000)
            out.write(header(b"c%d/d%d/file%d" % (catalog, directory, number), len(content)))
            out.write(content.ljust(512, b"\0"))
        out.write(bytes(1024))


def header(name, size):
    """The tar header of a file."""
    before = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"13000000000\0"
    after = (b"0" + bytes(100) + b"ustar\00000").ljust(356, b"\0")
    checksum = sum(before) + 8 * ord(" ") + sum(after)
    return before + b"%06o\0 " % checksum + after


def bench_compressed(_, directory):
    tree, tarball = make_tarball(make_rootfs, directory)
    remove(tree)
    site, rows = Site(directory), Rows()
    for compressor, extension in COMPRESSORS.items():
        subprocess.run([compressor, "-q", "-k", tarball], check=True)
        archive = tarball + "." + extension
        for _ in range(RUNS):
            site.make()
            rows.add("`%s -dc`" % compressor, run([compressor, "-dc", archive]))
            rows.add("new, from " + compressor, site.ingest(archive, "first"))
            rows.add("known, from " + compressor, site.ingest(archive, "second"))
            remove(site.root)
    for _ in range(RUNS):
        site.make()
        rows.add("new, not compressed", site.ingest(tarball, "first"))
        rows.add("known, not compressed", site.ingest(tarball, "second"))
        remove(site.root)
    heading("compressed: the tarball of rootfs, %.0f MB" % (os.path.getsize(tarball) / MEGABYTE))
    rows.print({})


# --- measuring ------------------------------------------------------------------------------------------------------

class Site:
    """A server's directory tree with one repository."""

    def __init__(self, directory):
        self.root = os.path.join(directory, "site")
        self.environment = dict(os.environ, CVMFS_SERVER_ROOT=self.root, CVMFS_REPO=FQRN)

    def make(self):
        remove(self.root)
        self.run("cvmfs-publish", "-q", "mkfs", FQRN)

    def ingest(self, tarball, base_dir):
        return self.run("cvmfs-ingest", "-q", "--tar", tarball, "--base-dir", base_dir, "--catalog")

    def run(self, program, *arguments):
        return run([os.path.join(os.environ["BIN"], program), *arguments], self.environment)


class Rows:
    """Runs by the name of their row: seconds, CPU seconds and peak memory in KiB of each."""

    def __init__(self):
        self.runs = {}

    def add(self, row, measured):
        self.runs.setdefault(row, []).append(measured)

    def median(self, row, kind=0):
        return statistics.median(run[kind] for run in self.runs[row])

    def columns(self, row):
        peak = max(peak for _, _, peak in self.runs[row])
        # A child's peak begins with what this process had when it made the child.
        shown = "" if peak <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss else "%.0f MiB" % (peak / 1024)
        return "%.2f | %.2f | %s" % (self.median(row), self.median(row, 1), shown)

    def print(self, yardsticks):
        names = ["work", "seconds", "CPU seconds", "peak memory", *yardsticks]
        print("| %s |\n|%s" % (" | ".join(names), " --- |" * len(names)))
        for row in self.runs:
            ratios = ["%.2f" % (self.median(row) / self.median(other)) for other in yardsticks.values()]
            print("| %s |" % " | ".join([row, self.columns(row), *ratios]))


def heading(text):
    print("\n%s; %d cores; load %.1f\n" % (text, os.cpu_count(), os.getloadavg()[0]))


def run(command, environment=None):
    """Seconds, CPU seconds and peak memory in KiB of a program."""
    started = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit("bench: exit code %d of %s" % (process.returncode, " ".join(command)))
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss


def floor(tree, objects=None):
    """What cannot be avoided for the files of a tree, by the name of the row; with a directory for objects all of it."""
    done = subprocess.run([os.environ["FLOOR"], tree, *([objects] if objects else [])], stdout=subprocess.PIPE, check=True)
    if objects:
        remove(objects)
    measured = json.loads(done.stdout)
    measured = {"floor": measured, "files": measured.get("files"), "known files": measured.get("known")}
    return {row: (one["seconds"], one["cpu_seconds"], 0) for row, one in measured.items() if one}


def remove(directory):
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
