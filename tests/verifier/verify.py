#!/usr/bin/env python3
"""Independent verifier of CernVM-FS repositories.

It shares no code with the tools it judges and needs nothing but Python's standard library.

  verify.py check --store DIR_OR_URL --fqrn NAME --pub FILE [...]   verify a repository
  verify.py list  --store DIR_OR_URL --fqrn NAME [--pub FILE] [...]  list a repository
  verify.py tree  DIR [...]                                         list a directory in the same format
  verify.py diff  A.txt B.txt [--ignore COLUMNS]                    compare two listings
  verify.py codes                                                   all kinds of findings

Exit status: 0 clean (or equal), 3 findings (or differences), 1 error.
"""

import argparse
import collections
import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import vcheck                                              # noqa: E402
import vformat                                             # noqa: E402
import vlist                                               # noqa: E402
from vstore import StoreError, open_store                  # noqa: E402

CLEAN, ERROR, FINDINGS = 0, 1, 3


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.print_usage(sys.stderr)
        self.exit(ERROR, "%s: error: %s\n" % (self.prog, message))


def read_keys(places):
    keys = []
    for place in places or ():
        for path in place.split(":"):
            with open(path, "rb") as handle:
                keys.append(vformat.public_key(handle.read()))
    return keys


def run_check(options):
    started = time.monotonic()
    checksum = None
    if options.reflog_checksum:
        with open(options.reflog_checksum, encoding="latin-1") as handle:
            checksum = handle.readline().strip()
    chunking = None
    if options.chunks:
        chunking = tuple(int(number) for number in options.chunks.split(","))
        if len(chunking) != 3:
            raise ValueError("--chunks MIN,AVG,MAX")
    allowed = [code for text in options.allow for code in text.split(",")]
    for code in allowed:
        if code not in vcheck.CODES:
            raise ValueError("unknown code %r" % code)
    report = vcheck.check(
        open_store(options.store), options.fqrn, read_keys(options.pub), allowed=allowed, now=options.now,
        strict=options.strict, data=options.data, replica=options.replica, stale_y=options.stale_y,
        checksum=checksum, all_tags=options.all_tags, chunking=chunking, threads=options.threads)
    report.numbers["seconds"] = round(time.monotonic() - started, 3)
    shown = collections.Counter()
    for code, where, message in report.findings:
        shown[code] += 1
        if shown[code] <= options.max:
            print("%s: %s: %s" % (code, where, message))
    for code, count in sorted(shown.items()):
        if count > options.max:
            print("%s: %d more" % (code, count - options.max))
    if not options.quiet:
        hushed = collections.Counter()
        for code, where, message in report.infos:
            hushed[code] += 1
            if hushed[code] <= options.max:
                print("info %s: %s: %s" % (code, where, message))
        for code, count in sorted(hushed.items()):
            if count > options.max:
                print("info %s: %d more" % (code, count - options.max))
    if options.json:
        keys = ("code", "where", "message")
        print(json.dumps({
            "fqrn": options.fqrn, "clean": not report.findings, "codes": dict(shown), "numbers": report.numbers,
            "findings": [dict(zip(keys, f)) for f in report.findings[:1000]],
            "infos": [dict(zip(keys, f)) for f in report.infos[:1000]]}, sort_keys=True))
    elif not options.quiet:
        print("%d findings; %s" % (len(report.findings), ", ".join(
            "%s %s" % (value, key) for key, value in sorted(report.numbers.items()))))
    return FINDINGS if report.findings else CLEAN


def print_listing(rows, options):
    ignored = vlist.parse_columns(options.ignore)
    out = [vlist.HEADER] if options.header else []
    out += [" ".join(vlist.blank(fields, ignored)) for fields in rows]
    sys.stdout.write("".join(text + "\n" for text in out))
    return CLEAN


def run_list(options):
    store = open_store(options.store)
    environment = dict(os.fsencode(text).partition(b"=")[::2] for text in options.env)
    root = vlist.resolve_root(store, options.fqrn, read_keys(options.pub), options.tag, options.root, options.now)
    rows = vlist.list_repository(store, root, environment, options.expand, options.hidden, options.data,
                                 options.threads)
    return print_listing(rows, options)


def run_tree(options):
    if options.no_dir_size:
        options.ignore = ",".join(filter(None, [options.ignore, "dirsize"]))
    rows = vlist.list_tree(options.directory, options.uid, options.gid, options.links_per_directory,
                           options.xattr_limit, options.skip_xattr.split(","), options.threads)
    return print_listing(rows, options)


