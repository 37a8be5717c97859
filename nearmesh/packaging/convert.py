"""One graph into another: half precision, or 8 bits, by ONNX Runtime's own tools. Needs `onnx` and ONNX Runtime.

    python -m nearmesh.packaging.convert '{"kind": "int8-static", "source": ..., "target": ..., ...}'

A process of its own: the tools log through the root logger, put folders of theirs on the path, and may die of a graph.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt

from nearmesh.packaging.warmup import read_arrays

# The first of ONNX's versions in which quantized weights may have a scale for each channel.
_OPSET = 13
# Samples of one call while ranges are calibrated: every tensor's range is an output of it.
_CALIBRATION_ROWS = 8
# Per cent of the values that the ranges hold: with all of them, a few outliers would take the steps from the rest.
_WITHIN_RANGE = 99.99
# Dynamic: what has weights to keep in 8 bits. Not Conv, whose dynamic kernels are slower than 32 bits.
_DYNAMIC_OPS = ["MatMul", "Attention", "LSTM", "Gather", "EmbedLayerNormalization"]
# Static: what is much work in 32 bits, and what is folded into it. More operators in 8 bits (sums, products, what hands
# values on) made the packages of `models/` less accurate and no faster.
_STATIC_OPS = ["Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip", "MaxPool"]
# What a TensorRT is imported as.
_BUILDERS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}

Array = npt.NDArray[Any]
Convert = Callable[[Path, Path, Mapping[str, Any]], None]


def fp16(source: Path, target: Path, recipe: Mapping[str, Any]) -> None:
    """Weights and arithmetic in 16 bits; inputs and outputs stay as they are, so that clients see no difference."""
    onnx, float16 = importlib.import_module("onnx"), importlib.import_module("onnxruntime.transformers.float16")
    graph = importlib.import_module("onnxruntime.quantization.onnx_model")
    made = float16.convert_float_to_float16(_load(source), keep_io_types=True, node_block_list=list(recipe["skip"]))
    # Its conversions of inputs and outputs come last; other readers than ONNX Runtime want them in order.
    ordered = graph.ONNXModel(made)
    ordered.topological_sort()
    onnx.save(ordered.model, str(target))


def int8_dynamic(source: Path, target: Path, recipe: Mapping[str, Any]) -> None:
    """Weights in 8 bits, for each column a scale; activations are scaled anew in each call."""
    tools = importlib.import_module("onnxruntime.quantization")
    with _prepared(source) as ready:
        tools.quantize_dynamic(
            ready,
            target,
            op_types_to_quantize=_DYNAMIC_OPS,
            nodes_to_exclude=list(recipe["skip"]),
            per_channel=True,
            weight_type=tools.QuantType.QInt8,
        )


def int8_static(source: Path, target: Path, recipe: Mapping[str, Any]) -> None:
    """Weights and activations in 8 bits, the latter by the ranges that the samples showed."""
    tools = importlib.import_module("onnxruntime.quantization")
    arrays = read_arrays(Path(recipe["calibration"]))
    samples = {name.removeprefix("input."): array for name, array in arrays.items() if name.startswith("input.")}
    with _prepared(source) as ready:
        tools.quantize_static(
            ready,
            target,
            _Samples(list(_calls(samples, _ranks(source)))),
            quant_format=tools.QuantFormat.QDQ,
            calibrate_method=tools.CalibrationMethod.Percentile,
            # One call at a time, since what the tools note down of it are all of its tensors.
            extra_options={"CalibPercentile": _WITHIN_RANGE, "CalibStridedMinMax": 1},
            op_types_to_quantize=_STATIC_OPS,
            nodes_to_exclude=[*recipe["skip"], *_depthwise(ready)],
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
        )


def plan(source: Path, target: Path, recipe: Mapping[str, Any]) -> None:
    """The graph as it is, if the builder can read it: each node builds the plan for its own GPU."""
    library = importlib.import_module(_BUILDERS[recipe["kind"]])
    logger = library.Logger(library.Logger.ERROR)
    network = library.Builder(logger).create_network(0)
    parser = library.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)):
        wrong = [str(parser.get_error(number)) for number in range(parser.num_errors)]
        raise ValueError("; ".join(wrong) or "the builder cannot read the graph")
    shutil.copyfile(source, target)


KINDS: dict[str, Convert] = {
    "fp16": fp16,
    "int8-dynamic": int8_dynamic,
    "int8-static": int8_static,
    "tensorrt": plan,
    "tensorrt-rtx": plan,
}


@contextmanager
def _prepared(source: Path) -> Iterator[Path]:
    """The graph with constants folded and shapes known, as quantization wants it; a file that is gone afterwards.

    Symbolic shapes are not worked out: that takes SymPy, and decides nothing about weights and kernels.
    """
    onnx = importlib.import_module("onnx")
    prepare = importlib.import_module("onnxruntime.quantization.shape_inference").quant_pre_process
    with tempfile.TemporaryDirectory(prefix="nearmesh-") as scratch:
        recent, ready = Path(scratch) / "recent.onnx", Path(scratch) / "ready.onnx"
        onnx.save(_recent(_load(source)), str(recent))
        prepare(str(recent), str(ready), skip_symbolic_shape=True)
        model = onnx.load(str(ready))
        _flatten_biases(model.graph)
        onnx.save(model, str(ready))
        yield ready


def _load(source: Path) -> Any:
    """The graph with its weights, which are nothing else. Raises ValueError."""
    onnx = importlib.import_module("onnx")
    try:
        return _fixed(onnx.load(str(source)))
    except importlib.import_module("google.protobuf.message").DecodeError:
        raise ValueError(f"{source.name} is not an ONNX model") from None


def _fixed(model: Any) -> Any:
    """Old exporters list the weights among the inputs, so that a caller might replace them; no tool makes those
    smaller, or folds them."""
    constants = {constant.name for constant in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        # The first of ONNX's formats in which a weight need not be an input.
        model.ir_version = max(model.ir_version, 4)
    return model


def _recent(model: Any) -> Any:
    """In a version of ONNX that has a scale for each channel."""
    converter = importlib.import_module("onnx.version_converter")
    (own,) = [opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    return model if own >= _OPSET else converter.convert_version(model, _OPSET)


def _flatten_biases(graph: Any) -> None:
    """Of products: the quantizer takes one dimension alone; folding makes some of [1, n], which are the same."""
    uses = Counter(name for node in graph.node for name in node.input)
    biases = {node.input[2] for node in graph.node if node.op_type == "Gemm" and len(node.input) == 3}
    for constant in graph.initializer:
        if constant.name in biases and uses[constant.name] == 1 and len(constant.dims) == 2 and constant.dims[0] == 1:
            del constant.dims[0]


def _depthwise(source: Path) -> list[str]:
    """Convolutions of each channel by itself: their channels' ranges differ by far, and one has to do for all of them.

    They are little of the work, and in 8 bits cost much of the accuracy.
    """
    graph = importlib.import_module("onnx").load(str(source), load_external_data=False).graph
    groups = {node.name: next((a.i for a in node.attribute if a.name == "group"), 1) for node in graph.node}
    return [node.name for node in graph.node if node.op_type == "Conv" and groups[node.name] > 1]


class _Samples:
    """What ONNX Runtime's tools call a data reader: calls, of which they take some at a time."""

    def __init__(self, calls: Sequence[dict[str, Array]]) -> None:
        self._all = calls
        self._left = iter(calls)

    def __len__(self) -> int:
        return len(self._all)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._left = iter(self._all[start_index:end_index])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._left, None)


