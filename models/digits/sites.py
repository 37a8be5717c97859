"""Writes the data of the sites that train the model further, as nodes read them: each lacks some of the digits.

    python models/digits/sites.py FOLDER ...

A folder for each site, with train.npz and held_back.npz.
"""

import sys
from pathlib import Path

import numpy as np
from data import sites


def write(folders):
    for folder, (images, labels, held_images, held_labels) in zip(folders, sites(), strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "train.npz", **{"input.pixels": images, "target": labels})
        np.savez(folder / "held_back.npz", **{"input.pixels": held_images, "target": held_labels})


if __name__ == "__main__":
    write([Path(name) for name in sys.argv[1:]])
