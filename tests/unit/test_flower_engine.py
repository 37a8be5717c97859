"""What runs ask of Flower's Control API, and what becomes of its answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto import control_pb2 as pb
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.run_pb2 import Run
from flwr.supercore.protobuf.framing import frame_message
from nearmesh_controlplane.runs.engine import EngineAway, EngineStatus
from nearmesh_controlplane.runs.flower import FlowerEngine

from nearmesh.errors import InvalidInput
from nearmesh.ssh_keys import key_of, ssh_line
from nearmesh.tls import new_key

KEY, OTHER = (ssh_line(new_key().public_key()) for _ in range(2))

Handler = Callable[[httpx.Request], httpx.Response]


def pem(line: str) -> bytes:
    return key_of(line).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class FakeControl:
    """The Control API, as far as runs know it."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, NodeInfo] = {}
        self.called: list[str] = []
        self.runs: dict[int, Run] = {}
        self.answers: dict[str, Handler] = {}
        # Runs whose server app was killed, by their ids.
        self.dead: set[str] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.removeprefix("/v1/control/")
        self.called.append(name)
        if name in self.answers:
            return self.answers[name](request)
        return httpx.Response(200, content=getattr(self, name.replace("-", "_"))(request.content).SerializeToString())

    def list_nodes(self, _content: bytes) -> Any:
        return pb.ListNodesResponse(nodes_info=self.nodes.values())

    def register_node(self, content: bytes) -> Any:
        key = pb.RegisterNodeRequest.FromString(content).public_key
        self.nodes[key] = NodeInfo(node_id=len(self.nodes) + 1, public_key=key, status="registered")
        return pb.RegisterNodeResponse(node_id=self.nodes[key].node_id)

    def list_runs(self, content: bytes) -> Any:
        return pb.ListRunsResponse(run_dict=self.runs)


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
def engine(control: FakeControl) -> FlowerEngine:
    client = httpx.AsyncClient(transport=httpx.MockTransport(control))
    link: Any = SimpleNamespace(
        client=client, url=lambda path: f"https://superlink{path}", server_app_died=lambda run: run in control.dead
    )
    return FlowerEngine(link)


async def test_a_node_is_registered_once(engine: FlowerEngine, control: FakeControl) -> None:
    first = await engine.register({"a": KEY})
    assert first == {"a": control.nodes[pem(KEY)].node_id}
    assert await engine.register({"a": f"{KEY} a remark", "b": OTHER}) == {
        **first,
        "b": control.nodes[pem(OTHER)].node_id,
    }
    assert control.called.count("register-node") == 2


async def test_two_who_register_one_key_agree(engine: FlowerEngine, control: FakeControl) -> None:
    def faster(request: httpx.Request) -> httpx.Response:
        control.register_node(request.content)
        return httpx.Response(412, json={"code": 1, "detail": "Public key already in use."})

    control.answers["register-node"] = faster
    assert await engine.register({"a": KEY}) == {"a": 1}


async def test_p8_a_key_that_was_unregistered_never_comes_back(engine: FlowerEngine, control: FakeControl) -> None:
    await engine.register({"a": KEY})
    control.nodes[pem(KEY)].status = "unregistered"
    control.answers["register-node"] = lambda request: httpx.Response(412)
    with pytest.raises(InvalidInput, match="join anew"):
        await engine.register({"a": KEY})


async def test_online_is_whom_flower_hears(engine: FlowerEngine, control: FakeControl) -> None:
    await engine.register({"a": KEY, "b": OTHER})
    assert await engine.online() == frozenset()
    control.nodes[pem(OTHER)].status = "online"
    assert await engine.online() == {2}


