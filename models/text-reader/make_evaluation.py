"""Writes the file that it is told: pages of random words as PNG files, one a case, and what they say."""

import random
import sys
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COUNT, SEED = 24, 21
LINES, WIDTH, MARGIN = 5, 640, 40
TEXT = (
    "answer bread brown coffee dog Frankfurt garden harbour image invoice latency lazy London model mountain nearest "
    "network night over price quick region river serve site text total Zurich 17:45 2026 38.50 4711 EUR"
)
WORDS = TEXT.split()


def pages(count: int, seed: int) -> list[tuple[Image.Image, list[str], list[tuple[float, float, float, float]]]]:
    """Images, the lines on them, and the lines' boxes."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        font = ImageFont.load_default(size=chance.randint(20, 34))
        dark, light = chance.randint(0, 60), chance.randint(215, 255)
        page = Image.new("RGB", (WIDTH, 2 * MARGIN + int(LINES * 1.8 * font.size)), (light, light, light))
        draw = ImageDraw.Draw(page)
        lines, boxes = [], []
        for number in range(LINES):
            line = " ".join(chance.choice(WORDS) for _ in range(chance.randint(2, 5)))
            place = (MARGIN, MARGIN + number * 1.8 * font.size)
            draw.text(place, line, fill=(dark, dark, dark), font=font)
            lines.append(line)
            boxes.append(draw.textbbox(place, line, font=font))
        found.append((page, lines, boxes))
    return found


def encode(page: Image.Image) -> bytes:
    file = BytesIO()
    page.save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    rendered = pages(COUNT, SEED)
    images = np.array([[encode(page)] for page, _, _ in rendered])
    texts = np.array([[line.encode() for line in lines] for _, lines, _ in rendered])
    np.savez(sys.argv[1], **{"input.image": images, "expected.text": texts})
