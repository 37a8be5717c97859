"""What every gRPC server of the mesh does around a call: who asks, may they, and how errors travel.

`transport.call.Call` asks the gatekeeper for each call and sends an error of `nearmesh.errors` as a status with
trailing metadata; `from_rpc_error` turns it back on the client. Anything else that escapes a servicer is a bug: logged
with its traceback and answered INTERNAL without detail.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError

from nearmesh.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidInput,
    MeshError,
    NotFound,
    PermissionDenied,
    TooLarge,
    Unauthenticated,
    Unreachable,
    Unsupported,
    error_classes,
)
from nearmesh.ids import MachineId
from nearmesh.ssh_keys import ssh_line
from nearmesh.tls import machine_in
from nearmesh.tokens import TokenVerifier

log = logging.getLogger(__name__)

# Trailing metadata.
Trailing = tuple[tuple[str, str | bytes], ...]

# Metadata before an answer: the node that it comes from, also when the rest of it is lost.
NODE_KEY = "nearmesh-node"
REASON_KEY = "nearmesh-reason"
RETRY_AFTER_KEY = "nearmesh-retry-after-ms"

# Status details travel percent-encoded in a header, and gRPC refuses headers above 8 KiB; a message may quote what a
# caller sent.
MAX_MESSAGE_CHARACTERS = 600

# Role of a caller that showed nothing; a method is open to all when its policy lists it.
ANYONE = "anyone"
PEOPLE = frozenset({"client", "data", "operator"})
OPERATORS = frozenset({"operator"})
# Who may have models trained, and put into serving what comes of it.
TRAINERS = frozenset({"data", "operator"})
MACHINES = frozenset({"node", "gateway"})
EVERYONE = PEOPLE | MACHINES | {ANYONE}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes a call. `role` is a token's role, "node" or "gateway" for a certificate, or "anyone"."""

    name: str
    role: str
    # Whose vectors a token reaches, and no others; empty: as the role may.
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.role}/{self.name}" if self.name else self.role


# Who showed neither a certificate nor a token.
NOBODY = Identity("", ANYONE)

_caller: ContextVar[Identity] = ContextVar("nearmesh_caller")


def answering(who: Identity) -> None:
    """A call of `who` is answered from here on, in this task."""
    _caller.set(who)


def caller() -> Identity:
    """Who makes the call that is being answered. Only inside a servicer's method."""
    return _caller.get()


