#!/usr/bin/env python3
"""Times the conversion of container images, beside tools that anybody can run on the same machine.

An image of ten layers and about 2 GB is made on the spot: what debootstrap installs, 60,000 files of software, and eight
layers of files that are text-like or noise. It is in a registry (docker-registry) on this machine.

  convert     cvmfs-ingest image into an empty repository: layers, root file system, Apptainer's files, podman's store
  skopeo      skopeo copy of the same image from the same registry into a directory
  floor       deflate and SHA-1 of all its files on all cores, from memory to nowhere
  unpack      inflate of all its layers and SHA-256 before and after, on all cores, by Python's modules: what has to be
              done to verify the layers and to get at their files
  both        the last two, one after the other
  again       the same image once more, under the same name: nothing changed
  one layer   the image with its last layer exchanged for another one of some files, under the same name
  100 tags    a wish list with 100 tags, each with one small layer on the same base of nine

`./dev bench images` runs it; BIN is the directory of the programs, FLOOR the program of benches/floor.rs.
"""

import concurrent.futures
import hashlib
import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib

from whole_program import (MEGABYTE, Rows, Site, floor, heading, made_up_words, make_rootfs, make_small, remove, run)

NAME = "team/app"
TAGS = 100
RUNS = 3


def main():
    memory = "/dev/shm"
    place = memory if shutil.disk_usage(memory).free > 10_000 * MEGABYTE else None
    directory = tempfile.mkdtemp(prefix="cvmfs-bench.", dir=place)
    registry = Registry(directory)
    try:
        bench(directory, registry)
    finally:
        registry.stop()
        shutil.rmtree(directory)


def bench(directory, registry):
    tree = os.path.join(directory, "tree")
    layout = Layout(os.path.join(directory, "layout"))
    # In a process of its own: a program's peak of memory begins with that of the one that starts it.
    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        base = pool.submit(make_base, layout, tree).result()
    size = sum(os.lstat(os.path.join(path, name)).st_size for path, _, names in os.walk(tree) for name in names)
    layout.tag("latest", base)
    registry.push(layout, "latest")
    site, rows, image = Site(directory), Rows(), "http://%s/%s:latest" % (registry.address, NAME)
    for number in range(RUNS):
        site.make()
        rows.add("convert", site.run("cvmfs-ingest", "-q", "image", image))
        rows.add("again", site.run("cvmfs-ingest", "-q", "image", image))
        layout.tag("latest", base[:-1] + [layout.add_layer(small_layer("exchange %d" % number))])
        registry.push(layout, "latest")
        rows.add("one layer", site.run("cvmfs-ingest", "-q", "image", image))
        layout.tag("latest", base)
        registry.push(layout, "latest")
        rows.add("skopeo", registry.pull(os.path.join(directory, "pulled")))
        rows.add("floor", floor(tree)["floor"])
        rows.add("unpack", layout.unpack([blob for blob, _ in base]))
        rows.add("both", [sum(parts) for parts in zip(rows.runs["floor"][-1], rows.runs["unpack"][-1])])
        remove(site.root)
    heading("an image of %d layers and %.0f MB" % (len(base), size / MEGABYTE))
    rows.print({"x skopeo": "skopeo", "x floor": "floor", "x both": "both"})

    for number in range(TAGS):
        tag = "tag%d" % number
        layout.tag(tag, base[:-1] + [layout.add_layer(small_layer(tag))])
        registry.push(layout, tag)
    recipe = os.path.join(directory, "recipe.yaml")
    with open(recipe, "w") as out:
        out.write("version: 1\ninput:\n  - 'http://%s/%s:tag*'\n" % (registry.address, NAME))
    site.make()
    seconds, cpu, peak = site.run("cvmfs-ingest", "-q", "convert", recipe)
    print("\n%d tags on one base: %.1f s, %.1f CPU seconds, %.0f MiB; unchanged: %.2f s"
          % (TAGS, seconds, cpu, peak / 1024, site.run("cvmfs-ingest", "-q", "convert", recipe)[0]))


# --- an image -------------------------------------------------------------------------------------------------------

def make_base(layout, tree):
    return [layout.add_layer(layer) for layer in make_layers(tree)]


