"""Writes the file that it is told: contents of known types that Python's own library makes, and its sources."""

import bz2
import csv
import difflib
import gzip
import io
import json
import lzma
import pickle
import random
import sqlite3
import struct
import sys
import sysconfig
import tarfile
import wave
import zipfile
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from nearmesh.devmesh.samples.file_type import features

LABELS = Path(__file__).with_name("labels.txt").read_text().splitlines()
# Contents of each type that is made, and of Python's sources.
EACH, SOURCES, SEED = 8, 80, 11
TEXT = "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike node oscar papa quebec"
WORDS = TEXT.split()


def contents(each: int, sources: int, seed: int) -> list[tuple[str, bytes]]:
    """Pairs of a label and a content; other seeds give other contents."""
    chance = random.Random(seed)
    found = [(kind, make(chance)) for kind, make in MADE.items() for _ in range(each)]
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    large = [path for path in files if path.stat().st_size > 2000]
    found += [("python", path.read_bytes()) for path in chance.sample(large, min(sources, len(large)))]
    return found


def _rows(chance: random.Random, columns: int = 4) -> list[dict[str, object]]:
    names = chance.sample(WORDS, columns)
    count = chance.randint(12, 60)
    return [{name: chance.choice([chance.random(), chance.choice(WORDS)]) for name in names} for _ in range(count)]


def _text(chance: random.Random, count: int = 120) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(count))


def _csv(chance: random.Random) -> bytes:
    rows, file = _rows(chance), io.StringIO()
    table = csv.DictWriter(file, list(rows[0]))
    table.writeheader()
    table.writerows(rows)
    return file.getvalue().encode()


def _xml(chance: random.Random) -> bytes:
    root = ElementTree.Element(chance.choice(WORDS))
    for row in _rows(chance):
        ElementTree.SubElement(root, "entry", {key: str(value) for key, value in row.items()}).text = _text(chance, 4)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root)


def _html(chance: random.Random) -> bytes:
    body = "".join(f"<p class='{chance.choice(WORDS)}'>{_text(chance, 20)}</p>\n" for _ in range(12))
    return f"<!DOCTYPE html>\n<html><head><title>{_text(chance, 3)}</title></head>\n<body>{body}</body></html>".encode()


def _ini(chance: random.Random) -> bytes:
    parts = (f"[{name}]\n" + "".join(f"{word} = {chance.randint(0, 99)}\n" for word in WORDS[:6]) for name in WORDS[6:])
    return "\n".join(parts).encode()


def _shell(chance: random.Random) -> bytes:
    loops = "".join(f'for {w} in "$@"; do\n  echo "{_text(chance, 3)} ${w}" >> log.txt\ndone\n' for w in WORDS[:6])
    return f"#!/bin/sh\nset -eu\n{loops}exit {chance.randint(0, 3)}\n".encode()


def _markdown(chance: random.Random) -> bytes:
    parts = (
        f"## {_text(chance, 3)}\n\n- {_text(chance, 9)}\n- [{_text(chance, 2)}](https://example.org)\n" for _ in "12345"
    )
    return f"# {_text(chance, 2)}\n\n{''.join(parts)}".encode()


def _diff(chance: random.Random) -> bytes:
    old = [_text(chance, 6) + "\n" for _ in range(40)]
    new = [line for line in old if chance.random() > 0.2]
    return "".join(difflib.unified_diff(old, new, "a/file.txt", "b/file.txt")).encode()


def _sql(chance: random.Random) -> bytes:
    rows = "".join(
        f"INSERT INTO {chance.choice(WORDS)} VALUES ({chance.randint(0, 99)}, '{_text(chance, 3)}');\n" for _ in WORDS
    )
    return f"CREATE TABLE {chance.choice(WORDS)} (id INTEGER PRIMARY KEY, name TEXT);\n{rows}".encode()


def _zip(chance: random.Random) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for word in chance.sample(WORDS, 4):
            archive.writestr(f"{word}.txt", _text(chance, 300))
    return file.getvalue()


def _tar(chance: random.Random) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for word in chance.sample(WORDS, 3):
            data = _text(chance, 200).encode()
            info = tarfile.TarInfo(f"{word}.txt")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _png(chance: random.Random) -> bytes:
    width, height = chance.randint(20, 90), chance.randint(20, 90)
    rows = b"".join(b"\0" + chance.randbytes(3 * width) for _ in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _wav(chance: random.Random) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(chance.choice([8000, 16000, 44100]))
        sound.writeframes(chance.randbytes(6000))
    return file.getvalue()


def _sqlite(chance: random.Random) -> bytes:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE t (id INTEGER, name TEXT)")
    database.executemany("INSERT INTO t VALUES (?, ?)", [(chance.randint(0, 99), _text(chance, 5)) for _ in range(50)])
    database.commit()
    data = database.serialize()
    database.close()
    return data


MADE = {
    "bzip": lambda chance: bz2.compress(_text(chance, 900).encode()),
    "csv": _csv,
    "diff": _diff,
    "gzip": lambda chance: gzip.compress(_text(chance, 900).encode(), mtime=0),
    "html": _html,
    "ini": _ini,
    "json": lambda chance: json.dumps(_rows(chance), indent=chance.choice([None, 1, 2])).encode(),
    "jsonl": lambda chance: "".join(json.dumps(row) + "\n" for row in _rows(chance)).encode(),
    "markdown": _markdown,
    "pickle": lambda chance: pickle.dumps(_rows(chance), protocol=4),
    "png": _png,
    "shell": _shell,
    "sql": _sql,
    "sqlite": _sqlite,
    "tar": _tar,
    "wav": _wav,
    "xml": _xml,
    "xz": lambda chance: lzma.compress(_text(chance, 900).encode()),
    "zip": _zip,
}


if __name__ == "__main__":
    found = contents(EACH, SOURCES, SEED)
    tokens = np.stack([features(content) for _, content in found])
    labels = np.array([LABELS.index(kind) for kind, _ in found])
    np.savez(sys.argv[1], **{"input.bytes": tokens, "expected.target_label": labels})
