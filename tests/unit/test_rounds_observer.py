"""A data team's own app is watched without knowing it: its rounds are on disk, and a later start goes on after them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, Result, Strategy
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.task_identity import TaskIdentity
from nearmesh_controlplane.rounds import observer, run_grid, stock
from nearmesh_controlplane.runs.folder import End, Plan, RunFolder, SiteInfo

SITES = {11: (1.0, 10), 12: (4.0, 30)}
ROUNDS = 5


class FakeGrid:
    """Sites that move the weight a third of the way to their own number, and judge by the distance."""

    def __init__(self, ill: Callable[[int, str], Any] = lambda node, type: None) -> None:
        self._ill = ill
        self.rounds: list[int] = []
        self.sent: list[Message] = []
        self._answers: dict[str, Message] = {}

    def get_nodes(self) -> list[Any]:
        return [SimpleNamespace(node_id=node) for node in (*SITES, 99)]

    def get_node_ids(self) -> list[int]:
        return [node.node_id for node in self.get_nodes()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Answers come one at a time."""
        for message in messages:
            # As Flower sets it on its way.
            message.metadata.__dict__["_message_id"] = f"m{len(self.sent)}"
            self.sent.append(message)
            if answer := self._answer(message):
                self._answers[message.metadata.message_id] = answer
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        there = [id for id in sorted(ids) if id in self._answers]
        return [self._answers.pop(id) for id in there[:1]]

    def _answer(self, message: Message) -> Message | None:
        node, type = message.metadata.dst_node_id, message.metadata.message_type
        self.rounds.append(int(message.content["config"]["server-round"]))
        found = self._ill(node, type)
        if isinstance(found, str):
            return None
        if isinstance(found, Error):
            return _from(node, Message(found, reply_to=message))
        target, examples = SITES[node]
        weight = message.content["arrays"]["weight"].numpy()
        metrics = MetricRecord({"num-examples": examples, "distance": float(abs(weight[0] - target))})
        content = RecordDict({"metrics": metrics})
        if type == "train":
            content["arrays"] = ArrayRecord({"weight": Array(weight + (target - weight) / 3)})
        return _from(node, Message(content, reply_to=message))


def _from(node: int, message: Message) -> Message:
    message.metadata.__dict__["_src_node_id"] = node
    return message


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a message cannot be made; Flower's own program has it from the SuperLink."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / "run")
    found.make()
    found.write_plan(
        Plan(run="r1", model="m", rounds=ROUNDS, min_sites=1, strategy="", round_timeout_s=1, metric="distance")
    )
    found.write_sites({node: SiteInfo(node=f"n{node}", site="s", region="r", pseudonym="p") for node in SITES})
    return found


class Clock:
    """Stands still until somebody sleeps."""

    now_s = 7.0

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def run(
    folder: RunFolder, strategy: Strategy, grid: FakeGrid | None = None, rounds: int = ROUNDS, **more: Any
) -> Result:
    clock = Clock()
    return observer.start(
        Strategy.start,
        folder,
        strategy,
        grid or FakeGrid(),
        ArrayRecord({"weight": Array(np.zeros(2))}),
        rounds,
        timeout=60.0,
        clock=lambda: clock.now_s,
        **{"sleep": clock.sleep, **more},
    )


STRATEGIES = pytest.mark.parametrize(
    "make",
    [FedAvg, FedAdam, lambda: FedAvgM(server_momentum=0.5, server_learning_rate=0.5)],
    ids=["fedavg", "fedadam", "fedavgm"],
)


