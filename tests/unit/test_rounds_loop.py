"""The rounds of a run: what is asked, what counts, and that whatever dies, the run ends as if nothing had."""

from collections.abc import Iterable
from pathlib import Path

import httpx
import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from nearmesh_controlplane.rounds.attendance import TRIALS
from nearmesh_controlplane.runs import folder as run_folder
from nearmesh_controlplane.runs.folder import COUNTED, FAILED, MISSING

from nearmesh.round_messages import digest
from nearmesh.strategies import STRATEGIES
from tests.fake_grid import FakeGrid
from tests.round_run import a_run, digits_sites, site_info
from tests.round_sites import INITIAL, DigitsSite, part


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_ends_in_a_better_model(tmp_path: Path, strategy: str) -> None:
    run = a_run(tmp_path, digits_sites(7), strategy=strategy, min_sites=7, rounds=4)
    run.go()
    assert run.reason() == ""
    assert [record.number for record in run.folder.rounds()] == [0, 1, 2, 3, 4]
    assert run.folder.rounds()[0].metrics["accuracy"] < 0.2
    assert run.folder.rounds()[-1].metrics["accuracy"] > 0.5


def test_a_record_has_each_sites_part_and_the_pooled_figures(tmp_path: Path) -> None:
    run = a_run(tmp_path, digits_sites(3), rounds=1)
    run.go()
    record = run.folder.rounds()[1]
    assert [site.node for site in record.sites] == ["node-0", "node-1", "node-2"]
    for site in record.sites:
        assert (site.answer, site.detail, site.suspect, site.clipped) == (COUNTED, "", False, False)
        assert (site.train_s, site.yielded_s) == (1.5, 0.25)
        assert site.update_norm > 0
        assert site.train_metrics == {"accuracy": 0.5}
    held_back = [-(-len(part(3, at)) // 5) for at in range(3)]
    weighted = sum(site.metrics["accuracy"] * rows for site, rows in zip(record.sites, held_back, strict=True))
    assert record.metrics["accuracy"] == pytest.approx(weighted / sum(held_back))
    assert record.began_at_s < record.ended_at_s


def test_sites_are_told_the_round_the_run_the_base_and_the_settings(tmp_path: Path) -> None:
    seen: list = []
    sites = {0: DigitsSite(part(2, 0), seen=seen), 1: DigitsSite(part(2, 1))}
    settings = {"steps": 5, "learning_rate": 0.5, "name": "sgd"}
    run = a_run(tmp_path, sites, rounds=1, strategy="fedprox", strategy_options={"proximal-mu": 0.3}, settings=settings)
    run.go()
    told = {"run": "r1", "set-steps": 5, "set-learning_rate": 0.5, "set-name": "sgd"}
    before, after = digest(INITIAL), digest(run.arrays())
    assert seen == [
        ("evaluate", {**told, "server-round": 0, "base": before}),
        ("train", {**told, "server-round": 1, "base": before, "proximal-mu": 0.3}),
        ("evaluate", {**told, "server-round": 1, "base": after}),
    ]


class Died(BaseException):
    """As by a signal: nothing catches it."""


@pytest.mark.parametrize("strategy", ["fedadam", "fedavgm", "multi-krum"])
def test_killed_at_any_write_it_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    # Whether the disk has it is not what is tested.
    monkeypatch.setattr("os.fsync", lambda _file: None)

    def run_in(name: str):
        return a_run(tmp_path / name, digits_sites(3), strategy=strategy, min_sites=3, rounds=2)

    undisturbed = run_in("undisturbed")
    undisturbed.go()
    write = run_folder.write_private
    deaths = 0
    while True:
        run, writes = run_in(f"killed-{deaths}"), 0

        def dies(path: Path, content: bytes, *, at: int = deaths) -> None:
            nonlocal writes
            # Before a write and after it.
            if writes == at:
                raise Died
            write(path, content)
            writes += 2
            if writes == at + 1:
                raise Died

        monkeypatch.setattr(run_folder, "write_private", dies)
        try:
            run.go()
            break
        except Died:
            monkeypatch.setattr(run_folder, "write_private", write)
        run.go()
        assert run.reason() == ""
        assert [record.number for record in run.folder.rounds()] == [0, 1, 2]
        assert [record.metrics for record in run.folder.rounds()] == [
            record.metrics for record in undisturbed.folder.rounds()
        ]
        for name, array in undisturbed.arrays().items():
            np.testing.assert_array_equal(run.arrays()[name], array)
        deaths += 1
    # Progress, trained rounds, records and the end: before and after each.
    assert deaths > 30


def test_a_round_that_dies_in_its_evaluation_is_not_trained_again(tmp_path: Path) -> None:
    run = a_run(tmp_path, digits_sites(2), rounds=1)
    site = run.grid.sites[0]

    def dies_when_it_evaluates_round_1(message: Message) -> RecordDict | str | None:
        if message.metadata.message_type == "evaluate" and message.metadata.group_id == "1":
            raise Died
        return site(message)

    run.grid.sites[0] = dies_when_it_evaluates_round_1
    with pytest.raises(Died):
        run.go()
    run.grid.sites[0] = site
    run.go()
    assert run.reason() == ""
    assert [sent for sent in run.grid.sent if sent[:2] == (1, "train")] == [(1, "train", "1")]


def test_a_silent_site_costs_the_rounds_time_and_no_more(tmp_path: Path) -> None:
    run = a_run(tmp_path, {**digits_sites(3), 2: lambda _message: None}, rounds=1, round_timeout_s=30)
    began_s = run.clock.now_s()
    run.go()
    assert run.reason() == ""
    # Of round 0 and of round 1, which evaluates without it.
    assert 60 <= run.clock.now_s() - began_s < 65
    (silent,) = run.of("node-2")
    assert (silent.answer, silent.detail) == (MISSING, "no answer in time")


def test_a_silent_site_is_asked_again_where_the_round_needs_it(tmp_path: Path) -> None:
    sites = digits_sites(3)
    silent_once = iter([None])

    def slow(message: Message) -> RecordDict | None:
        if message.metadata.message_type == "train" and next(silent_once, message) is None:
            return None
        return sites[2](message)

    def fails(message: Message) -> RecordDict | str:
        evaluates = message.metadata.message_type == "evaluate" and message.metadata.group_id == "1"
        return "DataError: no" if evaluates else sites[1](message)

    run = a_run(tmp_path, {**sites, 1: fails, 2: slow}, rounds=1)
    run.go()
    assert run.reason() == ""
    (site,) = run.of("node-2")
    assert site.answer == MISSING
    assert "accuracy" in site.metrics


def test_late_answers_are_dropped_and_counted(tmp_path: Path) -> None:
    run = a_run(tmp_path, digits_sites(3), rounds=3, round_timeout_s=10)
    run.grid.delay_s = {0: 2, 1: 2, 2: 11.5}
    run.go()
    assert run.reason() == ""
    assert [site.answer for site in run.of("node-2")] == [MISSING] * 3
    assert [record.late for record in run.folder.rounds()] == [0, 2, 1, 1]
    # What came late is in no model.
    others = a_run(tmp_path / "others", dict(list(digits_sites(3).items())[:2]), rounds=3)
    others.go()
    for name, array in others.arrays().items():
        np.testing.assert_array_equal(run.arrays()[name], array)


def test_who_is_slow_is_in_time_when_a_round_is_tried_again(tmp_path: Path) -> None:
    run = a_run(tmp_path, digits_sites(3), rounds=2, round_timeout_s=10, min_sites=3)
    run.grid.delay_s = {0: 2, 1: 2, 2: 13}
    run.go()
    assert run.reason() == ""
    assert [site.answer for site in run.of("node-2")] == [COUNTED] * 2
    # Who had answered was not asked a second time.
    assert run.grid.sent.count((0, "train", "1")) == 1
    assert run.grid.sent.count((2, "train", "1")) == 2


def test_a_site_whose_process_died_over_a_message_is_sent_it_again(tmp_path: Path) -> None:
    sites, dead = digits_sites(2), [None]

    def dies_once(message: Message) -> RecordDict | None:
        if message.metadata.message_type == "train" and dead:
            return dead.pop()
        return sites[1](message)

    run = a_run(tmp_path, {0: sites[0], 1: dies_once}, rounds=1)
    run.go()
    assert run.reason() == ""
    assert [site.answer for site in run.of("node-1")] == [COUNTED]


def test_a_site_that_was_cut_off_and_is_back_in_time_counts(tmp_path: Path) -> None:
    run = a_run(tmp_path, digits_sites(2), rounds=1)
    run.grid.delay_s = {1: 5}
    run.clock.after(1.0, lambda: run.grid.offline.add(1))
    run.clock.after(20.0, lambda: run.grid.offline.discard(1))
    run.go()
    assert run.reason() == ""
    assert [site.answer for site in run.of("node-1")] == [COUNTED]
    # Its work was not thrown away.
    assert [sent for sent in run.grid.sent if sent[0] == 1] == [
        (1, "evaluate", "0"),
        (1, "train", "1"),
        (1, "evaluate", "1"),
    ]


def test_a_message_that_flower_loses_is_sent_again(tmp_path: Path) -> None:
    run = a_run(tmp_path, digits_sites(2), rounds=1)
    run.clock.after(0.2, run.grid.forget)
    run.go()
    assert run.reason() == ""
    assert run.grid.sent.count((1, "evaluate", "0")) == 2


def test_what_a_dying_superlink_refuses_is_pushed_once_more(tmp_path: Path) -> None:
    refused: list[Message] = []

    class Refusing(FakeGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            pushed = [*messages]
            if not any(message is pushed[0] for message in refused):
                refused.extend(pushed)
                raise ObjectPushError("an object", 1, "a session")
            return super().push_messages(pushed)

    run = a_run(tmp_path, digits_sites(2))
    run.grid = Refusing(run.clock, run.grid.sites)
    run.go()
    assert [record.number for record in run.folder.rounds()] == [0, 1, 2, 3]
    assert len(run.grid.sent) == len(refused), "the same messages, each once"


def test_it_waits_until_enough_sites_are_there_and_says_so(tmp_path: Path) -> None:
    run = a_run(tmp_path, digits_sites(3), rounds=1, min_sites=2)
    run.grid.offline = {1, 2}
    seen = []
    run.clock.after(300, lambda: seen.append(run.folder.progress()))
    run.clock.after(301, lambda: run.grid.offline.discard(1))
    began_s = run.clock.now_s()
    run.go()
    (progress,) = seen
    assert (progress.number, progress.phase) == (0, "waiting")
    assert (progress.answered, progress.missing) == (["node-0"], ["node-1", "node-2"])
    # The third is waited for a while, and but once.
    assert 320 < run.clock.now_s() - began_s < 330
    assert [(site.node, site.answer, site.detail) for site in run.rounds()[0].sites if site.node == "node-2"] == [
        ("node-2", MISSING, "it was not there")
    ]


def test_sites_that_join_later_are_asked(tmp_path: Path) -> None:
    sites = digits_sites(3)
    run = a_run(tmp_path, {id: sites[id] for id in (0, 1)}, rounds=3)
    run.grid.sites[2] = sites[2]
    run.clock.after(2.0, lambda: run.folder.write_sites({id: site_info(id) for id in (0, 1, 2)}))
    run.go()
    assert run.reason() == ""
    assert run.of("node-2")[-1].answer == COUNTED


def test_a_held_run_begins_no_round(tmp_path: Path) -> None:
    run = a_run(tmp_path, digits_sites(2), rounds=1)
    run.folder.hold("waits for 22:00-06:00 UTC")
    asked = []
    run.clock.after(3600, lambda: asked.extend(run.grid.sent))
    run.clock.after(3600, run.folder.release)
    run.go()
    assert asked == []
    assert run.reason() == ""


def test_too_few_answers_are_tried_again_and_then_it_gives_up(tmp_path: Path) -> None:
    failing = "RecipeError: the recipe does not keep its contract\n; the site's log says how"
    run = a_run(tmp_path, {**digits_sites(2), 1: lambda _message: failing}, rounds=1)
    run.go()
    assert run.grid.sent.count((1, "evaluate", "0")) == TRIALS
    assert "round 0, evaluating: in 5 trials never 2 sites had an answer that counts" in run.reason()
    assert "node-1: RecipeError: the recipe does not keep its contract ; the site's log says how" in run.reason()
    assert run.folder.rounds() == []


def test_a_site_whose_bytes_flower_cannot_read_fails_alone(tmp_path: Path) -> None:
    run = a_run(tmp_path, {**digits_sites(3), 2: lambda _message: ValueError("no object")}, rounds=1)
    run.go()
    assert run.reason() == ""
    (site,) = run.of("node-2")
    assert (site.answer, site.detail.partition(";")[0]) == (FAILED, "its answer cannot be read (ValueError)")


def test_a_site_that_fails_now_and_then_is_no_end(tmp_path: Path) -> None:
    sites = digits_sites(3)
    good = sites[2]
    failing = {"1": FAILED, "2": COUNTED}

    def sometimes(message: Message) -> RecordDict | str:
        fails = message.metadata.message_type == "train" and failing[message.metadata.group_id] == FAILED
        return "MemoryError: memory ran out at this site" if fails else good(message)

    run = a_run(tmp_path, {**sites, 2: sometimes}, rounds=2)
    run.go()
    assert run.reason() == ""
    assert [(site.answer, site.detail) for site in run.of("node-2")] == [
        (FAILED, "MemoryError: memory ran out at this site"),
        (COUNTED, ""),
    ]
    # It evaluated what the others trained.
    assert "accuracy" in run.of("node-2")[0].metrics


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"strategy": "fedbest"}, "no strategy is called 'fedbest'"),
        ({"strategy": "krum", "min_sites": 2}, "krum, num-malicious-nodes 1 needs answers of 3 sites"),
        ({"strategy_options": {"eta": 1}}, "no option of fedavg is called 'eta'"),
        ({"noise_multiplier": 1.0}, "clipping norm of 0"),
        ({"noise_multiplier": 1.0, "clipping_norm": 1.0, "strategy": "krum", "min_sites": 3}, "not for krum"),
        ({"rounds": 0}, "0 rounds"),
    ],
)
def test_a_plan_that_cannot_be_done_ends_with_the_reason(tmp_path: Path, plan: dict, said: str) -> None:
    run = a_run(tmp_path, digits_sites(3), **plan)
    run.go()
    assert said in run.reason()
    assert run.grid.sent == []


