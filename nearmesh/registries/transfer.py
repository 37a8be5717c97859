"""A version from one registry to another, with its signatures; and the proof that it is what was signed."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from nearmesh import signature
from nearmesh.client.upload import OnProgress
from nearmesh.errors import DigestMismatch, NotFound, PackageError, SignatureError
from nearmesh.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor, Manifest, digest_bytes
from nearmesh.registries.client import Opened, RegistryClient


class Target(Protocol):
    """Where a version is copied to: a registry or a folder."""

    def has(self, digest: str) -> bool: ...

    def upload(self, blob: Descriptor, opened: Opened) -> None: ...

    def manifest(self, reference: str) -> bytes: ...

    def put_manifest(self, reference: str, data: bytes, media_type: str = MANIFEST_TYPE) -> bool:
        """Whether the place keeps track of what it refers to."""
        ...


def push(source: RegistryClient, digest: str, target: Target, tag: str, on_progress: OnProgress) -> bool:
    """Copies a version, as it is, and its signatures; whether it has any. Raises NotFound, DigestMismatch."""
    data = source.manifest(digest)
    _copy_blobs(source, target, Manifest.from_bytes(data).blobs, on_progress)
    target.put_manifest(tag, data)
    return _push_signatures(source, target, digest)


def check_signature(source: RegistryClient, digest: str, keys_pem: Iterable[str]) -> None:
    """Passes if one of the keys signed the version. Raises SignatureError that says what is wrong with each."""
    keys = list(keys_pem)
    try:
        found = signature.signatures(source.manifest(signature.tag(digest)))
    except NotFound:
        raise SignatureError(f"{source}@{digest} is not signed: there is no {signature.tag(digest)}") from None
    wrong = []
    for blob, signed in found:
        try:
            signature.check(keys, digest, b"".join(source.pieces(blob)), signed)
            return
        except (SignatureError, NotFound, DigestMismatch) as error:
            wrong.append(error.message)
    raise SignatureError("; ".join(wrong))


def check_files(source: RegistryClient, manifest: Manifest, on_progress: OnProgress) -> None:
    """Reads every blob of a version. Raises NotFound, DigestMismatch."""
    done = 0
    for blob in manifest.blobs:
        for piece in source.pieces(blob):
            done += len(piece)
            on_progress(done, manifest.size_bytes)


def _copy_blobs(source: RegistryClient, target: Target, blobs: Iterable[Descriptor], on_progress: OnProgress) -> None:
    todo = [blob for blob in blobs if not target.has(blob.digest)]
    done, total = 0, sum(blob.size_bytes for blob in todo)
    on_progress(done, total)
    for blob in todo:
        tell = functools.partial(_tell, on_progress, done, total)
        target.upload(blob, functools.partial(_counted, source, blob, tell))
        done += blob.size_bytes


def _tell(on_progress: OnProgress, before: int, total: int, of_it: int) -> None:
    on_progress(before + of_it, total)


def _counted(source: RegistryClient, blob: Descriptor, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    """A blob's bytes, told as they pass."""
    done = 0
    for piece in source.pieces(blob):
        yield piece
        done += len(piece)
        on_bytes(done)


def _push_signatures(source: RegistryClient, target: Target, digest: str) -> bool:
    """Beside the version, under cosign's tag; and where it is found by what it refers to."""
    tag = signature.tag(digest)
    try:
        data = source.manifest(tag)
    except NotFound:
        return False
    body = _body(data)
    _copy_blobs(source, target, _blobs(body), lambda done, total: None)
    knows_referrers = target.put_manifest(tag, data)
    if body.get("subject") and not knows_referrers:
        _list_referrer(target, digest, data, body)
    return True


def _list_referrer(target: Target, digest: str, data: bytes, body: Mapping[str, Any]) -> None:
    """What the distribution specification has clients do where a registry has no referrers API: an index that has the
    digest of what is referred to as its tag."""
    tag = digest.replace(":", "-")
    entry = Descriptor(MANIFEST_TYPE, digest_bytes(data), len(data)).to_json()
    entry["artifactType"] = body.get("artifactType", "")
    try:
        index = _body(target.manifest(tag))
    except NotFound:
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}
    listed = index.get("manifests", [])
    if not isinstance(listed, list) or not all(isinstance(other, dict) for other in listed):
        raise PackageError(f"{tag} lists what refers to {digest}, and is no OCI index; remove that tag there")
    others = [other for other in listed if other.get("digest") != entry["digest"]]
    text = json.dumps(index | {"manifests": [*others, entry]}, sort_keys=True, separators=(",", ":"))
    target.put_manifest(tag, text.encode(), INDEX_TYPE)


def _blobs(body: Mapping[str, Any]) -> list[Descriptor]:
    try:
        return [Descriptor.from_json(blob) for blob in (body["config"], *body["layers"])]
    except (KeyError, TypeError) as error:
        raise PackageError(f"not an OCI manifest: {error!r}") from None


def _body(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise PackageError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise PackageError("not an OCI manifest")
    return found