@pytest.mark.parametrize(
    ("status", "sub_status", "state"),
    [
        ("pending", "", "waiting"),
        ("starting", "", "waiting"),
        ("running", "", "running"),
        ("finished", "completed", "finished"),
        ("finished", "failed", "failed"),
        ("finished", "stopped", "stopped"),
        # Of another version of Flower.
        ("dreaming", "", "waiting"),
        ("finished", "vanished", "failed"),
    ],
)
async def test_how_a_run_stands(
    engine: FlowerEngine, control: FakeControl, status: str, sub_status: str, state: str
) -> None:
    run = Run(run_id=7)
    run.status.status, run.status.sub_status, run.status.details = status, sub_status, "why"
    control.runs[7] = run
    assert await engine.status("7") == EngineStatus(state=state, detail="why")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "state"), [("starting", "waiting"), ("running", "failed"), ("finished", "finished")]
)
async def test_a_server_app_that_died_is_known_before_flower_knows_it(
    engine: FlowerEngine, control: FakeControl, status: str, state: str
) -> None:
    run = Run(run_id=7)
    run.status.status, run.status.sub_status = status, "completed" if status == "finished" else ""
    control.runs[7], control.dead = run, {"7"}
    assert (await engine.status("7")).state == state


async def test_a_run_that_is_unknown_is_lost(engine: FlowerEngine, control: FakeControl) -> None:
    control.answers["list-runs"] = lambda request: httpx.Response(404, json={"detail": "Run ID not found."})
    assert (await engine.status("7")).state == "lost"


@pytest.mark.parametrize("status", [404, 412])
async def test_stopping_what_is_over_is_no_error(engine: FlowerEngine, control: FakeControl, status: int) -> None:
    control.answers["stop-run"] = lambda request: httpx.Response(status)
    await engine.stop("7")
    # Upon which Flower throws away what is left of it.
    assert control.called == ["stop-run", "list-runs"]


def unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("nobody listens")


@pytest.mark.parametrize("answer", [unreachable, lambda request: httpx.Response(500, text="boom")])
async def test_a_superlink_that_is_away_is_told_from_a_refusal(
    engine: FlowerEngine, control: FakeControl, answer: Handler
) -> None:
    control.answers = dict.fromkeys(("list-nodes", "list-runs", "stop-run"), answer)
    for call in (engine.online(), engine.status("7"), engine.stop("7"), engine.register({"a": KEY})):
        with pytest.raises(EngineAway):
            await call


async def test_a_refusal_is_told_in_flowers_words(engine: FlowerEngine, control: FakeControl) -> None:
    control.answers["stop-run"] = lambda request: httpx.Response(403, json={"detail": "No.", "extra": "Not yours."})
    with pytest.raises(InvalidInput, match=r"stop-run \(403\): No. Not yours."):
        await engine.stop("7")


async def test_a_key_that_is_none_is_named(engine: FlowerEngine) -> None:
    with pytest.raises(InvalidInput, match="'nonsense' is not an OpenSSH public key"):
        await engine.register({"a": "nonsense"})


@pytest.mark.parametrize("name", ["empty", "missing.fab", "broken.fab"])
async def test_what_is_no_app_is_refused_before_flower_is_asked(
    engine: FlowerEngine, control: FakeControl, tmp_path: Path, name: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.fab").write_bytes(b"no archive")
    with pytest.raises(InvalidInput, match=f"the Flower app .*{name} cannot be run"):
        await engine.start(tmp_path / name, {})
    assert control.called == []


async def test_the_end_of_a_log_without_its_colours(engine: FlowerEngine, control: FakeControl) -> None:
    said = [pb.StreamLogsResponse(log_output=text) for text in ("x" * 9000, "\x1b[91mERROR \x1b[0m: no\n")]
    cut = frame_message(pb.StreamLogsResponse(log_output="half"))[:-2]
    content = b"".join([*map(frame_message, said), cut])
    control.answers["stream-logs"] = lambda request: httpx.Response(200, stream=httpx.ByteStream(content))
    found = await engine.log("7")
    assert (len(found), found[-20:]) == (8000, "xxxxxxxxxERROR : no\n")
    control.answers["stream-logs"] = lambda request: httpx.Response(404, stream=httpx.ByteStream(b"{}"))
    assert await engine.log("7") == ""
