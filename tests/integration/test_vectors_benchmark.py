"""The benchmark of vectors, small, with a real agent and nobody beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.vectors.__main__ import main
from benchmarks.vectors.systems import OURS

for module in ("faiss", "pymilvus", "milvus_lite", "tantivy"):
    pytest.importorskip(module, reason="a node's vectors need the extra `vectors`")

pytestmark = pytest.mark.timeout(180)


def test_a_quick_run_measures_searches_and_starts_and_writes_its_page(tmp_path: Path) -> None:
    output = tmp_path / "vectors.json"
    assert main(["--quick", "--systems", OURS, "--rows", "1000", "--json", str(output)]) == 0
    found = json.loads(output.read_text())
    assert not found["skipped"], found["skipped"]
    (filled,) = found["filled"]
    assert filled["rows"] == 1000 and filled["recall"] == filled["filtered_recall"] == 1.0, filled
    assert {(cell["callers"], cell["filtered"]) for cell in found["cells"]} == {
        (callers, filtered) for callers in (1, 4) for filtered in (False, True)
    }
    assert all(cell["calls"] for cell in found["cells"])
    assert [start["killed"] for start in found["starts"]] == [False, True]
    assert "## What is promised" in output.with_suffix(".md").read_text()
