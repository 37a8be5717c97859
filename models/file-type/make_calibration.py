"""Writes the file that it is told: contents by whose values the ranges of 8 bits are set; none is an evaluation's."""

import sys

import numpy as np
from make_evaluation import contents

from nearmesh.devmesh.samples.file_type import features

EACH, SOURCES, SEED = 4, 40, 5

if __name__ == "__main__":
    found = contents(EACH, SOURCES, SEED)
    np.savez(sys.argv[1], **{"input.bytes": np.stack([features(content) for _, content in found])})
