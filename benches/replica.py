#!/usr/bin/env python3
"""Times `cvmfs-replica snapshot` beside `curl -Z --parallel-max 16` of the same objects, from the same server.

  local     100,000 small objects (OBJECTS in the environment: another number) on the loopback device
  far       10,000 objects, with a round trip of 20 ms

The rows of each: curl; a snapshot by single requests; a snapshot with bundles; and one that finds nothing new. A snapshot
verifies and stores what curl only stores. Everything is on this machine and in memory (/dev/shm) if there is room, so the
server takes its part of the processors. Times are medians of RUNS runs (3); CPU is that of the program in the row alone, and
the peak of memory the largest.

`./dev bench replica` runs it; BIN is the directory of the programs.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

NAME = "bench.example.org"
RUNS = int(os.environ.get("RUNS", 3))
OBJECTS = int(os.environ.get("OBJECTS", 100_000))
FAR_OBJECTS = OBJECTS // 10
ROUND_TRIP = 20
DIRECTORY_FILES = 2000


class Server:
    """A server of a site."""

    def __init__(self, site, *options):
        command = [program("cvmfs-replica"), "--root", site, "serve", "--listen", "127.0.0.1:0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.address = self.process.stderr.readline().split()[1].split("/")[2]

    def stop(self):
        self.process.terminate()
        self.process.wait()


class SlowLine:
    """A long way to a server."""

    def __init__(self, address, milliseconds):
        command = [program("examples/slow_line"), address, str(milliseconds)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.address = self.process.stdout.readline().strip()

    def stop(self):
        self.process.kill()
        self.process.wait()


class Bench:
    def __init__(self, directory, files):
        self.directory = directory
        self.site = self.path("site")
        self.make_site(files)

    def path(self, *names):
        return os.path.join(self.directory, *names)

    def make_site(self, files):
        for number in range(files):
            directory = self.path("tree", "%03d" % (number // DIRECTORY_FILES))
            if number % DIRECTORY_FILES == 0:
                os.makedirs(directory)
                open(os.path.join(directory, ".cvmfscatalog"), "w").close()
            with open(os.path.join(directory, "file%04d" % (number % DIRECTORY_FILES)), "wb") as out:
                out.write(os.urandom(200 + number * 37 % 3000))
        environment = dict(os.environ, CVMFS_SERVER_ROOT=self.site, CVMFS_REPO=NAME)
        subprocess.run([program("cvmfs-publish"), "-q", "mkfs", NAME], env=environment, check=True)
        publish = [program("cvmfs-publish"), "-q", "publish", "--from", self.path("tree")]
        subprocess.run(publish, env=environment, check=True)
        shutil.rmtree(self.path("tree"))
        data = os.path.join(self.site, "srv/cvmfs", NAME, "data")
        self.objects = [(first, name) for first in os.listdir(data) if first != "txn"
                        for name in os.listdir(os.path.join(data, first))]

    def curl(self, address):
        shutil.rmtree(self.path("curl"), ignore_errors=True)
        os.mkdir(self.path("curl"))
        with open(self.path("urls"), "w") as out:
            for first, name in self.objects:
                out.write("url=http://%s/cvmfs/%s/data/%s/%s\noutput=%s/%s%s\n"
                          % (address, NAME, first, name, self.path("curl"), first, name))
        command = ["curl", "-s", "--no-progress-meter", "--noproxy", "*", "-Z", "--parallel-max", "16", "-K", self.path("urls")]
        return measure(command, os.environ)

    def snapshots(self, address):
        """A first snapshot, and one that finds nothing new."""
        root = self.path("replica")
        shutil.rmtree(root, ignore_errors=True)
        environment = dict(os.environ, CVMFS_SERVER_ROOT=root)
        key = os.path.join(self.site, "etc/cvmfs/keys", NAME + ".pub")
        add = [program("cvmfs-replica"), "-q", "add-replica", "--stratum0", "http://%s/cvmfs/%s" % (address, NAME),
               "--public-key", key]
        subprocess.run(add, env=environment, check=True, stdout=subprocess.DEVNULL)
        snapshot = [program("cvmfs-replica"), "-q", "snapshot"]
        first = measure(snapshot, environment)
        data = os.path.join(root, "srv/cvmfs", NAME, "data")
        stored = sum(len(os.listdir(os.path.join(data, name))) for name in os.listdir(data))
        if stored < len(self.objects) - 2:
            sys.exit("bench: %d of %d objects were replicated" % (stored, len(self.objects)))
        return first, measure(snapshot, environment)


def main():
    memory = "/dev/shm"
    place = memory if os.path.isdir(memory) and shutil.disk_usage(memory).free > 4 * 10**9 else None
    print("%d cores, load %.1f\n" % (os.cpu_count(), os.getloadavg()[0]))
    print("| work | seconds | CPU seconds | peak, MiB | objects/s |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for name, files, delay in (("local", OBJECTS, 0), ("far", FAR_OBJECTS, ROUND_TRIP)):
        directory = tempfile.mkdtemp(prefix="cvmfs-bench.", dir=place)
        try:
            run(name, Bench(directory, files), delay)
        finally:
            shutil.rmtree(directory)


def run(name, bench, delay):
    servers = {"single": Server(bench.site, "--max-bundles", "0"), "bundles": Server(bench.site)}
    lines = {kind: SlowLine(server.address, delay) if delay else None for kind, server in servers.items()}
    address = {kind: (lines[kind] or server).address for kind, server in servers.items()}
    rows = {"curl -Z": [], "snapshot": [], "snapshot, bundles": [], "nothing new": []}
    try:
        # Turn by turn: all see the same disturbance.
        for _ in range(RUNS):
            rows["curl -Z"].append(bench.curl(address["single"]))
            rows["snapshot"].append(bench.snapshots(address["single"])[0])
            bundled, unchanged = bench.snapshots(address["bundles"])
            rows["snapshot, bundles"].append(bundled)
            rows["nothing new"].append(unchanged)
    finally:
        for process in [*servers.values(), *filter(None, lines.values())]:
            process.stop()
    for row, runs in rows.items():
        seconds, cpu = (statistics.median(run[column] for run in runs) for column in (0, 1))
        rate = "" if row == "nothing new" else "%.0f" % (len(bench.objects) / seconds)
        print("| %s: %s | %.3f | %.2f | %d | %s |" % (name, row, seconds, cpu, max(run[2] for run in runs), rate), flush=True)


def measure(command, environment):
    """Wall seconds, CPU seconds, and the peak of memory in MiB."""
    started = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit("bench: exit code %d of %s" % (process.returncode, " ".join(command)))
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024


def program(name):
    return os.path.join(os.environ["BIN"], name)


if __name__ == "__main__":
    main()
