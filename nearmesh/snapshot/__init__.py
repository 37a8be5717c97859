"""The mesh without its control plane: signed, expiring snapshots of everything that routes depend on.

The control plane makes them and signs them with the mesh's own key; whoever holds the mesh's CA can check one, from
whomever it came. Nodes, gateways and clients keep the newest on disk, start from it, and give it to each other.
"""

from nearmesh.snapshot.keeper import SnapshotKeeper
from nearmesh.snapshot.routes import SnapshotRoutes
from nearmesh.snapshot.seal import MAX_SNAPSHOT_BYTES, opened, sealed

__all__ = ["MAX_SNAPSHOT_BYTES", "SnapshotKeeper", "SnapshotRoutes", "opened", "sealed"]
