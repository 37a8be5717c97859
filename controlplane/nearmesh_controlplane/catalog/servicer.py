"""CatalogService: publish, list, deploy, roll back."""

from __future__ import annotations

import asyncio
import functools
import logging
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from nearmesh import config
from nearmesh.errors import ConfigError, InvalidInput, NotFound, PackageError, TooLarge
from nearmesh.oci import Manifest, digest_bytes
from nearmesh.package import MANIFEST_FILE, Package
from nearmesh.rpc import caller
from nearmesh.v1 import catalog_pb2 as pb
from nearmesh.v1 import catalog_pb2_grpc
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.catalog.catalog import Catalog, Deployment, Version
from nearmesh_controlplane.catalog.layout import BlobWriter, Layout
from nearmesh_controlplane.registry.nodes import Registry

log = logging.getLogger(__name__)


class CatalogServicer(catalog_pb2_grpc.CatalogServiceServicer):
    """Answers operators and apps about models."""

    def __init__(self, catalog: Catalog, layout: Layout, registry: Registry, audit: Audit, max_blob_bytes: int) -> None:
        self._catalog = catalog
        self._layout = layout
        self._registry = registry
        self._audit = audit
        self._max_blob_bytes = max_blob_bytes

    async def Publish(self, requests: AsyncIterator[pb.PublishRequest], context: Any) -> pb.ModelVersion:
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("part") != "manifest_json":
            raise InvalidInput("publishing begins with the manifest")
        manifest, digest = Manifest.from_bytes(first.manifest_json), digest_bytes(first.manifest_json)
        self._check(manifest)
        known = self._catalog.check_new(manifest, digest)
        if known:
            return _version_message(known)
        await self._receive(manifest, requests)
        package = self._package(manifest)
        ref = f"{manifest.model}:{manifest.version}"
        store = functools.partial(asyncio.to_thread, self._layout.add_manifest, first.manifest_json, digest, ref)
        version = await self._catalog.add(manifest, digest, package.route, store)
        await self._audit.record(caller(), "publish", f"{version.model}@{version.version}", digest)
        return _version_message(version)

    def _check(self, manifest: Manifest) -> None:
        for blob in manifest.blobs:
            if blob.size_bytes > self._max_blob_bytes:
                raise TooLarge(
                    f"{blob.title or blob.digest} has {blob.size_bytes} bytes; max_blob_bytes is {self._max_blob_bytes}"
                )

    async def _receive(self, manifest: Manifest, requests: AsyncIterator[pb.PublishRequest]) -> None:
        """Stores every blob of the manifest that is not there yet."""
        missing = {blob.digest: blob for blob in manifest.blobs if not self._layout.has(blob.digest)}
        writer: BlobWriter | None = None
        current = ""
        try:
            async for request in requests:
                part = request.blob
                if part.digest != current:
                    await _commit(writer)
                    current = part.digest
                    writer = self._layout.writer(missing.pop(current)) if current in missing else None
                if writer:
                    await asyncio.to_thread(writer.write, part.data)
            await _commit(writer)
        finally:
            if writer:
                writer.abandon()
        if missing:
            names = ", ".join(blob.title or blob.digest for blob in missing.values())
            raise InvalidInput(f"the upload ended without {names}; nothing was published")

    def _package(self, manifest: Manifest) -> Package:
        """The version's model.toml, checked against its manifest. Raises PackageError."""
        file = next((file for file in manifest.files if file.title == MANIFEST_FILE), None)
        if file is None:
            raise PackageError(f"the version has no {MANIFEST_FILE}")
        try:
            data = tomllib.loads(self._layout.path(file.digest).read_text("utf-8"))
            package = config.parse(Package, data, where=MANIFEST_FILE, base=Path())
        except (ConfigError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise PackageError(str(error)) from None
        if (package.name, package.version) != (manifest.model, manifest.version):
            raise PackageError(
                f"{MANIFEST_FILE} is of {package.name}@{package.version}, "
                f"the manifest of {manifest.model}@{manifest.version}"
            )
        return package

    async def List(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[self._model(name) for name in self._catalog.models()])

    async def Get(self, request: pb.GetModelRequest, context: Any) -> pb.Model:
        return self._model(request.model)

    async def Deploy(self, request: pb.DeployRequest, context: Any) -> pb.Deployment:
        known = {node.site for node in self._registry.serving_nodes()}
        for site in request.sites:
            if site not in known:
                raise NotFound(f"no site {site!r}; the mesh has {', '.join(sorted(known)) or 'none yet'}")
        deployment = await self._catalog.deploy(request.model, request.version, tuple(request.sites), str(caller()))
        await self._record("deploy", deployment)
        return _deployment_message(deployment)

    async def Rollback(self, request: pb.RollbackRequest, context: Any) -> pb.Deployment:
        deployment = await self._catalog.rollback(request.model, str(caller()))
        await self._record("rollback", deployment)
        return _deployment_message(deployment)

    async def _record(self, action: str, deployment: Deployment) -> None:
        sites = ", ".join(deployment.sites) or "all sites"
        await self._audit.record(caller(), action, f"{deployment.model}@{deployment.version}", sites)

    def _model(self, name: str) -> pb.Model:
        policy = self._catalog.policy(name)
        return pb.Model(
            name=name,
            versions=[_version_message(version) for version in self._catalog.versions(name)],
            deployments=[_deployment_message(deployment) for deployment in self._catalog.deployments(name)],
            replicas=self._replicas(name),
            objective=policy.objective,
            deadline_ms=policy.deadline_ms,
        )

    def _replicas(self, model: str) -> list[pb.Replica]:
        return [
            pb.Replica(
                node=node.id,
                version=self._catalog.version_of(status.digest),
                status=status,
                live=self._registry.presence(node.id) == "live",
            )
            for node in self._registry.serving_nodes()
            for status in self._registry.replicas(node.id).values()
            if status.model == model
        ]


async def _commit(writer: BlobWriter | None) -> None:
    if writer:
        await asyncio.to_thread(writer.commit)


def _version_message(version: Version) -> pb.ModelVersion:
    return pb.ModelVersion(
        model=version.model,
        version=version.version,
        digest=version.digest,
        size_bytes=version.size_bytes,
        created_at_s=version.created_at_s,
    )


def _deployment_message(deployment: Deployment) -> pb.Deployment:
    return pb.Deployment(
        model=deployment.model,
        version=deployment.version,
        digest=deployment.digest,
        sites=deployment.sites,
        created_at_s=deployment.created_at_s,
        actor=deployment.actor,
    )