def test_a_step_that_overflows_ends_the_run_and_leaves_the_last_good_model(tmp_path: Path) -> None:
    run = a_run(tmp_path, digits_sites(2), strategy="fedavgm", strategy_options={"server-learning-rate": 10.0})
    huge = {0: 3.3e38}

    class Large(DigitsSite):
        def __call__(self, message: Message) -> RecordDict:
            reply = super().__call__(message)
            if message.metadata.message_type == "train" and message.metadata.group_id == "2":
                from nearmesh_controlplane.rounds.layout import record_of

                reply["arrays"] = record_of({k: np.full_like(v, huge[0]) for k, v in INITIAL.items()})
            return reply

    run.grid.sites[0] = Large(part(2, 0))
    run.go()
    assert "fedavgm made numbers that are not finite" in run.reason()
    assert [record.number for record in run.folder.rounds()] == [0, 1]


@pytest.mark.parametrize(
    "broken",
    [ConnectionError("refused"), httpx.ReadError("reset"), ObjectPushError("an object", 1, "a session")],
    ids=lambda error: type(error).__name__,
)
def test_a_bug_ends_the_run_and_a_broken_way_does_not(tmp_path: Path, broken: Exception) -> None:
    class Broken(FakeGrid):
        error: Exception = broken

        def get_node_ids(self) -> list[int]:
            raise self.error

    run = a_run(tmp_path, digits_sites(2))
    run.grid = Broken(run.clock, run.grid.sites)
    with pytest.raises(type(broken)):
        run.go()
    assert run.folder.end() is None

    run.grid.error = KeyError("secret")
    with pytest.raises(KeyError):
        run.go()
    assert run.reason() == "KeyError in the server app; its log says more"
