"""Writes warmup.npz: a Python program, this package's manifest and its page as one batch, and the answers."""

from pathlib import Path

import numpy as np

from nearmesh.devmesh.samples.file_type import SOURCE_TEXT, features
from nearmesh.packaging.warmup import record

FOLDER = Path(__file__).parent

if __name__ == "__main__":
    contents = [SOURCE_TEXT, (FOLDER / "model.toml").read_bytes(), (FOLDER / "README.md").read_bytes()]
    record(FOLDER, {"bytes": np.stack([features(content) for content in contents])}, decimals=6)
