"""The way of nodes' SuperNodes to the SuperLink: Flower's Fleet API, passed on from the HTTPS listener.

Nothing of the SuperLink but this is reached from outside, and of this nothing but what a SuperNode needs that the
control plane has registered. Let in is whoever proves, as Flower's SuperNodes do with each request, that it has the key
of a node that is a member, was not removed, and whose operator allows training. Bodies go through in pieces: a model's
arrays are never held here.

A SuperNode ends itself when it is answered 401, and tries again later when it is answered 502, 503 or 504.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime

import httpx
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from nearmesh.errors import MeshError, NotReady, Unauthenticated
from nearmesh.ssh_keys import ssh_line
from nearmesh_controlplane.registry.training import Training
from nearmesh_controlplane.runs.superlink import SuperLink

log = logging.getLogger(__name__)

# Flower's HTTP APIs, of which nobody else serves any here.
PREFIX = "/v1/"
# What a SuperNode calls that was registered for it; registering itself is the control plane's.
CALLS = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
# By which a SuperNode proves itself: its public key, the time in ISO 8601, and its signature of that.
PUBLIC_KEY, TIMESTAMP, SIGNATURE = "flwr-public-key", "flwr-timestamp", "flwr-signature"
# As the SuperLink has it: a proof holds for so long, and machines' clocks may differ by so much.
PROOF_HOLDS_S, CLOCKS_DIFFER_S = 300.0, 5.0
# A key in PEM has 178 characters and a signature 72; in Base64 a third more.
MAX_PROOF_CHARACTERS = 1_000

# Arrays come in pieces of 5 MiB (Flower's FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE), beside which there is little.
MAX_BODY_BYTES = 16 * 1024 * 1024
# A body that takes longer is given up: over the slowest of lines 5 MiB take about a minute.
BODY_WITHIN_S = 300.0

# Calls of one node at a time; a SuperNode makes some ten.
MAX_CALLS = 32

# Headers that are passed on, there and back, beside Flower's own.
_ASKED = ("content-type", "content-length", "accept")
_ANSWERED = ("content-type", "content-length", "content-encoding")
_FLOWERS_OWN = "flwr-"


class TooMuch(Exception):
    """A body above the limit."""


class FleetApi:
    """Takes what is Flower's, and leaves everything else to `app`."""

    def __init__(self, app: ASGIApp, superlink: SuperLink, training: Training) -> None:
        self._app = app
        self._superlink = superlink
        self._training = training
        self._under_way: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        await self._answer(Request(scope, receive))(scope, receive, send)

    def _answer(self, request: Request) -> ASGIApp:
        if request.method != "POST" or request.url.path not in CALLS:
            return _error(404, "of Flower's APIs only what SuperNodes call is offered here")
        try:
            node = self._admit(request.headers)
        except MeshError as error:
            log.info("refused client=%s path=%s: %s", request.client, request.url.path, error.message)
            return _error(503 if isinstance(error, NotReady) else 401, error.message)
        if not self._superlink.up:
            return _error(503, "no SuperLink is running here, since no federated run asks for one")
        if self._under_way[node] >= MAX_CALLS:
            return _error(503, f"{MAX_CALLS} calls of this node are under way")

        async def passed_on(scope: Scope, receive: Receive, send: Send) -> None:
            self._under_way[node] += 1
            try:
                await (await self._asked(request, node))(scope, receive, send)
            except ClientDisconnect:
                pass
            finally:
                self._under_way[node] -= 1

        return passed_on

    async def _asked(self, request: Request, node: str) -> Response:
        try:
            return await self._passed_on(request)
        except TooMuch:
            return _error(413, f"a body of more than {MAX_BODY_BYTES} bytes")
        except TimeoutError:
            return _error(408, f"the body did not come within {BODY_WITHIN_S:.0f} s")
        except (httpx.HTTPError, NotReady) as error:
            log.info("not passed on node=%s path=%s: %r", node, request.url.path, error)
            return _error(502, "the SuperLink does not answer")

    def _admit(self, headers: Mapping[str, str]) -> str:
        """The node that asks. Raises Unauthenticated, or NotReady where a node may still say that it trains."""
        key = proven_key(headers, datetime.now(UTC))
        node = self._training.node_of(key)
        if node is None and not self._training.settled:
            raise NotReady("the control plane has just begun, and has not heard yet which nodes train")
        if node is None:
            raise Unauthenticated("the SuperNode's key is not of a node of this mesh that may train")
        return node

    async def _passed_on(self, request: Request) -> Response:
        if int(request.headers.get("content-length") or 0) > MAX_BODY_BYTES:
            raise TooMuch
        client = self._superlink.client
        outgoing = client.build_request(
            "POST",
            self._superlink.url(request.url.path),
            content=_bounded(request.stream()),
            headers=_passing(request.headers, _ASKED) | {"accept-encoding": "identity"},
        )
        async with asyncio.timeout(BODY_WITHIN_S):
            answer = await client.send(outgoing, stream=True)
        return _Streamed(answer)


class _Streamed(StreamingResponse):
    """What the SuperLink answers, as it comes."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(
            answer.aiter_raw(), status_code=answer.status_code, headers=_passing(answer.headers, _ANSWERED)
        )
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except httpx.HTTPError as error:
            # The head is sent; the connection is cut, since the answer is not whole.
            log.info("the SuperLink's answer broke off: %r", error)
        finally:
            await self._answer.aclose()


def proven_key(headers: Mapping[str, str], now: datetime) -> str:
    """The public key whose owner makes the request, as an OpenSSH line. Raises Unauthenticated."""
    try:
        shown, said_at, signature = (headers[name] for name in (PUBLIC_KEY, TIMESTAMP, SIGNATURE))
        if max(map(len, (shown, said_at, signature))) > MAX_PROOF_CHARACTERS:
            raise Unauthenticated("the SuperNode's proof of its key is too long")
        key = load_pem_public_key(base64.b64decode(shown, validate=True))
        age_s = (now - datetime.fromisoformat(said_at)).total_seconds()
        if not -CLOCKS_DIFFER_S < age_s < PROOF_HOLDS_S + CLOCKS_DIFFER_S:
            raise Unauthenticated(f"the SuperNode's proof is of {said_at}; is its machine's clock right?")
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise Unauthenticated("the SuperNode's key is not an EC key")
        key.verify(base64.b64decode(signature, validate=True), said_at.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        return ssh_line(key)
    except KeyError as error:
        raise Unauthenticated(f"no header {error}: Flower's SuperNode authentication is asked for") from None
    except (ValueError, TypeError, UnsupportedAlgorithm, binascii.Error) as error:
        raise Unauthenticated(f"the SuperNode's proof cannot be read: {error}") from None
    except InvalidSignature:
        raise Unauthenticated("the SuperNode's signature does not hold") from None


async def _bounded(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Raises TooMuch."""
    left = MAX_BODY_BYTES
    async for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise TooMuch
        if piece:
            yield piece


def _passing(headers: Mapping[str, str], named: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name in named or name.startswith(_FLOWERS_OWN)}


def _error(status: int, message: str) -> Response:
    """As Flower's own errors are written."""
    return Response(json.dumps({"detail": message}), status_code=status, media_type="application/json")
