"""What the index of vectors does by itself: writing, searches, what a filter costs, recall, a restart.

    python -m benchmarks.vector_index

One process, without the service before it and the journal beside it. Rows have 384 dimensions unless told otherwise and
lie in topics (see `benchmarks/clustered.py`); recall is the share of the true nearest that a search finds. Writes
vector_index.json and vector_index.md into benchmarks/results. Under a minute for 100,000 rows on two cores.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from nearmesh_agent.vectors import filters
from nearmesh_agent.vectors.index import MemoryIndex
from nearmesh_agent.vectors.model import FieldType, Metric, Row, Table, Vector, Where, Write
from numpy.typing import NDArray

from benchmarks.clustered import corpus
from benchmarks.machine import commit, machine
from benchmarks.table import Table as Page
from benchmarks.table import markdown
from nearmesh.quantiles import quantile

RESULTS = Path(__file__).parent / "results"
FIELDS = {"tenth": FieldType.INT, "hundredth": FieldType.STRING, "topic": FieldType.STRING}
# As a service writes them: some hundred at a time.
BATCH = 500
QUERIES = 400
# Shares of the rows that the filters take. A text's neighbours share none of the first two fields with it more than
# others do; "near" is the half-space around one text, which is as unlike as a filter can be for queries elsewhere.
SEARCHES: Mapping[str, tuple[int, str]] = {
    "all rows": (10, ""),
    "all rows, k = 100": (100, ""),
    "10 % of the rows": (10, "tenth == 3"),
    "10 % of the rows, k = 100": (100, "tenth == 3"),
    "50 % of the rows": (10, "tenth in [0, 1, 2, 3, 4]"),
    "1 % of the rows": (10, 'hundredth == "h7"'),
    "30 % of the rows, around one text": (10, 'topic == "near"'),
}


def rows_of(vectors: NDArray[np.float32]) -> Iterator[list[Row]]:
    """In batches, with texts of the length of a paragraph."""
    nearness = vectors @ vectors[0]
    near = nearness >= np.quantile(nearness, 0.7)
    text = "A paragraph of a handbook, as long as paragraphs are in handbooks. " * 8
    for start in range(0, len(vectors), BATCH):
        yield [
            Row(
                id=f"row-{at:07d}",
                vector=vectors[at],
                text=text,
                fields={"tenth": at % 10, "hundredth": f"h{at % 100}", "topic": "near" if near[at] else "far"},
            )
            for at in range(start, min(start + BATCH, len(vectors)))
        ]


@contextmanager
def maintained(index: MemoryIndex) -> Iterator[None]:
    """As the service does it: in a thread, again and again."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.1):
            index.maintain()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def ingest(index: MemoryIndex, batches: Sequence[list[Row]], queries: Sequence[Vector]) -> dict[str, Any]:
    """Rows are written as fast as it goes, while somebody searches and the index keeps up."""
    beside: list[float] = []
    began = time.perf_counter()
    with maintained(index):
        for position, rows in enumerate(batches, 1):
            index.apply(Write(table="bench", rows=rows), position)
            query = queries[position % len(queries)]
            beside.append(_timed_ms(index, query, 10, None))
        written_s = time.perf_counter() - began
        while index.fresh:
            time.sleep(0.02)
        caught_up_s = time.perf_counter() - began - written_s
    return {
        "rows_per_s": index.size / written_s,
        "caught_up_after_s": caught_up_s,
        "search_beside_ms": _spread(beside),
    }


def searches(index: MemoryIndex, queries: Sequence[Vector]) -> dict[str, Any]:
    """Times of one caller, and recall."""
    found = {}
    for name, (k, text) in SEARCHES.items():
        where = filters.read(text, FIELDS)
        times = [_timed_ms(index, query, k, where) for query in queries]
        exact = [_timed_ms(index, query, k, where, exact=True) for query in queries[:50]]
        ways = {index.search(query, k, where)[1] for query in queries[:50]}
        shares = [_recall(index, query, k, where) for query in queries[:200]]
        found[name] = {
            "took_ms": _spread(times),
            "exact_ms": _spread(exact),
            "recall": statistics.fmean(shares),
            "ways": sorted(ways),
        }
    return found


def together(index: MemoryIndex, queries: Sequence[Vector], callers: int, seconds: float) -> float:
    """Searches per second of several threads."""
    end = time.perf_counter() + seconds

    def ask(caller: int) -> int:
        count = 0
        while time.perf_counter() < end:
            index.search(queries[(caller * 31 + count) % len(queries)], 10)
            count += 1
        return count

    with ThreadPoolExecutor(callers) as pool:
        return sum(pool.map(ask, range(callers))) / seconds


