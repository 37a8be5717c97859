"""How good outputs are, and how far two agree."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from nearmesh.errors import PackageError
from nearmesh.package import Evaluation
from nearmesh.packaging import metrics
from tests.tiny_models import package, spec

SCORES = np.array([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6], [0.7, 0.3]], np.float32)


@pytest.mark.parametrize(
    ("outputs", "expected", "value"),
    [
        (SCORES, [1, 0, 1, 0], 1.0),
        (SCORES, [1, 0, 0, 0], 0.75),
        # Labels of several rows in each case: all of them have to be right.
        (SCORES.reshape(2, 2, 2), [[1, 0], [0, 0]], 0.5),
        # Cases of different sizes.
        ([SCORES[:1], SCORES[1:2, :]], [1, 0], 1.0),
    ],
)
def test_accuracy(outputs, expected, value):
    assert metrics.accuracy(outputs, np.array(expected)) == value


def test_cosine():
    vectors = np.array([[1, 0], [0, 2], [1, 1]], np.float32)
    assert metrics.mean_cosine(vectors, 3 * vectors) == pytest.approx(1)
    assert metrics.mean_cosine(vectors, vectors[:, ::-1]) == pytest.approx(1 / 3)
    zeros = np.zeros((2, 2))
    assert metrics.mean_cosine(zeros, zeros) == 1 and metrics.mean_cosine(zeros, zeros + 1) == 0


def test_exact():
    texts = [np.array([b"a", b"b"], object), np.array([], object)]
    assert metrics.exact(texts, [np.array(["a", "b"]), np.array([], "S1")]) == 1
    assert metrics.exact(texts, [np.array([b"a"], object), np.array([], object)]) == 0.5
    assert metrics.exact(np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 5]])) == 0.5


def test_as_many_answers_as_cases():
    with pytest.raises(PackageError, match="2 answers cannot be judged by 3"):
        metrics.accuracy(SCORES[:2], np.array([1, 0, 1]))


@pytest.mark.parametrize(
    ("how", "ours", "value"),
    [
        ("argmax", SCORES, 1.0),
        ("argmax", SCORES[:, ::-1], 0.0),
        ("argmax", np.concatenate([SCORES[:3], SCORES[3:, ::-1]]), 0.75),
        ("cosine", 2 * SCORES, 1.0),
        ("cosine", SCORES + 0.001, 1.0),
        ("cosine", SCORES[:, ::-1], 0.0),
        ("exact", SCORES, 1.0),
        ("exact", SCORES + 0.001, 0.0),
        # Answers of another shape agree in nothing.
        ("argmax", list(np.zeros((4, 3))), 0.0),
        ("cosine", list(np.zeros((4, 3))), 0.0),
    ],
)
def test_agreement(how, ours, value):
    assert metrics.agreement(how, ours, SCORES) == value


def test_of_several_rankings_in_a_case_each_counts():
    steps = np.zeros((2, 10, 3))
    steps[..., 1] = 1
    other = steps.copy()
    other[0, 0] = [1, 0, 0]
    assert metrics.agreement("argmax", other, steps) == 0.95


def test_broken_numbers():
    infinite = SCORES.copy()
    infinite[0, 0] = np.inf
    both = infinite.copy()
    both[1, 1] = np.nan
    assert metrics.broken(SCORES, SCORES) == 0
    assert metrics.broken(both, SCORES) == 2
    # Where the reference is infinite, so may others be; NaN is never right.
    assert metrics.broken(both, infinite) == 1 and metrics.broken(both, both) == 1
    assert metrics.broken(np.array([[1, 2]]), np.array([[1, 2]])) == 0


@pytest.mark.parametrize(
    ("dtype", "metric", "labels", "how"),
    [
        ("FP32", "accuracy", None, "argmax"),
        ("FP32", "cosine", "labels.txt", "cosine"),
        ("FP32", "exact", None, "exact"),
        ("FP32", "m.py:f", "labels.txt", "argmax"),
        ("FP16", "m.py:f", None, "cosine"),
        ("BYTES", "m.py:f", "labels.txt", "exact"),
        ("INT64", "m.py:f", None, "exact"),
    ],
)
def test_how_outputs_agree(dtype, metric, labels, how):
    evaluation = Evaluation(file="e.npz", metric=metric)
    described = package("p", [spec("x", "FP32", -1, 2)], [spec("y", dtype, -1, 2)], labels=labels)
    assert metrics.how_to_agree(replace(described, evaluation=evaluation), "y") == how


def test_a_metric_of_the_packages_own(tmp_path):
    (tmp_path / "m.py").write_text("def worst(outputs, expected):\n    return (outputs['y'] - expected['z']).max()\n")
    evaluation = Evaluation(file="e.npz", metric="m.py:worst")
    judge = metrics.metric_of(evaluation, "y", tmp_path)
    assert judge({"y": np.array([1.0, 5.0])}, {"z": np.array([1.0, 2.0])}) == 3.0
    assert not list(tmp_path.glob("__pycache__")), "nothing is left beside the author's files"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def f(outputs, expected):\n    return 'good'", "f returned 'good'; expected a number"),
        ("def g(outputs, expected):\n    return 1", "has no function 'f'"),
        ("def f(:", "invalid syntax"),
        ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
    ],
)
def test_a_metric_that_is_none(tmp_path, code, said):
    (tmp_path / "m.py").write_text(code)
    with pytest.raises(PackageError, match=said):
        metrics.metric_of(Evaluation(file="e.npz", metric="m.py:f"), "y", tmp_path)({}, {})


def test_a_metric_whose_file_is_missing(tmp_path):
    with pytest.raises(PackageError, match=r"m\.py: no such file"):
        metrics.metric_of(Evaluation(file="e.npz", metric="m.py:f"), "y", tmp_path)


def test_a_metric_without_what_it_needs(tmp_path):
    judge = metrics.metric_of(Evaluation(file="e.npz"), "y", tmp_path)
    with pytest.raises(PackageError, match=r"e\.npz: the metric 'accuracy' needs expected\.y; there is expected\.z"):
        judge({"y": SCORES}, {"z": np.zeros(4)})
    assert math.isclose(judge({"y": SCORES}, {"y": np.array([1, 0, 1, 0])}), 1)
