"""`nearmesh run start`: what it can be told, what it refuses, and apps of their own."""

from __future__ import annotations

import builtins
import json
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from nearmesh.strategies import STRATEGIES
from nearmesh.v1 import run_pb2
from tests.fake_runs import RUN
from tests.run_bench import START, RunBench, run_bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunBench:
    return run_bench(tmp_path, monkeypatch)


def test_all_that_a_run_can_be_told(bench: RunBench) -> None:
    where = ("--version", "2", "--sites", "a, b", "--min-sites", "5", "--round-timeout", "2m", "--idempotency-key", "k")
    how = ("--strategy", "krum", "--option", "num-malicious-nodes=2", "--set", "epochs=3", "--set", "name=a b")
    trust = ("--largest-norm", "4", "--noise-multiplier", "1.5", "--clipping-norm", "2", "--delta", "1e-6")
    when = ("--window", "22:00-06:00", "--idle-below", "0.3", "--cheaper-than", "0.5")
    then = ("--auto-promote", "--steps", "5,50", "--step-time", "10s", "--largest-site-loss", "0", "--detach")
    done = bench(*START, *where, *how, *trust, *when, *then)
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        "run r7 is started; `nearmesh run watch r7` shows how far it is, and `nearmesh run stop r7` ends it\n"
    )
    assert bench.asked() == run_pb2.StartRunRequest(
        model="digits",
        version="2",
        rounds=3,
        min_sites=5,
        strategy="krum",
        strategy_options={"num-malicious-nodes": 2.0},
        settings={"epochs": "3", "name": '"a b"'},
        round_timeout_s=120.0,
        sites=["a", "b"],
        largest_norm=4.0,
        privacy=run_pb2.Privacy(noise_multiplier=1.5, clipping_norm=2.0, delta=1e-6),
        schedule=run_pb2.Schedule(window="22:00-06:00", idle_below=0.3, usd_per_hour_below=0.5),
        idempotency_key="k",
        auto_promote=True,
        promote=run_pb2.PromoteOptions(steps=[0.05, 0.5], step_s=10.0, largest_site_loss=0.0),
    )


def test_a_run_that_is_told_little(bench: RunBench) -> None:
    record = json.loads(bench(*START, "--detach", "--json").stdout)
    assert (record["run"], record["state"]) == (RUN, "training")
    asked = bench.asked()
    assert (asked.strategy, asked.min_sites, asked.round_timeout_s) == ("fedavg", 2, 120.0)
    assert not asked.HasField("privacy") and not asked.HasField("schedule")
    assert not asked.promote.HasField("largest_site_loss")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_can_be_asked_for_and_gets_the_sites_that_it_needs(bench: RunBench, strategy: str) -> None:
    assert bench(*START, "--strategy", strategy, "--detach").exit_code == 0
    asked = bench.asked()
    assert asked.strategy == strategy
    assert asked.min_sites == {"bulyan": 7}.get(strategy, 3 if STRATEGIES[strategy].robust else 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--strategy", "blue"), "'blue' is not one of 'fedavg'"),
        (("--strategy", "krum", "--min-sites", "2"), "ask for 3 (--min-sites)"),
        (("--option", "beta=1"), "no option of fedavg is called 'beta'"),
        (("--strategy", "trimmed-mean", "--option", "beta=0.9"), "option beta is 0.9"),
        (("--option", "beta"), "'beta' is not NAME=NUMBER"),
        (("--option", "beta=nan"), "'beta=nan' is not NAME=NUMBER"),
        (("--set", "epochs"), "'epochs' is not NAME=VALUE"),
        (("--rounds", "0"), "0 is not in the range"),
        (("--round-timeout", "soon"), "expected such as 90s"),
        (("--window", "22-6"), "'22-6' is no window; expected such as 22:00-06:00, UTC"),
        (("--noise-multiplier", "1"), "needs --noise-multiplier and --clipping-norm"),
        (("--delta", "0.1"), "needs --noise-multiplier and --clipping-norm"),
        (("--plot", "run.gif"), "'run.gif' ends in none of .png, .svg, .pdf"),
        (("--plot", "nowhere/run.svg"), "no folder to write run.svg to"),
        (("--plot", "run.svg", "--detach"), "--plot draws the end"),
        (("--app", "/", "--strategy", "krum"), "--strategy does not go with --app"),
        (("--app", "/", "--option", "a=1"), "--option does not go with --app"),
    ],
)
def test_what_is_no_run(bench: RunBench, arguments: tuple[str, ...], words: str) -> None:
    done = bench(*START, *arguments)
    assert done.exit_code == 2, done.output
    assert words in " ".join(done.stderr.split())
    assert bench.done == []


def test_strategies_are_listed(bench: RunBench) -> None:
    found = json.loads(bench("run", "strategies", "--json", bare=True).stdout)
    assert [one["strategy"] for one in found] == list(STRATEGIES)
    shown = bench("run", "strategies", bare=True).stdout
    assert "num-malicious-nodes" in shown and "trimmed-mean" in shown


# Apps of their own

# Flower's, of a package that it reads .gitignore by.
flowers_warning = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

PYPROJECT = """
[project]
name = "hello"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["flwr>=1.41"]
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
serverapp = "hello.server_app:app"
clientapp = "hello.client_app:app"
"""


def own_app(folder: Path) -> Path:
    (folder / "hello").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    for name in ("server_app", "client_app"):
        (folder / "hello" / f"{name}.py").write_text("app = None\n")
    return folder


@flowers_warning
def test_an_app_of_ones_own_is_packed_as_flower_does(bench: RunBench, tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    done = bench(*START, "--app", str(own_app(tmp_path / "hello")), "--set", "lr=0.1", "--detach")
    assert done.exit_code == 0, done.output
    asked = bench.asked()
    assert (asked.strategy, asked.settings["lr"]) == ("", "0.1")
    with zipfile.ZipFile(BytesIO(asked.app)) as fab:
        assert {"pyproject.toml", "hello/server_app.py", "hello/client_app.py"} <= set(fab.namelist())


@flowers_warning
def test_a_folder_that_is_no_app_is_told_so(bench: RunBench, tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    folder = own_app(tmp_path / "hello")
    (folder / "pyproject.toml").write_text("[project")
    done = bench(*START, "--app", str(folder))
    assert done.exit_code == 1 and done.stderr.startswith(f"error: {folder}: "), done.output
    (folder / "pyproject.toml").write_text("[project]\nname = 'hello'\n")
    assert f"error: {folder}: " in bench(*START, "--app", str(folder)).stderr
    (folder / "pyproject.toml").unlink()
    assert "no pyproject.toml, so it is no Flower app" in bench(*START, "--app", str(folder)).stderr
    assert bench.done == []


def test_packing_without_flower_says_what_to_install(
    bench: RunBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any, **named: Any) -> Any:
        if name.startswith("flwr"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    done = bench(*START, "--app", str(own_app(tmp_path / "hello")))
    assert (done.exit_code, done.stderr) == (
        1,
        "error: packing an app needs Flower itself: pip install 'nearmesh[rounds]'\n",
    )
