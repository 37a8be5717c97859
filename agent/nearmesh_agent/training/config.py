"""`[training]` of node.toml: whether this node takes part in federated rounds, with how much of it, on which data."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nearmesh.addresses import is_address
from nearmesh.config import Problem, refuse

# Below a twentieth a round hardly ends within its time; held back more than half, and little is left to learn from.
SMALLEST_SHARE = 0.05
MOST_HELD_BACK = 0.9
# As Flower takes its --node-config apart.
_PAIR = re.compile(r"(\S+?)=('[^']*'|\"[^\"]*\"|\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Where this site's data for one model are, and how they are read: [training.data.MODEL]."""

    # A folder of arrays, an .npz file, or a CSV file.
    path: Path | None = None
    # "arrays": train.npz and held_back.npz, or data.npz, with the arrays input.NAME and target. "csv": a header, then a
    # row for each example.
    format: Literal["arrays", "csv"] = "arrays"
    # Of CSV: the columns that make the model's one input, in order, and the one that it is to predict.
    inputs: tuple[str, ...] = ()
    target: str = ""
    # The target is 1 where it is above this, else 0. Not given: as it stands.
    target_above: float | None = None
    # Of CSV: only the rows with these values, as they are written.
    where: dict[str, str] = field(default_factory=dict)
    # Of CSV: what an empty cell of an input counts as. Not given: it is an error.
    missing: float | None = None
    # The part that is never trained on, and judges models; which rows these are does not change from round to round.
    held_back: float = 0.25
    # One's own: "package.module:function", called with this table and the names of the model's inputs; it returns a
    # nearmesh_agent.training.data.SiteData.
    loader: str = ""
    # Larger data are refused rather than swapped; they are in memory as a whole, beside what serves.
    largest_mib: int = 1024

    def __post_init__(self) -> None:
        refuse(self._problems())

    def _problems(self) -> list[Problem]:
        found = [
            (
                "held_back",
                not 0 < self.held_back <= MOST_HELD_BACK,
                f"must be above 0 and at most {MOST_HELD_BACK}, got {self.held_back}",
            ),
            ("largest_mib", self.largest_mib < 1, f"must be 1 or more, got {self.largest_mib}"),
            (
                "loader",
                bool(self.loader) and not re.fullmatch(r"[\w.]+:\w+", self.loader),
                f"{self.loader!r} is not package.module:function",
            ),
            ("path", self.path is None and not self.loader, "is missing: say where the data are, or give a `loader`"),
        ]
        if not self.loader:
            found += self._of_format()
        return [Problem((key,), f"{key} {said}") for key, wrong, said in found if wrong]

    def _of_format(self) -> list[tuple[str, bool, str]]:
        if self.format == "arrays":
            of_csv = {"inputs": self.inputs, "target": self.target, "where": self.where}
            return [
                (key, bool(value), 'is of format = "csv"; arrays are called input.NAME and target')
                for key, value in of_csv.items()
            ] + [("missing", self.missing is not None, 'is of format = "csv"')]
        twice = sorted({name for name in self.inputs if self.inputs.count(name) > 1})
        return [
            ("inputs", not self.inputs, 'is missing: of format = "csv" the columns have to be named'),
            ("inputs", bool(twice), f"names {', '.join(twice)} more than once"),
            ("inputs", bool(self.target) and self.target in self.inputs, f"holds the target {self.target!r} as well"),
            ("target", not self.target, 'is missing: of format = "csv" the column has to be named'),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Whether and how this node takes part in federated rounds."""

    # Without it the node is never asked, whatever else stands here. Recipes of packages are Python that runs on this
    # node with the agent's rights, in processes of their own.
    allowed: bool = False
    # Whether Flower apps of data teams' own may run here as well. Such an app reads what the agent may read, and sends
    # what it likes.
    own_apps: bool = False
    # The part of the machine's cores that training may take at most; serving comes first in any case.
    cpu_share: float = 0.5
    # host:port of the fleet API if it is reached otherwise than the control plane says, through a proxy say.
    superlink: str = ""
    # Where PyTorch recipes train: "cpu", "cuda" or "cuda:N".
    device: str = "cpu"
    # What a data team's own Flower apps find in their node config: pairs as flower-supernode takes them, such as
    # 'partition-id=0 num-partitions=3'.
    node_config: str = ""
    # By model. A model without data here is never trained here.
    data: dict[str, DataConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        address = not self.superlink or is_address(self.superlink)
        share, device = SMALLEST_SHARE <= self.cpu_share <= 1, re.fullmatch(r"cpu|cuda(:\d+)?", self.device)
        pairs = _pairs_problem(self.node_config)
        checks = [
            ("cpu_share", share, f"must be {SMALLEST_SHARE} to 1, got {self.cpu_share}"),
            ("superlink", address, f"{self.superlink!r} is not HOST:PORT"),
            ("device", device, f"{self.device!r} is not cpu, cuda or cuda:N"),
            ("node_config", not pairs, pairs),
        ]
        refuse(Problem((key,), f"{key} {said}") for key, right, said in checks if not right)


def _pairs_problem(text: str) -> str:
    """Why Flower would not take it as pairs; empty: it does."""
    pairs = _PAIR.findall(text)
    try:
        tomllib.loads("\n".join(f"{key} = {value}" for key, value in pairs))
    except tomllib.TOMLDecodeError as error:
        return f"{text!r} is no list of pairs such as 'partition-id=0 name=\"a\"': {error}"
    rest = _PAIR.sub("", text).strip()
    return f"{text!r}: {rest!r} is no pair of key=value" if rest else ""
