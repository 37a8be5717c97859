"""What one gets in place of weights, and how to get them."""

from __future__ import annotations

from pathlib import Path

# Nothing below is longer than its beginning that is looked at here.
_HEAD_BYTES = 1024
_POINTER = b"version https://git-lfs."
_PAGES = (b"<!doctype html", b"<html")


def what_came_instead(path: Path) -> str | None:
    """In words, with a remedy; None for a file that may well be weights."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(_POINTER) and path.stat().st_size <= _HEAD_BYTES:
        return f"a Git LFS pointer instead of the file ({_of(head)}): run `git lfs pull` where it comes from"
    if head.lstrip().lower().startswith(_PAGES):
        return "a web page instead of the file: the address may ask for a login, or show the file instead of giving it"
    return None


def _of(head: bytes) -> str:
    """The pointer's facts: `oid sha256:...` and `size ...`."""
    lines = head.decode("utf-8", "replace").splitlines()
    return ", ".join(line for line in lines if line.startswith(("oid ", "size "))) or "of no known file"
