"""Samples for `text-detector` and `text-recognizer`: text that we render ourselves, so that we know what it says.

Both models take an image as FP32 [n, 3, height, width] with values from -1 (black) to 1 (white). The detector answers
with a map of the same height and width, the probability of each pixel to lie in the core of a line of text; its sides
are multiples of 32. The recognizer reads one line, 48 pixels high, and answers with scores of characters along it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nearmesh.devmesh.samples.sample import CHECKOUT, Array, Sample, WrongAnswer, labels, output
from nearmesh.errors import ConfigError

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

DETECTOR = "text-detector"
RECOGNIZER = "text-recognizer"

# 1 x 3 x 384 x 512 values of 4 bytes: a request of 2.4 MB that takes some 30 ms of one core.
PAGE_HEIGHT, PAGE_WIDTH = 384, 512
PAGE = ("Nearmesh reads this page", "Frankfurt, London and Tokyo", "Invoice no. 4711", "Total: 38.50 EUR")
# Letters that look like others in the font (a capital I, a small l) are no known answer.
LINES = ("Invoice no. 4711", "Total: 38.50 EUR", "The nearest site answers")

_PAGE_FONT_PX = 28
_LINE_FONT_PX = 36
_LINE_HEIGHT = 48
_MARGIN_PX = 8
# As PP-OCR reads the map: a pixel above this is text.
_TEXT_PROBABILITY = 0.3
# Specks below this are not lines.
_MIN_REGION_PX = 40


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of pixels; right and bottom are just outside."""

    left: int
    top: int
    right: int
    bottom: int

    def holds(self, other: Box) -> bool:
        """Whether the other lies inside, give or take two pixels, and covers most of the width."""
        inside = self.left - 2 <= other.left and other.right <= self.right + 2
        inside = inside and self.top - 2 <= other.top and other.bottom <= self.bottom + 2
        return inside and other.right - other.left > 0.7 * (self.right - self.left)


def text_detector_sample(height: int = PAGE_HEIGHT, width: int = PAGE_WIDTH, lines: Sequence[str] = PAGE) -> Sample:
    """A page with some lines of text; the answer must show each line at its place, and nothing else."""
    step = height // len(lines)
    tops = [step // 4 + step * row for row in range(len(lines))]
    texts = [(40, top, line) for top, line in zip(tops, lines, strict=True)]
    image, boxes = _render(width, height, texts, _PAGE_FONT_PX)
    check = partial(_check_regions, tuple(boxes), (height, width))
    return Sample(model=DETECTOR, name=f"a page with {len(lines)} lines", inputs={"x": image[None]}, check=check)


def text_recognizer_samples(root: Path = CHECKOUT) -> list[Sample]:
    """Each line by itself, and all of them as one batch; the answer must be the exact text."""
    return [*(recognizer_sample([line], root) for line in LINES), recognizer_sample(LINES, root)]


def recognizer_sample(lines: Sequence[str], root: Path = CHECKOUT) -> Sample:
    """Some lines as one request, all as wide as the longest."""
    width = max(_text_width(line) for line in lines) + 2 * _MARGIN_PX
    images = [_render(width, _LINE_HEIGHT, [(_MARGIN_PX, 2, line)], _LINE_FONT_PX)[0] for line in lines]
    check = partial(_check_lines, tuple(lines), labels(root, RECOGNIZER))
    name = f"the line {lines[0]!r}" if len(lines) == 1 else f"{len(lines)} lines at once"
    return Sample(model=RECOGNIZER, name=name, inputs={"x": np.stack(images)}, check=check)


def _text_width(text: str) -> int:
    return int(_font(_LINE_FONT_PX).getlength(text)) + 1


def _font(size_px: int) -> FreeTypeFont | ImageFont:
    # Here and not at the top: Pillow is an extra, and the other samples do without.
    try:
        from PIL import ImageFont
    except ImportError:
        raise ConfigError("rendering text needs Pillow: pip install 'nearmesh[images]'") from None
    return ImageFont.load_default(size=size_px)


def _render(width: int, height: int, texts: Sequence[tuple[int, int, str]], font_px: int) -> tuple[Array, list[Box]]:
    """Texts at (left, top), dark on white: float32 [3, height, width] from -1 to 1, and the box of each text."""
    font = _font(font_px)
    from PIL import Image, ImageDraw

    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    boxes = []
    for left, top, text in texts:
        draw.text((left, top), text, fill=(20, 20, 20), font=font)
        x0, y0, x1, y1 = draw.textbbox((left, top), text, font=font)
        boxes.append(Box(int(x0), int(y0), int(x1) + 1, int(y1) + 1))
    pixels = np.asarray(page, dtype=np.float32).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels / np.float32(127.5) - np.float32(1)), boxes


