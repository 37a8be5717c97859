"""Writes warmup.npz: a small page with two lines of text, and the map that the model gives."""

from pathlib import Path

from nearmesh.devmesh.samples import text_detector_sample
from nearmesh.packaging.warmup import record

if __name__ == "__main__":
    page = text_detector_sample(height=96, width=256, lines=("Nearmesh", "warms up"))
    record(Path(__file__).parent, page.inputs, decimals=3)
