"""Writes the file that it is told: the sentences, and for each the number of its pair."""

import sys

import numpy as np
from sentences import PAIR, TEXTS

if __name__ == "__main__":
    texts = np.array([text.encode() for text in TEXTS])
    np.savez(sys.argv[1], **{"input.text": texts, "expected.pair": np.array(PAIR)})
