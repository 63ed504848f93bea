#!/usr/bin/env python3
"""Kills an ingest at random moments and checks that the repository has the old revision or the new one, complete.

Each round replaces a tree by another one:

1. the ingest is killed after a random part of the time that it takes;
2. the verifier must find nothing, and the tree must be the old or the new one, byte for byte;
3. the same ingest runs again, to its end: the verifier must find nothing, and the tree must be the new one.

Expected trees come from the generator, what is compared with them from the verifier; neither shares code with the
tools. `./dev soak` runs it; BIN is the directory of the programs.
"""

import argparse
import collections
import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time

VERIFIER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "verifier", "verify.py")
NAME = "soak.example.org"
BASE = "current"
# Some files above the least chunk size (4 MiB), so that an ingest has files of several objects.
LARGE_FILES, LARGE_SIZE = 3, 12 << 20
SMALL_FILES, SMALL_SIZE = 400, 30_000
DIRECTORIES = 20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="how many kills [200]")
    parser.add_argument("--short", dest="count", action="store_const", const=8, help="the same as --count 8")
    parser.add_argument("--seed", type=int, default=None, help="repeat the trees and moments of another run")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print("soak: %d kills, seed %d" % (options.count, seed), flush=True)
    directory = tempfile.mkdtemp(prefix="cvmfs-soak.")
    try:
        Soak(directory, random.Random(seed)).run(options.count)
    except Failure as failure:
        print("soak: FAILED: %s\nsoak: the site is kept in %s; repeat with --seed %d" % (failure, directory, seed))
        return 1
    except BaseException:
        shutil.rmtree(directory)
        raise
    shutil.rmtree(directory)
    return 0


class Failure(Exception):
    """The repository is not as it must be."""


