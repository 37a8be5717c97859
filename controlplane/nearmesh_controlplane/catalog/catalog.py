"""The catalog: published versions, which of them is deployed where, and each model's route policy."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from nearmesh.errors import AlreadyExists, InvalidInput, NotFound
from nearmesh.oci import Manifest
from nearmesh.package import RoutePolicy
from nearmesh.registries.reference import check_repository
from nearmesh.routing import parse_objective
from nearmesh.routing.residency import check_regions
from nearmesh.whole import whole
from nearmesh_controlplane import database as tables
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.rollouts.scope import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One published version."""

    digest: str
    model: str
    version: str
    size_bytes: int
    created_at_s: float
    # "https://host:port/name" of another registry that nodes pull it from; empty: the mesh's own.
    registry: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A version that was made the wanted one."""

    id: int
    model: str
    version: str
    digest: str
    scope: Scope
    # Where the scope has a number of replicas: the nodes that were chosen.
    nodes: tuple[str, ...] = ()
    created_at_s: float
    actor: str
    # The rollout that brought it; 0: none did.
    rollout: int = 0

    def has(self, node: str) -> bool:
        """Whether a node of the scope is to have it."""
        return not self.scope.replicas or node in self.nodes

    @property
    def asked_by(self) -> str:
        """Who asks nodes for it: a version that failed there for somebody else is tried again."""
        return f"rollout {self.rollout}" if self.rollout else f"deployment {self.id}"

    @property
    def sites(self) -> tuple[str, ...]:
        """Empty for all."""
        return self.scope.sites

    @property
    def place(self) -> str:
        """For people."""
        return str(self.scope)


class Catalog:
    """Reads from memory; every change is on disk before it is seen."""

    def __init__(self, db: Database, changes: Generation) -> None:
        self._db = db
        self._changes = changes
        self._versions: dict[str, Version] = {}
        self._deployments: list[Deployment] = []
        self._policies: dict[str, RoutePolicy] = {}
        # What follows from them and is asked for each node at each change: the models, and what a site should have.
        self._models: list[str] | None = None
        self._wanted: dict[tuple[str, str], dict[str, Deployment]] = {}
        # Whether any deployment is for chosen nodes alone; most meshes have none.
        self._chooses = False
        # Two publishers of one version must not both find its name free.
        self._adding = asyncio.Lock()

    async def restore(self) -> None:
        """Reads the durable state: at the start, and when another control plane wrote some of it."""
        versions, deployments, policies = await self._db.run(_read_all)
        self._versions = {version.digest: version for version in versions}
        self._deployments, self._policies = deployments, policies
        self._renew()

    def _renew(self) -> None:
        """Versions or deployments are others: what follows from them is found anew, and who waits is woken."""
        self._models = None
        self._wanted = {}
        self._chooses = any(deployment.scope.replicas for deployment in self._deployments)
        self._changes.bump()

    # What is asked

    def models(self) -> list[str]:
        if self._models is None:
            self._models = sorted({version.model for version in self._versions.values()})
        return self._models

    def versions(self, model: str) -> list[Version]:
        """Newest first. Raises NotFound."""
        found = [version for version in self._versions.values() if version.model == model]
        if not found:
            raise NotFound(f"no model {model!r}; published are {', '.join(self.models()) or 'none yet'}")
        return sorted(found, key=lambda version: version.created_at_s, reverse=True)

    def version(self, model: str, version: str) -> Version:
        """The version of that name. Raises NotFound."""
        found = self.versions(model)
        for candidate in found:
            if candidate.version == version:
                return candidate
        raise NotFound(f"no version {version!r} of {model!r}; published are {', '.join(v.version for v in found)}")

    def version_of(self, digest: str) -> str:
        """The name of the version with that digest; empty when it is not in the catalog."""
        found = self._versions.get(digest)
        return found.version if found else ""

    def registry_of(self, digest: str) -> str:
        """Where nodes pull the version from; empty for the mesh's own registry."""
        found = self._versions.get(digest)
        return found.registry if found else ""

    def deployed(self, model: str, site: str, region: str = "", node: str = "") -> Deployment | None:
        """The newest deployment of `model` that covers the site, if the node is to have it."""
        found = self._newest(site, region).get(model)
        return found if found is not None and found.has(node) else None

    def wanted(self, site: str, region: str = "", node: str = "") -> Mapping[str, Deployment]:
        """The newest deployment that covers the site, of each model that the node is to have, by the model's name."""
        found = self._newest(site, region)
        if not self._chooses:
            return found
        return {model: d for model, d in found.items() if d.has(node)}

    def _newest(self, site: str, region: str) -> dict[str, Deployment]:
        """The newest deployment that covers the site, of each model, whichever of its nodes are chosen."""
        found = self._wanted.get((site, region))
        if found is None:
            newest = {d.model: d for d in self._deployments if d.scope.covers(site, region)}
            found = self._wanted[site, region] = dict(sorted(newest.items()))
        return found

    def choosing(self, places: Iterable[tuple[str, str]]) -> dict[int, Deployment]:
        """The deployments to chosen nodes by which any node in these sites and regions goes, by number."""
        if not self._chooses:
            return {}
        found: dict[int, Deployment] = {}
        for site, region in places:
            found |= {d.id: d for d in self._newest(site, region).values() if d.scope.replicas}
        return found

    def deployments(self, model: str) -> list[Deployment]:
        """Newest first."""
        return [d for d in reversed(self._deployments) if d.model == model]

    def policy(self, model: str) -> RoutePolicy:
        return self._policies.get(model, RoutePolicy())

    # What changes

    def check_new(self, manifest: Manifest, digest: str) -> Version | None:
        """The version, if it is published already. Raises AlreadyExists when its name is taken by other bytes."""
        for known in self._versions.values():
            if (known.model, known.version) == (manifest.model, manifest.version):
                if known.digest == digest:
                    return known
                raise AlreadyExists(
                    f"{manifest.model}@{manifest.version} is published with other contents ({known.digest}); "
                    "versions never change: raise `version` in model.toml"
                )
        return None

    @whole
    async def add(
        self,
        manifest: Manifest,
        digest: str,
        policy: RoutePolicy,
        store: Callable[[], Awaitable[None]],
        also: Callable[[sa.Connection], None] = lambda connection: None,
    ) -> Version:
        """Records a version whose blobs are all in the layout; `store` adds the manifest once its name proved free.

        What the package says of other things `also` writes, in the same transaction. Raises AlreadyExists, and then
        nothing was stored.
        """
        async with self._adding:
            known = self.check_new(manifest, digest)
            if known:
                return known
            await store()
            version = Version(
                digest=digest,
                model=manifest.model,
                version=manifest.version,
                size_bytes=manifest.size_bytes,
                created_at_s=time.time(),
            )
            try:
                self._policies[version.model] = await self._db.run(_insert_version, version, policy, also)
            except sa.exc.IntegrityError:
                # Another control plane was faster.
                await self.restore()
                known = self.check_new(manifest, digest)
                if known is None:
                    raise
                return known
            self._versions[digest] = version
        self._renew()
        return version

    @whole
    async def deploy(
        self, model: str, version: str, where: Scope | tuple[str, ...], actor: str, nodes: tuple[str, ...] = ()
    ) -> Deployment:
        """To a scope or to sites; `nodes` are those that were chosen, where it has a number. Raises NotFound."""
        found = self.version(model, version)
        scope = where if isinstance(where, Scope) else Scope(sites=where)
        deployment = await self._db.run(insert_deployment, found, scope, nodes, actor, time.time())
        self.take(deployment)
        return deployment

    def take(self, deployment: Deployment) -> None:
        """Knows a deployment that is on disk."""
        self._deployments = [d for d in self._deployments if d.id != deployment.id] + [deployment]
        self._deployments.sort(key=lambda d: d.id)
        self._renew()

    @whole
    async def place(self, deployment: Deployment, nodes: tuple[str, ...]) -> None:
        """Other nodes are to have it from now on. The leader's. Raises NotLeader."""
        self.take(await self._db.run_as_leader(_change_nodes, deployment.id, nodes))

    @whole
    async def rollback(self, model: str, actor: str) -> Deployment:
        """Deploys what the present deployment's sites had before it, to the same place.

        Only an earlier deployment that covered all of them counts: a trial elsewhere was never theirs.
        Raises NotFound, InvalidInput.
        """
        if self._db.shared:
            # What was deployed last may have been deployed through another control plane, a moment ago.
            await self.restore()
        self.versions(model)
        history = self.deployments(model)
        if not history:
            raise InvalidInput(f"{model!r} has never been deployed, so there is nothing to roll back")
        present = history[0]
        earlier = next(
            (d for d in history if d.digest != present.digest and d.scope.covers_all_of(present.scope)), None
        )
        if earlier is None:
            raise InvalidInput(
                f"{model!r} has been deployed to {present.place} in one version only ({present.version}); "
                "to have another there, deploy it by name"
            )
        return await self.deploy(model, earlier.version, present.scope, actor, present.nodes)

    @whole
    async def pull_from(self, model: str, version: str, registry: str) -> Version:
        """Nodes pull the version from another registry, or with an empty one from the mesh's own again.

        Raises NotFound, InvalidInput.
        """
        found = dataclasses.replace(self.version(model, version), registry=registry and check_repository(registry))
        await self._db.run(_set_registry, found)
        self._versions[found.digest] = found
        self._changes.bump()
        return found

    @whole
    async def set_policy(
        self, model: str, objective: str, deadline_ms: float, regions: tuple[str, ...] | None = None
    ) -> RoutePolicy:
        """Empty, 0 or None leaves a value as it is; no regions at all let any serve. Raises NotFound, InvalidInput."""
        self.versions(model)
        if not 0 <= deadline_ms < 1e7:
            raise InvalidInput(f"a deadline of {deadline_ms} ms is not between 0 and 10,000,000")
        changes: dict[str, Any] = {}
        if objective:
            changes |= {"objective": parse_objective(objective)}
        if deadline_ms:
            changes |= {"deadline_ms": deadline_ms}
        if regions is not None:
            changes |= {"regions": check_regions("region", regions)}
        self._policies[model] = await self._db.run(_change_policy, model, changes)
        self._changes.bump()
        return self._policies[model]


