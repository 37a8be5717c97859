"""The picture that `nearmesh run --plot` draws."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from nearmesh.cli.run_plot import draw
from nearmesh.v1 import run_pb2
from tests.fake_runs import RUN, ended, round_, run, served
from tests.run_bench import START, RunBench, run_bench

FAILED = run_pb2.RUN_STATE_FAILED


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunBench:
    return run_bench(tmp_path, monkeypatch)


@pytest.mark.parametrize(("name", "start"), [("run.png", b"\x89PNG"), ("run.SVG", b"<?xml"), ("run.pdf", b"%PDF")])
def test_the_metric_of_each_round_is_drawn(bench: RunBench, tmp_path: Path, name: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    for command in (("run", "show", RUN), START):
        path = tmp_path / name
        done = bench(*command, "--plot", str(path))
        assert done.exit_code == 0, done.output
        assert path.read_bytes().startswith(start)
        assert f"{path} is drawn" in done.stderr
        path.unlink()


def test_a_plot_has_a_line_for_each_site_and_gaps_where_it_was_missing(tmp_path: Path) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    drawn: list[Any] = []
    keep = figure.Figure.savefig

    def savefig(self: Any, *arguments: Any, **more: Any) -> None:
        drawn.append(self.axes[0])
        keep(self, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure.Figure, "savefig", savefig)
        suspect = round_(3, 0.95)
        suspect.sites[1].suspect = True
        draw(
            served(rounds=[round_(0, 0.8), round_(1, 0.9), round_(2, 0.93, missing="node-c"), suspect]),
            tmp_path / "r.svg",
        )
    lines = {line.get_label(): line for line in drawn[0].lines}
    assert set(lines) == {"pooled", "node-a", "node-b", "node-c", "suspect"}
    assert list(lines["pooled"].get_ydata()) == [0.8, 0.9, 0.93, 0.95]
    gap = [not math.isfinite(value) for value in lines["node-c"].get_ydata()]
    assert gap == [False, False, True, False], "it was missing in round 2"
    crosses = [line for line in drawn[0].lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[3]]
    assert drawn[0].get_ylabel() == "accuracy"


def test_a_run_without_a_figure_is_not_drawn(bench: RunBench, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bench.hear(run(metric="", rounds=[]))
    done = bench("run", "show", RUN, "--plot", str(tmp_path / "r.png"))
    assert (done.exit_code, done.stderr) == (1, "error: run r7 has no figure to draw yet: no round has told one\n")


def test_why_a_run_failed_says_more_than_that_nothing_can_be_drawn(bench: RunBench, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bench.hear(run(), ended(FAILED, reason="no site is there", metric="", rounds=[]))
    done = bench(*START, "--plot", str(tmp_path / "r.png"))
    assert done.stderr.splitlines()[-1] == "error: run r7 failed after 0 rounds: no site is there"
    bench.hear(run(), ended(FAILED, reason="no site is there any more"))
    assert "is drawn" in bench(*START, "--plot", str(tmp_path / "r.png")).stderr


def test_a_machine_without_matplotlib_is_told_before_a_run_begins(
    bench: RunBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = bench(*START, "--plot", "run.svg")
    assert done.exit_code == 2 and "pip install 'nearmesh[plots]'" in done.stderr
    assert bench.done == []
