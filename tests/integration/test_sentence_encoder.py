"""The sentence encoder in a real mesh: weights beside a graph and a tokenizer reach the node, which answers texts."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from nearmesh import tensors
from tests.integration.mesh_processes import ControlPlane, Node, control_plane, node

pytestmark = pytest.mark.timeout(300)

FOLDER = Path(__file__).parents[2] / "models" / "sentence-encoder"


async def publish(plane: ControlPlane, folder: Path) -> None:
    """Makes and tries its variants, publishes and deploys it, as a person would."""
    (folder / "ca.pem").write_bytes(plane.authority.ca_pem)
    place = {
        "NEARMESH_CONTROL_PLANE": plane.public,
        "NEARMESH_CA": str(folder / "ca.pem"),
        "NEARMESH_TOKEN": plane.token("operator"),
    }
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("nearmesh")),
        *("model", "publish", str(FOLDER), "--deploy"),
        env=os.environ | place,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


async def vectors(agent: Node, texts: list[bytes]) -> np.ndarray:
    """What the node answers a stock client."""
    request = tensors.encode_request("sentence-encoder", {"text": np.array(texts, object)})
    answer = await agent.stub().ModelInfer(request, timeout=30)
    return tensors.decode_response(answer)["embedding"]


async def test_a_node_answers_texts_with_the_authors_vectors(tmp_path: Path) -> None:
    with np.load(FOLDER / "reference.npz") as archive:
        texts, expected = archive["text"].tolist(), archive["embedding"]
    async with control_plane(tmp_path / "mesh") as plane, node(plane, tmp_path / "node", "n1") as agent:
        await publish(plane, tmp_path)
        found = await vectors(agent, texts)
        said = (await agent.says("sentence-encoder", lambda replica: bool(replica.status.variant_why))).status
    assert found.shape == expected.shape
    # Whichever variant is faster here.
    assert said.variant in ("encode:fp32", "encode:int8")
    assert (found * expected).sum(axis=1).min() > 0.97
