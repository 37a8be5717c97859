"""The read half of the OCI distribution API, over HTTPS, for whoever shows a certificate or a token of the mesh.

https://github.com/opencontainers/distribution-spec
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from nearmesh import signature
from nearmesh.errors import InvalidInput, MeshError, NotFound, PermissionDenied, Unauthenticated
from nearmesh.ids import MachineId, check_digest
from nearmesh.oci import INDEX_TYPE, MANIFEST_TYPE
from nearmesh.oci_layout import Layout
from nearmesh.tokens import TokenVerifier
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.catalog.signing import Signing
from nearmesh_controlplane.peers.mirror import ASKED_BY
from nearmesh_controlplane.web.peer import PEER_URIS

log = logging.getLogger(__name__)

# OCI error codes by HTTP status.
_CODES = {400: "DIGEST_INVALID", 401: "UNAUTHORIZED", 403: "DENIED", 404: "NAME_UNKNOWN", 405: "UNSUPPORTED"}
# What a path that ends so did not find.
_UNKNOWN = {"manifests": "MANIFEST_UNKNOWN", "blobs": "BLOB_UNKNOWN"}


# Copies what is missing of a model from other control planes, if there are any.
Fetch = Callable[[str], Awaitable[None]]


async def _from_nobody(_model: str) -> None:
    return None


class RegistryApi:
    """Serves manifests and tags of published versions, their signatures, and blobs.

    A blob is known by its digest alone: `blob` gives any that the layout holds, under the name of any published model,
    also one of a version whose upload was never finished. Whoever is let in may read every model anyway.
    """

    def __init__(self, layout: Layout, catalog: Catalog, signing: Signing, fetch: Fetch) -> None:
        """`fetch` looks elsewhere for what is missing of a model."""
        self._layout = layout
        self._catalog = catalog
        self._signing = signing
        self._fetch = fetch

    def routes(self) -> list[Route]:
        return [
            Route("/v2/", self.version),
            Route("/v2/{model}/manifests/{reference}", self.manifest),
            Route("/v2/{model}/blobs/{digest}", self.blob),
            Route("/v2/{model}/tags/list", self.tags),
            Route("/v2/{model}/referrers/{digest}", self.referrers),
        ]

    async def version(self, request: Request) -> Response:
        return JSONResponse({}, headers={"Docker-Distribution-Api-Version": "registry/2.0"})

    async def manifest(self, request: Request) -> Response:
        model, reference = request.path_params["model"], request.path_params["reference"]
        known = {v.digest for v in self._catalog.versions(model)}
        signed = signature.signed_by(reference)
        if reference in known:
            digest = reference
        elif signed in known:
            digest = (await self._signature(request, signed))["digest"]
        elif reference in await self._all_signatures(request, reference):
            digest = reference
        else:
            digest = self._catalog.version(model, reference).digest
        return _file(request, await self._path(request, digest), digest, MANIFEST_TYPE)

    async def blob(self, request: Request) -> Response:
        digest = check_digest(request.path_params["digest"])
        self._catalog.versions(request.path_params["model"])
        try:
            path = await self._path(request, digest)
        except NotFound:
            # A signature's, which another control plane made.
            await self._all_signatures(request, digest)
            path = self._layout.path(digest)
        return _file(request, path, digest, "application/octet-stream")

    async def tags(self, request: Request) -> Response:
        model = request.path_params["model"]
        last, most = request.query_params.get("last", ""), request.query_params.get("n", "")
        if most and not (most.isascii() and most.isdecimal() and len(most) < 7):
            raise InvalidInput(f"n={most!r} is not a number of tags")
        left = sorted(v.version for v in self._catalog.versions(model) if v.version > last)
        shown = left[: int(most)] if most else left
        more = {}
        if shown != left and shown:
            more["Link"] = f'</v2/{model}/tags/list?n={most}&last={quote(shown[-1], safe="")}>; rel="next"'
        return JSONResponse({"name": model, "tags": shown}, headers=more)

    async def referrers(self, request: Request) -> Response:
        """What refers to a manifest: a version's signature."""
        digest = check_digest(request.path_params["digest"])
        known = {v.digest for v in self._catalog.versions(request.path_params["model"])}
        kind = request.query_params.get("artifactType")
        found = [await self._signature(request, digest)] if digest in known else []
        body = {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [entry for entry in found if kind in (None, entry["artifactType"])],
        }
        filtered = {"OCI-Filters-Applied": "artifactType"} if kind else {}
        return Response(json.dumps(body), media_type=INDEX_TYPE, headers=filtered)

    async def _signature(self, request: Request, digest: str) -> dict[str, Any]:
        """The descriptor of a version's signature. Raises NotFound."""
        await self._path(request, digest)
        found = await asyncio.to_thread(self._signing.signed, request.path_params["model"], digest)
        return found.to_json() | {"artifactType": signature.ARTIFACT_TYPE}

    async def _all_signatures(self, request: Request, wanted: str) -> set[str]:
        """The digests of the model's signatures, all of which are there then; none unless a digest is `wanted`."""
        found = set()
        for version in self._catalog.versions(request.path_params["model"]) if wanted.startswith("sha256:") else ():
            with contextlib.suppress(NotFound):
                found.add((await self._signature(request, version.digest))["digest"])
        return found

    async def _path(self, request: Request, digest: str) -> Path:
        """Raises NotFound."""
        try:
            return self._layout.path(digest)
        except NotFound:
            if ASKED_BY in request.headers:
                raise
        await self._fetch(request.path_params["model"])
        return self._layout.path(digest)


