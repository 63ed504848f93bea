#!/usr/bin/env python3
"""Kills conversions of container images at random moments: each image is there as a whole or not at all.

Each round makes some images of several layers, in a registry of this program's own that counts what is fetched:

1. `image` or `convert` is killed after a random part of the time that it takes;
2. the verifier must find nothing; a revision must have come for each image that is visible; what is visible must be
   complete: the tree, byte for byte, manifest, links and podman's record; of other images nothing may be visible;
3. the same command runs again, to its end: all must be there, and no layer that was finished may be fetched again.

`./dev soak` runs it; BIN is the directory of the programs.
"""

import collections
import gzip
import hashlib
import http.server
import io
import json
import re
import sys
import tarfile
import threading
import time

import frame
from frame import NAME, Failure

# Layers of an image, of which those at the bottom are shared with earlier images.
LAYERS, SHARED = 5, 2
FILES, FILE_SIZE = 15, 40_000


class Soak(frame.Soak):
    def __init__(self, directory, seed):
        super().__init__(directory, seed)
        self.site = frame.Site(directory / "site")
        self.registry = Registry()
        self.images = {}
        self.bases = []

    def run(self, kills):
        self.call(self.site.root, "cvmfs-publish", "-q", "mkfs", NAME)
        self.bases = [Layer(self.chance, number) for number in range(SHARED)]
        durations = {}
        for kind in ("image", "convert"):
            started = time.monotonic()
            images = self.make_images("first-" + kind, 1 if kind == "image" else 3)
            self.start_conversion(images).wait()
            durations[kind] = time.monotonic() - started
            self.images.update(images)
        if self.visible(self.images) != set(self.images):
            raise Failure("the first conversions fail")

        outcomes = collections.Counter()
        for number in range(1, int(kills) + 1):
            kind = self.chance.choice(list(durations))
            images = self.make_images("round%d" % number, 1 if kind == "image" else 3)
            revision = self.site.revision()
            moment = self.chance.uniform(0, 1.05) * durations[kind]
            what = "round %d, %s killed after %.3f of %.3f s" % (number, kind, moment, durations[kind])
            finished = frame.ends_within(self.start_conversion(images), moment, kind)
            seen = self.look(what, not finished, images)
            if self.site.revision() != revision + len(seen) or (finished and len(seen) != len(images)):
                found = (what, self.site.revision(), revision, len(seen))
                raise Failure("%s: revision %d after %d with %d images" % found)

            # Also what a published image left there may still be in use, by images that are not.
            done = {path.stem for path in (self.site.spool / "layers").glob("*.changes")}
            done |= {layer.digest for name in seen for layer in images[name].layers}
            self.registry.fetched.clear()
            if self.start_conversion(images).wait() != 0:
                raise Failure("%s: the repetition fails" % what)
            if done & set(self.registry.fetched):
                raise Failure("%s: finished layers are fetched again: %s" % (what, done & set(self.registry.fetched)))
            if self.look(what + ", repeated", False, images) != set(images) or self.site.revision() != revision + len(images):
                raise Failure("%s: not everything is there after the repetition" % what)
            self.images.update(images)
            # Follows the machine, so that some kills come late.
            durations[kind] *= 0.9 if len(seen) == len(images) else 1.03
            outcomes["finished before" if finished else "%d of %d images" % (len(seen), len(images))] += 1
            if number % 10 == 0:
                print("soak: %d of %d" % (number, kills), flush=True)
        print("soak: %d kills, nothing half and nothing fetched again (%s)" % (
            kills, ", ".join("%s: %d" % item for item in sorted(outcomes.items()))))

    def make_images(self, tag, count):
        """Images by name, whose upper layers are new."""
        images = {}
        for number in range(count):
            layers = self.bases + [Layer(self.chance, level) for level in range(SHARED, LAYERS)]
            # One of them again in all, so that several want the same layer at a time.
            layers[SHARED] = next(iter(images.values())).layers[SHARED] if images else layers[SHARED]
            name = "%s-%d" % (tag, number)
            images[name] = self.registry.add(name, layers)
        return images

    def start_conversion(self, images):
        names = ["http://%s/soak:%s" % (self.registry.address, name) for name in images]
        if len(names) == 1:
            return self.start(self.site.root, "cvmfs-ingest", "-q", "image", names[0])
        recipe = self.directory / "recipe.yaml"
        recipe.write_text(json.dumps({"version": 1, "cvmfs_repo": NAME, "input": names}))
        return self.start(self.site.root, "cvmfs-ingest", "-q", "convert", recipe)

    def look(self, what, killed, images):
        """Lets the verifier look at everything; returns the new images that are visible, which must be complete."""
        try:
            self.site.check(killed)
            return self.visible({**self.images, **images}) & set(images)
        except Failure as failure:
            raise Failure("%s: %s" % (what, failure)) from None

    def visible(self, images):
        """The names of images that can be found; what belongs to one must be there as a whole, or not at all."""
        tree = {}
        for line in frame.verify("list", self.site.store, self.site.key, "--no-header").splitlines():
            path, kind, _, _, digest, _, _, target = line.split(" ")[:8]
            tree[path] = target if kind == "l" else digest if kind == "f" else kind
        seen, layers = set(), set()
        for name, image in images.items():
            link = "%s/soak:%s" % (self.registry.address, name)
            flat = ".flat/%s/%s" % (image.config[:2], image.config)
            parts = {
                "link": tree.get(link) == "../" + flat,
                "tree": {path[len(flat) + 6:]: digest for path, digest in tree.items()
                         if path.startswith(flat + "/data/") and digest != "d"} == image.files,
                "run script": flat + "/.singularity.d/runscript" in tree,
                "manifest": tree.get(".metadata/%s/manifest.json" % link) == image.manifest,
                "podman": tree.get("podmanStore/overlay-images/%s/manifest" % image.config) == image.manifest,
                "any of the tree": flat in tree,
            }
            if len(set(parts.values())) != 1:
                raise Failure("half of the image %s is there: %s" % (name, parts))
            if parts["link"]:
                seen.add(name)
                layers.update(layer.digest for layer in image.layers)
        found = {path.split("/")[2] for path in tree if re.fullmatch(r"\.layers/../[0-9a-f]{64}", path)}
        if found != layers:
            raise Failure("layers of no image, or images without layers: %s" % (found ^ layers))
        return seen


