"""Requests that share an engine call: who may, how their tensors are joined, and what each gets back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearmesh_agent.serving.batch import BatchLayout

from nearmesh.errors import EngineFailure
from nearmesh.package import Batching, TensorSpec
from tests.tiny_models import package


def tensor(name, *shape, dtype="FP32", **more):
    return TensorSpec(name=name, dtype=dtype, shape=shape, **more)


def layout(inputs, outputs, *, max_batch=8, pad=()):
    return BatchLayout(package("joined", inputs, outputs, batching=Batching(max_batch=max_batch, pad=pad)))


def floats(*shape, start=0):
    return np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)


PLAIN = layout([tensor("x", -1, 2)], [tensor("y", -1, 2)])
# A recurrent model: the state's rows are along axis 1, and all rows of a call share a rate.
VOICE = layout(
    [tensor("x", -1, 4), tensor("state", 2, -1, 3, batch_axis=1), tensor("rate", dtype="INT64", batch_axis=-1)],
    [tensor("y", -1, 1), tensor("state_out", 2, -1, 3, batch_axis=1)],
)
TEXT = layout(
    [tensor("ids", -1, -1, axes=("", "length"), pad_value=-7.0)],
    [tensor("marks", -1, -1, axes=("", "length")), tensor("sum", -1)],
    pad=("length",),
)


def voice(rows, *, start=0, rate=16000):
    return {"x": floats(rows, 4, start=start), "state": floats(2, rows, 3, start=start), "rate": np.array(rate)}


def test_rows_and_answers_are_shared_out_as_views():
    requests = [{"x": floats(rows, 2, start=10 * rows)} for rows in (1, 3)]
    assert [PLAIN.rows(request) for request in requests] == [1, 3]
    joined = PLAIN.join(requests)
    assert joined["x"].shape == (4, 2)
    outputs = {"y": joined["x"] * 2}
    shares = PLAIN.split(outputs, requests, [1, 3])
    for request, share in zip(requests, shares, strict=True):
        assert np.array_equal(share["y"], request["x"] * 2)
        assert np.shares_memory(share["y"], outputs["y"])


def test_a_request_by_itself_is_not_touched():
    request, outputs = {"x": floats(3, 2)}, {"y": floats(3, 2)}
    assert PLAIN.join([request]) is request
    assert PLAIN.split(outputs, [request], [3])[0] is outputs


def test_shapes_that_differ_share_no_call():
    any_width = layout([tensor("x", -1, -1)], [tensor("y", -1, -1)])
    assert any_width.kind({"x": floats(1, 2)}) == any_width.kind({"x": floats(5, 2)})
    assert any_width.kind({"x": floats(1, 2)}) != any_width.kind({"x": floats(1, 3)})


def test_without_a_batch_axis_requests_are_served_one_by_one():
    single = layout([tensor("x", -1, 2)], [tensor("y", -1, 2)], max_batch=0)
    request = {"x": floats(3, 2)}
    assert single.kind(request) != single.kind(request)
    assert single.rows(request) == 1


def test_states_are_joined_along_their_own_axis():
    requests = [voice(1), voice(2, start=50)]
    assert [VOICE.rows(request) for request in requests] == [1, 2]
    assert VOICE.kind(requests[0]) == VOICE.kind(requests[1])
    joined = VOICE.join(requests)
    assert joined["x"].shape == (3, 4) and joined["state"].shape == (2, 3, 3)
    assert joined["rate"] == 16000 and joined["rate"].shape == ()
    outputs = {"y": joined["x"].sum(1, keepdims=True), "state_out": joined["state"] + 1}
    for request, share in zip(requests, VOICE.split(outputs, requests, [1, 2]), strict=True):
        assert np.array_equal(share["y"], request["x"].sum(1, keepdims=True))
        assert np.array_equal(share["state_out"], request["state"] + 1)
        assert np.shares_memory(share["state_out"], outputs["state_out"])


def test_what_has_no_rows_must_agree():
    assert VOICE.kind(voice(1)) != VOICE.kind(voice(1, rate=8000))
    table = layout([tensor("x", -1), tensor("table", -1, batch_axis=-1)], [tensor("y", -1)])
    small, large = ({"x": floats(1), "table": floats(size)} for size in (4, 4096))
    assert table.kind(small) == table.kind({"x": floats(1), "table": floats(4)})
    # Comparing would cost more than it gains.
    assert table.kind(large) != table.kind(large)


def test_strings_without_rows_are_compared_by_what_they_say():
    spoken = layout([tensor("x", -1), tensor("language", 1, dtype="BYTES", batch_axis=-1)], [tensor("y", -1)])

    def asked(word):
        # Made anew each time, as from the wire: no two are one object.
        return {"x": floats(1), "language": np.array([bytes(bytearray(word))], object)}

    assert spoken.kind(asked(b"swahili")) == spoken.kind(asked(b"swahili"))
    assert spoken.kind(asked(b"swahili")) != spoken.kind(asked(b"yoruba"))


def test_ragged_inputs_are_filled_up_and_outputs_cut_back():
    requests = [{"ids": floats(1, 3)}, {"ids": floats(2, 4, start=100)}]
    assert TEXT.kind(requests[0]) == TEXT.kind(requests[1])
    joined = TEXT.join(requests)
    assert joined["ids"].tolist()[0] == [0, 1, 2, -7]
    outputs = {"marks": joined["ids"] * 2, "sum": joined["ids"].sum(1)}
    first, second = TEXT.split(outputs, requests, [1, 2])
    assert np.array_equal(first["marks"], requests[0]["ids"] * 2)
    assert np.array_equal(second["marks"], requests[1]["ids"] * 2)
    assert first["sum"].shape == (1,) and second["sum"].tolist() == requests[1]["ids"].sum(1).tolist()
    assert np.shares_memory(first["marks"], outputs["marks"])


def test_a_short_request_is_not_filled_up_to_a_long_one():
    kinds = [TEXT.kind({"ids": floats(1, length)}) for length in (1, 2, 3, 4, 5, 8, 9, 16)]
    assert [kinds.index(kind) for kind in kinds] == [0, 1, 2, 2, 4, 4, 6, 6]


def test_strings_are_filled_up_with_empty_ones():
    words = layout(
        [tensor("w", -1, -1, dtype="BYTES", axes=("", "n"))], [tensor("y", -1, -1, axes=("", "n"))], pad=("n",)
    )
    requests = [{"w": np.array([[b"a", b"b", b"c"]], object)}, {"w": np.array([[b"d"] * 4], object)}]
    joined = words.join(requests)["w"]
    assert joined.dtype == object and joined.tolist() == [[b"a", b"b", b"c", b""], [b"d"] * 4]
    assert type(joined[0, 3]) is bytes


@pytest.mark.parametrize("found", [floats(3, 2), floats(5, 2), np.array(1, np.float32)])
def test_outputs_that_do_not_add_up(found):
    with pytest.raises(EngineFailure, match=r"output 'y' has shape \[.*\] for 4 rows; expected them along axis 0"):
        PLAIN.split({"y": found}, [{"x": floats(1, 2)}, {"x": floats(3, 2)}], [1, 3])


def run_voice(inputs):
    state = inputs["state"] * 3 + inputs["rate"]
    return {"y": inputs["x"].sum(1, keepdims=True) + state[0].sum(1, keepdims=True), "state_out": state}


def run_text(inputs):
    known = inputs["ids"] != -7
    return {"marks": inputs["ids"] + 1, "sum": np.where(known, inputs["ids"], 0).sum(1)}


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 1000))
def test_states_computed_together_are_as_one_by_one(rows, start):
    requests = [voice(count, start=start + 7 * at) for at, count in enumerate(rows)]
    assert len({VOICE.kind(request) for request in requests}) == 1
    shares = VOICE.split(run_voice(VOICE.join(requests)), requests, rows)
    for request, share in zip(requests, shares, strict=True):
        for name, expected in run_voice(request).items():
            assert np.array_equal(share[name], expected)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(5, 8)), min_size=1, max_size=6), st.integers(0, 1000))
def test_ragged_rows_computed_together_are_as_one_by_one(shapes, start):
    requests = [{"ids": floats(*shape, start=start + at)} for at, shape in enumerate(shapes)]
    assert len({TEXT.kind(request) for request in requests}) == 1
    shares = TEXT.split(run_text(TEXT.join(requests)), requests, [rows for rows, _ in shapes])
    for request, share in zip(requests, shares, strict=True):
        for name, expected in run_text(request).items():
            assert np.array_equal(share[name], expected)
