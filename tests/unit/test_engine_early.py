"""What a node refuses before it has fetched a package's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from nearmesh_agent.engines.choice import CPU, CUDA
from nearmesh_agent.engines.early import check

from nearmesh.errors import PackageError
from tests.integration.adding_model import MODEL_TOML

TOML = MODEL_TOML.format(name="m", version="1", add=1)
CODE = TOML.replace("variants = [", "# [") + '\n[[steps]]\nname = "s"\npython = "code.py:f"\n'


def files(folder: Path, text: str) -> dict[str, Path]:
    (folder / "model.toml").write_text(text)
    return {"model.toml": folder / "model.toml"}


def test_a_package_that_runs_here_is_fetched(tmp_path: Path) -> None:
    check(files(tmp_path, TOML), providers=(CPU,), allow_python=False)
    check(files(tmp_path, CODE), providers=(CPU,), allow_python=True)
    check({}, providers=(CPU,), allow_python=False)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (CODE, "allow_python"),
        (TOML.replace('name = "fp32"', f'name = "fp32", hardware = "{CUDA}"'), "no variant of 'm' runs here"),
        (TOML.replace("warmup", "warm_up"), "warm_up"),
        ("nothing", "model.toml"),
    ],
)
def test_what_this_node_cannot_run_is_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(PackageError, match=why):
        check(files(tmp_path, text), providers=(CPU,), allow_python=False)
