#!/usr/bin/env python3
"""Kills a Stratum 1 every few seconds while its Stratum 0 publishes and clients read.

- The Stratum 0 publishes one changed tree after the other.
- The replica takes snapshots; they are killed after a random time, now and then the server of the replica as well.
- Clients read the replica's manifest, and then everything that its revision reaches: each object must be there and
  have the hash that names it. That a server is away for a moment is no fault; a missing object is.

At the end the replica must have the last revision, and the verifier must find nothing in its storage.

The clients share no code with the tools. `./dev soak` runs this; BIN is the directory of the programs.
"""

import argparse
import http.client
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "verifier"))

import vformat  # noqa: E402
import vstore  # noqa: E402

NAME = "soak.example.org"
CLIENTS = 2
DIRECTORIES, DIRECTORY_FILES = 12, 60


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="how long [600]")
    parser.add_argument("--short", dest="seconds", action="store_const", const=40, help="the same as --seconds 40")
    parser.add_argument("--seed", type=int, default=None, help="repeat the trees of another run")
    # The other soak has options of its own.
    options, _ = parser.parse_known_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print("soak: replication for %d s, seed %d" % (options.seconds, seed), flush=True)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="cvmfs-soak."))
    soak = Soak(directory, random.Random(seed))
    try:
        soak.run(options.seconds)
    except Failure as failure:
        print("soak: FAILED: %s\nsoak: the site is kept in %s" % (failure, directory))
        return 1
    finally:
        soak.stop()
    shutil.rmtree(directory)
    return 0


class Failure(Exception):
    """Something is not as it must be."""


