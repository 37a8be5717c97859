"""Steps whose rows are split over calls of the graph."""

from __future__ import annotations

import numpy as np
import pytest
from nearmesh_agent.engines.pipeline.graph_step import GraphStep

from nearmesh.errors import EngineFailure, InvalidInput
from nearmesh.package import Step
from tests.fake_graph import FakeGraph

ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


def step(most):
    return Step(name="g", max_rows=most)


@pytest.mark.parametrize(
    ("most", "rows", "calls"), [(0, 5, [5]), (2, 5, [2, 2, 1]), (5, 5, [5]), (8, 5, [5]), (1, 3, [1] * 3), (0, 0, [0])]
)
def test_rows_are_split_over_calls(most, rows, calls):
    graph = FakeGraph()
    x = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    found = GraphStep(step(most), graph).run({"x": x})
    assert found["y"].tolist() == (x * 2).tolist() and found["y"].dtype == np.float32
    assert graph.calls == [{"x": (count, 2)} for count in calls]


@pytest.mark.parametrize("dtype", [np.float32, object])
def test_without_rows_a_row_of_zeros_shows_the_outputs_shape(dtype):
    given = []

    def answer(arrays):
        given.extend(arrays["x"].ravel().tolist())
        return {"y": np.ones((len(arrays["x"]), 7), np.int64)}

    graph = FakeGraph(answer=answer)
    found = GraphStep(step(8), graph).run({"x": np.empty((0, 3), dtype)})
    assert found["y"].shape == (0, 7) and found["y"].dtype == np.int64
    assert given == ([b""] * 3 if dtype is object else [0.0] * 3)


def test_inputs_without_axes_go_into_every_call():
    graph = FakeGraph(inputs=("x", "rate"), answer=lambda arrays: {"y": arrays["x"] * arrays["rate"]})
    found = GraphStep(step(2), graph).run({"x": ROWS, "rate": np.array(3, np.float32)})
    assert found["y"].tolist() == (ROWS * 3).tolist()
    assert graph.calls == [{"x": (2, 2), "rate": ()}, {"x": (1, 2), "rate": ()}]


def test_inputs_that_differ_in_rows():
    graph = GraphStep(step(2), FakeGraph(inputs=("x", "z")))
    with pytest.raises(InvalidInput, match=r"inputs differ in rows \(axis 0\): 'x' has 3, 'z' has 1"):
        graph.run({"x": ROWS, "z": ROWS[:1]})


@pytest.mark.parametrize(
    "answer", [lambda x: x.sum(axis=0), lambda x: x[:1], lambda x: np.zeros((len(x), len(x)), np.float32)]
)
def test_a_graph_whose_outputs_have_no_rows(answer):
    graph = GraphStep(step(2), FakeGraph(answer=lambda arrays: {"y": answer(arrays["x"])}))
    with pytest.raises(EngineFailure, match=r"output 'y' has shape .* with max_rows, axis 0 counts rows"):
        graph.run({"x": ROWS})
