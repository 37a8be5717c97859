"""Retrieval of texts on a real node: its embedder changes, it restarts without a control plane, models retrieve."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from nearmesh.client.vectors import Collection, Passage, VectorClient
from nearmesh.errors import MeshError, NotReady
from tests.integration import text_packages
from tests.integration.mesh_processes import Node, control_plane, until
from tests.integration.text_place import WITHIN_S, TextPlace

# All tests share a control plane, a node and the collection `docs`; the last of them ends the control plane.
pytestmark = pytest.mark.asyncio(loop_scope="module")

PASSAGES = {
    "storm": "A storm tore the roof off the barn",
    "trains": "The trains were late in the snow",
    "router": "Restart the router when the connection is slow and then wait until it answers again",
}
QUESTIONS = np.array([b"storm barn", b"restart the router"], dtype=object)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TextPlace]:
    folder = tmp_path_factory.mktemp("place")
    async with control_plane(folder / "plane") as plane:
        node = Node(plane, folder / "node", "node-a", vectors={"enabled": True})
        try:
            await node.start()
            found = TextPlace(plane, node, folder)
            await found.embedder("1", 16)
            async with found.client() as client:
                await fill(client)
            yield found
        finally:
            await node.end()


async def first(docs: Collection, text: str) -> str:
    """The best passage; the node may be on its way back."""

    async def found() -> str:
        try:
            return str((await docs.retrieve(text, k=1, limit_s=5)).hits[0].row.id)
        except NotReady:
            return ""
        except MeshError as error:
            if error.reason != "UNREACHABLE":
                raise
            return ""

    return str(await until(found, within_s=WITHIN_S, what=f"a passage for {text!r}"))


async def fill(client: VectorClient) -> None:
    async def made() -> Collection | None:
        try:
            return await client.create("docs", embedder="embedder")
        except NotReady:
            return None

    docs: Collection = await until(made, within_s=WITHIN_S, what="the vectors are open")
    await docs.upsert([Passage(id=name, text=text) for name, text in PASSAGES.items()])


async def test_a_model_retrieves_and_then_infers_and_a_reranker_has_the_last_word(
    place: TextPlace, tmp_path: Path
) -> None:
    await place.deploy(text_packages.asker(tmp_path / "asker"), text_packages.reranker(tmp_path / "reranker"))
    async with place.client() as client:
        docs = client.collection("docs")
        request = service_pb2.ModelInferRequest(model_name="asker")
        request.inputs.add(name="question", datatype="BYTES", shape=[2])
        request.raw_input_contents.append(serialize_byte_tensor(QUESTIONS).item())
        answer = await place.node.stub().ModelInfer(request, timeout=20)
        first_row, second_row = (row.decode() for row in deserialize_bytes_tensor(answer.raw_output_contents[0]))
        assert first_row.startswith(PASSAGES["storm"]) and second_row.startswith(PASSAGES["router"])

        plain = await docs.retrieve("storm barn", k=3)
        ranked = await docs.retrieve("storm barn", k=1, reranker="reranker")
        assert plain.hits[0].row.id == "storm" and ranked.hits[0].row.id == "router"
        assert ranked.hits[0].rerank_score == len(PASSAGES["router"]) and ranked.timings.rerank_ms > 0


async def test_p4_passages_are_found_through_a_change_of_the_embedder_and_a_restart(place: TextPlace) -> None:
    async with place.client() as client:
        docs = client.collection("docs")
        assert await first(docs, "storm barn") == "storm"
        pinned = (await docs.describe()).embedder_digest

        await place.embedder("2", 24)
        told = await docs.describe()
        assert told.embedder_stale and told.embedder_digest == pinned and told.dimension == 16
        assert await first(docs, "storm barn") == "storm", "asked by the version that made the vectors"

        await place.plane.stop()
        await place.node.kill()
        await place.node.start()
        assert await first(docs, "late trains") == "trains", "P2: the old version comes from the node's own disk"

        progress = [each async for each in docs.reembed()]
        assert progress[-1].switched and progress[-1].rows_done == len(PASSAGES)
        told = await docs.describe()
        assert (told.generation, told.dimension, told.embedder_stale) == (2, 24, False)
        await docs.upsert([Passage(id="cats", text="Cats sleep all day")])
        for text, name in (("storm barn", "storm"), ("cats sleep", "cats")):
            assert await first(docs, text) == name
