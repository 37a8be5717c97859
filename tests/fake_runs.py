"""Federated runs that are only pretended: their messages, and what `AdminClient.runs` is without a control plane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from nearmesh.errors import NotFound
from nearmesh.v1 import run_pb2

RUN = "r7"
TRAINING, TRAINED, SERVED = run_pb2.RUN_STATE_TRAINING, run_pb2.RUN_STATE_TRAINED, run_pb2.RUN_STATE_SERVED
COUNTED, MISSING = run_pb2.SITE_ANSWER_COUNTED, run_pb2.SITE_ANSWER_MISSING


def run(**more: Any) -> run_pb2.Run:
    """One of three rounds of digits, of which two are done."""
    values: dict[str, Any] = {
        "id": RUN,
        "model": "digits",
        "parent_version": "1",
        "state": TRAINING,
        "metric": "accuracy",
        "actor": "operator/me",
        "created_at_s": 100.0,
        "asked": asked(),
        "rounds": [round_(0, 0.8), round_(1, 0.9), round_(2, 0.93, missing="node-c")],
        "progress": run_pb2.RoundProgress(
            number=3, phase="training", began_at_s=130.0, answered=["node-a"], missing=["node-b", "node-c"]
        ),
    }
    return run_pb2.Run(**(values | more))


def ended(state: run_pb2.RunState, **more: Any) -> run_pb2.Run:
    """As `run`, in a state that is its end; all three rounds are done."""
    rounds = [round_(0, 0.8), round_(1, 0.9), round_(2, 0.93, missing="node-c"), round_(3, 0.95)]
    values = {"state": state, "rounds": rounds, "progress": None, "ended_at_s": 143.0}
    return run(**(values | more))


def served(state: run_pb2.RunState = SERVED, **more: Any) -> run_pb2.Run:
    """One that has been rolled out, whatever came of it."""
    values = {"version": "1-r7", "digest": "sha256:" + "ab" * 32, "rollout": 9, "gate": gate()}
    return ended(state, **(values | more))


def asked(**more: Any) -> run_pb2.StartRunRequest:
    values = {"model": "digits", "rounds": 3, "min_sites": 2, "strategy": "fedavg", "round_timeout_s": 120.0}
    return run_pb2.StartRunRequest(**(values | more))


def round_(number: int, accuracy: float, *, missing: str = "", **more: Any) -> run_pb2.Round:
    """Three sites a hundredth apart, of which one may be missing."""
    sites = [
        site(node, accuracy + shift) if node != missing else site(node, None, detail="no answer within 120 s")
        for node, shift in (("node-a", -0.01), ("node-b", 0.0), ("node-c", 0.01))
    ]
    values = {"began_at_s": 100.0 + 10 * number, "ended_at_s": 109.5 + 10 * number, "sites": sites}
    return run_pb2.Round(number=number, metrics={"accuracy": accuracy, "loss": 0.1}, **(values | more))


def site(node: str, accuracy: float | None, **more: Any) -> run_pb2.SiteRound:
    values: dict[str, Any] = {"node": node, "site": f"site-{node}", "answer": MISSING}
    if accuracy is not None:
        figures = {"metrics": {"accuracy": accuracy}, "examples": 400, "update_norm": 0.5, "train_s": 2.0}
        values |= {"answer": COUNTED, **figures}
    return run_pb2.SiteRound(**(values | more))


def gate(*, passed: bool = True) -> run_pb2.GateResult:
    checks = [
        run_pb2.GateCheck(name="finite", passed=True),
        run_pb2.GateCheck(name="site node-a", passed=passed, detail="accuracy 0.940, was 0.790"),
    ]
    return run_pb2.GateResult(passed=passed, checks=checks)


class FakeRuns:
    """What the command line asks of runs. Watching tells `heard`, one after the other; the rest is the last of them."""

    def __init__(self, done: list[tuple[Any, ...]], heard: list[run_pb2.Run]) -> None:
        self._done = done
        self._heard = heard
        # Watching says it before the second word.
        self.away = False
        # A round is under way, which ends before the run does.
        self.stopping = False
        # What happens when all was told and the run has not ended.
        self.interrupt: BaseException | None = None

    async def start(self, request: run_pb2.StartRunRequest) -> run_pb2.Run:
        self._done.append(("start", request))
        return self._heard[0]

    async def get(self, run: str) -> run_pb2.Run:
        if run != RUN:
            raise NotFound(f"no run {run!r}; `nearmesh run list` lists them")
        return self._heard[-1]

    async def list(self, model: str = "", limit: int = 0) -> list[run_pb2.Run]:
        self._done.append(("list", model, limit))
        return [found for found in self._heard if model in ("", found.model)]

    async def stop(self, run: str) -> run_pb2.Run:
        self._done.append(("stop", run))
        return self._heard[0] if self.stopping else ended(run_pb2.RUN_STATE_STOPPED, reason="operator/me stopped it")

    async def promote(self, run: str, options: run_pb2.PromoteOptions | None = None) -> run_pb2.Run:
        self._done.append(("promote", run, options))
        return self._heard[0]

    async def watch(
        self, run: str, *, known: bool = False, on_away: Callable[[], None] | None = None
    ) -> AsyncIterator[run_pb2.Run]:
        self._done.append(("watch", run, known))
        for number, found in enumerate(self._heard):
            if number == 1 and self.away and on_away:
                on_away()
            yield found
            # What was begun because of a word comes before the next one.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        if self.interrupt:
            raise self.interrupt
