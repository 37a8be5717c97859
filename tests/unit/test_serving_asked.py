"""Request parameters: which are known, of what kind they are, and what stands for them when they are not given."""

from __future__ import annotations

import pytest
from nearmesh_agent.serving.asked import MAX_ID_BYTES, Asked, Step, read
from nearmesh_agent.serving.queue import DEFAULT_PRIORITY, LOWEST_PRIORITY
from tritonclient.grpc import InferInput, _utils, service_pb2

from nearmesh.errors import InvalidInput


def request(**parameters):
    message = service_pb2.ModelInferRequest(model_name="voice")
    for name, (kind, value) in parameters.items():
        setattr(message.parameters[name], kind, value)
    return message


def integer(value):
    return ("int64_param", value)


def test_nothing_is_asked():
    assert read(request()) == Asked(timeout_s=None, priority=DEFAULT_PRIORITY, step=None)


def test_what_is_not_known_is_let_pass():
    assert (
        read(request(temperature=("double_param", 0.5), top_k=integer(3), binary_data=("bool_param", True))) == Asked()
    )


@pytest.mark.parametrize(
    ("parameters", "asked"),
    [
        ({"timeout": integer(250_000)}, Asked(timeout_s=0.25)),
        ({"timeout": ("uint64_param", 1)}, Asked(timeout_s=1e-6)),
        ({"timeout": integer(0)}, Asked(timeout_s=None)),
        ({"priority": ("uint64_param", 1)}, Asked(priority=1)),
        ({"priority": integer(0)}, Asked(priority=DEFAULT_PRIORITY)),
        ({"priority": ("uint64_param", 2**64 - 1)}, Asked(priority=LOWEST_PRIORITY)),
        ({"nearmesh_receipt": ("bool_param", True)}, Asked(receipt=True)),
        ({"nearmesh_receipt": ("bool_param", False)}, Asked()),
        ({"triton_enable_empty_final_response": ("bool_param", True)}, Asked(empty_final=True)),
        # Triton's words for "no sequence".
        ({"sequence_id": integer(0), "sequence_start": ("bool_param", True)}, Asked()),
        ({"sequence_id": ("string_param", "")}, Asked()),
        ({"sequence_start": ("bool_param", True)}, Asked()),
        ({"sequence_id": integer(7)}, Asked(step=Step(7, start=False, end=False))),
        ({"sequence_id": ("uint64_param", 2**63)}, Asked(step=Step(2**63, start=False, end=False))),
        (
            {"sequence_id": ("string_param", "a"), "sequence_start": ("bool_param", True)},
            Asked(step=Step("a", start=True, end=False)),
        ),
        (
            {"sequence_id": integer(7), "sequence_end": ("bool_param", True)},
            Asked(step=Step(7, start=False, end=True)),
        ),
        ({"sequence_id": ("string_param", "ü" * (MAX_ID_BYTES // 2))}, Asked(step=Step("ü" * 64, False, False))),
    ],
)
def test_parameters(parameters, asked):
    assert read(request(**parameters)) == asked


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"sequence_id": ("bool_param", True)}, "'sequence_id' is bool_param; expected an integer or a string"),
        (
            {"sequence_id": integer(1), "sequence_start": integer(1)},
            "'sequence_start' is int64_param; expected a bool",
        ),
        ({"sequence_id": integer(1), "sequence_end": ("string_param", "")}, "'sequence_end' is string_param"),
        ({"sequence_id": ("string_param", "ü" * 65)}, "'sequence_id' has 130 bytes, expected 128 at most"),
        ({"timeout": integer(-1)}, "'timeout' is -1; expected 0 or more"),
        ({"timeout": ("string_param", "1 s")}, "'timeout' is string_param; expected an integer of 0 or more"),
        ({"priority": ("double_param", 1.0)}, "'priority' is double_param; expected an integer of 0 or more"),
        ({"nearmesh_receipt": integer(1)}, "'nearmesh_receipt' is int64_param; expected a bool"),
        ({"triton_enable_empty_final_response": integer(1)}, "final_response' is int64_param; expected a bool"),
    ],
)
def test_wrong_parameters(parameters, said):
    with pytest.raises(InvalidInput, match=said):
        read(request(**parameters))


@pytest.mark.parametrize("name", ["sequence_id", "timeout", "nearmesh_receipt"])
def test_a_parameter_without_a_value_is_none(name):
    message = request()
    message.parameters[name].SetInParent()
    with pytest.raises(InvalidInput, match=f"'{name}' is empty"):
        read(message)


def test_what_the_stock_client_sends():
    tensor = InferInput("x", [1], "FP32")
    message = _utils._get_inference_request("voice", [tensor], "", "", None, "call-9", True, False, 3, 1500, None)
    assert read(message) == Asked(timeout_s=0.0015, priority=3, step=Step("call-9", start=True, end=False))
