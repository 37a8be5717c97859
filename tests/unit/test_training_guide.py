"""docs/training.md: its files are what the code reads, its recipes learn, and its tables are complete."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from nearmesh_agent.training.config import TrainingConfig
from nearmesh_agent.training.data import SiteData, load
from nearmesh_agent.training.recipe import Arrays, open_recipe

from nearmesh.config import parse
from nearmesh.package import Training
from nearmesh.strategies import STRATEGIES

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")
FILES = dict(re.findall(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL))
# As make_comfort.py of docs/models.md has them for its own people.
PARENT = {"weights": np.zeros((2, 3), np.float32), "bias": np.array([0.1, 0.0, 0.0], np.float32)}


def site(folder: Path) -> SiteData:
    """What people of two buildings felt, of which the page's node.toml reads one's."""
    lines = ["temperature,humidity,felt,building"]
    readings = np.random.default_rng(3).uniform((0, 10), (40, 90), (600, 2))
    for number, (temperature, humidity) in enumerate(readings):
        felt = np.digitize(temperature + 0.05 * (humidity - 50), (18, 26))
        lines.append(f"{temperature:.2f},{humidity:.2f},{felt},{'north' if number % 3 else 'south'}")
    lines.append(",50,0,north")
    (folder / "data").mkdir()
    (folder / "data" / "rooms.csv").write_text("\n".join(lines) + "\n")
    config = parse(TrainingConfig, tomllib.loads(FILES["node.toml"])["training"], where="node.toml", base=folder)
    assert config.allowed
    found = load(config.data["comfort"], ["reading"])
    assert len(found.train) + len(found.held_back) == 401
    return found


@pytest.mark.parametrize("name", ["training.py", "torch_training.py"])
def test_a_recipe_learns_and_says_what_it_has_learnt(tmp_path: Path, name: str) -> None:
    if name.startswith("torch"):
        pytest.importorskip("torch")
    (tmp_path / name).write_text(FILES[name])
    recipe, data = open_recipe(tmp_path / name), site(tmp_path)
    training = parse(Training, tomllib.loads(FILES["model.toml"])["training"], where="model.toml", base=tmp_path)
    assert set(training.parameters) == PARENT.keys()
    settings = training.settings if name == "training.py" else {"epochs": 20, "batch_size": 32, "learning_rate": 0.02}
    after: Arrays = PARENT
    for _ in range(5):
        after, _said = recipe.train(after, data.train, settings)
    before, now = (recipe.evaluate(arrays, data.held_back, settings)[training.metric] for arrays in (PARENT, after))
    assert now > before + 0.2, (before, now)
    outputs = recipe.outputs(after, data.held_back.inputs)
    assert outputs is not None and outputs[0].shape == (len(data.held_back), 3)
    np.testing.assert_allclose(outputs[0].sum(axis=1), 1, rtol=1e-5)


def test_every_strategy_stands_in_the_table_with_its_options() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| `")]
    for one in STRATEGIES.values():
        (row,) = [line for line in rows if f"`{one.name}`" in line.split("|")[1]]
        assert set(re.findall(r"`([\w-]+)`", row.split("|")[2])) == {option.name for option in one.options}
        assert ("*robust*" in row) is one.robust


def test_the_commands_are_there(subtests: pytest.Subtests) -> None:
    """Each option that the page names is one of the command's."""
    from nearmesh.cli.run import promote, run, start

    for name in re.findall(r"`(?:nearmesh )?run (\w+)", TEXT):
        with subtests.test(name):
            assert name in run.commands
    known = {
        option for command in (start, promote, *run.commands.values()) for one in command.params for option in one.opts
    }
    for option in re.findall(r"(--[a-z][a-z-]+)", TEXT):
        with subtests.test(option):
            assert option in known