def make_layers(tree):
    """Makes the trees of ten layers, each below `tree`, and yields them as tar archives."""
    chance = random.Random(1)
    words = made_up_words(chance)
    for number in range(10):
        layer = os.path.join(tree, "layer%d" % number)
        os.makedirs(layer)
        if number == 0:
            make_rootfs(layer)
        elif number == 1:
            make_small(layer)
        else:
            for file in range(120):
                path = os.path.join(layer, "opt", "data%d" % number, "file%d" % file)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                block = b" ".join(chance.choices(words, k=160_000)) if chance.random() < 0.7 else chance.randbytes(MEGABYTE)
                with open(path, "wb") as out:
                    out.write(block[:MEGABYTE])
        yield subprocess.run(["tar", "-C", layer, "-c", "."], stdout=subprocess.PIPE, check=True).stdout


def small_layer(text):
    content, out = text.encode(), io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number in range(10):
            entry = tarfile.TarInfo("opt/small/file%d" % number)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def unpack_layer(path):
    """CPU seconds for a layer."""
    started = time.process_time()
    packed, plain, inflate = hashlib.sha256(), hashlib.sha256(), zlib.decompressobj(31)
    with open(path, "rb") as layer:
        # pigz makes one member.
        while block := layer.read(MEGABYTE):
            packed.update(block)
            plain.update(inflate.decompress(block))
    return time.process_time() - started


class Layout:
    """An OCI image layout."""

    def __init__(self, directory):
        self.directory = directory
        os.makedirs(os.path.join(directory, "blobs", "sha256"))
        self.write("oci-layout", {"imageLayoutVersion": "1.0.0"})

    def write(self, name, document):
        with open(os.path.join(self.directory, name), "w") as out:
            json.dump(document, out)

    def add_blob(self, media_type, content):
        digest = hashlib.sha256(content).hexdigest()
        with open(os.path.join(self.directory, "blobs", "sha256", digest), "wb") as out:
            out.write(content)
        return {"mediaType": media_type, "digest": "sha256:" + digest, "size": len(content)}

    def add_layer(self, archive):
        """Adds a layer; returns its descriptor and its diff id."""
        packed = subprocess.run(["pigz", "-c"], input=archive, stdout=subprocess.PIPE, check=True).stdout
        blob = self.add_blob("application/vnd.oci.image.layer.v1.tar+gzip", packed)
        return blob, "sha256:" + hashlib.sha256(archive).hexdigest()

    def unpack(self, blobs):
        """Seconds, CPU seconds and nothing, like `run`."""
        paths = [os.path.join(self.directory, "blobs", "sha256", blob["digest"].split(":")[1]) for blob in blobs]
        paths.sort(key=os.path.getsize, reverse=True)
        with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
            started = time.monotonic()
            cpu = sum(pool.map(unpack_layer, paths))
            return time.monotonic() - started, cpu, 0

    def tag(self, name, layers):
        """Makes an image of layers, the only one of the layout."""
        config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
                  "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]}}
        config = self.add_blob("application/vnd.oci.image.config.v1+json", json.dumps(config).encode())
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config,
                    "layers": [blob for blob, _ in layers]}
        entry = self.add_blob(manifest["mediaType"], json.dumps(manifest).encode())
        entry["annotations"] = {"org.opencontainers.image.ref.name": name}
        self.write("index.json", {"schemaVersion": 2, "manifests": [entry]})


class Registry:
    """A registry that runs as long as it is wanted."""

    def __init__(self, directory):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = "127.0.0.1:%d" % probe.getsockname()[1]
        configuration = os.path.join(directory, "registry.yml")
        with open(configuration, "w") as out:
            json.dump({"version": "0.1", "log": {"level": "error"}, "http": {"addr": self.address},
                       "storage": {"filesystem": {"rootdirectory": os.path.join(directory, "registry")}}}, out)
        self.process = subprocess.Popen(["docker-registry", "serve", configuration],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        host, port = self.address.split(":")
        while True:
            with socket.socket() as probe:
                if probe.connect_ex((host, int(port))) == 0:
                    return
            if self.process.poll() is not None:
                sys.exit("bench: docker-registry does not run")
            time.sleep(0.05)

    def push(self, layout, tag):
        subprocess.run(["skopeo", "copy", "-q", "--dest-tls-verify=false", "oci:%s:%s" % (layout.directory, tag),
                        "docker://%s/%s:%s" % (self.address, NAME, tag)], check=True)

    def pull(self, directory):
        remove(directory)
        measured = run(["skopeo", "copy", "-q", "--src-tls-verify=false",
                        "docker://%s/%s:latest" % (self.address, NAME), "dir:" + directory])
        remove(directory)
        return measured

    def stop(self):
        self.process.terminate()
        self.process.wait()


if __name__ == "__main__":
    sys.exit(main())
