"""Whom the server app suspects, and what it takes for an answer at all: tables of cases."""

import io

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from nearmesh_controlplane.rounds import distrust
from nearmesh_controlplane.rounds.answers import Trained, evaluated, pooled, trained
from nearmesh_controlplane.rounds.layout import Layout, Unfit, record_of

from nearmesh.round_messages import digest

BASE = {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros((), np.float64)}
LAYOUT = Layout.of(BASE)
GOOD = {"weight": np.ones((2, 3), np.float32), "bias": np.array(2.0)}


def test_an_update_is_shortened_to_the_largest_norm() -> None:
    update = np.array([3.0, 4.0])
    assert distrust.norm(update) == 5.0
    np.testing.assert_allclose(distrust.clipped(update, 1.0), [0.6, 0.8])
    for largest in (0.0, 5.0, 6.0):
        assert distrust.clipped(update, largest) is update


EAST, WEST, NORTH, SOUTH = np.array([1.0, 0]), np.array([-1.0, 0]), np.array([0, 1.0]), np.array([0, -1.0])


@pytest.mark.parametrize(
    ("updates", "suspected"),
    [
        ([EAST, EAST, EAST, EAST], []),
        # Twice as much is a site that has more to learn; ten times is not.
        ([EAST, EAST, EAST, 2 * EAST], []),
        ([EAST, EAST, EAST, 10 * EAST], [3]),
        ([EAST, 2 * EAST, 3 * EAST, 4 * EAST], []),
        # Less is not suspicious: a site may have little.
        ([EAST, EAST, EAST, 0.01 * EAST], []),
        ([EAST, EAST, EAST, 0 * EAST], []),
        ([EAST, EAST, EAST, WEST], [3]),
        ([EAST, EAST, WEST], [2]),
        ([EAST, EAST, EAST, EAST, WEST, WEST], [4, 5]),
        # Each of three agrees with two of the others, and so is one of most.
        ([EAST + 0.4 * NORTH, EAST - 0.4 * NORTH, EAST, NORTH], []),
        ([EAST + 0.4 * NORTH, EAST - 0.4 * NORTH, EAST, WEST], [3]),
        # Where everybody goes another way, nobody goes against the rest.
        ([EAST, NORTH, WEST, SOUTH], []),
        ([EAST, EAST, WEST, WEST], []),
        # Of two that differ nobody can say which is wrong.
        ([EAST, 100 * WEST], []),
        ([EAST], []),
        ([], []),
        ([0 * EAST, 0 * EAST, 0 * EAST], []),
    ],
)
def test_suspects_stand_far_from_the_others(updates: list[np.ndarray], suspected: list[int]) -> None:
    said = distrust.suspicions(updates)
    assert [at for at, why in enumerate(said) if why.reason] == suspected


def test_what_was_not_too_long_before_is_not_now() -> None:
    """A site whose data nobody else has goes on learning when the others are done."""
    updates = [EAST, EAST, EAST, 10 * EAST]
    assert not any(why.reason for why in distrust.suspicions(updates, longest_before=10.0))
    assert distrust.suspicions(updates, longest_before=9.0)[3].reason


def test_a_suspect_is_told_with_the_figure() -> None:
    long = distrust.suspicions([EAST, EAST, EAST, 10 * EAST])[3]
    assert long == distrust.Suspicion("its change is 10.0 times as long as the median's", against=False)
    against = distrust.suspicions([EAST, EAST, EAST, WEST])[3]
    assert against == distrust.Suspicion("its change goes against the others' (cosine -1.00)", against=True)


def test_large_models_are_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = list(np.random.default_rng(1).normal(1, 1, (4, 1000)))
    updates[2] = -updates[2]
    whole = distrust.suspicions(updates)
    monkeypatch.setattr(distrust, "BLOCK", 64)
    assert distrust.suspicions(updates) == whole
    assert [bool(why.reason) for why in whole] == [False, False, True, False]


STALE = {"weight": np.full((2, 3), 7, np.float32), "bias": np.array(7.0)}
OLD = digest(STALE)


def answer(**changed: object) -> RecordDict:
    parts: dict = {
        "arrays": record_of(GOOD),
        "metrics": MetricRecord({"num-examples": 5, "loss": 0.5, "train-s": 1.5, "yielded-s": 0.5}),
        "config": ConfigRecord({"server-round": 3, "base": "digest"}),
    }
    return RecordDict({name: record for name, record in {**parts, **changed}.items() if record is not None})


def read(content: RecordDict) -> Trained:
    return trained(
        content,
        layout=LAYOUT,
        base=LAYOUT.vector(BASE),
        number=3,
        digest="digest",
        old={OLD: "the model after round 1"},
    )


def test_a_good_answer_is_read() -> None:
    found = read(answer())
    np.testing.assert_array_equal(found.update, [1, 1, 1, 1, 1, 1, 2])
    assert (found.examples, found.figures, found.train_s, found.yielded_s) == (5, {"loss": 0.5}, 1.5, 0.5)


def bytes_of(array: np.ndarray, **how: object) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


def named(**arrays: Array) -> ArrayRecord:
    return ArrayRecord({**record_of(GOOD), **arrays})


