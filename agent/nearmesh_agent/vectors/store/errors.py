"""What Milvus complains of, as an error of ours that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from nearmesh.errors import EngineFailure, InvalidInput, MeshError, NotFound, NotReady, Unreachable

# Of Milvus: its codes from 2.3 on, and those from before, which Lite gives too.
_NO_COLLECTION, _NO_COLLECTION_BEFORE = 100, 4
_NOT_LOADED, _WRONG, _WRONG_BEFORE = 101, 1100, 5
# What pymilvus gives as a code for a call that never got through: gRPC's own, or its own two.
_AWAY = (2, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_UNAUTHENTICATED, _FORBIDDEN = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
# What gRPC says of a call on a connection that we closed, since nobody is at its other end.
_CLOSED = "Cannot invoke RPC"
_SHOWN_CHARACTERS = 500


class NotLoaded(NotReady):
    """The engine has the collection on disk only: after a restart, or because somebody released it."""


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Raises a MeshError for what pymilvus raises inside."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        raise _ours(error, where) from error
    except grpc.RpcError as error:
        raise Unreachable(f"Milvus at {where}: {_said(error)}") from error


def _ours(error: Exception, where: str) -> MeshError:
    from pymilvus.exceptions import ConnectionConfigException, MilvusUnavailableException, ParamError

    said, code = _said(error), getattr(error, "code", 1)
    before = getattr(error, "compatible_code", 1)
    if "auth check failure" in said or _refused(error):
        # The node's, not the caller's: it is not for the caller to prove who he is.
        return NotReady(f"Milvus at {where} refuses the node's token; set what `token_variable` names: {said}")
    if isinstance(error, MilvusUnavailableException | ConnectionConfigException) or code in _AWAY or _CLOSED in said:
        return Unreachable(f"Milvus at {where} does not answer: {said}")
    if code == _NO_COLLECTION or before == _NO_COLLECTION_BEFORE or "collection not found" in said:
        return NotFound(f"Milvus at {where}: {said}")
    if code == _NOT_LOADED:
        return NotLoaded(f"Milvus at {where}: {said}")
    if isinstance(error, ParamError) or code == _WRONG or before == _WRONG_BEFORE:
        return InvalidInput(f"Milvus at {where}: {said}")
    return EngineFailure(f"Milvus at {where}: {said}")


def _refused(error: BaseException) -> bool:
    """Whether a server said so under what pymilvus says, which takes it for one that is not there."""
    seen: list[BaseException] = []
    found: BaseException | None = error
    # pymilvus raises errors from themselves.
    while found is not None and found not in seen:
        if isinstance(found, grpc.Call) and found.code() in (_UNAUTHENTICATED, _FORBIDDEN):
            return True
        seen.append(found)
        found = found.__cause__ if found.__cause__ not in (None, found) else found.__context__
    return False


def _said(error: Exception) -> str:
    message = getattr(error, "message", None) or str(error)
    return str(message)[:_SHOWN_CHARACTERS]
