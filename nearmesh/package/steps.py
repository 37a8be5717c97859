"""`[[steps]]`: what comes before and after graphs, in one request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nearmesh.config import Problem, refuse
from nearmesh.errors import InvalidInput
from nearmesh.ids import check_label
from nearmesh.package.retrieval import Retrieve


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a pipeline: a function of the package's own, passages found in a collection, or the graph of the
    variants that name the step.

    Steps run in order and hand tensors to each other by name: a step reads the package's inputs and what earlier steps
    wrote; the package's outputs are found among what all of them wrote.
    """

    name: str
    # "FILE.py:FUNCTION": takes arrays by keyword, returns arrays by name. Without it or `retrieve`, it is a graph.
    python: str | None = None
    # Finds passages for texts in a collection of the node that answers.
    retrieve: Retrieve | None = None
    # By the step's own name of a tensor, the pipeline's name of it; what is not listed has one name for both.
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    # Rows (axis 0) that one call of a graph takes; more are split over several calls. 0: any number.
    max_rows: int = 0

    def __post_init__(self) -> None:
        refuse(self._problems())

    def _problems(self) -> Iterator[Problem]:
        try:
            check_label("step", self.name)
        except InvalidInput as error:
            yield Problem(("name",), error.message)
        if self.max_rows < 0:
            said = f"max_rows of step {self.name!r} must be 0 (any number) or more, got {self.max_rows}"
            yield Problem(("max_rows",), said)
        if self.python is not None and not is_function(self.python):
            said = f"python of step {self.name!r} is {self.python!r}, expected FILE.py:FUNCTION"
            yield Problem(("python",), said)
        if self.python is not None and self.retrieve is not None:
            yield Problem(("retrieve",), f"step {self.name!r} has both `python` and `retrieve`; make two steps of it")

    @property
    def is_graph(self) -> bool:
        """It runs the graph of the variants that name it."""
        return self.python is None and self.retrieve is None

    @property
    def file(self) -> str | None:
        """The file of the package that has the function."""
        return self.python.partition(":")[0] if self.python else None


def is_function(name: str) -> bool:
    """Whether it is FILE.py:FUNCTION."""
    file, _, function = name.partition(":")
    return file.endswith(".py") and function.isidentifier()
