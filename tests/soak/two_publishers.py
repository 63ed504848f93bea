#!/usr/bin/env python3
"""Two machines publish into one bucket of S3, while garbage is collected on one of them.

- Each publishes new directories, and replaces the content of one of its own, as fast as it can. What a command has
  acknowledged is noted.
- The first machine collects garbage again and again, and keeps hardly anything besides the newest revision.
- Now and then a publisher is killed.

At the end everything that was acknowledged must be there, `check --data` and the verifier must find nothing dangling.

Machines are server directories with the same keys, each with its own locks and working files, and network namespaces
that reach nothing but the address of the bucket's server (without root's privileges: all in the namespace of the caller).
`./dev soak` runs this; BIN is the directory of the programs.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import frame
from frame import NAME, Failure

# Seconds for which a collection spares what nothing refers to. No publication here takes longer.
GRACE = 10
# Exit code of a command that somebody else was in the way of.
CONFLICT = 4


class Soak(frame.Soak):
    def __init__(self, directory, seed):
        super().__init__(directory, seed)
        self.machines = [directory / name for name in ("first", "second")]
        self.network = Network(self.machines) if os.geteuid() == 0 else None
        self.end = 0
        self.acknowledged, self.conflicts, self.kills, self.collections = [], 0, 0, 0
        self.lock = threading.Lock()

    def run(self, seconds):
        self.start_bucket()
        first, second = self.machines
        self.call(first, "cvmfs-publish", "-q", "mkfs", NAME, "-s", self.directory / "s3.conf", "-w",
                  "http://bucket.example.org", "--gc", "--no-autotags")
        self.copy_configuration(first, second)
        self.end = time.monotonic() + seconds
        works = [(self.publish_on, number) for number in range(len(self.machines))] + [(self.collect_on, first)]
        threads = [threading.Thread(target=self.guard, args=work) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failures:
            raise Failure(self.failures[0])
        self.look_at_everything()
        counts = (len(self.acknowledged), self.conflicts, self.kills, self.collections)
        print("soak: %d publications acknowledged, %d lost a race, %d killed, %d collections; nothing missing" % counts)
        if min(len([path for path in self.acknowledged if path.startswith(start)]) for start in ("/0-", "/1-")) < 2:
            raise Failure("a machine made no progress")

    def is_over(self):
        return self.failures or time.monotonic() >= self.end

    def publish_on(self, machine):
        chance = random.Random("%d %d" % (self.seed, machine))
        root, tree = self.machines[machine], self.directory / ("tree%d" % machine)
        tree.mkdir()
        for number in range(1 << 30):
            if self.is_over():
                return
            for name in range(chance.randrange(1, 6)):
                (tree / str(name)).write_bytes(chance.randbytes(chance.randrange(200_000)))
            # What everybody has: one machine finds there what the other one has put.
            (tree / "same").write_text("the same %d\n" % (number // 3) * 100)
            path = "/%d-%d" % (machine, number) if chance.random() < 0.7 else "/%d-again" % machine
            process = self.publish(root, "publish", "--from", tree, "--base-dir", path[1:])
            if chance.random() < 0.1:
                time.sleep(chance.uniform(0, 0.5))
                process.kill()
                self.kills += 1
            _, errors = process.communicate()
            with self.lock:
                if process.returncode == 0:
                    self.acknowledged.append(path)
                elif process.returncode == CONFLICT:
                    self.conflicts += 1
                elif process.returncode != -signal.SIGKILL:
                    raise Failure("publish: exit code %d: %s" % (process.returncode, errors))

    def collect_on(self, root):
        while not self.is_over():
            process = self.publish(root, "gc", "--keep-revisions", "1", "--grace-period", "%ds" % GRACE)
            _, errors = process.communicate()
            if process.returncode not in (0, CONFLICT):
                raise Failure("gc: exit code %d: %s" % (process.returncode, errors))
            self.collections += process.returncode == 0
            time.sleep(0.5)

    def look_at_everything(self):
        for root in self.machines:
            found = set(self.call(root, "cvmfs-publish", "-q", "find").split("\n"))
            missing = [path for path in self.acknowledged if path not in found]
            if missing:
                raise Failure("acknowledged and not there: %s" % " ".join(missing))
        self.call(self.machines[0], "cvmfs-publish", "-q", "check", "--data")
        storage = self.directory / "server/bucket" / NAME
        for first in [*("%02x" % number for number in range(256)), "txn"]:
            (storage / "data" / first).mkdir(exist_ok=True)
        frame.verify("check", storage, frame.Site(self.machines[0]).key, "--quiet", "--stale-y")

    def start_bucket(self):
        address = self.network.address if self.network else "127.0.0.1"
        server = subprocess.Popen([frame.program("examples/s3_server"), self.directory / "server", address],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.servers.append(server)
        lines = []
        for line in server.stdout:
            if not line.strip():
                break
            lines.append(line)
        (self.directory / "s3.conf").write_text("".join(lines))

    def stop(self):
        super().stop()
        if self.network:
            self.network.remove()
            self.network = None

    @staticmethod
    def copy_configuration(first, second):
        for place in ("etc/cvmfs/keys", "etc/cvmfs/repositories.d"):
            shutil.copytree(first / place, second / place)
        conf = second / "etc/cvmfs/repositories.d" / NAME / "server.conf"
        conf.write_text(conf.read_text().replace(str(first), str(second)))
        (second / "var/spool/cvmfs" / NAME).mkdir(parents=True)

    def on_machine(self, root, command):
        return (self.network.command_on(root) if self.network else []) + command

    def publish(self, root, *arguments):
        return self.start(root, "cvmfs-publish", "-q", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


class Network:
    """A bridge with an address for a server, and a network namespace for each machine."""

    def __init__(self, machines):
        # Names of devices have 15 characters at most; several soaks may run at once.
        number = os.getpid() % (1 << 16)
        subnet = "169.254.%d" % (number % 255)
        self.bridge, self.address = "soak%x" % number, subnet + ".1"
        self.namespaces = {machine: "%s-%d" % (self.bridge, index) for index, machine in enumerate(machines)}
        ip("link add %s type bridge" % self.bridge)
        ip("address add %s/24 dev %s" % (self.address, self.bridge))
        ip("link set %s up" % self.bridge)
        for index, namespace in enumerate(self.namespaces.values()):
            ip("netns add " + namespace)
            ip("link add %s type veth peer name eth0 netns %s" % (namespace, namespace))
            ip("link set %s master %s up" % (namespace, self.bridge))
            ip("-n %s address add %s.%d/24 dev eth0" % (namespace, subnet, index + 2))
            ip("-n %s link set eth0 up" % namespace)

    def command_on(self, machine):
        """What a command begins with that runs on a machine."""
        return ["ip", "netns", "exec", self.namespaces[machine]]

    def remove(self):
        for namespace in self.namespaces.values():
            ip("netns delete " + namespace)
        ip("link delete " + self.bridge)


def ip(arguments):
    done = subprocess.run(["ip", *arguments.split()], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise Failure("ip %s: %s" % (arguments, done.stderr.strip()))


if __name__ == "__main__":
    sys.exit(frame.main(Soak, "two publishers and one bucket", "seconds", 600, 60))
