#!/usr/bin/env python3
"""Prints the objects that revisions of a repository need, one a line: reach.py STORAGE ROOT-HASH...

Shares nothing with the tools that it judges.
"""

import os
import sqlite3
import sys
import tempfile
import zlib

ALGORITHMS = ("", "-rmd160", "-shake128")


def reach(storage, roots):
    seen, todo = set(), [root + "C" for root in roots]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        with open(os.path.join(storage, "data", name[:2], name[2:]), "rb") as handle:
            plain = zlib.decompress(handle.read())
        with tempfile.NamedTemporaryFile() as scratch:
            scratch.write(plain)
            scratch.flush()
            database = sqlite3.connect(scratch.name)
            database.text_factory = bytes
            rows = database.execute("SELECT hash, flags, '' FROM catalog WHERE hash IS NOT NULL AND NOT flags & 128").fetchall()
            rows += database.execute(
                "SELECT chunks.hash, flags, 'P' FROM chunks JOIN catalog USING (md5path_1, md5path_2) WHERE NOT flags & 128")
            for digest, flags, suffix in rows:
                suffix = suffix.decode() if isinstance(suffix, bytes) else suffix
                seen.add(digest.hex() + ALGORITHMS[flags >> 8 & 7] + suffix)
            todo += [row[0].decode() + "C" for row in database.execute("SELECT sha1 FROM nested_catalogs")]
            database.close()
    return seen


if __name__ == "__main__":
    print("\n".join(sorted(reach(sys.argv[1], sys.argv[2:]))))