@STRATEGIES
def test_a_run_that_dies_in_any_round_ends_as_if_it_had_not(
    folder: RunFolder, make: Callable[[], Strategy], tmp_path: Path
) -> None:
    """Momenta are remembered too, and the strategy is told the numbers that it would have been told."""
    whole = RunFolder(tmp_path / "whole")
    whole.make()
    whole.write_sites(folder.sites())
    expected = run(whole, make())
    for dies in range(1, 2 * len(SITES) * ROUNDS, 3):
        with pytest.raises(KeyboardInterrupt):
            run(folder, make(), FakeGrid(_dies_after(dies)))
        if folder.rounds() and len(folder.rounds()) == ROUNDS - 1:
            break
    grid = FakeGrid()
    found = run(folder, make(), grid)
    assert set(grid.rounds) == {ROUNDS}
    np.testing.assert_array_equal(found.arrays["weight"].numpy(), expected.arrays["weight"].numpy())
    assert [record.number for record in folder.rounds()] == [1, 2, 3, 4, 5] == [r.number for r in whole.rounds()]
    last, also = (replace(f.rounds()[-1], began_at_s=0.0, ended_at_s=0.0) for f in (folder, whole))
    assert last == also
    assert found.evaluate_metrics_clientapp == {
        number: {"distance": pytest.approx(metrics["distance"])}
        for number, metrics in expected.evaluate_metrics_clientapp.items()
    }


def _dies_after(messages: int) -> Callable[[int, str], Any]:
    left = iter(range(messages))

    def ill(node: int, type: str) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return ill


def test_a_round_says_what_each_site_did(folder: RunFolder) -> None:
    ill = {(12, "train"): Error(code=3, reason="Boom"), (12, "evaluate"): "silent"}
    run(folder, FedAvg(), FakeGrid(lambda node, type: ill.get((node, type))), rounds=1)
    (record,) = folder.rounds()
    by_node = {site.node: site for site in record.sites}
    assert by_node["n11"].answer == "counted" and by_node["n11"].examples == 10
    assert by_node["n11"].update_norm == pytest.approx(2**0.5 / 3)
    assert by_node["n11"].train_metrics == {"distance": 1.0} and by_node["n11"].metrics["distance"] < 1
    assert (by_node["n12"].answer, by_node["n12"].detail, by_node["n12"].metrics) == ("failed", "Boom", {})
    assert record.train_metrics == {"distance": 1.0} and record.metrics == by_node["n11"].metrics
    np.testing.assert_allclose(folder.arrays(1)["weight"], [1 / 3, 1 / 3])
    np.testing.assert_array_equal(folder.arrays(0)["weight"], [0, 0])


@pytest.mark.parametrize("said", [float("nan"), float("inf"), -3, 2**62])
def test_a_count_that_is_none_ends_nothing(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, said: float) -> None:
    """What the strategy makes of it is its own affair."""
    monkeypatch.setitem(SITES, 12, (SITES[12][0], said))
    run(folder, FedAvg(), rounds=1)
    (record,) = folder.rounds()
    assert {site.node: site.examples for site in record.sites} == {"n11": SITES[11][1], "n12": 0}


def test_a_silent_site_is_missing(folder: RunFolder) -> None:
    run(folder, FedAvg(), FakeGrid(lambda node, type: "silent" if node == 11 else None), rounds=1)
    assert {site.node: site.answer for site in folder.rounds()[0].sites} == {"n11": "missing", "n12": "counted"}


def test_only_sites_of_the_run_are_asked(folder: RunFolder) -> None:
    grid = run_grid.only_sites(FakeGrid(), folder)
    assert sorted(grid.get_node_ids()) == sorted(SITES)


