"""CatalogService: publish, list, deploy, roll back."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from nearmesh import package as packages
from nearmesh.errors import InvalidInput, NotFound, PackageError, TooLarge
from nearmesh.oci import MANIFEST_TYPE, Descriptor, Manifest, digest_bytes
from nearmesh.package import MANIFEST_FILE, Package
from nearmesh.rpc import caller
from nearmesh.v1 import catalog_pb2 as pb
from nearmesh.v1 import catalog_pb2_grpc
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.catalog.catalog import Catalog, Deployment, Version
from nearmesh_controlplane.catalog.layout import BlobWriter, Layout
from nearmesh_controlplane.database import whole
from nearmesh_controlplane.registry.nodes import Registry

log = logging.getLogger(__name__)


Copied = Callable[[Version], Awaitable[None]]


async def _by_nobody(_version: Version) -> None:
    return None


class CatalogServicer(catalog_pb2_grpc.CatalogServiceServicer):
    """Answers operators and apps about models."""

    def __init__(
        self,
        catalog: Catalog,
        layout: Layout,
        registry: Registry,
        audit: Audit,
        max_blob_bytes: int,
        copied: Copied = _by_nobody,
    ) -> None:
        """`copied` waits until other control planes have a version as well."""
        self._copied = copied
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
        own = Descriptor(MANIFEST_TYPE, digest, len(first.manifest_json))
        missing = await asyncio.to_thread(self._missing, (own, *manifest.blobs))
        if known and not missing:
            return _version_message(known)
        missing.pop(digest, None)
        await self._receive(missing, requests)
        store = functools.partial(self._store, manifest, first.manifest_json, digest)
        if known:
            await store()
            log.warning("replaced damaged blobs of model=%s version=%s", known.model, known.version)
            return _version_message(known)
        version = await self._add(manifest, digest, store)
        await self._copied(version)
        return _version_message(version)

    async def _store(self, manifest: Manifest, manifest_json: bytes, digest: str) -> None:
        ref = f"{manifest.model}:{manifest.version}"
        await asyncio.to_thread(self._layout.add_manifest, manifest_json, digest, ref)

    def _missing(self, blobs: Iterable[Descriptor]) -> dict[str, Descriptor]:
        """Those that are not there as they should be: never received, or damaged on the disk since."""
        return {blob.digest: blob for blob in blobs if not self._layout.has(blob)}

    @whole
    async def _add(self, manifest: Manifest, digest: str, store: Callable[[], Awaitable[None]]) -> Version:
        """Records a version whose blobs are all there."""
        version = await self._catalog.add(manifest, digest, self._package(manifest).route, store)
        await self._audit.record(caller(), "publish", f"{version.model}@{version.version}", digest)
        return version

    def _check(self, manifest: Manifest) -> None:
        for blob in manifest.blobs:
            if blob.size_bytes > self._max_blob_bytes:
                raise TooLarge(
                    f"{blob.title or blob.digest} has {blob.size_bytes} bytes; max_blob_bytes is {self._max_blob_bytes}"
                )

    async def _receive(self, missing: dict[str, Descriptor], requests: AsyncIterator[pb.PublishRequest]) -> None:
        """Stores the missing blobs as they come, and takes them out of `missing`."""
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
            text = self._layout.path(file.digest).read_text("utf-8")
        except UnicodeDecodeError as error:
            raise PackageError(f"{MANIFEST_FILE}: {error}") from None
        package = packages.parse(text, MANIFEST_FILE)
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

    @whole
    async def Deploy(self, request: pb.DeployRequest, context: Any) -> pb.Deployment:
        known = {node.site for node in self._registry.serving_nodes()}
        for site in request.sites:
            if site not in known:
                raise NotFound(f"no site {site!r}; the mesh has {', '.join(sorted(known)) or 'none yet'}")
        deployment = await self._catalog.deploy(request.model, request.version, tuple(request.sites), str(caller()))
        await self._record("deploy", deployment)
        return _deployment_message(deployment)

    @whole
    async def Rollback(self, request: pb.RollbackRequest, context: Any) -> pb.Deployment:
        deployment = await self._catalog.rollback(request.model, str(caller()))
        await self._record("rollback", deployment)
        return _deployment_message(deployment)

    async def _record(self, action: str, deployment: Deployment) -> None:
        await self._audit.record(caller(), action, f"{deployment.model}@{deployment.version}", deployment.place)

    def _model(self, name: str) -> pb.Model:
        policy = self._catalog.policy(name)
        return pb.Model(
            name=name,
            versions=[_version_message(version) for version in self._catalog.versions(name)],
            deployments=[_deployment_message(deployment) for deployment in self._catalog.deployments(name)],
            replicas=self._replicas(name),
            objective=policy.objective,
            deadline_ms=policy.deadline_ms,
            regions=policy.regions,
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
