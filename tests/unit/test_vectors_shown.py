"""What people and Prometheus are shown of vectors at several sites."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from nearmesh_agent.vectors import part
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.config import VectorsConfig
from nearmesh_agent.vectors.front import SERVICE
from nearmesh_agent.vectors.metrics import VectorFigures
from nearmesh_agent.vectors.part import Vectors
from prometheus_client import CollectorRegistry

from nearmesh.cli import node as node_cli
from nearmesh.cli import records
from nearmesh.cli.vectors import state
from nearmesh.cli.vectors_records import collection
from nearmesh.errors import DeadlineExceeded, Unsupported
from nearmesh.v1 import admin_pb2, node_pb2
from nearmesh.v1 import vector_pb2 as pb
from nearmesh.v1.node_pb2 import VectorNode

HERE = Here(node="a", site="left", region="eu")
BEHIND = pb.Collection.Replica(site="right", lag_rows=3, lag_s=7, connected=True)


def replicated(*replicas: pb.Collection.Replica) -> pb.Collection:
    return pb.Collection(collection=pb.CollectionRef(namespace="team", name="docs"), recall=-1, replicas=replicas)


@pytest.mark.parametrize(
    ("replica", "said"),
    [
        (pb.Collection.Replica(site="right", connected=True), "ok"),
        (BEHIND, "right lacks 3 rows, for 7 s"),
        (pb.Collection.Replica(site="right", detail="not connected"), "right is away (not connected)"),
    ],
)
def test_how_far_behind_a_site_is(replica: pb.Collection.Replica, said: str) -> None:
    assert state(collection(replicated(replica))) == said


def test_the_list_of_nodes_says_what_they_keep_where_one_keeps_some(capsys: pytest.CaptureFixture[str]) -> None:
    none = records.node(admin_pb2.Node(id="a"))
    node_cli.print_nodes([none])
    assert "vectors" not in capsys.readouterr().out
    some = records.node(admin_pb2.Node(id="b", vectors=node_pb2.VectorStatus(rows=12345, collections=2)))
    away = records.node(admin_pb2.Node(id="c", vectors=node_pb2.VectorStatus(detail="they are being opened")))
    for record, said in ((none, "-"), (some, "12,345 in 2"), (away, "they are being opened")):
        assert node_cli._vectors(record["vectors"]) == said
    node_cli.print_nodes([none, some])
    assert "vectors" in capsys.readouterr().out


def test_lag_is_a_metric(tmp_path: Path) -> None:
    vectors = Vectors(VectorsConfig(enabled=True), tmp_path, HERE, max_message_bytes=1 << 20)
    vectors.collections = [replicated(BEHIND)]
    registry = CollectorRegistry()
    registry.register(VectorFigures(vectors))
    labels = {"namespace": "team", "collection": "docs", "site": "right"}
    for name, value in (("lag_rows", 3), ("lag_seconds", 7), ("connected", 1)):
        assert registry.get_sample_value(f"nearmesh_vectors_replica_{name}", labels) == value
    assert vectors.status() == node_pb2.VectorStatus(collections=1, detail="they are being opened")


class Server:
    """Notes what it is to answer."""

    def __init__(self) -> None:
        self.methods: dict[str, object] = {}

    def add_registered_method_handlers(self, service: str, handlers: dict[str, object]) -> None:
        self.methods |= {f"{service}/{name}": handler for name, handler in handlers.items()}


async def test_a_node_that_keeps_none_names_those_of_its_site_that_do(tmp_path: Path) -> None:
    nodes = [VectorNode(node="b", site="left"), VectorNode(node="c", site="far")]
    vectors = Vectors(VectorsConfig(), tmp_path, HERE, max_message_bytes=1 << 20, nodes=lambda: nodes)
    server = Server()
    vectors.add_to(server)  # type: ignore[arg-type]
    search = server.methods[f"{SERVICE}/Search"]
    with pytest.raises(Unsupported, match="node a keeps no vectors, at site left b does"):
        await search.unary_unary(b"", None)  # type: ignore[attr-defined]
    nodes.clear()
    with pytest.raises(Unsupported, match="nobody at site left does"):
        await search.unary_unary(b"", None)  # type: ignore[attr-defined]
    assert vectors.status() is None


async def test_a_process_that_takes_long_to_say_what_it_has_is_not_taken_for_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, "LOOK_EVERY_S", 0.001)

    class Slow:
        """As with many collections of which other sites lack much."""

        async def call(self, method: str, message: bytes, *, reach: str, timeout_s: float) -> bytes:
            try:
                async with asyncio.timeout(timeout_s):
                    await asyncio.sleep(0.05)
            except TimeoutError:
                raise DeadlineExceeded("too late") from None
            return pb.ListCollectionsResponse(collections=[replicated()]).SerializeToString()

    vectors = Vectors(VectorsConfig(enabled=True), tmp_path, HERE, max_message_bytes=1 << 20)
    assert await vectors._ask(Slow())  # type: ignore[arg-type]
    assert (len(vectors.collections), vectors.detail) == (1, "")


async def test_a_process_that_cannot_be_started_leaves_one_folder_and_none_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(part, "NEEDED", {})
    monkeypatch.setattr(part, "FIRST_WAIT_S", 0.001)
    tried = asyncio.Event()
    tries: list[int] = []

    async def no_more(*_: object, **__: object) -> None:
        tries.append(len(list((tmp_path / "tmp").iterdir())))
        if len(tries) == 3:
            tried.set()
        raise OSError("no more processes")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", no_more)
    vectors = Vectors(VectorsConfig(enabled=True), tmp_path / ("x" * 100), HERE, max_message_bytes=1 << 20)
    running = asyncio.create_task(vectors.run())
    async with asyncio.timeout(5):
        await tried.wait()
    running.cancel()
    await asyncio.wait({running})
    assert (tries, list((tmp_path / "tmp").iterdir())) == ([1, 1, 1], [])
