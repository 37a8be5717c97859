"""The digits package: its warm-up, how well each variant reads, and that training gives just this network."""

import numpy as np
import onnx
import pytest

# Of the images held back; `train.py` came to 0.978. Scikit-learn's own nearest neighbours come to 0.98.
ACCURACY = 0.96


@pytest.fixture
def data(script):
    return script("data")


@pytest.fixture
def train(script):
    return script("train")


def test_warmup(warmup_matches):
    warmup_matches()


def test_digits_that_training_never_saw_are_read(run, data):
    trained, _, images, labels = data.split()
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in trained}
    scores = run({"pixels": images})["scores"]
    assert float((scores.argmax(axis=1) == labels).mean()) >= ACCURACY
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=0.02)


def test_publishing_finds_the_variant_good_enough(measured):
    assert measured.passed and measured.metric >= ACCURACY, measured.why


def test_training_gives_the_committed_network(folder, data, train):
    """To the byte on the same kind of machine; here the figures that another processor rounds otherwise may differ."""
    committed, fresh = train.arrays_of(onnx.load(folder / "digits.onnx")), train.train()
    for name, array in committed.items():
        assert array.shape == fresh[name].shape and np.abs(array - fresh[name]).mean() < 0.02, name
    scaled = data.split()[2] / train.MOST_INK
    ours, theirs = (
        np.maximum(scaled @ a["layer1.weight"].T + a["layer1.bias"], 0) @ a["layer2.weight"].T + a["layer2.bias"]
        for a in (committed, fresh)
    )
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() >= 0.99


def test_parameters_are_written_into_the_graph_by_name(folder, data, train):
    """What rounds of training do: other arrays, the same graph."""
    model = onnx.load(folder / "digits.onnx")
    arrays = train.arrays_of(model)
    assert train.graph_of(arrays) == model
    _, _, images, _ = data.split()
    bias = np.zeros(10, np.float32)
    bias[7] = 1e4
    from onnxruntime import InferenceSession

    session = InferenceSession(train.graph_of({**arrays, "layer2.bias": bias}).SerializeToString())
    assert session.run(["scores"], {"pixels": images})[0].argmax(axis=1).tolist() == [7] * len(images)
    with pytest.raises(ValueError, match=r"layer2.bias is \[9\], expected \[10\]"):
        train.graph_of({**arrays, "layer2.bias": bias[1:]})