def _read_all(connection: sa.Connection) -> tuple[list[Version], list[Deployment], dict[str, RoutePolicy]]:
    versions = [Version(**row._mapping) for row in connection.execute(sa.select(tables.versions))]
    deployments = connection.execute(sa.select(tables.deployments).order_by(tables.deployments.c.id))
    policies = connection.execute(sa.select(tables.policies))
    return versions, [_deployment(row) for row in deployments], {row.model: _policy(row) for row in policies}


def _deployment(row: sa.Row[Any]) -> Deployment:
    scope = Scope(sites=tuple(row.sites), regions=tuple(row.regions or ()), replicas=row.replicas)
    own = {
        name: row._mapping[name] for name in ("id", "model", "version", "digest", "created_at_s", "actor", "rollout")
    }
    return Deployment(scope=scope, nodes=tuple(row.nodes or ()), **own)


def _policy(row: sa.Row[Any]) -> RoutePolicy:
    return RoutePolicy(objective=row.objective, deadline_ms=row.deadline_ms, regions=tuple(row.regions or ()))


def _insert_version(
    connection: sa.Connection, version: Version, policy: RoutePolicy, also: Callable[[sa.Connection], None]
) -> RoutePolicy:
    row = {name: getattr(version, name) for name in ("digest", "model", "version", "size_bytes", "created_at_s")}
    connection.execute(sa.insert(tables.versions).values(**row))
    known = _policy_row(connection, version.model)
    if known is not None and known.by_operator:
        policy = dataclasses.replace(_policy(known), regions=policy.regions)
    if known is not None and known.regions_by_operator:
        policy = dataclasses.replace(policy, regions=_policy(known).regions)
    _write_policy(connection, version.model, policy, {})
    also(connection)
    return policy


