"""How a federated run may make its next model of what the sites send: each strategy's name, its options, its limits.

A plain table, without Flower: the command line offers it, the control plane checks a run by it before anything starts,
and the server app makes Flower's strategy of it. Options are called as Flower calls them, with hyphens.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nearmesh.errors import InvalidInput

DEFAULT = "fedavg"

# Each robust strategy compares sites with each other; of two that differ nobody can say which is wrong.
FEWEST_TO_COMPARE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A number that a strategy is told."""

    name: str
    about: str
    default: float
    smallest: float
    largest: float
    whole: bool = False

    def checked(self, value: float) -> float:
        """Raises InvalidInput."""
        if not (self.smallest <= value <= self.largest) or (self.whole and value != int(value)):
            kind = "a whole number" if self.whole else "a number"
            raise InvalidInput(
                f"option {self.name} is {value:g}; it has to be {kind} from {self.smallest:g} to {self.largest:g}"
            )
        return float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One way to make the next model."""

    name: str
    about: str
    options: tuple[Option, ...] = ()
    # Bears sites that send anything at all, up to some number of them. Every site counts alike: what a site says of
    # how many examples it has gives it no weight.
    robust: bool = False
    # The fewest answers that a round may have, by the options.
    fewest: Callable[[Mapping[str, float]], int] = lambda _options: 1

    @property
    def averages(self) -> bool:
        """Begins with the mean of the updates, which is what differential privacy is computed for."""
        return not self.robust


# Above, a site that was chosen a thousand times would have to be malicious.
MOST_SITES = 1000


def _malicious(needed: str) -> Option:
    return Option(
        name="num-malicious-nodes",
        about=f"sites that may send anything; {needed}",
        default=1,
        smallest=0,
        largest=MOST_SITES,
        whole=True,
    )


def _adaptive(eta: float, *, betas: bool = True) -> tuple[Option, ...]:
    """Options of the server-side optimizers of Reddi et al., Adaptive Federated Optimization, 2020."""
    rate = Option(name="eta", about="learning rate of the server", default=eta, smallest=1e-6, largest=10)
    tau = Option(name="tau", about="how little it adapts", default=1e-3, smallest=1e-9, largest=1)
    if not betas:
        return (rate, tau)
    return (
        rate,
        Option(name="beta-1", about="how long it remembers the direction", default=0.9, smallest=0, largest=0.9999),
        Option(name="beta-2", about="how long it remembers the size", default=0.99, smallest=0, largest=0.9999),
        tau,
    )


def _of_malicious(each: int, more: int) -> Callable[[Mapping[str, float]], int]:
    return lambda options: max(FEWEST_TO_COMPARE, each * int(options["num-malicious-nodes"]) + more)


_ALL = (
    Strategy(name="fedavg", about="mean of the sites' parameters, weighted by their examples"),
    Strategy(
        name="fedprox",
        about="fedavg, while training at each site is held near the model that it began from",
        options=(
            Option(
                name="proximal-mu", about="how strongly it is held; 0 is fedavg", default=0.1, smallest=0, largest=100
            ),
        ),
    ),
    Strategy(name="fedadam", about="Adam at the server, over the mean update", options=_adaptive(0.1)),
    Strategy(name="fedyogi", about="Yogi at the server, over the mean update", options=_adaptive(0.01)),
    Strategy(
        name="fedadagrad", about="Adagrad at the server, over the mean update", options=_adaptive(0.1, betas=False)
    ),
    Strategy(
        name="fedavgm",
        about="fedavg with momentum at the server",
        options=(
            Option(
                name="server-learning-rate",
                about="learning rate of the server",
                default=1,
                smallest=1e-6,
                largest=10,
            ),
            Option(name="server-momentum", about="its momentum; 0 is none", default=0.5, smallest=0, largest=0.9999),
        ),
    ),
    Strategy(
        name="fedmedian",
        about="median of each number over the sites; bears fewer than half that send anything",
        robust=True,
        fewest=lambda _options: FEWEST_TO_COMPARE,
    ),
    Strategy(
        name="trimmed-mean",
        about="mean of each number without the largest and the smallest; bears as many sites as one end leaves out",
        options=(
            Option(
                name="beta",
                about="part of the sites that is left out at each end; never less than one site",
                default=0.2,
                smallest=0,
                largest=0.49,
            ),
        ),
        robust=True,
        fewest=lambda _options: FEWEST_TO_COMPARE,
    ),
    Strategy(
        name="krum",
        about="the one update that is nearest to its neighbours",
        options=(_malicious("2 of it + 1 have to answer, and 2 of it + 3 for what is proven of Krum"),),
        robust=True,
        fewest=_of_malicious(2, 1),
    ),
    Strategy(
        name="multi-krum",
        about="mean of the updates that are nearest to their neighbours",
        options=(
            _malicious("2 of it + 1 have to answer, and 2 of it + 3 for what is proven of Krum"),
            Option(
                name="num-nodes-to-select",
                about="how many updates; 0 is all that answered without those that may be malicious",
                default=0,
                smallest=0,
                largest=MOST_SITES,
                whole=True,
            ),
        ),
        robust=True,
        fewest=_of_malicious(2, 1),
    ),
    Strategy(
        name="bulyan",
        about="multi-krum, then the mean of what is nearest to the median of each number",
        options=(_malicious("4 of it + 3 have to answer"),),
        robust=True,
        fewest=_of_malicious(4, 3),
    ),
)

STRATEGIES: Mapping[str, Strategy] = {one.name: one for one in _ALL}


def strategy(name: str) -> Strategy:
    """Raises InvalidInput, which lists all."""
    if name not in STRATEGIES:
        raise InvalidInput(_unknown("strategy", name, list(STRATEGIES)))
    return STRATEGIES[name]


def options(name: str, given: Mapping[str, float]) -> dict[str, float]:
    """All options of a strategy: what was given, and the defaults of the others. Raises InvalidInput."""
    known = {option.name: option for option in strategy(name).options}
    for unknown in given.keys() - known.keys():
        raise InvalidInput(_unknown(f"option of {name}", unknown, list(known)))
    return {key: option.checked(given.get(key, option.default)) for key, option in known.items()}


def check(name: str, given: Mapping[str, float], min_sites: int) -> dict[str, float]:
    """As `options`, and whether so few answers are enough. Raises InvalidInput."""
    chosen = options(name, given)
    fewest = strategy(name).fewest(chosen)
    if min_sites < fewest:
        told = "".join(f", {key} {value:g}" for key, value in chosen.items() if key == "num-malicious-nodes")
        raise InvalidInput(
            f"{name}{told} needs answers of {fewest} sites and the run takes {min_sites}; ask for {fewest} (min-sites)"
        )
    return chosen


def trimmed(beta: float, sites: int) -> int:
    """How many answers a trimmed mean leaves out at each end; at least one, and something is left."""
    return min(max(math.floor(beta * sites), 1), max(0, (sites - 1) // 2))


def _unknown(what: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"no {what} is called {name!r}{hint}; there are: {', '.join(known) or 'none'}"
