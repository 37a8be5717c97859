"""`nearmesh vectors` over a node that is only pretended: what is asked of it, and what is printed where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearmesh.client import passages, vectors
from nearmesh.client.vectors import Passage, vector_bytes
from nearmesh.errors import InvalidInput
from nearmesh.v1 import vector_pb2 as pb
from tests.fake_admin import Bench, local_mesh

COLLECTION = pb.Collection(
    collection=pb.CollectionRef(namespace="default", name="docs"),
    dimension=384,
    metric=pb.METRIC_COSINE,
    embedder="sentence-encoder",
    embedder_digest="sha256:ab",
    embedder_stale=True,
    rows=1234,
    bytes=5_000_000,
    recall=0.987,
    generation=1,
    next_generation=0.25,
    next_generation_number=3,
    served_by="memory",
    site="a",
    replicate_to=["b", "c"],
    fields=[pb.Field(name="year", type=pb.FIELD_TYPE_INT)],
    replicas=[pb.Collection.Replica(site="b", lag_rows=7, lag_s=3, connected=True), pb.Collection.Replica(site="c")],
)
HIT = pb.Hit(row=pb.Row(id="a-1", text="words\nover lines"), score=0.75, site="site-a", node="node-a")
HIT.row.fields["year"].int = 2020
HIT.row.origin.source = "a.md"


class FakeNode:
    """A VectorClient that notes what it was asked."""

    asked: list[Any]

    def __init__(self, address: str, ca_pem: bytes, token: str, *, server_name: str = "") -> None:
        type(self).asked = [("to", address, server_name)]

    async def __aenter__(self) -> FakeNode:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return self._stub if name == "stub" else super().__getattribute__(name)

    class _stub:
        def __getattr__(self, name: str) -> str:
            return name

    _stub = _stub()  # type: ignore[assignment,misc]

    def collection(self, name: str, *, namespace: str = "") -> vectors.Collection:
        return vectors.Collection(self, pb.CollectionRef(name=name, namespace=namespace))  # type: ignore[arg-type]

    create = vectors.VectorClient.create
    list = vectors.VectorClient.list

    async def call(self, method: Any, request: Any, **_: Any) -> Any:
        self.asked.append((method, request))
        answers: dict[str, Any] = {
            "CreateCollection": COLLECTION,
            "GetCollection": COLLECTION,
            "UpdateCollection": COLLECTION,
            "ListCollections": pb.ListCollectionsResponse(
                collections=[COLLECTION],
                namespaces=[pb.NamespaceUse(namespace="default", rows=1234, max_rows=2000)],
            ),
            "DropCollection": pb.DropCollectionResponse(rows=1234),
            "Upsert": pb.UpsertResponse(written=1),
            "Delete": pb.DeleteResponse(deleted=3, change=9),
            "Count": pb.CountResponse(rows=5),
            "Fetch": pb.FetchResponse(rows=[HIT.row]),
            "Search": pb.SearchResponse(
                hits=[HIT],
                took_ms=0.5,
                way="index",
                contributions=[pb.Contribution(node="node-b", site="b", missing="late")],
            ),
            "Retrieve": pb.RetrieveResponse(
                hits=[HIT], timings=pb.RetrieveResponse.Timings(embed_ms=4, dense_ms=1, total_ms=5.5)
            ),
            "ListSources": pb.ListSourcesResponse(
                sources=[pb.Source(name="a.md", parts_here=2, parts=3, stale_parts=1, written_at_s=1)]
            ),
            "ListReceipts": pb.ListReceiptsResponse(
                receipts=[
                    pb.ListReceiptsResponse.Receipt(
                        id="x", deleted_at_s=1, sites=[pb.ListReceiptsResponse.Site(site="b", node="n")]
                    )
                ]
            ),
        }
        return answers[method]


async def test_what_a_fetch_leaves_out_is_asked_for_next() -> None:
    asked: list[list[str]] = []

    class Parts(FakeNode):
        async def call(self, method: Any, request: Any, **_: Any) -> Any:
            asked.append(list(request.ids))
            return pb.FetchResponse(rows=[pb.Row(id=request.ids[0])], looked_up=min(2, len(request.ids)))

    found = await Parts("", b"", "").collection("docs").fetch(["a", "b", "c"])
    assert ([one.id for one in found], asked) == (["a", "c"], [["a", "b", "c"], ["c"]])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in ("NEARMESH_MESH", "NEARMESH_CONTROL_PLANE", "NEARMESH_CA", "NEARMESH_TOKEN", "NEARMESH_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(vectors, "VectorClient", FakeNode)
    bench = Bench(local_mesh(tmp_path))
    state = json.loads((bench.mesh / "mesh.json").read_text())
    state.pop("nodes", None)
    (bench.mesh / "mesh.json").write_text(json.dumps(state))
    bench.pretend(keepers=["node-a"])
    return bench


def asked(method: str) -> Any:
    return next(request for name, request in FakeNode.asked[1:] if name == method)


def test_collections_as_a_table_and_as_json(run: Bench) -> None:
    done = run("vectors", "list")
    assert done.exit_code == 0, done.output
    for word in ("docs", "1,234", "98.7 %", "reembed", "generation 3 has 25 %", "b lacks 7 rows, for 3 s", "c is away"):
        assert word in done.stdout
    assert "1,234 of 2,000 vectors" in done.stderr
    assert FakeNode.asked[0][:2] == ("to", "node-a:8001")
    found = json.loads(run("vectors", "list", "--json", "--all").stdout)
    assert asked("ListCollections").namespace == "*"
    assert found["collections"][0]["recall"] == pytest.approx(0.987)
    assert found["namespaces"][0]["max_bytes"] is None


def test_a_collection_is_made_as_it_was_asked_for(run: Bench) -> None:
    options = ("--embedder", "sentence-encoder", "--field", "year:int", "--replicate-to", "b", "--region", "us-east1")
    done = run("vectors", "create", "docs", *options, "--namespace", "acme", "--language", "german")
    assert done.exit_code == 0, done.output
    request = asked("CreateCollection")
    assert (request.embedder, request.collection.namespace, list(request.replicate_to), request.language) == (
        "sentence-encoder",
        "acme",
        ["b"],
        "german",
    )
    assert [(one.name, one.type) for one in request.fields] == [("year", pb.FIELD_TYPE_INT)]
    assert "1,234, 5.0 MB" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("create", "docs"),
        ("create", "docs", "--dimension", "3", "--field", "year:date"),
        ("delete", "docs"),
        ("create", "docs", "--dimension", "3", "--field", "year:int", "--field", "year:string"),
        ("update", "docs"),
        ("update", "docs", "--replicate-to", "b", "--replicate-nowhere"),
        ("update", "docs", "--region", "b", "--region-any"),
        ("search", "docs", "[1, 2", "--k", "3"),
        ("search", "docs", "[" * 100_000),
        ("search", "docs", "[1]", "--within-ms", "5"),
        ("search", "docs", "[1]", "--k", "0"),
        ("search", "docs", "[1]", "--reach-name", "b"),
        ("retrieve", "docs", "x", "--mode", "magic"),
    ],
)
def test_usage_errors_ask_nothing(run: Bench, words: tuple[str, ...]) -> None:
    FakeNode.asked = []
    assert run("vectors", *words).exit_code == 2
    assert FakeNode.asked == []


def test_rows_are_counted_fetched_and_deleted(run: Bench) -> None:
    assert run("vectors", "count", "docs", "--filter", "year > 3").stdout == "5\n"
    assert asked("Count").filter == "year > 3"
    done = run("vectors", "fetch", "docs", "a-1", "nope")
    assert json.loads(done.stdout)["fields"] == {"year": 2020}
    assert "1 of 2 are not there" in done.stderr
    assert run("vectors", "delete", "docs", "--id", "x").stdout == "3 rows deleted\n"
    done = run("vectors", "delete", "docs", "--filter", "year > 3")
    assert done.exit_code == 130 and asked("Delete").dry_run and len(FakeNode.asked) == 2
    assert "drop docs with 1,234 rows, at a and b and c?" in run("vectors", "drop", "docs").stderr
    assert run("vectors", "drop", "docs", "--yes").stdout == "docs is gone, with 1,234 rows\n"


def test_words_that_are_no_text_are_told(run: Bench) -> None:
    done = run("vectors", "count", "docs", "--filter", "year > \udcff")
    assert done.exit_code == 1
    assert done.stderr == r"error: 'year > \udcff' has bytes that are no UTF-8, which no message carries" + "\n"


def test_searches_and_passages(run: Bench) -> None:
    done = run("vectors", "search", "docs", "[1, 0.5]", "--k", "3", "--reach", "region", "--reach-name", "us-east1")
    assert done.exit_code == 0, done.output
    request = asked("Search")
    assert request.vector == vector_bytes([1, 0.5])
    assert (request.k, request.reach.scope, request.reach.name) == (3, pb.Reach.SCOPE_REGION, "us-east1")
    assert "words over lines" in done.stdout and "0.7500" in done.stdout
    assert "node-b at b has not answered: late" in done.stderr
    done = run("vectors", "retrieve", "docs", "When?", "--mode", "dense", "--json")
    assert json.loads(done.stdout)["timings"]["embed_ms"] == 4
    assert asked("Retrieve").mode == pb.RetrieveRequest.MODE_DENSE
    assert not asked("Retrieve").HasField("dense_weight")


def test_sources_and_receipts(run: Bench) -> None:
    assert "2 of 3 and 1 old" in run("vectors", "sources", "docs").stdout
    assert json.loads(run("vectors", "receipts", "docs", "--json").stdout)[0]["sites"][0]["acknowledged_at_s"] is None


def test_with_several_nodes_one_is_to_be_named(run: Bench) -> None:
    run.pretend(keepers=["node-a", "node-b"])
    done = run("vectors", "list")
    assert done.exit_code == 1 and "several nodes keep vectors (node-a, node-b): name one with --node" in done.stderr
    assert run("vectors", "list", "--node", "node-b").exit_code == 0
    assert FakeNode.asked[0][1] == "node-b:8001"
    assert "node 'node-c' keeps no vectors" in run("vectors", "list", "--node", "node-c").stderr
    assert run("vectors", "list", "--address", "1.2.3.4:5").exit_code == 0
    assert FakeNode.asked[0] == ("to", "1.2.3.4:5", "")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04zip", b"hello", b"\x93NUMPY\x01\x00\x02\x00{}"])
def test_a_file_that_holds_no_vector_is_told(run: Bench, tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "query.npy"
    file.write_bytes(data)
    done = run("vectors", "search", "docs", str(file))
    assert done.exit_code == 2 and "neither an .npy file nor a JSON array" in done.stderr
    np.save(file, np.array([1, 0.5], np.float32))
    assert run("vectors", "search", "docs", str(file)).exit_code == 0
    assert asked("Search").vector == vector_bytes([1, 0.5])


async def test_one_name_is_not_taken_for_its_letters() -> None:
    async with FakeNode("", b"", "") as node:
        docs = node.collection("docs")
        for call in (docs.delete("a-1"), docs.fetch("a-1"), docs.update(replicate_to="b"), docs.update(regions="")):
            with pytest.raises(InvalidInput, match=r"where a list of such is expected: \['"):
                await call
        with pytest.raises(InvalidInput, match="replicate_to is 'b'"):
            await node.create("docs", replicate_to="b")
        assert FakeNode.asked == [("to", "", "")]


async def test_many_rows_and_long_ones_go_in_several_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "ROWS_AT_ONCE", 3)
    monkeypatch.setattr(passages, "BYTES_AT_ONCE", 1000)
    sizes = [1, 1, 1, 1, 700, 400, 2000, 5]
    async with FakeNode("", b"", "") as node:
        docs = node.collection("docs")
        done = await docs.upsert(Passage(id=str(number), text="x" * size) for number, size in enumerate(sizes))
        sent = [[row.id for row in request.rows] for name, request in FakeNode.asked[1:]]
        assert sent == [["0", "1", "2"], ["3", "4"], ["5"], ["6"], ["7"]] and done.written == 5
        assert (await docs.upsert([])).written == 0 and len(FakeNode.asked) == 6


def test_what_is_sent_is_made_of_plain_values() -> None:
    row = Passage(
        id="a", vector=[1, 2], text="t", fields={"n": True, "y": 3, "f": 0.5, "s": "x"}, source="d", part=1, parts=2
    )
    message = row.message()
    assert {name: vectors.value_of(value) for name, value in message.fields.items()} == {
        "n": True,
        "y": 3,
        "f": 0.5,
        "s": "x",
    }
    assert message.fields["n"].WhichOneof("kind") == "bool"
    assert vectors.vector_of(message).tolist() == [1.0, 2.0]
    assert (message.origin.source, message.origin.part, message.origin.parts) == ("d", 1, 2)
    assert vector_bytes([1e300, True]) == vector_bytes([float("inf"), 1])
    for wrong in ([[1, 2]], ["x"], [10**400], [1j], None, {}):
        with pytest.raises(InvalidInput):
            vector_bytes(wrong)
    for wrong in (2**63, "half of \ud83d"):
        with pytest.raises(InvalidInput, match="field 'n' is"):
            Passage(id="a", fields={"n": wrong}).message()
    with pytest.raises(InvalidInput, match="scope 'world' is none of node, site"):
        vectors.Reach(scope="world").message()  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="field 'n' is None"):
        Passage(id="a", fields={"n": None}).message()  # type: ignore[dict-item]
