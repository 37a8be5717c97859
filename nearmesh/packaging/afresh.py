"""A version whose parameters are new: its warm-ups are recorded, its variants made and judged, as its author would.

    python -m nearmesh.packaging.afresh '{"folder": ..., "cache": ..., "lineage": ...}'

A process of its own: it runs the package's code (a metric, the steps of a pipeline), may take all the processor that
others leave, and may be ended at any moment: what it has done is kept in `cache`, and found by the next one.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nearmesh.errors import MeshError, PackageError
from nearmesh.lineage import LINEAGE_FILE
from nearmesh.oci import Manifest
from nearmesh.package import load
from nearmesh.packaging.agent_run import by_agent
from nearmesh.packaging.build import Artifact
from nearmesh.packaging.evaluate import Run
from nearmesh.packaging.killed import Killed
from nearmesh.packaging.layout import lay_out, published_files
from nearmesh.packaging.release import GateFailed, release
from nearmesh.packaging.warmup import INPUT, OUTPUT, check_warmup, read_warmup, to_plain
from nearmesh.report import REPORT_FILE, Measured, Report

# Serving and routing on the same machine come first.
_NICE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One variant, and whether it may be published."""

    variant: str
    passed: bool
    # With the figures.
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A version that may be published; `Publishable` as uploads have it."""

    manifest: Manifest
    manifest_bytes: bytes
    # By digest.
    blobs: Mapping[str, Path | bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Afresh:
    """What came of it."""

    judged: tuple[Judged, ...]
    # None where a variant failed its gate.
    packed: Packed | None


def make(folder: Path, cache: Path, lineage: Path, *, run: Run = by_agent) -> Afresh:
    """The version in `folder`, with a lineage. Raises PackageError and whatever `release` does, but GateFailed."""
    renew_warmups(folder, cache, run=run)
    try:
        artifact = release(folder, cache, more={LINEAGE_FILE: lineage}, run=run)
    except GateFailed as error:
        return Afresh(judged=_judged(error.report), packed=None)
    packed = Packed(manifest=artifact.manifest, manifest_bytes=artifact.manifest_bytes, blobs=artifact.blobs)
    return Afresh(judged=_judged(_report(artifact)), packed=packed)


def renew_warmups(folder: Path, cache: Path, *, run: Run = by_agent) -> None:
    """From now on a node has to give what the references answer here with their new parameters, by a node's engines.

    Raises PackageError, also where an answer is not finite.
    """
    package = load(folder)
    references = {variant.step: package.reference(variant.step).name for variant in package.variants}
    for name in dict.fromkeys(warmup.file for warmup in package.warmup):
        inputs, expected = read_warmup(folder / name)
        with tempfile.TemporaryDirectory(prefix="nearmesh-") as scratch:
            node, cases = Path(scratch) / "node", Path(scratch) / "cases.npz"
            node.mkdir()
            lay_out(published_files(package, folder, cache), node)
            # With one more axis in front they are one request.
            np.savez(cases, allow_pickle=False, **{INPUT + key: array[None] for key, array in inputs.items()})
            ran = run(node, references, cases)
        answers = {key: np.asarray(ran.outputs[key][0]) for key in expected}
        for key, answer in answers.items():
            if answer.dtype.kind == "f" and not np.isfinite(answer).all():
                raise PackageError(f"with the new parameters, output {key!r} is not finite for the inputs of {name}")
        arrays = {INPUT + key: array for key, array in inputs.items()}
        arrays |= {OUTPUT + key: to_plain(key, answer) for key, answer in answers.items()}
        np.savez_compressed(folder / name, allow_pickle=False, **arrays)
        check_warmup(package, folder / name)


def _report(artifact: Artifact) -> Report | None:
    file = next((file for file in artifact.manifest.files if file.title == REPORT_FILE), None)
    if file is None:
        return None
    held = artifact.blobs[file.digest]
    return Report.from_bytes(held if isinstance(held, bytes) else held.read_bytes())


def _judged(report: Report | None) -> tuple[Judged, ...]:
    """Empty where nothing says how good a variant is, and so none is made."""
    if report is None:
        return ()
    return tuple(Judged(variant=one.label, passed=one.passed, detail=_detail(one, report)) for one in report.variants)


def _detail(one: Measured, report: Report) -> str:
    metric = report.metric.rpartition(":")[2]
    said = [f"{metric} {one.metric:.4f} of {report.cases} cases" if one.metric is not None else f"no {metric}"]
    if one.agreement is not None:
        said.append(f"agrees in {one.agreement:.2%}")
    return ", ".join(said) + (f": {one.why}" if one.why else "")


# Between the two processes.


def to_json(found: Afresh, folder: Path) -> dict[str, Any]:
    """What is no file becomes one, in `folder`."""
    said: dict[str, Any] = {"judged": [asdict(one) for one in found.judged]}
    if found.packed:
        said["manifest"] = found.packed.manifest_bytes.decode()
        said["blobs"] = {digest: str(_file(digest, held, folder)) for digest, held in found.packed.blobs.items()}
    return said


def _file(digest: str, held: Path | bytes, folder: Path) -> Path:
    if isinstance(held, Path):
        return held
    path = folder / digest.removeprefix("sha256:")
    path.write_bytes(held)
    return path


def from_json(said: Mapping[str, Any]) -> Afresh:
    """Raises PackageError and Killed with what the other process said, if it did not come to an end."""
    if "killed" in said:
        raise Killed(said["killed"])
    if "error" in said:
        raise PackageError(said["error"])
    judged = tuple(Judged(**one) for one in said["judged"])
    if "manifest" not in said:
        return Afresh(judged=judged, packed=None)
    data = said["manifest"].encode()
    blobs = {digest: Path(path) for digest, path in said["blobs"].items()}
    return Afresh(judged=judged, packed=Packed(manifest=Manifest.from_bytes(data), manifest_bytes=data, blobs=blobs))


def main() -> None:
    """The last line that it prints is JSON: what came of it, {"error": ...} or {"killed": ...}."""
    order = {key: Path(value) for key, value in json.loads(sys.argv[1]).items()}
    os.nice(_NICE)
    order["cache"].mkdir(parents=True, exist_ok=True)
    try:
        # A package's own code may print what it likes.
        with redirect_stdout(sys.stderr):
            said = to_json(make(order["folder"], order["cache"], order["lineage"]), order["cache"])
    except Killed as error:
        said = {"killed": error.message}
    except MeshError as error:
        said = {"error": error.message}
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
