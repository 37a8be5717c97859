"""PyTriton: Triton's front end and dynamic batcher; ONNX Runtime inside the function that it calls with a batch."""

from __future__ import annotations

import sys

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, QueuePolicy, Tensor, TimeoutAction
from pytriton.triton import Triton, TritonConfig
from session import Session, Task


def serve(task: Task) -> None:
    session = Session(task.weights, task.threads)

    @batch
    def infer(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        return session.run(inputs)

    addresses = {"grpc_address": "127.0.0.1", "http_address": "127.0.0.1", "allow_metrics": False}
    config = TritonConfig(grpc_port=task.grpc_port, http_port=task.http_port, log_verbose=0, **addresses)
    delay_us = round(task.delay_s * 1e6)
    batcher = DynamicBatcher(max_queue_delay_microseconds=delay_us, default_queue_policy=_policy(task))
    with Triton(config=config) as triton:
        triton.bind(
            model_name=task.model,
            infer_func=infer,
            inputs=[Tensor(name=t.name, dtype=t.dtype.type, shape=t.shape) for t in session.inputs],
            outputs=[Tensor(name=t.name, dtype=t.dtype.type, shape=t.shape) for t in session.outputs],
            config=ModelConfig(max_batch_size=task.max_batch, batcher=batcher),
        )
        triton.serve()


def _policy(task: Task) -> QueuePolicy | None:
    """What it refuses; None: nothing."""
    if not task.queue:
        return None
    return QueuePolicy(
        timeout_action=TimeoutAction.REJECT,
        default_timeout_microseconds=round(task.queue_s * 1e6),
        max_queue_size=task.queue,
    )


if __name__ == "__main__":
    serve(Task.of(sys.argv[1]))
