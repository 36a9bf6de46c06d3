"""Another implementation of actors/BACKUP.md, on PyNaCl: opens OURS and seals its content anew as THEIRS.

    python3 backup.py OURS THEIRS PASSPHRASE_FILE
"""

import hashlib
import json
import struct
import sys

import nacl.bindings as sodium
from nacl.pwhash import argon2id

MAGIC = b"\x89ILBK\r\n\x1a"
HEADER = struct.Struct("<8sHHBBBBII16sIIQQ16s24s16s8s")
assert HEADER.size == 128
FINAL = sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL
OVERHEAD = sodium.crypto_secretstream_xchacha20poly1305_ABYTES


def blake2b(data, key=b""):
    return hashlib.blake2b(data, digest_size=32, key=key).digest()


def derive(passphrase, salt, passes, memory_kib):
    master = argon2id.kdf(32, passphrase, salt, opslimit=passes, memlimit=memory_kib * 1024)
    subkey = lambda purpose: blake2b(b"interlock derived key v1\0" + purpose, key=master)
    return subkey(b"backup stream"), subkey(b"backup header check")


def open_backup(data, passphrase):
    head = data[:128]
    (magic, version, length, kdf, lanes, cipher, zero, passes, memory_kib, salt, chunk, zero2, plain_bytes,
     created_ns, database_id, stream, check, total) = HEADER.unpack(head)
    assert (magic, version, length, kdf, lanes, cipher, zero, zero2) == (MAGIC, 1, 128, 1, 1, 1, 0, 0)
    assert total == blake2b(head[:120])[:8], "the header is damaged"
    stream_key, check_key = derive(passphrase, salt, passes, memory_kib)
    assert check == blake2b(check_key + head[:104])[:16], "the passphrase is wrong"
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, stream, stream_key)
    content, at, beside, tag = bytearray(), 128, head, None
    while at < len(data):
        assert tag != FINAL, "something follows the last chunk"
        sealed = data[at:at + chunk + OVERHEAD]
        plain, tag = sodium.crypto_secretstream_xchacha20poly1305_pull(state, sealed, beside)
        content += plain
        at, beside = at + len(sealed), b""
    assert tag == FINAL, "the file was cut"
    assert len(content) == plain_bytes
    return bytes(content), created_ns, database_id


def read_parts(content):
    (table_bytes,) = struct.unpack_from("<I", content)
    table = json.loads(content[4:4 + table_bytes])
    at = 4 + table_bytes
    parts = []
    for part in table["parts"]:
        body = content[at:at + part["bytes"]]
        at += part["bytes"]
        assert content[at:at + 32] == blake2b(body), part["name"]
        at += 32
        parts.append((part, body))
    assert at == len(content)
    return table, parts


def seal_backup(content, created_ns, database_id, passphrase):
    salt, passes, memory_kib, chunk = sodium.randombytes(16), 2, 19 << 10, 64 << 10
    stream_key, check_key = derive(passphrase, salt, passes, memory_kib)
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    stream = sodium.crypto_secretstream_xchacha20poly1305_init_push(state, stream_key)
    head = HEADER.pack(MAGIC, 1, 128, 1, 1, 1, 0, passes, memory_kib, salt, chunk, 0, len(content), created_ns,
                       database_id, stream, bytes(16), bytes(8))[:104]
    head += blake2b(check_key + head)[:16]
    head += blake2b(head)[:8]
    sealed, beside = bytearray(head), head
    for at in range(0, len(content), chunk):
        tag = FINAL if at + chunk >= len(content) else 0
        piece = content[at:at + chunk]
        sealed += sodium.crypto_secretstream_xchacha20poly1305_push(state, piece, beside, tag)
        beside = b""
    return bytes(sealed)


def main():
    ours, theirs, passphrase_file = sys.argv[1:]
    passphrase = open(passphrase_file, "rb").read().rstrip(b"\n")
    content, created_ns, database_id = open_backup(open(ours, "rb").read(), passphrase)
    table, parts = read_parts(content)
    database = next(body for part, body in parts if part["kind"] == "database")
    with open(theirs, "wb") as file:
        file.write(seal_backup(content, created_ns, database_id, passphrase))
    print(json.dumps({
        "parts": len(parts),
        "database_begins_plain": database.startswith(b"SQLite format 3"),
        "keys_are_there": len(table["data_key"]) == 64 == len(table["snapshot_key"]),
    }), flush=True)


if __name__ == "__main__":
    main()
