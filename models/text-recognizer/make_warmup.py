"""Writes warmup.npz: two rendered lines of text as one batch, and the scores that the model gives."""

from pathlib import Path

from nearmesh.devmesh.samples.text import recognizer_sample
from nearmesh.packaging.warmup import record

if __name__ == "__main__":
    record(Path(__file__).parent, recognizer_sample(["Nearmesh", "4711"]).inputs, decimals=4)
