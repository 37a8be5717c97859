"""Signatures of model versions, laid out as cosign does, so that `cosign verify --key` and others can check them.

What is signed is a small text that names the version's digest. In a registry it is a layer of a manifest of its own,
which has the tag `sha256-<hex>.sig`; the signature is an annotation of that layer.
https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from nearmesh.errors import InvalidInput, SignatureError
from nearmesh.ids import check_digest
from nearmesh.oci import MANIFEST_TYPE, MAX_MANIFEST_BYTES, Descriptor, digest_bytes

PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
# As cosign names it where it refers to the signed manifest by `subject`.
ARTIFACT_TYPE = "application/vnd.dev.cosign.artifact.sig.v1+json"
ANNOTATION = "dev.cosignproject.cosign/signature"
MAX_PAYLOAD_BYTES = 64 * 1024

_KIND = "cosign container image signature"
_TAG = re.compile(r"sha256-([0-9a-f]{64})\.sig")


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature as it lies in a registry."""

    manifest: bytes
    # The payload and the config, by their digests.
    blobs: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        return digest_bytes(self.manifest)


def tag(digest: str) -> str:
    """Under which the signatures of a manifest are found, beside it."""
    return check_digest(digest).replace(":", "-") + ".sig"


def signed_by(tag: str) -> str | None:
    """The digest whose signatures have the tag; None for the tag of anything else."""
    match = _TAG.fullmatch(tag)
    return f"sha256:{match[1]}" if match else None


def payload(reference: str, digest: str) -> bytes:
    """What is signed: that `digest` was known as `reference`, a registry's name of the model without a tag."""
    critical = {
        "identity": {"docker-reference": reference},
        "image": {"docker-manifest-digest": check_digest(digest)},
        "type": _KIND,
    }
    return json.dumps({"critical": critical, "optional": None}, separators=(",", ":")).encode()


def sign(key: ec.EllipticCurvePrivateKey, payload: bytes) -> str:
    """ECDSA over SHA-256, in Base64. The same each time (RFC 6979): control planes with one key sign alike."""
    signature = key.sign(payload, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    return base64.b64encode(signature).decode()


def check(keys_pem: Iterable[str | bytes], digest: str, payload: bytes, signature: str) -> None:
    """Passes if one of the keys signed the payload, and the payload is of `digest`. Raises SignatureError."""
    keys = [_key(pem) for pem in keys_pem]
    if not keys:
        raise SignatureError(f"{digest}: there is no key to check its signature by")
    try:
        raw = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        raise SignatureError(f"{digest}: its signature {signature[:100]!r} is not Base64") from None
    if not any(_holds(key, payload, raw) for key in keys):
        raise SignatureError(
            f"{digest}: its signature is damaged, or not by any of the {len(keys)} keys that are trusted"
        )
    signed = _signed_digest(payload)
    if signed != digest:
        raise SignatureError(f"{digest}: its signature holds, but is of {signed}")


def attached(key: ec.EllipticCurvePrivateKey, reference: str, subject: Descriptor) -> Signed:
    """The signature of a manifest, as a manifest of its own that refers to it."""
    text = payload(reference, subject.digest)
    layer = Descriptor(PAYLOAD_TYPE, digest_bytes(text), len(text)).to_json()
    # cosign writes the config of an image without files.
    rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
    config = _json({"architecture": "", "os": "", "config": {}, "rootfs": rootfs})
    body = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": Descriptor(CONFIG_TYPE, digest_bytes(config), len(config)).to_json(),
        "layers": [layer | {"annotations": {ANNOTATION: sign(key, text)}}],
        "subject": Descriptor(subject.media_type, subject.digest, subject.size_bytes).to_json(),
    }
    return Signed(_json(body), {layer["digest"]: text, digest_bytes(config): config})


def signatures(manifest: bytes) -> list[tuple[Descriptor, str]]:
    """The payloads that a signature manifest names, each with its signature. Raises SignatureError."""
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise SignatureError(f"a signature manifest of {len(manifest)} bytes is above {MAX_MANIFEST_BYTES}")
    try:
        found = [
            (Descriptor(PAYLOAD_TYPE, check_digest(layer["digest"]), layer["size"]), layer["annotations"][ANNOTATION])
            for layer in json.loads(manifest)["layers"]
            if layer["mediaType"] == PAYLOAD_TYPE
        ]
        sound = all(
            type(text) is str and type(layer.size_bytes) is int and 0 <= layer.size_bytes <= MAX_PAYLOAD_BYTES
            for layer, text in found
        )
    except (ValueError, KeyError, TypeError, RecursionError, InvalidInput) as error:
        raise SignatureError(f"not a manifest of signatures: {error!r}") from None
    if not found or not sound:
        raise SignatureError("not a manifest of signatures: it names none, or too large a payload")
    return found


def public_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """What others check by, as `cosign verify --key` takes it."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _key(pem: str | bytes) -> ec.EllipticCurvePublicKey:
    data = pem.encode() if isinstance(pem, str) else pem
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise SignatureError("the key to check signatures by is not a public key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise SignatureError("the key to check signatures by is not an EC key")
    return key


def _holds(key: ec.EllipticCurvePublicKey, payload: bytes, signature: bytes) -> bool:
    try:
        key.verify(signature, payload, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _signed_digest(payload: bytes) -> str:
    try:
        critical = json.loads(payload)["critical"]
        if critical["type"] != _KIND:
            raise SignatureError(f"the signature is of {critical['type']!r}, not of an artifact")
        return check_digest(critical["image"]["docker-manifest-digest"])
    except (ValueError, KeyError, TypeError, RecursionError, InvalidInput) as error:
        raise SignatureError(f"what was signed does not name a digest: {error!r}") from None


def _json(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
