"""Writes the file that it is told: lines by whose values the ranges of 8 bits are set; none is an evaluation's."""

import sys

import numpy as np
from make_evaluation import lines

COUNT, SEED = 64, 7

if __name__ == "__main__":
    np.savez(sys.argv[1], **{"input.x": lines(COUNT, SEED)[0]})
