"""Formats of a CernVM-FS repository, read with nothing but the standard library.

Hashes, RSA and X.509 (just enough DER), manifest, whitelist, xattr blobs, variant
symlinks and the percent encoding of listings.  Nothing in here knows about the
program under test.
"""

import base64
import calendar
import hashlib
import re
import struct
import subprocess

# --------------------------------------------------------------------------- hashes

ALGORITHM_NAMES = ("sha1", "rmd160", "shake128")       # index == bits 8-10 of the flags
ALGORITHM_TAGS = ("", "-rmd160", "-shake128")
OBJECT_NAME = re.compile(r"^[0-9a-f]{38}(-rmd160|-shake128)?([CHPXLM]?)$")
_HASH_TEXT = re.compile(r"^([0-9a-f]{40})(-rmd160|-shake128)?$")


class FormatError(Exception):
    """A text or blob does not follow the format."""


def parse_hash(text):
    """Hash text without suffix letter -> (algorithm number, digest)."""
    if isinstance(text, (bytes, bytearray)):
        text = bytes(text).decode("latin-1")
    match = _HASH_TEXT.match(text) if isinstance(text, str) else None
    if match is None or text.endswith("\n"):
        raise FormatError("not a hash: %r" % (text,))
    return ALGORITHM_TAGS.index(match.group(2) or ""), bytes.fromhex(match.group(1))


def hash_text(value):
    return value[1].hex() + ALGORITHM_TAGS[value[0]]


def is_null(value):
    return not any(value[1])


def object_path(value, suffix):
    digest = value[1].hex()
    return "data/%s/%s%s%s" % (digest[:2], digest[2:], ALGORITHM_TAGS[value[0]], suffix)


class _Shake128:
    def __init__(self):
        self._state = hashlib.shake_128()
        self.update = self._state.update

    def digest(self):
        return self._state.digest(20)


