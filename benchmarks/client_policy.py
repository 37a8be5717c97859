"""What the SDK's delivery does to the tail when a node is slow, erring, frozen or lying: on a simulated clock.

`python -m benchmarks.client_policy` runs the SDK's own code (order, picks, hedges, ejection, probes, trials) against
simulated nodes: engines with so many slots and a line before them, round trips, and one node at fault. Each row is one
way to deliver, with more of it switched on from row to row. Nothing of it depends on the machine but how long it takes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from tritonclient.grpc import service_pb2

from benchmarks.jumping_clock import on_jumping_clock
from benchmarks.table import Table, markdown
from nearmesh import routing
from nearmesh.client import picker
from nearmesh.client.attempts import Call, deliver
from nearmesh.client.budget import Budget
from nearmesh.client.experience import Experience
from nearmesh.client.picker import Choice, Endpoint, Route
from nearmesh.client.planner import Planner
from nearmesh.client.tally import Statistics
from nearmesh.client.transport import Reply
from nearmesh.client.trials import Trials
from nearmesh.client.upkeep import Prober
from nearmesh.errors import DeadlineExceeded, EngineFailure, MeshError
from nearmesh.quantiles import quantile
from nearmesh.routing import Times

RESULTS = Path(__file__).parent / "results" / "client_policy.md"
INTRODUCTION = """\
`python -m benchmarks.client_policy`: one client, five nodes at three sites, Poisson calls. The fault is on node a1, to
which the control plane gave 35 % of the calls and the ranking the first place. *Late* is beyond the model's 200 ms,
*copies* are hedges and trials by calls, *errors* reached the caller. Times are the caller's, on a simulated clock."""

MODEL = "model"
DEADLINE_MS = 200.0
# How long a caller waits.
PATIENCE_S = 10.0
# Engine calls at a time on a node, and the time of one.
SLOTS = 2
SERVICE = Times.spread(20.0, 40.0)
# Node: its site, its round trip, its share of the requests.
NODES = {
    "a1": ("a", 12.0, 0.35),
    "a2": ("a", 12.0, 0.35),
    "b1": ("b", 30.0, 0.15),
    "b2": ("b", 30.0, 0.15),
    "c1": ("c", 90.0, 0.0),
}
FAULTY = "a1"
# The fault begins when everything is warm and stays to the end.
WARM_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What ails the faulty node."""

    # Of its engine calls, this share takes that many times as long.
    slow_share: float = 0.0
    slow_factor: float = 1.0
    error_share: float = 0.0
    # Silent for so long, then as if nothing had been, for as long.
    frozen_s: float = 0.0


FAULTS: Mapping[str, Fault] = {
    "none": Fault(),
    "slow, 10 times": Fault(slow_share=1.0, slow_factor=10.0),
    "a tenth of its calls slow, 15 times": Fault(slow_share=0.1, slow_factor=15.0),
    "erring, a third of its calls": Fault(error_share=0.33),
    "erring, all of its calls": Fault(error_share=1.0),
    "frozen, 5 s on and off": Fault(frozen_s=5.0),
    "lying: four times what it says": Fault(slow_share=1.0, slow_factor=4.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What of the delivery is switched on. Failing over and patience always are."""

    shares: bool = True
    two_choices: bool = False
    hedging: bool = False
    ejection: bool = False


POLICIES: Mapping[str, Policy] = {
    "the ranking's first": Policy(shares=False),
    "shares": Policy(),
    "and two choices": Policy(two_choices=True),
    "and hedging": Policy(two_choices=True, hedging=True),
    "and ejection (the SDK)": Policy(two_choices=True, hedging=True, ejection=True),
}


class Trusting(Experience):
    """Without ejection: times and errors leave no mark."""

    def took(self, *given: Any, **named: Any) -> None:
        """Not looked at."""

    def erred(self, *given: Any, **named: Any) -> None:
        """Not looked at."""

    def lost_race(self, *given: Any, **named: Any) -> None:
        """Not looked at."""


