"""What the documents show exists: the commands, with their options, and the files that they link to."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from tests.commands import PROGRAMS, check_command, commands_in

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "deploy").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)]*)?\)")
# A command in running text, which may leave out what it needs.
MENTIONED = re.compile(rf"`((?:{'|'.join(PROGRAMS)})(?: [^`]+)?)`")


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_commands(document: Path) -> None:
    for line in commands_in(document):
        check_command(line)


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_commands_in_running_text(document: Path) -> None:
    for line in MENTIONED.findall(document.read_text("utf-8")):
        command, words = PROGRAMS[line.split()[0]], line.split()[1:]
        while words and isinstance(command, click.Group) and re.fullmatch(r"[a-z-]+", words[0]):
            found = command.get_command(click.Context(command), words[0])
            assert found, f"{line}: no command {words[0]!r}"
            command, words = found, words[1:]


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_links(document: Path) -> None:
    for target in LINK.findall(document.read_text("utf-8")):
        assert (document.parent / target).exists(), f"links to {target}, which is not there"


@pytest.mark.parametrize(
    "line", ["nearmesh node fetch", "nearmesh node list --yaml", "nearmesh model deploy", "nearmesh audit a b"]
)
def test_a_command_that_does_not_exist_is_noticed(line: str) -> None:
    with pytest.raises(click.UsageError):
        check_command(line)
