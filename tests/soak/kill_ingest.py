#!/usr/bin/env python3
"""Kills an ingest at random moments and checks that the repository has the old revision or the new one, complete.

Each round replaces a tree by another one:

1. the ingest is killed after a random part of the time that it takes;
2. the verifier must find nothing, and the tree must be the old or the new one, byte for byte;
3. the same ingest runs again, to its end: the verifier must find nothing, and the tree must be the new one.

Expected trees come from the generator, what is compared with them from the verifier; neither shares code with the
tools. `./dev soak` runs it; BIN is the directory of the programs.
"""

import collections
import hashlib
import io
import sys
import tarfile
import time

import frame
from frame import NAME, Failure

BASE = "current"
# Some files above the least chunk size (4 MiB), so that an ingest has files of several objects.
LARGE_FILES, LARGE_SIZE = 3, 12 << 20
SMALL_FILES, SMALL_SIZE = 400, 30_000
DIRECTORIES = 20


class Soak(frame.Soak):
    def __init__(self, directory, seed):
        super().__init__(directory, seed)
        self.site = frame.Site(directory / "site")
        self.tarball = directory / "round.tar"
        # A fixed clock: an ingest that is repeated must find nothing to change.
        self.epoch = int(time.time())

    def run(self, count):
        count = int(count)
        self.call(self.site.root, "cvmfs-publish", "-q", "mkfs", NAME)
        tree = make_tree(self.chance, {})
        write_tarball(tree, self.tarball)
        started = time.monotonic()
        self.ingest().wait()
        duration = time.monotonic() - started
        self.check("the first ingest", False, tree)

        outcomes = collections.Counter()
        for number in range(1, count + 1):
            old, tree = tree, make_tree(self.chance, tree)
            write_tarball(tree, self.tarball)
            revision, self.epoch = self.site.revision(), self.epoch + 1
            # Sometimes later than its end: killing nothing is a moment, too.
            moment = self.chance.uniform(0, 1.05) * duration
            finished = frame.ends_within(self.ingest(), moment, "the ingest")
            what = "round %d, killed after %.3f of %.3f s" % (number, moment, duration)
            found = self.check(what, not finished, old, tree)
            is_new = found is tree
            if self.site.revision() != revision + is_new or (finished and not is_new):
                raise Failure("%s: revision %d after %d" % (what, self.site.revision(), revision))

            if self.ingest().wait() != 0:
                raise Failure("%s: the repetition fails" % what)
            # Follows the machine, so that about one kill in five comes after the new revision.
            duration *= 0.9 if is_new else 1.03
            self.check(what + ", repeated", False, tree)
            if self.site.revision() != revision + 1:
                raise Failure("%s: revision %d after the repetition, not %d" % (what, self.site.revision(), revision + 1))
            outcomes["finished before" if finished else "new revision" if is_new else "old revision"] += 1
            if number % 10 == 0:
                print("soak: %d of %d" % (number, count), flush=True)
        print("soak: %d kills, nothing found (%s)" % (
            count, ", ".join("%s: %d" % item for item in sorted(outcomes.items()))))

    def environment(self, root):
        return dict(super().environment(root), CVMFS_REPO=NAME, SOURCE_DATE_EPOCH=str(self.epoch))

    def ingest(self):
        return self.start(self.site.root, "cvmfs-ingest", "-q", "--tar", self.tarball, "--delete", BASE, "--base-dir", BASE,
                          "--catalog")

    def check(self, what, killed, *trees):
        """Lets the verifier look at everything; returns the one of `trees` that the repository has."""
        try:
            self.site.check(killed, "--now", self.epoch)
            listing = frame.verify("list", self.site.store, self.site.key, "--now", self.epoch, "--no-header")
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
    sys.exit(frame.main(Soak, "ingests", "kills", 200, 8))