class Soak:
    def __init__(self, directory, chance):
        self.directory = directory
        self.chance = chance
        self.root = os.path.join(directory, "site")
        self.store = os.path.join(self.root, "srv/cvmfs", NAME)
        self.tarball = os.path.join(directory, "round.tar")
        # A fixed clock: an ingest that is repeated must find nothing to change.
        self.epoch = int(time.time())

    def run(self, count):
        self.call([program("cvmfs-publish"), "-q", "mkfs", NAME])
        tree = make_tree(self.chance, {})
        write_tarball(tree, self.tarball)
        started = time.monotonic()
        self.ingest().wait()
        duration = time.monotonic() - started
        self.check("the first ingest", tree)

        outcomes = collections.Counter()
        for number in range(1, count + 1):
            old, tree = tree, make_tree(self.chance, tree)
            write_tarball(tree, self.tarball)
            revision, self.epoch = self.revision(), self.epoch + 1
            # Sometimes later than its end: killing nothing is a moment, too.
            moment = self.chance.uniform(0, 1.05) * duration
            finished = self.ingest_and_kill(moment)
            what = "round %d, killed after %.3f of %.3f s" % (number, moment, duration)
            found = self.check(what, old, tree)
            is_new = found is tree
            if self.revision() != revision + is_new or (finished and not is_new):
                raise Failure("%s: revision %d after %d" % (what, self.revision(), revision))

            if self.ingest().wait() != 0:
                raise Failure("%s: the repetition fails" % what)
            # Follows the machine, so that about one kill in five comes after the new revision.
            duration *= 0.9 if is_new else 1.03
            self.check(what + ", repeated", tree)
            if self.revision() != revision + 1:
                raise Failure("%s: revision %d after the repetition, not %d" % (what, self.revision(), revision + 1))
            outcomes["finished before" if finished else "new revision" if is_new else "old revision"] += 1
            if number % 10 == 0:
                print("soak: %d of %d" % (number, count), flush=True)
        print("soak: %d kills, nothing found (%s)" % (
            count, ", ".join("%s: %d" % item for item in sorted(outcomes.items()))))

    def environment(self):
        return dict(os.environ, CVMFS_SERVER_ROOT=self.root, CVMFS_REPO=NAME, SOURCE_DATE_EPOCH=str(self.epoch))

    def call(self, command):
        done = subprocess.run(command, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, check=False)
        if done.returncode != 0:
            raise Failure("%s: exit code %d\n%s" % (" ".join(command), done.returncode, done.stdout))
        return done.stdout

    def ingest(self):
        command = [program("cvmfs-ingest"), "-q", "--tar", self.tarball, "--delete", BASE, "--base-dir", BASE,
                   "--catalog"]
        return subprocess.Popen(command, env=self.environment(), stdout=subprocess.DEVNULL)

    def ingest_and_kill(self, moment):
        """Whether the ingest came to its end before the moment."""
        process = self.ingest()
        try:
            if process.wait(moment) != 0:
                raise Failure("the ingest fails")
            return True
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False

    def revision(self):
        with open(os.path.join(self.store, ".cvmfspublished"), "rb") as manifest:
            return next(int(line[1:]) for line in manifest if line.startswith(b"S"))

    def checksum_file(self):
        """Returns the file with the checksum of the reflog.

        A run that is killed right after it wrote the reflog leaves the checksum under the name that it prepared it.
        """
        current = os.path.join(self.root, "var/spool/cvmfs", NAME, "reflog.chksum")
        prepared = current + ".new"
        if os.path.exists(prepared):
            with open(prepared) as checksum, open(os.path.join(self.store, ".cvmfsreflog"), "rb") as reflog:
                if checksum.read() == hashlib.sha1(reflog.read()).hexdigest():
                    return prepared
        return current

    def check(self, what, *trees):
        """Lets the verifier look at everything; returns the one of `trees` that the repository has."""
        common = ["--store", self.store, "--fqrn", NAME,
                  "--pub", os.path.join(self.root, "etc/cvmfs/keys", NAME + ".pub"), "--now", str(self.epoch)]
        try:
            self.call([sys.executable, VERIFIER, "check", "--quiet", "--reflog-checksum", self.checksum_file()] + common)
            listing = self.call([sys.executable, VERIFIER, "list", "--no-header"] + common)
        except Failure as failure:
            raise Failure("%s: %s" % (what, failure)) from None
        found = {}
        for line in listing.splitlines():
            path, kind, _, _, digest, _, _, target = line.split(" ")[:8]
            if kind != "d" and path != BASE + "/.cvmfscatalog":
                found[path] = target if kind == "l" else digest
        for tree in trees:
            if found == expected(tree):
                return tree
        raise Failure("%s: the tree is neither the old one nor the new one" % what)


def program(name):
    return os.path.join(os.environ["BIN"], name)


def make_tree(chance, previous):
    """Path -> bytes of a file, or text of a link. Some files are those of the previous tree."""
    tree = {}
    for number in range(SMALL_FILES):
        path = "d%02d/f%03d" % (chance.randrange(DIRECTORIES), number)
        tree[path] = previous.get(path) or content(chance, chance.randrange(SMALL_SIZE))
    for number in range(LARGE_FILES):
        path = "large/%d" % number
        keep = previous and chance.random() < 0.3
        tree[path] = previous[path] if keep else content(chance, LARGE_SIZE)
    for number in range(DIRECTORIES):
        tree["d%02d/link" % number] = "../d%02d/f%03d" % (number, chance.randrange(SMALL_FILES))
    for number in chance.sample(range(DIRECTORIES), 3):
        tree["d%02d/.cvmfscatalog" % number] = b""
    return tree


def content(chance, size):
    """Bytes that compress to about a half."""
    noise = chance.randbytes(size // 2)
    return noise + bytes(byte & 0x3 for byte in noise[:64]) * (size // 128)


def expected(tree):
    text = lambda value: value if isinstance(value, str) else hashlib.sha256(value).hexdigest()
    return {BASE + "/" + path: text(value) for path, value in tree.items()}


def write_tarball(tree, path):
    with tarfile.open(path, "w") as tar:
        for name, value in sorted(tree.items()):
            info = tarfile.TarInfo(name)
            if isinstance(value, str):
                info.type, info.linkname = tarfile.SYMTYPE, value
                tar.addfile(info)
            else:
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))


if __name__ == "__main__":
    sys.exit(main())
