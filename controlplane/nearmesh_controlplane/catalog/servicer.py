"""CatalogService: publish, list, deploy, roll back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from nearmesh.errors import NotFound
from nearmesh.rpc import caller
from nearmesh.v1 import catalog_pb2 as pb
from nearmesh.v1 import catalog_pb2_grpc
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.catalog.catalog import Catalog, Deployment, Version
from nearmesh_controlplane.catalog.publishing import Publisher
from nearmesh_controlplane.database import whole
from nearmesh_controlplane.registry.nodes import Registry


class CatalogServicer(catalog_pb2_grpc.CatalogServiceServicer):
    """Answers operators and apps about models."""

    def __init__(
        self,
        catalog: Catalog,
        publisher: Publisher,
        registry: Registry,
        audit: Audit,
        source: pb.RegistryResponse,
    ) -> None:
        """`source` says where versions are pulled from, and by which keys they are signed."""
        self._catalog = catalog
        self._publisher = publisher
        self._registry = registry
        self._audit = audit
        self._source = source

    async def Publish(self, requests: AsyncIterator[pb.PublishRequest], context: Any) -> pb.ModelVersion:
        return _version_message(await self._publisher.publish(requests))

    async def Lacks(self, request: pb.LacksRequest, context: Any) -> pb.LacksResponse:
        return await self._publisher.lacks(request)

    async def Registry(self, request: pb.RegistryRequest, context: Any) -> pb.RegistryResponse:
        return self._source

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
