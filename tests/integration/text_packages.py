"""Packages over texts that need no weights: embedders that hash words, a reranker, and a pipeline that retrieves."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from nearmesh.packaging.build import Artifact, build

_HEAD = """
name = "{name}"
version = "{version}"
description = "for tests"
licence = "Apache-2.0"
credit = "the project"
warmup = [{{ file = "warmup.npz" }}]
batching = {{ max_batch = 32 }}
"""
_EMBEDDER = """
inputs = [{ name = "text", dtype = "BYTES", shape = [-1] }]
outputs = [{ name = "embedding", dtype = "FP32", shape = [-1, -1] }]
steps = [{ name = "embed", python = "steps.py:embed" }]
"""
_RERANKER = """
inputs = [{ name = "query", dtype = "BYTES", shape = [-1] }, { name = "text", dtype = "BYTES", shape = [-1] }]
outputs = [{ name = "score", dtype = "FP32", shape = [-1] }]
steps = [{ name = "score", python = "steps.py:score" }]
"""
_ASKER = """
inputs = [{ name = "question", dtype = "BYTES", shape = [-1] }]
outputs = [{ name = "answer", dtype = "BYTES", shape = [-1] }]
[[steps]]
name = "find"
retrieve = { collection = "docs", k = 2, sample = ["A sample.", "Another one."] }
inputs = { text = "question" }
[[steps]]
name = "speak"
python = "steps.py:speak"
"""
# Words that share no hash with others stay apart; `salt` and `size` tell versions apart.
_EMBED = """
import hashlib
import numpy as np


def embed(text):
    found = np.full((len(text), {size}), 1e-3, np.float32)
    for row, words in enumerate(text):
        for word in words.lower().split():
            digest = hashlib.sha256(b"{salt}" + word).digest()
            found[row] += np.frombuffer(digest, np.uint8)[:{size}].astype(np.float32) - 128
    return {{"embedding": found / np.linalg.norm(found, axis=1, keepdims=True)}}
"""
_SCORE = '''
import numpy as np


def score(query, text):
    """Longer passages first."""
    return {"score": np.array([len(each) for each in text], np.float32)}
'''
_SPEAK = """
import numpy as np


def speak(passages):
    return {"answer": np.array([b" | ".join(row) for row in passages], dtype=object)}
"""


def embedder(folder: Path, version: str, *, size: int = 16) -> Artifact:
    """Vectors of `size` numbers, with directions of the version's own."""
    code = _EMBED.format(salt=version, size=size)
    texts = [b"a b", b"c"]
    found = np.full((len(texts), size), 1e-3, np.float32)
    for row, words in enumerate(texts):
        for word in words.split():
            digest = hashlib.sha256(version.encode() + word).digest()
            found[row] += np.frombuffer(digest, np.uint8)[:size].astype(np.float32) - 128
    expected = found / np.linalg.norm(found, axis=1, keepdims=True)
    given = {"input.text": np.array(texts), "output.embedding": expected}
    return _built(folder, "embedder", version, _EMBEDDER, code, given)


def reranker(folder: Path) -> Artifact:
    given = {"input.query": np.array([b"q"]), "input.text": np.array([b"abc"])}
    return _built(folder, "reranker", "1", _RERANKER, _SCORE, {**given, "output.score": np.array([3], np.float32)})


def asker(folder: Path) -> Artifact:
    """Answers with the passages that it finds in the collection `docs`."""
    given = {"input.question": np.array([b"q"]), "output.answer": np.array([b"A sample. | Another one."])}
    return _built(folder, "asker", "1", _ASKER, _SPEAK, given)


def _built(folder: Path, name: str, version: str, toml: str, code: str, warmup: dict[str, np.ndarray]) -> Artifact:
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(_HEAD.format(name=name, version=version) + toml)
    (folder / "steps.py").write_text(code)
    np.savez(folder / "warmup.npz", **warmup)
    return build(folder, folder / "cache")
