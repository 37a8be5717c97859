"""Processes that find no PyTorch, where nothing needs it: at each site that trains, it takes seconds to be imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def without_torch(folder: Path) -> Iterator[None]:
    """For those that are started meanwhile; a module in `folder`, which this makes, stands in its place."""
    folder.mkdir(parents=True)
    (folder / "torch.py").write_text('raise ImportError("no recipe of this test needs it")\n')
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
