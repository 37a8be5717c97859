"""One layer of an artifact in a registry, by the artifact's digest and the layer's title."""

from __future__ import annotations

import json
from typing import Any

from nearmesh.errors import DigestMismatch, PackageError
from nearmesh.oci import FILEPATH, TITLE
from nearmesh.package import Source
from nearmesh.packaging.sources.download import Remote, needs_httpx


def registry_file(source: Source) -> Remote:
    """Where the layer lies. Logins come from where `docker login` keeps them.

    Raises PackageError, NotFound, PermissionDenied, Unauthenticated, Unreachable, and DigestMismatch for a layer of
    other bytes.
    """
    assert source.oci is not None and source.file is not None and source.sha256 is not None
    needs_httpx()
    from nearmesh.registries.client import RegistryClient
    from nearmesh.registries.credentials import find
    from nearmesh.registries.reference import SCHEME, Reference

    reference = Reference.parse(SCHEME + source.oci.removeprefix(SCHEME))
    with RegistryClient(reference.url, reference.name, login=find(reference.host)) as registry:
        digest = _layer(source.oci, _json(source.oci, registry.manifest(reference.digest)), source.file)
        # After the manifest, what the registry wants to be shown is known.
        url, headers = registry.place(digest)
    if digest != f"sha256:{source.sha256}":
        raise DigestMismatch(
            f"{source.file} of {source.oci} has sha256 {digest.removeprefix('sha256:')}, "
            f"model.toml expects {source.sha256}"
        )
    return Remote(name=f"{source.file} of {reference.host}/{reference.name}", url=url, headers=headers)


def _json(what: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{what}: its manifest is not JSON: {error}") from None


def _layer(what: str, manifest: Any, title: str) -> str:
    """The digest of the layer with a title: what oras writes, or what the CNCF's ModelPack says."""
    layers = manifest.get("layers") if isinstance(manifest, dict) else None
    if not isinstance(layers, list):
        raise PackageError(f"{what} is no manifest with layers; name the digest of one artifact, not of an index")
    digests: dict[str, str] = {}
    for layer in layers:
        names = layer.get("annotations") if isinstance(layer, dict) else None
        if isinstance(names, dict):
            digests |= {str(names[key]): str(layer.get("digest")) for key in (TITLE, FILEPATH) if key in names}
    if title not in digests:
        raise PackageError(f"{what} has no layer titled {title!r}; it has {', '.join(sorted(digests)) or 'none'}")
    return digests[title]
