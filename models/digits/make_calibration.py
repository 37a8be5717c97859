"""Writes the file that it is told: the author's images, by whose values the ranges of 8 bits are set."""

import sys

import numpy as np
from data import authors

if __name__ == "__main__":
    np.savez(sys.argv[1], **{"input.pixels": authors()[0]})
