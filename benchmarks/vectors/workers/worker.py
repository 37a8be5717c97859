"""One store and those who ask it, in a process in that store's own environment: `worker.py STORE TASK`.

A line in, a line out, all JSON. `STORE` is one of the modules beside this file (`keep_lancedb` for "lancedb"); `TASK`
says where the arrays of the corpus and the store's data are. Embedded stores are asked in this process, servers through
their client.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

K = 10
# From here on rows are numbered that show that a store takes writes again, each by the second in which it is written.
EXTRA_ROWS = 10**9
SEEN_WITHIN_S = 60.0
# Recall is measured for so long, and with so many queries at least.
RECALL_S, LEAST_QUERIES = 20.0, 50


class Store(Protocol):
    """What a module beside this one has as `Store`. A search's answer are (row, text), best first."""

    # Rows of one insert, as its documents would have it, and efforts of a search to choose from, from the least on.
    batch: int
    efforts: Sequence[int]

    def create(self) -> None: ...

    def open(self) -> None:
        """As it was left."""
        ...

    def insert(self, rows: Sequence[int], vectors: np.ndarray, texts: Sequence[str], shares: Sequence[int]) -> None:
        """Acknowledged when it returns."""
        ...

    def finish(self) -> None:
        """Returns when everything that was inserted is in the index."""
        ...

    def search(self, vector: np.ndarray, share: int | None, effort: int) -> Sequence[tuple[int, str]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Task:
    """What there is to do with; as JSON on the command line."""

    corpus: str
    # The store's own.
    folder: str
    text_bytes: int
    # At least so many of the true nearest have to be found, by the effort that is chosen.
    recall: float
    # Of a server; and how one gets in.
    address: str = ""
    token: str = ""
    ca: str = ""
    server_name: str = ""
    # Of who asks more of the node than searches.
    control_plane: str = ""

    def array(self, name: str) -> Any:
        return np.load(Path(self.corpus) / f"{name}.npy", mmap_mode="r")


class Worker:
    """Answers what it is asked for, one at a time."""

    def __init__(self, store: Store, task: Task) -> None:
        self._store = store
        self._task = task
        # By whether there is a filter.
        self._effort = {False: store.efforts[0], True: store.efforts[0]}

    def fill(self, text: Callable[[int, int], str]) -> dict[str, Any]:
        """All rows; then until a search finds the last one."""
        vectors, shares = self._task.array("vectors"), self._task.array("shares")
        texts = [text(row, self._task.text_bytes) for row in range(len(vectors))]
        self._again(self._store.create, SEEN_WITHIN_S)
        took_ms = []
        began_s = time.perf_counter()
        for start in range(0, len(vectors), self._store.batch):
            rows = range(start, min(start + self._store.batch, len(vectors)))
            given = np.ascontiguousarray(vectors[rows.start : rows.stop])
            before_s = time.perf_counter()
            self._store.insert(
                list(rows), given, texts[rows.start : rows.stop], shares[rows.start : rows.stop].tolist()
            )
            took_ms.append((time.perf_counter() - before_s) * 1000)
        filled_s = time.perf_counter()
        self._until_seen(len(vectors) - 1, vectors[-1])
        seen_s = time.perf_counter()
        self._store.finish()
        return {
            "seconds": filled_s - began_s,
            "seen_s": seen_s - filled_s,
            "finished_s": time.perf_counter() - filled_s,
            "batch": self._store.batch,
            "batch_ms": took_ms,
        }

    def _until_seen(self, row: int, vector: np.ndarray) -> None:
        end = time.monotonic() + SEEN_WITHIN_S
        while row not in [found for found, _ in self._store.search(np.array(vector), None, self._store.efforts[-1])]:
            if time.monotonic() > end:
                raise RuntimeError(f"row {row} is not found {SEEN_WITHIN_S:g} s after it was acknowledged")

    def tune(self) -> dict[str, Any]:
        """The least effort that finds enough, on queries that nobody measures with."""
        found = {}
        for filtered in (False, True):
            for effort in self._store.efforts:
                recall = self._recall("tuning", filtered, effort)
                self._effort[filtered] = effort
                if recall >= self._task.recall:
                    break
            found["filtered" if filtered else "plain"] = {"effort": self._effort[filtered], "recall": recall}
        return found

    def recall(self, filtered: bool) -> dict[str, Any]:
        return {"recall": self._recall("queries", filtered, self._effort[filtered])}

    def _recall(self, name: str, filtered: bool, effort: int) -> float:
        queries = self._task.array(name)
        truth = self._task.array(
            {"tuning": "tuning_truth", "queries": "truth"}[name] + ("_of_share" if filtered else "")
        )
        right = asked = 0
        end = time.monotonic() + RECALL_S
        for number, (query, true) in enumerate(zip(queries, truth, strict=True)):
            found = self._store.search(np.array(query), _share(number, filtered), effort)
            right += len({row for row, _ in found} & set(true.tolist()))
            asked += len(true)
            # A slow one is asked less.
            if time.monotonic() > end and number >= LEAST_QUERIES:
                break
        return right / asked

    def search(self, callers: int, seconds: float, filtered: bool, warm_s: float = 0.5) -> dict[str, Any]:
        """Each caller asks again as soon as it has its answer, and once at least when all are warm."""
        queries = [np.array(query) for query in self._task.array("queries")]
        effort = self._effort[filtered]
        took: list[list[float]] = [[] for _ in range(callers)]
        failed: list[str] = []
        start, end = time.perf_counter() + warm_s, time.perf_counter() + warm_s + seconds

        def call(caller: int) -> None:
            number = caller * 61
            try:
                while (before := time.perf_counter()) < end or not took[caller]:
                    number = (number + 1) % len(queries)
                    found = self._store.search(queries[number], _share(number, filtered), effort)
                    if before >= start:
                        took[caller].append((time.perf_counter() - before) * 1000)
                    if not found:
                        raise RuntimeError("an answer without a hit")
            except Exception as error:
                failed.append(f"{type(error).__name__}: {error}")
                raise

        threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise RuntimeError(failed[0])
        return {"took_ms": [round(one, 4) for mine in took for one in mine], "elapsed_s": time.perf_counter() - start}

    def steady(self, rate_per_s: float, seconds: float, callers: int = 16) -> dict[str, Any]:
        """Searches begin on schedule whether earlier ones have ended or not, for as long as a caller is free."""
        queries = [np.array(query) for query in self._task.array("queries")]
        effort = self._effort[False]
        turns = iter(range(round(rate_per_s * seconds)))
        took: list[float] = []
        failed: list[str] = []
        gate, began = threading.Lock(), time.perf_counter()

        def call() -> None:
            while True:
                with gate:
                    number = next(turns, None)
                if number is None:
                    return
                due = began + number / rate_per_s
                time.sleep(max(0.0, due - time.perf_counter()))
                try:
                    self._store.search(queries[number % len(queries)], None, effort)
                except Exception as error:  # noqa: BLE001  # whatever a store raises is counted
                    failed.append(f"{type(error).__name__}: {error}")
                # From when it was due: a search that waits for a caller waits as well.
                took.append((time.perf_counter() - due) * 1000)

        threads = [threading.Thread(target=call) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"took_ms": took, "errors": len(failed), "elapsed_s": time.perf_counter() - began}

    def first(self, limit_s: float) -> dict[str, Any]:
        """Opens what was left; asks until the first right answer, and writes until one write is acknowledged.

        When each was, by the clock that all processes of a machine share.
        """
        query, truth = np.array(self._task.array("queries")[0]), self._task.array("truth")[0].tolist()
        self._again(self._store.open, limit_s)

        def right() -> None:
            found = [row for row, _ in self._store.search(query, None, self._store.efforts[-1])]
            if truth[0] not in found:
                raise RuntimeError(f"{found} lacks {truth[0]}")

        self._again(right, limit_s)
        answered_s = time.monotonic()
        row = ([EXTRA_ROWS + int(time.time())], query[None, :] * -1, ["extra"], [0])
        self._again(lambda: self._store.insert(*row), limit_s)
        return {"answered_s": answered_s, "written_s": time.monotonic()}

    def _again(self, call: Callable[[], None], within_s: float) -> None:
        """Until it works, as a client does that finds its server away."""
        end = time.monotonic() + within_s
        while True:
            try:
                return call()
            except Exception:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def close(self) -> dict[str, Any]:
        self._store.close()
        return {}


def _share(number: int, filtered: bool) -> int | None:
    return number % 10 if filtered else None


def main(name: str, task: Task, text: Callable[[int, int], str]) -> None:
    module = importlib.import_module("keep_" + name.replace("-", "_"))
    worker = Worker(module.Store(task), task)
    # What libraries print must not be taken for an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        asked = json.loads(line)
        what = asked.pop("do")
        try:
            done = worker.fill(text) if what == "fill" else getattr(worker, what)(**asked)
        except Exception as error:  # noqa: BLE001  # whatever a store raises is its answer
            done = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(done) + "\n")
        answers.flush()


if __name__ == "__main__":
    # Its neighbour, which needs nothing but NumPy.
    sys.path.append(str(Path(__file__).parents[1]))
    main(sys.argv[1], Task(**json.loads(sys.argv[2])), importlib.import_module("corpus").text)
