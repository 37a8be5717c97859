"""Training as Flower has it on a node, without a SuperLink: a process for each message, one after the other.

    python -m benchmarks.beside.app flower-supernode FILE     begins one app after the other, for ever
    python -m benchmarks.beside.app app FILE                  trains for a while, ends, and adds a line to FILE

The first is called as a SuperNode is, so that the warden leaves it alone. An app imports PyTorch and trains a network
of the size of models/digits on scikit-learn's digits; its line has the examples that it went through.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

# Of an app, imports aside; a round of a small model takes about as long.
APP_S = 4.0
BATCH = 32


def begin_apps(file: str) -> None:
    """Never returns."""
    while True:
        subprocess.run([sys.executable, "-m", "benchmarks.beside.app", "app", file], check=True)


def train(file: Path) -> None:
    """One app."""
    import torch
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.data / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    examples, until_s = 0, time.monotonic() + APP_S
    while time.monotonic() < until_s:
        for rows in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
            examples += len(rows)
            if time.monotonic() >= until_s:
                break
    with file.open("a") as lines:
        lines.write(f"{examples}\n")


if __name__ == "__main__":
    role, name = sys.argv[1:]
    begin_apps(name) if role == "flower-supernode" else train(Path(name))
