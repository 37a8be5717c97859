"""Mutated inference requests, as bytes on one channel, with requests of known answers in between.

Deterministic: the same seed number makes the same requests. `run` says what came back; an answer that breaks a rule is
kept with the number and the bytes of its request, so that it can be sent again.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from nearmesh import tensors
from nearmesh.errors import InvalidInput

METHOD = "/inference.GRPCInferenceService/ModelInfer"

# What a request may be answered with, however broken; anything else is a fault of the server's.
ALLOWED = frozenset({"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})

# After so many mutated requests comes one whose answer is known.
GOLDEN_EVERY = 100

_TIMEOUT_S = 20.0
_NUMBERS = (-(2**63), -(2**31), -1, 0, 1, 3, 4, 5, 8, 255, 2**16, 2**31, 2**32, 2**40, 2**62, 2**63 - 1)
_NAMES = ("", "x", "left", "right", "y", "total", "adder", "\0", "../../etc/passwd", "é" * 300, "a" * 70_000, "%s{}")
_DATATYPES = ("BOOL", "UINT8", "INT8", "INT64", "FP16", "FP32", "FP64", "BYTES", "BF16", "fp32", "")
_PARAMETERS = ("sequence_id", "sequence_start", "nearmesh_receipt", "timeout", "priority", "binary_data_output", "")
_FIELDS = ("bool_contents", "int_contents", "int64_contents", "uint_contents", "fp32_contents", "bytes_contents")


Outputs = Mapping[str, tensors.Array]


@dataclass(frozen=True, slots=True)
class Golden:
    """A request that is right, and its outputs."""

    request: service_pb2.ModelInferRequest
    outputs: Outputs
    # What the model answers to any inputs that it takes; None where only the golden answer is known.
    compute: Callable[[Outputs], Outputs] | None = None

    def wrong(self, answer: bytes) -> str:
        """What is wrong with the answer to `request`; empty if nothing is."""
        return _differences(answer, self.outputs)

    def wrong_for(self, request: service_pb2.ModelInferRequest, answer: bytes) -> str:
        """The same for a mutated request that the server took for a right one."""
        if self.compute is None:
            return ""
        expected = self.compute(tensors.decode_request(request))
        wanted = {output.name for output in request.outputs}
        return _differences(answer, {name: expected[name] for name in wanted} if wanted else expected)


def run(
    channel_factory: Callable[[], grpc.Channel], count: int, seed: int, goldens: Sequence[Golden]
) -> dict[str, Any]:
    """Sends `count` mutations of the goldens' requests and returns what came of them.

    The result has `sent`, `statuses` (number of answers by status), `golden` (how many known answers were asked for),
    `wrong` (golden requests that were not answered right) and `faults` (mutated ones with a status that is not
    allowed, or a wrong answer to what the mutation left right).
    Each of the latter two says the number of the request; the faults, its bytes as hex.
    """
    statuses: Counter[str] = Counter()
    wrong: list[dict[str, Any]] = []
    faults: list[dict[str, Any]] = []
    asked = 0
    with channel_factory() as channel:
        call = channel.unary_unary(METHOD)
        for number, data in enumerate(mutations(count, seed, goldens), start=1):
            status, answer = _send(call, data)
            statuses[status] += 1
            if reason := _fault(data, status, answer, goldens):
                faults.append({"number": number, "reason": reason, "request": data[:4096].hex()})
            if number % GOLDEN_EVERY == 0 or number == count:
                for golden in goldens:
                    asked += 1
                    status, answer = _send(call, golden.request.SerializeToString())
                    if reason := status if status != "OK" else golden.wrong(answer):
                        wrong.append({"after": number, "reason": reason})
    return {
        "seed": seed,
        "sent": sum(statuses.values()),
        "statuses": dict(sorted(statuses.items())),
        "golden": asked,
        "wrong": wrong,
        "faults": faults,
    }


def _differences(answer: bytes, expected: Outputs) -> str:
    found = tensors.decode_response(service_pb2.ModelInferResponse.FromString(answer))
    if not expected.keys() <= found.keys():
        return f"outputs {sorted(found)}, expected {sorted(expected)}"
    for name, array in expected.items():
        # A mutated number may be a NaN, and is one again when it comes back.
        if not np.array_equal(found[name], array, equal_nan=array.dtype.kind == "f"):
            return f"{name} is {found[name]}, expected {array}"
    return ""


def _send(call: Callable[..., bytes], data: bytes) -> tuple[str, bytes]:
    try:
        return "OK", call(data, timeout=_TIMEOUT_S)
    except grpc.RpcError as error:
        return f"{error.code().name}", error.details().encode()


def _fault(data: bytes, status: str, answer: bytes, goldens: Sequence[Golden]) -> str:
    if status not in ALLOWED and not (status == "ABORTED" and _goes_on_with_a_sequence(data)):
        return f"{status}: {answer.decode(errors='replace')[:300]}"
    if status != "OK":
        return "" if answer else f"{status} without a word of explanation"
    try:
        request = service_pb2.ModelInferRequest.FromString(data)
        golden = next(golden for golden in goldens if golden.request.model_name == request.model_name)
        return golden.wrong_for(request, answer)
    except DecodeError:
        return "OK for bytes that are no request"
    except StopIteration:
        return "OK for a model that is not there"
    except InvalidInput as error:
        return f"OK for tensors that are none: {error.message}"


def _goes_on_with_a_sequence(data: bytes) -> bool:
    """Whether a request is a later step of a sequence: there is none here, which is ABORTED (SEQUENCE_LOST)."""
    try:
        parameters = service_pb2.ModelInferRequest.FromString(data).parameters
    except DecodeError:
        return False
    return "sequence_id" in parameters and not parameters["sequence_start"].bool_param


# Mutations.


def mutations(count: int, seed: int, goldens: Sequence[Golden]) -> Iterable[bytes]:
    """`count` broken requests; the same for the same seed and goldens."""
    chance = random.Random(seed)
    for _ in range(count):
        golden = chance.choice(goldens)
        if chance.random() < 0.45:
            yield _mutate_bytes(chance, golden.request.SerializeToString())
            continue
        request = service_pb2.ModelInferRequest()
        request.CopyFrom(golden.request)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            chance.choice(_MESSAGE_MUTATIONS)(chance, request)
        yield request.SerializeToString()


def _mutate_bytes(chance: random.Random, data: bytes) -> bytes:
    for _ in range(chance.choice((1, 1, 2, 4))):
        data = chance.choice(_BYTE_MUTATIONS)(chance, data)
    return data


def _flip_bits(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 8)) if changed else 0):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _truncate(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _insert(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.choice((b"\0", b"\xff" * 10, b"\x80" * 11, chance.randbytes(4))) + data[at:]


def _cut_out(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + data[at + chance.choice((1, 2, 4, 16)) :]


def _repeat(chance: random.Random, data: bytes) -> bytes:
    """Fields may come twice on the wire: lists grow, the last of the others wins."""
    at = chance.randrange(len(data) + 1)
    return data + data[at : at + chance.choice((8, 64, 512))] if len(data) < 100_000 else data


_BYTE_MUTATIONS = (_flip_bits, _flip_bits, _truncate, _insert, _cut_out, _repeat)


def _tensor(chance: random.Random, request: Any) -> Any:
    return chance.choice(request.inputs) if request.inputs else request.inputs.add()


def _change_shape(chance: random.Random, request: Any) -> None:
    shape = _tensor(chance, request).shape
    if len(shape) and chance.random() < 0.7:
        shape[chance.randrange(len(shape))] = chance.choice(_NUMBERS)
    else:
        shape[:] = [chance.choice(_NUMBERS) for _ in range(chance.choice((0, 1, 2, 3, 9, 65, 5000)))]


def _change_name(chance: random.Random, request: Any) -> None:
    target, field = chance.choice(
        ((request, "model_name"), (request, "model_version"), (request, "id"), (_tensor(chance, request), "name"))
    )
    setattr(target, field, chance.choice(_NAMES))


def _change_datatype(chance: random.Random, request: Any) -> None:
    _tensor(chance, request).datatype = chance.choice(_DATATYPES)


def _change_raw(chance: random.Random, request: Any) -> None:
    raw = request.raw_input_contents
    what = chance.randrange(4)
    if what == 0 and raw:
        raw[chance.randrange(len(raw))] = _mutate_bytes(chance, raw[0])
    elif what == 1 and raw:
        del raw[chance.randrange(len(raw))]
    elif what == 2:
        raw.append(chance.choice((b"", b"\xff" * 8, chance.randbytes(32))))
    elif raw:
        # The length of a first BYTES element, or a first number.
        raw[0] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\0\0\xc0\x7f")) + raw[0][4:]


def _change_typed(chance: random.Random, request: Any) -> None:
    field = chance.choice(_FIELDS)
    value = b"\xff\xfe" if field == "bytes_contents" else 1
    getattr(_tensor(chance, request).contents, field).extend([value] * chance.choice((1, 4, 8)))
    if chance.random() < 0.7:
        del request.raw_input_contents[:]


def _change_inputs(chance: random.Random, request: Any) -> None:
    what = chance.randrange(3)
    if what == 0 and request.inputs:
        del request.inputs[chance.randrange(len(request.inputs))]
    elif what == 1 and request.inputs:
        request.inputs.append(chance.choice(request.inputs))
    else:
        first = _tensor(chance, request)
        other = _tensor(chance, request)
        first.name, other.name = other.name, first.name


def _change_outputs(chance: random.Random, request: Any) -> None:
    output = request.outputs.add(name=chance.choice(_NAMES))
    if chance.random() < 0.3:
        output.parameters["classification"].int64_param = chance.choice(_NUMBERS)


def _change_parameters(chance: random.Random, request: Any) -> None:
    target = chance.choice((request, _tensor(chance, request)))
    name = chance.choice((*_PARAMETERS, "shared_memory_region"))
    kind = chance.choice(("int64_param", "bool_param", "string_param", "double_param"))
    values: dict[str, Any] = {"bool_param": True, "string_param": "x", "double_param": float("nan")}
    setattr(target.parameters[name], kind, values.get(kind, chance.choice(_NUMBERS)))


_MESSAGE_MUTATIONS = (
    _change_shape,
    _change_shape,
    _change_name,
    _change_datatype,
    _change_raw,
    _change_raw,
    _change_typed,
    _change_inputs,
    _change_outputs,
    _change_parameters,
)
