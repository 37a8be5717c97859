"""KServe's model server, over its gRPC interface. Its batcher is a sidecar for HTTP: here every request runs alone."""

from __future__ import annotations

import sys

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from session import PROTOCOL_DTYPES, Session, Task


class OnnxModel(Model):
    """The session, in the words of the framework."""

    def __init__(self, task: Task) -> None:
        super().__init__(task.model)
        self._session = Session(task.weights, task.threads)
        self.ready = True

    async def predict(self, payload: InferRequest, headers: object = None, response_headers: object = None) -> object:
        answer = self._session.run({tensor.name: tensor.as_numpy() for tensor in payload.inputs})
        outputs = []
        for name, array in answer.items():
            output = InferOutput(name, list(array.shape), PROTOCOL_DTYPES[array.dtype.name])
            # As raw bytes: the typed contents of the message take several times as long.
            output.set_data_from_numpy(array, binary_data=True)
            outputs.append(output)
        return InferResponse(payload.id, self.name, outputs, use_binary_outputs=True)


def serve(task: Task) -> None:
    server = ModelServer(
        http_port=task.http_port,
        grpc_port=task.grpc_port,
        enable_grpc=True,
        workers=1,
        access_log_format=None,
        enable_latency_logging=False,
    )
    server.start([OnnxModel(task)])


if __name__ == "__main__":
    serve(Task.of(sys.argv[1]))
