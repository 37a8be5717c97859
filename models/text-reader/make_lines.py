"""Writes the file that it is told: lines cut out of pages, by whose values the ranges of 8 bits are set."""

import sys

import numpy as np
from make_evaluation import pages
from steps import MAX_LINE_WIDTH, _lines

COUNT, SEED = 14, 77
# Around letters, as the detector's boxes have it.
RIM = 4
WIDTH = 640

if __name__ == "__main__":
    cut = []
    for page, _, boxes in pages(COUNT, SEED):
        around = np.array(boxes) + np.array([-RIM, -RIM, RIM, RIM])
        for box in around.astype(int):
            line = _lines(np.asarray(page), box[None].astype(float))[0][..., : min(WIDTH, MAX_LINE_WIDTH)]
            filled = np.zeros((*line.shape[:2], WIDTH), np.float32)
            filled[..., : line.shape[2]] = line
            cut.append(filled)
    np.savez(sys.argv[1], **{"input.x": np.stack(cut)})