def restart(index: MemoryIndex, table: Table, folder: Path, query: Vector) -> dict[str, Any]:
    began = time.perf_counter()
    index.save()
    saved_s = time.perf_counter() - began
    index.close()
    began = time.perf_counter()
    again = MemoryIndex.opened(table, folder)
    assert again is not None
    again.search(query, 10)
    opened_s = time.perf_counter() - began
    files = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    result = {
        "saved_s": saved_s,
        "searching_after_s": opened_s,
        "disk_bytes": files,
        "memory_bytes": again.memory_bytes,
    }
    again.close()
    return result


def run(arguments: argparse.Namespace, command: str) -> dict[str, Any]:
    vectors, queries = corpus(arguments.rows, QUERIES, arguments.dimension)
    table = Table(name="bench", dimension=arguments.dimension, metric=Metric(arguments.metric), fields=FIELDS)
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        index = MemoryIndex.new(table, folder)
        results: dict[str, Any] = {
            "taken": {"command": command, **commit(), "machine": machine()},
            "rows": arguments.rows,
            "dimension": arguments.dimension,
            "metric": arguments.metric,
            "ingest": ingest(index, list(rows_of(vectors)), queries),
            "searches": searches(index, queries),
            "searches_per_s": {n: together(index, queries, n, 2.0) for n in (1, 4, 16)},
        }
        results["restart"] = restart(index, table, folder, queries[0])
        results["most_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return results
    finally:
        shutil.rmtree(folder)


def _timed_ms(index: MemoryIndex, query: Vector, k: int, where: Where | None, *, exact: bool = False) -> float:
    began = time.perf_counter()
    index.search(query, k, where, exact=exact)
    return (time.perf_counter() - began) * 1000


def _recall(index: MemoryIndex, query: Vector, k: int, where: Where | None) -> float:
    exact = {hit.id for hit in index.search(query, k, where, exact=True)[0]}
    return len(exact & {hit.id for hit in index.search(query, k, where)[0]}) / len(exact)


def _spread(times_ms: Sequence[float]) -> dict[str, float]:
    ordered = sorted(times_ms)
    return {"p50": quantile(ordered, 0.5), "p95": quantile(ordered, 0.95), "p99": quantile(ordered, 0.99)}


def page(results: Mapping[str, Any]) -> str:
    """The results as one can read them."""
    taken, host, ingested, again = results["taken"], results["taken"]["machine"], results["ingest"], results["restart"]
    changed = ", with uncommitted changes" if taken["uncommitted_changes"] else ""
    rows = tuple(
        (
            name,
            *(f"{one['took_ms'][at]:.2f}" for at in ("p50", "p95", "p99")),
            f"{one['exact_ms']['p50']:.2f}",
            f"{one['recall']:.4f}",
            ", ".join(one["ways"]),
        )
        for name, one in results["searches"].items()
    )
    columns = ("searched", "p50 ms", "p95 ms", "p99 ms", "exact, p50 ms", "recall", "way")
    per_s = ", ".join(f"{count:.0f} per second with {n}" for n, count in results["searches_per_s"].items())
    parts = (
        "# The index of vectors by itself",
        f"Written by `{taken['command']}`; a new run replaces it. All figures are in `vector_index.json` beside it.",
        f"{results['rows']:,} rows of {results['dimension']} dimensions, {results['metric']}, in topics of very "
        "different sizes; queries are none of the rows. One caller, k = 10 where nothing else is said.",
        markdown(Page(title="", columns=columns, rows=rows)),
        f"- Written: {ingested['rows_per_s']:,.0f} rows per second, with a search after every {BATCH} "
        f"(p50 {ingested['search_beside_ms']['p50']:.2f} ms, p95 {ingested['search_beside_ms']['p95']:.2f} ms) and the "
        f"lists made and filled beside it, which were done {ingested['caught_up_after_s']:.1f} s after the last row.",
        f"- Searches of all rows by several threads: {per_s}.",
        f"- Saved in {again['saved_s']:.2f} s, searching again {again['searching_after_s']:.2f} s after it was opened; "
        f"{again['disk_bytes'] / 1e6:.0f} MB on disk, of which vectors and texts are read through the page cache, and "
        f"{again['memory_bytes'] / 1e6:.0f} MB of memory beside it.",
        f"Taken on {host['cpu']}, {host['cores']} cores, Python {host['python']}, load average before the run "
        f"{host['load_before']}, at commit {taken['commit'][:12]}{changed}.",
    )
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vector_index", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--rows", type=int, default=100_000, help="(default %(default)s)")
    parser.add_argument("--dimension", type=int, default=384, help="(default %(default)s)")
    parser.add_argument("--metric", choices=[str(metric) for metric in Metric], default="cosine")
    parser.add_argument(
        "--folder", type=Path, help="where its files lie while it runs (default: the system's for such)"
    )
    parser.add_argument("--no-write", action="store_true", help="prints the page and writes nothing")
    options = parser.parse_args(given)
    results = run(options, " ".join(["python -m benchmarks.vector_index", *given]))
    print(page(results))
    if not options.no_write:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "vector_index.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        (RESULTS / "vector_index.md").write_text(page(results), "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
