"""The shapes that a plan is built for."""

from __future__ import annotations

import numpy as np
import pytest
from nearmesh_agent.engines.onnx.session import GraphTensor
from nearmesh_agent.engines.tensorrt.shapes import Span, package_profile, provider_shapes, step_profile, warmup_shapes

from nearmesh.errors import EngineFailure
from nearmesh.package import Batching, TensorSpec, Warmup
from tests.tiny_models import adder, package, spec, write_warmup


def described(*inputs, **more):
    return package("m", list(inputs), [spec("y", "FP32", -1, 4)], **more)


X = spec("x", "FP32", -1, 3, -1)
LAST = TensorSpec(name="x", dtype="FP32", shape=(2, -1), batch_axis=1)
LEFT_OUT = spec("x", "FP32", -1, -1, optional=True)


@pytest.mark.parametrize(
    ("inputs", "batching", "shown", "expected"),
    [
        # Nothing is free.
        ([spec("x", "FP32", 2, 3)], {}, [], {"x": Span((2, 3), (2, 3), (2, 3))}),
        # Rows from one to as many as there may be.
        ([spec("x", "FP32", -1, 3)], {"max_batch": 8}, [], {"x": Span((1, 3), (8, 3), (8, 3))}),
        (
            [spec("x", "FP32", -1, 3)],
            {"max_batch": 8, "preferred_batch_sizes": (2, 4)},
            [],
            {"x": Span((1, 3), (4, 3), (8, 3))},
        ),
        ([LAST], {"max_batch": 4}, [], {"x": Span((2, 1), (2, 4), (2, 4))}),
        # What else is free has the sizes that the warm-ups show.
        ([X], {"max_batch": 8}, [{"x": (1, 3, 320)}], {"x": Span((1, 3, 320), (8, 3, 320), (8, 3, 320))}),
        (
            [X],
            {"max_batch": 8},
            [{"x": (1, 3, 320)}, {"x": (1, 3, 40)}, {"x": (2, 3, 500)}],
            {"x": Span((1, 3, 40), (8, 3, 320), (8, 3, 500))},
        ),
        # Without a batch axis the first dimension is as any other.
        ([X], {}, [{"x": (1, 3, 320)}, {"x": (2, 3, 40)}], {"x": Span((1, 3, 40), (2, 3, 320), (2, 3, 320))}),
        # An optional input that a warm-up leaves out has ones; nothing is ever empty.
        ([LEFT_OUT], {}, [{}, {"x": (2, 5)}], {"x": Span((1, 1), (2, 5), (2, 5))}),
        ([X], {}, [{"x": (0, 3, 0)}], {"x": Span((1, 3, 1), (1, 3, 1), (1, 3, 1))}),
    ],
)
def test_package_profile(inputs, batching, shown, expected):
    assert package_profile(described(*inputs, batching=Batching(**batching)), shown) == expected


@pytest.mark.parametrize("shown", [[], [{}], [{"x": (1, 3)}]])
def test_a_dimension_that_nothing_shows(shown):
    with pytest.raises(EngineFailure, match="dimension 2 of input 'x' may have any size, and no warm-up shows"):
        package_profile(described(X, batching=Batching(max_batch=8)), shown)


@pytest.mark.parametrize(
    ("shape", "max_rows", "expected"),
    [
        ((1, 3), 0, Span((1, 3), (1, 3), (1, 3))),
        (("n", 3), 6, Span((1, 3), (6, 3), (6, 3))),
        ((None, 3), 6, Span((1, 3), (6, 3), (6, 3))),
        ((2, 3), 6, Span((2, 3), (2, 3), (2, 3))),
        (("n", 3), 0, None),
        (("n", "width"), 6, None),
    ],
)
def test_step_profile(shape, max_rows, expected):
    inputs = {"x": GraphTensor("FP32", shape)}
    if expected is None:
        with pytest.raises(EngineFailure, match="of input 'x' may have any size"):
            step_profile(inputs, max_rows)
    else:
        assert step_profile(inputs, max_rows) == {"x": expected}


@pytest.mark.parametrize(
    ("shape", "held"),
    [((1, 3), True), ((8, 3), True), ((0, 3), False), ((9, 3), False), ((4, 2), False), ((4,), False), ((), False)],
)
def test_what_a_span_holds(shape, held):
    assert Span((1, 3), (4, 3), (8, 3)).holds(shape) is held


def test_warmups_show_shapes(tmp_path):
    described = adder(tmp_path, warmup=(Warmup(file="a.npz"), Warmup(file="b.npz")))
    ones = np.ones((3, 4), np.float32)
    write_warmup(tmp_path, "a.npz", input_left=ones, input_right=ones, output_total=2 * ones)
    write_warmup(tmp_path, "b.npz", input_left=ones[:1], output_total=ones[:1])
    assert warmup_shapes(tmp_path, described) == [{"left": (3, 4), "right": (3, 4)}, {"left": (1, 4)}]
    (tmp_path / "b.npz").write_bytes(b"no archive")
    with pytest.raises(EngineFailure, match=r"b\.npz shows no shapes"):
        warmup_shapes(tmp_path, described)


def test_shapes_for_the_provider():
    free = {"x": Span((1, 3, 40), (4, 3, 320), (8, 3, 500)), "n": Span((2,), (2,), (2,))}
    assert provider_shapes(free) == {
        "trt_profile_min_shapes": "x:1x3x40,n:2",
        "trt_profile_opt_shapes": "x:4x3x320,n:2",
        "trt_profile_max_shapes": "x:8x3x500,n:2",
    }
    assert provider_shapes({"n": Span((2,), (2,), (2,))}) == {}
    assert provider_shapes({}) == {}
