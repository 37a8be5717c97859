"""The JSON schema of model.toml, for editors: made of the dataclasses, whose comments say what each key means.

`python -m nearmesh.package.schema` writes model.schema.json, which is committed. It keeps to draft 4, the newest that
Taplo (and with it the editor plug-in Even Better TOML) knows; what lies between keys only `load` checks.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nearmesh.package.package import Package
from nearmesh.package.source import NEEDS, Source
from nearmesh.package.training import Training

FILE = Path(__file__).with_name("model.schema.json")

_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean"}
# What types alone do not say.
_MORE: Mapping[tuple[type, str], dict[str, Any]] = {
    (Package, "name"): {"pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"},
    (Package, "version"): {"pattern": "^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$"},
    (Package, "inputs"): {"minItems": 1},
    (Package, "outputs"): {"minItems": 1},
    (Package, "warmup"): {"minItems": 1},
    (Training, "parameters"): {"minItems": 1},
    (Source, "sha256"): {"pattern": "^[0-9a-f]{64}$"},
    (Source, "revision"): {"pattern": "^[0-9a-f]{40}$"},
}
# What may be missing while a package is made, but not when it is read.
_REQUIRED = {(Package, "warmup")}


def schema() -> dict[str, Any]:
    """Of a whole model.toml."""
    head = {"$schema": "http://json-schema.org/draft-04/schema#", "title": "A Nearmesh model package, model.toml"}
    return head | _table(Package)


def _table(cls: Any) -> dict[str, Any]:
    hints, said = get_type_hints(cls), comments(cls)
    fields = dataclasses.fields(cls)
    found: dict[str, Any] = {
        "type": "object",
        "description": _paragraph(inspect.getdoc(cls) or ""),
        "properties": {
            field.name: _described(_kind(hints[field.name]), said.get(field.name, ""), field)
            | _MORE.get((cls, field.name), {})
            for field in fields
        },
        "additionalProperties": False,
    }
    if required := [field.name for field in fields if _is_required(cls, field)]:
        found["required"] = required
    if cls is Source:
        found["oneOf"] = [{"required": [kind, *needs]} for kind, needs in NEEDS.items()]
    return found


def _is_required(cls: type, field: dataclasses.Field[Any]) -> bool:
    bare = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    return bare or (cls, field.name) in _REQUIRED


def _described(kind: dict[str, Any], said: str, field: dataclasses.Field[Any]) -> dict[str, Any]:
    if said:
        kind = kind | {"description": said}
    if isinstance(field.default, str | int | float) and field.default != "":
        kind = kind | {"default": field.default}
    return kind


def _kind(kind: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(kind):
        return _table(kind)
    if kind is Any:
        return {"type": ["string", "number", "boolean"]}
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _kind(next(arg for arg in args if arg is not type(None)))
    if origin is Literal:
        return {"enum": list(args)}
    if origin is tuple:
        return {"type": "array", "items": _kind(args[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _kind(args[1])}
    return {"type": _SCALARS[kind]}


def comments(cls: type) -> dict[str, str]:
    """By field, the comment above it."""
    lines = textwrap.dedent(inspect.getsource(cls)).splitlines()
    (body,) = ast.parse("\n".join(lines)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above: list[str] = []
            number = node.lineno - 2
            while lines[number].strip().startswith("#"):
                above.insert(0, lines[number].strip().removeprefix("#").strip())
                number -= 1
            found[node.target.id] = " ".join(above)
    return found


def _paragraph(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())


def to_json() -> str:
    """As it is committed."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(to_json(), "utf-8")
