"""What the agent tells the process that keeps its vectors: one file, written before each start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from nearmesh.document import Document
from nearmesh_agent.vectors.config import VectorsConfig

# Linux keeps the address of a socket in 108 bytes.
MAX_SOCKET_BYTES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Document):
    """Of one process."""

    FILE: ClassVar[str] = "settings.json"

    # Of its own: collections, journal, indexes, Milvus Lite.
    folder: str
    # Where it answers.
    socket: str
    node: str
    site: str
    region: str
    # Threads that search.
    threads: int = 2
    max_message_bytes: int = 64 * 1024 * 1024
    # Of its log, which is the agent's.
    log_level: str = "info"
    config: VectorsConfig = field(default_factory=VectorsConfig)

    @property
    def path(self) -> Path:
        return Path(self.folder)
