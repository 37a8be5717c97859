"""The node's certificate key as Flower's programs take it: by it the SuperNode proves which member of the mesh it is.

A renewal certifies the same key again; a node that joins anew has another one, and is another process by then.
"""

from __future__ import annotations

from functools import lru_cache

from cryptography.hazmat.primitives import serialization

from nearmesh.ssh_keys import ssh_line
from nearmesh.tls import key_from_pem


def private_openssh(key_pem: bytes) -> bytes:
    """OpenSSH's own format, unencrypted: the file's mode guards it."""
    return key_from_pem(key_pem).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


@lru_cache(maxsize=1)
def public_openssh(key_pem: bytes) -> str:
    """One line: "ecdsa-sha2-nistp256 AAAA..."."""
    return ssh_line(key_from_pem(key_pem).public_key())
