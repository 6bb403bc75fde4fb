#!/usr/bin/env python3
"""Check a Portvakt decision log without any of Portvakt's code.

  verify_audit.py AUDIT.JSONL CHECKPOINT VERIFIER.KEY

Written from docs/audit.md alone, with Python's standard library: a second
opinion, and an example for whoever writes another. The files of earlier days
are looked for beside AUDIT.JSONL, the tree beside CHECKPOINT. Exit code 0: the
first records of the log, as many as the checkpoint says, are the ones that were
signed. Exit code 1: they are not, or the signature is not the key's.
"""

import base64
import glob
import hashlib
import json
import os
import re
import sys

# Ed25519 (RFC 8032, section 5.1), verification only. Slow, and that is enough:
# one signature is checked.
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


def recover_x(y, sign):
    x2 = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - x2) % P or (x == 0 and sign):
        return None
    return P - x if x & 1 != sign else x


def decompress(b):
    y = int.from_bytes(b, "little")
    sign, y = y >> 255, y & ((1 << 255) - 1)
    if y >= P:
        return None
    x = recover_x(y, sign)
    return None if x is None else (x, y)


def add(p, q):
    (x1, y1), (x2, y2) = p, q
    k = D * x1 * x2 * y1 * y2
    x = (x1 * y2 + x2 * y1) * pow(1 + k, P - 2, P)
    y = (y1 * y2 + x1 * x2) * pow(1 - k, P - 2, P)
    return x % P, y % P


def times(n, p):
    r = (0, 1)
    while n:
        if n & 1:
            r = add(r, p)
        p = add(p, p)
        n >>= 1
    return r


BASE_Y = 4 * pow(5, P - 2, P) % P
BASE = (recover_x(BASE_Y, 0), BASE_Y)


def signed_by(public, message, signature):
    a, r = decompress(public), decompress(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if len(signature) != 64 or a is None or r is None or s >= L:
        return False
    h = hashlib.sha512(signature[:32] + public + message).digest()
    return times(s, BASE) == add(r, times(int.from_bytes(h, "little") % L, a))


# Checkpoints: a text, an empty line, and signature lines.
def read_key(path):
    name, key_hash, key = open(path, encoding="utf-8").read().strip().split("+", 2)
    raw = base64.b64decode(key, validate=True)
    if len(raw) != 33 or raw[0] != 1:
        sys.exit("the verifier key is not an Ed25519 key")
    if hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4].hex() != key_hash:
        sys.exit("the verifier key is damaged: its hash is wrong")
    return name, bytes.fromhex(key_hash), raw[1:]


def read_checkpoint(path, key):
    name, key_hash, public = key
    note = open(path, "rb").read().decode("utf-8")
    text, _, signatures = note.rpartition("\n\n")
    text += "\n"
    for line in signatures.splitlines():
        if not line.startswith("\u2014 " + name + " "):
            continue
        raw = base64.b64decode(line.rsplit(" ", 1)[1], validate=True)
        if raw[:4] == key_hash and signed_by(public, text.encode(), raw[4:]):
            break
    else:
        sys.exit("the checkpoint is not signed with this key")
    origin, size, root, *rest = text.splitlines()
    if origin.split("/")[:2] != ["portvakt.audit", "v1"] or str(int(size)) != size:
        sys.exit("the checkpoint is not of a Portvakt decision log")
    return int(size), base64.b64decode(root, validate=True), rest


# The tree: RFC 6962, section 2.1. Only the right edge is kept, one hash for
# each perfect subtree.
def node(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def stored(tree, size, level, n):
    """Hash n of a level of the tree, from the tile files."""
    tile_level, inner = divmod(level, 8)
    tile, offset = divmod(n << inner, 256)
    name = "%03d" % (tile % 1000)
    while tile >= 1000:
        tile //= 1000
        name = "x%03d/" % (tile % 1000) + name
    path = os.path.join(tree, "tile", "8", str(tile_level), name)
    if not os.path.exists(path):
        path += ".p/%d" % ((size >> (8 * tile_level)) % 256)
    try:
        with open(path, "rb") as f:
            data = f.read()[32 * offset : 32 * (offset + (1 << inner))]
    except OSError as e:
        sys.exit(f"records were removed, and their hashes are not there: {e}")
    row = [data[i : i + 32] for i in range(0, len(data), 32)]
    while len(row) > 1:
        row = [node(row[i], row[i + 1]) for i in range(0, len(row), 2)]
    return row[0] if row else b""


def removal(line):
    """Up to which record a line says that retention was about to remove."""
    if b'"kind":"erase","actor":"retention"' not in line:
        return 0
    r = json.loads(line)
    return int(r["detail"].get("to", 0)) if (r["kind"], r["actor"]) == ("erase", "retention") else 0


def root_of(log, tree, size):
    days = [f for f in sorted(glob.glob(os.path.join(os.path.dirname(log) or ".", "audit-*.jsonl"))) if re.search(r"audit-\d{20}\.jsonl$", f)]
    lines = (line for f in days + [log] for line in open(f, "rb"))
    line = next(lines, b"")
    first = re.match(rb'\{"seq":(\d+),', line)
    n = removed = int(first[1]) - 1 if first else 0
    peaks = [stored(tree, size, k, (n >> k) - 1) for k in range(62, -1, -1) if n >> k & 1]
    told = 0
    while n < size:
        if not line.endswith(b"\n"):
            sys.exit(f"record {n + 1} is missing: {size} records were signed")
        if not line.startswith(b'{"seq":%d,' % (n + 1)):
            sys.exit(f"record {n + 1} is not where it must be")
        told = max(told, removal(line))
        h, k = hashlib.sha256(b"\x00" + line[:-1]).digest(), n
        while k & 1:
            h, k = node(peaks.pop(), h), k >> 1
        peaks.append(h)
        n += 1
        line = next(lines, b"")
    if told < removed:
        sys.exit(f"the log begins with record {removed + 1}, and no signed record says why")
    if not peaks:
        return hashlib.sha256(b"").digest(), removed
    h = peaks.pop()
    while peaks:
        h = node(peaks.pop(), h)
    return h, removed


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    log, checkpoint, key = sys.argv[1:]
    size, root, rest = read_checkpoint(checkpoint, read_key(key))
    got, removed = root_of(log, os.path.dirname(checkpoint) or ".", size)
    if got != root:
        sys.exit(f"the first {size} records are not the ones that were signed")
    if removed:
        print(f"records 1 to {removed} were removed by retention; their hashes are the signed ones")
    print(f"the first {size} records are the ones that were signed;", *rest)


main()
