"""Quantized variants, evaluation, gate, online check and sources: what may be said, and every mistake with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nearmesh.errors import InvalidInput, PackageError
from nearmesh.package import (
    MANIFEST_FILE,
    Evaluation,
    Gate,
    OnlineCheck,
    Package,
    Quantize,
    Source,
    Training,
    TrainingGate,
    Variant,
    load,
    parse,
)

# Line by line, so that a mistake's line can be told.
GOOD = """\
name = "digits"
version = "1"
description = "What digit an image shows"
licence = "MIT"
credit = "the project"

[[inputs]]
name = "image"
dtype = "FP32"
shape = [-1, 64]

[[outputs]]
name = "label"
dtype = "FP32"
shape = [-1, 10]

[[outputs]]
name = "text"
dtype = "BYTES"
shape = [-1]

[[variants]]
name = "fp32"
source = { path = "digits.onnx" }

[[warmup]]
file = "warmup.npz"

[[quantize]]
variant = "fp16"
kind = "fp16"
hardware = "CUDAExecutionProvider"

[[quantize]]
variant = "int8"
kind = "int8-static"
of = "fp32"
calibration = "calibration.npz"
skip = ["head"]

[[quantize]]
variant = "plan"
kind = "tensorrt"
of = "fp16"

[evaluation]
file = "evaluation.npz"
metric = "accuracy"
output = "label"

[gate]
largest_loss = 0.02
smallest_agreement = 0.95

[online_check]
output = "label"
agree = "argmax"
rtol = 0.1
atol = 0
smallest_agreement = 0.8

[training]
recipe = "training.py"
parameters = ["layer.weight", "layer.bias"]
variant = "fp32"
metric = "top1"
tolerance = 0.001

[training.settings]
epochs = 2
learning_rate = 0.05
augment = true

