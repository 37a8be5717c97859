"""`nearmesh model init`: a package from any ONNX file that ONNX Runtime takes, and a clear word about any other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nearmesh_agent.engines.factory import OnnxEngines
from nearmesh_agent.serving.memory import weights_bytes

from nearmesh.errors import PackageError
from nearmesh.package import MANIFEST_FILE, TensorSpec, load
from nearmesh.packaging import parameters
from nearmesh.packaging.build import build
from nearmesh.packaging.check import check
from nearmesh.packaging.init import init
from nearmesh.packaging.init.describe import name_of
from nearmesh.packaging.init.facts import read
from nearmesh.packaging.warmup import read_warmup

onnx = pytest.importorskip("onnx", reason="packages are made with onnx (extra build)")
pytest.importorskip("onnxruntime", reason="warm-ups are made by ONNX Runtime")

FLOAT, INT64, STRING = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.STRING
node, value, tensor = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.numpy_helper.from_array
RNG = np.random.default_rng(3)


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], **more: Any) -> Path:
    """A model of some nodes; `weights` by name, other keywords as `make_model` takes them."""
    weights = [tensor(np.asarray(array), name) for name, array in more.pop("weights", {}).items()]
    # Old exporters list the weights among the inputs.
    listed = [value(w.name, w.data_type, list(w.dims)) for w in weights] if more.pop("listed", False) else []
    graph = onnx.helper.make_graph(nodes, "g", [*inputs, *listed], outputs, weights)
    settings = {"opset_imports": [onnx.helper.make_opsetid("", more.pop("opset", 17))], "ir_version": 9} | more
    onnx.save(onnx.helper.make_model(graph, **settings), str(path))
    return path


def classifier(path: Path, *, rows: Any = "batch", **more: Any) -> Path:
    """Scores of three classes from four numbers."""
    weights = {"w": RNG.normal(size=(4, 3)).astype(np.float32), "b": np.zeros(3, np.float32)}
    nodes = [node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"], ["s"]), node("Softmax", ["s"], ["y"], axis=1)]
    ends = [value("x", FLOAT, [rows, 4])], [value("y", FLOAT, [rows, 3])]
    return save(path, nodes, *ends, weights=weights, **more)


def encoder(path: Path) -> Path:
    """As sentence encoders are: token ids, a mask, types, and vectors."""
    weights = {
        "words": RNG.normal(size=(50, 8)).astype(np.float32),
        "types": RNG.normal(size=(2, 8)).astype(np.float32),
        "one": np.array([1], np.int64),
        "two": np.array([2], np.int64),
    }
    nodes = [
        node("Gather", ["words", "input_ids"], ["a"]),
        node("Cast", ["token_type_ids"], ["cast"], to=onnx.TensorProto.INT32),
        node("Gather", ["types", "cast"], ["b"]),
        node("Add", ["a", "b"], ["c"]),
        node("Cast", ["attention_mask"], ["m"], to=FLOAT),
        node("Unsqueeze", ["m", "two"], ["n"]),
        node("Mul", ["c", "n"], ["d"]),
        node("ReduceSum", ["d", "one"], ["vector"], keepdims=0),
    ]
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [value(name, INT64, ["batch", "sequence"]) for name in names]
    return save(path, nodes, inputs, [value("vector", FLOAT, ["batch", 8])], weights=weights)


def recurrent(path: Path) -> Path:
    """A state whose second axis counts rows, and a rate that has to be one of two."""
    weights = {"rate": np.array(16000, np.int64), "bad": np.array([3, 3, 3, 3, 3], np.int64)}
    right = onnx.helper.make_graph([node("Add", ["x", "s0"], ["r"])], "right", [], [value("r", FLOAT, None)])
    wrong = onnx.helper.make_graph([node("Reshape", ["x", "bad"], ["w"])], "wrong", [], [value("w", FLOAT, None)])
    nodes = [
        node("Equal", ["sr", "rate"], ["known"]),
        node("Gather", ["state", "zero"], ["s"], axis=0),
        node("Identity", ["s"], ["s0"]),
        node("If", ["known"], ["y"], then_branch=right, else_branch=wrong),
        node("Add", ["state", "state"], ["stateN"]),
    ]
    inputs = [value("x", FLOAT, ["n", 3]), value("state", FLOAT, [2, "n", 3]), value("sr", INT64, [])]
    outputs = [value("y", FLOAT, ["n", 3]), value("stateN", FLOAT, [2, "n", 3])]
    return save(path, nodes, inputs, outputs, weights=weights | {"zero": np.array(0, np.int64)})


def made(tmp_path: Path, file: Path, **more: Any) -> tuple[Any, Path]:
    folder = tmp_path / "package"
    return init(file, into=folder, **{"name": "made", **more}), folder


def test_a_classifier_is_described_and_proven(tmp_path: Path) -> None:
    found, folder = made(tmp_path, classifier(tmp_path / "c.onnx"))
    package = load(folder)
    assert package.inputs == (TensorSpec(name="x", dtype="FP32", shape=(-1, 4)),)
    assert package.outputs == (TensorSpec(name="y", dtype="FP32", shape=(-1, 3)),)
    assert package.batching.max_batch == 32 and found.opset == 17
    assert sorted(path.name for path in folder.iterdir()) == ["c.onnx", "model.toml", "warmup.npz"]
    inputs, outputs = read_warmup(folder / "warmup.npz")
    assert inputs["x"].shape == (2, 4) and outputs["y"].shape == (2, 3)
    assert check(folder, tmp_path / "cache").proven == ("fp32",)
    assert found.hints == ("if the 3 values of 'y' are scores of classes, name them: labels = \"labels.txt\"",)


def test_what_rounds_could_train_is_written_down_for_whoever_wants_it(tmp_path: Path) -> None:
    _, folder = made(tmp_path, classifier(tmp_path / "c.onnx"))
    text = (folder / MANIFEST_FILE).read_text("utf-8")
    assert load(folder).training is None
    begin = text.index("# [training]")
    wanted = text[:begin] + text[begin:].replace("# ", "")
    (folder / MANIFEST_FILE).write_text(wanted, "utf-8")
    (folder / "training.py").write_text("def train(arrays, data, settings): ...\n", "utf-8")
    training = load(folder).training
    assert training and training.parameters == read(folder / "c.onnx").parameters != ()
    checked = check(folder, tmp_path)
    assert checked.trainable == parameters.check(folder / "c.onnx", training.parameters) > 0
    assert [file.title for file in checked.artifact.manifest.workshop] == ["training.py"]


def test_it_is_the_same_each_time(tmp_path: Path) -> None:
    file = classifier(tmp_path / "c.onnx")
    first = init(file, name="made", into=tmp_path / "a")
    init(file, name="made", into=tmp_path / "b")
    for name in first.files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_publishing_waits_for_licence_and_credit(tmp_path: Path) -> None:
    _, folder = made(tmp_path, classifier(tmp_path / "c.onnx"))
    with pytest.raises(PackageError, match="fill in `licence` and `credit` before it is published"):
        build(folder, tmp_path)
    text = (folder / MANIFEST_FILE).read_text("utf-8")
    filled = "\n".join(
        line.partition(" = ")[0] + ' = "MIT"' if "FILL IN:" in line else line for line in text.split("\n")
    )
    (folder / MANIFEST_FILE).write_text(filled, "utf-8")
    assert build(folder, tmp_path).package.licence == "MIT"


def test_weights_among_the_inputs_are_no_inputs(tmp_path: Path) -> None:
    _, folder = made(tmp_path, classifier(tmp_path / "c.onnx", listed=True))
    assert [spec.name for spec in load(folder).inputs] == ["x"]
    assert check(folder, tmp_path).proven == ("fp32",)


def test_indices_stay_within_their_tables(tmp_path: Path) -> None:
    file = encoder(tmp_path / "e.onnx")
    assert read(file).tables == {"input_ids": 50, "token_type_ids": 2}
    _, folder = made(tmp_path, file)
    inputs, _ = read_warmup(folder / "warmup.npz")
    assert inputs["input_ids"].max() > 2 and inputs["input_ids"].max() < 50
    assert inputs["token_type_ids"].max() <= 1 and inputs["attention_mask"].min() == 1
    package = load(folder)
    assert package.batching.max_batch == 32
    # Requests of other lengths than their masks would be refused by the node, not by the graph.
    assert {spec.axes for spec in package.inputs} == {("", "sequence")} and package.outputs[0].axes == ()
    assert check(folder, tmp_path).proven == ("fp32",)


def test_a_row_axis_that_is_not_the_first_and_values_that_are_compared(tmp_path: Path) -> None:
    found, folder = made(tmp_path, recurrent(tmp_path / "r.onnx"))
    package = load(folder)
    assert [spec.batch_axis for spec in package.inputs] == [0, 1, -1]
    assert [spec.batch_axis for spec in package.outputs] == [0, 1]
    inputs, _ = read_warmup(folder / "warmup.npz")
    assert inputs["sr"] == 16000 and inputs["state"].shape == (2, 2, 3)
    assert "output 'stateN' looks like the next 'state': if it is, see [sequence]" in found.hints


def test_texts(tmp_path: Path) -> None:
    nodes = [node("Identity", ["x"], ["y"])]
    file = save(tmp_path / "t.onnx", nodes, [value("x", STRING, ["n"])], [value("y", STRING, ["n"])])
    _, folder = made(tmp_path, file)
    assert load(folder).outputs[0].dtype == "BYTES" and check(folder, tmp_path).proven == ("fp32",)


ALONE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a fixed dimension": (
        lambda path: classifier(path, rows=1),
        "the graph fixes the first dimension of 'x' at 1; export it with a dynamic one",
    ),
    "rows that see each other": (
        lambda path: save(
            path,
            [node("ReduceMax", ["x"], ["m"], axes=[0], keepdims=1), node("Sub", ["x", "m"], ["y"])],
            [value("x", FLOAT, ["n", 4])],
            [value("y", FLOAT, ["n", 4])],
        ),
        "output 'y' of a row depends on the other rows of the call",
    ),
    "an output without rows": (
        lambda path: save(
            path,
            [node("ReduceSum", ["x"], ["y"], keepdims=0)],
            [value("x", FLOAT, ["n", 4])],
            [value("y", FLOAT, [])],
        ),
        "output 'y' has no axis that counts rows",
    ),
    "an output that says it has one row": (
        lambda path: save(
            path,
            [node("Identity", ["x"], ["y"])],
            [value("x", FLOAT, ["n", 4])],
            [value("y", FLOAT, [1, 4])],
        ),
        "the graph says that output 'y' always has 1 rows",
    ),
    "dimensions that only seem free": (
        lambda path: save(
            path,
            [node("Reshape", ["x", "shape"], ["y"])],
            [value("x", FLOAT, ["n", 4])],
            [value("y", FLOAT, ["n", 4])],
            weights={"shape": np.array([1, 4], np.int64)},
        ),
        "the graph takes no other number of rows than 1",
    ),
}


@pytest.mark.parametrize(("make", "said"), ALONE.values(), ids=ALONE.keys())
def test_requests_that_cannot_share_a_call(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    found, folder = made(tmp_path, make(tmp_path / "m.onnx"))
    assert load(folder).batching.max_batch == 0
    assert said in found.hints[0] and said in (folder / MANIFEST_FILE).read_text("utf-8")
    assert check(folder, tmp_path).proven == ("fp32",)


def test_tensors_in_another_file_come_along(tmp_path: Path) -> None:
    model = onnx.load(classifier(tmp_path / "c.onnx"))
    (tmp_path / "big").mkdir()
    onnx.save(model, tmp_path / "big" / "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)
    found, folder = made(tmp_path, tmp_path / "big" / "big.onnx")
    assert found.files == ("big.data", "big.onnx", "model.toml", "warmup.npz")
    assert [data.name for data in load(folder).variants[0].external] == ["big.data"]
    checked = check(folder, tmp_path)
    assert checked.proven == ("fp32",)
    assert [file.title for file in checked.artifact.manifest.files][:2] == ["big.data", "fp32.onnx"]
    (tmp_path / "node").mkdir()
    for title, digest in ((file.title, file.digest) for file in checked.artifact.manifest.files):
        # As a node's store lays them out.
        (tmp_path / "node" / title).hardlink_to(checked.artifact.blobs[digest])
    inputs, outputs = read_warmup(folder / "warmup.npz")
    engine = OnnxEngines(threads=1)(tmp_path / "node", checked.artifact.package)
    np.testing.assert_allclose(engine.infer(inputs)["y"], outputs["y"], rtol=1e-3)
    engine.close()
    sizes = [(folder / name).stat().st_size for name in ("big.onnx", "big.data")]
    assert weights_bytes(tmp_path / "node", checked.artifact.package) == sum(sizes)
    text = (folder / MANIFEST_FILE).read_text("utf-8")
    (folder / MANIFEST_FILE).write_text(
        text.replace('[[variants.external]]\nname = "big.data"\nsource = { path = "big.data" }', "")
    )
    with pytest.raises(PackageError, match=r"the graph leaves tensors to 'big\.data'; name it in \[\[variants.ext"):
        check(folder, tmp_path)
    (tmp_path / "big" / "big.data").unlink()
    with pytest.raises(PackageError, match=r"keeps tensors in 'big\.data', which is not beside it: copy that file"):
        init(tmp_path / "big" / "big.onnx", into=tmp_path / "other", name="made")


def test_tensors_in_folders_are_gathered(tmp_path: Path) -> None:
    model = onnx.load(classifier(tmp_path / "c.onnx"))
    (tmp_path / "big" / "parts").mkdir(parents=True)
    settings = {"save_as_external_data": True, "location": "parts/w.bin", "size_threshold": 0}
    onnx.save(model, tmp_path / "big" / "big.onnx", **settings)
    found, folder = made(tmp_path, tmp_path / "big" / "big.onnx")
    assert "big.data" in found.files and check(folder, tmp_path).proven == ("fp32",)


def test_inputs_of_ones_own(tmp_path: Path) -> None:
    file = classifier(tmp_path / "c.onnx")
    mine = np.arange(4, dtype=np.float32).reshape(1, 4)
    np.savez(tmp_path / "mine.npz", **{"input.x": mine})
    _, folder = made(tmp_path, file, inputs=tmp_path / "mine.npz")
    inputs, _ = read_warmup(folder / "warmup.npz")
    assert inputs["x"].tolist() == mine.tolist() and load(folder).batching.max_batch == 32
    for name, array, said in (
        ("input.z", mine, r"has no array input\.x; it has input\.z"),
        ("input.x", mine.astype(np.float64), "input.x is float64, the graph takes FP32"),
        ("input.x", mine[:, :3], "the graph refuses the inputs given"),
    ):
        np.savez(tmp_path / "mine.npz", **{name: array})
        with pytest.raises(PackageError, match=said):
            init(file, into=tmp_path / "other", name="made", inputs=tmp_path / "mine.npz")
    assert not (tmp_path / "other").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    file = classifier(tmp_path / "c.onnx")
    _, folder = made(tmp_path, file)
    (folder / MANIFEST_FILE).write_text("mine")
    with pytest.raises(PackageError, match=r"has c\.onnx, model\.toml, warmup\.npz already; --force writes over"):
        made(tmp_path, file)
    assert (folder / MANIFEST_FILE).read_text() == "mine"
    made(tmp_path, file, force=True)
    assert load(folder).name == "made"


def test_a_package_around_a_file_that_lies_there_already(tmp_path: Path) -> None:
    folder = tmp_path / "comfort"
    folder.mkdir()
    file = classifier(folder / "model.onnx")
    before = file.stat().st_mtime_ns
    assert init(file, into=folder).package.name == "comfort"
    assert file.stat().st_mtime_ns == before and check(folder, tmp_path).proven == ("fp32",)


def test_no_name(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="give it a name with --name"):
        name_of("model", "export")
    with pytest.raises(PackageError, match="model 'Big_One' must be 1 to 63"):
        init(classifier(tmp_path / "c.onnx"), name="Big_One", into=tmp_path / "p")


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no ONNX": (lambda path: (path.write_bytes(b"\xff" * 99), path)[1], "is not an ONNX model"),
    "a pointer": (
        lambda path: (path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"), path)[1],
        r"is a Git LFS pointer instead of the file \(oid sha256:1, size 9\): run `git lfs pull`",
    ),
    "an empty file": (lambda path: (path.write_bytes(b""), path)[1], "is not an ONNX model, or one without nodes"),
    "an opset of the future": (lambda path: classifier(path, opset=99), "it uses opset 99 of ai.onnx, ONNX Runtime"),
    "an IR version of the future": (
        lambda path: classifier(path, ir_version=99),
        r"written in IR version 99, ONNX Runtime [\d.]+ reads \d+ at most: set its ir_version",
    ),
    "an operator that nobody knows": (
        lambda path: save(path, [node("Frobnicate", ["x"], ["y"])], [value("x", FLOAT, [1])], [value("y", FLOAT, [1])]),
        "Frobnicate",
    ),
    "an output that is no tensor": (
        lambda path: save(
            path,
            [node("SequenceConstruct", ["x"], ["y"])],
            [value("x", FLOAT, ["n"])],
            [onnx.helper.make_tensor_sequence_value_info("y", FLOAT, ["n"])],
        ),
        "output 'y' is sequence_type; the mesh carries tensors only",
    ),
    "elements that no request carries": (
        lambda path: save(
            path,
            [node("Cast", ["x"], ["y"], to=onnx.TensorProto.BFLOAT16)],
            [value("x", FLOAT, ["n"])],
            [value("y", onnx.TensorProto.BFLOAT16, ["n"])],
        ),
        "output 'y' has elements of type BFLOAT16; the mesh carries BOOL, BYTES",
    ),
    "random answers": (
        lambda path: save(
            path,
            [node("RandomNormalLike", ["x"], ["y"])],
            [value("x", FLOAT, ["n", 2])],
            [value("y", FLOAT, ["n", 2])],
        ),
        "output 'y' is another one each time, for the same inputs",
    ),
    "inputs that nobody guesses": (
        lambda path: save(
            path,
            [node("Reshape", ["x", "shape"], ["y"])],
            [value("x", FLOAT, ["n"])],
            [value("y", FLOAT, [7, 11])],
            weights={"shape": np.array([7, 11], np.int64)},
        ),
        r"takes none of the inputs that were made up .*--inputs FILE\.npz",
    ),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_a_file_that_makes_no_package(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    with pytest.raises(PackageError, match=said):
        init(make(tmp_path / "m.onnx"), name="made", into=tmp_path / "package")
    assert not (tmp_path / "package").exists()


DATA = os.environ.get("NEARMESH_TEST_DATA")
REAL = {
    "onnx_mnist/model.onnx": ("onnx-mnist", 0),
    "onnx_silero_vad/model.onnx": ("onnx-silero-vad", 32),
    "onnx_ultraface_rfb320/model.onnx": ("onnx-ultraface-rfb320", 0),
    "onnx_light_zoo/squeezenet.onnx": ("squeezenet", 0),
    "onnx_light_zoo/shufflenet.onnx": ("shufflenet", 0),
}


@pytest.mark.skipif(not DATA, reason="NEARMESH_TEST_DATA names no folder of models")
@pytest.mark.parametrize("file", REAL)
def test_real_models(tmp_path: Path, file: str) -> None:
    assert DATA is not None
    found = init(Path(DATA) / file, into=tmp_path / "package")
    name, most = REAL[file]
    assert (found.package.name, found.package.batching.max_batch) == (name, most)
    assert check(tmp_path / "package", tmp_path).proven == ("fp32",)
