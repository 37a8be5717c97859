"""Where a version comes from: what is written is read, and nothing else is taken for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nearmesh.errors import PackageError
from nearmesh.lineage import LINEAGE_FILE, Lineage, Parent, Privacy, SiteLineage

LINEAGE = Lineage(
    run="r7",
    round=5,
    parent=Parent(version="1.0", digest="sha256:" + "a" * 64),
    strategy="fedprox",
    strategy_options={"mu": 0.1},
    settings={"epochs": 2, "augment": True},
    metric="accuracy",
    sites=(
        SiteLineage(site="site-1", rounds=5, examples=300, metrics_before={"accuracy": 0.7}, metrics={"accuracy": 0.9}),
        SiteLineage(site="site-2", rounds=4, examples=100),
    ),
    metrics_before={"accuracy": 0.7},
    metrics={"accuracy": 0.9},
    privacy=Privacy(epsilon=3.2, delta=1e-5, noise_multiplier=0.5, clipping_norm=1.0),
    started_by="anna",
    started_at_s=1000.5,
)


@pytest.mark.parametrize("lineage", [LINEAGE, replace(LINEAGE, privacy=None, sites=())])
def test_what_is_written_is_read(lineage: Lineage, tmp_path: Path) -> None:
    (tmp_path / LINEAGE_FILE).write_bytes(lineage.to_bytes())
    assert Lineage.read(tmp_path) == lineage
    assert Lineage.from_bytes(lineage.to_bytes()).to_bytes() == lineage.to_bytes()
    assert LINEAGE.examples == 400


def test_a_version_that_no_run_made_has_none(tmp_path: Path) -> None:
    assert Lineage.read(tmp_path) is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[]", "expected an object, got list"),
        (b"{", "lineage.json: "),
        (LINEAGE.to_bytes().replace(b'"run"', b'"runs"'), "unknown key 'runs'; did you mean 'run'?"),
        (b" " * 2**20 + b"{}", "above the limit"),
    ],
)
def test_what_is_none_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(PackageError, match=said.replace("?", r"\?")):
        Lineage.from_bytes(data)
