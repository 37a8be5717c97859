"""What a request asks for besides its tensors: Triton's request parameters, read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nearmesh.errors import InvalidInput
from nearmesh_agent.serving.queue import DEFAULT_PRIORITY, LOWEST_PRIORITY

SequenceId = int | str

# Triton's bound for a sequence id that is a string; the node keeps it as long as the sequence.
MAX_ID_BYTES = 128


@dataclass(frozen=True, slots=True)
class Step:
    """One request's place in its sequence."""

    id: SequenceId
    start: bool
    end: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The parameters that this node knows; others are let pass, as Triton does."""

    # From Triton's `timeout`; None: as long as the caller's deadline.
    timeout_s: float | None = None
    priority: int = DEFAULT_PRIORITY
    step: Step | None = None
    # Where the answer came from and where its time went, in its own parameters.
    receipt: bool = False
    # Of a decoupled model: an empty answer with the final flag, when the last one has been given.
    empty_final: bool = False


_NOTHING = Asked()


def read(message: Any) -> Asked:
    """Raises InvalidInput for a parameter of the wrong kind."""
    parameters = message.parameters
    if not parameters:
        return _NOTHING
    microseconds = _integer(parameters, "timeout")
    return Asked(
        timeout_s=microseconds / 1e6 if microseconds else None,
        priority=min(_integer(parameters, "priority"), LOWEST_PRIORITY) or DEFAULT_PRIORITY,
        step=_step(parameters),
        receipt=_flag(parameters, "nearmesh_receipt"),
        empty_final=_flag(parameters, "triton_enable_empty_final_response"),
    )


def _step(parameters: Any) -> Step | None:
    if "sequence_id" not in parameters:
        return None
    given = parameters["sequence_id"]
    kind = given.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param", "string_param"):
        raise InvalidInput(f"parameter 'sequence_id' is {kind or 'empty'}; expected an integer or a string")
    value: SequenceId = getattr(given, kind)
    # Triton's word for "no sequence".
    if value in (0, ""):
        return None
    if isinstance(value, str) and (size := len(value.encode())) > MAX_ID_BYTES:
        raise InvalidInput(f"parameter 'sequence_id' has {size} bytes, expected {MAX_ID_BYTES} at most")
    return Step(value, _flag(parameters, "sequence_start"), _flag(parameters, "sequence_end"))


def _flag(parameters: Any, name: str) -> bool:
    if name not in parameters:
        return False
    kind = parameters[name].WhichOneof("parameter_choice")
    if kind != "bool_param":
        raise InvalidInput(f"parameter {name!r} is {kind or 'empty'}; expected a bool")
    return bool(parameters[name].bool_param)


def _integer(parameters: Any, name: str) -> int:
    """0 or more; 0 when it is not given."""
    if name not in parameters:
        return 0
    kind = parameters[name].WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise InvalidInput(f"parameter {name!r} is {kind or 'empty'}; expected an integer of 0 or more")
    value = int(getattr(parameters[name], kind))
    if value < 0:
        raise InvalidInput(f"parameter {name!r} is {value}; expected 0 or more")
    return value
