"""How a version is served: warm-up, batches, sequences, and what it asks of the router."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nearmesh import routing
from nearmesh.config import Problem, refuse
from nearmesh.package.tensor_spec import DType
from nearmesh.routing.residency import check_regions


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One tensor that a sequence carries from call to call."""

    # It takes what the output gave in the call before.
    input: str
    output: str
    # Of the zeros that a sequence starts with.
    shape: tuple[int, ...]
    dtype: DType = "FP32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """For stateful models: what the node keeps between the calls of one sequence."""

    state: tuple[State, ...]
    # A sequence that was silent for this long is forgotten.
    idle_s: float = 60.0
    # Sequences that a node keeps at a time; their state is its memory.
    most: int = 1024

    def __post_init__(self) -> None:
        refuse(self._problems())

    def _problems(self) -> Iterator[Problem]:
        for key, wrong in (("idle_s", self.idle_s <= 0), ("most", self.most < 1)):
            if wrong:
                said = f"sequence: idle_s is above 0, most 1 or more; got {self.idle_s:g} and {self.most}"
                yield Problem((key,), said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """Inputs with the outputs that they must give before the version may serve.

    `file` is an .npz with arrays `input.NAME` and `output.NAME`; an answer a is right for an expected e where
    |a - e| <= atol + rtol x |e|, as numpy.allclose has it.
    """

    file: str
    rtol: float = 1e-3
    atol: float = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """Whether, and how, requests share an engine call. How many rows pay is measured on each node."""

    # Rows of one engine call at most; each tensor's `batch_axis` counts them. 0: there is no such axis, and requests
    # are served one by one.
    max_batch: int = 0
    # Sizes that the engine was made for; a call takes one of them as soon as enough rows wait. Empty: any size.
    preferred_batch_sizes: tuple[int, ...] = ()
    # How long a request waits for company although an engine is free. 0: not at all.
    max_delay_ms: float = 0.0
    # Named axes along which shorter requests are filled up with their inputs' `pad_value` to share a call with longer
    # ones; outputs with such an axis are cut back to the request's own length.
    pad: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        refuse(self._problems())

    def _problems(self) -> Iterator[Problem]:
        if self.max_batch < 0:
            said = f"batching.max_batch must be 0 (no batch axis) or more, got {self.max_batch}"
            yield Problem(("max_batch",), said)
        if self.max_delay_ms < 0:
            said = f"batching.max_delay_ms must be 0 or more, got {self.max_delay_ms:g}"
            yield Problem(("max_delay_ms",), said)
        for position, size in enumerate(self.preferred_batch_sizes):
            if not 1 <= size <= self.max_batch:
                said = f"batching.preferred_batch_sizes has {size}; expected 1 to max_batch"
                yield Problem(("preferred_batch_sizes", position), said)
        if self.pad and not self.max_batch:
            yield Problem(("pad",), "batching.pad is given, but max_batch is 0: requests share no call")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePolicy:
    """What the model asks of the router unless an operator or a call says otherwise."""

    objective: routing.Objective = routing.DEFAULT_OBJECTIVE
    # A site counts as near enough when its answers come within this time.
    deadline_ms: float = routing.DEFAULT_DEADLINE_MS
    # The regions that may serve it; empty: any.
    regions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_regions("route.regions", self.regions)


# More replicas than any model has that nobody asks for.
MAX_KEPT = 1000
# A model that nobody asks for is given up no sooner: a control plane hears of requests once a second.
LEAST_ASLEEP_S = 2.0
MAX_IDLE_S = 1e8


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """What becomes of a model that nobody asks for, unless an operator says otherwise."""

    # It leaves a node's memory when nobody asked that node for so long; the next request loads it. 0: the node's own
    # rule.
    unload_after_s: float = 0.0
    # Its replicas leave all nodes but `keep` when nobody in the mesh asked for so long. 0: never.
    scale_to_zero_after_s: float = 0.0
    # 0 is for clients that use the SDK alone: others find no route then.
    keep: int = 1

    def __post_init__(self) -> None:
        refuse(self._problems())

    def _problems(self) -> Iterator[Problem]:
        for key, value in (
            ("unload_after_s", self.unload_after_s),
            ("scale_to_zero_after_s", self.scale_to_zero_after_s),
        ):
            if not 0 <= value <= MAX_IDLE_S:
                yield Problem((key,), f"idle.{key} is 0 (never) to {MAX_IDLE_S:g} s, got {value:g}")
        if 0 < self.scale_to_zero_after_s < LEAST_ASLEEP_S:
            said = f"idle.scale_to_zero_after_s is {LEAST_ASLEEP_S:g} s or more, or 0 for never"
            yield Problem(("scale_to_zero_after_s",), f"{said}; got {self.scale_to_zero_after_s:g}")
        if not 0 <= self.keep <= MAX_KEPT:
            yield Problem(("keep",), f"idle.keep is 0 to {MAX_KEPT} replicas, got {self.keep}")
