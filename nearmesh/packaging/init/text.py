"""A model.toml as text, with a comment where the author has to look."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nearmesh.package import PLACEHOLDER, TensorSpec
from nearmesh.packaging.init.describe import Description

# More are no list that anybody reads.
_MOST_PARAMETERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What model.toml says besides its graph's description."""

    name: str
    description: str
    # Of the weights beside it, what the graph leaves to other files, and the warm-up.
    weights: str
    external: tuple[str, ...]
    warmup: str
    # What the file was, for people.
    origin: str


def write(named: Named, described: Description) -> str:
    """The whole file."""
    return "\n".join((*_head(named, described), *_tensors(described), *_rest(named, described))) + "\n"


def _head(named: Named, described: Description) -> Iterator[str]:
    yield f"# {_comment(named.origin)}"
    yield f"# Publishing refuses what is marked {PLACEHOLDER}; every key is in docs/models.md."
    yield f"name = {quoted(named.name)}"
    yield "# Yours to choose; other files need another version."
    yield 'version = "1"'
    yield f"description = {quoted(named.description)}"
    yield f"licence = {quoted(PLACEHOLDER + ': an SPDX expression, such as Apache-2.0')}"
    yield f"credit = {quoted(PLACEHOLDER + ': whom to credit')}"
    for hint in described.hints:
        yield f"# {_comment(hint)}"


def _tensors(described: Description) -> Iterator[str]:
    for key, specs in (("inputs", described.inputs), ("outputs", described.outputs)):
        for spec in specs:
            yield f"\n[[{key}]]"
            yield from _tensor(spec)


def _tensor(spec: TensorSpec) -> Iterator[str]:
    yield f"name = {quoted(spec.name)}"
    yield f"dtype = {quoted(spec.dtype)}"
    yield f"shape = {list(spec.shape)}"
    if spec.axes:
        yield f"axes = {_list(spec.axes)}"
    if spec.batch_axis:
        yield f"batch_axis = {spec.batch_axis}"


def _rest(named: Named, described: Description) -> Iterator[str]:
    if described.max_batch:
        yield "\n# Rows of one engine call at most; how many pay is measured on each node."
        yield "[batching]"
        yield f"max_batch = {described.max_batch}"
    yield "\n[[variants]]"
    yield 'name = "fp32"'
    yield f"source = {{ path = {quoted(named.weights)} }}"
    for name in named.external:
        yield "\n[[variants.external]]"
        yield f"name = {quoted(name)}"
        yield f"source = {{ path = {quoted(name)} }}"
    yield "\n# Made-up inputs: they prove the arithmetic. Inputs whose answers you know prove the model."
    yield "[[warmup]]"
    yield f"file = {quoted(named.warmup)}"
    yield f"rtol = {described.rtol:g}"
    yield f"atol = {described.atol:g}"
    if 0 < len(described.parameters) <= _MOST_PARAMETERS:
        yield from _training(described.parameters)


def _training(parameters: Iterable[str]) -> Iterator[str]:
    """Commented out: only the author knows whether it is to be trained further, and has the recipe."""
    yield "\n# Federated rounds can train it further, by a recipe beside this file; see docs/models.md."
    yield "# [training]"
    yield '# recipe = "training.py"'
    yield f"# parameters = {_comment(_list(parameters))}"


def quoted(text: str) -> str:
    """A string as TOML writes it: as JSON does, but for the one control character that JSON lets through."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _list(texts: Iterable[str]) -> str:
    return f"[{', '.join(map(quoted, texts))}]"


def _comment(text: str) -> str:
    """One line of printable text, whatever names a graph has."""
    return "".join(char if char.isprintable() else " " for char in text)
