"""For the tests beside each package: each of its variants as a node runs it, from the command line's cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from nearmesh_agent.engines.onnx.session import Session
from nearmesh_agent.serving.proof import allowance

from nearmesh.package import Package, load
from nearmesh.packaging.quantize import make
from nearmesh.packaging.release import release
from nearmesh.packaging.sources import default_cache, fetch
from nearmesh.packaging.warmup import read_warmup
from nearmesh.report import REPORT_FILE, Report

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], dict[str, np.ndarray]]

# Committed with the package.
MAX_WARMUP_BYTES = 100_000


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What asks the model is run on every variant of it."""
    if "variant" in metafunc.fixturenames:
        package = load(metafunc.definition.path.parent)
        names = [variant.name for variant in package.variants] + [made.name for made in package.made_variants]
        metafunc.parametrize("variant", names, scope="module")


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    return request.path.parent


@pytest.fixture(scope="module")
def package(folder: Path) -> Package:
    return load(folder)


@pytest.fixture(scope="module")
def report(folder: Path) -> Report | None:
    """What publishing measures: every variant has passed its gate, or there is no artifact."""
    artifact = release(folder, default_cache())
    found = [file for file in artifact.manifest.files if file.title == REPORT_FILE]
    if not found:
        return None
    content = artifact.blobs[found[0].digest]
    return Report.from_bytes(content if isinstance(content, bytes) else content.read_bytes())


@pytest.fixture(scope="module")
def run(package: Package, folder: Path, variant: str) -> Run:
    """Answers inputs by name with outputs by name."""
    given = {known.name: known for known in package.variants}
    if variant in given:
        path = fetch(given[variant].source, folder, default_cache())
    else:
        (made,) = make(package, folder, default_cache(), only=[variant])
        assert made.path
        path = made.path
    session = Session.open(path, ["CPUExecutionProvider"])
    names = [spec.name for spec in package.outputs]
    return lambda inputs: session.run(names, inputs)


@pytest.fixture
def warmup_matches(package: Package, folder: Path, run: Run, variant: str, report: Report | None) -> Callable[[], None]:
    """Runs the package's warm-up as a node does."""

    def check() -> None:
        (warmup,) = package.warmup
        path = folder / warmup.file
        assert path.stat().st_size < MAX_WARMUP_BYTES
        inputs, expected = read_warmup(path)
        assert expected.keys() == {spec.name for spec in package.outputs}
        answers, allowed = run(inputs), allowance(report, variant)
        for name, array in expected.items():
            atol = warmup.atol + allowed.get(name, 0.0)
            np.testing.assert_allclose(answers[name], array, rtol=warmup.rtol, atol=atol, err_msg=name)

    return check
