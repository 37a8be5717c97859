"""Which files are imported, under which names, and what else lies there.

A source is named by its path from the folder that was asked for, that folder's own name first; a file that was asked
for by itself is named as if its folder had been. So the same file has the same name, whichever of the two is imported,
and from wherever.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path

from nearmesh.errors import InvalidInput
from nearmesh.ingest.document import Problem

# As long as a filter can name them.
MAX_NAME_BYTES = 1024
_UNSPEAKABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


class Kind(StrEnum):
    """Who reads a file."""

    TEXT = "text"
    MARKDOWN = "markdown"
    JSON_LINES = "jsonl"
    CSV = "csv"
    PDF = "pdf"


KINDS = {
    ".txt": Kind.TEXT,
    ".text": Kind.TEXT,
    ".rst": Kind.TEXT,
    ".adoc": Kind.TEXT,
    ".md": Kind.MARKDOWN,
    ".markdown": Kind.MARKDOWN,
    ".jsonl": Kind.JSON_LINES,
    ".ndjson": Kind.JSON_LINES,
    ".csv": Kind.CSV,
    ".tsv": Kind.CSV,
    ".pdf": Kind.PDF,
}


@dataclass(frozen=True, slots=True)
class File:
    path: Path
    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Claim:
    """What an import speaks for: sources of this name and below it that are not there any more have gone."""

    name: str
    is_folder: bool

    @property
    def prefix(self) -> str:
        """With which the names begin, among others."""
        return f"{self.name}/" if self.is_folder else self.name

    def covers(self, source: str) -> bool:
        return source.startswith(f"{self.name}/") or (source == self.name and not self.is_folder)


@dataclass(slots=True)
class Found:
    """What lies at the paths that were asked for."""

    files: list[File] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    # Names of what is there and not read: other kinds of files, links, what was excluded. None of it has gone.
    others: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def find(paths: Iterable[Path], *, called: str = "", kind: Kind | None = None, exclude: Sequence[str] = ()) -> Found:
    """Every file at or below the paths, in order of names. Raises InvalidInput for two of one name.

    `called` takes the place of a folder's own name; `kind` is that of files whose name does not tell. `exclude` are
    globs of a file's or folder's own name, of its path from the folder, or of its whole name. Hidden files and folders
    are left out, and links below the paths are not followed: they may lead anywhere.
    """
    found = Found()
    for path in paths:
        # So that `.` has a name; one that is a link keeps its own.
        here = Path(os.path.abspath(path))  # noqa: PTH100  # which follows no link
        folder = here if here.is_dir() else here.parent
        top = _top(called, folder)
        if here.is_dir():
            found.claims.append(Claim(top, True))
            _folder(found, here, top, kind, exclude)
        else:
            name = f"{top}/{here.name}"
            found.claims.append(Claim(name, False))
            _file(found, here.resolve(), name, kind or KINDS.get(here.suffix.lower()))
    _check(found.claims)
    return found


def _top(called: str, folder: Path) -> str:
    """With which the names of sources begin."""
    top = called.strip("/") or folder.name or "root"
    if speakable(top) != top:
        raise InvalidInput(f"the name {speakable(top)} has characters that no message can carry; --as gives another")
    return top


def _check(claims: Sequence[Claim]) -> None:
    """Raises InvalidInput where one import would take another one's sources for its own, and delete them."""
    for index, one in enumerate(claims):
        for other in claims[index + 1 :]:
            if one.name == other.name or one.covers(other.name) or other.covers(one.name):
                raise InvalidInput(
                    f"two of the paths hold sources named {max(one.name, other.name)}; import them one after the "
                    "other, each with a name of its own: --as NAME"
                )


def _folder(found: Found, here: Path, top: str, kind: Kind | None, exclude: Sequence[str]) -> None:
    todo = [(here, top)]
    while todo:
        folder, name = todo.pop()
        inner: list[tuple[Path, str]] = []
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            found.problems.append(Problem(speakable(name), f"this folder cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            whole = f"{name}/{entry.name}"
            spoken = (entry.name, whole.removeprefix(f"{top}/"), whole)
            excluded = any(fnmatchcase(one, glob) for one in spoken for glob in exclude)
            inner += _entry(found, entry, whole, kind, excluded)
        todo += reversed(inner)


def _entry(
    found: Found, entry: os.DirEntry[str], name: str, kind: Kind | None, excluded: bool
) -> Iterator[tuple[Path, str]]:
    """The folder, if it is one that is looked into."""
    if excluded or entry.name.startswith(".") or entry.is_symlink():
        found.others.append(name)
    elif entry.is_dir(follow_symlinks=False):
        yield Path(entry.path), name
    elif (of := KINDS.get(Path(entry.name).suffix.lower(), kind)) and entry.is_file(follow_symlinks=False):
        _file(found, Path(entry.path), name, of)
    else:
        found.others.append(name)


def _file(found: Found, path: Path, name: str, kind: Kind | None) -> None:
    if kind is None:
        known = ", ".join(KINDS)
        why = f"files of this kind are not read, only {known}; --type says what it is"
    elif speakable(name) != name:
        why = "its name has characters that no message can carry; rename it"
    elif len(name.encode()) > MAX_NAME_BYTES:
        why = f"its name is above {MAX_NAME_BYTES} bytes"
    else:
        found.files.append(File(path, name, kind))
        return
    found.problems.append(Problem(speakable(name), why))


def speakable(name: str) -> str:
    """A name without control characters, and without the marks of bytes that are no UTF-8."""
    return _UNSPEAKABLE.sub(lambda match: f"\\x{ord(match[0]) & 0xFF:02x}", name)
