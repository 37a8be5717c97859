"""The newest snapshot that a machine has seen, in memory and on disk. Implements `RouteSource`.

A snapshot never replaces a newer one, also across restarts: else whoever recorded an old one could bring a removed node
back. Nor does a part one that says more: what is not in it would be taken for not being there.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import DecodeError

from nearmesh.errors import MeshError, NotReady, SnapshotRefused
from nearmesh.routing.table import Listener, RouteTable
from nearmesh.snapshot.routes import SnapshotRoutes
from nearmesh.snapshot.seal import check_expiry, opened
from nearmesh.tls import write_private
from nearmesh.v1 import route_pb2 as pb

log = logging.getLogger(__name__)

SNAPSHOT_FILE = "snapshot.pb"
# Several clients of one process may share a file.
_saving = threading.Lock()


class OlderSnapshot(SnapshotRefused):
    """It holds, and a newer one was seen: no wonder when it comes from a node that was away for a while."""


class SnapshotKeeper:
    """Belongs to one event loop, but for `save`. `path` None: nothing is kept on disk."""

    def __init__(
        self,
        ca_pem: bytes,
        path: Path | None,
        *,
        mesh: str = "",
        region: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Reads what an earlier process left; a file that is damaged or was not signed by this mesh counts as none.

        `region` is the one whose part is enough; "" takes whole snapshots alone.
        """
        self._ca_pem = ca_pem
        self._path = path
        self._mesh = mesh
        self._region = region
        self._clock = clock
        self._routes: SnapshotRoutes | None = None
        self._changes = 1
        self._changed = asyncio.Event()
        self.signed: pb.SignedSnapshot | None = None
        self._load()

    @property
    def known(self) -> SnapshotRoutes | None:
        """What was seen last, its time over or not."""
        return self._routes

    def routes(self) -> SnapshotRoutes:
        """Raises NotReady when there is no snapshot, SnapshotExpired when its time is over."""
        if self._routes is None:
            raise NotReady("there is no snapshot of the mesh's routes here yet; another node may have one")
        check_expiry(self._routes.expires_at_s, self._clock())
        return self._routes

    def take(self, signed: pb.SignedSnapshot) -> bool:
        """Makes it the present one; False if that says as much already. Raises SnapshotRefused."""
        if self.signed == signed:
            return False
        snapshot = self._opened(signed)
        known = self._routes
        if known and snapshot.generation < known.generation:
            raise OlderSnapshot(
                f"the snapshot is generation {snapshot.generation}, and {known.generation} was seen before"
            )
        if known and _goes_before(known, snapshot):
            return False
        self._hold(signed, snapshot)
        return True

    def save(self) -> None:
        """Puts the present one on disk, unless another process put a newer one there.

        A full disk costs the file, not the process; the old file stays.
        """
        if self._path is None or self.signed is None or self._routes is None:
            return
        try:
            with _saving:
                kept = self._on_disk(self._path)
                if kept is None or not _goes_before(kept[1], self._routes):
                    write_private(self._path, self.signed.SerializeToString())
        except OSError as error:
            log.warning("the snapshot was not kept in %s: %s", self._path, error)

    def table(self, region: str, listener: Listener) -> RouteTable:
        """Raises as `routes`."""
        return self.routes().table(region, listener)

    async def changed(self, after: int) -> int:
        while self._changes <= after:
            await self._changed.wait()
        return self._changes

    def _load(self) -> None:
        kept = self._on_disk(self._path) if self._path else None
        if kept:
            self._hold(*kept)

    def _on_disk(self, path: Path) -> tuple[pb.SignedSnapshot, pb.Snapshot] | None:
        try:
            signed = pb.SignedSnapshot.FromString(path.read_bytes())
            # One whose time is over still says what may not come back.
            return signed, self._opened(signed, expired_too=True)
        except FileNotFoundError:
            return None
        except (OSError, DecodeError, MeshError) as error:
            log.warning("the snapshot in %s counts as none: %s", path, error)
            return None

    def _opened(self, signed: pb.SignedSnapshot, *, expired_too: bool = False) -> pb.Snapshot:
        """Raises SnapshotRefused, SnapshotExpired."""
        now_s = self._clock()
        snapshot = opened(signed, self._ca_pem, mesh=self._mesh, now_s=now_s, expired_too=expired_too)
        if snapshot.only_region not in ("", self._region):
            needed = f"that of {self._region!r}" if self._region else "all of it"
            raise SnapshotRefused(f"the snapshot is only what {snapshot.only_region!r} needs; here it takes {needed}")
        return snapshot

    def _hold(self, signed: pb.SignedSnapshot, snapshot: pb.Snapshot) -> None:
        self.signed, self._routes = signed, SnapshotRoutes(snapshot)
        self._changes += 1
        self._changed.set()
        self._changed = asyncio.Event()


def _goes_before(known: pb.Snapshot | SnapshotRoutes, offered: pb.Snapshot | SnapshotRoutes) -> bool:
    """Whether what is known is newer, or says as much of the same moment and more."""
    more = bool(offered.only_region) and not known.only_region
    return known.generation > offered.generation or (known.generation == offered.generation and more)
