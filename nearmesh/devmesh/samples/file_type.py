"""Samples for `file-type`: bytes of files whose type their name gives away.

The model's input is a file's first 1,024 and last 1,024 bytes without surrounding white space, as numbers, each half
filled up to its length with a padding token; the halves of a short file overlap (Magika's published description).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from nearmesh.devmesh.samples.sample import CHECKOUT, Array, Sample, WrongAnswer, labels, output

MODEL = "file-type"

HALF_TOKENS = 1024
PADDING_TOKEN = 256
# White space is looked for in this much of the file's beginning and end.
BLOCK_BYTES = 4096

# Files of the project, and what they are. Those that a checkout lacks are left out.
PROJECT_FILES = {
    "nearmesh/routing/rule.py": "python",
    "pyproject.toml": "toml",
    "protos/nearmesh/v1/route.proto": "proto",
    "Makefile": "makefile",
    "README.md": "markdown",
}
# A shorter file may be a stub of which nobody can tell the type.
_MIN_BYTES = 256

SOURCE_TEXT = b'''"""Counts the words of a text."""

import collections
import sys


def count(lines):
    words = collections.Counter()
    for line in lines:
        words.update(word.strip(".,;:!?").lower() for word in line.split())
    return words


if __name__ == "__main__":
    for word, times in count(sys.stdin).most_common(10):
        print(f"{times:6d} {word}")
'''


def features(content: bytes) -> Array:
    """A file's content as the model's input, int32 [2048]."""
    short = len(content) <= BLOCK_BYTES
    head = content.strip() if short else content[:BLOCK_BYTES].lstrip()
    tail = content.strip() if short else content[-BLOCK_BYTES:].rstrip()
    head, tail = head[:HALF_TOKENS], tail[-HALF_TOKENS:]
    tokens = np.full(2 * HALF_TOKENS, PADDING_TOKEN, np.int32)
    tokens[: len(head)] = np.frombuffer(head, np.uint8)
    tokens[len(tokens) - len(tail) :] = np.frombuffer(tail, np.uint8)
    return tokens


def builtin_file_sample(root: Path = CHECKOUT) -> Sample:
    """A Python program that never changes."""
    return _sample("a Python program", {"program.py": (SOURCE_TEXT, "python")}, root)


def file_type_samples(root: Path = CHECKOUT) -> list[Sample]:
    """The built-in program, each of the project's own files below `root`, and all of them as one batch."""
    found = {}
    for name, kind in PROJECT_FILES.items():
        path = root / name
        if path.is_file() and path.stat().st_size >= _MIN_BYTES:
            found[name] = (path.read_bytes(), kind)
    singles = [_sample(name, {name: file}, root) for name, file in found.items()]
    batch = [_sample(f"{len(found)} files at once", found, root)] if len(found) > 1 else []
    return [builtin_file_sample(root), *singles, *batch]


def _sample(name: str, files: Mapping[str, tuple[bytes, str]], root: Path) -> Sample:
    tokens = np.stack([features(content) for content, _ in files.values()])
    expected = tuple(kind for _, kind in files.values())
    check = partial(_check, expected, labels(root, MODEL))
    return Sample(model=MODEL, name=name, inputs={"bytes": tokens}, check=check)


def _check(expected: tuple[str, ...], names: tuple[str, ...], outputs: Mapping[str, Array]) -> str:
    scores = output(outputs, "target_label", (len(expected), len(names)))
    found = tuple(names[best] for best in scores.argmax(axis=1))
    if found != expected:
        raise WrongAnswer(f"expected {', '.join(expected)}; the answer is {', '.join(found)}")
    return ", ".join(found)
