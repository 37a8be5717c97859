"""Writes the file that it is told: digits of the training part, by whose values the ranges of 8 bits are set."""

import sys

import numpy as np
from data import split

COUNT = 256

if __name__ == "__main__":
    np.savez(sys.argv[1], **{"input.pixels": split()[0][:COUNT]})