class Soak:
    def __init__(self, directory, chance):
        self.directory, self.chance = directory, chance
        self.source, self.replica = directory / "stratum0", directory / "stratum1"
        self.tree = directory / "tree"
        self.source_port, self.replica_port = free_port(), free_port()
        self.servers = {}
        self.is_over = threading.Event()
        self.failures = []

    def run(self, seconds):
        self.call(self.source, "cvmfs-publish", "-q", "mkfs", NAME)
        self.change_tree(DIRECTORIES)
        self.publish()
        self.serve(self.source, self.source_port)
        url = "http://127.0.0.1:%d/cvmfs/%s" % (self.source_port, NAME)
        key = self.source / "etc/cvmfs/keys" / (NAME + ".pub")
        self.call(self.replica, "cvmfs-replica", "add-replica", "--stratum0", url, "--public-key", key)
        self.call(self.replica, "cvmfs-replica", "-q", "snapshot")
        self.serve(self.replica, self.replica_port)

        clients = [Client(self.replica_port, self.is_over) for _ in range(CLIENTS)]
        threads = [threading.Thread(target=self.guard, args=(work,))
                   for work in (self.publish_on, self.kill_servers, *(client.read_on for client in clients))]
        for thread in threads:
            thread.start()
        kills, ends = self.snapshot_and_kill(time.monotonic() + seconds)
        self.is_over.set()
        for thread in threads:
            thread.join()
        if self.failures:
            raise Failure(self.failures[0])

        self.call(self.replica, "cvmfs-replica", "-q", "snapshot")
        if self.manifest(self.replica) != self.manifest(self.source):
            raise Failure("the replica does not have the last revision")
        storage = self.replica / "srv/cvmfs" / NAME
        done = subprocess.run([sys.executable, TESTS / "verifier/verify.py", "check", "--quiet", "--replica", "--store",
                               storage, "--fqrn", NAME, "--pub", key], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise Failure("the verifier finds something in the replica:\n%s" % done.stdout)
        seen = [client.revisions for client in clients]
        if min(map(len, seen)) < 2 or not ends:
            raise Failure("the replica made no progress: %d snapshots ended, clients saw %s" % (ends, seen))
        print("soak: %d snapshots killed, %d ended; clients read %s revisions, %d objects; nothing missing" % (
            kills, ends, " and ".join(str(len(revisions)) for revisions in seen), sum(client.objects for client in clients)))

    def snapshot_and_kill(self, end):
        """How many snapshots were killed, and how many came to their end."""
        kills, ends = 0, 0
        typical = 0.5
        while time.monotonic() < end and not self.failures:
            process = self.start(self.replica, "cvmfs-replica", "-q", "snapshot")
            started = time.monotonic()
            try:
                if process.wait(self.chance.uniform(0, 2) * typical) != 0:
                    raise Failure("a snapshot fails")
                ends += 1
                typical = 0.8 * typical + 0.2 * (time.monotonic() - started)
                time.sleep(self.chance.uniform(0, 0.3))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                typical *= 1.05
        return kills, ends

    def kill_servers(self):
        """Kills the server of the replica every few seconds."""
        while not self.is_over.wait(self.chance.uniform(2, 5)):
            server = self.servers[self.replica_port]
            server.kill()
            server.wait()
            self.serve(self.replica, self.replica_port)

    def publish_on(self):
        while not self.is_over.wait(self.chance.uniform(0, 1)):
            self.change_tree(3)
            self.publish()

    def publish(self):
        self.call(self.source, "cvmfs-publish", "-q", "publish", "--from", self.tree)

    def change_tree(self, directories):
        """Fills some directories anew; every other one is a nested catalog."""
        for number in self.chance.sample(range(DIRECTORIES), directories):
            directory = self.tree / ("d%02d" % number)
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            if self.chance.random() < 0.5:
                (directory / ".cvmfscatalog").touch()
            for file in range(DIRECTORY_FILES):
                (directory / str(file)).write_bytes(self.chance.randbytes(self.chance.randrange(20_000)))

    def guard(self, work):
        """Runs the work of a thread; whatever ends it early is a failure of the whole."""
        try:
            work()
        except BaseException as failure:  # pylint: disable=broad-except
            self.failures.append(repr(failure))

    def manifest(self, root):
        return (root / "srv/cvmfs" / NAME / ".cvmfspublished").read_bytes()

    def serve(self, root, port):
        self.servers[port] = self.start(root, "cvmfs-replica", "-q", "serve", "--listen", "127.0.0.1:%d" % port)
        for _ in range(300):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        raise Failure("nothing listens on port %d" % port)

    def stop(self):
        for server in self.servers.values():
            server.kill()
            server.wait()

    def start(self, root, *command):
        environment = dict(os.environ, CVMFS_SERVER_ROOT=str(root))
        return subprocess.Popen([os.path.join(os.environ["BIN"], command[0]), *command[1:]], env=environment,
                                stdout=subprocess.DEVNULL)

    def call(self, root, *command):
        if self.start(root, *command).wait() != 0:
            raise Failure("%s fails" % " ".join(map(str, command)))


class Client:
    """Reads everything that a replica claims to have, each object once."""

    def __init__(self, port, is_over):
        self.port, self.is_over = port, is_over
        self.connection = None
        self.scratch = vstore.Scratch()
        self.verified = set()
        self.revisions = []
        self.objects = 0

    def read_on(self):
        while not self.is_over.is_set():
            manifest = vformat.Manifest(self.get(".cvmfspublished"))
            if self.revisions[-1:] != [manifest.number("S")]:
                if self.revisions and self.revisions[-1] > manifest.number("S"):
                    raise Failure("revision %d after %d" % (manifest.number("S"), self.revisions[-1]))
                self.revisions.append(manifest.number("S"))
                for key, suffix in (("X", "X"), ("H", "H")):
                    self.read(manifest.hash(key), suffix)
                self.read_catalog(manifest.hash("C"))
            time.sleep(0.05)

    def read_catalog(self, value):
        if (value, "C") in self.verified:
            return
        catalog = self.scratch.connect(vstore.inflate(self.read(value, "C")))
        for (digest,) in catalog.execute("SELECT hash FROM catalog WHERE hash IS NOT NULL"):
            self.read((0, digest), "")
        for (digest,) in catalog.execute("SELECT hash FROM chunks"):
            self.read((0, digest), "P")
        for (text,) in catalog.execute("SELECT sha1 FROM nested_catalogs"):
            self.read_catalog(vformat.parse_hash(text))
        catalog.close()
        self.verified.add((value, "C"))

    def read(self, value, suffix):
        if (value, suffix) in self.verified:
            return None
        path = vformat.object_path(value, suffix)
        data = self.get(path)
        if vformat.hash_of(value[0], data) != value:
            raise Failure("%s has another content" % path)
        self.objects += 1
        if suffix != "C":
            self.verified.add((value, suffix))
        return data

    def get(self, path):
        """The content of a path; waits for a server that is away."""
        for _ in range(600):
            try:
                if self.connection is None:
                    self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                self.connection.request("GET", "/cvmfs/%s/%s" % (NAME, path))
                answer = self.connection.getresponse()
                data = answer.read()
                if answer.status != 200:
                    raise Failure("%s: status %d" % (path, answer.status))
                return data
            except (OSError, http.client.HTTPException):
                self.connection = None
                time.sleep(0.1)
        raise Failure("the server of the replica does not come back")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
