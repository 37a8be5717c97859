"""A package's folder as an OCI artifact: everything checked first, equal files to an equal digest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nearmesh import oci
from nearmesh.errors import PackageError
from nearmesh.package import MANIFEST_FILE, Package, Step, Variant, load, read_labels
from nearmesh.packaging.graph import check_graph
from nearmesh.packaging.layout import published_files
from nearmesh.packaging.sources import OnProgress, default_cache, quiet
from nearmesh.packaging.warmup import check_warmup


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A model version, ready to be published."""

    package: Package
    manifest: oci.Manifest
    # What the registry stores, and the digest of just these bytes: the version's name.
    manifest_bytes: bytes
    digest: str
    # Every blob of the manifest by its digest: a file, or the bytes themselves.
    blobs: Mapping[str, Path | bytes]


def build(folder: Path, cache: Path | None = None, *, draft: bool = False, on_progress: OnProgress = quiet) -> Artifact:
    """Fetches what the package in `folder` lacks, checks it, and makes its artifact.

    Weights that are downloaded are kept in `cache`, by default `default_cache()`. With `draft`, what the author has yet
    to fill in may be missing. Raises PackageError, DigestMismatch, Unreachable.
    """
    package = load(folder)
    if package.unfilled and not draft:
        raise PackageError(f"{folder / MANIFEST_FILE}: fill in {_and(package.unfilled)} before it is published")
    files = _files(package, folder, cache or default_cache(), on_progress)
    _check(package, files)
    # In the order of their names, so that moving a line in model.toml moves no layer.
    layers = {name: _layer(name, files[name]) for name in sorted(files)}
    config_bytes = _config(package)
    config = oci.Descriptor(oci.CONFIG_TYPE, oci.digest_bytes(config_bytes), len(config_bytes))
    manifest = oci.Manifest(package.name, package.version, config, tuple(layers.values()))
    manifest_bytes = manifest.to_bytes()
    blobs = {config.digest: config_bytes} | {layer.digest: files[name] for name, layer in layers.items()}
    return Artifact(
        package=package,
        manifest=manifest,
        manifest_bytes=manifest_bytes,
        digest=oci.digest_bytes(manifest_bytes),
        blobs=blobs,
    )


def _and(keys: Iterable[str]) -> str:
    return " and ".join(f"`{key}`" for key in keys)


def _files(package: Package, folder: Path, cache: Path, on_progress: OnProgress) -> dict[str, Path]:
    """Each published file by its name in the artifact."""
    _check_names([MANIFEST_FILE, *package.files, *(name for v in package.variants for name in v.sources)])
    return published_files(package, folder, cache, on_progress=on_progress)


def _check_names(names: list[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise PackageError(f"{times} of the package's files would be named {name!r}; each needs its own name")
        if not name or not oci.is_file_name(name):
            raise PackageError(f"{name!r}: the package's files lie beside model.toml, without folders")


def _check(package: Package, files: Mapping[str, Path]) -> None:
    for variant in package.variants:
        check_graph(package, variant, files[variant.file])
    for step in package.steps:
        if step.file:
            _check_code(files[step.file])
    for warmup in package.warmup:
        check_warmup(package, files[warmup.file])
    if package.labels:
        _check_labels(package, files[package.labels])


def _check_code(path: Path) -> None:
    """Only that it is Python: what it does shows on a node, and to run it here would be a surprise."""
    try:
        compile(path.read_bytes(), path.name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise PackageError(f"{path} is not Python: {error}") from None


def _check_labels(package: Package, path: Path) -> None:
    count = len(read_labels(path))
    # A pipeline's may be those of a graph within.
    if package.steps:
        return
    sizes = {spec.shape[-1] for spec in package.outputs if spec.shape}
    if count not in sizes and -1 not in sizes:
        raise PackageError(f"{path}: {count} labels, but the outputs' last axes are {sorted(sizes)} long")


def _layer(name: str, path: Path) -> oci.Descriptor:
    return oci.Descriptor(oci.FILE_TYPE, oci.digest_file(path), path.stat().st_size, name)


def _config(package: Package) -> bytes:
    """What a registry's pages show of a version; agents read model.toml."""
    body: dict[str, object] = {
        "name": package.name,
        "version": package.version,
        "description": package.description,
        "licence": package.licence,
        "credit": package.credit,
        "variants": [_variant(variant) for variant in package.variants],
        "warmup": [warmup.file for warmup in package.warmup],
        "labels": package.labels,
    }
    # Left out where there are none, so that the digests of other packages stay as they are.
    if package.steps:
        body["steps"] = [_step(step) for step in package.steps]
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _variant(variant: Variant) -> dict[str, str]:
    shown = {"name": variant.name, "file": variant.file, "hardware": variant.hardware}
    return shown | {"step": variant.step} if variant.step else shown


def _step(step: Step) -> dict[str, str]:
    return {"name": step.name, "python": step.python} if step.python else {"name": step.name}
