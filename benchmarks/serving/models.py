"""The six models that are served, each as a folder under `build/bench/models` that is a model package as well.

A folder has `model.toml`, the ONNX file, `warmup.npz`, which proves the package, and `requests.npz`: what clients send,
with the answers that ONNX Runtime gives to each request alone.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tomli_w
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.serving import graphs
from benchmarks.serving.environments import BUILD

Arrays = Mapping[str, np.ndarray]

NETWORKS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "tiny": graphs.tiny,
    "image": graphs.image,
    "encoder": graphs.encoder,
}
PRECISIONS = ("fp32", "int8")
# Different requests, so that an answer which belongs to another caller is seen.
REQUESTS = 8
REQUESTS_FILE, WARMUP_FILE = "requests.npz", "warmup.npz"
# The folder's own mark: what it was made from.
STAMP = "made-from.txt"
# Of the largest number of an answer. One scale is found for a whole batch when activations are quantized on the way,
# so an int8 answer depends on the company that it was computed in; another request's answer is further off than this.
TOLERANCES = {"fp32": 1e-3, "int8": 0.06}
# ONNX Runtime names dtypes so, the protocol so.
DTYPES = {"tensor(float)": "FP32", "tensor(int64)": "INT64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One network in one precision."""

    network: str
    precision: str
    # Rows of one engine call at most, the same for every system.
    max_batch: int
    # Threads of a peer's one session; 0: as many as the machine has cores. A call of microseconds is not shared out,
    # and idle threads only spin.
    threads: int = 0

    @property
    def name(self) -> str:
        return self.network if self.precision == "fp32" else f"{self.network}-{self.precision}"

    @property
    def folder(self) -> Path:
        return BUILD / "models" / self.name

    @property
    def weights(self) -> Path:
        return self.folder / f"{self.precision}.onnx"

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.precision]


MODELS = {
    found.name: found
    for precision in PRECISIONS
    for found in (
        Model(network="tiny", precision=precision, max_batch=32, threads=1),
        Model(network="image", precision=precision, max_batch=8),
        Model(network="encoder", precision=precision, max_batch=8),
    )
}


def make(model: Model) -> None:
    """Writes the model's folder, unless it is there already."""
    made_from = _made_from()
    stamp = model.folder / STAMP
    if stamp.exists() and stamp.read_text("utf-8") == made_from:
        return
    shutil.rmtree(model.folder, ignore_errors=True)
    model.folder.mkdir(parents=True)
    _write_weights(model)
    write_package(model)
    stamp.write_text(made_from, "utf-8")


def _made_from() -> str:
    sources = b"".join(Path(module).read_bytes() for module in (graphs.__file__, __file__))
    return f"{hashlib.sha256(sources).hexdigest()} onnxruntime {onnxruntime.__version__}\n"


def _write_weights(model: Model) -> None:
    built = NETWORKS[model.network]()
    if model.precision == "fp32":
        onnx.save(built, model.weights)
        return
    # The CPU provider's ConvInteger takes unsigned weights alone; its MatMulInteger is fastest with signed ones.
    kind = QuantType.QUInt8 if model.network == "image" else QuantType.QInt8
    quantize_dynamic(built, model.weights, weight_type=kind)


def write_package(model: Model) -> None:
    """`model.toml`, the warm-up and the requests, for the weights in the folder."""
    session = onnxruntime.InferenceSession(model.weights, providers=["CPUExecutionProvider"])
    inputs = requests(model.network)
    answers = [session.run(None, {name: rows[i : i + 1] for name, rows in inputs.items()}) for i in range(REQUESTS)]
    names = [output.name for output in session.get_outputs()]
    outputs = {name: np.concatenate([answer[i] for answer in answers]) for i, name in enumerate(names)}
    for file, rows in ((REQUESTS_FILE, REQUESTS), (WARMUP_FILE, 1)):
        arrays = {f"input.{name}": array[:rows] for name, array in inputs.items()}
        arrays |= {f"output.{name}": array[:rows] for name, array in outputs.items()}
        np.savez(model.folder / file, **arrays)  # type: ignore[arg-type]
    (model.folder / "model.toml").write_text(tomli_w.dumps(manifest(model, session)), "utf-8")


def requests(network: str) -> dict[str, np.ndarray]:
    """What is sent: one row for each request."""
    random = np.random.default_rng(7)
    if network == "tiny":
        return {"x": random.standard_normal((REQUESTS, 64)).astype(np.float32)}
    if network == "image":
        # Each has a colour of its own under the noise: noise alone looks like any other noise to a network.
        colours = random.standard_normal((REQUESTS, 3, 1, 1)) * 2
        noise = random.standard_normal((REQUESTS, 3, graphs.PIXELS, graphs.PIXELS)) / 2
        return {"pixels": (colours + noise).astype(np.float32)}
    shape = (REQUESTS, graphs.TOKENS)
    return {
        "input_ids": random.integers(0, graphs.VOCABULARY, shape, np.int64),
        "attention_mask": np.ones(shape, np.int64),
    }


def manifest(model: Model, session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """What model.toml says."""
    return {
        "name": model.name,
        "version": "1",
        "description": f"{model.network} in {model.precision}, with random weights: for the serving benchmark",
        "licence": "Apache-2.0",
        "credit": "the project",
        "inputs": [_tensor(found) for found in session.get_inputs()],
        "outputs": [_tensor(found) for found in session.get_outputs()],
        "batching": {"max_batch": model.max_batch},
        "variants": [{"name": model.precision, "source": {"path": model.weights.name}}],
        "warmup": [{"file": WARMUP_FILE, "rtol": model.tolerance, "atol": model.tolerance}],
    }


def _tensor(found: onnxruntime.NodeArg) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in found.shape]
    return {"name": found.name, "dtype": DTYPES[found.type], "shape": shape}


def load(folder: Path, file: str = REQUESTS_FILE) -> tuple[Arrays, Arrays]:
    """The inputs and the answers of a folder's requests, one row for each request."""
    with np.load(folder / file) as arrays:
        return tuple(  # type: ignore[return-value]
            {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}
            for prefix in ("input.", "output.")
        )


def difference(answer: Arrays, expected: Arrays) -> float:
    """The largest difference between two answers, as a share of the largest number expected. Infinite where an output
    is missing or has another size."""
    worst = 0.0
    for name, right in expected.items():
        found = answer.get(name)
        if found is None or found.size != right.size:
            return float("inf")
        gap = np.abs(found.reshape(right.shape) - right).max() / (np.abs(right).max() + 1e-9)
        # A number that is none would be lost in a maximum.
        worst = max(worst, float(gap)) if np.isfinite(gap) else float("inf")
    return worst
