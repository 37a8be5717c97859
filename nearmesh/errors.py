"""Every error that Nearmesh raises on purpose, in one tree.

Each class carries the gRPC status that it travels as and a stable reason, which clients may compare.
`nearmesh.rpc` turns an error into status plus trailing metadata on the server and back again on the client.
"""

from __future__ import annotations

from grpc import StatusCode


class MeshError(Exception):
    """Anything that went wrong in a way that the mesh knows about; the message says what to do."""

    status: StatusCode = StatusCode.INTERNAL
    reason: str = "INTERNAL"

    def __init__(self, message: str, *, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms


class InvalidInput(MeshError):
    """The request cannot be served as it is: a name, dtype, shape, size or value is wrong."""

    status, reason = StatusCode.INVALID_ARGUMENT, "INVALID_INPUT"


class Incomplete(InvalidInput):
    """An upload that lacks bytes which the other side has not, or has no more; sent whole, it may be taken."""

    status, reason = StatusCode.FAILED_PRECONDITION, "INCOMPLETE"


class ConfigError(MeshError):
    """A configuration file or a command line is wrong."""

    status, reason = StatusCode.INVALID_ARGUMENT, "CONFIG"


class PackageError(MeshError):
    """A model package, its manifest or a file in it is wrong."""

    status, reason = StatusCode.INVALID_ARGUMENT, "PACKAGE"


class TooLarge(MeshError):
    """The message is above a configured limit."""

    status, reason = StatusCode.RESOURCE_EXHAUSTED, "TOO_LARGE"


class NotFound(MeshError):
    """No model, version, node or blob of that name."""

    status, reason = StatusCode.NOT_FOUND, "NOT_FOUND"


class AlreadyExists(MeshError):
    """The name is taken by something else."""

    status, reason = StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS"


class Unauthenticated(MeshError):
    """No proof of identity, or one that does not hold."""

    status, reason = StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"


class PermissionDenied(MeshError):
    """The identity is known and may not do this."""

    status, reason = StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"


class JoinRefused(PermissionDenied):
    """A join token that was used, has expired, was forged or names another identity."""

    reason = "JOIN_REFUSED"


class NotReady(MeshError):
    """The model is known and not ready on this node; another node may serve."""

    status, reason = StatusCode.UNAVAILABLE, "NOT_READY"


class Draining(MeshError):
    """The node is leaving; another node may serve."""

    status, reason = StatusCode.UNAVAILABLE, "DRAINING"


class NoRoute(MeshError):
    """No node serves the model at present."""

    status, reason = StatusCode.UNAVAILABLE, "NO_ROUTE"


class Unreachable(MeshError):
    """The other side could not be reached, or the connection broke."""

    status, reason = StatusCode.UNAVAILABLE, "UNREACHABLE"


class NotLeader(MeshError):
    """Another control plane decides at present, or none yet; one of the others may answer."""

    status, reason = StatusCode.UNAVAILABLE, "NOT_LEADER"


class Overloaded(MeshError):
    """The replica's queue is full; another node may serve."""

    status, reason = StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"


class QuotaExceeded(MeshError):
    """A namespace has used up what it may: vectors, bytes, or requests a second."""

    status, reason = StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"


class DeadlineExceeded(MeshError):
    """The answer could not be had in time."""

    status, reason = StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"


class SequenceLost(MeshError):
    """The node has no state of this sequence: it never began here, was silent too long, or its node is gone."""

    status, reason = StatusCode.ABORTED, "SEQUENCE_LOST"


class Superseded(MeshError):
    """What the request was made for has been replaced meanwhile; made anew, it may be taken."""

    status, reason = StatusCode.ABORTED, "SUPERSEDED"


class Unsupported(MeshError):
    """The mesh does not offer this call here."""

    status, reason = StatusCode.UNIMPLEMENTED, "UNSUPPORTED"


class DigestMismatch(MeshError):
    """Bytes are not those that their digest names."""

    status, reason = StatusCode.DATA_LOSS, "DIGEST_MISMATCH"


class SignatureError(MeshError):
    """A model version that nobody who is trusted has signed, or whose signature does not hold."""

    status, reason = StatusCode.DATA_LOSS, "SIGNATURE"


class StorageFull(MeshError):
    """The disk, or what models may take of it, has no room for a version."""

    status, reason = StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL"


class SnapshotRefused(MeshError):
    """A snapshot that this mesh did not sign, that is damaged, or that is older than one that was seen."""

    status, reason = StatusCode.DATA_LOSS, "SNAPSHOT_REFUSED"


class SnapshotExpired(SnapshotRefused):
    """The snapshot's time is over; only a control plane makes a new one."""

    status, reason = StatusCode.UNAVAILABLE, "SNAPSHOT_EXPIRED"


class WarmupFailed(MeshError):
    """A version's warm-up did not give the expected outputs."""

    status, reason = StatusCode.FAILED_PRECONDITION, "WARMUP_FAILED"


class NotInstalled(MeshError):
    """An optional part of the installation is needed for this; the message names it."""

    status, reason = StatusCode.FAILED_PRECONDITION, "NOT_INSTALLED"


class EngineFailure(MeshError):
    """The runtime failed on an input that had passed every check."""

    status, reason = StatusCode.INTERNAL, "ENGINE_FAILURE"


class AlreadyRunning(MeshError):
    """Another process holds this directory or mesh."""

    status, reason = StatusCode.ALREADY_EXISTS, "ALREADY_RUNNING"


def error_classes() -> dict[str, type[MeshError]]:
    """Every error class by its reason."""
    found: dict[str, type[MeshError]] = {}
    todo: list[type[MeshError]] = [MeshError]
    while todo:
        cls = todo.pop()
        # A subclass without a reason of its own is a matter of one side; on the wire it is its base.
        found.setdefault(cls.reason, cls)
        todo.extend(cls.__subclasses__())
    return found
