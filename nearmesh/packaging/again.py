"""A published version as a package's folder again: under another version's name, and with other parameters."""

from __future__ import annotations

import shutil
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

from nearmesh.errors import PackageError
from nearmesh.oci import Manifest
from nearmesh.package import MANIFEST_FILE, Package, load, parse
from nearmesh.packaging.parameters import Array, write


def unpack(manifest: Manifest, blobs: Mapping[str, Path], into: Path, version: str) -> Package:
    """What was published (blobs by digest) as the folder of another version. Variants that are made are left out.

    Raises PackageError where the artifact lacks what its model.toml names.
    """
    found = {file.title: blobs[file.digest] for file in manifest.all_files}
    name = f"{manifest.model}@{manifest.version}"
    if MANIFEST_FILE not in found:
        raise PackageError(f"{name} was published without {MANIFEST_FILE}")
    text = found[MANIFEST_FILE].read_text("utf-8")
    package = parse(text, f"{MANIFEST_FILE} of {name}")
    needed = [*package.files, *package.kept_files, *package.sources]
    if lacking := [file for file in needed if file not in found]:
        raise PackageError(
            f"{name} was published without {', '.join(lacking)}, and new versions are made with that: raise `version` "
            "in its model.toml and publish it again"
        )
    (into / MANIFEST_FILE).write_text(_of_another(package, text, version), "utf-8")
    for file in needed:
        shutil.copyfile(found[file], into / file)
    return load(into)


def _of_another(package: Package, text: str, version: str) -> str:
    """model.toml of another version, whose files all lie beside it under their published names."""
    # Not needed where nothing is unpacked.
    import tomli_w

    said = tomllib.loads(text)
    said["version"] = version
    for variant, table in zip(package.variants, said.get("variants", ()), strict=True):
        table["source"] = {"path": variant.file}
        for data in table.get("external", ()):
            data["source"] = {"path": data["name"]}
    for asset in said.get("assets", ()):
        asset["source"] = {"path": asset["name"]}
    return tomli_w.dumps(said)


def put(package: Package, folder: Path, arrays: Mapping[str, Array]) -> None:
    """The parameters into the trained graph. Raises PackageError unless they are just those that rounds train."""
    training, trained = package.training, package.trained
    if training is None or trained is None:
        raise PackageError(f"{package.name}@{package.version} has no [training]: nothing says what its parameters are")
    if odd := sorted(arrays.keys() ^ set(training.parameters)):
        raise PackageError(
            f"the parameters are others than those of [training] in model.toml: {', '.join(map(repr, odd))}"
        )
    graph = folder / trained.file
    with tempfile.TemporaryDirectory(dir=folder, prefix=".parameters-") as scratch:
        fresh = Path(scratch) / trained.file
        write(graph, {name: arrays[name] for name in training.parameters}, fresh)
        fresh.replace(graph)