class Node:
    """A simulated one."""

    def __init__(self, round_trip_ms: float, fault: Fault, chance: random.Random) -> None:
        self._round_trip_s = round_trip_ms / 1000
        self._fault = fault
        self._chance = chance
        self._slots = asyncio.Semaphore(SLOTS)
        self._start_s = asyncio.get_running_loop().time()

    async def answer(self) -> float:
        """Returns the node's own time, milliseconds. Raises EngineFailure."""
        clock = asyncio.get_running_loop().time
        await self._on_the_way()
        entered_s = clock()
        async with self._slots:
            await self._thaw()
            await asyncio.sleep(self._service_ms() / 1000)
        if self._is_faulty() and self._chance.random() < self._fault.error_share:
            raise EngineFailure("simulated")
        own_ms = 1000 * (clock() - entered_s)
        await self._on_the_way()
        return own_ms

    async def live(self) -> None:
        await self._on_the_way()
        await self._thaw()
        await self._on_the_way()

    async def _on_the_way(self) -> None:
        await asyncio.sleep(self._round_trip_s / 2 * self._chance.lognormvariate(0.0, 0.05))

    def _service_ms(self) -> float:
        ms = SERVICE.p50_ms * self._chance.lognormvariate(0.0, 0.42)
        slow = self._is_faulty() and self._chance.random() < self._fault.slow_share
        return ms * self._fault.slow_factor if slow else ms

    def _is_faulty(self) -> bool:
        return asyncio.get_running_loop().time() >= self._start_s + WARM_S

    async def _thaw(self) -> None:
        """Waits while the node is frozen."""
        after_s = asyncio.get_running_loop().time() - self._start_s - WARM_S
        if self._fault.frozen_s and after_s >= 0 and after_s % (2 * self._fault.frozen_s) < self._fault.frozen_s:
            await asyncio.sleep(self._fault.frozen_s - after_s % self._fault.frozen_s)