def test_what_is_judged_centrally_stands_with_the_round(folder: RunFolder) -> None:
    seen = []

    def judge(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append(server_round)
        return MetricRecord({"central": float(server_round), "distance": -1.0})

    run(folder, FedAvg(fraction_evaluate=0.0), rounds=1, evaluate_fn=judge)
    run(folder, FedAvg(), rounds=2, evaluate_fn=judge)
    assert seen == [0, 1, 1, 2]
    assert folder.rounds()[0].metrics == {"central": 1.0, "distance": -1.0}
    assert folder.rounds()[1].metrics["central"] == 2.0 and folder.rounds()[1].metrics["distance"] > 0


def test_no_round_begins_while_the_folder_says_so(folder: RunFolder) -> None:
    folder.hold("it is day")
    phases = []

    def sleep(seconds: float) -> None:
        progress = folder.progress()
        assert progress
        phases.append((progress.number, progress.phase))
        if len(phases) == 3:
            folder.release()

    run(folder, FedAvg(), rounds=1, sleep=sleep)
    assert phases == [(1, "waiting")] * 3 and len(folder.rounds()) == 1


def test_all_rounds_done_means_nobody_is_asked(folder: RunFolder) -> None:
    run(folder, FedAvg())
    grid = FakeGrid()
    found = run(folder, FedAvg(), grid)
    assert not grid.rounds and found.arrays["weight"].numpy()[0] == folder.arrays(ROUNDS)["weight"][0]


class App:
    """As Flower's ServerApp, which calls what the data team wrote."""

    def __init__(self, main: Callable[[Any], None]) -> None:
        self._main = main

    def __call__(self, grid: Any, context: Any) -> None:
        self._main(grid)


def watched(observed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import flwr.serverapp

    # What is watched works in the run's folder from then on.
    monkeypatch.chdir(observed)
    monkeypatch.setattr(flwr.serverapp, "ServerApp", App)
    monkeypatch.setattr(App, "__call__", App.__call__)
    monkeypatch.setattr(Strategy, "start", Strategy.start)
    stock.watch(observed)


def test_the_app_calls_start_as_ever_and_its_first_one_is_watched(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched(tmp_path, monkeypatch)
    (tmp_path / "5").write_text(str(folder.path), "utf-8")
    found = []

    def main(grid: Any) -> None:
        for _ in range(2):
            arrays = ArrayRecord({"weight": Array(np.zeros(2))})
            found.append(FedAvg().start(grid=grid, initial_arrays=arrays, num_rounds=2))

    App(main)(FakeGrid(lambda node, type: "silent" if node == 99 else None), SimpleNamespace(run_id=5))
    assert len(folder.rounds()) == 2 and len(found) == 2 and folder.end() is None


@pytest.mark.parametrize("parameters", [[], ["weight"]])
def test_an_error_of_the_app_is_noted_and_goes_on_its_way(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parameters: list[str]
) -> None:
    """Of the mesh's own app, whose parameters have names, nothing: it does that itself."""
    watched(tmp_path, monkeypatch)
    (tmp_path / "5").write_text(str(folder.path), "utf-8")
    folder.write_plan(
        Plan(
            run="r", model="m", rounds=1, min_sites=1, strategy="", round_timeout_s=1, metric="", parameters=parameters
        )
    )
    with pytest.raises(ZeroDivisionError):
        App(lambda grid: 1 // 0)(FakeGrid(), SimpleNamespace(run_id=5))  # type: ignore[arg-type,return-value]
    assert folder.end() == (
        None if parameters else End(reason="the app failed: ZeroDivisionError: integer division or modulo by zero")
    )


@pytest.mark.parametrize("error", [httpx.ReadError("reset"), ObjectPushError("an object", 5, "a session")])
def test_a_way_that_broke_under_an_app_is_not_its_end(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    watched(tmp_path, monkeypatch)
    (tmp_path / "5").write_text(str(folder.path), "utf-8")

    def main(grid: Any) -> None:
        raise error

    with pytest.raises(type(error)):
        App(main)(FakeGrid(), SimpleNamespace(run_id=5))
    assert folder.end() is None


def test_an_app_that_nobody_waits_for_ends(tmp_path: Path) -> None:
    now = iter([0.0, stock.KNOWN_WITHIN_S + 1])
    with pytest.raises(stock.NobodyWaits, match="no run of the mesh waits for Flower's run 6"):
        stock.folder_of(tmp_path, 6, lambda: next(now))


def test_progress_tells_whose_answers_have_come(folder: RunFolder) -> None:
    seen = []

    class Telling(FakeGrid):
        def pull_messages(self, ids: Iterable[str]) -> list[Message]:
            progress = folder.progress()
            assert progress
            seen.append((progress.phase, progress.answered, progress.missing))
            return super().pull_messages(ids)

    run(folder, FedAvg(), Telling(), rounds=1)
    for at, phase in enumerate(("training", "evaluating")):
        (_, none, both), (_, first, other) = seen[2 * at : 2 * at + 2]
        assert seen[2 * at][0] == seen[2 * at + 1][0] == phase
        assert not none and {*both} == {"n11", "n12"} == {*first, *other} and len(first) == 1
