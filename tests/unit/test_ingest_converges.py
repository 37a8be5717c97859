"""Whatever happened to the files and to imports before, one that ends leaves in a collection what a first one would."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from nearmesh.errors import MeshError
from nearmesh.ingest.files import find
from nearmesh.ingest.importer import Wish, run
from nearmesh.ingest.plan import Tally
from nearmesh.ingest.sources import Rules
from nearmesh.ingest.split import Sizes
from tests.fake_vectors import FakeTarget

TEXTS = st.sampled_from(["", "Short.", "One sentence. " * 12, "Another one, longer. " * 30])
RECORDS = st.dictionaries(st.sampled_from("abc"), TEXTS, max_size=3)
# What a folder holds, by name; a table of records or a text.
FOLDERS = st.fixed_dictionaries(
    {}, optional={"a.txt": TEXTS, "deep/b.md": TEXTS, "c.jsonl": RECORDS, "deep/d.jsonl": RECORDS}
)
# After how many rows the node dies; at the latest the last import ends.
STEPS = st.lists(st.tuples(FOLDERS, st.integers(0, 12)), max_size=5)


def lay(folder: Path, wanted: dict[str, str | dict[str, str]]) -> None:
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.unlink()
    # Never empty, which would be taken for a folder that is not mounted.
    (folder / "always.txt").write_text("Always.")
    for name, content in wanted.items():
        (folder / name).parent.mkdir(exist_ok=True)
        lines = (
            [json.dumps({"id": key, "text": text}) for key, text in content.items()] if "json" in name else [content]
        )
        (folder / name).write_text("\n".join(map(str, lines)))


def bring(target: FakeTarget, folder: Path) -> Tally:
    return asyncio.run(run(target, find([folder]), Wish(rules=Rules(sizes=Sizes(100, 20)))))


@settings(deadline=None, max_examples=25)
@given(STEPS, FOLDERS)
def test_imports_that_broke_off_leave_nothing_behind(
    steps: list[tuple[dict[str, str | dict[str, str]], int]], last: dict[str, str | dict[str, str]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, target = Path(name) / "docs", FakeTarget()
        folder.mkdir()
        for wanted, writes in steps:
            lay(folder, wanted)
            target.writes_left = writes
            try:
                bring(target, folder)
            except MeshError:
                pass
        lay(folder, last)
        target.writes_left = 10**9
        assert bring(target, folder).problem_count == 0
        fresh = FakeTarget()
        bring(fresh, folder)
        assert target.texts == fresh.texts
        again = bring(target, folder)
        assert again.rows_written == again.rows_deleted == again.changed == again.new == 0