class Network:
    """The Transport to simulated nodes."""

    def __init__(self, fault: Fault, chance: random.Random) -> None:
        self._nodes = {
            name: Node(round_trip_ms, fault if name == FAULTY else Fault(), chance)
            for name, (_, round_trip_ms, _) in NODES.items()
        }
        self.asked = 0
        self.asked_faulty = 0

    async def infer(self, endpoint: Endpoint, request: service_pb2.ModelInferRequest, timeout_s: float) -> Reply:
        self.asked += 1
        self.asked_faulty += endpoint.node == FAULTY
        try:
            async with asyncio.timeout(timeout_s):
                own_ms = await self._nodes[endpoint.node].answer()
        except TimeoutError:
            raise DeadlineExceeded("too late") from None
        response = service_pb2.ModelInferResponse(model_name=MODEL)
        response.parameters["nearmesh_service_ms"].double_param = own_ms
        return Reply(response, warm=True)

    async def live(self, endpoint: Endpoint, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._nodes[endpoint.node].live()
        except TimeoutError:
            raise DeadlineExceeded("too late") from None
        return True


@dataclass(slots=True)
class Seen:
    """What the callers saw once the fault was there."""

    total_ms: list[float] = field(default_factory=list)
    errors: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """Of one policy under one fault."""

    total_ms: list[float]
    errors: int
    statistics: Statistics
    # Requests to the faulty node, of all.
    faulty_share: float

    def at(self, q: float) -> float:
        """A quantile of the callers' times."""
        return quantile(self.total_ms, q)

    @property
    def late_share(self) -> float:
        """Beyond the model's deadline, or never answered."""
        late = sum(ms > DEADLINE_MS for ms in self.total_ms) + self.errors
        return late / (len(self.total_ms) + self.errors)

    @property
    def copies_share(self) -> float:
        """Hedges and trials, by calls."""
        return (self.statistics.hedges + self.statistics.trials) / self.statistics.calls


def run(fault: Fault, policy: Policy, *, seed: int, seconds: float, rate: float) -> Result:
    """One client's calls, at random times, for `seconds` after the start of the fault."""
    return on_jumping_clock(_run(fault, policy, seed, seconds, rate))


async def _run(fault: Fault, policy: Policy, seed: int, seconds: float, rate: float) -> Result:
    clock, chance = asyncio.get_running_loop().time, random.Random(seed)
    # The prober draws its pauses from the module's own generator.
    random.seed(seed)
    network = Network(fault, random.Random(seed + 1))
    client = Client(network, policy, random.Random(seed + 2))
    seen, start_s = Seen(), clock()
    async with asyncio.TaskGroup() as calls:
        while clock() < start_s + WARM_S + seconds:
            counted = clock() >= start_s + WARM_S
            calls.create_task(client.call(seen if counted else Seen()))
            await asyncio.sleep(chance.expovariate(rate))
    await client.close()
    statistics = client.experience.statistics(now_s=clock())
    return Result(sorted(seen.total_ms), seen.errors, statistics, network.asked_faulty / network.asked)


class Client:
    """The SDK, without gRPC and without a control plane."""

    def __init__(self, network: Network, policy: Policy, chance: random.Random) -> None:
        clock = asyncio.get_running_loop().time
        kind = Experience if policy.ejection else Trusting
        self.experience = kind(self._failed, budget=Budget() if policy.hedging else Budget(share=0.0, start=0.0))
        self._network = network
        self._policy = policy
        self._route = _route(policy)
        self._planner = Planner(self.experience, chance, clock)
        self._trials = Trials(network, self.experience)
        self._prober = Prober(network, self.experience)
        self._prober.follow(self._route.endpoints, picker.probed(self._route, {}))

    async def call(self, seen: Seen) -> None:
        clock = asyncio.get_running_loop().time
        start_s = clock()
        call = Call(
            request=service_pb2.ModelInferRequest(model_name=MODEL),
            deadline_s=start_s + PATIENCE_S,
            plan=lambda: self._planner.plan(self._route, (MODEL, "")),
            pick=lambda choices: self._pick(choices),
            aim_ms=DEADLINE_MS,
        )
        self._trials.consider(call, call.plan())
        try:
            await deliver(call, self._network, self.experience)
        except MeshError:
            seen.errors += 1
        else:
            seen.total_ms.append(1000 * (clock() - start_s))

    async def close(self) -> None:
        await self._trials.close()
        await self._prober.close()

    def _pick(self, choices: Any) -> Choice:
        return self._planner.pick(MODEL, choices, by_load=self._policy.two_choices)

    def _failed(self, node: str) -> None:
        self._prober.wake(node)


def _route(policy: Policy) -> Route:
    endpoints = [
        Endpoint(_candidate(name, site, ms, share if policy.shares else 0.0), name, name)
        for name, (site, ms, share) in NODES.items()
    ]
    return Route(MODEL, "1", "", "cheapest-in-time", DEADLINE_MS, tuple(endpoints))


def _candidate(name: str, site: str, round_trip_ms: float, share: float) -> routing.Candidate:
    return routing.Candidate(
        node=name,
        site=site,
        region=site,
        ready=True,
        network_ms_p50=round_trip_ms,
        network_ms_p95=round_trip_ms * 1.1,
        network_measured=True,
        service_ms_p50=SERVICE.p50_ms,
        service_ms_p95=SERVICE.p95_ms,
        usd_per_hour=1.0,
        # The nearer the cheaper, so that the ranking's first is the faulty node.
        usd_per_1000=round_trip_ms + (name != FAULTY),
        share=share,
    )


COLUMNS = ("delivery", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms", "late", "errors", "copies", "to the faulty node")


def table(name: str, results: Mapping[str, Result]) -> Table:
    """One fault, a row for each policy."""
    return Table(
        title=f"Fault: {name}", columns=COLUMNS, rows=tuple(_row(policy, found) for policy, found in results.items())
    )


def _row(policy: str, found: Result) -> tuple[str, ...]:
    times = (f"{found.at(q):.0f}" for q in (0.5, 0.95, 0.99, 0.999))
    shares = (f"{found.copies_share:.1%}", f"{found.faulty_share:.1%}")
    return (policy, *times, f"{found.late_share:.1%}", str(found.errors), *shares)


def page(tables: Iterable[Table]) -> str:
    """Markdown to be read."""
    parts = [f"## {found.title}\n\n{markdown(found)}\n" for found in tables]
    return f"# The SDK's delivery, simulated\n\n{INTRODUCTION}\n\n" + "\n".join(parts)


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--seconds", default=60.0, show_default=True, help="Simulated time of each run with the fault.")
@click.option("--rate", default=60.0, show_default=True, help="Calls per second.")
@click.option("--seed", default=1, show_default=True)
@click.option("--out", default=RESULTS, type=click.Path(dir_okay=False, path_type=Path), help="Where the page goes.")
def main(seconds: float, rate: float, seed: int, out: Path) -> None:
    """Every fault under every policy."""
    found = []
    for name, fault in FAULTS.items():
        results = {what: run(fault, p, seed=seed, seconds=seconds, rate=rate) for what, p in POLICIES.items()}
        found.append(table(name, results))
        click.echo(f"{found[-1].title}\n\n{markdown(found[-1])}\n")
    out.write_text(page(found), "utf-8")


if __name__ == "__main__":
    main()
