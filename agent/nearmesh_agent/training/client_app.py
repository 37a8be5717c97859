"""The mesh's ClientApp: a package's recipe on this site's data, for each message of a round in a process of its own.

    TRAIN             parameters -> parameters, metrics of training, and for how long it trained and stood still
    EVALUATE          parameters -> metrics on what the site has held back
    QUERY candidate   an ONNX graph and the parameters in it -> metrics of the graph's own outputs there, and how far
                      they are from the framework's

The names in the messages are `nearmesh.round_messages`. The run config says "model", "metric", and in "inputs" the
names of the model's inputs with commas between.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from nearmesh.round_messages import (
    ARRAYS,
    CONFIG,
    DIFFERENCE,
    GRAPH,
    PROXIMAL_MU,
    RUN,
    SERVER_ROUND,
    SETTING,
    TRAIN_S,
    YIELDED_S,
)
from nearmesh_agent.training import data, replies
from nearmesh_agent.training.candidate import Candidate, difference
from nearmesh_agent.training.failures import RecipeError
from nearmesh_agent.training.recipe import Arrays, Metrics, Recipe, check, open_recipe, words
from nearmesh_agent.training.site import Site

log = logging.getLogger(__name__)

RECIPE = "recipe.py"
# Which Flower makes of every app beside the recipe; tells the app's folder from others that hold a file of that name.
_PROJECT = "pyproject.toml"

app = ClientApp()

_Handler = Callable[[Message, Context], Message]


def _guarded(handler: _Handler) -> _Handler:
    """Has the site's log tell of an error, and the answer as little as may leave: Flower itself would send its text."""

    @functools.wraps(handler)
    def call(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except (Exception, SystemExit) as error:  # a recipe may raise anything
            log.exception("%s of model %r failed", message.metadata.message_type, context.run_config.get("model"))
            return replies.failure(message, error)

    return call


class _Work:
    """One message: what it brings, and what this site has for it."""

    def __init__(self, message: Message, context: Context) -> None:
        self.message = message
        arrays: Arrays = {name: array.numpy() for name, array in message.content.array_records[ARRAYS].items()}
        self.arrays = check(arrays, arrays, "the parameters that came")
        self.metric = str(context.run_config["metric"])
        self.settings = settings_of(_config(message), context)
        self._run = context.run_config
        self._site = Site.of(context.node_config)
        self.yielded_s = self._site.yielded_s

    def data(self, inputs: list[str] | None = None) -> data.SiteData:
        """`inputs` are the names that the graph takes, where it is there."""
        said = [name for name in str(self._run.get("inputs", "")).split(",") if name]
        return data.load(self._site.data_of(str(self._run["model"])), inputs or said)

    def recipe(self) -> Recipe:
        return open_recipe(recipe_file(), device=self._site.device, threads=self._site.threads)

    def judged(self, metrics: Metrics) -> Metrics:
        """Those that may leave; the one that the run is judged by is among them. Raises RecipeError, Diverged."""
        replies.judged(metrics, self.metric)
        return replies.plain(metrics, {*words(recipe_file()), self.metric})


@app.train()
@_guarded
def train(message: Message, context: Context) -> Message:
    """The site's part in a round."""
    work = _Work(message, context)
    rows = work.data().train
    recipe = work.recipe()
    began_s, before_s = time.monotonic(), work.yielded_s()
    trained, metrics = recipe.train(work.arrays, rows, work.settings)
    yielded_s = work.yielded_s() - before_s
    metrics = {
        **replies.plain(metrics, words(recipe_file())),
        TRAIN_S: max(0.0, time.monotonic() - began_s - yielded_s),
        YIELDED_S: yielded_s,
    }
    return replies.answer(message, work.arrays, len(rows), metrics, trained)


@app.evaluate()
@_guarded
def evaluate(message: Message, context: Context) -> Message:
    """How good parameters are on what the site has held back."""
    work = _Work(message, context)
    rows = work.data().held_back
    metrics = work.judged(work.recipe().evaluate(work.arrays, rows, work.settings))
    return replies.answer(message, work.arrays, len(rows), metrics)


@app.query("candidate")
@_guarded
def candidate(message: Message, context: Context) -> Message:
    """How good the graph itself is there, as serving would run it, and whether it is what was trained."""
    work = _Work(message, context)
    graph = Candidate(_graph(message))
    rows = work.data(graph.inputs).held_back
    recipe = work.recipe()
    outputs = graph.outputs(rows.inputs)
    metrics = work.judged(recipe.metrics(outputs, rows.targets))
    framework = recipe.outputs(work.arrays, rows.inputs)
    if framework is not None:
        metrics = {**metrics, DIFFERENCE: difference(outputs, framework)}
    return replies.answer(message, work.arrays, len(rows), metrics)


def recipe_file() -> Path:
    """Beside the app's own modules, whose folder Flower has put on the path of imports. Raises RecipeError."""
    for entry in sys.path:
        if entry and (Path(entry) / _PROJECT).is_file() and (Path(entry) / RECIPE).is_file():
            return Path(entry) / RECIPE
    raise RecipeError(f"the app that runs here has no {RECIPE}; the mesh's own apps have one")


def settings_of(config: ConfigRecord, context: Context) -> dict[str, Any]:
    """What the recipe is told: the run's settings, this message's over them, and the seed of this node's round."""
    said = {**context.run_config, **config}
    found = {name.removeprefix(SETTING): value for name, value in said.items() if name.startswith(SETTING)}
    if PROXIMAL_MU in config:
        found[PROXIMAL_MU] = config[PROXIMAL_MU]
    text = f"{config.get(RUN, context.run_id)!s}/{config.get(SERVER_ROUND, 0)!s}/{context.node_id}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
    # For recipes that draw from these without asking for the seed.
    random.seed(seed)
    np.random.seed(seed)
    return {"seed": seed, **found}


def _config(message: Message) -> ConfigRecord:
    return message.content.config_records.get(CONFIG, ConfigRecord())


def _graph(message: Message) -> bytes:
    found = _config(message).get(GRAPH)
    if not isinstance(found, bytes):
        raise RecipeError(f"the message has no {GRAPH!r}")
    return found
