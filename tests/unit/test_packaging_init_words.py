"""`nearmesh model init`: names, tolerances and words that it finds by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nearmesh.package import Warmup
from nearmesh.packaging.check import differs
from nearmesh.packaging.init.describe import _follows, name_of, tolerance
from nearmesh.packaging.init.runtime import why_not
from nearmesh.packaging.init.text import quoted


@pytest.mark.parametrize(
    ("file", "folder", "given", "name"),
    [
        ("ResNet50_v2", "x", None, "resnet50-v2"),
        ("model", "My Encoder", None, "my-encoder"),
        ("model_fp16", "digits", None, "digits"),
        ("x", "y", "mine", "mine"),
        ("a" * 80, "y", None, "a" * 63),
    ],
)
def test_names(file: str, folder: str, given: str | None, name: str) -> None:
    assert name_of(file, folder, given) == name


def test_a_remedy_for_an_operator_that_is_missing() -> None:
    said = "NOT_IMPLEMENTED : Could not find an implementation for Relu(1) node with name 'r'"
    assert "has no operator Relu(1) for the CPU: export without it" in why_not(said, "1.31")


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros(3, np.float32), (1e-3, 1e-4)),
        (np.array([0.5], np.float32), (1e-3, 1e-4)),
        (np.array([-250.0], np.float32), (1e-3, 1e-1)),
        (np.array([1.0], np.float16), (1e-2, 1e-2)),
        (np.array([10**9]), (1e-3, 1e-4)),
    ],
)
def test_tolerances(array: Any, expected: tuple[float, float]) -> None:
    assert tolerance({"y": array}) == expected


@pytest.mark.parametrize(
    ("answer", "expected", "said"),
    [
        (np.array([1.0]), np.array([1.0005]), ""),
        (np.array([1.0]), np.array([1.1]), "off by up to 0.1"),
        (np.array([1.0]), np.array([1.0, 1.0]), "shape [1] instead of [2]"),
        (np.array([np.nan]), np.array([np.nan]), "off by up to nan"),
        (np.array([3]), np.array([4]), "off by up to 1"),
        (np.array([True]), np.array([True]), ""),
        (np.array(["ü"], object), np.array(["ü".encode()]), ""),
        (np.array([b"a"], object), np.array([b"b"]), "other bytes"),
    ],
)
def test_what_differs_from_a_warm_up(answer: Any, expected: Any, said: str) -> None:
    assert differs(answer, expected, Warmup(file="w.npz")) == said


def test_any_name_can_be_written() -> None:
    import tomllib

    for text in ('a"b\\c', "line\nbreak", "\x7f\x00", "gpu_0/data_0", "Grüße"):
        assert tomllib.loads(f"x = {quoted(text)}") == {"x": text}


@pytest.mark.parametrize(
    ("output", "given", "follows"),
    [
        ("stateN", "state", True),
        ("h_out", "h_in", True),
        ("present.0.key", "past.0.key", True),
        ("new_state", "state", True),
        ("output", "input", False),
        ("x", "x", False),
        ("scores", "image", False),
    ],
)
def test_names_of_states(output: str, given: str, follows: bool) -> None:
    assert _follows(output, given) is follows
