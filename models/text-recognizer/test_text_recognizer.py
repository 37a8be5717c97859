"""The text-recognizer package: its warm-up, and lines that we render ourselves."""

import pytest

from nearmesh.devmesh.samples import WrongAnswer, text_recognizer_samples
from nearmesh.devmesh.samples.text import recognizer_sample
from nearmesh.package import read_labels


def test_warmup(warmup_matches):
    warmup_matches()


@pytest.mark.parametrize("sample", text_recognizer_samples(), ids=lambda sample: sample.name)
def test_lines_read_as_they_were_written(run, sample):
    sample.check(run(sample.inputs))


def test_another_text_is_a_wrong_answer(run):
    other = recognizer_sample(["Total: 38.60 EUR"])
    with pytest.raises(WrongAnswer, match=r"expected \['Total: 38.50 EUR'\]; the answer is \['Total: 38.60 EUR'\]"):
        recognizer_sample(["Total: 38.50 EUR"]).check(run(other.inputs))


def test_labels_are_the_graphs_own_characters(folder, package):
    onnx = pytest.importorskip("onnx", reason="reading the graph's metadata needs onnx")
    from nearmesh.packaging.sources import default_cache, fetch

    model = onnx.load(fetch(package.variants[0].source, folder, default_cache()))
    (characters,) = (entry.value for entry in model.metadata_props if entry.key == "character")
    assert read_labels(folder / package.labels) == ("<blank>", *characters.split("\n"), " ")
