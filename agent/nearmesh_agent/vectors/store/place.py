"""Which Milvus a node uses: the one in its configuration, until `nearmesh vectors migrate` has moved its rows.

The move is written down beside the rows, in one step, and holds for as long as the configuration names the same store
as then: who names another one there means that.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nearmesh.document import Document
from nearmesh.errors import ConfigError, InvalidInput
from nearmesh.tls import write_private
from nearmesh_agent.vectors.store.lite import LiteStore
from nearmesh_agent.vectors.store.milvus import MilvusStore

# Lite's folder, where no address is configured.
LITE = "milvus.db"
_SERVER = ("http://", "https://")
# Of the digest of a node's name.
_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A store: the address of a server, or the path of Lite's folder; empty: Lite, below the node's own folder."""

    uri: str = ""
    # Environment variable that holds the token; the token itself is written nowhere.
    token_variable: str = ""

    @property
    def is_server(self) -> bool:
        return self.uri.startswith(_SERVER)

    def check(self) -> None:
        """Raises InvalidInput for what names no store."""
        if self.uri and not self.is_server and not Path(self.uri).is_absolute():
            raise InvalidInput(f"{self.uri!r} is neither http://HOST:PORT nor the whole path of a Milvus Lite")
        if self.is_server and "@" in self.uri:
            # It would stand in logs and answers.
            raise InvalidInput("a store's address holds no user and password; name a variable that has them")
        if self.token_variable and not self.is_server:
            raise InvalidInput(f"{self.uri or 'Milvus Lite'!r} takes no token; leave {self.token_variable!r} out")

    def open(self, folder: Path, node: str, environment: Mapping[str, str] = os.environ) -> MilvusStore:
        """`folder` is the node's own; several nodes may share a server. Raises ConfigError where the variable is not
        set."""
        if not self.is_server:
            return LiteStore(Path(self.uri) if self.uri else folder / LITE)
        token = environment.get(self.token_variable, "") if self.token_variable else ""
        if self.token_variable and not token:
            raise ConfigError(f"the token of {self.uri} is to be in {self.token_variable}, which is not set here")
        return MilvusStore(self.uri, token, owner=owner(node))


def owner(node: str) -> str:
    """As the names of a server's collections begin that are this node's; letters, digits and underscores alone."""
    return f"nearmesh_{hashlib.sha256(node.encode()).hexdigest()[:_DIGITS]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved(Document):
    """That a node's rows were moved, and from where."""

    FILE: ClassVar[str] = "moved.json"

    uri: str = ""
    token_variable: str = ""
    # What the configuration said then.
    instead_of: str = ""


def current(folder: Path, configured: Place) -> Place:
    """What is to be opened. Raises PackageError for a file that is damaged."""
    moved = Moved.read(folder)
    if moved is None or moved.instead_of != configured.uri:
        return configured
    return Place(uri=moved.uri, token_variable=moved.token_variable)


def move(folder: Path, configured: Place, to: Place) -> None:
    """From now on; on disk when it returns."""
    moved = Moved(uri=to.uri, token_variable=to.token_variable, instead_of=configured.uri)
    write_private(folder / Moved.FILE, moved.to_bytes())
