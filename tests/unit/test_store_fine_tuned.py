"""A model whose head was trained again: ONNX files as exporters write them, published as packages are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from nearmesh_agent.store.store import ModelStore
from onnx import TensorProto, helper, numpy_helper

from nearmesh.packaging.build import Artifact, build
from tests.fake_registry import FakeRegistry
from tests.integration.adding_model import MODEL_TOML

WIDTH, LAYERS, CLASSES = 700, 8, 50


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ModelStore]:
    found = ModelStore(tmp_path / "store")
    yield found
    found.close()


def classifier(folder: Path, version: str, *, head: int, note: str = "") -> Artifact:
    """A stack of layers that is the same in every version, and a head that is not; 16 MB."""
    body, tuned = np.random.default_rng(1), np.random.default_rng(head)
    weights = [body.standard_normal((WIDTH, WIDTH)).astype(np.float32) * 0.03 for _ in range(LAYERS)]
    weights.append(tuned.standard_normal((WIDTH, CLASSES)).astype(np.float32))
    held = [numpy_helper.from_array(array, f"w{n}") for n, array in enumerate(weights)]
    # An exporter's own words stand before the weights, and are of another length in another version.
    nodes, last = [], "x"
    for n in range(len(held)):
        nodes.append(helper.make_node("ReduceMean", [f"w{n}"], [f"m{n}"], name=f"exported {note}", keepdims=0))
        nodes.append(helper.make_node("Add", [last, f"m{n}"], ["y" if n + 1 == len(held) else f"h{n}"]))
        last = f"h{n}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows"]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, f"classifier {note}", ends[:1], ends[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(MODEL_TOML.format(name="m", version=version, add=head))
    (folder / "weights.onnx").write_bytes(model.SerializeToString())
    ones = np.ones(2, np.float32)
    np.savez(folder / "warmup.npz", **{"input.x": ones, "output.y": ones})
    return build(folder, folder / "cache")


def registry_of(artifact: Artifact) -> FakeRegistry:
    blobs = [blob if isinstance(blob, bytes) else blob.read_bytes() for blob in artifact.blobs.values()]
    return FakeRegistry(artifact.manifest_bytes, {str(n): data for n, data in enumerate(blobs)})


@pytest.mark.parametrize("note", ["", "anew, by a newer exporter"], ids=["the head alone", "and all else moved"])
async def test_a_version_with_another_head_moves_a_fifth_of_the_bytes_at_most(
    store: ModelStore, tmp_path: Path, note: str
) -> None:
    first, second = (
        registry_of(classifier(tmp_path / "first", "1", head=1)),
        registry_of(classifier(tmp_path / "second", "2", head=2, note=note)),
    )
    for registry in (first, second):
        (digest,) = registry.manifests
        _, folder = await store.pull("m", digest, registry)
        assert onnx.load(folder / "fp32.onnx").graph.name.startswith("classifier")
    assert first.sent_bytes > 15_000_000
    assert second.sent_bytes <= 0.2 * first.sent_bytes
