"""The calls of the catalog about models that nobody asks for."""

from __future__ import annotations

from nearmesh.package import Idle
from nearmesh.rpc import caller
from nearmesh.v1 import catalog_pb2 as pb
from nearmesh.whole import whole
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.idle.book import IdleBook

_FIELDS = ("unload_after_s", "scale_to_zero_after_s", "keep")


class IdleCalls:
    """What the catalog's servicer hands on."""

    def __init__(self, book: IdleBook, audit: Audit) -> None:
        self._book = book
        self._audit = audit

    @whole
    async def set(self, request: pb.SetIdleRequest) -> pb.IdlePolicy:
        """What is not given stays as it is. Raises NotFound, InvalidInput."""
        given = {name: getattr(request, name) for name in _FIELDS if request.HasField(name)}
        policy = await self._book.set_policy(request.model, **given)
        said = f"unload after {policy.unload_after_s:g} s, scale to {policy.keep} after "
        await self._audit.record(caller(), "idle", request.model, f"{said}{policy.scale_to_zero_after_s:g} s")
        return _message(request.model, policy)

    def describe(self, model: pb.Model) -> None:
        """Fills in what becomes of it when nobody asks, and whether that has happened."""
        entry = self._book.entry(model.name)
        model.idle.CopyFrom(_message(model.name, entry.policy))
        if entry.deployment:
            model.asleep, model.asleep_since_s = True, entry.since_s
            model.kept.extend(entry.nodes)


def _message(model: str, policy: Idle) -> pb.IdlePolicy:
    return pb.IdlePolicy(
        model=model,
        unload_after_s=policy.unload_after_s,
        scale_to_zero_after_s=policy.scale_to_zero_after_s,
        keep=policy.keep,
    )
