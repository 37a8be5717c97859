"""The file-type package: its warm-up, and files whose type is known."""

import numpy as np
import pytest

from nearmesh.devmesh.samples import WrongAnswer, file_type_samples
from nearmesh.devmesh.samples.file_type import PADDING_TOKEN, features
from nearmesh.package import read_labels

PROJECT = file_type_samples()

CONTENTS = {
    "json": b'{\n  "name": "nearmesh",\n  "sites": ["europe-west1", "us-east1"],\n  "nodes": 3,\n  "ready": true\n}\n',
    "png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x01\x00\x00\x00\x01\x00\x08\x02\x00\x00\x00" + bytes(255),
    "html": b"<!DOCTYPE html>\n<html><head><title>Sites</title></head>\n<body><p>Three of them.</p></body></html>\n",
    "shell": b'#!/bin/sh\nset -eu\nfor node in "$@"; do\n  echo "draining $node"\ndone\n' * 2,
}


def test_warmup(warmup_matches):
    warmup_matches()


@pytest.mark.parametrize("sample", PROJECT, ids=lambda sample: sample.name)
def test_the_projects_own_files(run, sample):
    sample.check(run(sample.inputs))


@pytest.mark.parametrize("kind", CONTENTS)
def test_known_contents(run, folder, kind):
    scores = run({"bytes": features(CONTENTS[kind])[None]})["target_label"]
    assert read_labels(folder / "labels.txt")[int(scores.argmax())] == kind
    assert scores.sum() == pytest.approx(1, abs=1e-3)


def test_a_wrong_answer_is_noticed(run):
    sample = PROJECT[0]
    other = run({"bytes": features(CONTENTS["html"])[None]})
    with pytest.raises(WrongAnswer, match="expected python; the answer is html"):
        sample.check(other)


@pytest.mark.parametrize(
    ("content", "head", "tail"),
    [
        (b"", b"", b""),
        (b"  abc \n", b"abc", b"abc"),
        (b" " + b"x" * 3000 + b"y \n", b"x" * 1024, b"x" * 1023 + b"y"),
        (b" " * 4096 + b"x" * 10, b"", b" " * 1014 + b"x" * 10),
        (b"\n" + b"a" * 5000 + b"z\t", b"a" * 1024, b"a" * 1023 + b"z"),
    ],
)
def test_features(content, head, tail):
    tokens = features(content)
    assert tokens.shape == (2048,) and tokens.dtype == np.int32
    first, second = tokens[:1024], tokens[1024:]
    assert first.tolist() == [*head] + [PADDING_TOKEN] * (1024 - len(head))
    assert second.tolist() == [PADDING_TOKEN] * (1024 - len(tail)) + [*tail]
