#!/usr/bin/env python3
"""Measures `cvmfs-replica serve` beside nginx: the same files, the same requests, one after the other, several times.

  one      one object of 4 KB
  small    10,000 objects of 4 KB, in random order
  medium   200 objects of 1 MB
  large    4 objects of 64 MB

Each with `wrk` over 64 connections that stay open, alternating between the servers; medians of the runs. Everything is on
this machine, so the load generator takes its part of the processors: CPU seconds are those of the server alone. nginx runs
as packaged with sendfile and tcp_nopush, without access log; and once more with its cache of open files.

`./dev bench serve` runs it; BIN is the directory of the programs. SECONDS_A_RUN is how long one
run takes, RUNS how many.
"""

import hashlib
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

NAME = "bench.example.org"
SECONDS = int(os.environ.get("SECONDS_A_RUN", 4))
RUNS = int(os.environ.get("RUNS", 3))
CONNECTIONS = 64
ROWS = {"one": (1, 4 << 10), "small": (10_000, 4 << 10), "medium": (200, 1 << 20), "large": (4, 64 << 20)}

NGINX = """
worker_processes auto;
worker_rlimit_nofile 65536;
daemon off;
pid {work}/nginx.pid;
error_log {work}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    default_type application/octet-stream;
    {cache}
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ root {site}/srv; expires 3d; }}
    }}
}}
"""
OPEN_FILE_CACHE = "open_file_cache max=20000 inactive=60s;"

LUA = """
local paths = {{}}
for line in io.lines("{paths}") do paths[#paths + 1] = wrk.format("GET", line, {{ Host = "localhost" }}) end
math.randomseed(1)
request = function() return paths[math.random(#paths)] end
done = function(summary)
    local e = summary.errors
    io.write(string.format("RESULT %d %d %d %d\\n", summary.requests, summary.bytes, summary.duration,
        e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class Server:
    def __init__(self, name, command, url):
        self.name, self.url = name, url
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(100):
            if subprocess.run(["curl", "--noproxy", "*", "-sf", "-o", os.devnull, url + "/cvmfs/%s/.cvmfspublished" % NAME]).returncode == 0:
                return
            time.sleep(0.1)
        sys.exit("bench: %s does not answer" % name)

    def cpu_seconds(self):
        """User and system time of the server and its workers, so far."""
        pids = [self.process.pid]
        children = pathlib.Path("/proc/%d/task/%d/children" % (self.process.pid, self.process.pid)).read_text()
        pids += [int(pid) for pid in children.split()]
        ticks = 0
        for pid in pids:
            fields = pathlib.Path("/proc/%d/stat" % pid).read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def make_site(site):
    """Writes the objects of all rows; returns the paths of each."""
    generator = random.Random(1)
    storage = site / "srv/cvmfs" / NAME
    storage.mkdir(parents=True)
    (storage / ".cvmfspublished").write_bytes(b"manifest\n")
    paths = {}
    for row, (count, size) in ROWS.items():
        paths[row] = []
        for _ in range(count):
            content = generator.randbytes(size)
            name = hashlib.sha1(content).hexdigest()
            directory = storage / "data" / name[:2]
            directory.mkdir(parents=True, exist_ok=True)
            (directory / name[2:]).write_bytes(content)
            paths[row].append("/cvmfs/%s/data/%s/%s" % (NAME, name[:2], name[2:]))
    return paths


def measure(server, lua):
    """Requests a second, bytes a second, and server CPU seconds for a million requests and a gigabyte."""
    before = server.cpu_seconds()
    command = ["wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", "%ds" % SECONDS, "--timeout", "60s", "-s", str(lua), server.url]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    cpu = server.cpu_seconds() - before
    requests, size, duration, errors = map(int, re.search(r"RESULT (\d+) (\d+) (\d+) (\d+)", output).groups())
    if errors:
        sys.exit("bench: %d errors of %s\n%s" % (errors, server.name, output))
    seconds = duration / 1e6
    return requests / seconds, size / seconds, cpu / requests * 1e6, cpu / size * 1e9


def free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main():
    rows = sys.argv[1:] or list(ROWS)
    # On a disk, as servers have it (a file system in memory cannot tell what is in memory); it is read from the page cache.
    work = pathlib.Path(tempfile.mkdtemp(prefix="cvmfs-bench-"))
    # The workers of nginx are another user.
    work.chmod(0o755)
    servers = []
    try:
        site = work / "site"
        paths = make_site(site)
        port = free_port()
        program = os.path.join(os.environ["BIN"], "cvmfs-replica")
        command = [program, "-q", "--root", str(site), "serve", "--listen", "127.0.0.1:%d" % port]
        servers.append(Server("cvmfs-replica serve", command, "http://127.0.0.1:%d" % port))
        for name, cache in [("nginx", ""), ("nginx, open_file_cache", OPEN_FILE_CACHE)]:
            port = free_port()
            own = work / ("nginx-%d" % port)
            own.mkdir()
            configuration = own / "nginx.conf"
            configuration.write_text(NGINX.format(work=own, site=site, port=port, cache=cache))
            servers.append(Server(name, ["nginx", "-c", str(configuration)], "http://127.0.0.1:%d" % port))
        print("| objects | server | requests/s | MB/s | server CPU s for 10^6 requests | for 1 GB |")
        print("| --- | --- | --- | --- | --- | --- |")
        for row in rows:
            (work / "paths").write_text("".join(path + "\n" for path in paths[row]))
            (work / "row.lua").write_text(LUA.format(paths=work / "paths"))
            results = {server.name: [] for server in servers}
            for _ in range(RUNS):
                for server in servers:
                    results[server.name].append(measure(server, work / "row.lua"))
            for name, runs in results.items():
                requests, size, cpu, cpu_of_size = (statistics.median(column) for column in zip(*runs))
                print("| %s | %s | %.0f | %.0f | %.1f | %.2f |" % (row, name, requests, size / 1e6, cpu, cpu_of_size), flush=True)
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(work)


main()
