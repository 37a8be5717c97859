"""For the tests beside each package: its model in ONNX Runtime, from the same cache as the command line uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import InferenceSession

from nearmesh.package import Package, load
from nearmesh.packaging.sources import default_cache, fetch
from nearmesh.packaging.warmup import read_warmup

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], dict[str, np.ndarray]]

# Committed with the package.
MAX_WARMUP_BYTES = 100_000


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    return request.path.parent


@pytest.fixture(scope="module")
def package(folder: Path) -> Package:
    return load(folder)


@pytest.fixture(scope="module")
def run(package: Package, folder: Path) -> Run:
    """Answers inputs by name with outputs by name."""
    weights = fetch(package.variants[0].source, folder, default_cache())
    session = InferenceSession(weights.read_bytes(), providers=["CPUExecutionProvider"])
    names = [spec.name for spec in package.outputs]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


@pytest.fixture
def warmup_matches(package: Package, folder: Path, run: Run) -> Callable[[], None]:
    """Runs the package's warm-up as a node does."""

    def check() -> None:
        (warmup,) = package.warmup
        path = folder / warmup.file
        assert path.stat().st_size < MAX_WARMUP_BYTES
        inputs, expected = read_warmup(path)
        assert expected.keys() == {spec.name for spec in package.outputs}
        answers = run(inputs)
        for name, array in expected.items():
            np.testing.assert_allclose(answers[name], array, rtol=warmup.rtol, atol=warmup.atol, err_msg=name)

    return check
