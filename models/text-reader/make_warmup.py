"""Writes warmup.npz: a small picture with two lines of text, and what it says."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from nearmesh_agent.engines.factory import OnnxEngines
from PIL import Image, ImageDraw, ImageFont

from nearmesh.package import Package
from nearmesh.packaging.warmup import Arrays, record

# Away from the left and the top, where a relative tolerance would leave a box no room.
PLACES = {(80, 64): "Nearmesh", (80, 128): "warms up"}


def picture() -> bytes:
    """A PNG."""
    page = Image.new("RGB", (320, 224), "white")
    for place, text in PLACES.items():
        ImageDraw.Draw(page).text(place, text, fill="black", font=ImageFont.load_default(size=32))
    file = BytesIO()
    page.save(file, "PNG", optimize=True)
    return file.getvalue()


def run(folder: Path, package: Package, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """As a node does."""
    engine = OnnxEngines()(folder, package)
    answer = engine.infer(inputs)
    engine.close()
    assert [line.decode() for line in answer["text"]] == list(PLACES.values())
    return answer


if __name__ == "__main__":
    record(Path(__file__).parent, {"image": np.array([picture()], object)}, decimals=3, run=run)
