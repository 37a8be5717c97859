"""Recipes: what the mesh's loop over a PyTorch module does, what plain ones may return, and what neither may."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nearmesh_agent.training.data import Data
from nearmesh_agent.training.failures import Diverged, RecipeError
from nearmesh_agent.training.recipe import Arrays, Recipe, open_recipe

from nearmesh.errors import NotInstalled

TORCH = """
import torch

def model():
    return torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
"""
PLAIN = """
import numpy as np

def train(arrays, data, settings):
    arrays["bias"] += settings.get("step", 1.0)
    return arrays, {"loss": np.float32(0.5)}

def evaluate(arrays, data, settings):
    return {"accuracy": float((data.targets == 0).mean())}
"""
BIAS: Arrays = {"bias": np.zeros(2, np.float32)}


def recipe(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.py"
    path.write_text(textwrap.dedent(text))
    return open_recipe(path)


def two_classes(rows: int = 65) -> Data:
    """Of which side of a line a point is on."""
    points = np.random.default_rng(3).normal(size=(rows, 2)).astype(np.float32)
    return Data({"point": points}, (points[:, 0] > points[:, 1]).astype(np.int64))


def layers() -> Arrays:
    random = np.random.default_rng(5)
    shapes = {"0.weight": (8, 2), "0.bias": (8,), "2.weight": (2, 8), "2.bias": (2,)}
    return {name: random.normal(scale=0.5, size=shape).astype(np.float32) for name, shape in shapes.items()}


SETTINGS: dict[str, Any] = {"epochs": 8, "batch_size": 16, "learning_rate": 0.3, "seed": 7}


def moved(before: Arrays, after: Arrays) -> float:
    return float(sum(np.square(after[name] - before[name]).sum() for name in before)) ** 0.5


def test_the_loop_learns_and_is_the_same_each_time(tmp_path: Path) -> None:
    trainer, data, before = recipe(tmp_path, TORCH), two_classes(), layers()
    first, metrics = trainer.train(before, data, SETTINGS)
    again, _ = trainer.train(before, data, SETTINGS)
    assert all((first[name] == again[name]).all() for name in first)
    assert moved(first, trainer.train(before, data, {**SETTINGS, "seed": 8})[0]) > 0
    judged = trainer.evaluate(first, data, SETTINGS)
    assert judged["accuracy"] > 0.95
    assert judged["loss"] < trainer.evaluate(before, data, SETTINGS)["loss"]
    assert metrics.keys() == {"loss"}
    assert {name: array.dtype for name, array in first.items()} == dict.fromkeys(before, np.float32)


def test_what_it_began_from_is_left_as_it_was(tmp_path: Path) -> None:
    before = layers()
    recipe(tmp_path, TORCH).train(before, two_classes(), SETTINGS)
    assert all((before[name] == array).all() for name, array in layers().items())


def test_fedprox_holds_training_near_its_beginning(tmp_path: Path) -> None:
    trainer, data, before = recipe(tmp_path, TORCH), two_classes(), layers()
    free, _ = trainer.train(before, data, SETTINGS)
    held, _ = trainer.train(before, data, {**SETTINGS, "proximal-mu": 1.0})
    assert moved(before, held) < 0.6 * moved(before, free)


def test_what_rounds_do_not_change_is_not_trained(tmp_path: Path) -> None:
    trainer, data = recipe(tmp_path, TORCH), two_classes()
    last = {name: array for name, array in layers().items() if name.startswith("2.")}
    after, _ = trainer.train(last, data, SETTINGS)
    assert after.keys() == last.keys()
    # The rest is made anew each time, in the same way.
    assert trainer.evaluate(after, data, SETTINGS) == trainer.evaluate(after, data, SETTINGS)


def test_a_last_batch_of_one_row_does_not_stop_a_normalization(tmp_path: Path) -> None:
    text = TORCH.replace("torch.nn.ReLU()", "torch.nn.BatchNorm1d(8)")
    trained, _ = recipe(tmp_path, text).train(layers(), two_classes(33), SETTINGS)
    assert all(np.isfinite(array).all() for array in trained.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"0.weight": np.zeros((8, 3), np.float32)}, r"'0.weight' is float32 \[8, 2\], expected float32 \[8, 3\]"),
        ({"0.weight": np.zeros((8, 2))}, r"'0.weight' is float32 \[8, 2\], expected float64"),
        ({"conv.weight": np.zeros(1, np.float32)}, r"the module of `model` has no conv.weight; it has 0.weight"),
    ],
)
def test_parameters_that_are_not_the_modules(tmp_path: Path, change: Arrays, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe(tmp_path, TORCH).evaluate({**layers(), **change}, two_classes(), SETTINGS)


def test_a_loss_that_is_no_number_ends_training(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="smaller learning_rate"):
        recipe(tmp_path, TORCH).train(layers(), two_classes(), {**SETTINGS, "learning_rate": 1e30})


@pytest.mark.parametrize("name", ["epochs", "batch_size"])
def test_settings_without_sense_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match=f"setting {name} is 0, expected 1 or more"):
        recipe(tmp_path, TORCH).train(layers(), two_classes(), {**SETTINGS, name: 0})


def test_the_recipes_own_parts_are_used(tmp_path: Path) -> None:
    text = (
        TORCH
        + """
