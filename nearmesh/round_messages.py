"""What the two halves of the mesh's Flower app call the parts of their messages, and the digest of a set of parameters.

Server app to site, TRAIN and EVALUATE: parameters by name, and a config with the round, the run, the digest of the
parameters that are sent, and settings. QUERY: the candidate's graph in the config. Site to server app: counts and
metrics, and after TRAIN parameters with the round and the digest of those that they were trained from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

# Records of a message.
ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"

# Keys of the config.
SERVER_ROUND, RUN, BASE = "server-round", "run", "base"
# Before the name of a setting of the recipe.
SETTING = "set-"
# Of fedprox: how strongly training is held near the parameters that it began from. Flower's own key.
PROXIMAL_MU = "proximal-mu"
# Of QUERY: an ONNX file's bytes, and how far the framework's outputs may be from its own.
GRAPH, TOLERANCE = "graph", "tolerance"

# Keys of the metrics that are no figures of the model.
NUM_EXAMPLES, TRAIN_S, YIELDED_S, DIFFERENCE = "num-examples", "train-s", "yielded-s", "difference"


def digest(arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """SHA-256 over the arrays' names, dtypes, shapes and numbers, by name; hex."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        # Not `ascontiguousarray`, which gives a scalar an axis.
        array = np.asarray(arrays[name], order="C")
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        found.update(f"{name}\0{little.dtype.str}\0{little.shape}\0".encode())
        found.update(little.tobytes())
    return found.hexdigest()
