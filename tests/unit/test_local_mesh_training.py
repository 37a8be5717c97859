"""What the local mesh's nodes are told of training, where this installation can train and where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from nearmesh_agent.config import NodeConfig

from nearmesh import config
from nearmesh.devmesh import training
from nearmesh.devmesh.children import ChildFailed
from nearmesh.devmesh.plan import MODELS, REGIONS, Plan


def node(plan: Plan, region: str) -> NodeConfig:
    return config.load(NodeConfig, plan.node_config(region))


def test_each_node_has_its_own_part_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "is_possible", lambda: True)
    plan = Plan.make(tmp_path)
    plan.write()
    assert plan.models == (*MODELS, "digits")
    paths = set()
    for region in REGIONS:
        found = node(plan, region).training
        assert found.allowed and list(found.data) == ["digits"]
        assert found.data["digits"].path == plan.training_data(region)
        paths.add(found.data["digits"].path)
        # So that Flower's own examples run there.
        assert found.own_apps and found.node_config == f"partition-id={len(paths) - 1} num-partitions=3"
    assert len(paths) == len(REGIONS)


def test_a_mesh_that_cannot_train_serves_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "is_possible", lambda: False)
    plan = Plan.make(tmp_path)
    plan.write()
    assert plan.models == MODELS
    assert not any(node(plan, region).training.allowed for region in REGIONS)


def test_training_takes_what_it_imports() -> None:
    assert training.is_possible(("json", "numpy"))
    assert not training.is_possible(("json", "no_such_module_as_this"))


async def test_data_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ChildFailed, match=r"(?s)the sites' data could not be written: .*taken"):
        await training.write_data([tmp_path / "taken", tmp_path / "b", tmp_path / "c"])
