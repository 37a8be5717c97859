"""A machine's public key in the one line that OpenSSH writes, which is how Flower's SuperNodes are known."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from nearmesh.errors import InvalidInput

# A P-256 key's line has 141; what follows the key is a remark.
MAX_CHARACTERS = 500


def ssh_line(key: ec.EllipticCurvePublicKey) -> str:
    """`ecdsa-sha2-nistp256 AAAA...`, without a remark: the same key is the same line."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def key_of(line: str) -> ec.EllipticCurvePublicKey:
    """The key in the line, which may end in a remark. Raises InvalidInput for what is no ECDSA P-256 key."""
    if len(line) > MAX_CHARACTERS:
        raise InvalidInput(f"an OpenSSH public key of {len(line)} characters; at most {MAX_CHARACTERS} are read")
    try:
        key = load_ssh_public_key(line.strip().encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidInput(f"{line[:60]!r} is not an OpenSSH public key: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInput(f"{line[:60]!r} is not an ECDSA P-256 key")
    return key
