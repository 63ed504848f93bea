#!/usr/bin/env python3
"""Makes the seeds in `seeds/`: documents and databases of a repository that the reference tools wrote, and small archives
of several tools. Files that are named `found-*` are inputs that once failed; they stay.

  make_seeds.py        (needs GNU tar, bsdtar, gzip, zstd, xz and bzip2)
"""

import glob
import io
import json
import os
import shutil
import struct
import subprocess
import tarfile
import tempfile
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURE = os.path.join(HERE, "../tests/fixtures/reference-repository/fixture.ref.org.tar.gz")
# Databases larger than this are left out: a fuzzer works best on small inputs.
LARGEST_DATABASE = 26_000


def save(target, name, content):
    directory = os.path.join(HERE, "seeds", target)
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, name), "wb") as file:
        file.write(content)


def repository():
    with tarfile.open(FIXTURE) as tar:
        files = {member.name.split("/", 1)[1]: tar.extractfile(member).read() for member in tar if member.isfile()}
    for target, name in (("manifest", ".cvmfspublished"), ("whitelist", ".cvmfswhitelist")):
        document = files[name]
        save(target, "signed", document)
        # What the target seals itself.
        save(target, "text", document[:document.index(b"--\n")])
    save("whitelist", "comments", b"20260101000000\nE20360101000000\nNfixture.ref.org\n# new\n"
         + b":".join([b"AB"] * 20) + b" # old\n" + b":".join([b"01"] * 20) + b"-RMD160\nVpkcs7\n")
    save("reflog", "reflog", files[".cvmfsreflog"])
    for suffix, target in (("C", "catalog"), ("H", "history")):
        databases = sorted((zlib.decompress(content) for name, content in files.items()
                            if name.startswith("data/") and name.endswith(suffix)), key=len)
        small = [database for database in databases if len(database) <= LARGEST_DATABASE]
        assert small, (suffix, [len(database) for database in databases])
        for number, database in enumerate((small[0], small[-1])):
            save(target, "reference-%d" % number, database)


def tree(root):
    def path(*parts):
        return os.path.join(root, *parts)

    os.makedirs(path("d", "n" * 90, "m" * 90))
    for name, content in (("f", b"content\n"), ("d/empty", b""), ("d/" + "n" * 90 + "/" + "m" * 90 + "/" + "l" * 101, b"x"),
                          ("d/block", b"b" * 512), ("new\nline", b"1")):
        with open(path(name), "wb") as file:
            file.write(content)
    os.symlink("t" * 120, path("far"))
    os.symlink("f", path("near"))
    os.link(path("f"), path("d/link"))
    os.mkfifo(path("d/fifo"))
    os.setxattr(path("f"), "user.a", b"value")
    with open(path("sparse"), "wb") as file:
        file.seek(100_000)
        file.write(b"middle")
        file.truncate(300_000)
    for directory, names, files in os.walk(root):
        for name in names + files:
            os.utime(os.path.join(directory, name), ns=(10**18 + 1,) * 2, follow_symlinks=False)
    os.utime(root, ns=(10**18 + 1,) * 2)


def archives():
    with tempfile.TemporaryDirectory() as directory:
        root = os.path.join(directory, "tree")
        os.makedirs(root)
        tree(root)
        common = ["tar", "-C", root, "--sort=name", "--owner=root:0", "--group=root:0", "-b1", "-cf", "-"]
        variants = {
            "gnu": ["--format=gnu", "."],
            "oldgnu-sparse": ["--format=oldgnu", "--sparse", "sparse"],
            "posix": ["--format=posix", "--pax-option=delete=atime,delete=ctime", "--xattrs", "."],
            "posix-sparse-0.0": ["--format=posix", "--sparse", "--sparse-version=0.0", "sparse"],
            "posix-sparse-0.1": ["--format=posix", "--sparse", "--sparse-version=0.1", "sparse"],
            "posix-sparse-1.0": ["--format=posix", "--sparse", "--sparse-version=1.0", "sparse"],
            "ustar": ["--format=ustar", "--exclude=far", "--exclude=l*", "--exclude=sparse", "f", "d/empty", "d/link", "near"],
            "v7": ["--format=v7", "f", "d/link", "near"],
            "label": ["--format=gnu", "-V", "volume", "f"],
        }
        small = None
        for name, arguments in variants.items():
            if "--sparse" not in arguments and "." in arguments:
                arguments = ["--exclude=sparse"] + arguments
            content = subprocess.run(common + arguments, check=True, stdout=subprocess.PIPE).stdout
            save("archive", name, content)
            small = content if name == "ustar" else small
        content = subprocess.run(["bsdtar", "-C", root, "--format=pax", "-b1", "--exclude", "sparse", "-cf", "-", "f", "d/fifo", "near"],
                                 check=True, stdout=subprocess.PIPE).stdout
        save("archive", "bsdtar-pax", content)
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "all", "mtime": "1.5"}) as tar:
            for name in ("a/.wh.b", "a/.wh..wh..opq", "a/.cvmfscatalog", "/abs//./x", "big"):
                info = tarfile.TarInfo(name)
                info.uid, info.pax_headers = 2**40, {"SCHILY.xattr.user.x": "1", "LIBARCHIVE.xattr.user.y": "YQ"}
                tar.addfile(info)
        save("archive", "python-pax", out.getvalue()[:-9 * 1024] + bytes(1024))
        for name, command in (("gzip", ["gzip", "-9nc"]), ("zstd", ["zstd", "-q", "-19", "-c"]), ("xz", ["xz", "-9c"]),
                              ("bzip2", ["bzip2", "-9c"]), ("plain", ["cat"])):
            content = subprocess.run(command, input=small, check=True, stdout=subprocess.PIPE).stdout
            save("compressed", name, content)
            if name != "plain":
                save("compressed", name + "-twice", content + content + bytes(100))


