"""Signatures of versions, kept beside them: whoever was given keys loads nothing that none of them signed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nearmesh import signature
from nearmesh.errors import DigestMismatch, NotFound, SignatureError
from nearmesh.oci import Descriptor, digest_bytes
from nearmesh_agent.store.baked import Baked
from nearmesh_agent.store.source import Registry, read_all

# A version may be signed by several; so many are looked at.
MOST = 16


@dataclass(frozen=True, slots=True)
class Proof:
    """What was signed, and the signature."""

    payload: bytes
    signature: str


def check(keys_pem: Sequence[str], digest: str, proofs: Sequence[Proof]) -> None:
    """Passes if one of them holds, or no keys were given. Raises SignatureError."""
    if not keys_pem:
        return
    why: SignatureError | None = None
    for proof in proofs:
        try:
            signature.check(keys_pem, digest, proof.payload, proof.signature)
            return
        except SignatureError as error:
            why = error
    raise why or SignatureError(f"{digest} has no signature; publish it through the control plane, which signs it")


def from_registry(registry: Registry, digest: str) -> list[Proof]:
    """Blocking. Raises SignatureError, Unreachable."""
    try:
        manifest = registry.manifest(signature.tag(digest))
        return _read(manifest, lambda payload: read_all(registry, payload.digest, payload.size_bytes))
    except (NotFound, DigestMismatch) as error:
        raise SignatureError(f"{digest} has no signature in the registry: {error.message}") from None


def from_image(baked: Baked, digest: str) -> list[Proof]:
    """Blocking. Raises NotFound, SignatureError."""
    return _read(baked.tagged(signature.tag(digest)), lambda payload: baked.small(payload.digest) or b"")


def _read(manifest: bytes, get: Callable[[Descriptor], bytes]) -> list[Proof]:
    found = []
    for payload, text in signature.signatures(manifest)[:MOST]:
        data = get(payload)
        if digest_bytes(data) == payload.digest:
            found.append(Proof(data, text))
    return found


def to_bytes(proofs: Sequence[Proof]) -> bytes:
    entries = [[base64.b64encode(proof.payload).decode(), proof.signature] for proof in proofs]
    return json.dumps(entries).encode()


def from_bytes(data: bytes) -> list[Proof]:
    """What is damaged proves nothing."""
    try:
        return [Proof(base64.b64decode(payload), str(text)) for payload, text in json.loads(data)]
    except (ValueError, TypeError):
        return []
