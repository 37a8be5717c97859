"""docs/retrieval.md: its commands exist, its configuration is read, and its numbers are the code's."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
from nearmesh_agent.vectors import limits, recall
from nearmesh_agent.vectors.config import VectorsConfig

from nearmesh.client import vectors
from nearmesh.config import parse
from tests.commands import check_command, commands_in

PAGE = Path(__file__).parents[2] / "docs" / "retrieval.md"
TEXT = PAGE.read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("line", commands_in(PAGE))
def test_a_command_is_there_with_its_options(line: str) -> None:
    check_command(line)


def test_the_configuration_is_read() -> None:
    read = [tomllib.loads(block) for block in blocks("toml")]
    found = [parse(VectorsConfig, one["vectors"], where="node.toml", base=Path()) for one in read if "vectors" in one]
    assert len(found) >= 2 and all(one.enabled for one in found)
    assert found[-1].quota("shop").max_vectors > found[-1].quota("support").max_vectors
    assert found[-1].serves("support") and not found[-1].serves("other")


def test_what_programs_do_is_python_that_uses_what_there_is() -> None:
    names = {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for block in blocks("python")
        for node in ast.walk(ast.parse(block.replace("async with", "with").replace("await ", "")))
        if isinstance(node, ast.Attribute | ast.Name)
    }
    assert {"VectorClient", "Passage", "near", "create", "upsert", "retrieve"} <= names
    for name in ("create", "near"):
        assert hasattr(vectors.VectorClient, name)
    for name in ("upsert", "retrieve"):
        assert hasattr(vectors.Collection, name)


def test_the_limits_are_the_codes() -> None:
    for number in (limits.MAX_ID_BYTES, limits.MAX_TEXT_BYTES, limits.MAX_STRING_BYTES, limits.MAX_K, limits.MAX_ROWS):
        assert f"{number:,}" in TEXT, number
    assert f"over the last {recall.SAMPLES}" in TEXT and f"nearest {recall.OF}" in TEXT
