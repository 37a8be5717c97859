"""The steps of text-reader around its two graphs: an image's bytes to pixels, a heat map to lines, scores to text."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError:
    raise ImportError("reading images needs Pillow: pip install 'nearmesh[images]'") from None

Array = npt.NDArray[Any]

# 75 MB as RGB; A4 at 500 dpi has 24 million, a photograph 12 to 24 million.
MAX_PIXELS = 25_000_000
# Of the page that the detector sees: letters of A4 at 10 points are then some 14 pixels high. More costs time.
MAX_SIDE = 1280
# The detector halves its sides five times.
SIDE_MULTIPLE = 32
# As PP-OCR reads the map: a pixel above this is text.
TEXT_PROBABILITY = 0.3
# In pixels of the map; less are specks.
MIN_AREA, MIN_HEIGHT = 12, 3
# The map shows the core of a line. Its rim is (area x this / circumference) wide (DB's "unclip ratio", there 1.5; on
# rendered pages the recognizer loses spaces between words below 1.8, with much letters of the lines above and below).
RIM = 2.0
# The recognizer's height, and how wide a line may become: longer ones are pressed together.
LINE_HEIGHT, MAX_LINE_WIDTH = 48, 2400
MIN_LINE_WIDTH = 48
# All lines together, filled up to the widest. The recognizer's scores are 3.3 kB for each column, so 200 MB.
MAX_COLUMNS = 64_000
# Lines below are no text, or not one that can be read.
MIN_SCORE = 0.5

CHARACTERS = Path(__file__).with_name("labels.txt").read_bytes().decode().removesuffix("\n").split("\n")


def decode(image: Array) -> dict[str, Array]:
    """A file's bytes as `pixels`, uint8 [height, width, 3], and as the detector's `page`, float32 [1, 3, h, w]."""
    upright = _open(image[0])
    scale = min(1.0, MAX_SIDE / max(upright.size))
    size = [max(1, round(side * scale / SIDE_MULTIPLE)) * SIDE_MULTIPLE for side in upright.size]
    page = upright.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    return {"pixels": np.asarray(upright), "page": _as_input(page)[None]}


def _open(data: bytes) -> Image.Image:
    """The image in RGB, upright. Raises ValueError; a size that is too large is refused before anything is decoded."""
    try:
        with Image.open(BytesIO(data), formats=("PNG", "JPEG")) as found:
            if found.width * found.height > MAX_PIXELS:
                raise ValueError(f"the image has {found.width} x {found.height} pixels, expected {MAX_PIXELS} at most")
            return _rgb(ImageOps.exif_transpose(found))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"the image is far too large, expected {MAX_PIXELS} pixels at most") from None
    except (OSError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error) as error:
        # Pillow's own words for what it does not know name an address in memory.
        why = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        raise ValueError(f"the {len(data)} bytes are no whole PNG or JPEG image{why}") from None


def _rgb(image: Image.Image) -> Image.Image:
    """What is transparent becomes white; 16 bits become 8."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image.convert("RGB")


def _as_input(image: Image.Image) -> Array:
    """Float32 [3, height, width] from -1 (black) to 1 (white)."""
    planes = np.asarray(image, np.float32).transpose(2, 0, 1)
    return np.ascontiguousarray(planes / np.float32(127.5) - np.float32(1))


def cut(heat: Array, pixels: Array) -> dict[str, Array]:
    """The `lines` of text as float32 [n, 3, 48, width], and each one's `box`, float32 [n, 4], in reading order."""
    height, width = pixels.shape[:2]
    boxes = in_reading_order(_rimmed(regions(heat[0, 0] > TEXT_PROBABILITY)))
    boxes *= np.tile([width / heat.shape[3], height / heat.shape[2]], 2)
    boxes[:, :2], boxes[:, 2:] = np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])
    boxes = boxes.clip(0, [width, height, width, height])
    return {"lines": _lines(pixels, boxes), "box": boxes.astype(np.float32)}


