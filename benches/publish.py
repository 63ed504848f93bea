#!/usr/bin/env python3
"""Times `cvmfs-publish publish --from` on trees of many files.

  new         100,000 new files of 4 KB in 50 directories that are nested catalogs
  unchanged   the walk of a tree of 10^6 files (FILES in the environment: another number) of which none changed, beside
              `find -newer` over the same tree
  one         one changed file in that tree: the commit, after the walk
  removed     a directory with 25,000 of those files is gone: the commit, after the walk

Trees and repositories are in memory (/dev/shm) if there is room. For each row: the median of three runs; CPU seconds are
user and system time of all threads, which other work on the machine disturbs less than wall time.

`./dev bench publish` runs it; BIN is the directory of the programs.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

NAME = "bench.example.org"
RUNS = 3
NEW_FILES, NEW_SIZE, NEW_DIRECTORIES = 100_000, 4096, 50
FILES = int(os.environ.get("FILES", 10**6))
# At least five directories of the second size: others of them are changed and removed.
DIRECTORY_FILES, TOP_FILES = 1000, 25_000


class Bench:
    def __init__(self, directory):
        self.directory = directory
        self.environment = dict(os.environ, CVMFS_SERVER_ROOT=self.path("site"), CVMFS_REPO=NAME)

    def path(self, *names):
        return os.path.join(self.directory, *names)

    def make_site(self):
        shutil.rmtree(self.path("site"), ignore_errors=True)
        self.run([program("cvmfs-publish"), "-q", "mkfs", NAME])

    def publish(self, tree):
        return self.run([program("cvmfs-publish"), "-q", "--json", "publish", "--from", self.path(tree)])

    def run(self, command):
        """Wall seconds, CPU seconds and what was printed."""
        started = time.monotonic()
        process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE)
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit("bench: exit code %d of %s" % (process.returncode, " ".join(command)))
        return seconds, usage.ru_utime + usage.ru_stime, printed


def main():
    memory = "/dev/shm"
    place = memory if os.path.isdir(memory) and shutil.disk_usage(memory).free > 16 * 10**9 else None
    directory = tempfile.mkdtemp(prefix="cvmfs-bench.", dir=place)
    try:
        print("%d cores, load %.1f\n" % (os.cpu_count(), os.getloadavg()[0]))
        print("| work | seconds | CPU seconds | of it the commit | |")
        print("| --- | --- | --- | --- | --- |")
        bench = Bench(directory)
        measure_new(bench)
        measure_many(bench)
    finally:
        shutil.rmtree(directory)
    return 0


def measure_new(bench):
    for number in range(NEW_DIRECTORIES):
        directory = bench.path("new", "%02d" % number)
        os.makedirs(directory)
        open(os.path.join(directory, ".cvmfscatalog"), "w").close()
        for file in range(NEW_FILES // NEW_DIRECTORIES):
            with open(os.path.join(directory, "file%04d" % file), "wb") as out:
                # Half of it compresses.
                out.write(os.urandom(NEW_SIZE // 2) + bytes(NEW_SIZE // 2))
    runs = []
    for _ in range(RUNS):
        bench.make_site()
        runs.append(bench.publish("new"))
    seconds, cpu = median(runs)
    row("new", runs, "%.0f files/s; %.0f a CPU second" % (NEW_FILES / seconds, NEW_FILES / cpu))
    shutil.rmtree(bench.path("new"))


def measure_many(bench):
    for number in range(FILES // DIRECTORY_FILES):
        per_top = TOP_FILES // DIRECTORY_FILES
        directory = bench.path("many", "%03d" % (number // per_top), "%02d" % (number % per_top))
        os.makedirs(directory)
        for file in range(DIRECTORY_FILES):
            with open(os.path.join(directory, "file%04d" % file), "w") as out:
                out.write("%d %d" % (number, file))
    with open(bench.path("many", ".cvmfsdirtab"), "w") as out:
        out.write("/*\n")
    bench.make_site()
    bench.publish("many")
    reference = bench.path("reference")
    open(reference, "w").close()
    # Turn by turn: both see the same disturbance.
    runs = [(bench.run(["find", bench.path("many"), "-newer", reference]), bench.publish("many")) for _ in range(RUNS)]
    find, walk = [run[0] for run in runs], [run[1] for run in runs]
    ratio = [statistics.median(run[kind] for run in walk) / statistics.median(run[kind] for run in find)
             for kind in (0, 1)]
    row("unchanged", walk, "%.2f x find; %.2f x its CPU time" % tuple(ratio))
    row("find -newer", find, "")
    changed = []
    for number in range(RUNS):
        with open(bench.path("many", "001", "02", "file0003"), "w") as out:
            out.write("changed %d" % number)
        changed.append(bench.publish("many"))
    row("one", changed, "")
    removed = []
    for number in range(RUNS):
        shutil.rmtree(bench.path("many", "%03d" % (number + 2)))
        removed.append(bench.publish("many"))
    row("removed", removed, "")


def median(runs):
    return tuple(statistics.median(run[kind] for run in runs) for kind in (0, 1))


def row(name, runs, note):
    commits = [json.loads(printed)["seconds"]["commit"] for _, _, printed in runs if printed.startswith(b"{")]
    commit = "%.3f" % statistics.median(commits) if commits else ""
    print("| %s | %.2f | %.2f | %s | %s |" % (name, *median(runs), commit, note))
    sys.stdout.flush()


def program(name):
    return os.path.join(os.environ["BIN"], name)


if __name__ == "__main__":
    sys.exit(main())
