"""A package's files as a node has them: in one folder, each under its published name."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from nearmesh.errors import PackageError
from nearmesh.package import MANIFEST_FILE, Package
from nearmesh.packaging.sources import OnProgress, fetch, quiet


def published_files(
    package: Package, folder: Path, cache: Path, *, without: Iterable[str] = (), on_progress: OnProgress = quiet
) -> dict[str, Path]:
    """Each published file, but those of `without`, by its name in the artifact.

    Raises PackageError, DigestMismatch, Unreachable.
    """
    files = {name: folder / name for name in (MANIFEST_FILE, *package.files) if name not in set(without)}
    for path in files.values():
        if not path.is_file():
            raise PackageError(f"{path}: no such file; model.toml names it")
    fetched = {name: fetch(source, folder, cache, on_progress=on_progress) for name, source in package.sources.items()}
    return files | fetched


def lay_out(files: dict[str, Path], into: Path) -> None:
    """Copies the files to where a node would look for them."""
    for name, path in files.items():
        shutil.copyfile(path, into / name)
