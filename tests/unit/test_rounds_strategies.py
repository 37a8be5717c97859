"""The table's strategies as Flower's objects: what they make of updates that can be reckoned by hand."""

import numpy as np
import pytest
from nearmesh_controlplane.rounds.layout import Layout
from nearmesh_controlplane.rounds.strategies import Aggregation, Part

from nearmesh.errors import InvalidInput
from nearmesh.strategies import STRATEGIES
from tests.fake_grid import flower_identity

BASE = {"weight": np.array([1.0, 2.0], np.float32), "bias": np.array(3.0, np.float32)}
LAYOUT = Layout.of(BASE)


@pytest.fixture(autouse=True)
def identity():
    with flower_identity():
        yield


def parts(*updates: list[float], examples: tuple[int, ...] = ()) -> list[Part]:
    counts = examples or (1,) * len(updates)
    return [
        Part(node=f"node-{at}", update=np.array(update), examples=count)
        for at, (update, count) in enumerate(zip(updates, counts, strict=True))
    ]


def step(aggregation: Aggregation, given: list[Part], number: int = 1, malicious: int = 0) -> np.ndarray:
    """By how much the model changes."""
    aggregation.configure(number, BASE, {}, [1])
    return aggregation.aggregate(number, BASE, given, malicious).vector - LAYOUT.vector(BASE)


def of(name: str, **options: float) -> Aggregation:
    return Aggregation(name, {key.replace("_", "-"): value for key, value in options.items()}, LAYOUT)


def test_fedavg_is_the_mean_by_examples() -> None:
    found = step(of("fedavg"), parts([1, 1, 1], [5, 5, 5], examples=(3, 1)))
    np.testing.assert_allclose(found, [2, 2, 2])


def test_a_mean_of_doubles_loses_nothing() -> None:
    """In single precision a thousandth of a millionth would be gone beside the parameters."""
    found = step(of("fedavg"), parts([1e-9, 0, 0], [3e-9, 0, 0]))
    np.testing.assert_allclose(found, [2e-9, 0, 0], rtol=1e-4)


def test_fedmedian_is_the_median_of_each_number() -> None:
    np.testing.assert_allclose(step(of("fedmedian"), parts([1, 9, 2], [2, 8, -99], [900, 7, 3])), [2, 8, 2])


@pytest.mark.parametrize(
    ("beta", "given", "mean"),
    [(0.2, [0, 1, 2, 99], 1.5), (0.0, [0, 1, 99], 1.0), (0.4, [0, 1, 2, 3, 99], 2.0), (0.49, [0, 1, 2, 99], 1.5)],
)
def test_a_trimmed_mean_leaves_out_both_ends(beta: float, given: list[float], mean: float) -> None:
    found = step(of("trimmed-mean", beta=beta), parts(*[[value] * 3 for value in given]), malicious=1)
    np.testing.assert_allclose(found, [mean] * 3, atol=1e-7)


def test_krum_takes_the_one_with_the_nearest_neighbours() -> None:
    given = parts([1, 1, 1], [1.1, 1, 1], [1.3, 1, 1], [9, 9, 9])
    aggregation = of("krum")
    aggregation.configure(1, BASE, {}, [1])
    found = aggregation.aggregate(1, BASE, given, 1)
    np.testing.assert_allclose(found.vector - LAYOUT.vector(BASE), [1, 1, 1], atol=1e-6)
    assert found.left_out == {f"node-{at}": "left out by krum" for at in (1, 2, 3)}


def test_multi_krum_takes_all_but_those_that_may_be_malicious() -> None:
    given = parts([1, 1, 1], [2, 1, 1], [3, 1, 1], [9, 9, 9])
    aggregation = of("multi-krum")
    aggregation.configure(1, BASE, {}, [1])
    found = aggregation.aggregate(1, BASE, given, 1)
    np.testing.assert_allclose(found.vector - LAYOUT.vector(BASE), [2, 1, 1], atol=1e-6)
    assert found.left_out == {"node-3": "left out by multi-krum"}
    # The malicious one was refused before.
    np.testing.assert_allclose(step(of("multi-krum"), given[:3], malicious=0), [2, 1, 1], atol=1e-6)
    # As many as asked for.
    assert len(of_left_out(of("multi-krum", num_nodes_to_select=2), given)) == 2


def of_left_out(aggregation: Aggregation, given: list[Part]) -> dict[str, str]:
    aggregation.configure(1, BASE, {}, [1])
    return dict(aggregation.aggregate(1, BASE, given, 1).left_out)


def test_bulyan_bears_one_in_seven() -> None:
    given = parts(*[[1 + at / 10, 1, 1] for at in range(6)], [99, 99, 99])
    found = step(of("bulyan"), given, malicious=1)
    assert 1 <= found[0] <= 1.5
    np.testing.assert_allclose(found[1:], [1, 1], atol=1e-6)
    with pytest.raises(InvalidInput, match="bulyan makes no model of 6 answers"):
        step(of("bulyan"), given[:6], malicious=1)


@pytest.mark.parametrize("sites", [1, 2, 3, 4, 5, 9])
def test_what_a_strategy_bears(sites: int) -> None:
    assert of("fedavg").bears(sites) == 0
    assert of("fedmedian").bears(sites) == (sites - 1) // 2
    assert of("krum", num_malicious_nodes=2).bears(sites) == 2
    assert of("trimmed-mean").bears(sites) == min(1, (sites - 1) // 2)


def test_a_momentum_remembers() -> None:
    aggregation = of("fedavgm", server_momentum=0.5)
    np.testing.assert_allclose(step(aggregation, parts([1, 0, 0])), [1, 0, 0])
    np.testing.assert_allclose(step(aggregation, parts([1, 0, 0]), 2), [1.5, 0, 0])


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_remembered_goes_on_in_another_process(name: str) -> None:
    given = parts(*[[1.0 + at, 2.0, -at] for at in range(7)])
    first, second = of(name), of(name)
    step(first, given, malicious=1)
    second.restore({key: array.copy() for key, array in first.state().items()})
    np.testing.assert_array_equal(step(first, given, 2, 1), step(second, given, 2, 1))


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad", "fedavgm"])
def test_without_it_a_strategy_begins_anew(name: str) -> None:
    given = parts([1, 2, 3])
    first, again = of(name), of(name)
    step(first, given)
    assert first.state()
    again.restore(first.state())
    again.restore({})
    fresh = of(name)
    np.testing.assert_array_equal(step(again, given, 2), step(fresh, given, 2))
    assert not np.array_equal(step(first, given, 2), step(of(name), given, 2))


def test_fedprox_tells_the_sites_how_near_they_stay() -> None:
    content = of("fedprox", proximal_mu=0.25).configure(3, BASE, {"run": "r1"}, [1, 2])
    assert dict(content["config"]) == {"run": "r1", "proximal-mu": 0.25, "server-round": 3}
    assert list(content["arrays"]) == ["weight", "bias"]


def test_numbers_that_the_model_has_no_room_for_are_an_error() -> None:
    with pytest.raises(InvalidInput, match="fedavg made numbers that are not finite"):
        step(of("fedavg"), parts([1e39, 0, 0]))
