#!/usr/bin/env python3
"""Times `cvmfs-replica snapshot` beside curl, which fetches the same objects and verifies nothing.

  loopback    the first snapshot of a repository of 100,000 small objects, from nginx on this machine
  20 ms       10,000 objects, from nginx behind a line with a round trip of 20 ms
  bundles     the same, from `cvmfs-replica serve`, which answers many objects at once
  unchanged   a snapshot that finds nothing new: the whole program, one request

Everything is in memory (/dev/shm) if there is room. The two programs take turns; each row is the median of three runs.

`./dev bench replica` runs it; BIN is the directory of the programs, SLOW_LINE the program that delays.
"""

import os
import pathlib
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

NAME = "bench.example.org"
RUNS = 3
MANY, FEW, DIRECTORY_FILES = 100_000, 10_000, 1000
ROUND_TRIP_MS = 20
PARALLEL = 16

NGINX = """
daemon off;
worker_processes 2;
pid {work}/nginx.pid;
error_log {work}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    keepalive_requests 1000000;
    client_body_temp_path {work}/temp; proxy_temp_path {work}/temp; fastcgi_temp_path {work}/temp;
    uwsgi_temp_path {work}/temp; scgi_temp_path {work}/temp;
    server {{ listen 127.0.0.1:{port}; root {site}/srv; }}
}}
"""


def main():
    memory = "/dev/shm"
    place = memory if os.path.isdir(memory) and shutil.disk_usage(memory).free > 6 * 10**9 else None
    work = pathlib.Path(tempfile.mkdtemp(prefix="cvmfs-bench.", dir=place))
    # The workers of nginx are another user.
    work.chmod(0o755)
    bench = Bench(work)
    try:
        print("%d cores, load %.1f\n" % (os.cpu_count(), os.getloadavg()[0]))
        print("| work | snapshot | curl -Z --parallel-max %d | ratio | peak memory of the snapshot |" % PARALLEL)
        print("| --- | --- | --- | --- | --- |")
        bench.publish("many", MANY)
        bench.publish("few", FEW)
        many, few = bench.start_nginx("many"), bench.start_nginx("few")
        bench.row("loopback, %d objects" % MANY, "many", many)
        bench.row("unchanged", "many", many, first=False)
        bench.row("%d ms, %d objects" % (ROUND_TRIP_MS, FEW), "few", bench.start_line(few))
        bench.row("%d ms, bundles" % ROUND_TRIP_MS, "few", bench.start_line(bench.start_serve("few")))
    finally:
        bench.stop()
        shutil.rmtree(work)
    return 0


class Bench:
    def __init__(self, work):
        self.work = work
        self.processes = []

    def publish(self, site, files):
        """Makes a repository of so many files of some kilobytes, in directories that are nested catalogs."""
        generator = random.Random(files)
        tree = self.work / "tree"
        for number in range(files // DIRECTORY_FILES):
            directory = tree / ("%03d" % number)
            directory.mkdir(parents=True)
            (directory / ".cvmfscatalog").touch()
            for file in range(DIRECTORY_FILES):
                (directory / str(file)).write_bytes(generator.randbytes(generator.randrange(100, 6000)))
        self.run([program("cvmfs-publish"), "-q", "--root", self.work / site, "mkfs", NAME])
        self.run([program("cvmfs-publish"), "-q", "--root", self.work / site, "publish", "--from", tree])
        shutil.rmtree(tree)
        storage = self.work / site / "srv/cvmfs" / NAME
        (storage / ".cvmfs_master_replica").touch()
        objects = [path.relative_to(storage) for path in storage.glob("data/??/*")]
        (self.work / (site + ".objects")).write_text("".join("%s\n" % path for path in objects))

    def row(self, name, site, port, first=True):
        url = "http://127.0.0.1:%d/cvmfs/%s" % (port, NAME)
        runs, memory, yardsticks = [], 0, []
        for _ in range(RUNS):
            if first or not runs:
                self.add_replica(site, url)
            if first:
                yardsticks.append(self.curl(site, url))
            elif not runs:
                self.run(self.replica("snapshot"))
            seconds, peak = self.run(self.replica("snapshot"))
            runs.append(seconds)
            memory = max(memory, peak)
            if first:
                self.check(site)
        seconds = statistics.median(runs)
        curl = statistics.median(yardsticks) if yardsticks else None
        beside = "%.2f s | %.2f" % (curl, seconds / curl) if curl else "| "
        print("| %s | %.3f s | %s | %d MiB |" % (name, seconds, beside, memory // 1024), flush=True)

    def replica(self, *arguments):
        return [program("cvmfs-replica"), "-q", "--root", self.work / "replica", *arguments]

    def add_replica(self, site, url):
        shutil.rmtree(self.work / "replica", ignore_errors=True)
        key = self.work / site / "etc/cvmfs/keys" / (NAME + ".pub")
        self.run(self.replica("add-replica", "--stratum0", url, "--public-key", key))

    def check(self, site):
        """All objects are there."""
        copy = self.work / "replica/srv/cvmfs" / NAME
        missing = [path for path in (self.work / (site + ".objects")).read_text().split() if not (copy / path).is_file()]
        # The first snapshot leaves out what no revision of it reaches: the catalogs of the empty first revision.
        if len(missing) > 3:
            sys.exit("bench: %d objects are not in the replica, such as %s" % (len(missing), missing[0]))

    def curl(self, site, url):
        copy = self.work / "curl"
        for number in range(256):
            (copy / "data" / ("%02x" % number)).mkdir(parents=True)
        paths = (self.work / (site + ".objects")).read_text().split()
        (self.work / "curl.list").write_text("".join('url = "%s/%s"\noutput = "%s/%s"\n' % (url, path, copy, path) for path in paths))
        seconds, _ = self.run(["curl", "--noproxy", "*", "-sS", "--fail", "-Z", "--parallel-max", str(PARALLEL), "-K", self.work / "curl.list"])
        shutil.rmtree(copy)
        return seconds

    def start_nginx(self, site):
        port = free_port()
        own = self.work / ("nginx-%d" % port)
        own.mkdir()
        (own / "nginx.conf").write_text(NGINX.format(work=own, site=self.work / site, port=port))
        self.start(["nginx", "-c", own / "nginx.conf"], port)
        return port

    def start_serve(self, site):
        port = free_port()
        self.start([program("cvmfs-replica"), "-q", "--root", self.work / site, "serve", "--listen", "127.0.0.1:%d" % port], port)
        return port

    def start_line(self, port):
        """A server on the other side of a long line."""
        command = [os.environ["SLOW_LINE"], "127.0.0.1:%d" % port, str(ROUND_TRIP_MS)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        return int(process.stdout.readline().strip().rpartition(":")[2])

    def start(self, command, port):
        self.processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        for _ in range(100):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        sys.exit("bench: nothing listens for %s" % command[0])

    def stop(self):
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
            process.wait()

    def run(self, command):
        """Seconds and peak memory in KiB."""
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit("bench: exit code %d of %s" % (process.returncode, " ".join(map(str, command))))
        return seconds, usage.ru_maxrss


def program(name):
    return os.path.join(os.environ["BIN"], name)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
