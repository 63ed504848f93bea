#!/usr/bin/env python3
"""Kills a Stratum 1 every few seconds while its Stratum 0 publishes and clients read.

- The Stratum 0 publishes one changed tree after the other.
- The replica takes snapshots; they are killed after a random time, now and then the server of the replica as well.
- Clients read the replica's manifest, and then everything that its revision reaches: each object must be there and
  have the hash that names it. That a server is away for a moment is no fault; a missing object is.

At the end the replica must have the last revision, and the verifier must find nothing in its storage.

The clients share no code with the tools. `./dev soak` runs this; BIN is the directory of the programs.
"""

import http.client
import shutil
import subprocess
import sys
import threading
import time

import frame
from frame import NAME, TESTS, Failure

sys.path.insert(0, str(TESTS / "verifier"))

import vformat  # noqa: E402
import vstore  # noqa: E402

CLIENTS = 2
DIRECTORIES, DIRECTORY_FILES = 12, 60


class Soak(frame.Soak):
    def __init__(self, directory, seed):
        super().__init__(directory, seed)
        self.source, self.replica = frame.Site(directory / "stratum0"), frame.Site(directory / "stratum1")
        self.tree = directory / "tree"
        self.source_port, self.replica_port = frame.free_port(), frame.free_port()
        self.is_over = threading.Event()

    def run(self, seconds):
        self.call(self.source.root, "cvmfs-publish", "-q", "mkfs", NAME)
        self.change_tree(DIRECTORIES)
        self.publish()
        self.serve(self.source, self.source_port)
        url = "http://127.0.0.1:%d/cvmfs/%s" % (self.source_port, NAME)
        self.call(self.replica.root, "cvmfs-replica", "add-replica", "--stratum0", url, "--public-key", self.source.key)
        self.call(self.replica.root, "cvmfs-replica", "-q", "snapshot")
        server = self.serve(self.replica, self.replica_port)

        clients = [Client(self.replica_port, self.is_over) for _ in range(CLIENTS)]
        works = [(self.publish_on,), (self.kill_servers, server), *((client.read_on,) for client in clients)]
        threads = [threading.Thread(target=self.guard, args=work) for work in works]
        for thread in threads:
            thread.start()
        kills, ends = self.snapshot_and_kill(time.monotonic() + seconds)
        self.is_over.set()
        for thread in threads:
            thread.join()
        if self.failures:
            raise Failure(self.failures[0])

        self.call(self.replica.root, "cvmfs-replica", "-q", "snapshot")
        if self.replica.manifest() != self.source.manifest():
            raise Failure("the replica does not have the last revision")
        frame.verify("check", self.replica.store, self.source.key, "--quiet", "--replica")
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
            process = self.start(self.replica.root, "cvmfs-replica", "-q", "snapshot")
            started = time.monotonic()
            if frame.ends_within(process, self.chance.uniform(0, 2) * typical, "a snapshot"):
                ends += 1
                typical = 0.8 * typical + 0.2 * (time.monotonic() - started)
                time.sleep(self.chance.uniform(0, 0.3))
            else:
                kills += 1
                typical *= 1.05
        return kills, ends

    def kill_servers(self, server):
        """Kills the server of the replica every few seconds."""
        while not self.is_over.wait(self.chance.uniform(2, 5)):
            server.kill()
            server.wait()
            server = self.serve(self.replica, self.replica_port)

    def publish_on(self):
        while not self.is_over.wait(self.chance.uniform(0, 1)):
            self.change_tree(3)
            self.publish()

    def publish(self):
        self.call(self.source.root, "cvmfs-publish", "-q", "publish", "--from", self.tree)

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

    def serve(self, site, port):
        command = [frame.program("cvmfs-replica"), "-q", "serve", "--listen", "127.0.0.1:%d" % port]
        return self.start_server(command, port, env=self.environment(site.root))


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


if __name__ == "__main__":
    sys.exit(frame.main(Soak, "replication", "seconds", 600, 40))
