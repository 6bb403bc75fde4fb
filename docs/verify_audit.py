#!/usr/bin/env python3
"""Check a Portvakt decision log without any of Portvakt's code.

  verify_audit.py AUDIT.JSONL CHECKPOINT VERIFIER.KEY

Written from docs/audit.md alone, with Python's standard library: a second
opinion, and an example for whoever writes another. Exit code 0: the first
records of the log, as many as the checkpoint says, are the ones that were
signed. Exit code 1: they are not, or the signature is not the key's.
"""

import base64
import hashlib
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
    if origin != "portvakt.audit/v1" or str(int(size)) != size:
        sys.exit("the checkpoint is not of a Portvakt decision log")
    return int(size), base64.b64decode(root, validate=True), rest


# The tree: RFC 6962, section 2.1. Only the right edge is kept, one hash for
# each perfect subtree.
def node(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(path, size):
    peaks, n = [], 0
    with open(path, "rb") as log:
        while n < size:
            line = log.readline()
            if not line.endswith(b"\n"):
                sys.exit(f"record {n + 1} is missing: {size} records were signed")
            if not line.startswith(b'{"seq":%d,' % (n + 1)):
                sys.exit(f"record {n + 1} is not where it must be")
            h, k = hashlib.sha256(b"\x00" + line[:-1]).digest(), n
            while k & 1:
                h, k = node(peaks.pop(), h), k >> 1
            peaks.append(h)
            n += 1
    if not peaks:
        return hashlib.sha256(b"").digest()
    h = peaks.pop()
    while peaks:
        h = node(peaks.pop(), h)
    return h


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    log, checkpoint, key = sys.argv[1:]
    size, root, rest = read_checkpoint(checkpoint, read_key(key))
    if root_of(log, size) != root:
        sys.exit(f"the first {size} records are not the ones that were signed")
    print(f"the first {size} records are the ones that were signed;", *rest)


main()
