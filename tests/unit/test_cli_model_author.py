"""`nearmesh model init`, `check` and `schema`, as people and programs see them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nearmesh.cli.main import main
from nearmesh.package import MANIFEST_FILE
from nearmesh.package.schema import FILE
from tests.tiny_models import adder

pytest.importorskip("onnxruntime", reason="warm-ups are made by ONNX Runtime")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["model", *map(str, arguments)])


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEARMESH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    adder(tmp_path / "adder")
    return tmp_path / "adder" / "fp32.onnx"


def fill_in(folder: Path) -> None:
    text = (folder / MANIFEST_FILE).read_text("utf-8")
    for key in ("licence", "credit"):
        begin = text.index(f"{key} = ")
        text = text[:begin] + f'{key} = "MIT"' + text[text.index("\n", begin) :]
    (folder / MANIFEST_FILE).write_text(text, "utf-8")


def test_from_a_file_to_a_package_that_passes(file: Path) -> None:
    done = run("init", file, "--name", "sums", "--into", "sums")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("sums is the package sums: fp32.onnx, model.toml, warmup.npz\n")
    assert "input   left   FP32  [-1, 4]" in done.stdout and "up to 32 rows share an engine call" in done.stdout
    assert "Now fill in licence and credit in sums/model.toml" in done.stderr
    checked = run("check", "sums")
    assert checked.exit_code == 0, checked.output
    assert checked.stdout.startswith("sums@1: ") and "fp32: the warm-up gives what it should" in checked.stdout
    assert "fill in licence and credit" in checked.stderr
    fill_in(Path("sums"))
    assert "fill in" not in run("check", "sums").output


def test_for_programs(file: Path) -> None:
    made = json.loads(run("init", file, "--json").stdout)
    assert (made["name"], made["folder"], made["max_batch"], made["opset"]) == ("adder", "adder", 32, 17)
    assert made["inputs"][1] == {"name": "right", "dtype": "FP32", "shape": [-1, 4], "batch_axis": 0}
    assert made["unfilled"] == ["licence", "credit"]
    checked = json.loads(run("check", "adder", "--json").stdout)
    assert checked["publishable"] is False and checked["proven"] == ["fp32"]
    assert [file["name"] for file in checked["files"]] == ["fp32.onnx", "model.toml", "warmup.npz"]
    fill_in(Path("adder"))
    assert json.loads(run("check", "adder", "--json").stdout)["publishable"] is True


def test_a_warm_up_that_the_graph_does_not_give(file: Path) -> None:
    import numpy as np

    run("init", file, "--into", "sums", "--name", "sums")
    with np.load("sums/warmup.npz") as archive:
        arrays = dict(archive)
    arrays["output.total"] += 1
    np.savez("sums/warmup.npz", **arrays)
    done = run("check", "sums")
    assert done.exit_code == 1
    assert "variant 'fp32': output 'total' is not what warmup.npz expects: off by up to 1" in done.stderr


def test_every_mistake_has_its_line(file: Path) -> None:
    run("init", file, "--into", "sums", "--name", "sums")
    path = Path("sums") / MANIFEST_FILE
    text = path.read_text("utf-8").replace('version = "1"', "version = 1").replace("max_batch = 32", "max_batch = -1")
    path.write_text(text, "utf-8")
    done = run("check", "sums")
    lines = [text[: text.index(part)].count("\n") + 1 for part in ("version = 1", "max_batch = -1")]
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"error: sums/model.toml:{lines[0]}: version: expected str, got 1",
        f"error: sums/model.toml:{lines[1]}: batching.max_batch must be 0 (no batch axis) or more, got -1",
    ]


def test_nothing_is_written_over_without_force(file: Path) -> None:
    assert run("init", file, "--into", "sums", "--name", "sums").exit_code == 0
    again = run("init", file, "--into", "sums", "--name", "sums")
    assert again.exit_code == 1 and "--force writes over them" in again.stderr
    assert run("init", file, "--into", "sums", "--name", "sums", "--force").exit_code == 0


def test_the_schema_is_printed_as_it_is() -> None:
    assert run("schema").stdout == FILE.read_text("utf-8")
