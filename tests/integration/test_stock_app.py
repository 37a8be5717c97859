"""A Flower app as Flower's documentation teaches it runs unchanged, is watched, and goes on where it was killed."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from nearmesh_controlplane.rounds import stock
from nearmesh_controlplane.runs.folder import Plan, RunFolder, SiteInfo

from benchmarks.flower_fleet import Fleet, fleet_in
from tests.integration.mesh_processes import until
from tests.signals import send

APP = Path(__file__).parents[1] / "stock_app"
NODES = ("node-a", "node-b")
ROUNDS = 2


in_module = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True, slots=True)
class Sites:
    """Two nodes whose operators say which partition of the data is theirs, as Flower's documentation has it."""

    fleet: Fleet
    ids: Mapping[str, int]

    def run_folder(self, path: Path) -> RunFolder:
        folder = RunFolder(path)
        folder.make()
        folder.write_plan(
            Plan(run="r1", model="m", rounds=ROUNDS, min_sites=2, strategy="", round_timeout_s=30.0, metric="eval_acc")
        )
        sites = {id: SiteInfo(node=name, site="s", region="r", pseudonym="p") for name, id in self.ids.items()}
        folder.write_sites(sites)
        return folder


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def sites(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sites]:
    """For one run after the other."""
    async with fleet_in(tmp_path_factory.mktemp("fleet")) as fleet, AsyncExitStack() as stack:
        keys, ids = await fleet.nodes(*NODES)
        for at, (name, key) in enumerate(keys.items()):
            said = ("--node-config", f"partition-id={at} num-partitions={len(keys)}")
            await stack.enter_async_context(fleet.supernode(name, key, *said))
        yield Sites(fleet, ids)


def server_app(run_folder: Path) -> int:
    """The process in which the app runs: the one whose files belong into the run's folder."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if stock.__name__.encode() in words and (process / "cwd").resolve() == run_folder:
                return int(process.name)
    return 0


@in_module
async def test_it_runs_unchanged_and_is_resumed_after_its_last_round(sites: Sites, tmp_path: Path) -> None:
    fleet, folder = sites.fleet, sites.run_folder(tmp_path / "run")
    run = await fleet.engine.start(APP, {"num-server-rounds": ROUNDS}, folder.path)

    async def first_round() -> bool:
        return bool(folder.rounds())

    await until(first_round, within_s=60.0)
    send(server_app(folder.path), signal.SIGKILL)
    first = (folder.path / "rounds" / "0001.json").read_bytes()
    await fleet.engine.stop(run)
    run = await fleet.engine.start(APP, {"num-server-rounds": ROUNDS}, folder.path)
    found = await fleet.ended(run)
    assert found.state == "finished", await fleet.engine.log(run)
    rounds = folder.rounds()
    assert [record.number for record in rounds] == [1, 2]
    assert (folder.path / "rounds" / "0001.json").read_bytes() == first, "the first round was made once"
    for record in rounds:
        assert {site.node: (site.answer, site.examples) for site in record.sites} == dict.fromkeys(
            NODES, ("counted", 150)
        )
        assert all("eval_acc" in site.metrics and "train_loss" in site.train_metrics for site in record.sites)
    losses = [record.metrics["eval_loss"] for record in rounds]
    assert losses == sorted(losses, reverse=True) and rounds[-1].metrics["eval_acc"] > 0.8
    # What the app itself wrote in the end is the model of the last round.
    with np.load(folder.path / "final_model.npz") as saved:
        np.testing.assert_array_equal(saved["arr_0"], folder.arrays(ROUNDS)["0"])
    assert json.loads(first)["metrics"].keys() == {"eval_loss", "eval_acc"}


@in_module
async def test_an_app_that_fails_says_why(sites: Sites, tmp_path: Path) -> None:
    folder = sites.run_folder(tmp_path / "run")
    app = tmp_path / "failing"
    (app / "quickstart").mkdir(parents=True)
    for path in (APP / "pyproject.toml", *(APP / "quickstart").glob("*.py")):
        (app / path.relative_to(APP)).write_text(path.read_text().replace("(get_model())", "([1 / 0])"))
    run = await sites.fleet.engine.start(app, {}, folder.path)
    assert (await sites.fleet.ended(run)).state == "failed"
    end = folder.end()
    assert end and end.reason == "the app failed: ZeroDivisionError: division by zero"


@pytest.mark.parametrize("path", ["pyproject.toml", "quickstart/server_app.py", "quickstart/client_app.py"])
def test_the_app_knows_nothing_of_the_mesh(path: str) -> None:
    assert "nearmesh" not in (APP / path).read_text().lower()
