"""The calls of RunService."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Mapping

from nearmesh.errors import InvalidInput, NotFound, PermissionDenied
from nearmesh.rpc import caller
from nearmesh.v1 import run_pb2 as pb
from nearmesh.whole import whole
from nearmesh_controlplane.catalog.catalog import Catalog, Version
from nearmesh_controlplane.registry.nodes import Registry
from nearmesh_controlplane.runs.apps import ROUNDS, check_fab
from nearmesh_controlplane.runs.candidates import Candidates
from nearmesh_controlplane.runs.messages import asked_of, check_settings, promotion_of, run_message, without_sites
from nearmesh_controlplane.runs.run import Asked, Run, new_id
from nearmesh_controlplane.runs.runs import Runs

# Who watches is told no more often than this.
TELL_EVERY_S = 0.2
LISTED, MAX_LISTED = 50, 1_000


def wanted_version(catalog: Catalog, model: str) -> Version:
    """The one that is wanted, else the newest. Raises NotFound."""
    versions, deployed = catalog.versions(model), catalog.deployments(model)
    return catalog.version(model, deployed[0].version) if deployed else versions[0]


class RunCalls:
    """What the servicer hands on."""

    def __init__(
        self,
        runs: Runs,
        catalog: Catalog,
        registry: Registry,
        candidates: Candidates,
        wall: Callable[[], float] = time.time,
        *,
        own_apps: bool = True,
    ) -> None:
        """`own_apps`: data teams may bring apps, which run here and at the sites."""
        self._own_apps = own_apps
        self._runs = runs
        self._catalog = catalog
        self._registry = registry
        self._candidates = candidates
        self._wall = wall

    @whole
    async def start(self, request: pb.StartRunRequest) -> pb.Run:
        """Raises NotFound, InvalidInput, PackageError for a model that cannot be trained, AlreadyExists for a key that
        is of another request."""
        asked = asked_of(request)
        version = self._version(request.model, request.version)
        self._check_sites(asked)
        metric = ""
        if request.app and not self._own_apps:
            raise PermissionDenied("apps of one's own are not taken here: `own_apps` of [runs] in mesh.toml says so")
        if request.app:
            # A hundred milliseconds, of a large one.
            asked = await asyncio.to_thread(self._own, asked, request.app)
        else:
            parent = await self._candidates.parent(version.model, version.version)
            check_settings(asked.settings, parent.settings, f"{version.model}@{version.version}")
            metric = parent.metric
        actor = caller()
        run = Run(
            id=new_id(),
            model=version.model,
            parent_version=version.version,
            parent_digest=version.digest,
            asked=asked,
            actor=str(actor),
            created_at_s=self._wall(),
            own_app=bool(request.app),
            metric=metric,
            promoted_by=str(actor) if asked.auto_promote else "",
            promotion=asked.promotion,
        )
        return await self._message(await self._runs.start(run, request.app, actor))

    def _version(self, model: str, named: str) -> Version:
        """The one that is named, else the one that is wanted, else the newest."""
        if not model:
            raise InvalidInput("no model is named")
        return self._catalog.version(model, named) if named else wanted_version(self._catalog, model)

    def _check_sites(self, asked: Asked) -> None:
        known = {node.site for node in self._registry.serving_nodes()}
        for site in asked.sites:
            if site not in known:
                raise NotFound(f"no site {site!r}; the mesh has {', '.join(sorted(known)) or 'none yet'}")

    @staticmethod
    def _own(asked: Asked, app: bytes) -> Asked:
        """With the number of rounds told to the app where it knows of one."""
        config = check_fab(app)
        check_settings(asked.settings, config, "the app's [tool.flwr.app.config]")
        if ROUNDS in config and ROUNDS not in asked.settings:
            return dataclasses.replace(asked, settings={**asked.settings, ROUNDS: str(asked.rounds)})
        return asked

    async def get(self, request: pb.GetRunRequest) -> pb.Run:
        return await self._message(await self._runs.get(request.run))

    async def list(self, request: pb.ListRunsRequest) -> pb.ListRunsResponse:
        """Raises NotFound."""
        if request.model:
            self._catalog.versions(request.model)
        runs = await self._runs.newest(request.model, min(request.limit or LISTED, MAX_LISTED))
        rounds = await self._runs.rounds_of(run.id for run in runs)
        return pb.ListRunsResponse(
            runs=[
                run_message(run, without_sites(rounds[run.id]), self._runs.progress(run.id), sites={}) for run in runs
            ]
        )

    async def watch(self, request: pb.GetRunRequest) -> AsyncIterator[pb.Run]:
        """Ends when nothing more happens to the run by itself."""
        sent: pb.Run | None = None
        while True:
            seen = self._runs.changes.value
            run = await self._runs.get(request.run)
            found = await self._message(run)
            if found != sent:
                sent = found
                yield found
            if not run.active:
                return
            await asyncio.sleep(TELL_EVERY_S)
            await self._runs.changes.above(seen)

    async def stop(self, request: pb.StopRunRequest) -> pb.Run:
        return await self._message(await self._runs.stop(request.run, caller()))

    async def promote(self, request: pb.PromoteRunRequest) -> pb.Run:
        """What is not said now counts as it was said at the start."""
        run = await self._runs.get(request.run)
        promotion = promotion_of(request.options) if request.HasField("options") else run.asked.promotion
        return await self._message(await self._runs.promote(request.run, promotion, caller()))

    async def _message(self, run: Run) -> pb.Run:
        rounds = await self._runs.rounds(run.id)
        return run_message(run, rounds, self._runs.progress(run.id), sites=self._sites())

    def _sites(self) -> Mapping[str, str]:
        return {node.id: node.site for node in self._registry.all()}
