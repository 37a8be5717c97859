"""The mesh's ClientApp, called with Flower's own messages: what it answers, and what never leaves a site."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from nearmesh_agent.training import client_app
from nearmesh_agent.training.config import DataConfig
from nearmesh_agent.training.site import KEY, Site
from onnx import TensorProto, helper, numpy_helper

from nearmesh.round_messages import digest

PLAIN = """
import numpy as np

SEEN = []

def outputs(arrays, inputs):
    return inputs["x"] @ arrays["weight"].T + arrays["bias"]

def train(arrays, data, settings):
    SEEN.append(settings)
    arrays["bias"] = arrays["bias"] + np.float32(settings["learning_rate"])
    return arrays, {"loss": 0.25, "not a name": 1.0, "infinite": float("inf"), "seed": settings["seed"]}

def evaluate(arrays, data, settings):
    return {"accuracy": float((outputs(arrays, data.inputs).argmax(1) == data.targets).mean()), "loss": 0.5}
"""
TORCH = """
import torch

class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3, 2))
        self.bias = torch.nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return x @ self.weight.T + self.bias

def model():
    return Line()
"""
WEIGHT = np.array([[1, 0], [0, 1], [-1, -1]], np.float32)
ARRAYS = {"weight": WEIGHT, "bias": np.zeros(3, np.float32)}
# What no answer may hold: in the data, or in what they are called.
CANARY = "canary-7f3a91"


def graph(weight: np.ndarray[Any, Any] = WEIGHT, *, rows: int | str = "rows") -> bytes:
    """x [rows, 2] -> scores [rows, 3]."""
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Gemm", ["x", "weight", "bias"], ["scores"], transB=1)],
            "line",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 2])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [rows, 3])],
            [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(ARRAYS["bias"], "bias")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


class AtSite:
    """One site with data for the model "line", and the app's folder where Flower would have put it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = {"model": "line", "metric": "accuracy", "inputs": "x", "set-learning_rate": 0.5}
        points = np.random.default_rng(1).normal(size=(80, 2)).astype(np.float32)
        self.data(points, (points @ WEIGHT.T).argmax(axis=1))
        self.recipe(PLAIN)
        (folder / "app" / "pyproject.toml").write_text("")

    def data(self, points: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> None:
        path = self.folder / "data.npz"
        np.savez(path, **{"input.x": points, "target": targets})
        self.site(Site(data={"line": DataConfig(path=path)}))

    def site(self, site: Site) -> None:
        self.path = site.write(self.folder)

    def recipe(self, text: str) -> None:
        (self.folder / "app").mkdir(exist_ok=True)
        (self.folder / "app" / "recipe.py").write_text(text)

    def ask(self, kind: str, config: dict[str, Any] | None = None, arrays: dict[str, Any] = ARRAYS) -> Message:
        records = RecordDict(
            {
                "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
                "config": ConfigRecord({"server-round": 3, "run": "r-1", **(config or {})}),
            }
        )
        message = Message(records, dst_node_id=11, message_type=kind)
        context = Context(
            run_id=5, node_id=11, node_config={KEY: str(self.path)}, state=RecordDict(), run_config=self.config
        )
        return client_app.app(message, context)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AtSite:
    found = AtSite(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "app"))
    # As in the process that Flower starts for a task.
    for name, value in {"_run_id": 5, "_task_id": 1, "_node_id": 11}.items():
        monkeypatch.setattr(TaskIdentity, name, value)
    return found


def metrics_of(answer: Message) -> dict[str, Any]:
    assert answer.has_content(), answer.error.reason
    return dict(answer.content.metric_records["metrics"])


def test_train_gives_parameters_counts_and_times(here: AtSite) -> None:
    answer = here.ask("train", {"set-learning_rate": 2.0})
    found = {name: array.numpy() for name, array in answer.content.array_records["arrays"].items()}
    assert found["bias"].tolist() == [2, 2, 2]
    metrics = metrics_of(answer)
    assert metrics["num-examples"] == 60
    assert metrics["yielded-s"] == 0
    assert 0 <= metrics["train-s"] < 60
    # Nothing under a name that is none, and no number that is not finite.
    assert metrics.keys() == {"num-examples", "loss", "seed", "train-s", "yielded-s"}
    assert dict(answer.content.config_records["config"]) == {"server-round": 3, "base": digest(ARRAYS)}


def test_the_runs_settings_hold_where_the_message_says_nothing(here: AtSite) -> None:
    assert here.ask("train").content.array_records["arrays"]["bias"].numpy().tolist() == [0.5] * 3


def test_the_seed_is_of_run_round_and_node(here: AtSite) -> None:
    seeds = [metrics_of(here.ask("train", config))["seed"] for config in ({}, {}, {"server-round": 4}, {"run": "s"})]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 3


