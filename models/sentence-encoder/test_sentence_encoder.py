"""The sentence-encoder package: its graph is the authors' model, variants tell what says alike, what is refused."""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from nearmesh_agent.engines.pipeline.python_step import PythonSteps
from nearmesh_agent.serving.agreement import agrees

from nearmesh.errors import InvalidInput, PackageError

# Against torch and transformers, whose vectors are in reference.npz: the graph computes the same, 8 bits nearly so.
FURTHEST = {"encode:fp32": 1e-4, "encode:int8": 0.05}
SMALLEST_COSINE = {"encode:fp32": 0.999999, "encode:int8": 0.97}
# Of the sentences, the share whose nearest says the same; fp32 came to 0.953, int8 to 0.945.
PARTNERS_FOUND = 0.92

DATA = os.environ.get("NEARMESH_TEST_DATA")
# Of questions, the share whose nearest of 60 paragraphs answers them; both variants came to 0.94 of all 322.
ANSWERED = 0.88


def as_texts(texts):
    found = np.empty(len(texts), object)
    found[:] = [text.encode() if isinstance(text, str) else bytes(text) for text in texts]
    return found


@pytest.fixture(scope="module")
def ask(run):
    return lambda *texts: run({"text": as_texts(texts)})["embedding"]


@pytest.fixture(scope="module")
def tokenize(published, package):
    """The first step's function."""
    code = PythonSteps(published)
    yield lambda *texts: code.load(package.steps[0]).run({"text": as_texts(texts)})
    code.close()


def test_warmup(warmup_matches):
    warmup_matches()


def test_vectors_are_those_of_the_authors_model(ask, folder, variant):
    with np.load(folder / "reference.npz") as archive:
        texts, expected = archive["text"], archive["embedding"]
    alone = np.concatenate([ask(text) for text in texts])
    assert np.abs(alone - expected).max() < FURTHEST[variant]
    assert (alone * expected).sum(axis=1).min() > SMALLEST_COSINE[variant]


def test_a_rollout_tells_each_variant_from_other_weights(ask, folder, package):
    """By the online check: 8 bits are near enough, the vectors of another text are not."""
    with np.load(folder / "reference.npz") as archive:
        texts, expected = archive["text"], archive["embedding"]
    for text, vector, other in zip(texts, expected, np.roll(expected, 1, axis=0), strict=True):
        answer = {"embedding": ask(text)}
        assert agrees({"embedding": vector[None]}, answer, package)
        assert not agrees({"embedding": other[None]}, answer, package)


def test_a_text_has_the_same_vector_among_longer_ones(ask, variant):
    """Shorter ones are filled up with what the graph must not see."""
    texts = ["Snow.", "A storm tore the roof off the barn.", "word " * 300]
    together = ask(*texts)
    for text, vector in zip(texts, together, strict=True):
        assert float(ask(text)[0] @ vector) > SMALLEST_COSINE[variant]
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_publishing_finds_the_variant_good_enough(measured):
    assert measured.passed and measured.metric >= PARTNERS_FOUND, measured.why


def test_no_texts_have_no_vectors(ask):
    assert ask().shape == (0, 384) and ask().dtype == np.float32


def test_the_metric_counts_the_sentences_whose_nearest_is_their_partner(script):
    found = script("metric").partners_found
    vectors, pairs = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]], np.array([0, 0, 1, 1])
    assert found({"embedding": vectors}, {"pair": pairs}) == 1
    assert found({"embedding": vectors}, {"pair": np.array([0, 1, 0, 1])}) == 0


def test_sentences_are_pairs_and_none_stands_twice(script):
    sentences = script("sentences")
    assert len(set(sentences.TEXTS)) == len(sentences.TEXTS) == 128
    assert all("|" not in text and text for text in sentences.TEXTS)
    assert np.bincount(sentences.PAIR).tolist() == [2] * 64


def test_the_committed_graph_is_what_the_export_writes(script):
    export = script("export")
    assert export.export(export.weights_file()).SerializeToString(deterministic=True) == export.TARGET.read_bytes()


def test_the_graph_takes_every_tensor_that_it_names_from_the_weights(script):
    """At its own place: two tensors that share bytes would be a mistake of the export."""
    onnx = pytest.importorskip("onnx", reason="reading the graph needs onnx")
    export = script("export")
    graph = onnx.load(export.TARGET, load_external_data=False).graph
    size, places = export.weights_file().stat().st_size, []
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            said = {entry.key: entry.value for entry in tensor.external_data}
            places.append((int(said["offset"]), int(said["length"])))
            assert said["location"] == "model.safetensors"
            assert int(said["length"]) == 4 * int(np.prod(tensor.dims))
    # 5 of the embeddings and 16 in each layer.
    assert len(places) == 5 + 6 * 16
    places.sort()
    assert all(start + length <= following for (start, length), (following, _) in pairwise(places))
    assert sum(places[-1]) <= size


def test_tokens(tokenize):
    found = tokenize("The train is late.", "Trains!")
    assert found["input_ids"].tolist() == [[101, 1996, 3345, 2003, 2397, 1012, 102], [101, 4499, 999, 102, 0, 0, 0]]
    assert found["attention_mask"].tolist() == [[1] * 7, [1] * 4 + [0] * 3]
    assert not found["token_type_ids"].any()
    assert all(array.dtype == np.int64 for array in found.values())


def test_what_comes_after_256_tokens_is_not_read(tokenize):
    assert tokenize("word " * 600)["input_ids"].shape == (1, 256)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"caf\xe9", "text 1 is not UTF-8"),
        (b"x" * 100_001, "text 1 has 100001 bytes, expected 100000 at most; send it in parts"),
    ],
)
def test_what_is_no_text_is_refused(tokenize, text, said):
    with pytest.raises(InvalidInput, match=said):
        tokenize(b"fine", text)


def test_a_node_without_the_tokenizers_library_says_what_is_missing(published, package, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    code = PythonSteps(published)
    with pytest.raises(PackageError, match=r"needs tokenizers: pip install 'nearmesh\[texts\]'"):
        code.load(package.steps[0])
    code.close()


@pytest.mark.skipif(DATA is None, reason="set NEARMESH_TEST_DATA to the development data's folder")
def test_questions_find_the_paragraph_that_answers_them(ask):
    folder = Path(str(DATA)) / "xquad_en_retrieval"
    passages, questions = (
        {each["id"]: each["text"] for each in map(json.loads, (folder / name).read_text().splitlines())}
        for name in ("passages.jsonl", "queries.jsonl")
    )
    some = list(passages)[:60]
    rows = (line.split("\t") for line in (folder / "qrels.tsv").read_text().splitlines()[1:])
    asked = [(question, answer) for question, answer, _ in rows if answer in some][::5]
    found = ask(*(passages[each] for each in some))
    nearest = (ask(*(questions[question] for question, _ in asked)) @ found.T).argmax(axis=1)
    right = [some[place] == answer for place, (_, answer) in zip(nearest, asked, strict=True)]
    assert len(right) > 60 and np.mean(right) >= ANSWERED
