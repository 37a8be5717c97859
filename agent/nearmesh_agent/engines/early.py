"""What can be known of a package before its weights are here: a node that cannot run it does not fetch them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nearmesh import package as packages
from nearmesh.errors import PackageError
from nearmesh.package import MANIFEST_FILE
from nearmesh_agent.engines.choice import candidates


def check(files: Mapping[str, Path], *, providers: Sequence[str], allow_python: bool) -> None:
    """`files` are those that are here, by their names; without a model.toml nothing is known. Raises PackageError."""
    path = files.get(MANIFEST_FILE)
    if path is None:
        return
    package = packages.parse(path.read_text("utf-8"), MANIFEST_FILE)
    for step in package.steps:
        if step.python and not allow_python:
            raise PackageError(
                f"step {step.name!r} is code of the package ({step.python}), and this node runs none: "
                "its setting `allow_python` is false"
            )
    for name in sorted({variant.step for variant in package.variants}):
        candidates(package, providers, step=name)
