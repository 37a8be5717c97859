"""Writes warmup.npz: three sentences, two of which say alike, and their vectors."""

from pathlib import Path

import numpy as np
from nearmesh_agent.engines.factory import OnnxEngines

from nearmesh.packaging.warmup import read_warmup, record

FOLDER = Path(__file__).parent
TEXTS = [b"The train is late.", b"The train has a delay.", b"Bake the bread until its crust is brown."]


def run(folder, package, inputs):
    """As a node does."""
    engine = OnnxEngines(variants={"encode": "fp32"})(folder, package)
    answer = engine.infer(inputs)
    engine.close()
    return answer


if __name__ == "__main__":
    path = record(FOLDER, {"text": np.array(TEXTS, object)}, decimals=4, run=run)
    vectors = read_warmup(path)[1]["embedding"]
    assert vectors[0] @ vectors[1] > 0.8 > 0.2 > vectors[0] @ vectors[2]
