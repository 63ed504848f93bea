#!/usr/bin/env python3
"""Makes the pictures of the README: a Stratum 0 and a Stratum 1 with repositories that have a past, in headless Chromium.

`./dev screenshots` runs it; BIN is the directory of the programs. With a directory as argument the sites stay there, and are
served until interrupted.
"""

import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

IMAGES = pathlib.Path(__file__).resolve().parent / "images"
DAY = 86400
NOW = int(time.time())

CHROMIUM = [
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-device-scale-factor=1",
    "--run-all-compositor-stages-before-draw", "--virtual-time-budget=4000",
]
# name, revisions, days since the first
REPOSITORIES = [("alice", 11, 21), ("conditions", 6, 12), ("nightlies", 9, 8), ("software", 14, 25)]
# name, page, width, height, dark
PICTURES = [
    ("overview", "/", 1180, 965, False),
    ("overview-dark", "/", 1180, 965, True),
    ("browse", "/browse/software.example.org/trunk/toolchain/gcc-14.2/bin", 1000, 560, False),
    ("phone", "/", 390, 844, False),
]


def program(name):
    return os.path.join(os.environ["BIN"], name)


def run(root, *command, at=None):
    environment = dict(os.environ, CVMFS_SERVER_ROOT=str(root))
    environment.pop("SOURCE_DATE_EPOCH", None)
    if at:
        environment["SOURCE_DATE_EPOCH"] = str(at)
    subprocess.run([program(command[0]), "-q", *command[1:]], env=environment, check=True, stdout=subprocess.DEVNULL)


def serve(root):
    """Starts a server on a free port; returns the process and its address."""
    command = [program("cvmfs-replica"), "--root", str(root), "serve", "--listen", "127.0.0.1:0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    return server, server.stderr.readline().split()[1].removesuffix("/cvmfs/").replace("127.0.0.1", "localhost")


def write(path, size, generator):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(generator.randbytes(min(size, 4096)) + bytes(max(size - 4096, 0)))


def publish(root, work, name, revisions, first_day, generator):
    """Publishes releases of made-up software at uneven distances."""
    run(root, "cvmfs-publish", "mkfs", name, at=NOW - first_day * DAY)
    tree = work / name
    for number in range(revisions):
        age = first_day * (1 - (number + generator.uniform(0.6, 1.4)) / (revisions + 1))
        published = NOW - int(age * DAY)
        version = "%d.%d" % (12 + number // 4, number % 4)
        for package in generator.sample(["gcc", "cmake", "python", "root", "geant4", "boost"], 2) + (["gcc"] if version == "14.2" else []):
            base = tree / "toolchain" / ("%s-%s" % (package, version))
            for file in ["c++", "g++", "gcc", "gcov", "ld", "nm", "objdump", "ranlib", "strip"]:
                write(base / "bin" / file, generator.randrange(10_000, 900_000), generator)
                (base / "bin" / file).chmod(0o755)
            link = base / "bin" / "cc"
            if not link.is_symlink():
                link.symlink_to("gcc")
            plugin = base / "bin" / "plugin"
            if not plugin.is_symlink():
                plugin.symlink_to("../libexec/plugin")
            write(base / "libexec" / "plugin" / "liblto.so", generator.randrange(100_000, 2_000_000), generator)
            write(base / "lib" / "libstdc++.so.6", generator.randrange(1_000_000, 6_000_000), generator)
            write(base / "README", 900, generator)
        write(tree / "setup.sh", 700, generator)
        for path in [tree, *tree.rglob("*")]:
            if path.lstat().st_mtime > NOW - 3600:
                os.utime(path, (published, published - generator.randrange(DAY)), follow_symlinks=False)
        run(root, "cvmfs-publish", "publish", "--repo", name, "--from", str(tree), "--tag", "v" + version,
            "--message", "Release %s" % version, at=published)


def main():
    keep = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None
    work = keep or pathlib.Path(tempfile.mkdtemp(prefix="cvmfs-screenshots-"))
    generator = random.Random(4)
    stratum0, stratum1 = work / "stratum0", work / "stratum1"
    servers = []
    try:
        for name, revisions, first_day in REPOSITORIES:
            publish(stratum0, work / "trees", name + ".example.org", revisions, first_day, generator)
        server, url = serve(stratum0)
        servers.append(server)
        for name, _, _ in REPOSITORIES:
            fqrn = name + ".example.org"
            key = stratum0 / "etc/cvmfs/keys" / (fqrn + ".pub")
            run(stratum1, "cvmfs-replica", "add-replica", "--stratum0", "%s/cvmfs/%s" % (url, fqrn), "--public-key", str(key))
        run(stratum1, "cvmfs-replica", "snapshot")
        # One replica is behind its source.
        tree = work / "trees" / "nightlies.example.org"
        for day in range(2):
            write(tree / "new" / str(day) / "data", 3_000_000, generator)
            run(stratum0, "cvmfs-publish", "publish", "--repo", "nightlies.example.org", "--from", str(tree))
        info = stratum1 / "srv/cvmfs/info/v1"
        info.mkdir(parents=True, exist_ok=True)
        (info / "meta.json").write_text('{"organisation": "Example Laboratory", "email": "cvmfs@example.org"}\n')
        server, url = serve(stratum1)
        servers.append(server)
        print(url)
        IMAGES.mkdir(exist_ok=True)
        for name, page, width, height, dark in PICTURES:
            command = CHROMIUM + ["--user-data-dir=%s" % (work / "profile"), "--window-size=%d,%d" % (width, height)]
            if dark:
                command.append("--blink-settings=preferredColorScheme=0")
            picture = IMAGES / (name + ".png")
            subprocess.run(command + ["--screenshot=%s" % picture, url + page], check=True, stderr=subprocess.DEVNULL)
            print("%s: %d KB" % (picture, picture.stat().st_size // 1000))
        if keep:
            servers[-1].wait()
    finally:
        for server in servers:
            server.terminate()
            server.wait()
        if not keep:
            shutil.rmtree(work)


main()
