"""A graph that is none, for pipelines."""

from __future__ import annotations

CPU = "CPUExecutionProvider"


class FakeGraph:
    """y = 2 x, with a note of every call; or whatever `answer` says."""

    name = "fake"

    def __init__(self, *, inputs=("x",), outputs=("y",), answer=None, instances=4, variant="fp32", providers=(CPU,)):
        self.input_names, self.output_names = inputs, outputs
        self.instances, self.variant, self.providers = instances, variant, providers
        self._answer = answer or (lambda arrays: {"y": arrays["x"] * 2})
        self.calls, self.alone, self.closed = [], [], 0

    def infer(self, inputs, *, alone=False):
        self.calls.append({name: array.shape for name, array in inputs.items()})
        self.alone.append(alone)
        return self._answer(inputs)

    def close(self):
        self.closed += 1
