"""One layer of an artifact in a registry, by the artifact's digest and the layer's title. Reads what anybody may."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nearmesh.errors import DigestMismatch, PackageError, Unreachable
from nearmesh.oci import INDEX_TYPE, MANIFEST_TYPE, MAX_MANIFEST_BYTES, TITLE, digest_bytes
from nearmesh.package import Source
from nearmesh.packaging.sources.download import Remote, web_client

if TYPE_CHECKING:
    import httpx

# Titles of layers: what oras writes, and what the CNCF's ModelPack says.
_TITLES = (TITLE, "org.cncf.model.filepath")
_LOOPBACK = ("localhost", "127.0.0.1")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_REMEDIES = {
    401: "the registry asks for a login, which this source has none for: `nearmesh model pull` it, or use a file",
    403: "the registry refuses it to those without a login",
    404: "check the registry, the name and the digest",
}


def registry_file(source: Source) -> Remote:
    """Where the layer lies. Raises PackageError, Unreachable, and DigestMismatch for a layer of other bytes."""
    assert source.oci is not None and source.file is not None and source.sha256 is not None
    place, _, digest = source.oci.partition("@")
    host, _, name = place.partition("/")
    scheme = "http" if host.partition(":")[0] in _LOOPBACK else "https"
    base = f"{scheme}://{host}/v2/{name}"
    with web_client() as client:
        headers, manifest = _manifest(client, source.oci, f"{base}/manifests/{digest}", digest)
    layer = _layer(source.oci, manifest, source.file)
    if layer != f"sha256:{source.sha256}":
        raise DigestMismatch(
            f"{source.file} of {source.oci} has sha256 {layer.removeprefix('sha256:')}, "
            f"model.toml expects {source.sha256}"
        )
    return Remote(
        name=f"{source.file} of {host}/{name}", url=f"{base}/blobs/{layer}", headers=headers, remedies=_REMEDIES
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a registry says, read up to a limit."""

    status: int
    headers: Mapping[str, str]
    content: bytes


def _manifest(client: httpx.Client, what: str, url: str, digest: str) -> tuple[dict[str, str], Any]:
    """The headers that the registry wants to see, and the manifest."""
    accept = {"accept": f"{MANIFEST_TYPE}, {INDEX_TYPE}"}
    headers: dict[str, str] = {}
    answer = _get(client, what, url, accept)
    if answer.status == 401:
        headers = _anonymous(client, what, answer.headers.get("www-authenticate", ""))
        answer = _get(client, what, url, accept | headers)
    if answer.status != 200:
        remedy = _REMEDIES.get(answer.status, "try again later")
        raise PackageError(f"{what}: the registry answers {answer.status}; {remedy}")
    if digest_bytes(answer.content) != digest:
        raise DigestMismatch(f"{what}: the registry gave a manifest of {digest_bytes(answer.content)}")
    return headers, _json(what, answer.content)


def _get(
    client: httpx.Client, what: str, url: str, headers: Mapping[str, str], params: Mapping[str, str] | None = None
) -> _Answer:
    import httpx

    content = bytearray()
    try:
        with client.stream("GET", url, headers=headers, params=params) as response:
            for piece in response.iter_bytes():
                content += piece
                if len(content) > MAX_MANIFEST_BYTES:
                    raise PackageError(f"{what}: {response.url} is longer than {MAX_MANIFEST_BYTES} bytes")
            return _Answer(response.status_code, response.headers, bytes(content))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        said = str(error) or type(error).__name__
        raise Unreachable(f"{what}: {said}; check the network and the registry's name") from None


def _anonymous(client: httpx.Client, what: str, challenge: str) -> dict[str, str]:
    """The token that registries give to anybody, as the distribution specification has it; none if there is none."""
    kind, _, rest = challenge.partition(" ")
    found = dict(_CHALLENGE.findall(rest))
    if kind.lower() != "bearer" or "realm" not in found:
        return {}
    asked = {key: found[key] for key in ("service", "scope") if key in found}
    answer = _get(client, what, found["realm"], {}, asked)
    body = _json(what, answer.content) if answer.status == 200 else None
    token = body.get("token") or body.get("access_token") if isinstance(body, dict) else None
    return {"authorization": f"Bearer {token}"} if isinstance(token, str) else {}


def _json(what: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{what}: the registry's answer is not JSON: {error}") from None


def _layer(what: str, manifest: Any, title: str) -> str:
    """The digest of the layer with a title."""
    layers = manifest.get("layers") if isinstance(manifest, dict) else None
    if not isinstance(layers, list):
        raise PackageError(f"{what} is no manifest with layers; name the digest of one artifact, not of an index")
    digests: dict[str, str] = {}
    for layer in layers:
        names = layer.get("annotations") if isinstance(layer, dict) else None
        if isinstance(names, dict):
            digests |= {str(names[key]): str(layer.get("digest")) for key in _TITLES if key in names}
    if title not in digests:
        raise PackageError(f"{what} has no layer titled {title!r}; it has {', '.join(sorted(digests)) or 'none'}")
    return digests[title]
