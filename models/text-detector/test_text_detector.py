"""The text-detector package: its warm-up, and pages on which we put the text ourselves."""

import numpy as np
import pytest
from nearmesh_agent.engines.factory import OnnxEngines
from nearmesh_agent.serving.agreement import agrees

from nearmesh.devmesh.samples import WrongAnswer, text_detector_sample
from nearmesh.devmesh.samples.text import PAGE


def test_warmup(warmup_matches):
    warmup_matches()


@pytest.mark.parametrize(("height", "width"), [(384, 512), (480, 640), (256, 448)])
def test_every_line_is_found_at_its_place(run, height, width):
    sample = text_detector_sample(height, width)
    assert sample.check(run(sample.inputs)).startswith(f"{len(PAGE)} lines of text at y = ")


def test_the_request_is_several_megabytes():
    assert text_detector_sample().inputs["x"].nbytes >= 2_300_000


def test_an_empty_page_has_no_text(run):
    with pytest.raises(WrongAnswer, match="expected 4 lines of text, found 0"):
        text_detector_sample().check(run({"x": np.ones((1, 3, 384, 512), np.float32)}))


def test_a_page_upside_down_is_a_wrong_answer(run):
    sample = text_detector_sample()
    page = np.ascontiguousarray(sample.inputs["x"][:, :, ::-1])
    with pytest.raises(WrongAnswer, match="expected a line of text in"):
        sample.check(run({"x": page}))


def test_a_rollout_tells_each_variant_from_other_answers(run, published, package):
    """By the online check: 8 bits are near enough, the map of the page upside down is not."""
    reference, page = OnnxEngines(variants={"": "fp32"})(published, package), text_detector_sample().inputs["x"]
    standing = reference.infer({"x": page})
    reference.close()
    assert agrees(standing, run({"x": page}), package)
    assert not agrees(standing, run({"x": np.ascontiguousarray(page[:, :, ::-1])}), package)
    assert not agrees(standing, {"sigmoid_0.tmp_0": np.zeros_like(standing["sigmoid_0.tmp_0"])}, package)