def small_formats():
    save("dirtab", "rules", b"software/x86/1.0\n# comment\n/software/*/*\n! */tmp\n/a\\*b/?\n")
    save("dirtab", "crossing", b"a/b/c\n/*/*/*\n/a/b*\n! *b/?\n")
    pair = lambda key, value, width: struct.pack("<B", len(key)) + struct.pack("<" + width, len(value)) + key + value
    save("xattrs", "version-1", b"\x01\x02" + pair(b"user.a", b"1", "B") + pair(b"user.b", b"", "B"))
    save("xattrs", "version-2", b"\x02\x01" + pair(b"user.long", b"v" * 300, "H"))
    digest = b"0123456789abcdef0123456789abcdef01234567"
    texts = [b"a//b/./c", b"/x/../y", digest, digest + b"-rmd160", digest + b"-shake128C", digest + b"H", b"20260102030405",
             b"generic-2026-01-02T03:04:05Z", b"generic_12-2026-01-02T03:04:05.123Z", b"software.example.org", b"v1.0/a:b_c-d",
             b"http://one.example.org/cvmfs/x;https://[::1]:8000/y", b":".join([b"AB"] * 20) + b"-RMD160 # comment",
             b"# owners\n101 5\n* 1000\n", b"new\nline \xff\x00"]
    for number, text in enumerate(texts):
        save("names", "%02d" % number, text)
    resource = {"digest": "sha256:" + "0" * 64, "tag": "1", "resource_url": "r.example.org/a/b:1"}
    data = {"resources": [resource], "retention": {"harbor_hostname": "r.example.org", "deleted_artifact": [{"name_tag": "a/b:1"}]},
            "replication": {"dest_resource": {"endpoint": "https://localhost:5000", "namespace": "team"},
                            "successful_artifact": [{"name_tag": "b [1 item(s) in total]"}]}}
    target = {"repository": "a", "tag": "1", "url": "http://r.example.org/v2/a/manifests/1"}
    event = {"action": "push", "target": target, "request": {"host": "localhost:5000"}}
    notifications = [{"type": name, "event_data": data} for name in ("PUSH_ARTIFACT", "DELETE_ARTIFACT", "TAG_RETENTION", "REPLICATION")]
    notifications += [{"specversion": "1.0", "type": "harbor.artifact.pushed", "data": data}, {"events": [event, dict(event, action="delete")]},
                      {"docker_url": "quay.io/a/b", "updated_tags": ["1", "2"]}, [{"image": "r.example.org/a:1"}],
                      {"image": "r.example.org/a", "action": "delete", "object_kind": "push"}]
    for number, notification in enumerate(notifications):
        save("notification", str(number), json.dumps(notification, separators=(",", ":")).encode())
    chance = bytes((number * number * 7 + number * 13) >> 3 & 0xff for number in range(600))
    for number in range(3):
        save("change_set", "bytes-%d" % number, chance[number * 200:][:200])
        save("catalog_rows", "bytes-%d" % number, chance[number * 150:][:300])


if __name__ == "__main__":
    for old in glob.glob(os.path.join(HERE, "seeds/*/*")):
        if not os.path.basename(old).startswith("found-"):
            os.remove(old)
    repository()
    archives()
    small_formats()
