"""The read half of the OCI distribution API, over HTTPS, for whoever shows a certificate or a token of the mesh."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from nearmesh.errors import InvalidInput, MeshError, NotFound, PermissionDenied, Unauthenticated
from nearmesh.ids import MachineId, check_digest
from nearmesh.oci import MANIFEST_TYPE
from nearmesh.tokens import TokenVerifier
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.catalog.layout import Layout
from nearmesh_controlplane.peers.mirror import ASKED_BY
from nearmesh_controlplane.web.peer import PEER_URIS

log = logging.getLogger(__name__)

# OCI error codes by HTTP status.
_CODES = {400: "DIGEST_INVALID", 401: "UNAUTHORIZED", 403: "DENIED", 404: "NAME_UNKNOWN", 405: "UNSUPPORTED"}


# Copies what is missing of a model from other control planes, if there are any.
Fetch = Callable[[str], Awaitable[None]]


async def _from_nobody(_model: str) -> None:
    return None


class RegistryApi:
    """Serves manifests and tags of published versions, and blobs.

    A blob is known by its digest alone: `blob` gives any that the layout holds, under the name of any published model,
    also one of a version whose upload was never finished. Whoever is let in may read every model anyway.
    """

    def __init__(self, layout: Layout, catalog: Catalog, fetch: Fetch) -> None:
        """`fetch` looks elsewhere for what is missing of a model."""
        self._layout = layout
        self._catalog = catalog
        self._fetch = fetch

    def routes(self) -> list[Route]:
        return [
            Route("/v2/", self.version),
            Route("/v2/{model}/manifests/{reference}", self.manifest),
            Route("/v2/{model}/blobs/{digest}", self.blob),
            Route("/v2/{model}/tags/list", self.tags),
        ]

    async def version(self, request: Request) -> Response:
        return JSONResponse({}, headers={"Docker-Distribution-Api-Version": "registry/2.0"})

    async def manifest(self, request: Request) -> Response:
        model, reference = request.path_params["model"], request.path_params["reference"]
        known = {v.digest for v in self._catalog.versions(model)}
        digest = reference if reference in known else self._catalog.version(model, reference).digest
        return _file(await self._path(request, digest), digest, MANIFEST_TYPE)

    async def blob(self, request: Request) -> Response:
        digest = check_digest(request.path_params["digest"])
        self._catalog.versions(request.path_params["model"])
        return _file(await self._path(request, digest), digest, "application/octet-stream")

    async def _path(self, request: Request, digest: str) -> Path:
        """Raises NotFound."""
        try:
            return self._layout.path(digest)
        except NotFound:
            if ASKED_BY in request.headers:
                raise
        await self._fetch(request.path_params["model"])
        return self._layout.path(digest)

    async def tags(self, request: Request) -> Response:
        model = request.path_params["model"]
        return JSONResponse({"name": model, "tags": [v.version for v in self._catalog.versions(model)]})


def _file(path: Path, digest: str, media_type: str) -> Response:
    return FileResponse(path, media_type=media_type, headers={"Docker-Content-Digest": digest})


class Door:
    """Lets in machines of the mesh that were not removed, and holders of a bearer token."""

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
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("send 'Authorization: Bearer TOKEN', or a certificate of the mesh")
        self._verifier.access(token.strip())


def _error(status: int, message: str) -> Response:
    body = {"errors": [{"code": _CODES.get(status, "UNKNOWN"), "message": message}]}
    return Response(json.dumps(body), status_code=status, media_type="application/json")


def _mesh_error(_request: Request, error: Any) -> Response:
    status = 404 if isinstance(error, NotFound) else 400 if isinstance(error, InvalidInput) else 500
    return _error(status, error.message)


def _http_error(_request: Request, error: Any) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail)


def application(
    layout: Layout,
    catalog: Catalog,
    *,
    mesh: str,
    verifier: TokenVerifier,
    removed: Callable[[], Collection[str]],
    fetch: Fetch = _from_nobody,
    more: Sequence[Route] = (),
) -> ASGIApp:
    """Everything that the HTTPS listener serves: the pull API, and what is given as `more`."""
    api = RegistryApi(layout, catalog, fetch)
    app = Starlette(
        routes=[*api.routes(), *more], exception_handlers={MeshError: _mesh_error, HTTPException: _http_error}
    )
    return Door(app, mesh, verifier, removed)
