#!/usr/bin/env python3
"""Kills a replica every few seconds while its source publishes, and reads from it all the time.

  publisher   changes a tree and publishes it, again and again
  source      serves it
  replica     serves, and makes a snapshot every second; killed (SIGKILL) at random moments and started again
  readers     take the manifest from the replica, walk its catalogs, read objects, all verified by their names

A connection that fails is no failure: the replica may just have been killed. An object that the replica's manifest
leads to and that it does not have is one. At the end the replica must arrive at the last revision, and the verifier must
find nothing wrong with it.

The readers are written here, with nothing of the tools. `./dev soak` runs it; BIN is the directory of the programs.
"""

import argparse
import hashlib
import http.client
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zlib

VERIFIER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "verifier", "verify.py")
NAME = "soak.example.org"
DIRECTORIES, FILES = 4, 60
READERS = 2
# Objects read after each walk; all catalogs are.
SAMPLE = 40
# Bits of an entry's flags.
FILE, CHUNKED = 4, 64


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="how long [600]")
    parser.add_argument("--short", dest="seconds", action="store_const", const=40, help="the same as --seconds 40")
    parser.add_argument("--seed", type=int, default=None, help="repeat the trees and moments of another run")
    # Other soaks have other options.
    options, _ = parser.parse_known_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print("soak: a replica for %d s, seed %d" % (options.seconds, seed), flush=True)
    directory = tempfile.mkdtemp(prefix="cvmfs-soak.", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    try:
        Soak(directory, random.Random(seed)).run(options.seconds)
    except Failure as failure:
        print("soak: FAILED: %s\nsoak: the sites are kept in %s; repeat with --seed %d" % (failure, directory, seed))
        return 1
    except BaseException:
        shutil.rmtree(directory)
        raise
    shutil.rmtree(directory)
    return 0


class Failure(Exception):
    """A client saw what it must not see."""


class Soak:
    def __init__(self, directory, chance):
        self.directory = directory
        self.chance = chance
        self.original, self.copy = os.path.join(directory, "original"), os.path.join(directory, "replica")
        self.failures = []
        self.walks = self.reads = self.kills = self.revisions = 0
        self.stopping = threading.Event()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def run(self, seconds):
        self.call(self.original, "cvmfs-publish", "-q", "mkfs", NAME)
        self.publish()
        source = self.serve(self.original, "127.0.0.1:0")
        threads = []
        replica = None
        try:
            url = source.stderr.readline().split()[1] + NAME
            key = os.path.join(self.original, "etc/cvmfs/keys", NAME + ".pub")
            self.call(self.copy, "cvmfs-replica", "-q", "add-replica", "--stratum0", url, "--public-key", key)
            self.call(self.copy, "cvmfs-replica", "-q", "snapshot")
            threads = [threading.Thread(target=self.guarded, args=(self.read_all,)) for _ in range(READERS)]
            threads.append(threading.Thread(target=self.guarded, args=(self.publish_all,)))
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and not self.failures:
                replica = self.serve(self.copy, "127.0.0.1:%d" % self.port, "--snapshot-every", "1")
                time.sleep(self.chance.uniform(0.5, 6))
                replica.kill()
                replica.wait()
                self.kills += 1
            self.stopping.set()
            for thread in threads:
                thread.join()
            self.call(self.copy, "cvmfs-replica", "-q", "snapshot")
        finally:
            self.stopping.set()
            for process in filter(None, (source, replica)):
                process.kill()
                process.wait()
            for thread in threads:
                thread.join()
        if self.failures:
            raise self.failures[0]
        if self.manifest_file(self.copy) != self.manifest_file(self.original):
            raise Failure("the replica did not arrive at the last revision")
        self.verify()
        print("soak: %d kills, %d revisions, %d walks, %d objects read" % (self.kills, self.revisions, self.walks, self.reads))
        if not (self.kills and self.walks and self.reads and self.revisions > 1):
            raise Failure("something of it did not happen at all")

    def guarded(self, work):
        try:
            while not self.stopping.is_set():
                work()
        except Failure as failure:
            self.failures.append(failure)
        except Exception as error:  # whatever it is, the soak has not shown what it should
            self.failures.append(Failure(repr(error)))

    # --- the source ---

    def publish_all(self):
        self.publish()
        time.sleep(self.chance.uniform(0.5, 3))

    def publish(self):
        tree = os.path.join(self.directory, "tree")
        for directory in range(DIRECTORIES):
            place = os.path.join(tree, "directory%d" % directory)
            if not os.path.isdir(place):
                os.makedirs(place)
                open(os.path.join(place, ".cvmfscatalog"), "w").close()
            for file in range(FILES):
                path = os.path.join(place, "file%d" % file)
                if not os.path.exists(path) or self.chance.random() < 0.1:
                    with open(path, "wb") as out:
                        out.write(self.chance.randbytes(self.chance.randrange(1, 20_000)))
        self.call(self.original, "cvmfs-publish", "-q", "publish", "--from", tree)
        self.revisions += 1

    # --- the replica ---

    def serve(self, root, address, *options):
        command = [program("cvmfs-replica"), "--root", root, "serve", "--listen", address, *options]
        return subprocess.Popen(command, stderr=subprocess.PIPE if not options else subprocess.DEVNULL, text=True)

    def verify(self):
        store = os.path.join(self.copy, "srv/cvmfs", NAME)
        key = os.path.join(self.original, "etc/cvmfs/keys", NAME + ".pub")
        command = ["python3", VERIFIER, "check", "--store", store, "--fqrn", NAME, "--pub", key, "--replica", "--quiet"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise Failure("the verifier finds:\n" + done.stdout)

    # --- the readers ---

    def read_all(self):
        """Reads one revision as a client would."""
        manifest = self.get(".cvmfspublished")
        if manifest is None:
            return
        root = next(line[1:] for line in manifest.split(b"\n") if line.startswith(b"C")).decode()
        objects, catalogs = [], [root]
        while catalogs:
            found = self.read_catalog(catalogs.pop())
            if found is None:
                return
            objects += found[0]
            catalogs += found[1]
        self.walks += 1
        for name in random.sample(objects, min(SAMPLE, len(objects))):
            if self.object(name) is None:
                return
            self.reads += 1

    def read_catalog(self, name):
        """The objects and nested catalogs of a catalog."""
        stored = self.object(name + "C")
        if stored is None:
            return None
        with tempfile.NamedTemporaryFile(dir=self.directory) as file:
            file.write(zlib.decompress(stored))
            file.flush()
            database = sqlite3.connect("file:%s?mode=ro&immutable=1" % file.name, uri=True)
            try:
                rows = database.execute("SELECT hash FROM catalog WHERE flags & ? AND NOT flags & ? AND length(hash) = 20",
                                        (FILE, CHUNKED)).fetchall()
                chunks = database.execute("SELECT hash FROM chunks").fetchall()
                nested = database.execute("SELECT sha1 FROM nested_catalogs").fetchall()
            finally:
                database.close()
        return [row[0].hex() for row in rows] + [row[0].hex() + "P" for row in chunks], [row[0] for row in nested]

    def object(self, name):
        stored = self.get("data/%s/%s" % (name[:2], name[2:]))
        if stored is not None and hashlib.sha1(stored).hexdigest() != name[:40]:
            raise Failure("object %s is damaged" % name)
        return stored

    def get(self, path):
        """What the replica has; `None` if it was killed meanwhile."""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            try:
                connection.request("GET", "/cvmfs/%s/%s" % (NAME, path))
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
            return None
        if answer.status != 200:
            raise Failure("%s: status %d" % (path, answer.status))
        return content

    # --- helpers ---

    def manifest_file(self, root):
        with open(os.path.join(root, "srv/cvmfs", NAME, ".cvmfspublished"), "rb") as file:
            return file.read()

    def call(self, root, name, *arguments):
        environment = dict(os.environ, CVMFS_SERVER_ROOT=root, CVMFS_REPO=NAME)
        done = subprocess.run([program(name), *arguments], env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise Failure("%s %s: exit code %d\n%s" % (name, " ".join(arguments), done.returncode, done.stdout))


def program(name):
    return os.path.join(os.environ["BIN"], name)


if __name__ == "__main__":
    sys.exit(main())