class _SlowRipemd160:
    """Where OpenSSL hides RIPEMD-160 in the legacy provider: ask the command line."""

    def __init__(self):
        self._parts = []

    def update(self, data):
        self._parts.append(bytes(data))

    def digest(self):
        run = subprocess.run(
            ["openssl", "dgst", "-provider", "legacy", "-provider", "default", "-rmd160", "-binary"],
            input=b"".join(self._parts), stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        if run.returncode != 0 or len(run.stdout) != 20:
            raise FormatError("this machine cannot compute RIPEMD-160")
        return run.stdout


def new_hasher(algorithm):
    if algorithm == 0:
        return hashlib.sha1()
    if algorithm == 2:
        return _Shake128()
    try:
        return hashlib.new("ripemd160")
    except ValueError:
        return _SlowRipemd160()


def digest_of(algorithm, data):
    hasher = new_hasher(algorithm)
    hasher.update(data)
    return hasher.digest()


def hash_of(algorithm, data):
    return algorithm, digest_of(algorithm, data)


_HALVES = struct.Struct("<qq")


def path_hash(path):
    return _HALVES.unpack(hashlib.md5(path).digest())


# --------------------------------------------------------------------------- DER and RSA


def _der(data, position=0):
    """One element: (tag, content, end)."""
    try:
        tag = data[position]
        length = data[position + 1]
        position += 2
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(data[position:position + count], "big")
            position += count
    except IndexError:
        raise FormatError("truncated DER")
    if position + length > len(data):
        raise FormatError("truncated DER")
    return tag, data[position:position + length], position + length


def _der_children(data):
    position, out = 0, []
    while position < len(data):
        start = position
        tag, content, position = _der(data, position)
        out.append((tag, content, data[start:position]))
    return out


def pem_to_der(text, *labels):
    for label in labels:
        match = re.search(
            b"-----BEGIN " + label.encode() + b"-----\\s*(.*?)-----END " + label.encode() + b"-----", text, re.S)
        if match:
            try:
                return base64.b64decode(match.group(1), validate=False)
            except ValueError as error:
                raise FormatError("bad base64 in PEM: %s" % error)
    raise FormatError("no PEM block %s" % " / ".join(labels))


def _spki(der):
    """SubjectPublicKeyInfo -> (n, e)."""
    tag, content, _ = _der(der)
    parts = _der_children(content)
    if tag != 0x30 or len(parts) != 2 or parts[1][0] != 0x03:
        raise FormatError("not a public key")
    if bytes.fromhex("2a864886f70d010101") not in parts[0][1]:
        raise FormatError("not an RSA key")
    key = _der_children(_der(parts[1][1][1:])[1])
    return int.from_bytes(key[0][1], "big"), int.from_bytes(key[1][1], "big")


def public_key(pem):
    return _spki(pem_to_der(pem, "PUBLIC KEY"))


def certificate_key(pem):
    """PEM certificate -> (DER bytes, (n, e))."""
    der = pem_to_der(pem, "CERTIFICATE", "TRUSTED CERTIFICATE", "X509 CERTIFICATE")
    tag, content, _ = _der(der)
    parts = _der_children(content)
    if tag != 0x30 or len(parts) < 3:
        raise FormatError("not a certificate")
    fields = _der_children(parts[0][1])
    if fields and fields[0][0] == 0xA0:
        fields = fields[1:]
    if len(fields) < 6:
        raise FormatError("not a certificate")
    return der, _spki(fields[5][2])


def private_key(pem):
    """PEM private key (PKCS#8 or PKCS#1) -> (n, e, d)."""
    if b"BEGIN RSA PRIVATE KEY" in pem:
        der = pem_to_der(pem, "RSA PRIVATE KEY")
    else:
        der = _der_children(_der(pem_to_der(pem, "PRIVATE KEY"))[1])[2][1]
    numbers = _der_children(_der(der)[1])
    return tuple(int.from_bytes(numbers[i][1], "big") for i in (1, 2, 3))


def rsa_open(key, signature):
    """Payload of a PKCS#1 type 1 block, None if it is none."""
    modulus, exponent = key[0], key[1]
    size = (modulus.bit_length() + 7) // 8
    if len(signature) != size:
        return None
    block = pow(int.from_bytes(signature, "big"), exponent, modulus).to_bytes(size, "big")
    end = block.find(b"\0", 2)
    if block[:2] != b"\0\1" or end < 10 or block[2:end].strip(b"\xff"):
        return None
    return block[end + 1:]


SHA1_DIGEST_INFO = bytes.fromhex("3021300906052b0e03021a05000414")

# --------------------------------------------------------------------------- letters


def split_letter(data):
    """Signed text -> (text incl. final newline, hash text, signature)."""
    marker = data.find(b"\n--\n")
    if marker < 0:
        raise FormatError("no line with two dashes")
    text = data[:marker + 1]
    rest = data[marker + 4:]
    newline = rest.find(b"\n")
    if newline < 0:
        raise FormatError("no hash line")
    return text, rest[:newline].decode("latin-1"), rest[newline + 1:]


MANIFEST_ORDER = "CBRDSGALNXHTMY"
MANIFEST_HASHES = "CLXHMY"
ROOT_PATH_HASH = "d41d8cd98f00b204e9800998ecf8427e"


class Manifest:
    """Key lines of `.cvmfspublished` plus its signature block."""

    def __init__(self, data):
        self.data = data
        self.text, self.hash_text, self.signature = split_letter(data)
        self.lines = []
        self.values = {}
        for line in self.text.split(b"\n")[:-1]:
            if line:
                key, value = chr(line[0]), line[1:].decode("latin-1")
                self.lines.append((key, value))
                self.values[key] = value

    def get(self, key):
        return self.values.get(key)

    def hash(self, key):
        text = self.values.get(key)
        return None if text is None else parse_hash(text)

    def number(self, key):
        text = self.values.get(key)
        return int(text) if text is not None and re.fullmatch("[0-9]+", text) else None

    def format_problems(self):
        keys = [key for key, _ in self.lines]
        if b"\n\n" in self.text or self.text.startswith(b"\n"):
            yield "empty line"
        for key in sorted(set(keys)):
            if keys.count(key) > 1:
                yield "key %s more than once" % key
            if key not in MANIFEST_ORDER:
                yield "unknown key %s" % key
        known = [key for key in keys if key in MANIFEST_ORDER]
        if known != sorted(known, key=MANIFEST_ORDER.index):
            yield "keys in the order %s" % "".join(known)
        for key in "CBRDSGANXTMY":
            if key not in self.values:
                yield "no line %s" % key
        for key in MANIFEST_HASHES:
            if key in self.values and not _HASH_TEXT.match(self.values[key]):
                yield "%s is not a hash: %r" % (key, self.values[key])
        for key in "BDST":
            if key in self.values and not re.fullmatch("0|[1-9][0-9]*", self.values[key]):
                yield "%s is not a number: %r" % (key, self.values[key])
        for key in "GA":
            if self.values.get(key, "no") not in ("yes", "no"):
                yield "%s is neither yes nor no: %r" % (key, self.values[key])


def _stamp(text, what):
    if not re.fullmatch("[0-9]{14}", text):
        raise FormatError("%s is not YYYYMMDDhhmmss: %r" % (what, text))
    parts = [int(text[:4])] + [int(text[i:i + 2]) for i in range(4, 14, 2)]
    if not (1 <= parts[1] <= 12 and 1 <= parts[2] <= 31 and parts[3] < 24 and parts[4] < 60 and parts[5] < 61):
        raise FormatError("%s is not a time: %r" % (what, text))
    return parts


class Whitelist:
    """Lines of `.cvmfswhitelist` plus its signature block."""

    def __init__(self, data):
        self.text, self.hash_text, self.signature = split_letter(data)
        lines = self.text.decode("latin-1").split("\n")[:-1]
        if len(lines) < 3:
            raise FormatError("fewer than three lines")
        _stamp(lines[0], "issue time")
        if not lines[1].startswith("E"):
            raise FormatError("second line is not the expiry: %r" % lines[1])
        expiry = _stamp(lines[1][1:], "expiry")
        # the client compares year, month, day and hour only
        self.expiry_hour = calendar.timegm(tuple(expiry[:4]) + (0, 0)) // 3600
        if not lines[2].startswith("N"):
            raise FormatError("third line is not the name: %r" % lines[2])
        self.name = lines[2][1:]
        rest = lines[3:]
        self.pkcs7 = self.cachain = False
        if rest and rest[0] == "Vpkcs7":
            self.pkcs7, rest = True, rest[1:]
        if rest and rest[0] == "Wcachain":
            self.cachain, rest = True, rest[1:]
        self.fingerprints = []
        for line in rest:
            text = re.split("[ \t#]", line, maxsplit=1)[0].replace(":", "").lower()
            if _HASH_TEXT.match(text):
                self.fingerprints.append(parse_hash(text))
        if not self.fingerprints:
            raise FormatError("no fingerprint")

    def expired(self, now):
        return int(now) // 3600 >= self.expiry_hour


# --------------------------------------------------------------------------- small things


def parse_xattrs(blob):
    """Blob -> list of (key, value); FormatError if anything is unusual."""
    if len(blob) < 2 or blob[0] != 1:
        raise FormatError("xattr blob: version byte is not 1")
    count, position, out = blob[1], 2, []
    if count == 0:
        raise FormatError("xattr blob without attributes (must be NULL)")
    for _ in range(count):
        if position + 2 > len(blob):
            raise FormatError("xattr blob truncated")
        key_size, value_size = blob[position], blob[position + 1]
        position += 2
        key = blob[position:position + key_size]
        value = blob[position + key_size:position + key_size + value_size]
        position += key_size + value_size
        if position > len(blob):
            raise FormatError("xattr blob truncated")
        if not key or b"\0" in key:
            raise FormatError("xattr blob: bad key %r" % key)
        if out and out[-1][0] >= key:
            raise FormatError("xattr blob: keys not sorted (%r after %r)" % (key, out[-1][0]))
        out.append((key, value))
    if position != len(blob):
        raise FormatError("xattr blob: %d bytes too many" % (len(blob) - position))
    return out


def expand_variant(target, environment):
    """`$(VAR)` and `$(VAR:-default)` as the client does it."""
    out, position = [], 0
    while True:
        start = target.find(b"$(", position)
        end = target.find(b")", start + 2) if start >= 0 else -1
        if end < 0:
            out.append(target[position:])
            return b"".join(out)
        name, _, default = target[start + 2:end].partition(b":-")
        out.append(target[position:start])
        out.append(environment.get(name, default))
        position = end + 1


_ENCODED = [bytes([c]) if 0x20 < c < 0x7F and c not in b"%\\" else b"%%%02x" % c for c in range(256)]
_PLAIN = re.compile(rb"[\x21-\x24\x26-\x5b\x5d-\x7e]*\Z")


def percent(data):
    """Percent encoding of listings: bytes <= 0x20, >= 0x7f, `%` and backslash."""
    if _PLAIN.match(data):
        return data.decode("ascii")
    return b"".join([_ENCODED[c] for c in data]).decode("ascii")


def normal_sql(text):
    """One spelling for SQL that differs only in blanks."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    text = re.sub(r"\s+", " ", text.strip().rstrip(";"))
    return re.sub(r"\s*([(),=]|<>)\s*", r"\1", text)