def regions(mask: Array) -> Array:
    """The boxes (left, top, right, bottom) of a mask's connected areas, float64 [n, 4]; specks are left out."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    # Runs of text within a row, in order.
    (rows, starts), ends = np.nonzero(edges == 1), np.nonzero(edges == -1)[1]
    areas = _areas(rows, starts, ends, mask.shape[1] + 1)
    boxes = np.full((areas.max(initial=-1) + 1, 4), [np.inf, np.inf, 0, 0])
    np.minimum.at(boxes, (areas, 0), starts)
    np.minimum.at(boxes, (areas, 1), rows)
    np.maximum.at(boxes, (areas, 2), ends)
    np.maximum.at(boxes, (areas, 3), rows + 1)
    large = np.bincount(areas, ends - starts, len(boxes)) >= MIN_AREA
    return boxes[large & (boxes[:, 3] - boxes[:, 1] >= MIN_HEIGHT)]


def _areas(rows: Array, starts: Array, ends: Array, stride: int) -> Array:
    """For each run the number of the connected area that it belongs to."""
    # Runs are sorted, so those of the next row that touch one are neighbours: from the first that ends after its start
    # to the last that starts before its end.
    below = (rows + 1) * stride
    first = np.searchsorted(rows * stride + ends, below + starts, side="right")
    last = np.searchsorted(rows * stride + starts, below + ends, side="left")
    touching = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(len(rows)), touching)
    lower = np.arange(len(upper)) - np.repeat(np.cumsum(touching) - touching, touching) + np.repeat(first, touching)
    # Every run takes the lowest number among those that it touches, and its number's number, until nothing changes.
    number = np.arange(len(rows))
    while True:
        least, fresh = np.minimum(number[upper], number[lower]), number.copy()
        np.minimum.at(fresh, number[upper], least)
        np.minimum.at(fresh, number[lower], least)
        fresh = fresh[fresh]
        if (fresh == number).all():
            return np.unique(number, return_inverse=True)[1]
        number = fresh


def _rimmed(boxes: Array) -> Array:
    """The boxes of whole letters, from those of their cores."""
    sides = boxes[:, 2:] - boxes[:, :2]
    rim = (sides.prod(axis=1) * RIM / (2 * sides.sum(axis=1)))[:, None]
    return np.concatenate([boxes[:, :2] - rim, boxes[:, 2:] + rim], axis=1)


def in_reading_order(boxes: Array) -> Array:
    """From top to bottom; boxes whose middles lie within each other's height stand in one row, from left to right."""
    rows: list[list[Array]] = []
    for box in boxes[np.argsort(boxes[:, 1] + boxes[:, 3], kind="stable")]:
        middle = (box[1] + box[3]) / 2
        first = rows[-1][0] if rows else None
        if first is not None and first[1] < middle < first[3] and box[1] < (first[1] + first[3]) / 2 < box[3]:
            rows[-1].append(box)
        else:
            rows.append([box])
    ordered = [box for row in rows for box in sorted(row, key=lambda box: float(box[0]))]
    return np.array(ordered).reshape(-1, 4)


def _lines(pixels: Array, boxes: Array) -> Array:
    """Each box as an image of the recognizer's height, filled up with grey to the widest."""
    sides = boxes[:, 2:] - boxes[:, :2]
    widths = np.ceil(sides[:, 0] * LINE_HEIGHT / sides[:, 1]).astype(int).clip(MIN_LINE_WIDTH, MAX_LINE_WIDTH)
    widest = int(widths.max(initial=MIN_LINE_WIDTH))
    if len(boxes) * widest > MAX_COLUMNS:
        raise ValueError(
            f"the image has {len(boxes)} lines of text, the longest {widest / LINE_HEIGHT:.0f} times as wide as high: "
            "too much for one request, send it in parts"
        )
    lines = np.zeros((len(boxes), 3, LINE_HEIGHT, widest), np.float32)
    for line, (left, top, right, bottom), width in zip(lines, boxes.astype(int), widths, strict=True):
        piece = Image.fromarray(pixels[top:bottom, left:right])
        piece = piece.resize((int(width), LINE_HEIGHT), Image.Resampling.BICUBIC)
        line[:, :, :width] = _as_input(piece)
    return lines


def read(scores: Array, box: Array) -> dict[str, Array]:
    """What each line says, of float32 [n, steps, characters]: `text`, its `score`, and the `box` of those kept."""
    best = scores.argmax(axis=2)
    sure = scores.max(axis=2)
    # Greedy CTC: of equal neighbours the first, and none of the blank's, number 0.
    first = np.diff(best, axis=1, prepend=-1) != 0
    kept = first & (best != 0)
    score = (sure * kept).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
    lines = ["".join(CHARACTERS[i] for i in row[keep]).strip() for row, keep in zip(best, kept, strict=True)]
    text = np.array(lines, object)
    good = (score >= MIN_SCORE) & (text != "")
    return {"text": text[good], "score": score[good].astype(np.float32), "box": box[good]}