def run_diff(options):
    differences = 0
    for text in vlist.compare(vlist.read_listing(options.left), vlist.read_listing(options.right),
                              vlist.parse_columns(options.ignore)):
        differences += 1
        if differences <= options.max:
            print(text)
    if differences > options.max:
        print("... %d more" % (differences - options.max))
    return FINDINGS if differences else CLEAN


def run_codes(options):
    for code, meaning in vcheck.CODES.items():
        print("%-24s %s" % (code, meaning))
    return CLEAN


def parse(arguments):
    parser = Parser(prog="verify.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    place = Parser(add_help=False)
    place.add_argument("--store", required=True, help="storage directory or URL of the repository")
    place.add_argument("--fqrn", required=True, help="fully qualified repository name")
    place.add_argument("--now", type=float, help="time to judge the whitelist by, Unix seconds")
    place.add_argument("--threads", type=int, default=4)
    listing = Parser(add_help=False)
    listing.add_argument("--ignore", default="", metavar="COLUMN,...", help="print * in these columns: %s" % ", ".join(
        vlist.COLUMNS[1:] + tuple(vlist.PARTIAL) + ("mtimens",)))
    listing.add_argument("--no-header", dest="header", action="store_false")

    check = commands.add_parser("check", parents=[place], help="verify a repository")
    check.add_argument("--pub", required=True, action="append", help="public key(s), files separated by colons")
    check.add_argument("--reflog-checksum", metavar="FILE", help="reflog.chksum of the server")
    check.add_argument("--replica", action="store_true",
                       help="a Stratum 1: Y need not match, reflog and .cvmfs_master_replica may be missing")
    check.add_argument("--stale-y", action="store_true", help="Y need not match the reflog (after a garbage collection or a kill)")
    check.add_argument("--all-tags", action="store_true", help="walk the trees of all tags, not only HEAD")
    check.add_argument("--no-data", dest="data", action="store_false", help="only test that data objects exist")
    check.add_argument("--strict", dest="strict", action="store_true", default=True, help="the default")
    check.add_argument("--no-strict", dest="strict", action="store_false",
                       help="accept what readers accept although a writer should not produce it")
    check.add_argument("--chunks", metavar="MIN,AVG,MAX", help="also verify chunk boundaries")
    check.add_argument("--allow", action="append", default=[], metavar="CODE,...",
                       help="report these findings as information only")
    check.add_argument("--max", type=int, default=50, help="lines for each kind of finding")
    check.add_argument("--quiet", action="store_true", help="findings only")
    check.add_argument("--json", action="store_true", help="end with a line of JSON")
    check.set_defaults(run=run_check)

    lister = commands.add_parser("list", parents=[place, listing], help="list a repository")
    lister.add_argument("--pub", action="append", help="public key(s); without, signatures are not verified")
    which = lister.add_mutually_exclusive_group()
    which.add_argument("--tag")
    which.add_argument("--root", metavar="HASH", help="root catalog; nothing signed is looked at")
    lister.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for variant symlinks")
    lister.add_argument("--raw-links", dest="expand", action="store_false", help="do not expand variant symlinks")
    lister.add_argument("--hidden", action="store_true", help="list hidden entries too")
    lister.add_argument("--no-data", dest="data", action="store_false", help="do not read objects, sha256 is *")
    lister.set_defaults(run=run_list)

    tree = commands.add_parser("tree", parents=[listing], help="list a directory tree")
    tree.add_argument("directory")
    tree.add_argument("--uid", type=int)
    tree.add_argument("--gid", type=int)
    tree.add_argument("--no-dir-size", action="store_true", help="same as --ignore dirsize")
    tree.add_argument("--links-per-directory", action="store_true",
                      help="link count of files = names in the same directory, as publishing stores it")
    tree.add_argument("--xattr-limit", type=int, metavar="BYTES", help="leave out larger values (publishing: 256)")
    tree.add_argument("--skip-xattr", default="", metavar="NAME,...")
    tree.add_argument("--threads", type=int, default=4)
    tree.set_defaults(run=run_tree)

    diff = commands.add_parser("diff", help="compare two listings")
    diff.add_argument("left")
    diff.add_argument("right")
    diff.add_argument("--ignore", default="", metavar="COLUMN,...")
    diff.add_argument("--max", type=int, default=200)
    diff.set_defaults(run=run_diff)

    commands.add_parser("codes", help="all kinds of findings").set_defaults(run=run_codes)
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse(arguments)
    try:
        return options.run(options)
    except BrokenPipeError:
        raise
    except (OSError, ValueError, StoreError, vlist.ListError, vformat.FormatError) as error:
        print("verify.py: %s" % error, file=sys.stderr)
        return ERROR


if __name__ == "__main__":
    sys.exit(main())
