"""Names, options and limits of strategies, before anything of Flower is there."""

import pytest

from nearmesh.errors import InvalidInput
from nearmesh.strategies import STRATEGIES, check, options, strategy, trimmed


def test_each_has_a_line_for_people_and_defaults_that_hold() -> None:
    for name, one in STRATEGIES.items():
        assert one.name == name
        assert one.about
        assert check(name, {}, 7) == {option.name: option.default for option in one.options}


def test_an_unknown_strategy_is_named_with_all_that_there_are() -> None:
    with pytest.raises(InvalidInput, match=r"'fedavgg'.*did you mean fedavg.*fedavg, fedprox.*bulyan"):
        strategy("fedavgg")


def test_an_unknown_option_is_named_with_those_of_the_strategy() -> None:
    with pytest.raises(InvalidInput, match=r"option of fedadam.*'beta1'.*beta-1.*eta, beta-1, beta-2, tau"):
        options("fedadam", {"beta1": 0.5})
    with pytest.raises(InvalidInput, match="there are: none"):
        options("fedavg", {"beta": 0.5})


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("trimmed-mean", {"beta": 0.5}, "beta is 0.5; it has to be a number from 0 to 0.49"),
        ("trimmed-mean", {"beta": float("nan")}, "beta is nan"),
        ("krum", {"num-malicious-nodes": 1.5}, "a whole number from 0 to 1000"),
        ("fedprox", {"proximal-mu": -1}, "proximal-mu is -1"),
        ("fedadam", {"eta": float("inf")}, "eta is inf"),
    ],
)
def test_values_are_bounded(name: str, given: dict[str, float], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        options(name, given)


@pytest.mark.parametrize(
    ("name", "given", "fewest"),
    [
        ("fedavg", {}, 1),
        ("fedmedian", {}, 3),
        ("trimmed-mean", {"beta": 0.4}, 3),
        ("krum", {}, 3),
        ("krum", {"num-malicious-nodes": 2}, 5),
        ("multi-krum", {"num-malicious-nodes": 0}, 3),
        ("bulyan", {"num-malicious-nodes": 0}, 3),
        ("bulyan", {}, 7),
    ],
)
def test_a_robust_strategy_needs_enough_answers(name: str, given: dict[str, float], fewest: int) -> None:
    check(name, given, fewest)
    if fewest > 1:
        with pytest.raises(InvalidInput, match=f"{name}.* needs answers of {fewest} sites and the run takes"):
            check(name, given, fewest - 1)


@pytest.mark.parametrize(
    ("beta", "sites", "each_end"), [(0.2, 4, 1), (0.0, 3, 1), (0.2, 10, 2), (0.49, 3, 1), (0.49, 100, 49), (0.2, 2, 0)]
)
def test_a_trimmed_mean_leaves_out_at_least_one_and_never_all(beta: float, sites: int, each_end: int) -> None:
    assert trimmed(beta, sites) == each_end
