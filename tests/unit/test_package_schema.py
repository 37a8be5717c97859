"""The published schema of model.toml is that of the dataclasses, and agrees with what is read."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest

from nearmesh.package import Package, Source
from nearmesh.package.schema import FILE, comments, schema, to_json
from tests.unit.test_package_sections import GOOD, MISTAKES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def validate() -> Callable[[Any], Any]:
    found: Callable[[Any], Any] = fastjsonschema.compile(json.loads(FILE.read_text("utf-8")))
    return found


def test_the_committed_schema_is_fresh() -> None:
    assert FILE.read_text("utf-8") == to_json(), "run `python -m nearmesh.package.schema`"


@pytest.mark.parametrize("path", sorted(ROOT.glob("models/*/model.toml")), ids=lambda path: path.parent.name)
def test_the_projects_own_packages_fit(validate: Callable[[Any], Any], path: Path) -> None:
    validate(tomllib.loads(path.read_text("utf-8")))


def test_everything_that_may_be_said_fits(validate: Callable[[Any], Any]) -> None:
    validate(tomllib.loads(GOOD))


# Those that lie in one value; what lies between sections, only reading finds.
OF_ONE_VALUE = [row for row in MISTAKES if "is not one of" in row[2] or "expected int" in row[2]]


@pytest.mark.parametrize(("right", "wrong", "said"), OF_ONE_VALUE)
def test_mistakes_of_one_value_are_found_by_an_editor(
    validate: Callable[[Any], Any], right: str, wrong: str, said: str
) -> None:
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        validate(tomllib.loads(GOOD.replace(right, wrong, 1)))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('licence = "MIT"', 'license = "MIT"'),
        ('name = "digits"', 'name = "Digits"'),
        ('[[warmup]]\nfile = "warmup.npz"\n', ""),
        ('{ path = "digits.onnx" }', "{}"),
        ('{ path = "digits.onnx" }', '{ url = "https://h/a" }'),
    ],
)
def test_what_no_editor_lets_through(validate: Callable[[Any], Any], right: str, wrong: str) -> None:
    assert right in GOOD
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        validate(tomllib.loads(GOOD.replace(right, wrong, 1)))


def test_comments_are_descriptions() -> None:
    assert comments(Source)["revision"] == "The commit, 40 hex digits: a branch or a tag may move."
    properties = schema()["properties"]
    assert properties["batching"]["properties"]["max_delay_ms"]["description"].startswith("How long a request waits")
    assert properties["gate"]["properties"]["largest_loss"]["default"] == 0.01
    assert properties.keys() == {field.name for field in dataclasses.fields(Package)}
