#!/usr/bin/env python3
"""Checks a file that `patchwarden prove` wrote, without Patchwarden.

    verify-proof.py proof.json KEY [KEY ...]

A KEY is the log's public key as `patchwarden keys show` prints it (name+id+base64), got from somebody you trust. Needs
Python 3.8 and one package for Ed25519: `cryptography` (pip install cryptography, or Debian's python3-cryptography).

It shows that each entry of the change is in the log that the key signed, byte for byte, and that the payloads are those
the entries hold the digests of. Ends with 1, and says which entry is wrong, when that is not so.

What is checked follows RFC 9162 section 2 (Merkle tree), C2SP signed-note, tlog-checkpoint and tlog-proof.
"""

import base64
import hashlib
import json
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class Wrong(Exception):
    pass


def check(holds, what):
    if not holds:
        raise Wrong(what)


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


class Key:
    """A log's public key: name+id+base64(0x01 || 32 bytes)."""

    def __init__(self, text):
        self.text = text.strip()
        self.name, self.id, encoded = self.text.split("+", 2)
        raw = base64.b64decode(encoded, validate=True)
        check(len(raw) == 33 and raw[0] == 1, f"{text} is no Ed25519 key of a log")
        check(sha256(self.name.encode(), b"\n", raw)[:4].hex() == self.id, f"{text} does not have its own id")
        self.raw = raw
        self.public = Ed25519PublicKey.from_public_bytes(raw[1:])

    def under(self, origin):
        """The id it signs with as the key of a log of that name: a log that follows another keeps its key."""
        return sha256(origin.encode(), b"\n", self.raw)[:4].hex()

    def signed(self, signature, text):
        try:
            self.public.verify(signature, text)
            return True
        except InvalidSignature:
            return False


def trusted_keys(keys, changes):
    """The given keys, and every key that one of them signed for."""
    keys = list(keys)
    grown = True
    while grown:
        grown = False
        for change in changes:
            old, new = Key(change["old"]), Key(change["new"])
            known = [key.text for key in keys]
            text = f"patchwarden.log-key.v1\n{new.text}\n".encode()
            follows = old.name == new.name == change["origin"] and old.text in known and new.text not in known
            if follows and old.signed(base64.b64decode(change["signature"], validate=True), text):
                keys.append(new)
                grown = True
    return keys


def read_head(note, keys):
    """Origin, size and root of a signed head, once a trusted key has signed it."""
    text, separator, lines = note.rpartition("\n\n")
    check(separator and lines.endswith("\n"), "its head is no signed note")
    text += "\n"
    body = text.split("\n")
    check(len(body) >= 4, "its head has fewer than three lines")
    origin, size, root = body[0], int(body[1]), base64.b64decode(body[2], validate=True)
    is_signed = False
    for line in lines.splitlines():
        dash, name, encoded = line.split(" ")
        check(dash == "\u2014", "a line of its head is no signature")
        raw = base64.b64decode(encoded, validate=True)
        for key in keys:
            if name == origin and key.under(origin) == raw[:4].hex():
                check(key.signed(raw[4:], text.encode()), f"the signature of {name} does not fit its head")
                is_signed = True
    check(is_signed, "its head is not signed by a trusted key")
    return origin, size, root


def root_of(leaf, index, size, hashes):
    """RFC 9162 section 2.1.3.2."""
    check(0 <= index < size, "its number is beyond the head")
    at, last, value = index, size - 1, leaf
    for sibling in hashes:
        check(last > 0, "its proof is too long")
        if at & 1 or at == last:
            value = sha256(b"\x01", sibling, value)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            value = sha256(b"\x01", value, sibling)
        at, last = at >> 1, last >> 1
    check(last == 0, "its proof is too short")
    return value


def check_entry(entry, change, keys):
    envelope = entry["envelope"].encode()
    proof, separator, note = entry["proof"].partition("\n\n")
    check(separator, "its proof holds no head")
    lines = proof.split("\n")
    check(lines[0] == "c2sp.org/tlog-proof@v1", "its proof is in no form that is known here")
    lines = [line for line in lines[1:] if not line.startswith("extra ")]
    check(lines and lines[0] == f"index {entry['index']}", "its proof is that of another entry")
    hashes = [base64.b64decode(line, validate=True) for line in lines[1:]]
    check(all(len(value) == 32 for value in hashes), "its proof holds what is no hash")
    origin, size, root = read_head(note, keys)
    check(origin == entry["origin"], "its head is that of another log")
    check(root_of(sha256(b"\x00", envelope), entry["index"], size, hashes) == root, "it is not in the log")
    said = json.loads(envelope)
    check(said["index"] == entry["index"], "its envelope is that of another entry")
    check(said["change"] == change, "it belongs to another change")
    if entry["payload"] is not None:
        salt, payload = bytes.fromhex(entry["salt"]), entry["payload"].encode()
        digest = "sha256:" + sha256(b"patchwarden.payload.v1\x00", salt, payload).hex()
        check(digest == said["payload"], "its payload is not the one its envelope has the digest of")
    return said, size


def main(path, keys):
    with open(path, encoding="utf-8") as file:
        evidence = json.load(file)
    check(evidence["form"] == "patchwarden.proof.v1", f"{path} is in no form that is known here")
    keys = trusted_keys([Key(text) for text in keys], evidence["key_changes"])
    check(evidence["entries"], f"{path} proves nothing")
    attempt, last = None, None
    for entry in evidence["entries"]:
        try:
            said, size = check_entry(entry, evidence["change"], keys)
            if attempt is None:
                check(said["kind"] in ("attempt", "fold", "drift"), "the first entry is not the attempt")
                attempt = {"origin": entry["origin"], "index": entry["index"]}
            else:
                check(said["of"] == attempt, "it does not speak of the attempt")
        except Wrong as wrong:
            raise Wrong(f"entry {entry['index']} of {entry['origin']}: {wrong}") from None
        last = said
        what = "without its payload" if entry["payload"] is None else "with its payload"
        print(f"entry {entry['index']} of {entry['origin']}: {said['kind']} {said['result']}, {what}, among {size}")
    if last["kind"] == "attempt" and last["result"] == "allow":
        print("the file holds no outcome: whether it was applied is not shown")
    print(f"proved: change {evidence['change']}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(sys.argv[1], sys.argv[2:])
    except (Wrong, OSError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"not proved: {error}")
