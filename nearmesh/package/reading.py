"""From a model.toml to a `Package`, or to all that is wrong with it, line by line."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from nearmesh import config
from nearmesh.errors import ConfigError, PackageError
from nearmesh.package.package import Package

MANIFEST_FILE = "model.toml"

# What NumPy raises for a warm-up file that is no archive of arrays: a bare array (TypeError), one that is locked or
# packed in a way of its own (RuntimeError), a header that claims any size (MemoryError), and the rest.
UNREADABLE_ARCHIVE = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


def unreadable(error: BaseException) -> str:
    """What is wrong with such a file. NumPy takes what is no archive for Python objects, and tells how to load those,
    which would run whatever code stands in them."""
    return "it is no archive, or has Python objects in it" if "pickle" in str(error) else str(error)


def load(folder: Path) -> Package:
    """Reads `folder`/model.toml. Raises PackageError that names the file, the lines, the keys and the remedies."""
    path = folder / MANIFEST_FILE
    try:
        return checked(config.load(Package, path), str(path))
    except ConfigError as error:
        raise PackageError(error.message) from None


def parse(text: str, where: str) -> Package:
    """As `load`, from what a model.toml says; `where` stands at the head of every error. Raises PackageError."""
    try:
        return checked(config.parse_text(Package, text, where=where, base=Path()), where)
    except ConfigError as error:
        raise PackageError(error.message) from None


def checked(package: Package, where: str) -> Package:
    """The package, if it can prove itself. Raises PackageError."""
    if not package.warmup:
        raise PackageError(
            f"{where}: there is no [[warmup]]; name at least one file of inputs with the outputs that they must give, "
            "since no version serves before it has proven itself"
        )
    return package


def read_labels(path: Path) -> tuple[str, ...]:
    """One label a line; only a newline ends one, since a label may itself be white space. Raises PackageError."""
    try:
        return tuple(path.read_bytes().decode("utf-8").removesuffix("\n").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise PackageError(f"labels {path}: {error}") from None
