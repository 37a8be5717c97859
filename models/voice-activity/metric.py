"""How well speech is told from silence: the share of the windows that are judged right."""

import numpy as np

from nearmesh.devmesh.samples.voice import SPEECH

# Windows at the beginning and after the end of speech that do not count: the model has to hear a syllable before it is
# sure, and stays so for a moment.
UNSURE = 4


def windows_right(outputs, expected):
    """Of all windows that are not near a beginning or an end of speech."""
    heard = outputs["output"].reshape(expected["spoken"].shape) > SPEECH
    spoken = expected["spoken"].astype(bool)
    edges = np.diff(spoken, axis=1, prepend=spoken[:, :1])
    unsure = np.zeros_like(spoken)
    for later in range(UNSURE):
        unsure[:, later:] |= edges[:, : edges.shape[1] - later]
    return float((heard == spoken)[~unsure].mean())
