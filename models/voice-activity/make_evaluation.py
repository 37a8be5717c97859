"""Writes the file that it is told: sounds with a voice in the midst of a room's noise, one a case, window by window."""

import sys

import numpy as np

from nearmesh.devmesh.samples.voice import CONTEXT, RATE_HZ, WINDOW, speech

COUNT, SEED = 24, 9
# Windows of a sound.
WINDOWS = 48
SHORTEST, LONGEST = 12, 24


def sounds(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """FP32 [count, windows, 1, 576], each window behind the end of the one before; and where somebody speaks."""
    chance = np.random.default_rng(seed)
    voice = speech(3.0)
    windows, spoken = [], []
    for _ in range(count):
        length = int(chance.integers(SHORTEST, LONGEST))
        begin = int(chance.integers(8, WINDOWS - length - 12))
        offset = int(chance.integers(0, len(voice) - length * WINDOW))
        sound = chance.normal(0, chance.uniform(0.0005, 0.003), WINDOWS * WINDOW)
        part = voice[offset : offset + length * WINDOW] * chance.uniform(0.4, 1.2)
        sound[begin * WINDOW : (begin + length) * WINDOW] += part
        padded = np.concatenate([np.zeros(CONTEXT), sound]).astype(np.float32)
        windows.append([padded[None, n * WINDOW : (n + 1) * WINDOW + CONTEXT] for n in range(WINDOWS)])
        spoken.append([begin <= n < begin + length for n in range(WINDOWS)])
    return np.array(windows, np.float32), np.array(spoken, np.int64)


if __name__ == "__main__":
    found, labels = sounds(COUNT, SEED)
    rates = np.full(labels.shape, RATE_HZ, np.int64)
    np.savez(sys.argv[1], **{"input.input": found, "input.sr": rates, "expected.spoken": labels})
