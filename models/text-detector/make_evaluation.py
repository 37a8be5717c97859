"""Writes the file that it is told: rendered pages, one a case, and the boxes of the lines on them."""

import random
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

COUNT, SEED = 24, 3
# Multiples of 32.
HEIGHT, WIDTH = 320, 480
# More than any page has; those that it has not are zeros.
MOST_LINES = 8
TEXT = (
    "answer bread brown coffee dog Frankfurt garden harbour image invoice latency lazy London model mountain nearest "
    "network night over price quick region river serve site text total Zurich 17:45 2026 38.50 4711 EUR"
)
WORDS = TEXT.split()


def pages(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images as FP32 [count, 1, 3, 320, 480] from -1 to 1, and boxes (left, top, right, bottom) [count, 8, 4]."""
    chance = random.Random(seed)
    noise = np.random.default_rng(seed)
    images, boxes = [], np.zeros((count, MOST_LINES, 4), np.float32)
    for number in range(count):
        size = chance.randint(18, 34)
        font = ImageFont.load_default(size=size)
        dark, light = chance.randint(0, 80), chance.randint(200, 255)
        page = Image.new("RGB", (WIDTH, HEIGHT), (light, light, light))
        draw = ImageDraw.Draw(page)
        top, line = chance.randint(12, 40), 0
        while top + 1.5 * size < HEIGHT and line < MOST_LINES:
            text = " ".join(chance.choice(WORDS) for _ in range(chance.randint(2, 4)))
            left = chance.randint(10, 60)
            if left + font.getlength(text) < WIDTH - 10:
                draw.text((left, top), text, fill=(dark, dark, dark), font=font)
                boxes[number, line] = draw.textbbox((left, top), text, font=font)
                line += 1
            top += int(size * chance.uniform(1.7, 2.4))
        page = page.filter(ImageFilter.GaussianBlur(chance.uniform(0, 0.7)))
        pixels = np.asarray(page, np.float32) + noise.normal(0, chance.uniform(0, 5), (HEIGHT, WIDTH, 1))
        images.append((pixels.clip(0, 255) / 127.5 - 1).astype(np.float32).transpose(2, 0, 1)[None])
    return np.stack(images), boxes


if __name__ == "__main__":
    found, places = pages(COUNT, SEED)
    np.savez(sys.argv[1], **{"input.x": found, "expected.boxes": places})
