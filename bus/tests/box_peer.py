"""Compares boxes with libsodium: reads `key nonce content box` in hex, one per line.

Prints a box of its own for each, under the next nonce, to be opened by the other side.
"""

import sys

import nacl.bindings

for line in sys.stdin:
    key, nonce, content, sealed = (bytes.fromhex(field) for field in line.split(" "))
    if nacl.bindings.crypto_box_afternm(content, nonce, key) != sealed:
        sys.exit(f"libsodium seals {len(content)} bytes differently")
    if nacl.bindings.crypto_box_open_afternm(sealed, nonce, key) != content:
        sys.exit(f"libsodium opens {len(content)} bytes differently")
    following = (int.from_bytes(nonce, "big") + 1).to_bytes(24, "big")
    print(nacl.bindings.crypto_box_afternm(content, following, key).hex(), flush=True)
