"""Plans that TensorRT built, kept on disk: each under everything that it depends on, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nearmesh.errors import EngineFailure
from nearmesh_agent.engines.tensorrt.shapes import Profile

log = logging.getLogger(__name__)

# Plans and caches of ONNX Runtime's TensorRT provider take up to this much; the next one in turns the oldest out.
MOST_BYTES = 8 * 1024**3
_MAGIC = b"nearmesh plan 1"
_SUFFIX, _UNFINISHED = ".plan", ".unfinished"
# A build that takes longer than this is none any more; what it left goes.
_UNFINISHED_S = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKey:
    """What a plan is good for; another value of any of these needs another plan."""

    # Of the ONNX file, 64 hex digits.
    onnx_sha256: str
    # The GPU's, such as "sm_90", or "none".
    architecture: str
    library: str
    version: str
    # "fp16", or "graph" for what the graph itself says.
    precision: str
    profile: Profile = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The plan's name on disk, the same for equal keys in whatever order their inputs were named."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def precision_of(variant: str) -> str:
    """A variant's name says whether TensorRT may compute in 16 bits although the graph has 32."""
    return "fp16" if "fp16" in variant.lower() else "graph"


def file_sha256(path: Path) -> str:
    """64 hex digits. Raises EngineFailure."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EngineFailure(f"{path.name}: {error.strerror}") from None


class PlanStore:
    """A folder of plans. One process owns it; its threads may call at the same time."""

    def __init__(self, folder: Path, *, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes

    def get(self, key: PlanKey) -> bytes | None:
        """The plan; None if there is none. One that is damaged, or under a wrong name, is discarded."""
        path = self._path(key)
        try:
            head, _, plan = path.read_bytes().partition(b"\n")
        except OSError:
            return None
        if head != _head(key, plan):
            log.warning("discarding a damaged plan file=%s", path.name)
            self.discard(key)
            return None
        _touch(path)
        return plan

    def put(self, key: PlanKey, plan: bytes) -> None:
        """Keeps it, on disk when this returns, and lets the oldest go. Raises EngineFailure when the disk refuses."""
        path = self._path(key)
        unfinished = path.with_name(f"{path.name}.{time.monotonic_ns()}{_UNFINISHED}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                file.write(_head(key, plan) + b"\n")
                file.write(plan)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError as error:
            raise EngineFailure(f"the plan cannot be kept: {error}") from None
        finally:
            with suppress(OSError):
                unfinished.unlink()
        self._bound(keep=path)

    def discard(self, key: PlanKey) -> None:
        """Forgets it. Safe to repeat."""
        self._path(key).unlink(missing_ok=True)

    def provider_folder(self, key: PlanKey) -> Path:
        """A folder for what ONNX Runtime's TensorRT provider keeps under this key. Raises EngineFailure."""
        folder = self._folder / key.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineFailure(f"the plan cache cannot be made: {error}") from None
        _touch(folder)
        self._bound(keep=folder)
        return folder

    def _path(self, key: PlanKey) -> Path:
        return self._folder / f"{key.name}{_SUFFIX}"

    def _bound(self, keep: Path) -> None:
        """Those that nobody asked for the longest leave first. A loaded plan is in memory and needs no file."""
        kept, total = [], 0
        for path in self._folder.iterdir():
            modified_s, size = _age_and_size(path)
            if path.name.endswith(_UNFINISHED):
                if modified_s < time.time() - _UNFINISHED_S:
                    _remove(path)
                continue
            total += size
            kept.append((modified_s, size, path))
        for _, size, path in sorted(kept):
            if total > self._most_bytes and path != keep:
                log.info("a plan leaves the cache file=%s bytes=%d", path.name, size)
                _remove(path)
                total -= size


def _head(key: PlanKey, plan: bytes) -> bytes:
    return b"%s %s %s" % (_MAGIC, key.name.encode(), hashlib.sha256(plan).hexdigest().encode())


def _touch(path: Path) -> None:
    """It counts as used now."""
    try:
        os.utime(path)
    except OSError as error:
        log.warning("plan cache: %s", error)


def _age_and_size(path: Path) -> tuple[float, int]:
    """When it was used last, and its bytes; zeros for what has just gone."""
    try:
        files = [path, *path.rglob("*")] if path.is_dir() else [path]
        return path.stat().st_mtime, sum(file.stat().st_size for file in files if file.is_file())
    except OSError:
        return 0.0, 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
