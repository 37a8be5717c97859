"""What a run keeps on disk: read back as it was written, and whole or not there."""

from pathlib import Path

import numpy as np
import pytest
from nearmesh_controlplane.runs.folder import (
    COUNTED,
    End,
    Judged,
    Plan,
    Progress,
    RoundRecord,
    RunFolder,
    SiteInfo,
    SiteRecord,
)

PLAN = Plan(
    run="r1",
    model="digits",
    rounds=3,
    min_sites=2,
    strategy="fedadam",
    round_timeout_s=60,
    metric="accuracy",
    strategy_options={"eta": 0.1},
    settings={"epochs": 2, "name": "adam"},
    parameters=("w", "b"),
)
SITE = SiteInfo(node="node-a", site="berlin", region="europe-west3", pseudonym="site-1")
WEIGHTS = {"w": np.arange(4, dtype=np.float32), "/layer/b": np.array(0.5, np.float32)}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path)
    made.make()
    return made


def test_all_of_it_is_read_as_it_was_written(folder: RunFolder) -> None:
    record = RoundRecord(
        number=1,
        began_at_s=1.5,
        ended_at_s=2.5,
        sites=[SiteRecord(node="node-a", answer=COUNTED, examples=5, metrics={"accuracy": 0.5})],
        metrics={"accuracy": 0.5},
    )
    folder.write_plan(PLAN)
    folder.write_sites({2**63 + 1: SITE})
    folder.write_initial(WEIGHTS)
    folder.write_round(RoundRecord(number=0, began_at_s=0, ended_at_s=1), None)
    folder.write_round(record, {"w": WEIGHTS["w"] + 1})
    folder.write_progress(Progress(number=2, phase="training", began_at_s=3, answered=[], missing=["node-a"]))
    folder.write_judged([Judged(node="node-a", difference=1e-6)])
    folder.write_end(End(reason="no"))

    again = RunFolder(folder.path)
    assert again.plan() == Plan(**{**{name: getattr(PLAN, name) for name in PLAN.__slots__}, "parameters": ["w", "b"]})
    assert again.sites() == {2**63 + 1: SITE}
    assert [found.number for found in again.rounds()] == [0, 1]
    assert again.rounds()[1] == record
    assert again.arrays(0).keys() == WEIGHTS.keys()
    np.testing.assert_array_equal(again.arrays(1)["w"], WEIGHTS["w"] + 1)
    assert again.progress() == Progress(number=2, phase="training", began_at_s=3, answered=[], missing=["node-a"])
    assert again.judged() == [Judged(node="node-a", difference=1e-6)]
    assert again.end() == End(reason="no")
    again.clear_end()
    assert again.end() is None


def test_a_trained_round_counts_when_it_is_evaluated(folder: RunFolder) -> None:
    trained = RoundRecord(number=1, began_at_s=1, ended_at_s=0, sites=[])
    folder.write_round(RoundRecord(number=0, began_at_s=0, ended_at_s=1), None)
    folder.write_trained(trained, WEIGHTS, {"m:w": np.ones(4)})
    assert [found.number for found in folder.rounds()] == [0]
    assert folder.trained(1) == trained

    folder.write_round(RoundRecord(number=1, began_at_s=1, ended_at_s=2), None)
    assert [found.number for found in folder.rounds()] == [0, 1]
    assert folder.trained(1) is None
    # What the strategy remembers is no parameter of the model.
    assert folder.arrays(1).keys() == WEIGHTS.keys()
    assert folder.state(1).keys() == {"m:w"}


def test_rounds_come_by_number_also_where_their_names_are_longer(folder: RunFolder) -> None:
    for number in (1_000, 10_000, 1_001):
        folder.write_round(RoundRecord(number=number, began_at_s=0, ended_at_s=1), None)
    assert [found.number for found in folder.rounds()] == [1_000, 1_001, 10_000]


def test_rounds_are_held_until_they_are_released(folder: RunFolder) -> None:
    assert folder.held() == ""
    folder.hold("waits for 22:00-06:00 UTC")
    assert folder.held() == "waits for 22:00-06:00 UTC"
    folder.release()
    folder.release()
    assert folder.held() == ""


def test_what_died_while_it_wrote_is_not_there(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        folder.write_round(RoundRecord(number=1, began_at_s=0, ended_at_s=1), WEIGHTS)
    assert folder.rounds() == []