def _check_regions(lines: tuple[Box, ...], size: tuple[int, int], outputs: Mapping[str, Array]) -> str:
    heat = output(outputs, "sigmoid_0.tmp_0", (1, 1, *size))[0, 0]
    found = regions(heat > _TEXT_PROBABILITY)
    if len(found) != len(lines):
        raise WrongAnswer(f"expected {len(lines)} lines of text, found {len(found)}: {found}")
    for line, region in zip(lines, found, strict=True):
        if not line.holds(region):
            raise WrongAnswer(f"expected a line of text in {line}, found it in {region}")
    return f"{len(found)} lines of text at y = {', '.join(str((box.top + box.bottom) // 2) for box in found)}"


def regions(mask: Array) -> list[Box]:
    """The boxes of the connected areas of a bool [height, width] mask, from top to bottom; specks are left out."""
    rows = [_runs(row) for row in mask]
    parent = {(y, start): (y, start) for y, runs in enumerate(rows) for start, _ in runs}
    for y, (above, below) in enumerate(pairwise(rows)):
        for (a_start, a_end), (b_start, b_end) in product(above, below):
            if a_start < b_end and b_start < a_end:
                parent[_root(parent, (y + 1, b_start))] = _root(parent, (y, a_start))
    areas: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for y, runs in enumerate(rows):
        for start, end in runs:
            areas.setdefault(_root(parent, (y, start)), []).append((y, start, end))
    large = [area for area in areas.values() if sum(end - start for _, start, end in area) >= _MIN_REGION_PX]
    return sorted((_box(area) for area in large), key=lambda box: (box.top, box.left))


def _runs(row: Array) -> list[tuple[int, int]]:
    """Where a row is true: [start, end) pairs."""
    edges = np.flatnonzero(np.diff(row.astype(np.int8), prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _root(parent: dict[tuple[int, int], tuple[int, int]], run: tuple[int, int]) -> tuple[int, int]:
    """The run that stands for the whole area that `run` belongs to."""
    while parent[run] != run:
        parent[run] = parent[parent[run]]
        run = parent[run]
    return run


def _box(area: Sequence[tuple[int, int, int]]) -> Box:
    return Box(min(a[1] for a in area), area[0][0], max(a[2] for a in area), area[-1][0] + 1)


def _check_lines(lines: tuple[str, ...], characters: tuple[str, ...], outputs: Mapping[str, Array]) -> str:
    scores = output(outputs, "softmax_11.tmp_0", (len(lines), -1, len(characters)))
    # The margins may read as a space.
    found = tuple(decode(steps, characters).strip() for steps in scores)
    if found != lines:
        raise WrongAnswer(f"expected {list(lines)}; the answer is {list(found)}")
    return " | ".join(found)


def decode(scores: Array, characters: Sequence[str]) -> str:
    """Greedy CTC: the best character of each step of [steps, characters], repeats once, blanks (number 0) dropped."""
    best = scores.argmax(axis=-1)
    first = np.diff(best, prepend=-1) != 0
    return "".join(characters[index] for index in best[first & (best != 0)])
