"""What travels with a version as a JSON file of its artifact: how it is written, and read from whoever sent it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from nearmesh import config
from nearmesh.errors import ConfigError, PackageError

# Such files have some hundred bytes for each variant or site.
MAX_DOCUMENT_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Base of one, whose fields are the file's keys."""

    # The file's name in the artifact.
    FILE: ClassVar[str]

    def to_bytes(self) -> bytes:
        """JSON, canonical."""
        return json.dumps(without_none(asdict(self)), sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises PackageError."""
        cls.check_size(len(data))
        try:
            body = json.loads(data)
            if not isinstance(body, dict):
                raise PackageError(f"{cls.FILE}: expected an object, got {type(body).__name__}")
            return config.parse(cls, body, where=cls.FILE, base=Path())
        except (ValueError, RecursionError, ConfigError) as error:
            raise PackageError(f"{cls.FILE}: {error}") from None

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Of the version in a node's folder; None where it has none. Raises PackageError."""
        try:
            return cls.from_bytes((folder / cls.FILE).read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PackageError(f"{cls.FILE}: {error}") from None

    @classmethod
    def check_size(cls, size_bytes: int) -> None:
        """Raises PackageError for a file that is too large to be read."""
        if size_bytes > MAX_DOCUMENT_BYTES:
            raise PackageError(f"{cls.FILE} of {size_bytes} bytes is above the limit of {MAX_DOCUMENT_BYTES}")


def without_none(value: Any) -> Any:
    """As JSON and the reader of configuration know it: what is not given is not there."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list | tuple) else value
