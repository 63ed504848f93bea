"""What all soaks share: options, a directory of their own, programs that are started and killed, the verifier.

A soak is a class with a `run`; BIN is the directory of the programs. It shares no code with the tools.
"""

import argparse
import hashlib
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time

TESTS = pathlib.Path(__file__).resolve().parent.parent
VERIFIER = TESTS / "verifier/verify.py"
NAME = "soak.example.org"


class Failure(Exception):
    """Something is not as it must be."""


def main(soak, title, unit, usual, short):
    """Runs a soak for as many kills or seconds (the `unit`) as the command line says; returns the exit code."""
    description = sys.modules[soak.__module__].__doc__
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--" + unit, dest="amount", type=float, default=usual, help="how many %s [%d]" % (unit, usual))
    parser.add_argument("--short", dest="amount", action="store_const", const=short,
                        help="the same as --%s %d" % (unit, short))
    parser.add_argument("--seed", type=int, default=None, help="repeat the choices of another run")
    # The other soaks have options of their own.
    options, _ = parser.parse_known_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print("soak: %s, %d %s, seed %d" % (title, options.amount, unit, seed), flush=True)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="cvmfs-soak."))
    running = soak(directory, seed)
    try:
        running.run(options.amount)
    except Failure as failure:
        print("soak: FAILED: %s\nsoak: the site is kept in %s; repeat with --seed %d" % (failure, directory, seed))
        return 1
    except BaseException:
        running.stop()
        shutil.rmtree(directory)
        raise
    finally:
        running.stop()
    shutil.rmtree(directory)
    return 0


class Soak:
    """A soak in a directory; all its choices follow from the seed."""

    def __init__(self, directory, seed):
        self.directory, self.seed, self.chance = directory, seed, random.Random(seed)
        self.failures = []
        self.servers = []

    def environment(self, root):
        """The variables of a program that works on the server below `root`."""
        return dict(os.environ, CVMFS_SERVER_ROOT=str(root))

    def on_machine(self, _root, command):
        """The command that runs another one on the machine of a server; here they are all on this machine."""
        return command

    def start(self, root, *command, **how):
        """Starts one of the programs."""
        command = self.on_machine(root, [program(command[0]), *command[1:]])
        how.setdefault("stdout", subprocess.DEVNULL)
        return subprocess.Popen(command, env=self.environment(root), text=True, **how)

    def call(self, root, *command):
        """Runs one of the programs, which must succeed; returns what it prints."""
        process = self.start(root, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        printed, errors = process.communicate()
        if process.returncode != 0:
            raise Failure("%s: exit code %d: %s%s" % (" ".join(map(str, command)), process.returncode, printed, errors))
        return printed

    def start_server(self, command, port, **how):
        """Starts a server, and waits until it listens on a port of this machine. It is killed at the end."""
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, **how)
        self.servers.append(server)
        for _ in range(300):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    return server
            time.sleep(0.1)
        raise Failure("nothing listens on port %d" % port)

    def stop(self):
        """Kills all servers."""
        for server in self.servers:
            server.kill()
            server.wait()

    def guard(self, work, *arguments):
        """Does the work of a thread; whatever ends it early is a failure of the whole."""
        try:
            work(*arguments)
        except BaseException as failure:  # pylint: disable=broad-except
            self.failures.append(repr(failure))


def ends_within(process, seconds, what):
    """Whether a program comes to its end, which must be a good one, within a time; otherwise it is killed."""
    try:
        if process.wait(seconds) != 0:
            raise Failure("%s fails" % what)
        return True
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False


def verify(command, store, key, *options):
    """What the verifier prints about a repository. It must find nothing."""
    arguments = [sys.executable, VERIFIER, command, *options, "--store", store, "--fqrn", NAME, "--pub", key]
    done = subprocess.run(list(map(str, arguments)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False)
    if done.returncode != 0:
        raise Failure("the verifier finds something in %s:\n%s" % (store, done.stdout))
    return done.stdout


def program(name):
    """The path of one of the programs."""
    return pathlib.Path(os.environ["BIN"]) / name


def free_port():
    """A port of this machine that nobody listens on. No connection gets it either: Linux gives those ports from 32768 on."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as listener:
            try:
                listener.bind(("0.0.0.0", port))
                return port
            except OSError:
                continue


class Site:
    """The places of a server with the repository."""

    def __init__(self, root):
        self.root = root
        self.store = root / "srv/cvmfs" / NAME
        self.spool = root / "var/spool/cvmfs" / NAME
        self.key = root / "etc/cvmfs/keys" / (NAME + ".pub")

    def manifest(self):
        """The bytes of the manifest."""
        return (self.store / ".cvmfspublished").read_bytes()

    def revision(self):
        """The revision that clients see."""
        return next(int(line[1:]) for line in self.manifest().split(b"\n") if line.startswith(b"S"))

    def checksum_file(self):
        """Returns the file with the checksum of the reflog.

        A run that is killed right after it wrote the reflog leaves the checksum under the name that it prepared it.
        """
        current = self.spool / "reflog.chksum"
        prepared = self.spool / "reflog.chksum.new"
        if prepared.exists():
            if prepared.read_text() == hashlib.sha1((self.store / ".cvmfsreflog").read_bytes()).hexdigest():
                return prepared
        return current

    def check(self, killed, *options):
        """Lets the verifier look at everything.

        A run that was `killed` between reflog and manifest leaves a reflog that is ahead of what the manifest says of it.
        """
        options += ("--quiet", "--reflog-checksum", self.checksum_file(), *(["--stale-y"] if killed else []))
        verify("check", self.store, self.key, *options)