def test_time_that_training_stood_still_is_no_time_of_training(here: AtSite, monkeypatch: pytest.MonkeyPatch) -> None:
    here.site(Site(data=Site.of({KEY: str(here.path)}).data, yielded=here.folder / "yielded"))
    (here.folder / "yielded").write_text("10.0")
    clock = iter([100.0, 107.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    pause = f"import pathlib; pathlib.Path({str(here.folder / 'yielded')!r}).write_text('14.5')"
    here.recipe(PLAIN.replace("SEEN.append(settings)", pause))
    metrics = metrics_of(here.ask("train"))
    assert (metrics["yielded-s"], metrics["train-s"]) == (4.5, 2.5)


def test_evaluate_judges_by_what_is_held_back(here: AtSite) -> None:
    assert metrics_of(here.ask("evaluate")) == {"num-examples": 20, "accuracy": 1.0, "loss": 0.5}


@pytest.mark.parametrize("rows", ["rows", 1, 7])
@pytest.mark.parametrize("recipe", [PLAIN, TORCH])
def test_the_candidates_graph_is_judged_and_compared(here: AtSite, recipe: str, rows: int | str) -> None:
    here.recipe(recipe)
    same = metrics_of(here.ask("query.candidate", {"graph": graph(rows=rows)}))
    assert (same["num-examples"], same["accuracy"]) == (20, 1.0)
    assert same["difference"] < 1e-5
    other = metrics_of(here.ask("query.candidate", {"graph": graph(WEIGHT[::-1].copy(), rows=rows)}))
    assert other["accuracy"] < 0.7
    assert other["difference"] > 0.1


def test_without_a_framework_there_is_no_difference(here: AtSite) -> None:
    here.recipe(PLAIN.replace("def outputs", "def _outputs"))
    assert metrics_of(here.ask("query.candidate", {"graph": graph()})).keys() == {"num-examples", "accuracy"}


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("train", lambda here: here.config.update(model="other"), "NoData: this site has no data for the model"),
        ("train", lambda here: here.path.unlink(), "NoData: this site has no data for the model"),
        ("train", lambda here: (here.folder / "data.npz").unlink(), "DataError: the data at this site cannot be used"),
        ("train", lambda here: (here.folder / "app" / "recipe.py").unlink(), "RecipeError: the recipe does not keep"),
        ("train", lambda here: here.recipe("import nothing_of_that_name"), "ModuleNotFoundError: an error at this"),
        ("train", lambda here: here.recipe(PLAIN.replace("SEEN.append(settings)", "exit(3)")), "SystemExit: an error"),
        (
            "train",
            lambda here: here.recipe(PLAIN.replace("SEEN.append(settings)", "raise MemoryError")),
            "MemoryError: memory ran out",
        ),
        ("evaluate", lambda here: here.config.update(metric="auc"), "RecipeError: the recipe does not keep"),
        ("query.candidate", lambda here: None, "RecipeError: the recipe does not keep"),
    ],
)
def test_failures_are_answered_in_few_words(
    here: AtSite, kind: str, change: Callable[[AtSite], Any], reason: str
) -> None:
    change(here)
    answer = here.ask(kind)
    assert answer.has_error()
    assert answer.error.reason is not None
    assert answer.error.reason.startswith(reason)


def test_a_graph_that_is_none_is_answered(here: AtSite) -> None:
    assert str(here.ask("query.candidate", {"graph": b"no graph"}).error.reason).startswith("GraphError: ")


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_parameters_that_are_no_numbers_are_not_worked_with(here: AtSite, kind: str) -> None:
    answer = here.ask(kind, arrays={**ARRAYS, "bias": np.array([0, np.nan, 0], np.float32)})
    assert str(answer.error.reason).startswith("Diverged: ")


LEAKS = f"""
import numpy as np

class Error_{CANARY.replace("-", "_")}(ValueError):
    pass

def metrics(outputs, targets):
    return {{"accuracy": 1.0, **{{"{CANARY}" + "x" * int(value): float(value) for value in targets + 1}}}}

def train(arrays, data, settings):
    raise Error_{CANARY.replace("-", "_")}(f"{CANARY} {{data.inputs['x'][0]}} {{data.targets}}")

def evaluate(arrays, data, settings):
    raise KeyError(f"{CANARY} {{data.targets}}")
"""


@pytest.mark.parametrize("kind", ["train", "evaluate", "query.candidate"])
@pytest.mark.parametrize("wrong", ["nothing", "cell", "column", "row", "path", "recipe"])
def test_p9_what_is_in_the_data_and_what_they_are_called_leaves_no_site(here: AtSite, kind: str, wrong: str) -> None:
    """Planted in cells, columns, the file's name, errors and names of metrics; looked for in all bytes of answers."""
    folder = here.folder / CANARY
    folder.mkdir()
    path = folder / f"{CANARY}.csv"
    cell = CANARY if wrong == "cell" else "0.5"
    rows = [f"{CANARY},{value},{cell if value == 7 else value / 20},{value % 3}" for value in range(20)]
    path.write_text("\n".join([f"site,{CANARY}-a,{CANARY}-b,{CANARY}-target", *rows, *(["1,2"] * (wrong == "row"))]))
    if wrong == "path":
        path.unlink()
    named = f"{CANARY}-{'absent' if wrong == 'column' else 'b'}"
    here.site(
        Site(
            data={
                "line": DataConfig(
                    path=path,
                    format="csv",
                    inputs=(f"{CANARY}-a", named),
                    target=f"{CANARY}-target",
                    where={"site": CANARY},
                )
            }
        )
    )
    if wrong == "recipe":
        here.recipe(LEAKS)
    answer = here.ask(kind, {"graph": graph()})
    failed = wrong not in ("nothing", "recipe") or (wrong == "recipe" and kind != "query.candidate")
    assert answer.has_error() == failed, answer
    sent = everything(answer)
    for secret in (CANARY, CANARY.replace("-", "_"), str(here.folder)):
        assert secret.encode() not in sent


def everything(answer: Message) -> bytes:
    """All that Flower would send of it."""
    from flwr.common.serde import message_to_proto
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    nested = get_all_nested_objects(answer)
    return b"".join(one.deflate() for one in nested.values()) + message_to_proto(answer).SerializeToString()