def _set_registry(connection: sa.Connection, version: Version) -> None:
    row = tables.versions.c.digest == version.digest
    connection.execute(sa.update(tables.versions).where(row).values(registry=version.registry))


def _change_policy(connection: sa.Connection, model: str, changes: Mapping[str, Any]) -> RoutePolicy:
    """An operator's word. In one transaction, so that who changes the deadline does not undo who binds the regions."""
    known = _policy_row(connection, model)
    policy = dataclasses.replace(RoutePolicy() if known is None else _policy(known), **changes)
    spoken = {"by_operator": True} if changes.keys() - {"regions"} else {}
    spoken |= {"regions_by_operator": True} if "regions" in changes else {}
    _write_policy(connection, model, policy, spoken)
    return policy


def _policy_row(connection: sa.Connection, model: str) -> sa.Row[Any] | None:
    row = tables.policies.c.model == model
    return connection.execute(sa.select(tables.policies).where(row).with_for_update()).one_or_none()


def _write_policy(connection: sa.Connection, model: str, policy: RoutePolicy, spoken: Mapping[str, bool]) -> None:
    """`spoken` has what an operator has spoken on from now on; the rest stays as it was."""
    values = {"objective": policy.objective, "deadline_ms": policy.deadline_ms, "regions": list(policy.regions)}
    table = tables.policies
    changed = connection.execute(sa.update(table).where(table.c.model == model).values(**values, **spoken))
    if not changed.rowcount:
        connection.execute(sa.insert(table).values(model=model, **values, **spoken))


def insert_deployment(
    connection: sa.Connection,
    version: Version,
    scope: Scope,
    nodes: tuple[str, ...],
    actor: str,
    now_s: float,
    rollout: int = 0,
) -> Deployment:
    """Part of a transaction; `Catalog.take` then has it known."""
    values = {
        "model": version.model,
        "version": version.version,
        "digest": version.digest,
        "sites": list(scope.sites),
        "regions": list(scope.regions),
        "replicas": scope.replicas,
        "nodes": list(nodes),
        "rollout": rollout,
        "created_at_s": now_s,
        "actor": actor,
    }
    insert = sa.insert(tables.deployments).values(**values).returning(tables.deployments)
    return _deployment(connection.execute(insert).one())


def _change_nodes(connection: sa.Connection, id: int, nodes: tuple[str, ...]) -> Deployment:
    table = tables.deployments
    change = sa.update(table).where(table.c.id == id).values(nodes=list(nodes)).returning(table)
    return _deployment(connection.execute(change).one())
