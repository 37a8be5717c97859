"""Writes the file that it is told: pages by whose values the ranges of 8 bits are set; none is an evaluation's."""

import sys

import numpy as np
from make_evaluation import pages

COUNT, SEED = 16, 8

if __name__ == "__main__":
    np.savez(sys.argv[1], **{"input.x": pages(COUNT, SEED)[0]})