def loss(outputs, targets):
    return (outputs[:, 1] - targets).square().mean()

def optimizer(module, settings):
    return torch.optim.Adam(module.parameters(), lr=settings["rate"])

def metrics(outputs, targets):
    assert isinstance(outputs, np.ndarray)
    return {"agreement": ((outputs[:, 1] > 0.5) == targets).mean()}

import numpy as np
"""
    )
    trainer, data = recipe(tmp_path, text), two_classes()
    after, _ = trainer.train(layers(), data, {"epochs": 20, "rate": 0.05, "seed": 1})
    assert trainer.evaluate(after, data, {})["agreement"] > 0.9


def test_several_inputs_go_by_name_and_several_outputs_by_order(tmp_path: Path) -> None:
    text = """
        import torch

        class Two(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = torch.nn.Parameter(torch.ones(1))

            def forward(self, right, left):
                return left - right, left * self.scale

        def model():
            return Two()
    """
    inputs = {"left": np.full((300, 1), 3, np.float32), "right": np.ones((300, 1), np.float32)}
    found = recipe(tmp_path, text).outputs({"scale": np.full(1, 2, np.float32)}, inputs)
    assert found is not None
    assert [(one.shape, one[-1, 0]) for one in found] == [((300, 1), 2), ((300, 1), 6)]


def test_without_torch_its_recipes_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotInstalled, match=r"pip install 'nearmesh-agent\[torch\]'"):
        recipe(tmp_path, TORCH)


def test_a_plain_recipe(tmp_path: Path) -> None:
    trainer, data = recipe(tmp_path, PLAIN), two_classes()
    after, metrics = trainer.train(BIAS, data, {"step": 2.0})
    assert after["bias"].tolist() == [2, 2]
    assert metrics == {"loss": 0.5}
    assert BIAS["bias"].tolist() == [0, 0]
    assert trainer.evaluate(after, data, {}).keys() == {"accuracy"}
    assert trainer.outputs(after, data.inputs) is None
    assert trainer.metrics([np.eye(2, dtype=np.float32)], np.array([0, 0])) == {"accuracy": 0.5}
    # Of one column nobody knows where the bound between two classes is.
    assert trainer.metrics([np.ones((2, 1), np.float32)], np.array([0, 0])) == {}


@pytest.mark.parametrize(
    ("returned", "kind", "said"),
    [
        ("arrays", RecipeError, r"returned dict, expected \(arrays, metrics\)"),
        ("({}, {})", RecipeError, r"lack \['bias'\] and have nothing more"),
        ('({**arrays, "new": 1}, {})', RecipeError, r"have \['new'\] more"),
        ('({"bias": np.zeros(2)}, {})', RecipeError, r"'bias' is float64 \[2\], expected float32 \[2\]"),
        ('({"bias": np.zeros(3, np.float32)}, {})', RecipeError, r"float32 \[3\], expected float32 \[2\]"),
        ('({"bias": np.array([0, np.nan], np.float32)}, {})', Diverged, "'bias' has numbers that are not finite"),
        ('(arrays, {"loss": "low"})', RecipeError, "metrics of `train` is no dict of numbers"),
        ("(3, {})", RecipeError, "are int, expected arrays by name"),
    ],
)
def test_what_a_plain_recipe_may_not_return(tmp_path: Path, returned: str, kind: type, said: str) -> None:
    text = PLAIN.replace('return arrays, {"loss": np.float32(0.5)}', f"return {returned}")
    with pytest.raises(kind, match=said):
        recipe(tmp_path, text).train(BIAS, two_classes(), {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def train(arrays, data, settings): ...", "neither a function `model` nor `evaluate`"),
        ("", "neither a function `model` nor `train` and `evaluate`"),
        ("def model(:", "invalid syntax"),
    ],
)
def test_what_is_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe(tmp_path, text)
