"""`nearmesh vectors import` as people and programs see it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nearmesh.cli import vectors_import
from nearmesh.cli.main import main
from nearmesh.cli.session import Session
from nearmesh.cli.vectors_node import Target
from nearmesh.ingest.files import Kind
from tests.fake_admin import local_mesh
from tests.fake_vectors import FakeTarget

Run = Callable[..., Result]
Work = Callable[[FakeTarget], Coroutine[Any, Any, Any]]


@pytest.fixture
def target() -> FakeTarget:
    return FakeTarget()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: FakeTarget) -> Run:
    mesh = local_mesh(tmp_path)

    def pretended(
        session: Session, of: Target, name: str, work: Callable[[FakeTarget], Coroutine[Any, Any, Any]]
    ) -> Any:
        assert (of, name) == (Target(node="node-a"), "handbook")
        return asyncio.run(work(target))

    monkeypatch.setattr(vectors_import, "ask_collection", pretended)

    def command(*arguments: str | Path) -> Result:
        given = ["vectors", "import", "--collection", "handbook", "--node", "node-a", *map(str, arguments)]
        return CliRunner().invoke(main, ["--mesh", str(mesh), *given])

    return command


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("# A\n\nWords.")
    (folder / "b.txt").write_text("More words.")
    return folder


def test_what_came_of_it_is_told(run: Run, docs: Path) -> None:
    done = run(docs)
    assert done.exit_code == 0, done.output
    assert "2 new" in done.stdout and "2 written" in done.stdout and not done.stderr
    (docs / "b.txt").unlink()
    done = run(docs)
    assert "1 unchanged, 1 deleted" in done.stdout and "1 deleted" in done.stdout


def test_json(run: Run, docs: Path) -> None:
    (docs / "c.jsonl").write_text('{"id": 1}\n')
    done = run(docs, "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found.pop("took_s") >= 0
    message = "no text in it; it has id: --text names the column to take"
    assert found == {
        "collection": "handbook",
        "dry_run": False,
        "files": 3,
        "sources": {"new": 2, "changed": 0, "unchanged": 0, "empty": 0, "deleted": 0, "withheld": 0},
        "rows": {"written": 2, "unchanged": 0, "deleted": 0},
        "problem_count": 1,
        "problems": [{"source": "docs/c.jsonl", "position": "line 1", "message": message}],
    }
    assert done.stderr == "error: one could not be read; the rest is in\n"


def test_what_could_not_be_read_is_told_and_the_rest_is_in(run: Run, docs: Path, target: FakeTarget) -> None:
    for number in range(25):
        (docs / f"{number}.pdf").write_text("no PDF")
    done = run(docs)
    assert done.exit_code == 1 and len(target.rows) == 2
    lines = done.stderr.splitlines()
    assert lines[0] == "not read: docs/0.pdf: not a PDF" and len(lines) == 22
    assert lines[-2] == "not read: 5 more; --json tells the first 25"
    assert lines[-1] == "error: 25 could not be read; the rest is in"


def test_a_dry_run_says_so(run: Run, docs: Path, target: FakeTarget) -> None:
    done = run(docs, "--dry-run")
    assert done.exit_code == 0 and "2 new" in done.stdout and "a dry run" in done.stderr
    assert not target.rows


def test_most_of_a_collection_is_not_deleted_without_a_word(run: Run, docs: Path, target: FakeTarget) -> None:
    for number in range(11):
        (docs / f"{number}.txt").write_text("Words.")
    run(docs)
    for number in range(11):
        (docs / f"{number}.txt").unlink()
    done = run(docs)
    assert done.exit_code == 1 and "--delete-gone deletes them" in done.stderr and len(target.rows) == 13
    assert run(docs, "--delete-gone").exit_code == 0 and len(target.rows) == 2


def test_columns_and_sizes_are_chosen(run: Run, docs: Path, target: FakeTarget) -> None:
    (docs / "c.csv").write_text("sku;name;about\nx;Name;" + "About it. " * 30)
    done = run(docs / "c.csv", "--id", "sku", "--text", "name", "--text", "about", "--length", "100", "--as", "shop")
    assert done.exit_code == 0, done.output
    assert target.rows["shop/c.csv/x#0"].text.startswith("Name\n\nAbout it.")
    assert len(target.rows) > 2 and all(len(row.text) <= 100 for row in target.rows.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--keep-gone", "--delete-gone"), "the opposite"),
        (("--type", "word"), "'word' is not one of"),
        (("/nowhere/at/all",), "does not exist"),
    ],
)
def test_usage(run: Run, docs: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(docs, *arguments)
    assert done.exit_code == 2 and message in done.stderr


def test_values_that_make_no_sense(run: Run, docs: Path) -> None:
    for name in ("klingon", "base64", "undefined"):
        assert f"error: {name!r} is no encoding of texts" in run(docs, "--encoding", name).stderr
    assert run(docs, "--length", "10").stderr == "error: a length of 10 characters is not from 100 to 15000\n"
    assert "an overlap of 90" in run(docs, "--length", "100", "--overlap", "90").stderr


def test_kinds_are_those_of_the_readers() -> None:
    assert tuple(Kind) == vectors_import.KINDS
