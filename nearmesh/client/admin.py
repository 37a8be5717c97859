"""What operators ask of the control plane, one method for each call: the operator's half of the SDK.

Answers are the contract's own messages. Every failure is an error of `nearmesh.errors`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType

from nearmesh.chunks import ChunkIndex
from nearmesh.client import upload
from nearmesh.client.connection import Connection
from nearmesh.client.runs import Runs
from nearmesh.client.upload import Lacking, OnProgress, Publishable
from nearmesh.errors import Incomplete, InvalidInput, Unsupported
from nearmesh.ids import Kind
from nearmesh.snapshot import SnapshotRoutes, opened
from nearmesh.v1 import admin_pb2, admin_pb2_grpc, catalog_pb2, catalog_pb2_grpc, route_pb2, route_pb2_grpc

# Digests in one question: 70 bytes each, and a message may have a few MB.
_ASKED = 20_000

_KINDS: dict[Kind, admin_pb2.NodeKind] = {
    "node": admin_pb2.NODE_KIND_NODE,
    "gateway": admin_pb2.NODE_KIND_GATEWAY,
}

STRATEGIES: Mapping[str, catalog_pb2.RolloutStrategy] = {
    "all": catalog_pb2.ROLLOUT_STRATEGY_ALL,
    "rolling": catalog_pb2.ROLLOUT_STRATEGY_ROLLING,
    "canary": catalog_pb2.ROLLOUT_STRATEGY_CANARY,
}
CHANGES: Mapping[str, catalog_pb2.RolloutChange] = {
    "pause": catalog_pb2.ROLLOUT_CHANGE_PAUSE,
    "resume": catalog_pb2.ROLLOUT_CHANGE_RESUME,
    "abort": catalog_pb2.ROLLOUT_CHANGE_ABORT,
}


class AdminClient:
    """A connection to a control plane's public listener; enter it with `async with`.

    Where there are several, comma between, it is to the first that can be reached. `runs` are federated runs.

    Every method raises PermissionDenied or Unauthenticated when the token does not do, Unreachable when the control
    plane cannot be reached, DeadlineExceeded when it does not answer in time, and what its own line names.
    """

    def __init__(self, control_plane: str, ca_pem: bytes, token: str) -> None:
        self._ca_pem = ca_pem
        self._connection = Connection(control_plane, ca_pem, token)
        self._call = self._connection.call
        self._admin: admin_pb2_grpc.AdminServiceStub
        self._catalog: catalog_pb2_grpc.CatalogServiceStub
        self._routes: route_pb2_grpc.RouteServiceStub
        self.runs: Runs

    async def __aenter__(self) -> AdminClient:
        await self._connection.open()
        channel = self._connection.channel
        self._admin = admin_pb2_grpc.AdminServiceStub(channel)
        self._catalog = catalog_pb2_grpc.CatalogServiceStub(channel)
        self._routes = route_pb2_grpc.RouteServiceStub(channel)
        self.runs = Runs(self._connection)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()

    # Tokens

    async def join_token(
        self, node: str, site: str, region: str, *, kind: Kind = "node", lifetime_s: float = 3600.0
    ) -> admin_pb2.CreateJoinTokenResponse:
        """A single-use token for one machine. Raises InvalidInput, AlreadyExists."""
        request = admin_pb2.CreateJoinTokenRequest(
            kind=_KINDS[kind], node=node, site=site, region=region, lifetime_s=lifetime_s
        )
        return await self._call(self._admin.CreateJoinToken, request)

    async def issue_token(
        self, subject: str, role: str, *, lifetime_s: float, namespace: str = ""
    ) -> admin_pb2.IssueTokenResponse:
        """A bearer token for a person or an app; with a `namespace` it reaches the vectors of that one alone.

        Raises InvalidInput.
        """
        request = admin_pb2.IssueTokenRequest(subject=subject, role=role, lifetime_s=lifetime_s, namespace=namespace)
        return await self._call(self._admin.IssueToken, request)

    # Nodes

    async def nodes(self) -> list[admin_pb2.Node]:
        """Every node and gateway, removed ones too."""
        response = await self._call(self._admin.ListNodes, admin_pb2.ListNodesRequest())
        return list(response.nodes)

    async def drain(self, node: str, *, undo: bool = False) -> admin_pb2.Node:
        """Takes the node out of the routes. Raises NotFound."""
        return await self._call(self._admin.DrainNode, admin_pb2.DrainNodeRequest(node=node, undo=undo))

    async def cordon(self, node: str, *, undo: bool = False) -> admin_pb2.Node:
        """Gives the node no new versions. Raises NotFound."""
        return await self._call(self._admin.CordonNode, admin_pb2.CordonNodeRequest(node=node, undo=undo))

    async def remove(self, node: str) -> admin_pb2.Node:
        """Refuses the node's certificate from now on, for good. Raises NotFound."""
        return await self._call(self._admin.RemoveNode, admin_pb2.RemoveNodeRequest(node=node))

    # Prices

    async def set_price(
        self, node: str, usd_per_hour: float, *, currency: str = "", valid_for_s: float = 0.0
    ) -> admin_pb2.Node:
        """What an hour of the node costs, in US dollars or in `currency`; 0 holds it until it is changed.

        Raises NotFound, InvalidInput.
        """
        request = admin_pb2.SetPriceRequest(
            node=node, usd_per_hour=usd_per_hour, currency=currency, valid_for_s=valid_for_s
        )
        return await self._call(self._admin.SetPrice, request)

    async def unset_price(self, node: str) -> admin_pb2.Node:
        """Takes the operator's price back: the feed's counts again, else the node's own. Raises NotFound."""
        return await self._call(self._admin.SetPrice, admin_pb2.SetPriceRequest(node=node, unset=True))

    async def prices(self) -> admin_pb2.ListPricesResponse:
        """What every node and every transfer costs and by whose word, and how the feed does."""
        return await self._call(self._admin.ListPrices, admin_pb2.ListPricesRequest())

    async def set_transfer_price(self, from_region: str, to_region: str, usd_per_gb: float) -> admin_pb2.TransferPrice:
        """What it costs to move data there; either region may be "*", any other one. Raises InvalidInput."""
        request = admin_pb2.SetTransferPriceRequest(from_region=from_region, to_region=to_region, usd_per_gb=usd_per_gb)
        return await self._call(self._admin.SetTransferPrice, request)

    async def unset_transfer_price(self, from_region: str, to_region: str) -> admin_pb2.TransferPrice:
        """Takes it back; the answer has what counts now. Raises NotFound, InvalidInput."""
        request = admin_pb2.SetTransferPriceRequest(from_region=from_region, to_region=to_region, unset=True)
        return await self._call(self._admin.SetTransferPrice, request)

    async def control_planes(self) -> list[admin_pb2.ControlPlane]:
        """The control planes of the mesh, and which of them leads."""
        response = await self._call(self._admin.ListControlPlanes, admin_pb2.ListControlPlanesRequest())
        return list(response.control_planes)

    async def audit(self, limit: int = 100) -> list[admin_pb2.AuditEntry]:
        """The latest changes that operators made, newest first."""
        response = await self._call(self._admin.ListAudit, admin_pb2.ListAuditRequest(limit=limit))
        return list(response.entries)

    # Models

    async def publish(self, artifact: Publishable, on_progress: OnProgress | None = None) -> catalog_pb2.ModelVersion:
        """Uploads what the control plane lacks of a version; answered when all of it is on its disk, and signed.

        Raises AlreadyExists when the version's name is taken by other contents, PackageError, TooLarge, and
        Incomplete when the artifact itself has not all that is lacking.
        """
        index = await asyncio.to_thread(upload.chunk_index, artifact)
        lacking = await self._lacking(artifact, index)
        try:
            return await self._upload(artifact, upload.steps(artifact.manifest, index, lacking), on_progress)
        except Incomplete:
            # What it had has gone or is damaged.
            if any(blob.digest not in artifact.blobs for blob in artifact.manifest.blobs):
                raise
            return await self._upload(artifact, upload.steps(artifact.manifest, index, None), on_progress)

    async def _lacking(self, artifact: Publishable, index: ChunkIndex) -> Lacking | None:
        """None from a control plane that cannot say."""
        try:
            blobs = await self.lacks([blob.digest for blob in artifact.manifest.blobs])
            chunks = {chunk.digest for file, found in index.files.items() if file in blobs for chunk in found}
            return Lacking(blobs, await self.lacks(sorted(chunks), chunks=True))
        except Unsupported:
            return None

    async def lacks(self, digests: Sequence[str], *, chunks: bool = False) -> frozenset[str]:
        """Those of the blobs, or chunks of blobs, that the control plane does not have."""
        found: set[str] = set()
        for first in range(0, len(digests), _ASKED):
            asked = digests[first : first + _ASKED]
            request = catalog_pb2.LacksRequest(**{"chunks" if chunks else "blobs": asked})
            response = await self._call(self._catalog.Lacks, request)
            found.update(response.blobs, response.chunks)
        return frozenset(found)

    async def _upload(
        self, artifact: Publishable, todo: list[upload.Step], on_progress: OnProgress | None
    ) -> catalog_pb2.ModelVersion:
        parts = upload.requests(artifact, todo, on_progress or _silent)
        found: catalog_pb2.ModelVersion = await self._connection.send(
            lambda channel: catalog_pb2_grpc.CatalogServiceStub(channel).Publish, parts
        )
        return found

    async def pull_from(self, model: str, version: str, registry: str) -> catalog_pb2.ModelVersion:
        """Nodes pull the version from there ("https://host/name"); empty: from the mesh again. Raises NotFound."""
        request = catalog_pb2.PullFromRequest(model=model, version=version, registry=registry)
        return await self._call(self._catalog.PullFrom, request)

    async def registry(self) -> catalog_pb2.RegistryResponse:
        """Where versions are pulled from, and the keys that they are signed by."""
        return await self._call(self._catalog.Registry, catalog_pb2.RegistryRequest())

    async def models(self) -> list[catalog_pb2.Model]:
        """Every model with its versions, deployments and replicas."""
        response = await self._call(self._catalog.List, catalog_pb2.ListModelsRequest())
        return list(response.models)

    async def model(self, name: str) -> catalog_pb2.Model:
        """Raises NotFound."""
        return await self._call(self._catalog.Get, catalog_pb2.GetModelRequest(model=name))

    async def deploy(
        self,
        model: str,
        version: str,
        sites: Iterable[str] = (),
        *,
        regions: Iterable[str] = (),
        replicas: int = 0,
        strategy: str = "",
        steps: Iterable[float] = (),
        options: catalog_pb2.RolloutOptions | None = None,
    ) -> catalog_pb2.Deployment:
        """Makes the version the wanted one at `sites` and in `regions`, everywhere if there are none; on so many nodes
        of those, or with 0 on all.

        At once, or with a strategy ("all", "rolling" or "canary") by a rollout, whose number is in the answer; `steps`
        are a canary's shares. Raises NotFound, InvalidInput, AlreadyExists while another rollout of the model runs.
        """
        if strategy and strategy not in STRATEGIES:
            raise InvalidInput(f"no strategy {strategy!r}; there are {', '.join(STRATEGIES)}")
        request = catalog_pb2.DeployRequest(
            model=model,
            version=version,
            sites=sites,
            regions=regions,
            replicas=replicas,
            strategy=STRATEGIES[strategy] if strategy else catalog_pb2.ROLLOUT_STRATEGY_UNSPECIFIED,
            steps=steps,
            options=options,
        )
        return await self._call(self._catalog.Deploy, request)

    async def rollback(self, model: str) -> catalog_pb2.Deployment:
        """Ends the rollout that runs, or deploys the version before the present one; what is wanted then.

        Raises NotFound, InvalidInput when there is none.
        """
        return await self._call(self._catalog.Rollback, catalog_pb2.RollbackRequest(model=model))

    async def rollout(self, model: str, id: int = 0) -> catalog_pb2.Rollout:
        """The newest of the model, or that one. Raises NotFound."""
        return await self._call(self._catalog.GetRollout, catalog_pb2.GetRolloutRequest(model=model, rollout=id))

    async def rollouts(self, model: str = "") -> list[catalog_pb2.Rollout]:
        """Of a model or of all, newest first. Raises NotFound."""
        response = await self._call(self._catalog.ListRollouts, catalog_pb2.ListRolloutsRequest(model=model))
        return list(response.rollouts)

    async def watch_rollout(self, model: str, id: int = 0) -> AsyncIterator[catalog_pb2.Rollout]:
        """As it is now, and whenever something of it changes, until it has ended. Raises NotFound."""
        request = catalog_pb2.GetRolloutRequest(model=model, rollout=id)
        async with aclosing(self._connection.stream(self._catalog.WatchRollout, request)) as stream:
            async for message in stream:
                yield message

    async def change_rollout(self, model: str, change: str) -> catalog_pb2.Rollout:
        """Has the one that runs "pause", "resume" or "abort". Raises NotFound where none runs, InvalidInput."""
        if change not in CHANGES:
            raise InvalidInput(f"no change {change!r}; there are {', '.join(CHANGES)}")
        request = catalog_pb2.ChangeRolloutRequest(model=model, change=CHANGES[change])
        return await self._call(self._catalog.ChangeRollout, request)

    # Routes

    async def set_policy(
        self,
        model: str,
        *,
        objective: str = "",
        deadline_ms: float = 0.0,
        regions: Iterable[str] = (),
        any_region: bool = False,
    ) -> admin_pb2.Policy:
        """Empty or 0 leaves a value as it is; `any_region` frees it from regions. Raises NotFound, InvalidInput."""
        request = admin_pb2.SetPolicyRequest(
            model=model, objective=objective, deadline_ms=deadline_ms, regions=regions, any_region=any_region
        )
        return await self._call(self._admin.SetPolicy, request)

    async def set_idle(
        self,
        model: str,
        *,
        unload_after_s: float | None = None,
        scale_to_zero_after_s: float | None = None,
        keep: int | None = None,
    ) -> catalog_pb2.IdlePolicy:
        """What becomes of a model that nobody asks for; None leaves a value as it is. Raises NotFound, InvalidInput."""
        given = {"unload_after_s": unload_after_s, "scale_to_zero_after_s": scale_to_zero_after_s, "keep": keep}
        request = catalog_pb2.SetIdleRequest(model=model)
        for name, value in given.items():
            if value is not None:
                setattr(request, name, value)
        return await self._call(self._catalog.SetIdle, request)

    async def set_residency(self, client_region: str, regions: Iterable[str]) -> admin_pb2.Residency:
        """Binds the clients of a region to `regions`; none take the rule back. Raises InvalidInput, NotFound."""
        request = admin_pb2.SetResidencyRequest(client_region=client_region, regions=regions)
        return await self._call(self._admin.SetResidency, request)

    async def residency(self) -> list[admin_pb2.Residency]:
        """Which regions may answer the clients of which; a region that is not there may be answered by any."""
        response = await self._call(self._admin.ListResidency, admin_pb2.ListResidencyRequest())
        return list(response.rules)

    async def explain(
        self,
        model: str,
        region: str = "",
        *,
        objective: str = "",
        site: str = "",
        latitude: float | None = None,
        longitude: float | None = None,
    ) -> route_pb2.Route:
        """Every node's chances for one model and client region, the choice first. Raises NotFound, InvalidInput.

        Without a region, degrees say where the client is.
        """
        request = route_pb2.ResolveRequest(
            model=model, region=region, site=site, objective=objective, latitude=latitude, longitude=longitude
        )
        return await self._call(self._routes.Explain, request)

    async def accuracy(self, model: str = "") -> list[route_pb2.Accuracy]:
        """How right predictions were for the calls of late, of one model or of all. Raises NotFound, NotLeader."""
        response = await self._call(self._routes.ListAccuracy, route_pb2.ListAccuracyRequest(model=model))
        return list(response.accuracy)

    async def snapshot(self, region: str) -> SnapshotRoutes:
        """What the control plane gives clients of a region to keep. Raises InvalidInput, SnapshotRefused."""
        request = route_pb2.WatchSnapshotRequest(region=region)
        signed = await self._connection.first(self._routes.WatchSnapshot, request)
        return SnapshotRoutes(opened(signed, self._ca_pem, now_s=time.time()))

    async def latencies(self) -> list[route_pb2.Latency]:
        """The round trip between every region and every node, as the router believes it to be."""
        response = await self._call(self._routes.ListLatencies, route_pb2.ListLatenciesRequest())
        return list(response.latencies)

    async def vector_nodes(self, region: str = "") -> list[route_pb2.VectorPlace]:
        """Nodes that keep vectors; those that may answer a region, the nearest first. With any token."""
        response = await self._call(self._routes.VectorNodes, route_pb2.VectorNodesRequest(region=region))
        return list(response.nodes)


def _silent(sent_bytes: int, total_bytes: int) -> None:
    """For publishers who do not watch."""
