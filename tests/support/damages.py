#!/usr/bin/env python3
"""Damages copies of the reference repository, has each checked, and prints what was found.

  damages.py SITE COMMAND...

SITE is the directory tree of a server with the reference repository; COMMAND prints the findings of a check as JSON. Each
line of the output is one damage: its name, the kinds of findings of the independent verifier that it stands for, and the kinds
of findings that COMMAND printed, if its exit code agrees with that.
"""

import collections
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "verifier"))

import fixture                                             # noqa: E402
import test_verify                                         # noqa: E402


# Damages that the verifier gives the same name.
EACH = 2


def nothing(_repo):
    pass


def main(site, command):
    storage = os.path.join(site, "srv/cvmfs", fixture.FQRN)
    checksum = os.path.join(site, "var/spool/cvmfs", fixture.FQRN, "reflog.chksum")
    pristine = storage + ".pristine"
    fixture.Repo.copy(storage, pristine)
    seen = collections.Counter()
    for function, codes, options in [(nothing, (), {})] + test_verify.DAMAGES:
        # Some of each sort will do. What others cannot read is not damaged, and the time is the same for all.
        seen[codes] += 1
        if seen[codes] > EACH or "now" in options or function.__name__.endswith("_not_readable"):
            continue
        repo = fixture.Repo(storage)
        function(repo)
        with open(checksum, "w", encoding="ascii") as handle:
            # The checksum file is the one of the server; the manifest's is as the damage left it.
            handle.write(repo.value("Y") if os.path.exists(repo.path(".cvmfspublished")) else "")
        done = subprocess.run(command, capture_output=True, check=False)
        try:
            kinds = sorted({finding["kind"] for finding in json.loads(done.stdout)["findings"]})
            agrees = done.returncode == (3 if kinds else 0)
        except ValueError:
            kinds, agrees = [done.stderr.decode()], False
        fields = [function.__name__, ",".join(sorted(codes)) or "-", ",".join(kinds) or "-"]
        print(" ".join(fields + ([] if agrees else ["(exit code %d)" % done.returncode])))
        fixture.restore(storage, pristine)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