def _ranks(source: Path) -> dict[str, int]:
    """How many dimensions each of the graph's inputs has."""
    graph = importlib.import_module("onnx").load(str(source), load_external_data=False).graph
    constants = {constant.name for constant in graph.initializer}
    return {value.name: len(value.type.tensor_type.shape.dim) for value in graph.input if value.name not in constants}


def _calls(samples: Mapping[str, Array], ranks: Mapping[str, int]) -> Iterator[dict[str, Array]]:
    """Inputs with as many dimensions as the graph's are rows, some to a call; those with one more are whole inputs."""
    if wrong := sorted(samples.keys() ^ ranks.keys()):
        raise ValueError(f"the samples have {sorted(samples)}, the graph wants {sorted(ranks)}: {wrong[0]!r} differs")
    count = min(map(len, samples.values()))
    rows = _CALIBRATION_ROWS if all(samples[name].ndim == rank for name, rank in ranks.items()) else 1
    for start in range(0, count, rows):
        yield {
            name: array[start : start + rows] if array.ndim == ranks[name] else array[start]
            for name, array in samples.items()
        }


def main(argument: str) -> None:
    recipe = json.loads(argument)
    KINDS[recipe["kind"]](Path(recipe["source"]), Path(recipe["target"]), recipe)


if __name__ == "__main__":
    main(sys.argv[1])
