"""CatalogService: publish and list; what deploys and rolls out is handed on to `rollouts`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from nearmesh.v1 import catalog_pb2 as pb
from nearmesh.v1 import catalog_pb2_grpc
from nearmesh_controlplane.catalog.catalog import Catalog, Version
from nearmesh_controlplane.catalog.publishing import Publisher
from nearmesh_controlplane.idle.calls import IdleCalls
from nearmesh_controlplane.registry.nodes import Registry
from nearmesh_controlplane.rollouts.calls import RolloutCalls, deployment_message


class CatalogServicer(catalog_pb2_grpc.CatalogServiceServicer):
    """Answers operators and apps about models."""

    def __init__(
        self,
        catalog: Catalog,
        publisher: Publisher,
        registry: Registry,
        source: pb.RegistryResponse,
        *,
        calls: RolloutCalls,
        idle: IdleCalls,
    ) -> None:
        """`source`: where versions are pulled from, and by which keys they are signed; `calls` answers what deploys."""
        self._idle = idle
        self._catalog = catalog
        self._publisher = publisher
        self._registry = registry
        self._source = source
        self._calls = calls

    async def Publish(self, requests: AsyncIterator[pb.PublishRequest], context: Any) -> pb.ModelVersion:
        return _version_message(await self._publisher.publish(requests))

    async def Lacks(self, request: pb.LacksRequest, context: Any) -> pb.LacksResponse:
        return await self._publisher.lacks(request)

    async def Registry(self, request: pb.RegistryRequest, context: Any) -> pb.RegistryResponse:
        return self._source

    async def PullFrom(self, request: pb.PullFromRequest, context: Any) -> pb.ModelVersion:
        return _version_message(await self._publisher.pull_from(request))

    async def List(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[self._model(name) for name in self._catalog.models()])

    async def Get(self, request: pb.GetModelRequest, context: Any) -> pb.Model:
        model = self._model(request.model)
        for version in model.versions:
            version.report_json = await self._publisher.reports.text(version.digest)
            version.lineage_json = await self._publisher.lineages.text(version.digest)
        return model

    async def Deploy(self, request: pb.DeployRequest, context: Any) -> pb.Deployment:
        return await self._calls.deploy(request)

    async def Rollback(self, request: pb.RollbackRequest, context: Any) -> pb.Deployment:
        return await self._calls.rollback(request.model)

    async def GetRollout(self, request: pb.GetRolloutRequest, context: Any) -> pb.Rollout:
        return self._calls.get(request)

    async def ListRollouts(self, request: pb.ListRolloutsRequest, context: Any) -> pb.ListRolloutsResponse:
        return self._calls.list(request)

    async def WatchRollout(self, request: pb.GetRolloutRequest, context: Any) -> AsyncIterator[pb.Rollout]:
        async for rollout in self._calls.watch(request):
            yield rollout

    async def ChangeRollout(self, request: pb.ChangeRolloutRequest, context: Any) -> pb.Rollout:
        return await self._calls.change(request)

    async def SetIdle(self, request: pb.SetIdleRequest, context: Any) -> pb.IdlePolicy:
        return await self._idle.set(request)

    def _model(self, name: str) -> pb.Model:
        policy = self._catalog.policy(name)
        found = pb.Model(
            name=name,
            versions=[_version_message(version) for version in self._catalog.versions(name)],
            deployments=[deployment_message(deployment) for deployment in self._catalog.deployments(name)],
            replicas=self._replicas(name),
            objective=policy.objective,
            deadline_ms=policy.deadline_ms,
            regions=policy.regions,
        )
        self._idle.describe(found)
        return found

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
        registry=version.registry,
    )
