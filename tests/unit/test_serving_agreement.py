"""When two versions' answers say the same."""

from __future__ import annotations

import numpy as np
import pytest
from nearmesh_agent.serving.agreement import agrees

from nearmesh.package import OnlineCheck
from tests.tiny_models import package, spec

PLAIN = package("m", [spec("x", "FP32", -1)], [spec("y", "FP32", -1, 3), spec("z", "FP32", -1)])


def checked(**check):
    return package("m", PLAIN.inputs, PLAIN.outputs, online_check=OnlineCheck(**check))


def floats(*values, dtype=np.float32):
    return np.array(values, dtype)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (floats(1, 2, 100), floats(1, 2, 100), True),
        # A twentieth of the largest, or of the value itself.
        (floats(1, 2, 100), floats(5.9, 2, 104), True),
        (floats(1, 2, 100), floats(7, 2, 100), False),
        (floats(1, 2), floats(1, 2, 3), False),
        (floats(1, 2), floats(1, 2, dtype=np.float64), False),
        (floats(1, np.nan), floats(1, np.nan), True),
        (floats(1, 2), floats(1, np.nan), False),
        (floats(np.nan, np.nan), floats(1, 2), False),
        (floats(1, np.inf), floats(1, np.inf), True),
        (floats(60000, dtype=np.float16), floats(61000, dtype=np.float16), True),
        (floats(), floats(), True),
        (np.array([1, 2]), np.array([1, 2]), True),
        (np.array([100, 2]), np.array([101, 2]), False),
        (np.array([True]), np.array([False]), False),
        (np.array([b"a", b"b"], object), np.array([b"a", b"b"], object), True),
        (np.array([b"a", b"b"], object), np.array([b"a", b"c"], object), False),
    ],
)
def test_without_a_check_floats_are_widely_close_and_all_else_is_equal(one, other, same):
    assert agrees({"y": one}, {"y": other}, PLAIN) is same


def test_without_a_check_every_output_counts():
    y, z = floats(1, 2, 3), floats(4)
    assert agrees({"y": y, "z": z}, {"y": y, "z": z, "more": z}, PLAIN)
    assert not agrees({"y": y, "z": z}, {"y": y}, PLAIN)
    assert not agrees({"y": y, "z": z}, {"y": y, "z": z + 1}, PLAIN)


ROWS = np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    ("other", "least", "same"),
    [
        (ROWS * 100, 1.0, True),
        (ROWS[[0, 1, 1]], 0.6, True),
        (ROWS[[0, 1, 1]], 0.9, False),
        (ROWS[:2], 0.0, False),
        (np.full((3, 3), np.nan, np.float32), 0.9, False),
    ],
)
def test_by_the_largest_value_of_each_row(other, least, same):
    check = checked(agree="argmax", smallest_agreement=least)
    assert agrees({"y": ROWS, "z": floats(1)}, {"y": other, "z": floats(9)}, check) is same


@pytest.mark.parametrize(("by", "same"), [(0.1, True), (0.3, False)])
def test_by_the_tolerances_of_the_package(by, same):
    check = checked(output="z", agree="close", rtol=0.0, atol=0.2)
    assert agrees({"z": floats(1, 2)}, {"z": floats(1, 2 + by)}, check) is same
    assert not agrees({"y": ROWS}, {"y": ROWS}, check)


def test_texts_that_are_to_be_close_are_to_be_equal():
    check = checked(output="z", agree="close")
    texts = np.array([b"a"], object)
    assert agrees({"z": texts}, {"z": texts.copy()}, check)
    assert not agrees({"z": texts}, {"z": np.array([b"b"], object)}, check)


def test_no_rows_agree():
    assert agrees({"y": ROWS[:0]}, {"y": ROWS[:0]}, checked())


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (ROWS * 3, True),
        (ROWS + floats(0.05, 0, 0), True),
        # One row of them is enough.
        (np.concatenate([ROWS[:-1], -ROWS[-1:]]), False),
        (np.zeros_like(ROWS), False),
        (ROWS * np.nan, False),
        (ROWS[:-1], False),
        (ROWS.astype(object), False),
    ],
)
def test_by_the_direction_of_each_row(other, same):
    assert agrees({"y": ROWS}, {"y": other}, checked(agree="cosine", atol=0.05)) is same


def test_rows_of_zeros_have_the_same_direction():
    check = checked(agree="cosine", atol=0.05)
    zeros = np.zeros((2, 1, 3, 3), np.float32)
    assert agrees({"y": zeros}, {"y": zeros.copy()}, check) and agrees({"y": zeros[:0]}, {"y": zeros[:0]}, check)
    assert not agrees({"y": zeros}, {"y": zeros + 1}, check)
