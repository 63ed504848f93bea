#!/usr/bin/env python3
"""Times `cvmfs-ingest` on whole trees, beside tools that anybody can run on the same machine.

For each corpus: the median of three runs, each into a new repository, and the largest peak memory of the three. The
corpora and repositories are in memory (/dev/shm) if there is room: disks vary by more than what is measured. No peak is
shown where it is below that of this script.

  ingest      cvmfs-ingest of the tarball into an empty repository
  again       the same tarball once more, below another directory
  unchanged   the same tarball once more, below the same directory
  verify      cvmfs-publish verify: reads every file back
  floor       the work that an ingest cannot avoid: deflate and SHA-1 of all files on all cores, from memory to nowhere
  pigz        pigz -p2 -6 of the tarball, to nowhere
  tar         tar -xf of the tarball

`./dev bench` runs it; BIN is the directory of the programs, FLOOR the program of benches/floor.rs.
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

NAME = "bench.example.org"
RUNS = 3
MEGABYTE = 10**6
# What `small` is made of, until it is large enough: many files, as software has them.
TREES = ("/usr/include", "/usr/lib/python3", "/usr/share/doc", "/usr/share/perl", "/usr/share/zoneinfo",
         "/usr/lib/gcc", "/usr/libexec/gcc", "/usr/share/man", "/usr/share/locale", "/usr/share", "/usr/lib")
SMALL_ENTRIES, SMALL_BYTES = 57_000, 1000 * MEGABYTE
LARGE_SIZES = (200, 230, 260, 300)


def main(names):
    corpora = {"small": make_small, "large": make_large}
    for name in names:
        if name not in corpora:
            sys.exit("bench: no corpus %r; there are: %s" % (name, ", ".join(corpora)))
    memory = "/dev/shm"
    place = memory if os.path.isdir(memory) and shutil.disk_usage(memory).free > 6000 * MEGABYTE else None
    for name in names or corpora:
        directory = tempfile.mkdtemp(prefix="cvmfs-bench.", dir=place)
        try:
            tree = os.path.join(directory, "tree")
            os.mkdir(tree)
            corpora[name](tree)
            measure(name, directory, tree)
        finally:
            shutil.rmtree(directory)
    return 0


def make_small(tree):
    entries = size = 0
    for source in TREES:
        if not os.path.isdir(source) or entries >= SMALL_ENTRIES or size >= SMALL_BYTES:
            continue
        for directory, _, files in os.walk(source):
            copy = tree + directory
            if os.path.isdir(copy):
                continue                                         # a tree of above, again
            os.makedirs(copy)
            entries += 1
            for name in files:
                path = os.path.join(directory, name)
                if os.access(path, os.R_OK) and (os.path.islink(path) or os.path.isfile(path)):
                    shutil.copy2(path, copy, follow_symlinks=False)
                    entries += 1
                    size += os.lstat(path).st_size
            if entries >= SMALL_ENTRIES or size >= SMALL_BYTES:
                break


def make_large(tree):
    """Four files of blocks that are text-like, noise, or zero, always the same ones."""
    chance = random.Random(1)
    words = [bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyz", k=chance.randrange(2, 11))) for _ in range(4000)]
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


def measure(corpus, directory, tree):
    tarball = os.path.join(directory, "tree.tar")
    subprocess.run(["tar", "-C", tree, "-cf", tarball, "."], check=True)
    site = os.path.join(directory, "site")
    environment = dict(os.environ, CVMFS_SERVER_ROOT=site, CVMFS_REPO=NAME)
    ingest = [program("cvmfs-ingest"), "-q", "--tar", tarball, "--base-dir"]
    rows = {}

    def time_of(row, command):
        rows.setdefault(row, []).append(run(command, environment))

    for _ in range(RUNS):
        remove(site)
        run([program("cvmfs-publish"), "-q", "mkfs", NAME], environment)
        time_of("ingest", ingest + ["first"])
        stored = sum(os.path.getsize(os.path.join(path, name))
                     for path, _, names in os.walk(os.path.join(site, "srv")) for name in names)
        time_of("again", ingest + ["second"])
        time_of("unchanged", ingest + ["second"])
        time_of("verify", [program("cvmfs-publish"), "-q", "verify", "/first"])
        remove(site)
        rows.setdefault("floor", []).append(floor(tree))
        time_of("pigz", ["pigz", "-p2", "-6", "-c", tarball])
        extracted = os.path.join(directory, "extracted")
        os.mkdir(extracted)
        time_of("tar", ["tar", "-C", extracted, "-xf", tarball])
        remove(extracted)
    report(corpus, tree, stored, rows)


def report(corpus, tree, stored, rows):
    files = sum(len(names) for _, _, names in os.walk(tree))
    size = sum(os.lstat(os.path.join(path, name)).st_size for path, _, names in os.walk(tree) for name in names)
    median = {row: statistics.median(seconds for seconds, _ in runs) for row, runs in rows.items()}
    print("\n%s: %d files, %.0f MB; stored %.0f MB; %d cores; load %.1f" % (
        corpus, files, size / MEGABYTE, stored / MEGABYTE, os.cpu_count(), os.getloadavg()[0]))
    print("\n| work | seconds | of the three | MB/s | peak MiB | x floor | x pigz |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row, runs in rows.items():
        seconds = median[row]
        spread = "%.2f to %.2f" % (min(runs)[0], max(runs)[0])
        peak = max(peak or 0 for _, peak in runs)
        # A child's peak begins with what this process had when it made the child.
        shown = "" if peak <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss else "%.0f" % (peak / 1024)
        print("| %s | %.2f | %s | %.0f | %s | %.2f | %.2f |" % (
            row, seconds, spread, size / MEGABYTE / seconds, shown,
            seconds / median["floor"], seconds / median["pigz"]))
    sys.stdout.flush()


def run(command, environment):
    """Seconds and peak memory in KiB of a program."""
    started = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit("bench: exit code %d of %s" % (process.returncode, " ".join(command)))
    return seconds, usage.ru_maxrss


def floor(tree):
    done = subprocess.run([os.environ["FLOOR"], tree], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["seconds"], None


def program(name):
    return os.path.join(os.environ["BIN"], name)


def remove(directory):
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