WEIGHT = bytes_of(GOOD["weight"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"config": None}, "stale: it is of round none"),
        ({"config": ConfigRecord({"server-round": 2, "base": "digest"})}, "it is of round 2, this is round 3"),
        ({"config": ConfigRecord({"server-round": 3, "base": "other"})}, "trained from other parameters"),
        ({"config": ConfigRecord({"server-round": 3})}, "trained from other parameters"),
        ({"arrays": None}, "it has no parameters"),
        ({"arrays": record_of(STALE)}, "stale: it is the model after round 1"),
        ({"arrays": record_of({"weight": GOOD["weight"]})}, "1 of 2 parameters are missing, such as bias"),
        ({"arrays": named(more=Array(np.zeros(3)))}, "1 parameters are unknown"),
        (
            {"arrays": named(weight=Array(np.zeros((3, 2), np.float32)))},
            r"weight is <f4 of shape \[3, 2\], not <f4 of \[2, 3\]",
        ),
        ({"arrays": named(weight=Array(np.zeros((2, 3))))}, "weight is <f8 of shape"),
        ({"arrays": named(weight=Array("float32", (2, 3), "numpy.ndarray", b"PK"))}, "weight is no array"),
        ({"arrays": named(weight=Array("float32", (2, 3), "pickle", WEIGHT))}, "weight is no array"),
        ({"arrays": named(weight=Array("float32", (2, 3), "numpy.ndarray", WEIGHT[:-1]))}, "not as many bytes"),
        ({"arrays": named(weight=Array("float32", (2, 3), "numpy.ndarray", WEIGHT + b"\0"))}, "not as many bytes"),
        ({"arrays": named(weight=Array(np.full((2, 3), np.nan, np.float32)))}, "6 of its 7 numbers are not finite"),
        ({"arrays": named(bias=Array(np.array(np.inf)))}, "1 of its 7 numbers are not finite"),
        ({"arrays": named(bias=Array(np.array(1e300)))}, "its change is too large for a number"),
        ({"metrics": None}, "it has no figures"),
        ({"metrics": MetricRecord({"loss": 1.0})}, "num-examples is none"),
        ({"metrics": MetricRecord({"num-examples": 0})}, "num-examples is 0, not a count"),
        ({"metrics": MetricRecord({"num-examples": 1.5})}, "num-examples is 1.5"),
        ({"metrics": MetricRecord({"num-examples": float("nan")})}, "num-examples is nan"),
        ({"metrics": MetricRecord({"num-examples": 10**30})}, "num-examples is 1000"),
        ({"metrics": MetricRecord({"num-examples": [1, 2]})}, r"num-examples is \[1, 2\]"),
    ],
)
def test_what_is_no_answer_to_this_round_is_refused_with_the_reason(changed: dict, said: str) -> None:
    with pytest.raises(Unfit, match=said):
        read(answer(**changed))


@pytest.mark.parametrize(
    "header",
    [
        b"'shape': (999999999999999,), } ",
        b"'shape': (2, 3), } ",
        b"'shape': (2, 3)*10**9, } ",
        b"'shape': (((((((((((((((",
        b"",
    ],
)
def test_a_header_is_compared_and_nothing_is_made_of_what_it_claims(header: bytes) -> None:
    data = WEIGHT[:10] + b"{'descr': '<f8', 'fortran_order': False, " + header + b"\n" + bytes(24)
    with pytest.raises(Unfit, match="weight is"):
        read(answer(arrays=named(weight=Array("float32", (2, 3), "numpy.ndarray", data))))


def test_objects_are_not_unpickled() -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            raise AssertionError("unpickled")

    data = bytes_of(np.zeros((2, 3), np.float32)).replace(b"'<f4'", b"'|O' ")
    with pytest.raises(Unfit, match="weight is"):
        read(answer(arrays=named(weight=Array("float32", (2, 3), "numpy.ndarray", data))))


def test_arrays_in_fortrans_order_are_read_as_they_are_meant() -> None:
    ordered = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    found = read(answer(arrays=named(weight=Array(ordered))))
    np.testing.assert_array_equal(found.update[:6], np.arange(6))


def test_figures_are_few_finite_and_have_printable_names() -> None:
    many = {f"figure-{at}": 1.0 for at in range(100)}
    bad = {"nan": float("nan"), "inf": float("inf"), "list": [1.0], "n" * 65: 1.0, "a\nb": 1.0}
    metrics = MetricRecord({"num-examples": 2, "accuracy": 0.5, "difference": 1e-6, **bad, **many})
    found = evaluated(RecordDict({"metrics": metrics}), "accuracy")
    assert found.figures["accuracy"] == 0.5
    assert len(found.figures) == 32
    assert not found.figures.keys() & bad.keys()
    assert (found.examples, found.difference) == (2, 1e-6)
    with pytest.raises(Unfit, match="no finite figure 'nan'; it has accuracy"):
        evaluated(RecordDict({"metrics": MetricRecord({"num-examples": 2, "accuracy": 0.5})}), "nan")


def test_figures_are_pooled_over_those_who_have_them() -> None:
    assert pooled([(1, {"a": 1.0, "b": 2.0}), (3, {"a": 5.0})]) == {"a": 4.0, "b": 2.0}
    assert pooled([]) == {}


def test_a_vector_becomes_the_arrays_again() -> None:
    vector = LAYOUT.vector(GOOD)
    assert vector.dtype == np.float64
    again = LAYOUT.arrays(vector)
    assert {name: (array.dtype, array.shape) for name, array in again.items()} == {
        "weight": (np.float32, (2, 3)),
        "bias": (np.float64, ()),
    }
    for name, array in GOOD.items():
        np.testing.assert_array_equal(again[name], array)
