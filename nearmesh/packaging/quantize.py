"""The variants that a package's [[quantize]] sections make: each once, and then kept in the cache.

A made file is known by what it was made from: the bytes of the other variant and of the samples, the recipe, and the
versions of the libraries. So publishing makes what it needs, and nobody commits weights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nearmesh.errors import InvalidInput, PackageError
from nearmesh.oci import digest_file
from nearmesh.package import Package, Quantize, Variant
from nearmesh.packaging.killed import check_not_killed
from nearmesh.packaging.sets import set_file, version_of
from nearmesh.packaging.sources import fetch
from nearmesh.process import leashed

# Raised when `convert` asks other things of the libraries, so that what an older one made is not taken for its work.
_RECIPES = 3
# One that is not done by then hangs.
_LIMIT_S = 3600.0
_BUILDERS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What became of one [[quantize]] section."""

    variant: Variant
    # The variant that it was made from, and how.
    of: str
    kind: str
    # None: it was not made here, and `skipped` says why.
    path: Path | None
    skipped: str = ""


def make(package: Package, folder: Path, cache: Path, *, only: Collection[str] = ()) -> Iterator[Made]:
    """Each variant as it is made, those named by `only` or all. Raises PackageError, DigestMismatch, InvalidInput.

    A plan's builder that is not here is passed over, unless its variant was asked for by name.
    """
    names = {quantize.variant for quantize in package.quantize}
    if unknown := sorted(set(only) - names):
        there = ", ".join(sorted(names)) or "none"
        raise InvalidInput(f"no [[quantize]] makes {unknown[0]!r}; {package.name!r} has {there}")
    workshop = _Workshop(package, folder, cache)
    for quantize in package.quantize:
        if not only or quantize.variant in only:
            found = workshop.made(quantize)
            if found.skipped and only:
                raise PackageError(f"variant {quantize.variant!r}: {found.skipped}")
            yield found


class _Workshop:
    """Makes variants of one package."""

    def __init__(self, package: Package, folder: Path, cache: Path) -> None:
        self._package, self._folder, self._cache = package, folder, cache
        self._quantize = {(quantize.step, quantize.variant): quantize for quantize in package.quantize}
        self._found: dict[tuple[str, str], Made] = {}

    def made(self, quantize: Quantize) -> Made:
        at = (quantize.step, quantize.variant)
        if at not in self._found:
            self._found[at] = self._make(quantize)
        return self._found[at]

    def _make(self, quantize: Quantize) -> Made:
        of = self._package.made_of(quantize)
        if skipped := _why_not(quantize):
            return Made(variant=quantize.made, of=of, kind=quantize.kind, path=None, skipped=skipped)
        files = self._files(of, quantize.step)
        samples = set_file(quantize.calibration, self._folder, self._cache) if quantize.calibration else None
        kept = self._cache / "variants" / f"{_key(quantize, files, samples)}.onnx"
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            # Inside the cache, so that the last step is a rename within one file system.
            with tempfile.TemporaryDirectory(prefix=".variant-", dir=self._cache) as scratch:
                _convert(quantize, files, samples, Path(scratch)).replace(kept)
        return Made(variant=quantize.made, of=of, kind=quantize.kind, path=kept)

    def _files(self, name: str, step: str) -> dict[str, Path]:
        """Of the variant that another one is made from: the graph first, then what lies beside it, by their names."""
        if (step, name) in self._quantize:
            found = self.made(self._quantize[step, name])
            if found.path is None:
                raise PackageError(f"variant {name!r}, which another one is made from: {found.skipped}")
            return {found.variant.file: found.path}
        variant = next(variant for variant in self._package.given(step) if variant.name == name)
        return {file: fetch(source, self._folder, self._cache) for file, source in variant.sources.items()}


def _why_not(quantize: Quantize) -> str:
    builder = _BUILDERS.get(quantize.kind)
    if builder and importlib.util.find_spec(builder) is None:
        return f"skipped: no builder here (Python has no {builder})"
    return ""


def _key(quantize: Quantize, files: Mapping[str, Path], samples: Path | None) -> str:
    said = {
        "recipes": _RECIPES,
        "kind": quantize.kind,
        "skip": list(quantize.skip),
        "files": {name: digest_file(path) for name, path in files.items()},
        "samples": digest_file(samples) if samples else None,
        "libraries": versions(),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of the libraries that make variants."""
    runtime = version_of("onnxruntime") or version_of("onnxruntime-gpu")
    return {"numpy": version_of("numpy"), "onnx": version_of("onnx"), "onnxruntime": runtime}


def _convert(quantize: Quantize, files: Mapping[str, Path], samples: Path | None, scratch: Path) -> Path:
    """The made file, within `scratch`. Raises PackageError, Killed."""
    for needed in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(needed) is None:
            raise PackageError(f"making variants needs {needed}: pip install 'nearmesh[build]' onnxruntime")
    for name, path in files.items():
        shutil.copyfile(path, scratch / name)
    target = scratch / "made.onnx"
    recipe = {
        "kind": quantize.kind,
        "source": str(scratch / next(iter(files))),
        "target": str(target),
        "skip": list(quantize.skip),
        "calibration": str(samples) if samples else None,
    }
    # Sets of names are walked in the order of their hashes.
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    command = leashed([sys.executable, "-m", "nearmesh.packaging.convert", json.dumps(recipe)])
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackageError(f"variant {quantize.variant!r} could not be made: {error}") from None
    check_not_killed(f"the process that makes {quantize.variant!r}", done.returncode)
    if done.returncode != 0 or not target.is_file():
        said = done.stderr.strip().splitlines()
        why = said[-1] if said else f"the tools ended with {done.returncode}"
        raise PackageError(f"variant {quantize.variant!r} ({quantize.kind}) could not be made: {why}")
    return target
