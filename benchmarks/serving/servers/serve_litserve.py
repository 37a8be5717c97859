"""LitServe with one worker and its batching; tensors travel as base64 in JSON, as it has no gRPC."""

from __future__ import annotations

import base64
import sys

import litserve
import numpy as np
from session import Session, Task

Arrays = dict[str, np.ndarray]


class OnnxApi(litserve.LitAPI):
    """The session, in the words of the framework."""

    def __init__(self, task: Task) -> None:
        super().__init__(max_batch_size=task.max_batch, batch_timeout=task.delay_s)
        self._task = task

    def setup(self, device: str) -> None:
        # Called in the worker's process.
        self._session = Session(self._task.weights, self._task.threads)

    def decode_request(self, request: dict[str, str]) -> Arrays:
        return {
            tensor.name: np.frombuffer(base64.b64decode(request[tensor.name]), tensor.dtype).reshape(1, *tensor.shape)
            for tensor in self._session.inputs
        }

    def batch(self, inputs: list[Arrays]) -> Arrays:
        return {name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]}

    def predict(self, inputs: Arrays) -> Arrays:
        return self._session.run(inputs)

    def unbatch(self, output: Arrays) -> list[Arrays]:
        rows = len(next(iter(output.values())))
        return [{name: array[row : row + 1] for name, array in output.items()} for row in range(rows)]

    def encode_response(self, output: Arrays) -> dict[str, str]:
        return {name: base64.b64encode(array.tobytes()).decode() for name, array in output.items()}


def serve(task: Task) -> None:
    server = litserve.LitServer(OnnxApi(task), accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(
        host="127.0.0.1", port=task.http_port, num_api_servers=1, log_level="warning", generate_client_file=False
    )


if __name__ == "__main__":
    serve(Task.of(sys.argv[1]))
