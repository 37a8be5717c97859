"""For the tests beside each package: what would be published, laid out and run as by a node, variant by variant."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from nearmesh_agent.engines.base import Engine
from nearmesh_agent.engines.factory import OnnxEngines
from nearmesh_agent.serving.proof import prove

from nearmesh.package import Package, load
from nearmesh.packaging.build import Artifact
from nearmesh.packaging.layout import lay_out
from nearmesh.packaging.release import release
from nearmesh.packaging.sources import default_cache
from nearmesh.packaging.warmup import read_warmup
from nearmesh.report import Measured, Report

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], dict[str, np.ndarray]]

# Committed with the package.
MAX_WARMUP_BYTES = 100_000


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What asks the model is run on every variant of it; those of a pipeline's steps are called STEP:NAME."""
    if "variant" in metafunc.fixturenames:
        package = load(metafunc.definition.path.parent)
        variants = (*package.variants, *package.made_variants)
        labels = [f"{v.step}:{v.name}" if v.step else v.name for v in variants]
        metafunc.parametrize("variant", labels, scope="module")


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    return request.path.parent


@pytest.fixture(scope="module")
def package(folder: Path) -> Package:
    return load(folder)


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Artifact:
    """As it would be published: every variant has passed its gate, or there is none."""
    return release(folder, default_cache())


@pytest.fixture(scope="module")
def published(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the version on a node."""
    place = tmp_path_factory.mktemp(artifact.package.name)
    lay_out({file.title: artifact.blobs[file.digest] for file in artifact.manifest.files}, place)
    return place


@pytest.fixture(scope="module")
def engine(published: Path, package: Package, variant: str) -> Iterator[Engine]:
    """The variant; in a pipeline's other steps the references."""
    step, _, name = variant.rpartition(":")
    references = {other.step: package.reference(other.step).name for other in package.variants}
    loaded = OnnxEngines(variants=references | {step: name})(published, package)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def run(engine: Engine) -> Run:
    """Answers inputs by name with outputs by name."""
    return engine.infer


@pytest.fixture(scope="module")
def measured(published: Path, variant: str) -> Measured:
    """What publishing found out about the variant."""
    report = Report.read(published)
    assert report, "the package has an evaluation"
    (found,) = [each for each in report.variants if each.label == variant]
    return found


@pytest.fixture
def script(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Gives a script of the package by its name, which imports what lies beside it."""
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "").parent == folder and not Path(
            str(module.__file__)
        ).name.startswith("test_"):
            del sys.modules[name]


@pytest.fixture
def warmup_matches(package: Package, folder: Path, published: Path, engine: Engine) -> Callable[[], None]:
    """Runs the package's warm-up as a node does."""

    def check() -> None:
        (warmup,) = package.warmup
        path = folder / warmup.file
        assert path.stat().st_size < MAX_WARMUP_BYTES
        assert read_warmup(path)[1].keys() == {spec.name for spec in package.outputs}
        prove(engine, published, package)

    return check
