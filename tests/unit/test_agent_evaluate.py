"""A file of cases answered as a node would: rows in full calls, requests, sequences; and how far warm-ups are off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from nearmesh_agent.engines.factory import OnnxEngines
from nearmesh_agent.evaluate import cases_of, evaluate, warmup_differences

from nearmesh.errors import PackageError
from nearmesh.package import Batching, Sequence
from tests.tiny_models import accumulator, adder, package, spec, write_warmup

ROWS = np.arange(20 * 4, dtype=np.float32).reshape(20, 4)


class Noting:
    """An engine that notes what it was asked with."""

    name, variant, providers, variant_why = "noting", "fp32", (), ""

    def __init__(self, instances=1):
        self.instances, self.shapes = instances, []

    def infer(self, inputs, *, alone=False):
        self.shapes.append(inputs["x"].shape)
        return {"y": inputs["x"] * 2}

    def close(self):
        pass


def ticking():
    """A clock on which every look takes a tenth of a second."""
    now = [0.0]

    def clock():
        now[0] += 0.1
        return now[0]

    return clock


def rows_package(max_batch):
    shape = (-1, 4)
    return package(
        "m", [spec("x", "FP32", *shape)], [spec("y", "FP32", *shape)], batching=Batching(max_batch=max_batch)
    )


def test_rows_share_calls(tmp_path):
    described, engine = rows_package(8), Noting()
    found = evaluate(engine, described, cases_of(described, {"x": ROWS}), ticking())
    np.testing.assert_array_equal(np.stack(found.outputs["y"]), 2 * ROWS)
    # The answers were those of the first round of full calls.
    full = [shape for shape in engine.shapes if shape[0] > 1]
    assert full[:3] == [(8, 4), (8, 4), (4, 4)]
    # A lone call takes one tick of the clock; all of 20 rows took some ticks, and more than a second had to pass.
    assert found.ms_p50 == pytest.approx(100)
    assert found.rows_per_second > 0


def test_requests_and_packages_without_batching_are_answered_one_by_one():
    described, engine = rows_package(0), Noting()
    found = evaluate(engine, described, cases_of(described, {"x": ROWS.reshape(5, 4, 4)}), ticking())
    assert set(engine.shapes) == {(4, 4)} and len(found.outputs["y"]) == 5
    engine = Noting()
    evaluate(engine, described, cases_of(described, {"x": ROWS}), ticking())
    assert set(engine.shapes) == {(1, 4)}


def test_a_sequence_keeps_its_state(tmp_path):
    described = accumulator(tmp_path)
    engine = OnnxEngines(threads=1)(tmp_path, described)
    x = np.array([[[1], [2], [3]], [[10], [20], [30]]], np.float32)
    found = evaluate(engine, described, cases_of(described, {"x": x}))
    engine.close()
    assert [case.ravel().tolist() for case in found.outputs["sum"]] == [[1, 3, 6], [10, 30, 60]]
    assert set(found.outputs) == {"sum"}, "what the node keeps is no answer"


def test_scalars_stay_arrays():
    inputs = [spec("x", "FP32", 1), spec("rate", "INT64")]
    described = package("m", inputs, [spec("y", "FP32", 1)])
    arrays = {"x": np.ones((2, 3, 1), np.float32), "rate": np.full((2, 3), 16000)}
    asked = cases_of(replace(described, sequence=Sequence(state=())), arrays)
    assert all(isinstance(call["rate"], np.ndarray) for case in asked.cases for call in case)
    one = cases_of(described, {"x": arrays["x"][0], "rate": arrays["rate"][0]})
    assert [case[0]["rate"].shape for case in one.cases] == [()] * 3 and not one.rows


def test_an_input_that_may_be_left_out(tmp_path):
    described = adder(tmp_path)
    engine = OnnxEngines(threads=1)(tmp_path, described)
    found = evaluate(engine, described, cases_of(described, {"left": ROWS}), ticking())
    engine.close()
    np.testing.assert_array_equal(np.stack(found.outputs["total"]), ROWS)


def test_rows_along_another_axis():
    inputs = [replace(spec("x", "FP32", 2, -1, 4), batch_axis=1)]
    outputs = [replace(spec("y", "FP32", 2, -1, 4), batch_axis=1)]
    described, engine = package("m", inputs, outputs, batching=Batching(max_batch=4)), Noting()
    # Cases first, as in every file of cases.
    found = evaluate(engine, described, cases_of(described, {"x": ROWS.reshape(10, 2, 4)}), ticking())
    assert max(shape[1] for shape in engine.shapes) == 4 and len(found.outputs["y"]) == 10


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"z": ROWS}, "the cases have an input 'z'; model.toml has x"),
        ({"x": ROWS[0]}, r"input.x has 1 dimensions, expected 2 \(rows\) or 3 \(requests\)"),
        ({"x": ROWS.reshape(1, 5, 4, 4)}, "input.x has 4 dimensions"),
    ],
)
def test_cases_of_another_shape(arrays, said):
    with pytest.raises(PackageError, match=said):
        cases_of(rows_package(8), arrays)


def test_sequences_of_another_shape(tmp_path):
    with pytest.raises(PackageError, match=r"of a model with a memory it is \[sequences, calls"):
        cases_of(accumulator(tmp_path), {"x": np.ones((3, 1), np.float32)})


@pytest.mark.parametrize(
    ("expected", "difference", "failed"),
    [
        ([2, 4], {}, ""),
        # 0.5 beyond, less what rtol and atol allow.
        ([2, 4.5], {"y": pytest.approx(0.5 - 1e-4 - 4.5e-3)}, ""),
        ([2, 4, 6], {}, "has shape"),
    ],
)
def test_how_far_warm_ups_are_off(tmp_path, expected, difference, failed):
    x = np.array([1, 2], np.float32)
    warmup = write_warmup(tmp_path, input_x=x, output_y=np.array(expected, np.float32))
    described = package("m", [spec("x", "FP32", -1)], [spec("y", "FP32", -1)], warmup=(warmup,))
    found, why = warmup_differences(Noting(), tmp_path, described)
    assert found == difference and failed in why
