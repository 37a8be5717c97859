"""Writes the file that it is told: lines of random words as this machine's Pillow renders them, and what they say."""

import random
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

COUNT, SEED = 128, 2026
HEIGHT, WIDTH, MARGIN = 48, 320, 8
TEXT = (
    "answer bread brown coffee dog Frankfurt garden harbour image invoice latency lazy London model mountain nearest "
    "network night over price quick region river serve site text total Zurich Amsterdam booking carriage doctor "
    "engine flight gallery hotel island journey kitchen letter market number office platform question receipt station "
    "ticket umbrella village window yellow zebra 17:45 2026 38.50 4711 EUR USD 0.75 12.03.26 No. 9:30 100 250 (3) 50%"
)
WORDS = TEXT.split()


def lines(count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Images as FP32 [count, 3, 48, 320] from -1 to 1, and their texts: other sizes, inks and papers in each."""
    chance = random.Random(seed)
    noise = np.random.default_rng(seed)
    images, texts = [], []
    for _ in range(count):
        font = ImageFont.load_default(size=chance.randint(24, 36))
        text = chance.choice(WORDS)
        while font.getlength(longer := f"{text} {chance.choice(WORDS)}") < WIDTH - 2 * MARGIN:
            text = longer
        dark, light = chance.randint(0, 90), chance.randint(190, 255)
        ink, paper = (light, dark) if chance.random() < 0.15 else (dark, light)
        image = Image.new("RGB", (WIDTH, HEIGHT), (paper, paper, min(255, paper + chance.randint(0, 20))))
        top = chance.randint(0, max(0, HEIGHT - 6 - int(font.size * 1.2)))
        ImageDraw.Draw(image).text((MARGIN, top), text, fill=(ink, ink, ink), font=font)
        image = image.filter(ImageFilter.GaussianBlur(chance.uniform(0, 0.9)))
        pixels = np.asarray(image, np.float32) + noise.normal(0, chance.uniform(0, 6), (HEIGHT, WIDTH, 1))
        images.append((pixels.clip(0, 255) / 127.5 - 1).astype(np.float32).transpose(2, 0, 1))
        texts.append(text)
    return np.stack(images), texts


if __name__ == "__main__":
    found, said = lines(COUNT, SEED)
    np.savez(sys.argv[1], **{"input.x": found, "expected.text": np.array([text.encode() for text in said])})
