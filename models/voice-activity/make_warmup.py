"""Writes warmup.npz: a window in the midst of synthesized speech, the state before it, and the answer."""

from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession

from nearmesh.devmesh.samples import voice_activity_sequence
from nearmesh.devmesh.samples.voice import SILENT_BEFORE
from nearmesh.package import load
from nearmesh.packaging.sources import default_cache, fetch
from nearmesh.packaging.warmup import record

FOLDER = Path(__file__).parent
# Windows of speech that the model has heard when the warm-up's window comes.
HEARD = 4

if __name__ == "__main__":
    weights = fetch(load(FOLDER).variants[0].source, FOLDER, default_cache())
    session = InferenceSession(weights.read_bytes())
    calls = voice_activity_sequence().calls
    state = np.zeros((2, 1, 128), np.float32)
    for call in calls[: SILENT_BEFORE + HEARD]:
        _, state = session.run(["output", "stateN"], {**call, "state": state})
    record(FOLDER, {**calls[SILENT_BEFORE + HEARD], "state": state}, decimals=6)