class CallContext(Protocol):
    """What tells who calls; gRPC's own context does."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]: ...

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...

    def peer(self) -> str: ...


@dataclass(slots=True, kw_only=True)
class Gatekeeper:
    """Decides who a caller is and whether the method is theirs to call.

    `policy` maps a full method name ("/package.Service/Method") or a service ("/package.Service/") to the roles that
    may call it; what it does not name, nobody may call. A certificate counts only if the mesh's CA signed it, which
    the listener has checked, and if its node has not been removed.
    """

    mesh: str
    verifier: TokenVerifier | None
    policy: Mapping[str, Collection[str]]
    # Ids of machines whose certificates are refused; read at each call, so that it may change.
    removed: Callable[[], Collection[str]] = frozenset
    # For an agent tried out alone on loopback: no token is asked for.
    open_door: bool = False

    def admit(self, context: CallContext, method: str) -> Identity:
        """The caller, if it may call `method`. Raises Unauthenticated or PermissionDenied."""
        try:
            who = self._identify(context)
            self.check(who, method)
        except MeshError as error:
            log.info("refused peer=%s method=%s reason=%s", context.peer(), method, error.message)
            raise
        return who

    def check(self, who: Identity, method: str) -> None:
        """Raises PermissionDenied unless `who` may (still) call `method`."""
        roles = self.policy.get(method) or self.policy.get(method[: method.rindex("/") + 1]) or ()
        if who.role in MACHINES and who.name in self.removed():
            raise PermissionDenied(f"{who} was removed from mesh {self.mesh}; it can join again under another name")
        if ANYONE in roles:
            return
        if who.role == ANYONE and not self.open_door:
            raise Unauthenticated("no token: send 'authorization: Bearer TOKEN', or a certificate to the mesh listener")
        if who.role not in roles and not self.open_door:
            raise PermissionDenied(f"{who} may not call {method}; it needs {' or '.join(sorted(roles)) or 'nobody'}")

    def _identify(self, context: CallContext) -> Identity:
        certificates = [*context.auth_context().get("x509_pem_cert", ())]
        if certificates:
            return self._machine(certificates[0])
        for key, value in context.invocation_metadata() or ():
            if key == "authorization" and self.verifier:
                scheme, _, token = str(value).partition(" ")
                if scheme.lower() != "bearer":
                    raise Unauthenticated(f"authorization scheme {scheme!r} is not 'Bearer'")
                bearer = self.verifier.access(token.strip())
                return Identity(bearer.subject, bearer.role, bearer.namespace)
        return NOBODY

    def _machine(self, pem: bytes) -> Identity:
        who = _machine_in(pem)
        if who is None or who.mesh != self.mesh:
            raise Unauthenticated(f"the certificate names no machine of mesh {self.mesh}")
        return Identity(who.id, who.kind)


# The same for every call on a connection.
@lru_cache(maxsize=1024)
def _machine_in(pem: bytes) -> MachineId | None:
    return machine_in(x509.load_pem_x509_certificate(pem))


def shown_key(context: CallContext) -> str:
    """The public key of the certificate that a machine shows, as an OpenSSH line; empty where it shows none."""
    certificates = [*context.auth_context().get("x509_pem_cert", ())]
    key = x509.load_pem_x509_certificate(certificates[0]).public_key() if certificates else None
    return ssh_line(key) if isinstance(key, ec.EllipticCurvePublicKey) else ""


@dataclass(frozen=True, slots=True)
class Failure:
    """How an error travels."""

    code: grpc.StatusCode
    message: str
    metadata: Trailing = ()


def failure(error: Exception, method: str) -> Failure:
    """What the caller of `method` is told. Anything but an error of the mesh is a bug, and logged as one."""
    if isinstance(error, NotImplementedError):
        # Generated code raises it for a method of the contract that the servicer does not have.
        error = Unsupported(f"{method} is not offered here")
    if isinstance(error, MeshError):
        log.debug("failed method=%s reason=%s: %s", method, error.reason, error.message)
        return Failure(error.status, error.message[:MAX_MESSAGE_CHARACTERS], error_metadata(error))
    log.error("bug in method=%s", method, exc_info=error)
    return Failure(grpc.StatusCode.INTERNAL, "internal error; the server's log has the cause")


def unreadable(size: int, error: DecodeError) -> InvalidInput:
    """What a caller is told whose bytes are no message."""
    return InvalidInput(f"the {size} bytes of the request cannot be parsed: {error}")


def error_metadata(error: MeshError) -> Trailing:
    """The trailing metadata that an error travels with."""
    metadata: list[tuple[str, str | bytes]] = [(REASON_KEY, error.reason)]
    if error.retry_after_ms is not None:
        metadata.append((RETRY_AFTER_KEY, str(error.retry_after_ms)))
    return tuple(metadata)


# What a status means when the other side sent no reason of ours: a proxy, or gRPC itself, made it. Where nothing
# stands here, the error is a plain MeshError: of a cause that only we know, nobody else tells.
_BY_STATUS: dict[grpc.StatusCode, type[MeshError]] = {
    cls.status: cls
    for cls in (
        AlreadyExists,
        DeadlineExceeded,
        InvalidInput,
        NotFound,
        PermissionDenied,
        TooLarge,
        Unauthenticated,
        Unreachable,
        Unsupported,
    )
}


def from_rpc_error(error: grpc.RpcError) -> MeshError:
    """The error that the other side raised, or the closest one to a status that gRPC made itself."""
    code: grpc.StatusCode = error.code()
    metadata: Iterable[tuple[str, str | bytes]] = error.trailing_metadata() or ()  # type: ignore[assignment]
    trailing = {key: str(value) for key, value in metadata}
    cls = error_classes().get(trailing.get(REASON_KEY, "")) or _BY_STATUS.get(code, MeshError)
    retry_after = trailing.get(RETRY_AFTER_KEY)
    message = error.details() or f"the call failed with {code.name}"
    found = cls(message, retry_after_ms=int(retry_after) if retry_after and retry_after.isdecimal() else None)
    found.status = code
    return found
