"""MLServer's part: a runtime of ours, which its own command loads from `model-settings.json`; batching is its own."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from session import Session


class OnnxRuntime(MLModel):
    """The session, in the words of the framework."""

    async def load(self) -> bool:
        parameters = self.settings.parameters
        self._session = Session(parameters.uri, parameters.extra["threads"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        answer = self._session.run({tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs})
        outputs = [NumpyCodec.encode_output(name, array) for name, array in answer.items()]
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)
