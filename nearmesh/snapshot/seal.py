"""How a snapshot is signed and what makes one believable: pure, with the time as an argument.

The signature is over the very bytes that travel, so that no two ways to write the same message matter, after a prefix
that says what they are: the same key signs certificates and more, and none of that may pass for a snapshot.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError

from nearmesh.errors import SnapshotExpired, SnapshotRefused
from nearmesh.v1 import route_pb2 as pb

# Bounds what a peer can make a machine read and keep; a control plane sends no larger messages.
MAX_SNAPSHOT_BYTES = 12 * 1024 * 1024
# Clocks may differ by this much, as for certificates: whose clock is further off cannot check those either.
LEEWAY_S = 300.0
# What the key signs elsewhere begins otherwise: certificates with 0x30, JSON with a brace.
_CONTEXT = b"nearmesh snapshot 1\0"


def sealed(snapshot: pb.Snapshot, key: ec.EllipticCurvePrivateKey) -> pb.SignedSnapshot:
    """The snapshot with the signature of the mesh's authority."""
    body = snapshot.SerializeToString(deterministic=True)
    return pb.SignedSnapshot(snapshot=body, signature=key.sign(_CONTEXT + body, ec.ECDSA(hashes.SHA256())))


def opened(
    signed: pb.SignedSnapshot, ca_pem: bytes, *, mesh: str = "", now_s: float, expired_too: bool = False
) -> pb.Snapshot:
    """What was signed, if it is of this mesh, sound, and not over at `now_s` (seconds since the epoch).

    Without `mesh` the CA alone says which mesh it is. `expired_too` lets pass one whose time is over. Raises
    SnapshotRefused, SnapshotExpired.
    """
    if len(signed.snapshot) > MAX_SNAPSHOT_BYTES:
        raise SnapshotRefused(f"a snapshot of {len(signed.snapshot)} bytes; at most {MAX_SNAPSHOT_BYTES} are taken")
    _check_signature(signed, ca_pem)
    try:
        snapshot = pb.Snapshot.FromString(signed.snapshot)
    except DecodeError as error:
        raise SnapshotRefused(f"the snapshot cannot be read: {error}") from None
    if mesh and snapshot.mesh != mesh:
        raise SnapshotRefused(f"the snapshot is of mesh {snapshot.mesh!r}, not {mesh!r}")
    _check_references(snapshot)
    if snapshot.issued_at_s > now_s + LEEWAY_S:
        ahead_s = snapshot.issued_at_s - now_s
        raise SnapshotRefused(f"the snapshot was made {ahead_s:.0f} s in the future; is this machine's clock right?")
    if not expired_too:
        check_expiry(snapshot.expires_at_s, now_s)
    return snapshot


def check_expiry(expires_at_s: float, now_s: float) -> None:
    """Raises SnapshotExpired."""
    over_s = now_s - expires_at_s
    if over_s > LEEWAY_S:
        raise SnapshotExpired(
            f"the snapshot of the mesh's routes expired {over_s / 3600:.1f} h ago; only a control plane makes a new one"
        )


def _check_signature(signed: pb.SignedSnapshot, ca_pem: bytes) -> None:
    try:
        key = x509.load_pem_x509_certificate(ca_pem).public_key()
    except ValueError as error:
        raise SnapshotRefused(f"the mesh's CA cannot be read, so no snapshot can be checked: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise SnapshotRefused("the mesh's CA has no EC key, so it signs no snapshots")
    try:
        key.verify(signed.signature, _CONTEXT + signed.snapshot, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise SnapshotRefused("the snapshot was not signed by this mesh") from None


def _check_references(snapshot: pb.Snapshot) -> None:
    """Every index leads somewhere, so that readers need not ask."""
    nodes, models = len(snapshot.nodes), len(snapshot.models)
    for table in snapshot.tables:
        named = [address.node for address in table.addresses] + list(table.nearest)
        named += [choice.node for route in table.routes for choice in route.choices]
        if max(named, default=-1) >= nodes or max((r.model for r in table.routes), default=-1) >= models:
            raise SnapshotRefused(f"the snapshot's table for {table.region!r} names what the snapshot does not have")