[training.gate]
largest_site_loss = 0.01
smallest_mean_gain = -0.5
largest_change = 2
"""


def read(text: str) -> Package:
    return parse(text, MANIFEST_FILE)


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_everything_that_may_be_said() -> None:
    package = read(GOOD)
    assert package.quantize == (
        Quantize(variant="fp16", kind="fp16", hardware="CUDAExecutionProvider"),
        Quantize(variant="int8", kind="int8-static", of="fp32", calibration="calibration.npz", skip=("head",)),
        Quantize(variant="plan", kind="tensorrt", of="fp16"),
    )
    assert package.evaluation == Evaluation(file="evaluation.npz", metric="accuracy", output="label")
    assert package.gate == Gate(largest_loss=0.02, smallest_agreement=0.95)
    assert package.online_check == OnlineCheck(output="label", rtol=0.1, atol=0.0, smallest_agreement=0.8)
    assert package.training == Training(
        recipe="training.py",
        parameters=("layer.weight", "layer.bias"),
        variant="fp32",
        metric="top1",
        tolerance=0.001,
        settings={"epochs": 2, "learning_rate": 0.05, "augment": True},
        gate=TrainingGate(largest_site_loss=0.01, smallest_mean_gain=-0.5, largest_change=2.0),
    )


def test_made_variants_are_variants() -> None:
    package = read(GOOD)
    assert package.made_variants == (
        Variant(name="fp16", source=Source(path="fp16.onnx"), hardware="CUDAExecutionProvider"),
        Variant(name="int8", source=Source(path="int8.onnx")),
        Variant(name="plan", source=Source(path="plan.onnx"), engine="tensorrt"),
    )
    assert [package.made_of(made) for made in package.quantize] == ["fp32", "fp32", "fp16"]
    assert package.reference().name == "fp32"


def test_what_nobody_says() -> None:
    package = read(GOOD[: GOOD.index("[[quantize]]")])
    assert (package.quantize, package.evaluation, package.online_check) == ((), None, None)
    assert package.gate == Gate(largest_loss=0.01, smallest_agreement=0.98)
    assert package.workshop_files == ()
    assert (package.training, package.trained, package.kept_files) == (None, None, ())
    assert OnlineCheck() == OnlineCheck(output=None, agree="argmax", rtol=1e-2, atol=1e-2, smallest_agreement=0.9)


def test_nodes_get_what_they_need_and_no_more() -> None:
    package = read(GOOD.replace('metric = "accuracy"', 'metric = "judge.py:score"'))
    assert package.files == ("warmup.npz",)
    assert package.workshop_files == ("calibration.npz", "evaluation.npz", "judge.py")
    assert package.kept_files == ("training.py", "calibration.npz", "evaluation.npz", "judge.py")


def test_the_trained_variant_is_the_reference_unless_another_one_is_named() -> None:
    package = read(GOOD.replace('variant = "fp32"\nmetric', "metric"))
    assert package.training == Training(**{**_fields(read(GOOD).training), "variant": ""})
    assert package.trained == package.reference() == read(GOOD).trained


def _fields(training: Training | None) -> dict[str, Any]:
    assert training
    return {name: getattr(training, name) for name in Training.__dataclass_fields__}


MISTAKES = [
    ('kind = "fp16"', 'kind = "fp8"', "quantize[0].kind: 'fp8' is not one of 'fp16', 'int8-dynamic'"),
    ('of = "fp32"', 'of = "fp64"', "quantize 'int8' is made of 'fp64'; the variants before it are ['fp16', 'fp32']"),
    ('of = "fp16"', 'of = "plan"', "'plan' cannot be made from itself"),
    ('variant = "plan"', 'variant = "fp32"', "quantize 'fp32': there is a variant of that name already"),
    ('kind = "tensorrt"', 'kind = "tensorrt"\nstep = "s"', "quantize 'plan' is for the step 's'; graphs: ['']"),
    (
        'metric = "accuracy"',
        'metric = "acuracy"',
        "evaluation.metric is 'acuracy'; expected accuracy, cosine, exact or",
    ),
    ('metric = "accuracy"\noutput = "label"', 'metric = "cosine"\noutput = "text"', "'text' is BYTES [-1]"),
    ("smallest_agreement = 0.95", "smallest_agreement = 95", "gate.smallest_agreement is a share, 0 to 1, got 95"),
    ("largest_loss = 0.02", "largest_loss = -0.02", "gate.largest_loss must be 0 or more, got -0.02"),
    ('agree = "argmax"', 'agree = "equal"', "online_check.agree: 'equal' is not one of 'argmax', 'close'"),
    ("rtol = 0.1", "rtol = -0.1", "online_check.rtol must be 0 or more, got -0.1"),
    ("smallest_agreement = 0.8", "smallest_agreement = 1.1", "online_check.smallest_agreement is a share"),
    ("shape = [-1, 64]", "shape = [-1, 64.0]", "inputs[0].shape[1]: expected int, got 64.0"),
    (
        '"digits.onnx" }',
        '"digits.onnx" }\nengine = "tensorrt"\nexternal = [{ name = "d.bin", source = { path = "d.bin" } }]',
        "variants[0]: variant 'fp32': a tensorrt engine is built from one file, without `external` ones",
    ),
    ('file = "evaluation.npz"', 'file = "../evaluation.npz"', "'../evaluation.npz': the package's files lie beside"),
    ('file = "evaluation.npz"', 'file = "manifest.json"', "'manifest.json': nodes keep a file of that name"),
    ('calibration = "calibration.npz"', 'calibration = "a/b.npz"', "'a/b.npz': the package's files lie beside"),
    ('recipe = "training.py"', 'recipe = "training"', "training.recipe is 'training'; expected a Python file"),
    ('recipe = "training.py"', 'recipe = "a/b.py"', "'a/b.py': the package's files lie beside"),
    ('parameters = ["layer.weight", "layer.bias"]', "parameters = []", "training.parameters is empty; name the initi"),
    ('"layer.bias"]', '"layer.weight"]', "training.parameters: 'layer.weight' is named twice"),
    ('"layer.bias"]', '""]', "training.parameters: a name is ''"),
    (
        '"layer.bias"]\nvariant = "fp32"',
        '"layer.bias"]\nvariant = "fp64"',
        "training.variant is 'fp64'; given are 'fp32'",
    ),
    (
        '"layer.bias"]\nvariant = "fp32"',
        '"layer.bias"]\nvariant = "int8"',
        "is 'int8'; it is made, and rounds train what is given",
    ),
    ('"layer.bias"]\nvariant = "fp32"', '"layer.bias"]\nstep = "s"', "training.step is 's'; graphs: ['']"),
    ('metric = "top1"', 'metric = ""', "training.metric is empty"),
    ("tolerance = 0.001", "tolerance = 0", "training.tolerance must be above 0, got 0"),
    ("epochs = 2", "epochs = [2]", "training.settings.epochs is [2]; expected a text, a finite number, true or false"),
    ("epochs = 2", "epochs = nan", "training.settings.epochs is nan; expected a text, a finite number"),
    ("largest_site_loss = 0.01", "largest_site_loss = -1", "training.gate.largest_site_loss must be 0 or more, got -1"),
    ("largest_change = 2", "largest_change = 0", "training.gate.largest_change must be above 0, got 0"),
    (
        'licence = "MIT"',
        'licence = "MIT"\nassets = [{ name = "t.json", source = { path = "t.json" } }]',
        "[[assets]] are for functions, and no step has one (`python`)",
    ),
]


@pytest.mark.parametrize(("right", "wrong", "said"), MISTAKES)
def test_a_mistake_is_named_with_its_line(right: str, wrong: str, said: str) -> None:
    text = GOOD.replace(right, wrong, 1)
    assert text != GOOD
    with pytest.raises(PackageError) as caught:
        read(text)
    # The mistake is in the last line of what was put in.
    line = line_of(text, wrong) + wrong.count("\n")
    assert caught.value.message.startswith(f"model.toml:{line}: ") and said in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("right", "wrong", "at", "said"),
    [
        # The table is the place of what it lacks.
        ('calibration = "calibration.npz"\n', "", 'kind = "int8-static"', "'int8' is int8-static, which needs `calib"),
        ('output = "label"\n\n[gate]', 'output = "labels"\n\n[gate]', 'output = "labels"', "the outputs are 'label',"),
        ('credit = "the project"\n', "", "", "model.toml: key 'credit' is missing"),
        ('dtype = "BYTES"\n', "", '[[outputs]]\nname = "text"', "outputs[1]: key 'dtype' is missing"),
        ('licence = "MIT"', 'license = "MIT"', 'license = "MIT"', "unknown key 'license'; did you mean 'licence'?"),
        ('name = "digits"', "name = digits", "name = digits", "Invalid value (column 8)"),
    ],
)
def test_the_line_of_what_is_not_there(right: str, wrong: str, at: str, said: str) -> None:
    text = GOOD.replace(right, wrong, 1)
    with pytest.raises(PackageError) as caught:
        read(text)
    assert said in caught.value.message
    if at:
        assert caught.value.message.startswith(f"model.toml:{line_of(text, at)}: ")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace('"MIT"', "1").replace("[-1, 64]", "[-2, 64]").replace('"fp16"\nhard', '"fp17"\nhard')
    (tmp_path / MANIFEST_FILE).write_text(text, "utf-8")
    with pytest.raises(PackageError) as caught:
        load(tmp_path)
    path = tmp_path / MANIFEST_FILE
    assert caught.value.message.split("\n") == [
        f"{path}:4: licence: expected str, got 1",
        f"{path}:10: inputs[0]: shape [-2, 64] of 'image': a dimension is 0 or more, or -1 for any",
        f"{path}:31: quantize[0].kind: 'fp17' is not one of 'fp16', 'int8-dynamic', 'int8-static', 'tensorrt', "
        "'tensorrt-rtx'",
    ]


def test_all_mistakes_between_sections_are_told_at_once() -> None:
    text = GOOD.replace('"digits"', '"Digits"').replace('of = "fp32"', 'of = "fp64"').replace("[-1, 10]", "[]")
    with pytest.raises(PackageError) as caught:
        read(text)
    lines = [line.split(":")[1] for line in caught.value.message.split("\n")]
    assert lines == [
        "1",
        str(line_of(text, 'of = "fp64"')),
        *(
            str(line_of(text, section) + text[text.index(section) :].split("output = ")[0].count("\n"))
            for section in ("[evaluation]", "[online_check]")
        ),
    ]


def test_made_from_code_the_mistakes_are_one_error() -> None:
    with pytest.raises(InvalidInput, match=r"0 to 1, got 2"):
        Gate(smallest_agreement=2)
    with pytest.raises(InvalidInput, match=r"largest_loss.*; gate.smallest_agreement"):
        Gate(largest_loss=-1, smallest_agreement=2)


SHA256, COMMIT = "0" * 64, "a" * 40


@pytest.mark.parametrize(
    "more",
    [
        {"path": "digits.onnx"},
        {"path": "digits.onnx", "sha256": SHA256},
        {"pypi": "digits", "version": "1.0", "file": "digits/a.onnx", "sha256": SHA256},
        {"hf": "owner/digits", "revision": COMMIT, "file": "onnx/model.onnx", "sha256": SHA256},
        {"hf": "digits", "revision": COMMIT, "file": "model.onnx", "sha256": SHA256},
        {"url": "https://example.org/a.onnx?raw=1", "sha256": SHA256},
        {"url": "http://127.0.0.1:8000/a.onnx", "sha256": SHA256},
        {"oci": f"registry.example.org:5000/m/digits@sha256:{SHA256}", "file": "a.onnx", "sha256": SHA256},
    ],
)
def test_sources(more: dict[str, str]) -> None:
    assert Source(**more).kind == next(iter(more))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "a source is just one of `path`"),
        ({"path": "a", "url": "https://h/a", "sha256": SHA256}, "it has path and url"),
        ({"url": "https://h/a"}, "needs `sha256`"),
        ({"url": "http://example.org/a", "sha256": SHA256}, "expected https://HOST/PATH"),
        ({"url": "https:///a", "sha256": SHA256}, "expected https://HOST/PATH"),
        ({"url": "https://h/a b", "sha256": SHA256}, "expected https://HOST/PATH"),
        ({"url": "file:///etc/passwd", "sha256": SHA256}, "expected https://HOST/PATH"),
        ({"hf": "o/m", "file": "f", "sha256": SHA256}, "needs `revision`"),
        ({"hf": "o/m", "revision": "main", "file": "f", "sha256": SHA256}, "a commit of 40 hex digits, since a branch"),
        ({"hf": "o/m/n", "revision": COMMIT, "file": "f", "sha256": SHA256}, "expected OWNER/NAME"),
        ({"hf": "o/m", "revision": COMMIT, "file": "../f", "sha256": SHA256}, "a path within the source"),
        ({"oci": "host/name:latest", "file": "f", "sha256": SHA256}, "expected HOST/NAME@sha256:DIGEST"),
        ({"pypi": "p", "version": "1", "file": "f", "sha256": "ABC"}, "64 lower-case hex"),
        ({"path": "a", "revision": COMMIT}, "source.revision goes with hf, not with path"),
        ({"url": "https://h/a", "sha256": SHA256, "version": "1"}, "source.version goes with pypi, not with url"),
    ],
)
def test_sources_that_are_none(more: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Source(**more)
    assert said in caught.value.message


def test_what_an_author_still_has_to_fill_in() -> None:
    assert read(GOOD).unfilled == ()
    assert read(GOOD.replace('"MIT"', '"FILL IN: an SPDX expression"')).unfilled == ("licence",)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            '[[variants]]\nname = "half"\nsource = { path = "half.onnx" }\n',
            "training: variant 'half' is given, and would keep its parameters when 'fp32' has been trained",
        ),
        (
            '[[variants.external]]\nname = "w.bin"\nsource = { path = "w.bin" }\n',
            "training: 'fp32' has to be one ONNX file for ONNX Runtime",
        ),
        (
            '[[sequence.state]]\ninput = "image"\noutput = "label"\nshape = [1, 64]\n',
            "training: rounds do not train a package with [sequence] yet",
        ),
    ],
)
def test_what_is_trained_is_one_file_and_everything_else_is_made_of_it(more: str, said: str) -> None:
    with pytest.raises(PackageError) as caught:
        read(GOOD.replace("[[warmup]]", f"{more}\n[[warmup]]"))
    assert said in caught.value.message
