#!/usr/bin/env python3
"""Times publishing into a bucket of S3 on the same machine, beside the same into a directory.

  directory   files, all new, into a local directory
  bucket      the same into a bucket of the S3 server of the tests (`s3s-fs`), which keeps it in files as well
  again       the same once more at another path, into the bucket: everything is known
  replica     a snapshot of the first repository into the bucket, beside one into a directory
  ..., apart  with a processor for the publisher, and another for the server, as if they were two machines

Everything is in memory (/dev/shm) if there is room. Medians of three runs, taken in turns. Client and server share the
processors where nothing else is said: the last column but one is what the server takes of them, and it is no part of the
client's. A request costs both the same whatever it carries, so the size of the files decides: there is a table for each
of TREES.

`./dev bench s3 [TREE...]` runs it; BIN is the directory of the programs.
"""

import os
import pathlib
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

NAME = "bench.example.org"
RUNS = int(os.environ.get("RUNS", 3))
# Files and their mean size in bytes.
TREES = {"small": (20_000, 12_000), "middle": (4000, 100_000), "large": (100, 8_000_000)}
# What is timed, and what its speed is compared with.
BESIDE = {"directory": None, "bucket": "directory", "again": None, "replica, directory": None,
          "replica, bucket": "replica, directory", "directory, apart": None, "bucket, apart": "directory, apart"}


def main(names):
    for name in names or TREES:
        bench(name, *TREES[name])
    return 0


def bench(name, files, size):
    memory = "/dev/shm"
    place = memory if os.path.isdir(memory) and shutil.disk_usage(memory).free > 4 * 10**9 else None
    directory = pathlib.Path(tempfile.mkdtemp(prefix="cvmfs-bench.", dir=place))
    server = None
    try:
        make_tree(directory / "tree", files, size)
        server = Server(directory)
        print("\n%s: %d files of about %d bytes, %d cores, load %.1f\n"
              % (name, files, size, os.cpu_count(), os.getloadavg()[0]))
        print("| work | seconds | CPU seconds | of the server | of the speed into a directory |")
        print("| --- | --- | --- | --- | --- |")
        runs = {kind: [] for kind in BESIDE}
        for number in range(RUNS):
            measure(directory, server, number, runs)
        for kind, beside in BESIDE.items():
            row(kind, runs[kind], runs.get(beside))
    finally:
        if server:
            server.stop()
        shutil.rmtree(directory)


def measure(directory, server, number, runs):
    local, remote = directory / ("local%d" % number), directory / ("remote%d" % number)
    tree = directory / "tree"
    name = "run%d.%s" % (number, NAME)
    publish = ["cvmfs-publish", "-q", "publish", "--from", tree, "--base-dir"]
    bucket = ["-s", server.conf, "-w", "http://bucket.example.org"]
    run(server, local, "cvmfs-publish", "-q", "mkfs", name)
    runs["directory"].append(run(server, local, *publish, "one"))
    run(server, remote, "cvmfs-publish", "-q", "mkfs", name, *bucket)
    runs["bucket"].append(run(server, remote, *publish, "one"))
    runs["again"].append(run(server, remote, *publish, "two"))
    shutil.rmtree(remote)

    port = free_port()
    source = subprocess.Popen([program("cvmfs-replica"), "-q", "--root", local, "serve", "--listen", "127.0.0.1:%d" % port])
    time.sleep(0.5)
    key = local / "etc/cvmfs/keys" / (name + ".pub")
    add = ["cvmfs-replica", "-q", "add-replica", "--stratum0", "http://127.0.0.1:%d/cvmfs/%s" % (port, name),
           "--public-key", key, "--name", "mirror%d.%s" % (number, NAME)]
    for kind, more in (("directory", []), ("bucket", bucket)):
        root = directory / ("replica-%s%d" % (kind, number))
        run(server, root, *add, *more)
        runs["replica, " + kind].append(run(server, root, "cvmfs-replica", "-q", "snapshot"))
        shutil.rmtree(root)
    source.kill()
    source.wait()
    shutil.rmtree(local)

    server.run_on({1})
    for kind, more in (("directory, apart", []), ("bucket, apart", bucket)):
        root = directory / ("apart%d" % number)
        run(server, root, "cvmfs-publish", "-q", "mkfs", "apart-" + name, *more)
        runs[kind].append(run(server, root, *publish, "one", cores={0}))
        shutil.rmtree(root)
    server.run_on(os.sched_getaffinity(0))
    shutil.rmtree(server.directory / "bucket")
    (server.directory / "bucket").mkdir()


def make_tree(tree, files, mean):
    chance = random.Random(1)
    words = [bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyz", k=chance.randrange(2, 12))) for _ in range(5000)]
    for number in range(files):
        path = tree / ("%03d" % (number // 200))
        path.mkdir(parents=True, exist_ok=True)
        size = chance.randrange(mean // 3, mean * 5 // 3)
        (path / ("file%03d" % (number % 200))).write_bytes(b" ".join(chance.choices(words, k=size // 7))[:size])


class Server:
    def __init__(self, directory):
        self.directory = directory / "server"
        self.process = subprocess.Popen([program("examples/s3_server"), self.directory], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        lines = []
        for line in self.process.stdout:
            if not line.strip():
                break
            lines.append(line)
        self.conf = directory / "s3.conf"
        self.conf.write_text("".join(lines))

    def cpu(self):
        fields = pathlib.Path("/proc/%d/stat" % self.process.pid).read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def run_on(self, cores):
        for thread in os.listdir("/proc/%d/task" % self.process.pid):
            os.sched_setaffinity(int(thread), cores)

    def stop(self):
        self.process.kill()
        self.process.wait()


def run(server, root, name, *arguments, cores=None):
    """Wall seconds, CPU seconds, and CPU seconds of the server meanwhile."""
    environment = dict(os.environ, CVMFS_SERVER_ROOT=str(root))
    before, started = server.cpu(), time.monotonic()
    process = subprocess.Popen([program(name), *arguments], env=environment, stdout=subprocess.DEVNULL,
                               preexec_fn=cores and (lambda: os.sched_setaffinity(0, cores)))
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit("bench: exit code %d of %s" % (process.returncode, " ".join(map(str, (name, *arguments)))))
    return seconds, usage.ru_utime + usage.ru_stime, server.cpu() - before


def row(name, runs, beside):
    seconds, cpu, of_server = (statistics.median(run[kind] for run in runs) for kind in range(3))
    speed = "%.0f %%" % (100 * statistics.median(run[0] for run in beside) / seconds) if beside else ""
    print("| %s | %.2f | %.2f | %.2f | %s |" % (name, seconds, cpu, of_server, speed), flush=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def program(name):
    return os.path.join(os.environ["BIN"], name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
