"""Who gets through to the SuperLink, with what, and what everybody else is answered."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common import constant
from flwr.supercore import constant as more_constant
from nearmesh_controlplane.runs.engine import EngineAway
from nearmesh_controlplane.web import fleet_api
from nearmesh_controlplane.web.fleet_api import CALLS, MAX_BODY_BYTES, MAX_CALLS, FleetApi
from starlette.responses import PlainTextResponse

from nearmesh.ssh_keys import ssh_line
from nearmesh.tls import new_key

KEY, STRANGER = new_key(), new_key()
PULL = "/v1/fleet/pull-messages"

Answer = Callable[[httpx.Request], httpx.Response]


def proof(key: ec.EllipticCurvePrivateKey = KEY, at: datetime | None = None, **other: str) -> dict[str, str]:
    """What a SuperNode sends with each request."""
    said_at = (at or datetime.now(UTC)).isoformat()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(said_at.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": base64.b64encode(pem).decode(),
        "flwr-timestamp": said_at,
        "flwr-signature": base64.b64encode(signature).decode(),
        "content-type": "application/protobuf",
    } | other


def answered(status: int, content: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.Response(status, stream=httpx.ByteStream(content), headers=headers)


class FakeTraining:
    """Knows one node, by its key."""

    def __init__(self) -> None:
        self.nodes = {ssh_line(KEY.public_key()): "node-a"}
        self.settled = True

    def node_of(self, key: str) -> str | None:
        return self.nodes.get(key)


class FakeSuperLink:
    """Keeps what it is asked, and answers as a test says."""

    def __init__(self) -> None:
        self.up = True
        self.asked: list[tuple[httpx.Request, bytes]] = []
        self.answer: Answer = lambda request: answered(200, b"pulled", {"x-other": "1"})
        self.client = httpx.AsyncClient(transport=httpx.MockTransport(self._handle))

    def url(self, path: str) -> str:
        return f"https://127.0.0.1:1{path}"

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        content = await request.aread()
        self.asked.append((request, content))
        return self.answer(request)


@pytest.fixture
async def served() -> AsyncIterator[Any]:
    link, training = FakeSuperLink(), FakeTraining()
    api: Any = FleetApi(PlainTextResponse("the others'"), link, training)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="https://cp") as client, link.client:
        yield SimpleNamespace(link=link, training=training, client=client, api=api)


def said(response: httpx.Response) -> str:
    return str(json.loads(response.content)["detail"])


async def test_a_registered_node_gets_through_with_its_proof_and_its_body(served: Any) -> None:
    headers = proof(**{"flwr-package-version": "1.41.0", "cookie": "private", "authorization": "Bearer x"})
    answer = await served.client.post(PULL, content=b"pull", headers=headers)
    assert (answer.status_code, answer.content) == (200, b"pulled")
    assert "x-other" not in answer.headers
    ((request, content),) = served.link.asked
    assert (str(request.url), content) == ("https://127.0.0.1:1/v1/fleet/pull-messages", b"pull")
    assert {name: request.headers[name] for name in headers if name in request.headers} == {
        name: value for name, value in headers.items() if name not in ("cookie", "authorization")
    }


async def test_what_is_not_flowers_goes_on_to_the_others(served: Any) -> None:
    assert (await served.client.get("/v2/")).text == "the others'"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/list-nodes",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/pull-messages/../../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
    ],
)
async def test_p8_nothing_else_of_the_superlink_is_there(served: Any, path: str) -> None:
    answer = await served.client.post(path, content=b"", headers=proof())
    assert (answer.status_code, served.link.asked) == (404, [])


async def test_only_posts_are_taken(served: Any) -> None:
    assert (await served.client.get(PULL, headers=proof())).status_code == 404


@pytest.mark.parametrize(
    ("made", "why"),
    [
        # Made when they are sent: collected and run may be further apart than a clock may be wrong.
        (dict, "no header 'flwr-public-key'"),
        (lambda: proof(STRANGER), "is not of a node of this mesh that may train"),
        (lambda: proof() | {"flwr-signature": proof(STRANGER)["flwr-signature"]}, "signature does not hold"),
        (lambda: proof() | {"flwr-signature": "!"}, "cannot be read"),
        (lambda: proof() | {"flwr-public-key": base64.b64encode(b"no key").decode()}, "cannot be read"),
        (lambda: proof() | {"flwr-public-key": "A" * 2000}, "too long"),
        (lambda: proof(at=datetime.now(UTC) - timedelta(seconds=400)), "clock right"),
        # Further than a whole run of the tests takes.
        (lambda: proof(at=datetime.now(UTC) + timedelta(days=1)), "clock right"),
        (lambda: proof(at=datetime.now()), "cannot be read"),
    ],
)
async def test_p8_whoever_does_not_prove_a_nodes_key_is_refused(
    served: Any, made: Callable[[], dict[str, str]], why: str
) -> None:
    answer = await served.client.post(PULL, content=b"", headers=made())
    assert (answer.status_code, served.link.asked) == (401, [])
    assert why in said(answer)


async def test_p8_a_node_is_cut_off_at_once_when_it_is_removed(served: Any) -> None:
    assert (await served.client.post(PULL, headers=proof())).status_code == 200
    served.training.nodes.clear()
    assert (await served.client.post(PULL, headers=proof())).status_code == 401


async def test_after_a_restart_a_node_is_told_to_come_again(served: Any) -> None:
    served.training.settled, served.training.nodes = False, {}
    answer = await served.client.post(PULL, headers=proof())
    assert (answer.status_code, said(answer)) == (
        503,
        "the control plane has just begun, and has not heard yet which nodes train",
    )


async def test_without_a_superlink_a_node_is_told_to_come_again(served: Any) -> None:
    served.link.up = False
    answer = await served.client.post(PULL, headers=proof())
    assert (answer.status_code, served.link.asked) == (503, [])


@pytest.mark.parametrize("error", [httpx.ConnectError("gone"), httpx.ReadTimeout("silent"), EngineAway("gone")])
async def test_a_superlink_that_dies_meanwhile_is_a_reason_to_come_again(served: Any, error: Exception) -> None:
    def dies(request: httpx.Request) -> httpx.Response:
        raise error

    served.link.answer = dies
    assert (await served.client.post(PULL, headers=proof())).status_code == 502


async def test_the_superlinks_own_refusal_is_passed_on(served: Any) -> None:
    served.link.answer = lambda request: answered(401, b'{"detail": "Invalid"}')
    answer = await served.client.post(PULL, headers=proof())
    assert (answer.status_code, said(answer)) == (401, "Invalid")


@pytest.mark.parametrize("told", [True, False], ids=["length told", "in pieces"])
async def test_a_body_is_bounded(served: Any, told: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            yield bytes(2**20)

    content: Any = bytes(MAX_BODY_BYTES + 1) if told else pieces()
    answer = await served.client.post("/v1/fleet/push-object", content=content, headers=proof())
    assert answer.status_code == 413


async def test_calls_of_one_node_at_a_time_are_bounded(served: Any) -> None:
    served.api._under_way["node-a"] = MAX_CALLS
    assert (await served.client.post(PULL, headers=proof())).status_code == 503
    served.api._under_way["node-a"] = MAX_CALLS - 1
    assert (await served.client.post(PULL, headers=proof())).status_code == 200
    assert served.api._under_way["node-a"] == MAX_CALLS - 1


def test_the_names_and_bounds_are_flowers_own() -> None:
    from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

    fleet = {path for method, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/fleet/") and method == "POST"}
    assert fleet - CALLS == {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert fleet >= CALLS
    assert fleet_api.PUBLIC_KEY == more_constant.FLEET_HTTP_PUBLIC_KEY_HEADER
    assert fleet_api.SIGNATURE == more_constant.FLEET_HTTP_SIGNATURE_HEADER
    assert fleet_api.TIMESTAMP == constant.TIMESTAMP_HEADER
    assert constant.TIMESTAMP_TOLERANCE == fleet_api.PROOF_HOLDS_S
    assert constant.SYSTEM_TIME_TOLERANCE == fleet_api.CLOCKS_DIFFER_S
    assert constant.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE * 2 < MAX_BODY_BYTES
