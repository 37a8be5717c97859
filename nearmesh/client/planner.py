"""The present order of nodes for each model and objective, made from routes and experience, and kept for a moment."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from nearmesh.client import picker
from nearmesh.client.experience import Experience
from nearmesh.client.picker import Choice, Route

# Small calls come faster than measurements change: an order of nodes serves for this long, unless the route or what is
# out of it changes.
PLAN_S = 0.25

# A model and the objective that was asked for, "" for the model's own.
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Plan:
    """An order of nodes, with what it was made from."""

    route: Route
    out: Collection[str]
    slow: Mapping[str, float]
    until_s: float
    choices: tuple[Choice, ...]


class Planner:
    """Of one client. `chance` shares calls out among nodes."""

    def __init__(self, experience: Experience, chance: random.Random, clock: Callable[[], float]) -> None:
        self._experience = experience
        self._chance = chance
        self._clock = clock
        # The choice in use keeps its place against a near tie.
        self._plans: dict[Key, _Plan] = {}
        # Of each route, the nodes that are worth a probe.
        self._probed: dict[Key, tuple[Route, Sequence[str]]] = {}

    def plan(self, route: Route, key: Key) -> Sequence[Choice]:
        """Best first."""
        now_s = self._clock()
        kept = self._plans.get(key)
        out, slow = self._experience.out(route.model, now_s=now_s), self._experience.slow(route.model, now_s=now_s)
        changed = kept is None or kept.route is not route or kept.out != out or kept.slow != slow
        if kept is None or changed or now_s > kept.until_s:
            measured = self._experience.measured(now_s=now_s)
            current = kept.choices[0].node if kept and kept.choices else None
            found = picker.order(route, measured=measured, out=out, slow=slow, current=current)
            kept = self._plans[key] = _Plan(route, out, slow, now_s + PLAN_S, tuple(found))
        return kept.choices

    def pick(self, model: str, choices: Sequence[Choice], *, by_load: bool = True) -> Choice:
        """The first node of a call, of an order that is not empty. `by_load=False` is for comparisons."""
        now_s = self._clock()

        def cost(choice: Choice) -> float:
            return self._experience.cost(choice.node, model, choice.forecast.p50_ms, now_s=now_s)

        return picker.pick(choices, cost if by_load else lambda choice: 0.0, self._chance)

    def arranged(self, route: Route, key: Key) -> list[Choice]:
        """The order in which a sequence looks for its node: the picked one before all others."""
        choices = self.plan(route, key)
        first = self.pick(key[0], choices) if choices else None
        return [first, *(choice for choice in choices if choice is not first)] if first else []

    def probed(self, routes: Mapping[Key, Route]) -> frozenset[str]:
        """The nodes that are worth a probe now and then; looked at anew for routes that have changed."""
        measured = self._experience.measured(now_s=self._clock())
        known, self._probed = self._probed, {}
        for key, route in routes.items():
            same = key in known and known[key][0] is route
            self._probed[key] = known[key] if same else (route, picker.probed(route, measured))
        return frozenset(node for _, nodes in self._probed.values() for node in nodes)