class Layer:
    """Files in a directory, and the removal of some of a layer below."""

    def __init__(self, chance, level):
        content = lambda: chance.randbytes(chance.randrange(FILE_SIZE))
        self.files = {"l%d-%d" % (level, number): content() for number in range(FILES)}
        self.removes = ["l%d-%d" % (level - 1, number) for number in range(level)]
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for name, content in [*self.files.items(), *((".wh." + name, b"") for name in self.removes)]:
                entry = tarfile.TarInfo("data/" + name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        self.blob = gzip.compress(out.getvalue(), 1)
        self.digest, self.diff_id = sha256(self.blob), sha256(out.getvalue())


class Image:
    """What an image consists of, and what its tree must be: digests by name."""

    def __init__(self, layers, config, manifest):
        self.layers, self.config, self.manifest = layers, sha256(config), sha256(manifest)
        self.files = {}
        for layer in layers:
            for name in layer.removes:
                self.files.pop(name, None)
            self.files.update((name, sha256(content)) for name, content in layer.files.items())


class Registry:
    """A registry in this process, which counts the blobs that it was asked for."""

    def __init__(self):
        self.fetched = collections.Counter()
        self.documents, self.blobs = {}, {}
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.answer()

            def do_GET(self):
                self.answer()

            def answer(self):
                kind, name = self.path.split("/")[-2:]
                found = registry.documents.get(name) if kind == "manifests" else registry.blobs.get(name[7:])
                if kind == "blobs":
                    registry.fetched[name[7:]] += 1
                self.send_response(200 if found else 404)
                self.send_header("Content-Length", str(len(found or b"")))
                if kind == "manifests" and found:
                    self.send_header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
                    self.send_header("Docker-Content-Digest", "sha256:" + sha256(found))
                self.end_headers()
                if self.command == "GET" and found:
                    self.wfile.write(found)

            def log_message(self, *_):
                pass

            def handle(self):
                try:
                    super().handle()
                except ConnectionError:
                    # Whoever asked was killed.
                    pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = "127.0.0.1:%d" % server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def add(self, tag, layers):
        """Makes an image of layers."""
        config = json.dumps({"architecture": "amd64", "os": "linux", "config": {"Labels": {"tag": tag}},
                             "rootfs": {"type": "layers", "diff_ids": ["sha256:" + layer.diff_id for layer in layers]}})
        config = config.encode()
        place = "application/vnd.oci.image."
        blob = lambda kind, digest, size: {"mediaType": place + kind, "digest": "sha256:" + digest, "size": size}
        manifest = json.dumps({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob("config.v1+json", sha256(config), len(config)),
            "layers": [blob("layer.v1.tar+gzip", layer.digest, len(layer.blob)) for layer in layers]}).encode()
        self.blobs.update({layer.digest: layer.blob for layer in layers})
        self.blobs[sha256(config)] = config
        self.documents.update({tag: manifest, "sha256:" + sha256(manifest): manifest})
        return Image(layers, config, manifest)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    sys.exit(frame.main(Soak, "images", "kills", 200, 4))
