"""The committed packages, built as they are published, answer every sample right in ONNX Runtime."""

import subprocess
import sys
import time

import numpy as np
import pytest
from onnxruntime import InferenceSession

from nearmesh.devmesh import samples
from nearmesh.packaging.build import Artifact, build
from nearmesh.packaging.sources import default_cache

MODELS = ("file-type", "text-detector", "text-recognizer", "voice-activity")

SINGLES = [
    *samples.file_type_samples(),
    samples.text_detector_sample(),
    *samples.text_recognizer_samples(),
    samples.voice_activity_sample(),
]


@pytest.fixture(scope="module")
def artifacts() -> dict[str, Artifact]:
    return {name: build(samples.CHECKOUT / "models" / name, default_cache()) for name in MODELS}


@pytest.fixture(scope="module")
def sessions(artifacts):
    """Sessions over the published weights, found by the variant's file name as a node finds them."""
    found = {}
    for name, artifact in artifacts.items():
        title = artifact.package.variants[0].file
        (layer,) = (layer for layer in artifact.manifest.files if layer.title == title)
        found[name] = InferenceSession(str(artifact.blobs[layer.digest]), providers=["CPUExecutionProvider"])
    return found


def answer(session, inputs):
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_packages_build_alike_each_time(artifacts, name):
    again = build(samples.CHECKOUT / "models" / name)
    assert again.digest == artifacts[name].digest and again.manifest.model == name


def test_two_models_of_one_wheel_are_two_files(artifacts):
    assert artifacts["text-detector"].digest != artifacts["text-recognizer"].digest


@pytest.mark.parametrize("sample", SINGLES, ids=lambda sample: f"{sample.model}: {sample.name}")
def test_every_sample_is_answered_right(sessions, sample):
    assert sample.check(answer(sessions[sample.model], sample.inputs))


@pytest.mark.parametrize("sample", SINGLES, ids=lambda sample: f"{sample.model}: {sample.name}")
def test_every_sample_notices_a_wrong_answer(sessions, sample):
    right = answer(sessions[sample.model], sample.inputs)
    for wrong in (
        {name: np.zeros_like(array) for name, array in right.items()},
        {name: np.full_like(array, np.nan) for name, array in right.items()},
        {name: array[..., :-1] for name, array in right.items()},
        {},
    ):
        with pytest.raises(samples.WrongAnswer):
            sample.check(wrong)


def test_the_sequence_is_answered_right_and_needs_its_state(sessions):
    sequence = samples.voice_activity_sequence()
    session = sessions[sequence.model]
    state = nothing = np.zeros((2, 1, 128), np.float32)
    answers = []
    for call in sequence.calls:
        answers.append(answer(session, {**call, "state": state}))
        state = answers[-1]["stateN"]
    assert sequence.check(answers).startswith("silence ")
    forgetful = answer(session, {**sequence.calls[20], "state": nothing})
    assert abs(forgetful["output"] - answers[20]["output"]).max() > 0.05
    with pytest.raises(samples.WrongAnswer, match="expected 34 answers, got 33"):
        sequence.check(answers[:-1])


@pytest.mark.parametrize("sample", SINGLES, ids=lambda sample: f"{sample.model}: {sample.name}")
def test_samples_fit_the_package(artifacts, sample):
    specs = {spec.name: spec for spec in artifacts[sample.model].package.inputs}
    for name, array in sample.inputs.items():
        shape = specs[name].shape
        assert len(shape) == array.ndim and all(dim in (-1, size) for dim, size in zip(shape, array.shape, strict=True))


def test_samples_are_made_fast_and_without_the_runtime():
    code = (
        "import sys; from nearmesh.devmesh import samples as s; s.file_type_samples(); s.text_detector_sample(); "
        "s.text_recognizer_samples(); s.voice_activity_sample(); s.voice_activity_sequence(); "
        "assert not {'onnxruntime', 'onnx'} & set(sys.modules)"
    )
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    # About 0.5 s, most of it imports.
    assert time.monotonic() - begun < 10
