"""What the peers' servers have in common: their task, from the command line, and ONNX Runtime set up alike in all.

These files run in the peers' own environments, where nothing of this project is installed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import onnxruntime

DTYPES = {"tensor(float)": np.dtype(np.float32), "tensor(int64)": np.dtype(np.int64)}
PROTOCOL_DTYPES = {"float32": "FP32", "int64": "INT64"}


@dataclass(frozen=True)
class Task:
    """What a server serves, and where; as JSON the one argument of every server."""

    model: str
    weights: str
    max_batch: int
    # Of the one session.
    threads: int
    # How long a request waits for company, in seconds.
    delay_s: float
    grpc_port: int
    http_port: int
    # Requests that may wait, and how long, where the server has such bounds; 0: its own defaults.
    queue: int = 0
    queue_s: float = 0.0

    @classmethod
    def of(cls, text: str) -> Task:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Tensor:
    """One input or output; `shape` is that of one row."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]


class Session:
    """One ONNX Runtime session."""

    def __init__(self, weights: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
        self.inputs = [_tensor(found) for found in self._session.get_inputs()]
        self.outputs = [_tensor(found) for found in self._session.get_outputs()]
        self._names = [output.name for output in self.outputs]

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rows in, rows out."""
        return dict(zip(self._names, self._session.run(self._names, inputs), strict=True))


def _tensor(found: onnxruntime.NodeArg) -> Tensor:
    return Tensor(found.name, DTYPES[found.type], tuple(found.shape[1:]))
