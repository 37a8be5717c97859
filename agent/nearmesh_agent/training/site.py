"""What the agent tells the processes of its SuperNode, in a private file whose path is all that their config holds."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nearmesh import config
from nearmesh.document import without_none
from nearmesh.errors import ConfigError
from nearmesh.tls import write_private
from nearmesh_agent.training.config import DataConfig
from nearmesh_agent.training.failures import NoData

log = logging.getLogger(__name__)

# Key of the node config under which the path stands; apps of data teams' own may read the file as well.
KEY = "nearmesh-site"
FILE = "site.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """This node, as far as training needs to know it."""

    # By model.
    data: dict[str, DataConfig] = field(default_factory=dict)
    # Threads of one training process.
    threads: int = 1
    # Where PyTorch trains.
    device: str = "cpu"
    # A file in which the agent keeps for how long training has stood still so far, seconds. None: it never does.
    yielded: Path | None = None

    def write(self, folder: Path) -> Path:
        """Readable by this user alone; returns where it is."""
        path = folder / FILE
        said = json.dumps(without_none(asdict(self)), indent=1, default=_absolute)
        write_private(path, said.encode())
        return path

    @classmethod
    def of(cls, node_config: Mapping[str, Any]) -> Site:
        """The one whose path is in the node config. Raises NoData, ConfigError."""
        path = Path(str(node_config.get(KEY, "")))
        if not path.is_file():
            raise NoData(f"the node config has no {KEY!r} that names a file; only the agent starts SuperNodes with one")
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: {error}") from None
        return config.parse(cls, content, where=str(path), base=path.parent)

    def data_of(self, model: str) -> DataConfig:
        """Raises NoData."""
        if model not in self.data:
            raise NoData(f"no [training.data.{model}] in node.toml; there is {', '.join(self.data) or 'none'}")
        return self.data[model]

    def yielded_s(self) -> float:
        """For how long training on this node has stood still in all."""
        if self.yielded is None:
            return 0.0
        try:
            return float(self.yielded.read_text("utf-8"))
        except FileNotFoundError:
            return 0.0
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read, so that this round says it never stood still: %s", self.yielded, error)
            return 0.0


def _absolute(path: Path) -> str:
    """Whoever reads it runs in another folder."""
    return str(path.absolute())
