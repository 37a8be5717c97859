"""The digits package: its warm-up, how well each variant reads, that training gives just this network, and how much
better it gets where three sites train it further that lack some digits each."""

import numpy as np
import onnx
import pytest

from nearmesh.packaging import parameters

# Of the images that are for judging; `train.py` comes to 0.920 with the author's hundred, and with all to 0.978.
ACCURACY = 0.9
ROUNDS = 3


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
    committed, fresh = train.arrays_of(onnx.load(folder / "digits.onnx")), train.train(*data.authors())
    for name, array in committed.items():
        assert array.shape == fresh[name].shape and np.abs(array - fresh[name]).mean() < 0.02, name
    scaled = data.split()[2] / train.MOST_INK
    ours, theirs = (
        np.maximum(scaled @ a["layer1.weight"].T + a["layer1.bias"], 0) @ a["layer2.weight"].T + a["layer2.bias"]
        for a in (committed, fresh)
    )
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() >= 0.99


def test_parameters_are_written_into_the_graph_by_name(folder, data, train, tmp_path):
    """What rounds of training do: other arrays, the same graph."""
    arrays = parameters.read(folder / "digits.onnx", list(train.PARAMETERS))
    assert train.graph_of(arrays) == onnx.load(folder / "digits.onnx")
    _, _, images, _ = data.split()
    bias = np.zeros(10, np.float32)
    bias[7] = 1e4
    parameters.write(folder / "digits.onnx", {**arrays, "layer2.bias": bias}, tmp_path / "sevens.onnx")
    assert answers(tmp_path / "sevens.onnx", images).argmax(axis=1).tolist() == [7] * len(images)
    with pytest.raises(ValueError, match=r"layer2.bias is \[9\], expected \[10\]"):
        train.graph_of({**arrays, "layer2.bias": bias[1:]})


def test_each_site_lacks_some_digits_and_nobody_has_an_image_of_anybody_elses(data):
    parts = data.sites()
    for unseen, (_, labels, _, held_labels) in zip(data.UNSEEN, parts, strict=True):
        assert set(range(10)) - set(labels) == set(range(10)) - set(held_labels) == set(unseen)
        assert len(held_labels) >= 80
    everybody = [image.tobytes() for _, _, held, _ in [data.split()] for image in held]
    everybody += [image.tobytes() for image in data.authors()[0]]
    everybody += [image.tobytes() for part in parts for images in part[::2] for image in images]
    images = [image.tobytes() for images in data.split()[::2] for image in images]
    assert sorted(everybody) == sorted(images)


def test_the_data_of_sites_are_as_nodes_read_them(script, data, tmp_path):
    config, loading = pytest.importorskip("nearmesh_agent.training.config"), script("sites")
    from nearmesh_agent.training.data import load

    folders = [tmp_path / name for name in "abc"]
    loading.write(folders)
    for folder, (images, labels, held_images, held_labels) in zip(folders, data.sites(), strict=True):
        found = load(config.DataConfig(path=folder), ["pixels"])
        np.testing.assert_array_equal(found.train.inputs["pixels"], images)
        np.testing.assert_array_equal(found.train.targets, labels)
        np.testing.assert_array_equal(found.held_back.inputs["pixels"], held_images)
        np.testing.assert_array_equal(found.held_back.targets, held_labels)


@pytest.fixture
def recipe(folder):
    pytest.importorskip("torch", reason="the recipe is a PyTorch module")
    from nearmesh_agent.training.recipe import open_recipe

    return open_recipe(folder / "training.py")


@pytest.fixture
def parent(folder, package):
    return parameters.read(folder / "digits.onnx", package.training.parameters)


def test_the_recipe_is_the_same_network_as_the_graph(folder, package, data, recipe, parent, script, tmp_path):
    """Before and after training, within what the package says; and what the recipe exports is that graph."""
    import torch
    from nearmesh_agent.training.data import Data

    images, labels, held, _ = data.sites()[0]
    after, _ = recipe.train(parent, Data({"pixels": images}, labels), package.training.settings)
    for arrays in (parent, after):
        parameters.write(folder / "digits.onnx", arrays, tmp_path / "digits.onnx")
        (scores,) = recipe.outputs(arrays, {"pixels": held})
        np.testing.assert_allclose(answers(tmp_path / "digits.onnx", held), scores, atol=package.training.tolerance)
    training = script("training")
    module = training.model()
    module.load_state_dict({name: torch.tensor(array) for name, array in after.items()})
    training.export(module, tmp_path / "exported.onnx")
    np.testing.assert_array_equal(answers(tmp_path / "exported.onnx", held), answers(tmp_path / "digits.onnx", held))


def test_what_sites_teach_it_together_no_site_could_teach_it_alone(package, data, train, recipe, parent):
    """By averaging, as `fedavg` does, beside training on everything in one place and at each site for as long."""
    from nearmesh_agent.training.data import Data

    settings, _, _, images, labels = package.training.settings, *data.split()
    judged = Data({"pixels": images}, labels)
    sites = [Data({"pixels": images}, labels) for images, labels, _, _ in data.sites()]

    def accuracy(arrays, rows=judged):
        return recipe.evaluate(arrays, rows, settings)["accuracy"]

    arrays = parent
    for number in range(ROUNDS):
        trained = [recipe.train(arrays, site, {**settings, "seed": number})[0] for site in sites]
        counts = [len(site) for site in sites]
        arrays = {
            name: np.average([one[name] for one in trained], axis=0, weights=counts).astype(np.float32)
            for name in arrays
        }
    pooled = accuracy(train.train(*data.split()[:2]))
    assert accuracy(parent) < 0.93 < 0.97 < pooled
    assert accuracy(arrays) >= 0.98 * pooled
    for site in range(len(sites)):
        alone, _ = recipe.train(parent, sites[site], {**settings, "epochs": ROUNDS * settings["epochs"]})
        others = [Data({"pixels": held}, labels) for at, (*_, held, labels) in enumerate(data.sites()) if at != site]
        assert all(accuracy(arrays, other) > accuracy(alone, other) for other in others)
        held = Data({"pixels": data.sites()[site][2]}, data.sites()[site][3])
        assert accuracy(arrays, held) > accuracy(parent, held)
    change = np.sqrt(sum(np.square(arrays[name] - parent[name]).sum() for name in arrays))
    length = np.sqrt(sum(np.square(array).sum() for array in parent.values()))
    assert change < package.training.gate.largest_change * length / 3


def answers(path, images):
    """Of a graph, by ONNX Runtime."""
    from onnxruntime import InferenceSession

    return InferenceSession(str(path)).run(["scores"], {"pixels": images})[0]