class BlobResponse(FileResponse):
    """A file, or ranges of it, in pieces that keep up with a fast network."""

    chunk_size = 1024 * 1024


def _file(request: Request, path: Path, digest: str, media_type: str) -> Response:
    # What a digest names never changes, so that it is the best of entity tags.
    headers = {"Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
    if _has_it(request.headers, digest):
        return Response(status_code=304, headers=headers)
    return BlobResponse(path, media_type=media_type, headers=headers)


def _has_it(headers: Mapping[str, str], digest: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")]
    return f'"{digest}"' in tags or "*" in tags


class Door:
    """Lets in machines of the mesh that were not removed, and holders of a bearer token.

    Tools for registries speak of users and passwords: there the token is the password, and the user may be anybody.
    """

    def __init__(
        self, app: ASGIApp, mesh: str, verifier: TokenVerifier, removed: Callable[[], Collection[str]]
    ) -> None:
        self._app = app
        self._mesh = mesh
        self._verifier = verifier
        self._removed = removed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._admit(scope)
            except MeshError as error:
                log.info("refused client=%s path=%s: %s", scope.get("client"), scope["path"], error.message)
                status = 403 if isinstance(error, PermissionDenied) else 401
                await _error(status, error.message)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        for uri in scope.get(PEER_URIS, ()):
            who = MachineId.parse(uri)
            if who.mesh == self._mesh and who.id not in self._removed():
                return
            raise PermissionDenied(f"{uri} is not, or no longer, of mesh {self._mesh}")
        headers = dict(scope["headers"])
        self._verifier.access(_token(headers.get(b"authorization", b"").decode("latin-1")))


def _token(authorization: str) -> str:
    """The token that the header carries. Raises Unauthenticated."""
    scheme, _, shown = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return shown.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(shown.strip(), validate=True).decode("latin-1").partition(":")[2]
        except binascii.Error:
            raise Unauthenticated("the user and password are not in Base64") from None
    raise Unauthenticated(
        "send 'Authorization: Bearer TOKEN', or the token as the password of any user, or a certificate of the mesh"
    )


def _error(status: int, message: str, code: str | None = None) -> Response:
    body = {"errors": [{"code": code or _CODES.get(status, "UNKNOWN"), "message": message}]}
    # What makes registry tools ask for, or show, a password.
    asked = {"WWW-Authenticate": 'Basic realm="nearmesh"'} if status == 401 else {}
    return Response(json.dumps(body), status_code=status, media_type="application/json", headers=asked)


def _mesh_error(request: Request, error: Any) -> Response:
    status = 404 if isinstance(error, NotFound) else 400 if isinstance(error, InvalidInput) else 500
    return _error(status, error.message, _UNKNOWN.get(request.url.path.split("/")[-2]) if status == 404 else None)


def _http_error(_request: Request, error: Any) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail)


def application(
    layout: Layout,
    catalog: Catalog,
    signing: Signing,
    *,
    mesh: str,
    verifier: TokenVerifier,
    removed: Callable[[], Collection[str]],
    fetch: Fetch = _from_nobody,
    more: Sequence[Route] = (),
) -> ASGIApp:
    """Everything that the HTTPS listener serves: the pull API, and what is given as `more`."""
    api = RegistryApi(layout, catalog, signing, fetch)
    app = Starlette(
        routes=[*api.routes(), *more], exception_handlers={MeshError: _mesh_error, HTTPException: _http_error}
    )
    return Door(app, mesh, verifier, removed)
